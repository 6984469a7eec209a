"""Connections that several callers share: a server's surplus bytes never become the next caller's response."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from cases import for_each
from client.certificates import self_signed
from client.misbehaving_servers import read_request
from millstream._http.client import ClientError
from millstream._http.client.connection import HttpReply
from millstream._http.client.pool import ConnectionPool
from millstream._http.client.request import encode_headers, encode_request
from millstream._http.client.url import parse_url
from patience import WAIT

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
LARGE = 8 * 1024 * 1024
"""More bytes than the buffers of both sockets hold."""


def answer(text: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


@dataclass
class OddServer:
    """The pool of a client, and the number of connections to the server."""

    pool: ConnectionPool
    connections: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    tasks: list[asyncio.Task[None] | None] = field(default_factory=list)

    async def ask(self, path: str, body: bytes = b"") -> HttpReply:
        """Send a request that must not run twice."""
        head = encode_headers({"Host": "127.0.0.1"})
        async with asyncio.timeout(WAIT):
            return await self.pool.send(encode_request("POST", path, head, body), repeatable=False)


@asynccontextmanager
async def serving(
    extra: bytes = b"", folder: Path | None = None, *, reads_bodies: bool = True
) -> AsyncIterator[OddServer]:
    """Run a server that responds with the path, followed by `extra` in the same write if the path is `/eve`."""
    own = trusting = None
    if folder is not None:
        certificate, key = self_signed(folder)
        own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        own.load_cert_chain(certificate, key)
        trusting = ssl.create_default_context(cafile=str(certificate))

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        world.connections += 1
        world.writers.append(writer)
        world.tasks.append(asyncio.current_task())
        try:
            while True:
                if reads_bodies:
                    path = (await read_request(reader, writer)).path
                else:
                    path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
                writer.write(answer(path) + (extra if path == "/eve" else b""))
                await writer.drain()
                if not reads_bodies:
                    await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=own)
    url = parse_url(f"{'https://localhost' if own else 'http://127.0.0.1'}:{server.sockets[0].getsockname()[1]}/")
    pool = ConnectionPool(url, max_connections=4, max_body=1024, connect_timeout=WAIT, tls=trusting)
    world = OddServer(pool)
    try:
        yield world
    finally:
        await pool.close()
        for writer in world.writers:
            writer.transport.abort()
        server.close()
        await asyncio.gather(*filter(None, world.tasks))


def run(loop: str, act: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario on one kind of event loop."""

    async def bounded() -> None:
        async with asyncio.timeout(WAIT):
            await act()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(bounded())


SURPLUS = {
    "reply": answer("chosen by eve"),
    "letter": b"H",
    "status line": b"HTTP/1.1 200 O",
    "head": b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n",
    "line": b"\r\n",
    "noise": b"\0",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\n",
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@for_each("extra", SURPLUS.values(), ids=SURPLUS)
def test_surplus_of_a_reply_does_not_reach_the_next_caller(
    extra: bytes, secure: bool, loop: str, tmp_path: Path
) -> None:
    async def act() -> None:
        async with serving(extra, tmp_path if secure else None) as world:
            try:
                reply = await world.ask("/eve")
            except ClientError:
                pass
            else:
                assert reply.body == b"/eve"
            assert (await world.ask("/ada")).body == b"/ada"
            assert (await world.ask("/ada/again")).body == b"/ada/again"
            assert world.connections == (1 if extra == b"\r\n" else 2)  # an empty line before a reply is ignored

    run(loop, act)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("is_read", [False, True])
@for_each("extra", SURPLUS.values(), ids=SURPLUS)
def test_bytes_that_arrive_while_idle_do_not_reach_the_next_caller(extra: bytes, is_read: bool, loop: str) -> None:
    async def act() -> None:
        async with serving() as world:
            assert (await world.ask("/eve")).body == b"/eve"
            world.writers[0].write(extra)
            if is_read:
                await world.writers[0].wait_closed()
            assert (await world.ask("/ada")).body == b"/ada"
            assert (await world.ask("/ada/again")).body == b"/ada/again"
            assert world.connections == 2

    run(loop, act)


@pytest.mark.parametrize("loop", LOOPS)
def test_reply_before_the_end_of_a_request_closes_its_connection(loop: str) -> None:
    """The server would read the rest of the body as another request."""

    async def act() -> None:
        async with serving(reads_bodies=False) as world:
            assert (await world.ask("/eve", b"x" * LARGE)).body == b"/eve"
            assert (await world.ask("/ada")).body == b"/ada"
            assert world.connections == 2

    run(loop, act)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_usual_requests_share_a_connection(secure: bool, loop: str, tmp_path: Path) -> None:
    async def act() -> None:
        async with serving(folder=tmp_path if secure else None) as world:
            for number in range(5):
                assert (await world.ask(f"/{number}", b"x" * number * 10_000)).body == f"/{number}".encode()
            assert world.connections == 1

    run(loop, act)
