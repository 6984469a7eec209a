"""Usual requests take the usual way: the head isn't read by the parser, nor the message by `serve_exactly`.

What they cost is measured by `python -m benches --against`.
"""

import asyncio
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

import millstream
from benches.wire import REQUESTS, recorded
from cases import for_each
from millstream import Server, Settings
from millstream._app.server_process.asgi_application import prepare
from millstream._http.server.listener import SocketListener
from wire import (
    POST,
    FakeTransport,
    Wire,
    ask_asgi,
    encode_headers,
    encode_request,
    open_pipe,
    per_request,
    request,
    routing,
)

OURS = str(Path(millstream.__file__).parent)
CALL = {"name": "add", "arguments": {"a": 2, "b": 3}}
BODY = json.dumps(per_request("tools/call", CALL)).encode()
HEADERS = encode_headers(routing("tools/call", "add"))


class Count:
    """The calls of our functions, by name, while it is entered."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            self.names.append(frame.f_code.co_qualname)


def make_server() -> Server:
    """A server with one tool."""
    mcp = Server("usual", settings=Settings())

    @mcp.tool
    async def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    return mcp


async def measure(ask: Callable[[], Any]) -> list[str]:
    """The calls of the second or third request: the fewer ones, because a timer may fire during a request."""
    await ask()
    counts = Count(), Count()
    for count in counts:
        with count:
            await ask()
    return min((count.names for count in counts), key=len)


async def count_request(
    server: Server, *requests: bytes, last: bytes = b'"structuredContent":5}}', apart: bool = False
) -> list[str]:
    """The calls of the last request to our own connection, which comes three times after the others.

    It comes in one piece, as a socket brings it, or with its head and its body apart.
    """
    protocol = SocketListener(prepare(server, await server.start())).make_protocol()
    transport = FakeTransport()
    protocol.connection_made(transport)

    async def send(data: bytes) -> None:
        transport.written.clear()
        transport.write_event.clear()
        head, end, body = data.partition(b"\r\n\r\n")
        for piece in (head + end, body) if apart else (data,):
            asyncio.get_running_loop().call_soon(protocol.data_received, piece)  # as from a socket: no task runs
        await transport.write_event.wait()
        await asyncio.sleep(0)

    async def ask() -> None:
        await send(requests[-1])
        assert b"".join(transport.written).endswith(last), transport.written

    for data in requests[:-1]:
        await send(data)
    names = await measure(ask)
    protocol.connection_lost(None)
    return names


async def test_lists_take_the_usual_way() -> None:
    server = make_server()

    async def ask() -> None:
        reply = await ask_asgi(
            server,
            "POST",
            "/mcp",
            encode_headers(routing("tools/list")),
            json.dumps(per_request("tools/list")).encode(),
        )
        assert len(reply.message["result"]["tools"]) == 1

    async with server.running() as runtime:
        prepare(server, runtime)
        names = await measure(ask)
    assert "serve_exactly" not in names


PLAIN = encode_request("POST", "/mcp", HEADERS, BODY)


async def count_more(server: Server, *requests: bytes, last: bytes = b'"structuredContent":5}}') -> list[str]:
    """The calls of the last request that a plain call doesn't have."""
    async with server.running() as runtime:
        prepare(server, runtime)
        plain, names = await count_request(server, PLAIN), await count_request(server, *requests, last=last)
    for name in plain:
        if name in names:
            names.remove(name)
    return names


async def test_connections_return_to_the_usual_way() -> None:
    odd = encode_request("POST", "/mcp", [*HEADERS, (b"expect", b"x")], BODY)
    assert await count_more(make_server(), odd, PLAIN) == []


