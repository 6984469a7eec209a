"""The lane's fit to uvicorn, and its budget of Python-level calls."""

import asyncio
import inspect
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

import millstream
from http_peer import ToyApp
from millstream._config import Settings
from millstream._http.lane import CLASS_NAME, Lane, Loaded, load_lane
from millstream._http.lane import usual as lane_usual
from millstream._http.message import Request, Response


async def _echo(request: Request) -> Response:
    return Response(body=request.body)


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 8000)})
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        """Not before its end."""
        return False

    def close(self) -> None:
        """Nothing to close."""

    def get_write_buffer_size(self) -> int:
        """Everything is taken at once."""
        return 0


OURS, UVICORN = (str(Path(module.__file__ or "").parent) for module in (millstream, uvicorn))
HANDLER_AND_ROUTE = 2
"""Calls of the handler and the route table, which are the test's own here and in other files."""

EIGHT_HEADERS = (
    b"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: application/json, text/event-stream\r\n"
    b"Content-Type: application/json\r\nMcp-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\n"
    b"Mcp-Name: echo\r\nUser-Agent: test\r\nContent-Length: 2\r\n\r\n{}"
)


def connect(*, lane: bool) -> tuple[Any, Wire]:
    """A connected protocol of our class, or of uvicorn's."""
    config = uvicorn.Config(
        ToyApp({("POST", "/echo"): _echo}, Settings(), lane=lane),
        log_config=None,
        access_log=False,
        proxy_headers=False,
    )
    config.load()
    wire = Wire()
    factory = load_lane().protocol if lane else HttpToolsProtocol
    assert factory is not None
    protocol = factory(config=config, server_state=ServerState(), app_state={})  # type: ignore[call-arg]
    protocol.connection_made(wire)
    return protocol, wire


UNUSUAL = EIGHT_HEADERS.replace(b"User-Agent: test", b"X-Other:  test")
"""A head that the parser reads."""


async def calls_of(
    protocol: Any, wire: Wire, counts: Callable[[str], bool], data: bytes = EIGHT_HEADERS
) -> Counter[str]:
    """Python-level calls, in files that count, from the bytes of a request to those of its reply."""
    for _ in range(2):
        # Hosts and heads are remembered after the first.
        protocol.data_received(data)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    wire.written.clear()
    calls: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and counts(frame.f_code.co_filename):
            calls[frame.f_code.co_qualname] += 1

    def arrive() -> None:
        """Bytes come from the loop, not from a task."""
        sys.setprofile(profile)
        protocol.data_received(data)

    asyncio.get_running_loop().call_soon(arrive)
    try:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    finally:
        sys.setprofile(None)
    assert b"".join(wire.written).endswith(b"\r\n\r\n{}")
    return calls


@pytest.mark.parametrize(("data", "most"), [(EIGHT_HEADERS, 6), (UNUSUAL, 21)], ids=["usual", "unusual"])
async def test_a_plain_call_takes_few_python_calls_in_the_lane(data: bytes, most: int) -> None:
    """Our choice allows 35 with everything: parser callbacks, uvicorn's code and the handler are counted here."""
    protocol, wire = connect(lane=True)
    calls = await calls_of(protocol, wire, lambda name: name.startswith((OURS, UVICORN)), data)
    assert calls.total() + HANDLER_AND_ROUTE <= most, calls
    assert len(wire.written) == 1
    protocol.connection_lost(None)


async def test_a_plain_call_takes_at_most_six_of_our_python_calls_through_asgi() -> None:
    """Our choice: the adapter's share; the handler included."""
    protocol, wire = connect(lane=False)
    calls = await calls_of(protocol, wire, lambda name: name.startswith(OURS))
    assert calls.total() + HANDLER_AND_ROUTE <= 6, calls
    protocol._unset_keepalive_if_required()


async def test_the_pinned_uvicorn_is_the_one_the_class_extends() -> None:
    """The class is not a public interface of uvicorn: a new release has to pass this before the pin moves."""
    assert load_lane() == Loaded(lane_usual.UsualProtocol)
    assert uvicorn.Config("a:b", http=CLASS_NAME).http == CLASS_NAME
    connected, _ = connect(lane=False)
    for name in ("app", "client", "config", "connections", "cycle", "expect_100_continue", "flow", "headers", "loop",
                 "parser", "pipeline", "root_path", "scheme", "scope", "server_state", "tasks"):  # fmt: skip
        assert hasattr(connected, name), name
    cycle = set(inspect.signature(RequestResponseCycle.__init__).parameters)
    assert {"scope", "flow", "default_headers", "message_event", "keep_alive", "on_response"} <= cycle
    source = inspect.getsource(RequestResponseCycle)
    for name in ("response_complete", "response_started", "disconnected", "keep_alive", "message_event"):
        assert f"self.{name} = " in source
    assert {"read_paused", "write_paused"} <= vars(FlowControl(Wire())).keys()
    assert {"total_requests", "connections", "tasks", "default_headers"} <= vars(ServerState()).keys()


def test_uvicorn_queues_a_pipelined_request_at_the_left_as_cycle_and_application() -> None:
    """`waiting` shares uvicorn's deque and relies on it."""
    source = inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert "self.pipeline.appendleft((self.cycle, app))" in source


def test_a_class_that_does_not_fit_is_not_loaded_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server then runs on plain ASGI and says so."""
    monkeypatch.delattr(HttpToolsProtocol, "on_body")
    loaded = load_lane()
    assert loaded.protocol is None
    assert "on_body" in loaded.reason


def test_a_constructor_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for its arguments."""

    def other(self: object, config: object) -> None: ...

    monkeypatch.setattr(HttpToolsProtocol, "__init__", other)
    assert "arguments" in load_lane().reason


@pytest.mark.parametrize("version", ["0.55.0", "0.53.1", "1.0", "0.540.0"])
def test_another_release_of_the_server_is_served_plainly(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """docs/decisions/0017: a method of the same name may do something else there."""
    monkeypatch.setattr(uvicorn, "__version__", version)
    loaded = load_lane()
    assert loaded.protocol is None
    assert f"uvicorn {version} is another one" in loaded.reason


def test_a_missing_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where httptools is not installed there is no lane."""
    monkeypatch.delitem(sys.modules, "millstream._http.lane.usual")
    monkeypatch.setitem(sys.modules, "millstream._http.lane.protocol", None)
    loaded = load_lane()
    assert loaded.protocol is None
    assert loaded.reason


async def test_the_guard_belongs_to_the_server_and_ends_with_its_connections() -> None:
    """One sweep timer for all connections, none when there are none."""
    protocol, _ = connect(lane=True)
    config, state = protocol.config, protocol.server_state
    other = type(protocol)(config, state, {})
    assert other.guard is protocol.guard
    protocol.connection_lost(None)
    protocol.guard._sweep()
    assert protocol.guard._timer is None


async def test_the_head_of_a_reply_follows_uvicorns_date() -> None:
    """uvicorn makes a new list of default headers every second."""
    protocol, wire = connect(lane=True)
    state = protocol.server_state
    for text in (b"one", b"two"):
        state.default_headers = [(b"date", text)]
        protocol.data_received(EIGHT_HEADERS)
        await asyncio.sleep(0)
        assert b"\r\ndate: " + text + b"\r\n" in wire.written[-1]
    protocol.connection_lost(None)


def test_a_lane_keeps_what_it_is_given() -> None:
    """`app.py` builds it; the class only reads it."""
    app = ToyApp({}, Settings(), lane=True)
    assert isinstance(app.__millstream_lane__, Lane)
    assert app.__millstream_lane__.lookup(b"POST", b"/echo") is None
