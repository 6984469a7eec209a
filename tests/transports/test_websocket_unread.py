from collections.abc import Awaitable, Callable

from cases import for_each
from socket_world import BINARY, CLOSE, TEXT, frame
from transports.test_websocket_unfinished import Fed, Transport, fed

HALF = b" " * 1000


class Unread(Transport):
    """One whose peer has left bytes unread. Closing it waits for them, as asyncio does."""

    waiting = 3000
    aborted = False

    def get_write_buffer_size(self) -> int:
        """How many there are."""
        return self.waiting

    def abort(self) -> None:
        """Drop them."""
        self.aborted = self.closed = True


def unread(one: Fed) -> Unread:
    """Let the peer read no more."""
    transport = one.transport = one.protocol.transport = Unread()
    return transport


def sweep(one: Fed, seconds: float) -> None:
    """Let the guard check the connection, as if some time had passed."""
    one.guard._check_batch([one.protocol], one.guard.clock + seconds, 1)


async def ends_by_its_peer(one: Fed) -> None:
    """The peer's close frame."""
    one.protocol.data_received(frame(CLOSE))


async def fails(one: Fed) -> None:
    """What the peer sends isn't a frame."""
    one.protocol.data_received(frame(3))


async def runs_out(one: Fed) -> None:
    """The peer's end without a close frame, after which asyncio closes the transport."""
    one.protocol.eof_received()
    one.transport.close()


async def is_closed_by_us(one: Fed) -> None:
    """The application's close frame, which the peer doesn't answer."""
    await one.protocol.close(1000, "")


async def is_answered_too_late(one: Fed) -> None:
    """The application's close frame, and the peer's."""
    await is_closed_by_us(one)
    one.protocol.data_received(frame(CLOSE))


async def is_left_by_its_application(one: Fed) -> None:
    """The application returns without a close frame."""
    one.protocol.hang_up()
    await one.until(lambda: not one.state.tasks)


async def stops(one: Fed) -> None:
    """The server's end."""
    one.protocol.shutdown()


End = Callable[[Fed], Awaitable[None]]
ENDS: list[End] = [
    ends_by_its_peer,
    fails,
    runs_out,
    is_closed_by_us,
    is_answered_too_late,
    is_left_by_its_application,
    stops,
]


@for_each("end", [ends_by_its_peer, fails, runs_out, is_answered_too_late, is_left_by_its_application])
async def test_stopping_server_drops_ended_unread_connections(end: End) -> None:
    async with fed() as one:
        transport = unread(one)
        await end(one)
        one.protocol.shutdown()
        assert transport.aborted


@for_each("end", ENDS)
async def test_ended_unread_connection_is_dropped_after_the_write_timeout(end: End) -> None:
    async with fed(write_timeout=5) as one:
        transport = unread(one)
        await end(one)
        sweep(one, 0)
        sweep(one, 5)
        transport.waiting -= 1
        sweep(one, 6)
        sweep(one, 11)
        assert not transport.aborted  # the peer reads, however slowly
        sweep(one, 12)
        assert transport.aborted


@for_each("end", ENDS)
async def test_lost_connections_do_not_wait_for_the_peer(end: End) -> None:
    async with fed() as one:
        transport = unread(one)
        await end(one)
    sweep(one, 1000)
    assert not transport.aborted


@for_each("end", [ends_by_its_peer, fails, runs_out, is_left_by_its_application, stops])
async def test_fully_read_connection_ends_at_once(end: End) -> None:
    async with fed() as one:
        await end(one)
        assert one.transport.closed


@for_each("kind", [TEXT, BINARY])
async def test_fragments_after_our_close_frame_are_dropped(kind: int) -> None:
    async with fed() as one:
        await is_closed_by_us(one)
        one.protocol.data_received(frame(kind, HALF, fin=False))
        assert one.protocol._fragments == []
        one.protocol.data_received(frame(0, HALF))
        assert one.protocol._fragments == []
        assert one.unfinished.used == 0
