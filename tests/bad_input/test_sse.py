"""Bad input over HTTP+SSE, the transport of 2024-11-05, is rejected on the POST or answered on the stream, never
dropped."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bad_input.shop import make_shop
from bad_input.test_envelope import NOT_A_MESSAGE, NOT_JSON, SHALLOW
from cases import for_each
from http_peer import Peer
from millstream import Server
from wire import HOST, POST, WAIT, Wire, envelope, request, run_wire


class Stream:
    """An open stream and the path for its messages."""

    def __init__(self, wire: Wire, peer: Peer, path: str) -> None:
        self.wire = wire
        self._peer = peer
        self.path = path

    async def event(self) -> str:
        """Return the data of the next event."""
        while True:
            for line in (await self._peer.chunk()).decode().splitlines():
                if line.startswith("data: "):
                    return line[6:]

    async def ask(self, body: bytes | dict[str, Any]) -> tuple[int, Any]:
        """Send an accepted message, and return the response on the stream."""
        reply = await self.wire.post(body, path=self.path)
        assert reply.status == 202, reply
        async with asyncio.timeout(WAIT):
            return reply.status, json.loads(await self.event())


@pytest.fixture(scope="module")
def small_shop() -> Server:
    """A shop that takes small bodies, registered once."""
    return make_shop(max_body=300_000)


@pytest.fixture
async def stream(small_shop: Server) -> AsyncIterator[Stream]:
    """A stream through the lane, after its handshake."""
    async with run_wire(small_shop, "lane") as wire:
        assert wire.running is not None
        peer = await wire.running.connect()
        await peer.send(b"GET /sse HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n")
        status, _ = await peer.head()
        assert status == 200
        stream = Stream(wire, peer, "")
        stream.path = await stream.event()
        params = {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        assert (await stream.ask(request("initialize", params)))[1]["result"]["protocolVersion"] == "2024-11-05"
        yield stream


async def alive(stream: Stream) -> None:
    """The session answers, and with nothing else in between."""
    assert (await stream.ask(request("ping", id="alive")))[1] == {"jsonrpc": "2.0", "id": "alive", "result": {}}


@for_each("name", NOT_JSON)
async def test_invalid_json_is_rejected_on_the_post(stream: Stream, name: str) -> None:
    assert (await stream.wire.post(NOT_JSON[name], path=stream.path)).error == (400, -32700, "none")
    await alive(stream)


@for_each("name", NOT_A_MESSAGE)
async def test_invalid_messages_get_invalid_request(stream: Stream, name: str) -> None:
    reply = await stream.wire.post(NOT_A_MESSAGE[name], path=stream.path)
    if isinstance(NOT_A_MESSAGE[name], list):  # a batch
        message = json.loads(await stream.event())
        assert (message["error"]["code"], message.get("id", "none")) == (-32600, "none")
    else:
        assert reply.error == (400, -32600, "none")
    await alive(stream)


async def test_requests_without_id_are_rejected_on_the_post(stream: Stream) -> None:
    """As the Go SDK's server does: an error on the stream would name no request."""
    reply = await stream.wire.post({"jsonrpc": "2.0", "method": "ping"}, path=stream.path)
    assert reply.error == (400, -32600, "none")
    assert b"missing id" in reply.body
    await alive(stream)


@for_each("name", SHALLOW)
async def test_brackets_inside_strings_do_not_count_as_nesting(stream: Stream, name: str) -> None:
    assert (await stream.ask(SHALLOW[name]))[1]["result"] == {}


@for_each("session", ["", "?session_id=", "?session_id=x&session_id=y", "?session_id=" + "0" * 32, "?sessionId=1"])
@for_each("way", ["lane", "asgi"])
async def test_posts_without_an_open_stream_get_400_or_404(way: str, session: str) -> None:
    """MCP 2024-11-05, basic/transports#http-with-sse: 400 for a missing id, 404 for an unknown one."""
    async with run_wire(make_shop(), way) as wire:
        reply = await wire.post(request("ping"), path=f"/messages/{session}")
        named = session.removeprefix("?session_id=") not in ("", session)
        assert reply.error == ((404, -32001, "none") if named else (400, -32600, "none"))


async def test_wrong_media_types_and_sizes_keep_the_session(stream: Stream) -> None:
    """MCP 2024-11-05, basic/transports#http-with-sse."""
    wire = stream.wire
    assert (await wire.post(request("ping"), {**POST, "content-type": "text/plain"}, stream.path)).status == 415
    assert (await wire.post(request("ping"), HOST, stream.path)).status == 415
    assert (await wire.post(request("ping"), {**POST, "content-encoding": "gzip"}, stream.path)).status == 415
    assert (await wire.post(b" " * 300_001, path=stream.path)).status == 413
    assert (await wire.ask("GET", "/sse", {**HOST, "accept": "application/json"})).status == 406
    await alive(stream)


async def test_closing_the_stream_ends_the_session(stream: Stream) -> None:
    """MCP 2024-11-05, basic/transports#http-with-sse: closing the connection ends the session."""
    wire = stream.wire
    assert wire.running is not None
    await alive(stream)
    wire.running.peers[0].writer.transport.abort()
    await wire.running.wait_for_connections(1)
    await wire.until(lambda: not len(wire.runtime.streams))
    assert (await wire.post(request("ping"), path=stream.path)).error == (404, -32001, "none")


async def test_invalid_per_request_messages_are_answered_on_the_stream(stream: Stream) -> None:
    _, message = await stream.ask(request("tools/list", {"_meta": envelope("2099-01-01")}, 7))
    assert (message["error"]["code"], message["id"]) == (-32022, 7)
    _, message = await stream.ask(request("ping", {"_meta": envelope()}, 7))
    assert (message["error"]["code"], message["id"]) == (-32601, 7)
    await alive(stream)


async def test_per_request_messages_are_served_on_http_sse(stream: Stream) -> None:
    answer = (await stream.ask(request("tools/list", {"_meta": envelope()}, 5)))[1]
    assert answer["result"]["resultType"] == "complete"
    await alive(stream)
