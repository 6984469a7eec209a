import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from itertools import chain, repeat
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from cases import for_each
from client.misbehaving_servers import GREETING, ReceivedRequest, connected, misbehaving, with_discovery
from client.watch_parts import (
    AGAIN,
    block_forever,
    count_gets,
    count_handshakes,
    session,
    set_waits,
    until_other_than_again,
    wait_until,
)
from millstream import Client, Server
from millstream.client import _watches as watching
from millstream.client._errors import AccessDenied, ClientError, NotMcp, ServerError
from millstream.client._server_messages import Change
from patience import WAIT

NEVER = 100_000.0
"""Seconds for a wait that mustn't end by itself."""


async def test_removed_resource_ends_only_its_watch(short_backoff: None) -> None:
    gone = False

    async def calls(asked: ReceivedRequest) -> None:
        if gone and asked.message["params"]["uri"] == "a://1":
            return await asked.error(-32002, "Resource not found")
        return await asked.result({})

    async def streams(asked: ReceivedRequest) -> None:
        if count_handshakes(server) == 1 and count_gets(server) > 1:
            return await asked.reply(b"", status="404 Not Found")
        await asked.stream()
        if count_handshakes(server) == 1:
            await wait_until(lambda: gone)
            return await asked.end()
        return await block_forever()

    async with (
        asyncio.timeout(WAIT), misbehaving(session(streams, calls)) as server, Client(server.url) as client,
        client.watch("a://1") as first, client.watch("a://2") as second,
    ):  # fmt: skip
        gone = True
        assert await anext(second) == AGAIN
        with pytest.raises(ServerError, match="not found"):
            await until_other_than_again(first)


Refusals = Iterator[HTTPStatus]
"""What a server says to each attempt to come back; it's silent when there are no more."""


async def following(refusals: Refusals) -> HTTPStatus:
    status = next(refusals, None)
    return await block_forever() if status is None else status


async def refuse(asked: ReceivedRequest, refusals: Refusals) -> None:
    status = await following(refusals)
    await asked.reply(b"<p>No", status=f"{status} x", type="text/html")


@asynccontextmanager
async def streamable_http(refusals: Refusals) -> AsyncGenerator[Any]:
    cut = asyncio.Event()

    async def streams(asked: ReceivedRequest) -> None:
        if count_gets(server) > 1:
            return await asked.reply(b"", status="404 Not Found")
        await asked.stream()
        await cut.wait()
        return await asked.end()

    calm = session(streams)

    async def behave(asked: ReceivedRequest) -> None:
        await (refuse(asked, refusals) if count_handshakes(server) > 1 else calm(asked))

    async with misbehaving(behave) as server:
        yield server.url, cut


@asynccontextmanager
async def http_sse(refusals: Refusals) -> AsyncGenerator[Any]:
    streams: list[ReceivedRequest] = []
    cut = asyncio.Event()

    async def behave(asked: ReceivedRequest) -> None:
        if asked.verb == "GET" and streams:
            return await refuse(asked, refusals)
        if asked.verb == "GET":
            streams.append(asked)
            await asked.stream()
            await asked.chunk(b"event: endpoint\ndata: /messages\n\n")
            await cut.wait()
            return await asked.end()
        await asked.reply(b"", status="202 Accepted")
        if asked.method == "initialize":
            await streams[0].event(asked.answer({**GREETING, "protocolVersion": "2024-11-05"}), "event: message\n")
        return None

    async with misbehaving(behave) as server:
        yield {"mcpServers": {"it": {"type": "sse", "url": server.url}}}, cut


