"""Servers whose replies are small but take much work, or never complete. The limits are the same as our own
server's. Surplus bytes of a server never become the next caller's response."""

import asyncio
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Frame, Opcode

from cases import for_each
from client.certificates import self_signed
from client.misbehaving_servers import (
    DONE,
    OFFER,
    ReceivedRequest,
    check_failure,
    connected,
    misbehaving,
    read_request,
    with_discovery,
)
from millstream import Client, Server, Settings
from millstream._http.client import LINES_PER_SECOND, Body, ClientError, Inflow
from millstream._http.client.connection import HttpReply
from millstream._http.client.pool import ConnectionPool
from millstream._http.client.request import encode_headers, encode_request
from millstream._http.client.url import parse_url
from millstream._http.message import MAX_UNREAD, PIECE
from millstream.client import ConnectionLost, InvalidResponse, Options, TooLarge
from millstream.client._transports import EventReader
from patience import WAIT, advance_clock

MIB = 1024 * 1024


def head(kind: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % kind.encode()


@for_each("kind", ["application/json", "text/event-stream"])
async def test_replies_in_tiny_chunks_are_rejected_early(kind: str) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.write(head(kind))
        while True:
            await asked.write(b"1\r\n:\r\n" * 10_000)

    tracemalloc.start()
    try:
        await check_failure(with_discovery(behave), TooLarge, "not counting its body", "chunks")
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


async def test_connection_of_a_malformed_reply_is_closed_although_the_server_keeps_it_open() -> None:
    async with connected(with_discovery(lambda asked: asked.write(b"HTTP/9.9 what\r\n\r\n"))) as (server, client):
        with pytest.raises(InvalidResponse):
            await client.call("add")
        await asyncio.wait_for(server.left.wait(), WAIT)


@for_each("size", [1, 64])
async def test_replies_in_reasonable_chunks_are_read(size: int) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        body = asked.answer({**DONE, "padding": "x" * (10_000 if size == 1 else 2 * MIB)})
        pieces = (body[at : at + size] for at in range(0, len(body), size))
        await asked.write(head("application/json"))
        await asked.write(b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces))
        await asked.end()

    async with connected(with_discovery(behave)) as (_, client):
        assert (await client.call("x")).text == "done"


