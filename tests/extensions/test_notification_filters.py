import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import http_peer
from cases import for_each
from millstream import Client, Context, Server
from millstream.extensions import CallContext, Extension, Host, NotificationMessage, method, notification
from millstream.protocol import NEWEST, NEWEST_HANDSHAKE
from patience import WAIT

DATES = [NEWEST.date, NEWEST_HANDSHAKE.date]
SOLD, TOLD = "com.example/sold", "com.example/told"


class FilteringExtension(Extension):
    """Records each notification, doubles prices, and drops secrets."""

    name = "com.example/censor"

    def __init__(self, *, fails: bool = False) -> None:
        self.seen: list[tuple[str, bool]] = []
        self.sold: list[int] = []
        self.sold_one = asyncio.Event()
        self.fails = fails
        self.host: Host

    def filter_notification(self, message: NotificationMessage) -> NotificationMessage | None:
        """Return the changed notification, or None for a secret."""
        self.seen.append((message.method, message.incoming))
        if self.fails and message.method == TOLD:
            raise RuntimeError("broken filter")
        if "secret" in str(message.params):
            return None
        if "price" in message.params:
            params = {**message.params, "price": message.params["price"] * 2}
            return NotificationMessage(message.method, params, message.incoming, message.principal)
        return message

    async def open(self, host: Host) -> None:
        """Store the host."""
        self.host = host

    @notification(SOLD)
    async def note_sale(self, params: dict[str, Any]) -> None:
        """Record the price."""
        self.sold.append(params["price"])
        self.sold_one.set()

    @method("com.example/stream")
    async def stream(self, ctx: CallContext) -> None:
        """Send notifications on a stream."""
        async with ctx.stream() as stream:
            await stream.send(TOLD, {"word": "secret"})
            stream.push(TOLD, {"price": 3})
            await stream.send(TOLD, {"price": 4})


class UnfilteredClient(Extension):
    """The client side without a filter."""

    name = "com.example/censor"

    def __init__(self) -> None:
        self.told: list[Any] = []

    @notification(TOLD, side="client")
    async def note(self, params: dict[str, Any]) -> None:
        """Record the params."""
        self.told.append(params)


class FilteringClient(UnfilteredClient):
    """The client side with a filter."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool]] = []

    def filter_notification(self, message: NotificationMessage) -> NotificationMessage | None:
        """Drop secrets in both directions."""
        self.seen.append((message.method, message.incoming))
        return None if "secret" in str(message.params) else message


def make_shop(*extensions: Extension) -> Server:
    """Return a server with a tool that sends every kind of notification."""
    mcp = Server("shop", extensions=extensions)

    @mcp.tool
    async def tell(ctx: Context) -> str:
        """Send notifications, some of them secret."""
        await ctx.progress(1, 3, "begun")
        await ctx.progress(2, 3, "the secret")
        await ctx.notify(TOLD, {"word": "secret"})
        await ctx.notify(TOLD, {"price": 1})
        return "told"

    return mcp


@asynccontextmanager
async def _over_http(server: Server) -> AsyncIterator[str]:
    async with http_peer.serve(server) as served:
        try:
            yield f"http://127.0.0.1:{served.port}/mcp"
        finally:
            await server.stop()


@for_each("revision", DATES)
async def test_server_filters_both_directions_in_process(revision: str) -> None:
    censor, ears = FilteringExtension(), UnfilteredClient()
    async with asyncio.timeout(WAIT):
        async with Client(make_shop(censor), revision=revision, extensions=[ears]) as client:
            await _check(client, censor, ears)


@for_each("revision", DATES)
async def test_server_filters_both_directions_over_http(revision: str) -> None:
    censor, ears = FilteringExtension(), UnfilteredClient()
    async with (
        asyncio.timeout(WAIT),
        _over_http(make_shop(censor)) as url,
        Client(url, revision=revision, extensions=[ears]) as client,
    ):
        await _check(client, censor, ears)


async def _check(client: Client, censor: FilteringExtension, ears: UnfilteredClient) -> None:
    steps: list[str | None] = []
    result = await client.call("tell", progress=lambda value, total, message: steps.append(message))
    assert result.text == "told"
    await client.ping()
    assert (steps, ears.told) == (["begun"], [{"price": 2}])
    assert censor.seen.count(("notifications/progress", False)) == 2
    assert censor.seen.count((TOLD, False)) == 2
    await client.notify(SOLD, {"price": 99, "to": "secret"})
    await client.notify(SOLD, {"price": 5})
    await censor.sold_one.wait()
    assert censor.sold == [10]
    assert censor.seen.count((SOLD, True)) == 2
    ears.told.clear()
    await client.request("com.example/stream")
    while len(ears.told) < 2:
        await client.ping()
    assert ears.told == [{"price": 6}, {"price": 8}]


async def test_broadcasts_and_list_changes_are_filtered_for_each_session() -> None:
    censor, ears = FilteringExtension(), UnfilteredClient()
    server = make_shop(censor)
    async with asyncio.timeout(WAIT), Client(server, revision=NEWEST_HANDSHAKE.date, extensions=[ears]) as client:
        await client.ping()
        censor.host.broadcast(TOLD, {"word": "secret"})
        censor.host.broadcast(TOLD, {"price": 7})
        server.remove_tool("tell")
        while ("notifications/tools/list_changed", False) not in censor.seen or not ears.told:
            await client.ping()
        assert ears.told == [{"price": 14}]
        assert ("notifications/initialized", True) in censor.seen


@for_each("revision", DATES)
async def test_client_filters_both_directions(revision: str) -> None:
    sold: list[Any] = []
    arrived = asyncio.Event()

    class Plain(Extension):
        name = "com.example/censor"

        @notification(SOLD)
        async def note_sale(self, params: dict[str, Any]) -> None:
            sold.append(params)
            arrived.set()

    quiet = FilteringClient()
    async with asyncio.timeout(WAIT), Client(make_shop(Plain()), revision=revision, extensions=[quiet]) as client:
        steps: list[str | None] = []
        await client.call("tell", progress=lambda value, total, message: steps.append(message))
        await client.ping()
        assert (steps, quiet.told) == (["begun"], [{"price": 1}])
        await client.notify(SOLD, {"word": "secret"})
        await client.notify(SOLD, {"word": "public"})
        await arrived.wait()
        assert [each["word"] for each in sold] == ["public"]
        assert quiet.seen.count((SOLD, False)) == 2
        assert quiet.seen.count((TOLD, True)) == 2


async def test_failing_filter_drops_only_the_notification() -> None:
    censor, ears = FilteringExtension(fails=True), UnfilteredClient()
    async with asyncio.timeout(WAIT), Client(make_shop(censor), extensions=[ears]) as client:
        assert (await client.call("tell")).text == "told"
        await client.ping()
        assert ears.told == []


ENDING = r"""
import json, sys

def say(**members):
    print(json.dumps({"jsonrpc": "2.0", **members}), flush=True)

for line in sys.stdin:
    message = json.loads(line)
    method, id = message.get("method"), message.get("id")
    if method == "server/discover":
        tools = {"tools": {"listChanged": True}}
        say(id=id, result={"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": tools})
    elif method == "subscriptions/listen":
        say(method="notifications/cancelled", params={"requestId": id})
"""


@pytest.mark.server
async def test_client_filters_the_notification_that_ends_a_subscription() -> None:
    quiet = FilteringClient()
    async with asyncio.timeout(WAIT), Client([sys.executable, "-c", ENDING], extensions=[quiet]) as client:
        await client.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    assert ("notifications/cancelled", True) in quiet.seen
