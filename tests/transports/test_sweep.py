import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest

from cases import for_each
from millstream._config import Settings
from millstream._http.hosts import HostPolicy
from millstream._http.message import HttpLimits, Response
from millstream._http.server import Endpoints
from millstream._http.server.connection import (
    ANSWERING,
    BODY,
    CLOSED,
    DONE,
    EXPECTED,
    FAST_BODY,
    HEAD,
    IDLE,
    NEW,
    SILENT,
)
from millstream._http.server.guard import ConnectionGuard, ServerState
from millstream._http.server.listener import HttpProtocol, SocketListener
from wire import FakeTransport

LIMITS = HttpLimits.of(Settings(header_timeout=10, body_timeout=30, write_timeout=20, keep_alive=75))


class Loop:
    """A clock and one timer."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timer: Callable[[], None] | None = None
        self.soon: list[Callable[[], None]] = []

    def time(self) -> float:
        """Seconds since some time."""
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> object:
        """Keep the callback."""
        assert 0 < delay <= 1
        self.timer = callback
        return callback

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Keep it for the next turn."""
        self.soon.append(partial(callback, *arguments))

    def turn(self, seconds: int) -> None:
        """Let seconds pass, with a sweep after each."""
        for _ in range(seconds):
            self.now += 1
            timer, self.timer = self.timer, None
            if timer is not None:
                timer()


class Connection:
    """What the guard sees of one, and what it did to it."""

    def __init__(self, reading: int = IDLE, *, busy: bool = False) -> None:
        self.transport: Any = self
        self.connection: Any = self
        self.peer = self.owner = "192.0.2.1"
        self.guard: Any = None
        self.reading = reading
        self.replying = ANSWERING if busy else SILENT
        self.fast = None
        self.read_paused = False
        self.over_cap: Response | None = None
        self.since = self.unsent_since = 0.0
        self.unsent = 0
        self.buffer = 0
        self.fate = ""

    @property
    def busy(self) -> bool:
        """As a connection."""
        return self.replying == ANSWERING

    def get_write_buffer_size(self) -> int:
        """As a transport."""
        return self.buffer

    close_if_late: Any = HttpProtocol.close_if_late

    def refuse(self, response: Response) -> None:
        """As a protocol."""
        self.fate, self.reading, self.replying = str(response.status), DONE, CLOSED

    def is_closing(self) -> bool:
        """As a transport."""
        return self.fate != ""

    def close(self) -> None:
        """As a transport."""
        assert not self.is_closing()
        self.fate = "closed"

    def abort(self) -> None:
        """As a transport."""
        self.fate = "aborted"


def admit(guard: ConnectionGuard, connection: Connection, *, is_proxy: bool = False) -> bool:
    """Let the guard watch a connection. Return whether it was admitted."""
    connection.guard = guard
    refused = guard.admit(cast("Any", connection), is_proxy=is_proxy)
    connection.since = guard.clock
    return refused is None


@pytest.fixture
def loop() -> Loop:
    """A clock."""
    return Loop()


@pytest.fixture
def guard(loop: Loop) -> ConnectionGuard:
    """A guard of an empty server."""
    return ConnectionGuard(ServerState(), LIMITS, cast("Any", loop))


@pytest.mark.parametrize(
    ("connection", "seconds", "fate"),
    [
        (Connection(NEW), 10, "closed"),
        (Connection(), 75, "closed"),
        (Connection(HEAD), 8, "408"),
        (Connection(HEAD, busy=True), 8, "408"),
        (Connection(BODY), 28, "408"),
        (Connection(FAST_BODY), 28, "408"),
    ],
)
def test_peers_are_disconnected_after_their_timeout(
    guard: ConnectionGuard, loop: Loop, connection: Connection, seconds: int, fate: str
) -> None:
    assert admit(guard, connection)
    loop.turn(seconds)
    assert connection.fate == ""
    loop.turn(1)
    assert connection.fate == fate


def test_running_calls_and_paused_reading_have_no_timeout(guard: ConnectionGuard, loop: Loop) -> None:
    running, asking, refused, paused = (
        Connection(busy=True),
        Connection(EXPECTED, busy=True),
        Connection(DONE, busy=True),
        Connection(BODY),
    )
    paused.read_paused = True
    for connection in (running, asking, refused, paused):
        admit(guard, connection)
    loop.turn(1000)
    assert running.fate == asking.fate == refused.fate == paused.fate == ""
    paused.read_paused = False
    loop.turn(28)
    assert paused.fate == ""
    loop.turn(1)
    assert paused.fate == "408"


