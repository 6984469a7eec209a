import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import accumulate
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from cases import for_each
from millstream import Server
from millstream._app.server_process.asgi_application import prepare
from millstream._config import Settings
from millstream._http import asgi
from millstream._http.hosts import HostPolicy
from millstream._http.message import MAX_FRAGMENTS, PIECE, HttpLimits, HttpRequest
from millstream._http.server import Endpoints
from millstream._http.server.listener import SocketListener
from millstream._http.server.websocket import MAX_FRAMES, WebSocketProtocol
from millstream._http.websocket import DirectSocket
from millstream._protocol.principal import Share
from socket_world import BINARY, CLOSE, PING, PONG, TEXT, UPGRADE, RawSocket, World, frame, world
from wire import FakeTransport

CONT = 0
ASK = b'{"type":"ping"}'
HALF = b" " * 100_000
PART = frame(TEXT, HALF + ASK + b" " * 50_000)[: -50_000 - len(ASK)]
"""A frame whose payload stops short."""
FRAGMENT = frame(TEXT, HALF, fin=False)
UNFINISHED = {"part": PART, "fragment": FRAGMENT, "both": FRAGMENT + frame(CONT, b" " * 1000)[:-5]}
_LINES = [line.partition(b": ") for line in UPGRADE.splitlines()]
HANDSHAKE = HttpRequest(
    "GET", "/ws",
    [*((name.lower(), value) for name, _, value in _LINES), (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")], {},
)  # fmt: skip
BOUNDS: dict[str, Any] = {"max_message": 200_000, "max_body": 200_000, "max_incoming_bytes": 500_000}
"""Room for two and a half messages of `HALF` at an address, and for five in all."""


def held(app: World) -> int:
    """Bytes of everything that is unfinished at the server."""
    return app.running.guard.unfinished.used


async def socket_from(app: World, address: str) -> RawSocket:
    """A socket from an address of one's own: all of 127.0.0.0/8 is this machine."""
    app.running.source_address = lambda: address
    return await app.raw()


# Room


@for_each("sent", UNFINISHED.values(), ids=UNFINISHED.keys())
async def test_unfinished_messages_share_the_body_budget(sent: bytes) -> None:
    async with world(**BOUNDS) as app:
        greedy = [await socket_from(app, "127.0.0.2") for _ in range(3)]
        for socket in greedy[:2]:
            await socket.send(sent)
        await app.until(lambda: held(app) >= 2 * len(HALF))
        await greedy[2].send(sent)
        code, reason = await greedy[2].wait_for_close()
        assert (code, "receiving too much data" in reason) == (1013, True)
        await app.until(lambda: held(app) < 3 * len(HALF))
        modest = await socket_from(app, "127.0.0.3")
        await modest.send(FRAGMENT)
        await app.until(lambda: held(app) >= 3 * len(HALF))
        await modest.send(frame(CONT, ASK))
        assert await modest.message() == {"type": "pong"}
        assert held(app) < 3 * len(HALF)
        for socket in greedy:
            socket.peer.writer.transport.abort()
        await app.until(lambda: held(app) == 0)


async def test_messages_and_bodies_from_one_address_share_a_budget() -> None:
    async with world(**BOUNDS) as app:
        socket = await app.raw()
        assert app.running.guard.unfinished.take("127.0.0.1", 180_000)
        await socket.send(FRAGMENT)
        assert (await socket.wait_for_close())[0] == 1013
        await app.until(lambda: held(app) == 180_000)


async def test_budget_fits_the_largest_message_twice() -> None:
    async with world(max_message=400_000, max_body=1000, max_incoming_bytes=1000) as app:
        socket = await app.raw()
        ask = frame(TEXT, b" " * (400_000 - len(ASK)) + ASK)
        await socket.send(ask[:-1])
        await app.until(lambda: held(app) == len(ask) - 14 - 1)
        await socket.send(ask[-1:])
        assert await socket.message() == {"type": "pong"}
        assert held(app) == 0


ENDS: dict[str, Callable[[RawSocket], Any]] = {
    "close": lambda socket: socket.send(frame(CLOSE)),
    "wrong frame": lambda socket: socket.send(frame(3)),
    "too many fragments": lambda socket: socket.send(*[frame(CONT, fin=False)] * MAX_FRAGMENTS),
    "not UTF-8": lambda socket: socket.send(frame(CONT, b"\xff")),
    "too large": lambda socket: socket.send(frame(CONT, b" " * 150_000)),
}


@for_each("end", ENDS.values(), ids=ENDS.keys())
async def test_budget_is_released_when_the_connection_ends(end: Callable[[RawSocket], Any]) -> None:
    async with world(**BOUNDS) as app:
        socket = await app.raw()
        await socket.send(FRAGMENT)
        await app.until(lambda: held(app) == len(HALF))
        await end(socket)
        await socket.wait_for_close()
        await app.until(lambda: held(app) == 0)


async def test_bytes_received_after_our_close_frame_count_until_the_peer_closes() -> None:
    async with world(**BOUNDS) as app:
        socket = await app.raw()
        await socket.send(frame(BINARY))
        assert (await socket.wait_for_close())[0] == 1003
        await socket.send(PART)
        await app.until(lambda: held(app) >= len(HALF))
        socket.peer.writer.transport.abort()
        await app.until(lambda: held(app) == 0)


# Time


@for_each("sent", [*UNFINISHED.values(), frame(TEXT, fin=False), b"\x81"])
async def test_unfinished_messages_time_out(sent: bytes) -> None:
    async with world(body_timeout=0.05) as app:
        socket = await app.raw()
        await socket.send(sent)
        code, reason = await socket.wait_for_close()
        assert code == 1008
        assert reason.startswith("The message arrived too slowly: it took more than 0.05 seconds.")
        await app.until(lambda: not app.running.state.connections and held(app) == 0)


class Application:
    """It takes what comes."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.takes = asyncio.Event()
        self.takes.set()

    async def __call__(self, socket: DirectSocket) -> None:
        """Take messages, in a loop that leaves nobody else a turn as long as there are some."""
        await socket.accept("")
        while True:
            await self.takes.wait()
            message = await socket.receive()
            if not isinstance(message, str):
                return
            self.taken.append(message)


class Transport(FakeTransport):
    """One that says whether it reads."""

    reads = True

    def pause_reading(self) -> None:
        """The protocol wants no more."""
        self.reads = False

    def resume_reading(self) -> None:
        """It does again."""
        self.reads = True


class Fed:
    """A socket without a network."""

    def __init__(self, **settings: Any) -> None:
        self.app = Application()
        limits, policy = HttpLimits.of(Settings(**settings)), HostPolicy(loopback_bind=True)
        table = Endpoints(lambda method, path: None, limits=limits, policy=policy, websocket=self.app)
        listener = SocketListener(table)
        self.state, self.guard = listener.state, listener.guard
        self.handled = 0
        one = self

        class Counted(WebSocketProtocol):
            __slots__ = ()

            def _handle(self, frame: Frame) -> None:
                one.handled += 1
                super()._handle(frame)

        self.transport = Transport()
        taken = listener.make_protocol()
        taken.transport, taken.peer = self.transport, "127.0.0.1"
        self.protocol = Counted(taken, HANDSHAKE)
        self.guard.transfer(taken, self.protocol)

    @property
    def unfinished(self) -> Share:
        """The room for what is unfinished."""
        return self.guard.unfinished

    async def until(self, fact: Callable[[], bool]) -> None:
        """Give the loop turns until something is so."""
        for _ in range(100_000):
            if fact():
                return
            await asyncio.sleep(0)
        raise AssertionError(fact)


@asynccontextmanager
async def fed(**settings: Any) -> AsyncIterator[Fed]:
    """An open socket; what is fed to it, it handles frame by frame, and `handled` counts them."""
    one = Fed(**settings)
    one.protocol.open()
    await one.until(lambda: one.protocol._is_open)
    yield one
    one.protocol.connection_lost(None)
    await one.until(lambda: not one.state.tasks)
    assert one.unfinished.used == 0
    assert one.protocol._counted == 0


async def test_bytes_and_pings_do_not_extend_the_message_timeout() -> None:
    async with fed() as one:
        protocol = one.protocol
        protocol.data_received(frame(TEXT, b" ", fin=False))
        begun = protocol._unfinished_since
        assert protocol._counted
        for more in (frame(CONT, b" ", fin=False), frame(PING), frame(PONG), frame(CONT, b" ")[:-1]):
            one.guard.clock += 1
            protocol.data_received(more)
            assert protocol._counted
            assert protocol._unfinished_since == begun
        assert one.unfinished.used == protocol._counted > 0
        protocol.data_received(frame(CONT, b" ")[-1:])
        assert (protocol._counted, one.unfinished.used) == (0, 0)


@for_each("whole", [frame(TEXT, ASK), frame(PING, b"x"), frame(TEXT, ASK) + frame(TEXT, fin=False)])
async def test_each_message_and_control_frame_has_its_own_timeout(whole: bytes) -> None:
    async with fed() as one:
        protocol = one.protocol
        protocol.data_received(whole[:1])
        first = protocol._unfinished_since
        one.guard.clock += 1
        protocol.data_received(whole[1:] + frame(PING)[:1])
        assert protocol._unfinished_since == first + 1
        assert protocol._counted == 1


async def test_paused_reading_stops_the_message_timeout() -> None:
    async with fed() as one:
        protocol, app = one.protocol, one.app
        app.takes.clear()
        protocol.data_received(frame(TEXT, ASK))
        await one.until(lambda: len(app.taken) == 1)
        protocol.data_received(frame(TEXT, ASK) + frame(TEXT, b" ", fin=False))
        await one.until(lambda: protocol._counted > 0)
        assert not one.transport.reads
        later = one.guard.clock + 31
        assert not protocol.close_if_late(later)
        app.takes.set()
        await one.until(lambda: one.transport.reads)
        assert not protocol.close_if_late(later + 30)
        assert protocol.close_if_late(later + 31)
        assert one.transport.closed


async def test_time_without_reading_for_a_slow_client_does_not_count_against_it() -> None:
    async with fed() as one:
        protocol, guard = one.protocol, one.guard
        protocol.data_received(frame(TEXT, b" ", fin=False))
        assert not protocol.close_if_late(guard.clock + one.protocol.table.heartbeat)  # sends a ping
        protocol.pause_writing()
        guard.clock += 31  # the guard doesn't check connections with unsent bytes
        protocol.resume_writing()
        assert one.transport.reads
        assert not protocol.close_if_late(guard.clock + 1)
        assert protocol.close_if_late(guard.clock + 31)


OWN_LIMITS = {
    "header_timeout": "time limits for headers",
    "write_timeout": "stalled writes",
    "keep_alive": "",  # every server has its own
    "max_header_count": "header count",
    "max_header_bytes": "header count and size",
    "max_url": "URLs",
    "max_connections": "caps on connections",
    "max_connections_per_address": "caps on connections",
    "max_outgoing_bytes": "unsent replies",
}
"""Limit that only our own server can apply -> its words in the warning under another server."""


@pytest.mark.parametrize("serve", ["rest", "hub"])
async def test_warning_about_other_asgi_servers_lists_missing_limits(
    serve: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server("plain", serve=serve)
    async with server.running() as runtime:
        prepare(server, runtime)
    (warning,) = [each.getMessage() for each in caplog.records if "plain ASGI" in each.getMessage()]
    assert ("unfinished WebSocket messages" in warning) == (serve == "hub")
    assert all(words in warning for words in OWN_LIMITS.values())


def test_limits_apply_under_other_asgi_servers_or_are_listed_as_missing() -> None:
    applied = set(re.findall(r"\blimits\.(\w+)", inspect.getsource(asgi)))
    missing = set(HttpLimits.__struct_fields__) - applied
    assert missing == OWN_LIMITS.keys(), (
        "Check these limits in _http/asgi.py, too. If that's impossible there, name them in `_OWN_SERVER` in "
        f"_app/server_process/asgi_application.py, and in OWN_LIMITS: {sorted(missing - OWN_LIMITS.keys())}"
    )


async def test_complete_small_messages_are_not_counted() -> None:
    async with fed() as one:
        for _ in range(100):
            one.app.taken.clear()
            one.protocol.data_received(frame(TEXT, ASK) * 5 + frame(PING))
            assert (one.protocol._counted, one.unfinished.used) == (0, 0)
            await one.until(lambda: len(one.app.taken) == 5 and one.transport.reads)


# Floods

READ = 256 * 1024
"""Bytes that a loop reads at a time."""
FLOODS = {"pings": frame(PING), "pongs": frame(PONG), "messages": frame(TEXT, b"{}")}


@for_each("flood", FLOODS.values(), ids=FLOODS.keys())
async def test_reads_full_of_tiny_frames_yield_to_the_event_loop(flood: bytes) -> None:
    async with fed() as one:
        count, most = READ // len(flood), MAX_FRAMES + PIECE // len(flood) + 1
        one.protocol.data_received(flood * count)
        handled = 0
        while one.handled < count:
            assert handled < one.handled <= handled + most
            assert not one.transport.reads
            handled = one.handled
            turns = 0
            while one.handled == handled:
                assert (turns := turns + 1) < 10
                await asyncio.sleep(0)
        await one.until(lambda: one.transport.reads)
        assert one.handled == count
        written = b"".join(one.transport.written)
        assert written.count(b"\x8a\x00") == (count if flood == FLOODS["pings"] else 0)
        assert len(one.app.taken) == (count if flood == FLOODS["messages"] else 0)


async def test_frames_wait_as_bytes_while_the_application_is_busy() -> None:
    async with fed() as one:
        tiny = frame(TEXT, b"{}")
        one.app.takes.clear()
        one.protocol.data_received(tiny * (READ // len(tiny)))
        for _ in range(100):
            await asyncio.sleep(0)
        assert one.handled <= PIECE // len(tiny) + 1
        assert len(one.protocol._ahead) >= READ - PIECE - len(tiny)
        one.app.takes.set()
        await one.until(lambda: len(one.app.taken) == READ // len(tiny))


async def test_frames_after_a_flood_are_read_after_our_close_frame() -> None:
    async with world() as app:
        socket = await app.raw()
        await socket.send(frame(BINARY), *[frame(TEXT, ASK)] * 20_000, frame(CLOSE))
        assert (await socket.wait_for_close())[0] == 1003
        assert await socket.peer.rest() == b""
        await app.until(lambda: not app.running.state.connections)


async def test_other_clients_are_answered_during_a_flood() -> None:
    async with world() as app:
        other, socket = await app.raw(), await app.raw()
        await socket.send(frame(PONG) * 100_000)
        await app.until(lambda: any(each._ahead for each in app.running.state.connections))  # type: ignore[union-attr]
        await other.send(frame(TEXT, ASK))
        assert await other.message() == {"type": "pong"}
        await socket.send(frame(TEXT, ASK))
        assert await socket.message() == {"type": "pong"}


@for_each("size", [1, 3, 1000, 8192])
async def test_tunnel_is_closed_with_a_close_frame_unless_that_would_be_inside_another_frame(size: int) -> None:
    lengths = 0, 1, 125, 126, 65535, 65536, 2
    frames = [Frame(Opcode.TEXT, b"x" * each).serialize(mask=False) for each in lengths]
    ends, data = {0, *accumulate(map(len, frames))}, b"".join(frames)
    restart = Frame(Opcode.CLOSE, b"\x03\xf4").serialize(mask=False)
    for end in sorted({*ends, *range(1, 8), 140, 70_000, len(data) - 1}):
        async with fed() as one:
            written = one.transport.written
            one.protocol.open_tunnel("")
            del written[:]
            for at in range(0, end, size):
                one.protocol.pass_on(data[at : min(at + size, end)])
            one.protocol.shutdown()
            assert b"".join(written) == data[:end] + (restart if end in ends else b"")


async def test_close_frame_of_the_other_server_is_the_last_one() -> None:
    last = Frame(Opcode.CLOSE, b"\x03\xe9").serialize(mask=False)
    async with fed() as one:
        written = one.transport.written
        one.protocol.open_tunnel("")
        del written[:]
        one.protocol.pass_on(last)
        one.protocol.shutdown()
        assert written == [last]


async def test_tunnel_sends_no_pings_because_the_other_server_does() -> None:
    async with fed() as one:
        one.protocol.open_tunnel("")
        del one.transport.written[:]
        assert not one.protocol.close_if_late(one.guard.clock + 1000)
        assert one.transport.written == []


async def test_stopping_server_waits_for_tunnels_because_their_calls_run_at_the_other_server() -> None:
    async with fed() as one:
        assert not one.protocol.answering
        one.protocol.open_tunnel("")
        assert one.protocol.answering


async def test_tunnel_takes_no_more_than_the_other_server_does_also_after_its_close_frame() -> None:
    async with fed() as one:
        one.protocol.open_tunnel("")
        for before in (b"", Frame(Opcode.CLOSE, b"\x03\xe9").serialize(mask=False)):
            one.protocol.pass_on(before)
            one.protocol.data_received(b"x" * 3 * PIECE)
            assert not one.transport.reads
            received = b""
            while len(received) < 3 * PIECE:
                piece = await one.protocol.receive()
                assert isinstance(piece, bytes) and len(piece) <= PIECE  # noqa: PT018
                received += piece
            await one.until(lambda: one.transport.reads)
