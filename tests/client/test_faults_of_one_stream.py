import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from cases import for_each
from client.misbehaving_servers import GREETING, ReceivedRequest, assert_readable, misbehaving
from millstream import Client
from millstream.client import (
    ClientError,
    ConnectionLost,
    InvalidResponse,
    NotMcp,
    Options,
    RequestTimeout,
    ServerError,
    TargetError,
    TooLarge,
    TooManyMessages,
)
from patience import WAIT

Say = Callable[[bytes], Awaitable[None]]
Fault = Callable[[Say, Any], Awaitable[None]]

NOTE = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"boom"}}'
KEY = b"io.modelcontextprotocol/subscriptionId"
LIMIT = 1_000_000


async def hang(say: Say, id: Any) -> None:
    """Never respond."""


async def die(say: Say, id: Any) -> None:
    raise ConnectionError


async def invalid(say: Say, id: Any) -> None:
    await say(b'{"jsonrpc":"2.0","id":%d,"result":{},"error":{}}' % id)


async def chatter(say: Say, id: Any) -> None:
    for text in (b"{not json", b"[INFO] started", b'{"level":"info"}', b'{"jsonrpc":"2.0","id":999,"result":{}}'):
        await say(text)
    await say(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"done"}]}}' % id)


async def too_long(say: Say, id: Any) -> None:
    await say(b'{"jsonrpc":"2.0","id":%d,"result":{"x":"%b"}}' % (id, b"x" * 2 * LIMIT))


async def half(say: Say, id: Any) -> None:
    await say(
        b'{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"%b":[1]}}}' % KEY
    )
    await say(b'{"jsonrpc":"2.0","id":%d,"error":{"code":5}}' % id)


async def bomb(say: Say, id: Any) -> None:
    while True:
        await say(NOTE)
        await asyncio.sleep(0)  # the client runs in the same loop


def answer(message: dict[str, Any]) -> bytes | None:
    """Respond like a server of 2025-11-25 to everything except calls."""
    if "id" not in message:
        return None
    if message["method"] == "initialize":
        return json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": GREETING}).encode()
    error = {"code": -32601, "message": "Method not found"}
    return json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}).encode()


@asynccontextmanager
async def http_sse(fault: Fault) -> AsyncGenerator[str]:
    """Serve the stream and the POSTs of HTTP+SSE."""
    streams: list[ReceivedRequest] = []

    async def say(message: bytes) -> None:
        await streams[0].event(message, "event: message\n")

    async def behave(asked: ReceivedRequest) -> None:
        if asked.verb == "GET":
            streams.append(asked)
            await asked.stream()
            await asked.chunk(b"event: endpoint\ndata: /messages\n\n")
            await asyncio.get_running_loop().create_future()
        await asked.reply(b"", status="202 Accepted")
        if asked.method != "tools/call":
            said = answer(asked.message)
            return None if said is None else await say(said)
        try:
            await fault(say, asked.message["id"])
        except ConnectionError:
            streams[0].writer.transport.abort()
        return None

    async with misbehaving(behave) as server:
        yield server.url.replace("/mcp", "/sse")


@asynccontextmanager
async def websocket(fault: Fault) -> AsyncGenerator[str]:
    """Serve one WebSocket."""

    async def talk(socket: ServerConnection) -> None:
        try:
            async for text in socket:
                message = json.loads(text)
                if message.get("method") == "tools/call":
                    await fault(lambda said: socket.send(said.decode()), message["id"])
                elif (said := answer(message)) is not None:
                    await socket.send(said.decode())
        except (ConnectionClosed, ConnectionError):
            socket.transport.abort()

    async with serve(talk, "127.0.0.1", 0, subprotocols=[Subprotocol("mcp")], close_timeout=1) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws"


WAYS = {"http+sse": http_sse, "websocket": websocket}
FAULTS: list[tuple[Fault, type[ClientError], str, float]] = [
    (hang, RequestTimeout, "didn't respond", 0.2),
    (die, ConnectionLost, "", WAIT),
    (invalid, InvalidResponse, "invalid response", WAIT),
    (too_long, TooLarge, "1,000,000 bytes", WAIT),
    (half, ServerError, "no reason", WAIT),
    (bomb, RequestTimeout, "didn't respond", 0.2),
]


@for_each("way", WAYS)
@for_each(("fault", "expected", "words", "timeout"), FAULTS)
async def test_malformed_streams_fail_with_one_sentence(
    way: str, fault: Fault, expected: type[ClientError], words: str, timeout: float
) -> None:
    async with asyncio.timeout(WAIT), WAYS[way](fault) as url:
        async with Client(url, timeout=WAIT, options=Options(max_bytes=LIMIT)) as client:
            assert client.transport == way
            with pytest.raises(expected) as caught:
                await client.call("x", timeout=timeout)
        assert_readable(caught.value, words)


