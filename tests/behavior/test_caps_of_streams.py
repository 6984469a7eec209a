import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bad_input.shop import make_shop, stock
from behavior.links import attach
from cases import for_each
from http_messages import HttpRequest
from millstream import Context, Server, Settings
from millstream.middleware import MessageRequest, Middleware, Next
from patience import WAIT
from wire import POST, Reply, Wire, ask_asgi, encode_headers, per_request, request, routing, run_wire

LISTENING = {"notifications": {"toolsListChanged": True}}


@asynccontextmanager
async def open_subscriptions(wire: Wire, count: int) -> AsyncIterator[None]:
    """Keep subscriptions open during the block."""
    headers = routing("subscriptions/listen")
    endings = wire.runtime.services.endings
    async with asyncio.TaskGroup() as group:
        for n in range(count):
            group.create_task(wire.post(per_request("subscriptions/listen", LISTENING, n), headers))
        await wire.until(lambda: len(endings) == count)
        try:
            yield
        finally:
            for end in list(endings):
                end()


async def add(wire: Wire) -> int:
    """Return the status of a plain call."""
    message = per_request("tools/call", {"name": "add", "arguments": {"a": 1, "b": 2}})
    return (await wire.post(message, routing("tools/call", "add"))).status


async def test_open_subscriptions_do_not_count_as_calls() -> None:
    async with run_wire(make_shop(max_calls=2), "asgi") as wire, open_subscriptions(wire, 3):
        assert await add(wire) == 200
        assert (await wire.post(request("tools/list"))).status == 200


async def test_excess_subscriptions_get_503_with_retry_after() -> None:
    async with run_wire(make_shop(max_streams=4), "asgi") as wire:
        headers = {**await wire.initialize(), "accept": "text/event-stream"}
        async with open_subscriptions(wire, 2):
            refused = await wire.post(
                per_request("subscriptions/listen", LISTENING, 9), routing("subscriptions/listen")
            )
            assert (refused.status, refused.headers[b"retry-after"]) == (503, b"1")
            assert refused.message["error"]["code"] == -31503
            assert (await wire.ask("GET", "/mcp", headers)).status == 503
            assert await add(wire) == 200


ELSEWHERE = "192.0.2.1"
STREAMS = {
    "subscription": (
        "POST",
        "/mcp",
        routing("subscriptions/listen"),
        per_request("subscriptions/listen", LISTENING, 1),
    ),
    "http+sse": ("GET", "/sse", {**POST, "accept": "text/event-stream"}, None),
    "hub": ("GET", "/events", {**POST, "accept": "*/*"}, None),  # EventSource gets an event instead
}


@for_each("kind", STREAMS)
async def test_one_address_gets_at_most_half_of_the_streams(kind: str) -> None:
    method, path, headers, message = STREAMS[kind]
    body = b"" if message is None else json.dumps(message).encode()
    mcp = Server("shop", serve="hub", settings=Settings(max_streams=4))
    stock(mcp)
    async with run_wire(mcp, "asgi") as wire, asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        streams = wire.runtime.streams

        def ask(peer: str) -> Any:
            return ask_asgi(mcp, method, path, encode_headers(headers), body, peer=peer)

        for count in (1, 2):
            group.create_task(ask("2001:db8::1" if count == 1 else "2001:db8::2"))  # one customer has both
            await wire.until(lambda count=count: len(streams) == count)
        refused = await ask("2001:db8::3")
        assert refused.status == 503
        assert b"retry-after" in refused.headers
        for count in (3, 4):
            group.create_task(ask(ELSEWHERE))
            await wire.until(lambda count=count: len(streams) == count)
        assert (await ask("198.51.100.1")).status == 503
        streams.close()
        await wire.until(lambda: len(streams) == 0)
        group.create_task(ask("2001:db8::3"))
        await wire.until(lambda: len(streams) == 1)
        streams.close()


async def test_one_address_gets_at_most_half_of_the_subscriptions() -> None:
    async with make_shop(max_streams=4).running() as runtime:
        sent: list[bytes] = []

        near, far = (attach(runtime, sent, peer=peer) for peer in (ELSEWHERE, "198.51.100.1"))
        for number, each in ((1, near), (2, near), (3, near), (4, far)):
            each.receive(json.dumps(per_request("subscriptions/listen", LISTENING, number)).encode())
        async with asyncio.timeout(WAIT):
            while len(sent) < 4:  # noqa: ASYNC110  no event signals it
                await asyncio.sleep(0)
        (refused,) = [each for each in map(json.loads, sent) if "error" in each]
        assert (refused["id"], refused["error"]["code"]) == (3, -31503)
        assert len(runtime.services.endings) == 3
        await near.close()
        await far.close()


class Slow(Middleware):
    """Middleware that blocks subscriptions until released."""

    def __init__(self) -> None:
        self.waiting = 0
        self.go = asyncio.Event()

    async def on_message(self, request: MessageRequest, next: Next) -> Any:
        if request.method == "subscriptions/listen":
            self.waiting += 1
            await self.go.wait()
        return await next(request)


async def test_subscriptions_waiting_for_a_hook_count_as_streams() -> None:
    slow = Slow()
    mcp = Server("shop", settings=Settings(max_streams=4), middleware=[slow])
    stock(mcp)
    async with run_wire(mcp, "asgi") as wire:
        headers = {**await wire.initialize(), "accept": "text/event-stream"}
        streams = wire.runtime.streams
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(
                    wire.post(per_request("subscriptions/listen", LISTENING, n), routing("subscriptions/listen"))
                )
                for n in range(2)
            ]
            await wire.until(lambda: slow.waiting == 2)
            stream = group.create_task(wire.ask("GET", "/mcp", headers))
            await wire.until(lambda: len(streams) == 1)
            slow.go.set()
            await wire.until(lambda: sum(each.done() for each in asked) + len(streams) == 3)
            opened_here = len(streams)
            streams.close()
        assert (stream.result().status, opened_here) == (200, 2)
        refused, opened = sorted((each.result() for each in asked), key=lambda reply: -reply.status)
        assert (refused.status, refused.message["error"]["code"], opened.status) == (503, -31503, 200)


def make_streaming_server(release: asyncio.Event) -> Server:
    """Return a server with a call that streams until released."""
    mcp = make_shop(max_streams=1)

    @mcp.tool
    async def reports(ctx: Context) -> str:
        """Open the stream and wait."""
        await ctx.progress(1)
        await release.wait()
        return "released"

    return mcp


async def test_call_streams_do_not_count_as_other_streams() -> None:
    release = asyncio.Event()
    async with run_wire(make_streaming_server(release), "asgi") as wire:
        headers = await wire.initialize()
        call: dict[str, Any] = {"name": "reports", "_meta": {"progressToken": 1}}
        streams = wire.runtime.streams
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(wire.post(request("tools/call", call, n), headers)) for n in range(3)]
            await wire.until(lambda: len(streams) == 3)
            stream = group.create_task(wire.ask("GET", "/mcp", {**headers, "accept": "text/event-stream"}))
            await wire.until(lambda: len(streams) == 4)
            assert (await wire.ask("GET", "/sse", {**POST, "accept": "text/event-stream"})).status == 503
            release.set()
            await asyncio.wait(calls)
            streams.close()
        replies: list[Reply] = [stream.result(), *(each.result() for each in calls)]
        assert [reply.status for reply in replies] == [200] * 4
        assert not streams.full(HttpRequest("GET", "/sse", (), {}, peer="127.0.0.1"))
