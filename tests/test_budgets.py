"""Budgets that are counts (our choice): Python-level calls and frames of one `tools/call` of 2026-07-28.

A call is a `call` event of `sys.setprofile` for code in `src/millstream`: a function is entered, or a coroutine
resumes. The user's function, libraries, and C code aren't counted. Everything is measured on the second call and later,
when caches are filled. Imported modules are counted by `test_structure.py`.
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
from millstream._telemetry import messages, process
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


def our_frames() -> list[str]:
    """Our functions on the stack of the caller's caller, innermost first."""
    names: list[str] = []
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(OURS):
            names.append(frame.f_code.co_qualname)
        frame = frame.f_back  # type: ignore[assignment]
    return names


def make_server(
    key: str = "", *, settings: Settings | None = None, serve: Sequence[str] = ()
) -> tuple[Server, list[list[str]]]:
    """A server with one tool, which notes how deep it was called; behind a key, if there is one."""
    mcp = Server("budget", settings=settings or Settings(auth_key=key), serve=serve)
    stacks: list[list[str]] = []

    @mcp.tool
    async def add(a: int, b: int) -> int:
        """Add two numbers."""
        stacks.append(frames())
        return a + b

    def frames() -> list[str]:
        return our_frames()

    return mcp, stacks


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


async def through_asgi(server: Server) -> list[str]:
    """One call as ASGI messages."""

    async def ask() -> None:
        reply = await ask_asgi(server, "POST", "/mcp", with_key(server), BODY)
        assert reply.message["result"]["structuredContent"] == 5

    return await measure(ask)


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


@for_each(("way", "calls", "most"), [("asgi", through_asgi, 11), ("own", through_connection, 10)])
async def test_calls_stay_within_the_python_call_budget(way: str, calls: Callable[[Server], Any], most: int) -> None:
    server, _ = make_server()
    async with server.running() as runtime:
        prepare(server, runtime)
        names = await calls(server)
    assert len(names) <= most, f"{way}: {len(names)} calls: {names}"


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
    assert len(names) <= 15, names


@for_each("calls", [through_asgi, through_connection])
async def test_known_keys_add_one_python_call(calls: Callable[[Server], Any]) -> None:
    counts: list[list[str]] = []
    for key in ("", "a-key-for-the-budget"):
        server, _ = make_server(key)
        async with server.running() as runtime:
            prepare(server, runtime)
            counts.append(await calls(server))
    plain, keyed = counts
    keyed.remove("AuthGuard.protect.<locals>.authenticate")
    assert sorted(keyed) == sorted(plain)


NOW_AND_THEN = ("MessageLog._begin", "PerSecond.turn")
"""What the first call of another millisecond, or of another second, does."""


