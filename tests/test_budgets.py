"""Budgets that are counts (our choice): Python-level calls and frames of one `tools/call` of 2026-07-28.

A call is a `call` event of `sys.setprofile` whose code stands in `src/millstream`: a function that is entered, or a
coroutine that goes on. The user's function, the libraries and C code are not ours. Everything is measured on the
second call and later, when caches are filled. Imported modules are counted by `test_structure.py`.
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
from wire import FakeTransport, ask_asgi, encode_headers, encode_request, per_request, routing

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
    """The calls of the third request."""
    for _ in range(2):
        await ask()
    count = Count()
    with count:
        await ask()
    return count.names


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
    protocol = SocketListener(prepare(server, await server.start())).make_protocol()
    transport = FakeTransport()
    protocol.connection_made(transport)
    data = encode_request("POST", "/mcp", with_key(server), BODY)

    async def ask() -> None:
        transport.written.clear()
        transport.write_event.clear()
        asyncio.get_running_loop().call_soon(protocol.data_received, data)  # as from a socket: no task runs
        await transport.write_event.wait()
        await asyncio.sleep(0)
        assert b"".join(transport.written).endswith(b'"structuredContent":5}}')

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
async def test_known_keys_cost_one_python_call(calls: Callable[[Server], Any]) -> None:
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
async def test_limits_metrics_and_access_log_cost_one_call_each(
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
