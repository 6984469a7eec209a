"""Usual requests take the usual path: the head isn't read by the parser, nor the message by `serve_exactly`.

What they cost is measured by `python -m benches --against`.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

import millstream
from cases import for_each
from millstream import Server, Settings
from millstream._app.server_process.entry import prepare
from millstream._http.server.listener import SocketListener
from wire import POST, FakeTransport, Wire, ask_asgi, encode_headers, encode_request, per_request, request, routing

OURS = str(Path(millstream.__file__).parent)
BODY = json.dumps(per_request("tools/call", {"name": "add", "arguments": {"a": 2, "b": 3}})).encode()
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


def make_server(
    key: str = "", *, settings: Settings | None = None, serve: Sequence[str] = ()
) -> tuple[Server, list[list[str]]]:
    """A server with one tool; behind a key, if there is one."""
    mcp = Server("budget", settings=settings or Settings(auth_key=key), serve=serve)

    @mcp.tool
    async def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    return mcp, []


async def measure(ask: Callable[[], Any]) -> list[str]:
    """The calls of the second or third request: the fewer ones, because a timer may fire during a request."""
    await ask()
    counts = Count(), Count()
    for count in counts:
        with count:
            await ask()
    return min((count.names for count in counts), key=len)


def with_key(server: Server) -> list[tuple[bytes, bytes]]:
    """The headers of a call, with the key of the server."""
    key = server.settings.auth_key
    return [*HEADERS, (b"authorization", b"Bearer %b" % key.encode())] if key else HEADERS


async def through_connection(server: Server) -> list[str]:
    """One call as bytes to our own connection, in one piece, as a socket brings it."""
    return await count_request(server, encode_request("POST", "/mcp", with_key(server), BODY))


async def count_request(server: Server, *requests: bytes, last: bytes = b'"structuredContent":5}}') -> list[str]:
    """The calls of the last request to our own connection, which comes three times after the others."""
    protocol = SocketListener(prepare(server, await server.start())).make_protocol()
    transport = FakeTransport()
    protocol.connection_made(transport)

    async def send(data: bytes) -> None:
        transport.written.clear()
        transport.write_event.clear()
        asyncio.get_running_loop().call_soon(protocol.data_received, data)  # as from a socket: no task runs
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


async def test_lists_take_the_fast_path() -> None:
    server, _ = make_server()

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


async def test_connections_return_to_the_fast_path() -> None:
    odd = encode_request("POST", "/mcp", [*HEADERS, (b"expect", b"x")], BODY)
    assert await count_more(make_server()[0], odd, PLAIN) == []


async def test_calls_alternating_between_thousands_of_sessions_cost_no_more_than_one_session() -> None:
    server, _ = make_server()
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
        body = json.dumps(request("tools/call", {"name": "add", "arguments": {"a": 2, "b": 3}})).encode()
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


@for_each(
    ("method", "params"),
    [
        ("ping", None),
        ("tools/list", {}),
        ("notifications/initialized", None),
        ("tools/call", {"name": "add", "arguments": {"a": 2, "b": 3}}),
    ],
)
@for_each("session", [True, False])
async def test_handshake_messages_take_the_fast_path(method: str, params: Any, session: bool) -> None:
    server, _ = make_server()
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
    server, loop = Server("budget"), asyncio.get_running_loop()

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
        names = await through_connection(server)
        assert len(wakeups) == 3
        assert runtime.services.threads.places.used == 0
    assert "serve_exactly" not in names