class Source:
    """A connection without a socket."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def release(self) -> None: ...


async def test_tiny_lines_do_not_block_the_event_loop() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1
            advance_clock(1)

    body, reader = Body(Source(), Inflow()), EventReader(MIB)
    body.feed(b":\n" * (MIB // 2))
    body.end()
    reader.attach(body)
    task = asyncio.create_task(other())
    assert await reader.event() is None
    task.cancel()
    assert turns >= MIB // PIECE - 4


async def test_servers_that_send_too_many_lines_per_second_are_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    inflow, received = Inflow(), 0

    async def read() -> None:
        nonlocal received
        body, reader = Body(Source(), inflow), EventReader(MIB)
        body.feed(b"data:x\n\n" * LINES_PER_SECOND)
        reader.attach(body)
        while await reader.event():
            received += 1

    async def settle() -> None:
        for _ in range(1000):
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(read()) for _ in range(2)]  # streams of a server share its rate
    for seconds in (1, 2):
        await settle()
        assert abs(received - seconds * LINES_PER_SECOND // 2) <= seconds * len(tasks) * PIECE // 8
        now += 1
    for task in tasks:
        task.cancel()


@for_each("kind", ["application/json", "text/event-stream"])
async def test_unfinished_replies_from_one_upstream_do_not_use_up_the_limit_for_another(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def is_listing(asked: ReceivedRequest) -> bool:
        if asked.method == "server/discover":
            await asked.result({**OFFER, "capabilities": {"tools": {}}})
        elif asked.method == "tools/list":
            tools = [{"name": "x", "inputSchema": {"type": "object"}}]
            await asked.result({"resultType": "complete", "tools": tools, "ttlMs": 0, "cacheScope": "private"})
        return asked.method in ("server/discover", "tools/list")

    async def greedy(asked: ReceivedRequest) -> None:
        if not await is_listing(asked):
            await asked.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n\r\n" % kind.encode())
            await asked.write(b'data: {"' + b"x" * 600_000)
            await asyncio.get_running_loop().create_future()

    async def modest(asked: ReceivedRequest) -> None:
        if not await is_listing(asked):
            body = asked.answer({**DONE, "padding": "x" * 900_000})
            await asked.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
            await asked.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)

    mcp = Server("front", settings=Settings(max_incoming_bytes=4_000_000))
    async with misbehaving(greedy) as bad, misbehaving(modest) as good:
        for name, url in (("bad", bad.url), ("good", good.url)):
            mcp.upstream(name, url, start_timeout=WAIT, timeout=WAIT, max_bytes=1_000_000)
        async with asyncio.timeout(WAIT), Client(mcp, timeout=WAIT) as client:
            calls = [asyncio.create_task(client.call("bad_x", raise_on_error=False)) for _ in range(4)]
            done, running = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            assert done.pop().result().is_error
            assert "too much data at once" in caplog.text
            assert (await client.call("good_x")).text == "done"
            for task in running:
                task.cancel()


async def check_websocket(behave: object, expected: type[Exception], words: str) -> None:
    async with serve(behave, "127.0.0.1", 0, subprotocols=["mcp"], compression=None) as server:  # type: ignore[arg-type]
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(expected, match=words):
            async with asyncio.timeout(WAIT), Client(f"ws://127.0.0.1:{port}", options=Options(max_bytes=MIB)):
                pass


async def test_websocket_messages_in_tiny_fragments_are_rejected() -> None:
    async def behave(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send("x" for _ in range(10_000))

    await check_websocket(behave, InvalidResponse, "fragments")


async def test_websocket_servers_that_do_not_read_pongs_are_disconnected() -> None:
    written = 0

    async def behave(socket: ServerConnection) -> None:
        nonlocal written
        await socket.recv()
        socket.transport.pause_reading()
        pings = Frame(Opcode.PING, b"x" * 100).serialize(mask=False) * 1000
        while not socket.transport.is_closing():
            socket.transport.write(pings)
            written += len(pings)
            await socket.drain()

    await check_websocket(behave, ConnectionLost, "closed the WebSocket")
    assert written < 64 * MAX_UNREAD


async def test_websocket_frames_are_parsed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from websockets.asyncio.client import ClientConnection  # noqa: PLC0415  to count what it's given at a time

    given: list[int] = []
    usual = ClientConnection.data_received

    def receive(self: ClientConnection, data: bytes) -> None:
        given.append(len(data))
        usual(self, data)

    monkeypatch.setattr(ClientConnection, "data_received", receive)

    async def behave(socket: ServerConnection) -> None:
        await socket.recv()
        socket.transport.write(Frame(Opcode.PING, b"").serialize(mask=False) * 100_000)

    await check_websocket(behave, ConnectionLost, "closed the WebSocket")
    assert sum(given) > 200_000
    assert max(given) <= PIECE


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
    switches: asyncio.Event | None = None
    """Set when a server that switches protocols reads on."""

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
                if world.switches is not None:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(2 * SWITCH)
                    await world.switches.wait()
                    await reader.readexactly(16 * MIB)
                    writer.write(b"all")
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


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_server_that_may_switch_protocols_sends_and_receives_any_bytes(secure: bool, loop: str, tmp_path: Path) -> None:
    async def act() -> None:
        async with serving(folder=tmp_path if secure else None) as world:
            world.switches = asyncio.Event()
            request = encode_request("GET", "/", encode_headers({"Host": "127.0.0.1"}))
            with pytest.raises(InvalidResponse, match="switched protocols without being asked"):
                await world.pool.send(request, repeatable=False)
            reply = await world.pool.send(request, repeatable=False, switches=True)
            assert (reply.status, reply.header(b"upgrade")) == (101, "websocket")
            stream = reply.stream
            assert stream is not None
            received = b""
            while len(received) < len(SWITCH):
                received += await stream.read()
            assert received == SWITCH  # which isn't HTTP any more

            async def write() -> None:
                for _ in range(256):
                    await stream.write(b"x" * 64 * 1024)

            writing = asyncio.create_task(write())
            for _ in range(1000):
                await asyncio.sleep(0)
            is_written = writing.done()
            world.switches.set()
            assert not is_written  # while the server didn't read
            await writing
            assert await stream.read() == b"all"
            stream.close()

    run(loop, act)