@pytest.mark.parametrize("calls", [through_asgi, through_connection])
@pytest.mark.parametrize("key", ["", "a-key-for-the-budget"])
async def test_limits_metrics_and_access_log_each_add_one_python_call(
    calls: Callable[[Server], Any], key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is done now and then isn't done while the calls are counted, however long that takes.
    monkeypatch.setattr(messages, "FLUSH_SECONDS", 3600.0)
    monkeypatch.setattr(process, "INTERVAL", 3600.0)
    counts: list[list[str]] = []
    for more in (False, True):
        settings = Settings(auth_key=key, limit_requests="1000000/second" if more else "", access_log=more)
        server, _ = make_server(settings=settings, serve=["metrics"] if more else [])
        async with server.running() as runtime:
            prepare(server, runtime)
            counts.append(await calls(server))
    plain, watched = counts
    watched.remove("Throttle._quick.<locals>.quick")
    watched.remove("Observer.__call__")
    watched.remove("MessageLog.write")
    watched = [name for name in watched if name not in NOW_AND_THEN]
    assert sorted(watched) == sorted(plain)
    assert capsys.readouterr().err.count('"method":"tools/call"') == 3


@for_each("calls", [through_asgi, through_connection])
async def test_at_most_seven_frames_reach_the_function(
    calls: Callable[[Server], Any],
) -> None:
    server, stacks = make_server()
    async with server.running() as runtime:
        prepare(server, runtime)
        await calls(server)
    assert len(stacks) == 3
    assert all(len(stack) <= 7 for stack in stacks[1:]), stacks[-1]


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


def make_echo() -> Server:
    """A server with a tool that takes a text."""
    mcp, _ = make_server()

    @mcp.tool
    async def echo(text: str) -> int:
        """Return the length of a text."""
        return len(text)

    return mcp


def encode_echo(text: str) -> bytes:
    """A call of `echo`, as most clients write it: not in ASCII."""
    message = per_request("tools/call", {"name": "echo", "arguments": {"text": text}})
    return encode_request(
        "POST", "/mcp", encode_headers(routing("tools/call", "echo")), json.dumps(message, ensure_ascii=False).encode()
    )


@for_each("text", ["Köln", "日本語", "🎉", "ї" * 5000], ids=["latin", "japanese", "emoji", "10 KB"])
async def test_text_in_every_script_is_checked_once(text: str) -> None:
    more = await count_more(make_echo(), encode_echo(text), last=b'"structuredContent":%d}}' % len(text))
    assert more == ["is_utf8"]


async def test_time_limits_add_one_python_call() -> None:
    limited, _ = make_server(settings=Settings(tool_timeout=30))
    own = Server("budget")

    @own.tool(timeout=30)
    async def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    more = ["run_with_timeout"]
    async with limited.running() as runtime:
        prepare(limited, runtime)
        names = await through_connection(limited)
    assert [name for name in names if name in more] == more
    assert len(names) <= 11
    async with own.running() as runtime:
        prepare(own, runtime)
        assert sorted(await through_connection(own)) == sorted(names)


@for_each(
    ("lines", "unique"),
    [
        ({"X-Real-IP": "192.0.2.1", "X-Request-ID": "7f3a", "X-Forwarded-For": "192.0.2.1"}, 1),
        ({"CF-Ray": "8a-FRA", "CF-Connecting-IP": "192.0.2.1", "CF-IPCountry": "DE", "CDN-Loop": "cloudflare"}, 1),
        ({"X-Tenant": "acme", "x-api-version": "3"}, 2),
    ],
    ids=["nginx", "cloudflare", "custom"],
)
async def test_each_header_that_differs_between_requests_adds_one_python_call(
    lines: dict[str, str], unique: int
) -> None:
    data = encode_request("POST", "/mcp", [*HEADERS, *encode_headers(lines)], BODY)
    more = await count_more(make_server()[0], data, data)
    assert more == ["HeaderLineCache.__missing__"] * unique


async def test_origin_header_adds_only_its_check() -> None:
    lines = {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
    data = encode_request("POST", "/mcp", [*HEADERS, *encode_headers(lines)], BODY)
    more = await count_more(make_server()[0], data)
    assert "HostPolicy.check" in more
    assert not [name for name in more if name.startswith(("ServerConnection.", "HeaderLineCache."))], more


async def test_chunked_bodies_add_two_python_calls() -> None:
    head, _, body = encode_request("POST", "/mcp", HEADERS, BODY).partition(b"content-length: %d\r\n" % len(BODY))
    data = b"%btransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (head, len(BODY), body.lstrip())
    assert sorted(await count_more(make_server()[0], data)) == ["HeaderLineCache.__missing__", "read_chunk"]


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


CLIENT = {"name": "test", "version": "1"}


@for_each(
    ("method", "params", "most"),
    [
        ("ping", None, 12),
        ("tools/list", {}, 14),
        ("notifications/initialized", None, 10),
        ("tools/call", {"name": "add", "arguments": {"a": 2, "b": 3}}, 9),
        ("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": CLIENT}, 36),
    ],
)
@for_each("session", [True, False])
async def test_handshake_messages_take_the_fast_path(method: str, params: Any, most: int, session: bool) -> None:
    server, _ = make_server()
    if session and method == "initialize":
        return
    async with server.running() as runtime:
        prepare(server, runtime)
        headers = await Wire(server, runtime, None).initialize() if session else POST
        message = request(method, params)
        if method.startswith("notifications/"):
            del message["id"]
        data = encode_request("POST", "/mcp", encode_headers(headers), json.dumps(message).encode())
        names = await count_request(server, data, last=b"" if "notif" in method else b"}")
    assert "serve_exactly" not in names
    assert len(names) <= most + session, (method, len(names), names)


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
    assert len(names) <= 22, names