@asynccontextmanager
async def websocket(refusals: Refusals) -> AsyncGenerator[Any]:
    cut = asyncio.Event()
    refusing = asyncio.Event()

    async def request(socket: ServerConnection, asked: Request) -> Response | None:
        if not refusing.is_set():
            return None
        return socket.respond(await following(refusals), "")

    async def talk(socket: ServerConnection) -> None:
        message = json.loads(await socket.recv())
        await socket.send(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": GREETING}))
        await cut.wait()
        refusing.set()

    protocols = [Subprotocol("mcp")]
    async with serve(talk, "127.0.0.1", 0, subprotocols=protocols, process_request=request, close_timeout=1) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws", cut


PLACES = {"streamable": (streamable_http, "2025-11-25"), "http+sse": (http_sse, "2024-11-05"),
          "websocket": (websocket, "2025-11-25")}  # fmt: skip


ENDS: list[tuple[list[int], type[ClientError]]] = [([503, 502, 429, 403], AccessDenied), ([404], NotMcp)]


@for_each(("statuses", "expected"), ENDS)
@for_each("place", PLACES)
async def test_permanent_rejection_ends_the_watch(
    place: str, statuses: list[int], expected: type[ClientError], short_backoff: None
) -> None:
    where, revision = PLACES[place]
    refusals = map(HTTPStatus, chain(statuses, repeat(statuses[-1])))
    async with (
        asyncio.timeout(WAIT), where(refusals) as (target, cut), Client(target, revision=revision) as client,
        client.watch() as changes,
    ):  # fmt: skip
        cut.set()
        with pytest.raises(expected):
            await anext(changes)


@pytest.mark.parametrize("during", ["a wait", "an attempt"])
@pytest.mark.parametrize("place", PLACES)
async def test_closing_during_reconnect_leaves_nothing(
    place: str, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, revision = PLACES[place]
    set_waits(monkeypatch, 0.01)
    async with (
        asyncio.timeout(WAIT), where(iter([])) as (target, cut), Client(target, revision=revision) as client,
        client.watch() as changes,
    ):  # fmt: skip
        requests = client.conversation.requests
        if during == "a wait":
            monkeypatch.setattr(watching, "_FIRST_WAIT", NEVER)
            monkeypatch.setattr(watching, "_LONGEST_WAIT", NEVER)
        cut.set()
        if during == "a wait":
            await wait_until(lambda: not changes._agreed.is_set())
            assert requests.connection is not None
        else:
            await wait_until(lambda: requests.connection is None)


async def test_revoked_credentials_end_the_watch(short_backoff: None) -> None:
    refusing = False

    async def streams(asked: ReceivedRequest) -> None:
        if refusing:
            return await asked.reply(b"{}", status="403 Forbidden")
        await asked.stream()
        await wait_until(lambda: refusing)
        return await asked.end()

    async with connected(session(streams)) as (server, client):
        async with client.watch() as changes:
            refusing = True
            with pytest.raises(AccessDenied):
                await anext(changes)
        refusing = False
        async with client.watch() as changes:
            assert await anext(changes) == AGAIN
        assert count_handshakes(server) == 1


async def test_watch_adapts_to_a_server_that_changed_era(short_backoff: None) -> None:
    newer = False

    async def streams(asked: ReceivedRequest) -> None:
        await asked.stream()
        await wait_until(lambda: newer)
        await asked.end()

    async def listens(asked: ReceivedRequest) -> None:
        await asked.stream()
        about = {"_meta": {"io.modelcontextprotocol/subscriptionId": asked.message["id"]}}
        for name in ("subscriptions/acknowledged", "tools/list_changed"):
            note = {"jsonrpc": "2.0", "method": f"notifications/{name}", "params": about}
            await asked.event(json.dumps(note).encode())
        await block_forever()

    old, new = session(streams), with_discovery(listens)

    async def behave(asked: ReceivedRequest) -> None:
        if not newer:
            return await old(asked)
        if asked.verb != "POST":
            return await asked.reply(b"", status="404 Not Found")
        if asked.method == "initialize":
            error = {"code": -32022, "message": "Unsupported", "data": {"supported": ["2026-07-28"]}}
            said = {"jsonrpc": "2.0", "id": asked.message["id"], "error": error}
            return await asked.reply(json.dumps(said).encode(), status="400 Bad Request")
        return await new(asked)

    async with (
        asyncio.timeout(WAIT), misbehaving(behave) as server, Client(server.url) as client, client.watch() as changes,
    ):  # fmt: skip
        newer = True
        assert await until_other_than_again(changes) == Change("tools")
        assert client.revision == "2026-07-28"


@for_each("revision", ["2025-11-25", "2026-07-28"])
async def test_notification_that_cannot_be_processed_does_not_end_later_ones(
    revision: str, caplog: pytest.LogCaptureFixture
) -> None:
    mcp = Server("s")

    @mcp.resource("docs://a")
    def a() -> str:
        return "a"

    failures: list[None] = []

    def fail(change: Any, subscription: Any) -> None:
        failures.append(None)
        raise ZeroDivisionError("odd change")

    async with (
        Client(mcp, revision=revision, timeout=WAIT) as client,
        asyncio.timeout(WAIT),
        client.watch("docs://a") as changes,
    ):
        watchers: Any = changes._requests.incoming.watchers
        watchers.add(fail)
        await mcp.resource_updated("docs://a")
        await wait_until(lambda: bool(failures))
        watchers.discard(fail)
        await mcp.resource_updated("docs://a")
        assert (await anext(changes)).uri == "docs://a"
    assert "odd change" in caplog.text


async def test_subscription_that_fails_tells_its_reader_why(monkeypatch: pytest.MonkeyPatch) -> None:
    mcp = Server("s")
    async with Client(mcp, timeout=WAIT) as client, asyncio.timeout(WAIT), client.watch() as changes:

        async def listen() -> None:
            raise ZeroDivisionError("odd acknowledgment")

        monkeypatch.setattr(type(changes), "_listen", lambda self: listen())
        changes._interrupted.set()
        with pytest.raises(ClientError, match="odd acknowledgment"):
            await anext(changes)
