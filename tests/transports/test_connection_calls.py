import asyncio
import socket
from collections.abc import Callable

import pytest

from http_peer import ToyApp
from millstream._config import Settings
from millstream._http.message import HttpRequest, Response
from millstream._http.server.listener import HttpProtocol, SocketListener
from patience import WAIT
from wire import FakeTransport

EIGHT_HEADERS = (
    b"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: application/json, text/event-stream\r\n"
    b"Content-Type: application/json\r\nMcp-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\n"
    b"Mcp-Name: echo\r\nUser-Agent: test\r\nContent-Length: 2\r\n\r\n{}"
)


async def _echo(request: HttpRequest) -> Response:
    return Response(body=request.body)


APP = ToyApp({("POST", "/echo"): _echo}, Settings())


def connect() -> tuple[HttpProtocol, FakeTransport]:
    """A connection of our own server."""
    protocol, transport = SocketListener(APP.table).make_protocol(), FakeTransport()
    protocol.connection_made(transport)
    return protocol, transport


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