def test_only_peers_that_read_nothing_are_disconnected(guard: ConnectionGuard, loop: Loop) -> None:
    stalled, slow = Connection(busy=True), Connection(busy=True)
    for connection in (stalled, slow):
        admit(guard, connection)
    loop.turn(5)
    stalled.buffer = slow.buffer = 1_000_000
    loop.turn(15)
    stalled.buffer += 3
    slow.buffer -= 1
    loop.turn(5)
    assert (stalled.fate, slow.fate) == ("", "")
    loop.turn(1)
    assert (stalled.fate, slow.fate) == ("aborted", "")


def test_connections_with_unsent_bytes_are_not_idle(guard: ConnectionGuard, loop: Loop) -> None:
    connection = Connection()
    admit(guard, connection)
    for size in range(200, 0, -1):
        connection.buffer = size
        loop.turn(1)
    assert connection.fate == ""


def test_rejected_peers_may_linger_after_pending_replies(guard: ConnectionGuard, loop: Loop) -> None:
    connection = Connection(DONE, busy=True)
    admit(guard, connection)
    loop.turn(100)
    assert connection.fate == ""
    connection.replying, connection.since = CLOSED, loop.now
    loop.turn(2)
    assert connection.fate == ""
    loop.turn(1)
    assert connection.fate == "aborted"


@for_each("phase", [NEW, IDLE])
def test_closed_peers_are_dropped_at_the_next_sweep(guard: ConnectionGuard, loop: Loop, phase: int) -> None:
    peer = Connection(phase)
    admit(guard, peer)
    loop.now += 100
    loop.turn(1)
    assert peer.fate == "closed"
    loop.turn(1)
    assert peer.fate == "aborted"


def test_sweep_timer_stops_without_connections(guard: ConnectionGuard, loop: Loop) -> None:
    connection = Connection()
    admit(guard, connection)
    loop.turn(1)
    guard.release(cast("Any", connection))
    loop.turn(1)
    assert loop.timer is None
    loop.now += 500
    late = Connection(NEW)
    admit(guard, late)
    loop.turn(10)
    assert late.fate == ""


def test_sweep_continues_after_an_error(guard: ConnectionGuard, loop: Loop) -> None:
    class Broken(Connection):
        def get_write_buffer_size(self) -> int:
            raise ValueError("broken")

    slow = [Connection(HEAD) for _ in range(100)]
    for each in (*slow, Broken()):
        admit(guard, each)
    loop.now += 100
    turns = [partial(loop.turn, 1)]
    errors = 0
    while turns:
        try:
            turns.pop()()
        except ValueError:
            errors += 1
        turns += loop.soon
        loop.soon.clear()
    assert errors == 1
    assert all(each.fate == "408" for each in slow)
    assert loop.timer is not None


def test_mass_rejections_are_spread_over_several_iterations(guard: ConnectionGuard, loop: Loop) -> None:
    crowd = [Connection(HEAD) for _ in range(1_000)]
    for connection in crowd:
        admit(guard, connection)
    loop.now += 100
    loop.turn(1)
    gone = [sum(each.fate == "408" for each in crowd)]
    leaver = next(each for each in crowd if not each.fate)
    guard.release(cast("Any", leaver))
    while loop.soon:
        loop.soon.pop()()
        gone.append(sum(each.fate == "408" for each in crowd))
    assert max(after - before for before, after in itertools.pairwise([0, *gone])) == 4
    assert (gone[-1], leaver.fate) == (999, ""), "whoever has left meanwhile isn't judged"


@pytest.mark.many
@for_each("many", [5_000, 100_000])
def test_mass_rejections_take_at_most_500_iterations(guard: ConnectionGuard, loop: Loop, many: int) -> None:
    crowd = [Connection(HEAD) for _ in range(many)]
    for connection in crowd:
        admit(guard, connection)
    loop.now += 100
    loop.turn(1)
    turns = 1
    while loop.soon:
        loop.soon.pop()()
        turns += 1
    assert all(each.fate == "408" for each in crowd)
    assert turns <= 500


@pytest.mark.parametrize("replying", [SILENT, CLOSED])
def test_sweep_counts_closing_without_a_rejection_as_work(guard: ConnectionGuard, loop: Loop, replying: int) -> None:
    crowd = [Connection(IDLE if replying == SILENT else DONE) for _ in range(20)]
    for connection in crowd:
        connection.replying = replying
        admit(guard, connection)
    loop.now += 100
    loop.turn(1)
    assert sum(bool(each.fate) for each in crowd) == 4


