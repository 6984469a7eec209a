import asyncio
import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

import millstream
from cases import for_each
from http_peer import ToyApp
from millstream._config import Settings
from millstream._http.message import HttpRequest, Response
from millstream._http.server.listener import HttpProtocol, SocketListener
from patience import WAIT
from wire import FakeTransport

OURS = str(Path(millstream.__file__ or "").parent)
HANDLER_AND_ROUTE = 2
"""Calls of the handler and the route table, which are the test's own here and in other files."""
EIGHT_HEADERS = (
    b"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: application/json, text/event-stream\r\n"
    b"Content-Type: application/json\r\nMcp-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\n"
    b"Mcp-Name: echo\r\nUser-Agent: test\r\nContent-Length: 2\r\n\r\n{}"
)
UNUSUAL = EIGHT_HEADERS.replace(b"User-Agent: test", b"X-Other:  test")
"""A head that the parser reads."""


async def _echo(request: HttpRequest) -> Response:
    return Response(body=request.body)


APP = ToyApp({("POST", "/echo"): _echo}, Settings())


def connect() -> tuple[HttpProtocol, FakeTransport]:
    """A connection of our own server."""
    protocol, transport = SocketListener(APP.table).make_protocol(), FakeTransport()
    protocol.connection_made(transport)
    return protocol, transport


async def calls_of(protocol: Any, transport: FakeTransport, data: bytes = EIGHT_HEADERS) -> Counter[str]:
    """Our Python calls from the bytes of a request to those of its reply."""
    turns = 4
    for _ in range(2):
        # Hosts and heads are remembered after the first.
        protocol.data_received(data)
        for _ in range(turns):
            await asyncio.sleep(0)
    transport.written.clear()
    calls: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            calls[frame.f_code.co_qualname] += 1

    def arrive() -> None:
        """Bytes come from the loop, not from a task."""
        sys.setprofile(profile)
        protocol.data_received(data)

    asyncio.get_running_loop().call_soon(arrive)
    try:
        for _ in range(turns):
            await asyncio.sleep(0)
    finally:
        sys.setprofile(None)
    assert b"".join(transport.written).endswith(b"\r\n\r\n{}")
    return calls


@for_each(("data", "most"), [(EIGHT_HEADERS, 5), (UNUSUAL, 25)], ids=["fast", "parsed"])
async def test_plain_call_stays_within_its_python_call_budget(data: bytes, most: int) -> None:
    protocol, transport = connect()
    calls = await calls_of(protocol, transport, data)
    assert calls.total() + HANDLER_AND_ROUTE <= most, calls
    assert len(transport.written) == 1
    protocol.connection_lost(None)


async def test_plain_call_through_asgi_takes_at_most_six_python_calls() -> None:
    config = uvicorn.Config(APP, log_config=None, access_log=False, proxy_headers=False)
    config.load()
    protocol, transport = (
        HttpToolsProtocol(config=config, server_state=ServerState(), app_state={}),
        FakeTransport(),
    )
    protocol.connection_made(transport)
    calls = await calls_of(protocol, transport)
    assert calls.total() + HANDLER_AND_ROUTE <= 6, calls
    protocol.connection_lost(None)


async def test_one_timer_sweeps_all_connections() -> None:
    listener = SocketListener(APP.table)
    one, other = listener.make_protocol(), listener.make_protocol()
    for each in (one, other):
        each.connection_made(FakeTransport())
    assert one.guard is other.guard
    timer = one.guard._timer
    assert timer is not None
    for each in (one, other):
        each.connection_lost(None)
    one.guard._sweep()
    timer.cancel()
    assert one.guard._timer is None


async def test_date_header_is_updated_by_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9110 §6.6.1."""
    protocol, transport = connect()
    for text in ("one", "two"):
        dated: Callable[..., str] = lambda usegmt, text=text: text  # noqa: E731
        monkeypatch.setattr("millstream._http.server.guard.formatdate", dated)
        protocol.guard._sweep()
        protocol.data_received(EIGHT_HEADERS)
        for _ in range(4):
            await asyncio.sleep(0)
        assert b"\r\ndate: %b\r\n" % text.encode() in transport.written[-1]
    protocol.connection_lost(None)


async def test_connections_in_the_backlog_are_served_when_the_listener_closes() -> None:
    listener = SocketListener(APP.table)
    bound = socket.create_server(("127.0.0.1", 0), backlog=64)
    await listener.listen(bound)
    clients = [socket.create_connection(bound.getsockname()) for _ in range(40)]
    try:
        for client in clients:
            client.sendall(EIGHT_HEADERS)
        await listener.accept_backlog()
        listener.close()
        for client in clients:
            client.settimeout(WAIT)
            assert (await asyncio.to_thread(client.recv, 65536)).endswith(b"\r\n\r\n{}")
    finally:
        for client in clients:
            client.close()
        await listener.shut_down(WAIT)
