import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cases import for_each
from guard_peer import Start, echo, expect_refusal, make_endpoints, run_guarded_servers
from http_peer import HEAD, WAIT, Peer, request
from millstream._config import Settings
from millstream._http.asgi import MAX_PIECES, AsgiAdapter
from millstream._http.hosts import HostPolicy
from millstream._http.message import MAX_FRAMING, Handler, HttpLimits, HttpRequest, Response
from millstream._http.server import Endpoints
from millstream._http.server.listener import SocketListener
from wire import FakeTransport

READ = 256 * 1024
"""Bytes that a loop reads at a time."""
CHUNKED = b"POST %b HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a guarded server; it ends with the test."""
    async with run_guarded_servers() as start:
        yield start


async def connect(port: int, address: str) -> Peer:
    """A connection from an address of one's own: all of 127.0.0.0/8 is this machine."""
    sock = socket.socket()
    sock.bind((address, 0))
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    return Peer(*await asyncio.open_connection(sock=sock))


@for_each("path", [b"/echo", b"/exact"])
async def test_one_address_gets_at_most_half_of_the_unfinished_body_budget(start: Start, path: bytes) -> None:
    server = await start(max_incoming_bytes=400, max_body=200)
    half = b"POST %b HTTP/1.1\r\n" % path + HEAD + b"X-Odd:1\r\nContent-Length: 200\r\n\r\n"
    greedy = [await connect(server.port, "127.0.0.2") for _ in range(3)]
    for peer in greedy:
        await peer.send(half + b"y" * 100)
    assert b"too much data" in await expect_refusal(greedy[2], 503)
    modest = await connect(server.port, "127.0.0.3")
    await modest.send(half + b"y" * 100)
    await modest.send(b"y" * 100)
    assert (await modest.reply())[0] == 200
    for peer in (*greedy, modest):
        peer.writer.transport.abort()
    await server.wait_for_connections(0)


class Fed:
    """A connection without a network."""

    def __init__(self) -> None:
        routes: dict[tuple[str, str], Handler] = {("POST", "/echo"): echo, ("POST", "/exact"): echo}
        self.protocol = SocketListener(make_endpoints(routes, Settings())).make_protocol()
        self.transport = FakeTransport()
        self.protocol.connection_made(self.transport)

    def feed(self, data: bytes) -> None:
        """Read it as a loop does, until the connection reads no more."""
        for at in range(0, len(data), READ):
            if self.transport.written:
                return
            self.protocol.data_received(data[at : at + READ])


@for_each("path", [b"/echo", b"/exact"])
@for_each("size", [1, 6])
async def test_bodies_in_tiny_chunks_are_rejected_early(path: bytes, size: int) -> None:
    fed = Fed()
    chunk = b"%x\r\n" % size + b"y" * size + b"\r\n"
    fed.feed(CHUNKED % path + chunk * (3_600_000 // len(chunk)))
    assert b"too many small chunks" in fed.transport.written[0]
    framing = len(chunk) - size
    assert fed.protocol.connection._body_bytes // size <= 2 * READ / len(chunk) + 2 * MAX_FRAMING / framing
    fed.protocol.connection_lost(None)
    for _ in range(4):
        await asyncio.sleep(0)


@for_each("path", [b"/echo", b"/exact"])
async def test_bodies_in_reasonable_chunks_are_read(path: bytes) -> None:
    for chunk, count in ((b"40\r\n" + b"y" * 64 + b"\r\n", 40_000), (b"1\r\ny\r\n", 10_000)):
        fed = Fed()
        fed.feed(CHUNKED % path + chunk * count + b"0\r\n\r\n")
        async with asyncio.timeout(WAIT):
            while not fed.transport.written:  # noqa: ASYNC110  no event signals it
                await asyncio.sleep(0)
        assert fed.transport.written[0].startswith(b"HTTP/1.1 200 ")
        fed.protocol.connection_lost(None)
        for _ in range(4):
            await asyncio.sleep(0)


async def test_bodies_with_a_length_may_arrive_byte_by_byte() -> None:
    fed = Fed()
    await asyncio.sleep(0)
    fed.feed(request(body=b"x" * 5_000)[: -5_000 + 1])
    for _ in range(4_999):
        fed.protocol.data_received(b"x")
    async with asyncio.timeout(WAIT):
        while not fed.transport.written:  # noqa: ASYNC110  no event signals it
            await asyncio.sleep(0)
    assert fed.transport.written[0].startswith(b"HTTP/1.1 200 ")
    fed.protocol.connection_lost(None)


async def test_body_messages_are_bounded_under_any_asgi_server() -> None:
    received = 0

    async def handler(asked: HttpRequest) -> Response:
        return Response(asked.body)

    async def receive() -> Any:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b"y", "more_body": received < 600_000}

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    limits = HttpLimits.of(Settings())
    adapter = AsgiAdapter(Endpoints(lambda method, path: handler, limits=limits, policy=HostPolicy(loopback_bind=True)))
    scope = {"type": "http", "method": "POST", "path": "/x", "headers": [(b"host", b"127.0.0.1")], "client": None}
    await adapter(scope, receive, send)
    assert (sent[0]["status"], received <= MAX_PIECES * 65 // 64 + 2) == (400, True)
    assert adapter.body_budget.used == 0