def test_large_replies_count_completely_until_their_last_byte_is_read(guard: ConnectionGuard, loop: Loop) -> None:
    connection = Connection()
    admit(guard, connection)
    for buffered in (1_000_000, 10, 10):
        connection.buffer = buffered
        guard.count_unsent(cast("Any", connection), 5_000_000 if buffered > 10 else 0)
        assert guard.unsent.count(connection.owner) == 5_000_000
    connection.buffer = 0
    loop.turn(1)
    assert guard.unsent.used == 0


def test_stalled_peers_are_disconnected_a_few_at_a_time(guard: ConnectionGuard, loop: Loop) -> None:
    crowd = [Connection(busy=True) for _ in range(20)]
    for connection in crowd:
        admit(guard, connection)
        connection.buffer = connection.unsent = 1_000
    loop.now += 100
    loop.turn(1)
    assert [each.fate for each in crowd].count("aborted") == 4


def test_sweep_checks_connections_in_batches(guard: ConnectionGuard, loop: Loop) -> None:
    for _ in range(1_000):
        admit(guard, Connection())
    loop.turn(1)
    turns = 1
    while loop.soon:
        loop.soon.pop()()
        turns += 1
    assert turns == 4


def guard_for(loop: Loop, **settings: Any) -> ConnectionGuard:
    return ConnectionGuard(ServerState(), HttpLimits.of(Settings(**settings)), cast("Any", loop))


def admitted(guard: ConnectionGuard, *peers: str, is_proxy: bool = False) -> list[bool]:
    """Return whether each connection isn't above a cap."""
    found: list[bool] = []
    for peer in peers:
        connection = Connection()
        connection.peer = peer
        found.append(admit(guard, connection, is_proxy=is_proxy))
    return found


def test_ipv6_networks_share_one_cap(loop: Loop) -> None:
    near = ["2001:db8::0", "2001:db8::1", "2001:db8::2"]
    assert admitted(guard_for(loop, max_connections_per_address=2), *near, "2001:db8:0:1::") == [
        True,
        True,
        False,
        True,
    ]


def test_one_address_gets_at_most_half_of_the_connections(loop: Loop) -> None:
    guard = guard_for(loop, max_connections=4)
    assert admitted(guard, "192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2") == [True, True, False, True]


@for_each(("peer", "is_proxy"), [("192.0.2.1", True), ("127.0.0.1", False), ("::1", False), ("", False)])
def test_proxies_and_local_clients_may_use_all_connections(loop: Loop, peer: str, is_proxy: bool) -> None:
    assert admitted(guard_for(loop, max_connections=2), peer, peer, is_proxy=is_proxy) == [True, True]
    capped = guard_for(loop, max_connections=2, max_connections_per_address=1)
    assert admitted(capped, peer, peer, is_proxy=is_proxy) == [True, not peer]


def test_lost_connections_are_not_counted(loop: Loop) -> None:
    guard = guard_for(loop, max_connections_per_address=1)
    first, second = Connection(), Connection()
    admit(guard, first)
    guard.transfer(cast("Any", first), cast("Any", second))
    guard.release(cast("Any", first))
    assert admitted(guard, first.peer) == [False]
    guard.release(cast("Any", second))
    assert admitted(guard, first.peer) == [True]


class Wire(FakeTransport):
    """A transport that keeps what is read after the end."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Name a client."""
        return ("192.0.2.1", 1) if name == "peername" else None


async def test_few_probes_are_allowed_above_the_cap() -> None:
    limits = HttpLimits.of(Settings(max_connections_per_address=1))
    table = Endpoints(lambda method, path: None, limits=limits, policy=HostPolicy())
    listener = SocketListener(table)

    def connect() -> HttpProtocol:
        protocol = listener.make_protocol()
        protocol.connection_made(Wire())
        return protocol

    def is_refused(protocol: HttpProtocol) -> bool:
        return b"503" in b"".join(cast("Wire", protocol.transport).written)

    first = connect()
    assert first.connection.over_cap is None
    spares = [connect() for _ in range(16)]
    assert all(each.connection.over_cap and not is_refused(each) for each in spares)
    assert is_refused(connect())
    spares[0].refuse(Response())
    assert not is_refused(connect())
    assert is_refused(connect())
    spares[1].connection_lost(None)
    assert not is_refused(connect())
    slow, silent = spares[2], spares[3]
    slow.data_received(b"GET")
    for each in (slow, silent):
        assert each.close_if_late(listener.guard.clock + 3)
    assert b"408" in b"".join(cast("Wire", slow.transport).written)
    assert silent.transport.is_closing()
    for each in list(listener.state.connections):
        each.connection_lost(None)