async def test_calls_alternating_between_thousands_of_sessions_cost_no_more_than_one_session() -> None:
    server = make_server()
    async with server.running() as runtime:
        prepare(server, runtime)
        protocol = SocketListener(prepare(server, runtime)).make_protocol()
        transport = FakeTransport()
        protocol.connection_made(transport)

        async def send(data: bytes) -> bytes:
            transport.written.clear()
            transport.write_event.clear()
            asyncio.get_running_loop().call_soon(protocol.data_received, data)  # as from a socket: no task runs
            await transport.write_event.wait()
            await asyncio.sleep(0)
            return b"".join(transport.written)

        wire, calls = Wire(server, runtime, None), list[bytes]()
        body = json.dumps(request("tools/call", CALL)).encode()
        for _ in range(1500):
            calls.append(encode_request("POST", "/mcp", encode_headers(await wire.initialize()), body))
        for data in (*calls, *calls[:2]):
            assert (await send(data)).startswith(b"HTTP/1.1 200")
        counts: list[list[str]] = []
        for n in (1, 1, len(calls)):
            count = Count()
            with count:
                for data in calls[:n]:
                    await send(data)
            counts.append(count.names)
        protocol.connection_lost(None)
    one, many = counts[1:]
    assert sum(name in one for name in many) == len(calls) * len(one)
    assert not {"HeaderLineCache.__missing__", "HttpSessions._open", "serve_exactly"} & {*many}  # timers may have run


RECORDED = [
    (path.stem, method)
    for path in sorted(REQUESTS.glob("*.http"))
    for method in re.findall(r"(?m)^### (\S+)$", path.read_text("utf-8"))
]


@for_each(("client", "method"), RECORDED)
async def test_requests_of_real_clients_take_the_usual_way(client: str, method: str) -> None:
    server, kind = make_server(), recorded(client, method)
    async with server.running() as runtime:
        prepare(server, runtime)
        opened = await Wire(server, runtime, None).initialize(kind.revision) if kind.sessions else {}
        body = kind.body.replace("@", "1000001")
        head = kind.whole.format(host="127.0.0.1", length=len(body.encode()), session=opened.get("mcp-session-id"))
        is_chunked = "Transfer-Encoding" in head
        for apart in (False,) if is_chunked else (False, True):
            names = await count_request(server, f"{head}{body}".encode(), last=b"", apart=apart)
            assert not {"ServerConnection._parse", "ServerConnection.on_body"} & {*names}
            assert ("read_chunk" in names) == is_chunked
            assert ("serve_exactly" in names) == (method == "initialize")


async def test_requests_on_connections_take_the_usual_way() -> None:
    server = make_server()
    async with server.running() as runtime:
        pipe = open_pipe(runtime)
        for message in (request("tools/call", CALL), per_request("tools/call", CALL), per_request("tools/list")):
            with Count() as count:
                pipe.send(json.dumps(message).encode())
                assert b'"result"' in await pipe.receive()
            assert "ClientConnection._open" not in count.names
        await pipe.close()


@for_each(
    ("method", "params"),
    [
        ("ping", None),
        ("tools/list", {}),
        ("notifications/initialized", None),
        ("tools/call", CALL),
    ],
)
@for_each("session", [True, False])
async def test_handshake_messages_take_the_usual_way(method: str, params: Any, session: bool) -> None:
    server = make_server()
    async with server.running() as runtime:
        prepare(server, runtime)
        headers = await Wire(server, runtime, None).initialize() if session else POST
        message = request(method, params)
        if method.startswith("notifications/"):
            del message["id"]
        data = encode_request("POST", "/mcp", encode_headers(headers), json.dumps(message).encode())
        names = await count_request(server, data, last=b"" if "notif" in method else b"}")
    assert not {"serve_exactly", "ServerConnection._parse"} & {*names}


async def test_functions_in_threads_wake_the_event_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    server, loop = Server("usual"), asyncio.get_running_loop()

    @server.tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    wakeups: list[object] = []
    call_soon_threadsafe = loop.call_soon_threadsafe

    def note(callback: Callable[..., object], *args: object, **more: Any) -> asyncio.Handle:
        wakeups.append(callback)
        return call_soon_threadsafe(callback, *args, **more)

    async with server.running() as runtime:
        prepare(server, runtime)
        monkeypatch.setattr(loop, "call_soon_threadsafe", note)
        names = await count_request(server, PLAIN)
        assert len(wakeups) == 3
        assert runtime.services.threads.places.used == 0
    assert "serve_exactly" not in names