@for_each("way", WAYS)
async def test_invalid_messages_are_skipped(way: str) -> None:
    async with asyncio.timeout(WAIT), WAYS[way](chatter) as url, Client(url, timeout=WAIT) as client:
        results = await asyncio.gather(*(client.call("x") for _ in range(3)))
    assert [each.text for each in results] == ["done"] * 3


async def test_call_after_a_restart_opens_a_new_stream_if_the_old_one_is_unknown() -> None:
    streams: list[ReceivedRequest] = []
    results: list[int] = []

    async def behave(asked: ReceivedRequest) -> None:
        if asked.verb == "GET":
            streams.append(asked)
            await asked.stream()
            await asked.chunk(b"event: endpoint\ndata: /messages\n\n")
            await asyncio.get_running_loop().create_future()
        if results and len(streams) == 1:
            return await asked.reply(b'{"detail":"Session not found."}', status="404 Not Found")
        await asked.reply(b"", status="202 Accepted")
        said = answer(asked.message)
        if asked.method == "tools/call":
            results.append(len(streams))
            said = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[]}}' % asked.message["id"]
        return await streams[-1].event(said, "event: message\n") if said and streams else None

    async with (
        asyncio.timeout(WAIT),
        misbehaving(behave) as server,
        Client(server.url.replace("/mcp", "/sse"), timeout=WAIT) as client,
    ):
        for _ in range(3):
            await client.call("x")
    assert (results, len(streams)) == ([1, 2, 2], 2)


async def test_websocket_redirects_do_not_leak_credentials() -> None:
    heard: list[str] = []
    places: list[str] = []

    def elsewhere(connection: ServerConnection, request: Request) -> Response:
        heard.append(request.headers["X-Key"])
        return connection.respond(HTTPStatus.NOT_FOUND, "")

    async def talk(socket: ServerConnection) -> None:
        raise NotImplementedError

    async with asyncio.timeout(WAIT), serve(talk, "127.0.0.1", 0, process_request=elsewhere) as other:
        place = f"ws://127.0.0.1:{next(iter(other.sockets)).getsockname()[1]}/ws"

        async def behave(asked: ReceivedRequest) -> None:
            await asked.reply(b"", status="302 Found", more=f"Location: {places[-1]}\r\n")

        async with misbehaving(behave) as server:
            for named in (place, "http://[bad", "ftp://127.0.0.1/ws"):
                places.append(named)
                with pytest.raises(NotMcp) as caught:
                    async with Client(server.url.replace("http", "ws"), headers={"X-Key": "secret"}):
                        pass
                assert_readable(caught.value, "isn't a WebSocket")
    assert heard == []


async def test_paths_that_are_no_websocket_get_a_remedy() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.reply(b"", status="404 Not Found")

    async with misbehaving(behave) as server:
        for path in ("/ws", "/mcp"):
            with pytest.raises(NotMcp, match="with --serve hub"):
                async with Client(server.url.replace("http", "ws").replace("/mcp", path)):
                    pass


async def test_invalid_handshake_headers_are_rejected() -> None:
    with pytest.raises(TargetError, match="aren't allowed in headers"):
        async with Client("ws://127.0.0.1:1/ws", headers={"X-Key": "a\r\nHost: b"}):
            pass


@pytest.mark.parametrize("way", [*WAYS, pytest.param("stdio", marks=pytest.mark.server)])
async def test_notification_backlog_ends_the_stream(way: str, tmp_path: Path) -> None:
    async def slow(message: object) -> None:
        await asyncio.get_running_loop().create_future()

    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        if way == "stdio":
            script = tmp_path / "bomb.py"
            script.write_text(STDIO)
            target: Any = [sys.executable, str(script)]
        else:
            target = await stack.enter_async_context(WAYS[way](bomb))
        with pytest.raises(TooManyMessages) as caught:
            async with Client(target, timeout=WAIT, on_log=slow, options=Options(max_queued_messages=50)) as client:
                await client.call("x")
    assert_readable(caught.value, "Options.max_queued_messages")


STDIO = f"""
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("method") == "tools/call":
        while True:
            print({NOTE.decode()!r}, flush=True)
    elif message.get("method") == "initialize":
        print(json.dumps({{"jsonrpc": "2.0", "id": message["id"], "result": {GREETING!r}}}), flush=True)
    elif "id" in message:
        error = {{"code": -32601, "message": "Method not found"}}
        print(json.dumps({{"jsonrpc": "2.0", "id": message["id"], "error": error}}), flush=True)
"""
