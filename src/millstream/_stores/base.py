"""The contract of stores: a `Backend` keeps bytes in logs and in a map, and `Store` builds everything else on it.

To add a store, write a `Backend`: a `Log`, a `Map`, `charge`, and a handful of small methods. Messages between workers,
leases, presence, and limits are built on these once, in `millstream._stores.store`. The docstrings here are the whole
contract: order, atomicity, loss, and bounds. `tests/stores/test_contract.py` checks them on every backend. Callers
rely on nothing else, even where one store gives more.

All names are text, all data bytes, and no store interprets either. The one exception is the *kind*, the part of a name
in front of its first colon. Each kind has room of its own, so a kind that is full never takes room from another.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._stores.rates import Charge, ChargeResults, Rates, Seat

PAGE_BYTES: Final = 4 * 1024 * 1024
"""Approximate maximum bytes returned by one read of a log."""
EPHEMERAL: Final = frozenset({"bus", "inbox", "member", "roster"})
"""Kinds that describe living workers. A store that outlives its workers may keep these in memory."""

MAX_OFFSET: Final = 2**63 - 1
_MAX_DIGITS: Final = len(str(MAX_OFFSET))


class Position(Struct, frozen=True, gc=False, array_like=True):
    """The position of an entry in one stream of a `Log`. Reading after a position starts with the next entry.

    The offsets of a stream grow from entry to entry, and need not be consecutive. A stream never uses an offset twice
    in one epoch, even after it was trimmed or has expired.
    """

    epoch: str
    """The epoch of the stream when the entry was appended."""
    offset: int
    """From 1 to `MAX_OFFSET`."""


def read_offset(digits: str) -> int | None:
    """Return the offset that a client sent in an event id, or None if it can't be one."""
    if not digits.isascii() or not digits.isdigit() or len(digits) > _MAX_DIGITS:
        return None
    offset = int(digits)
    return offset if offset <= MAX_OFFSET else None


class Entry(Struct, frozen=True, gc=False, array_like=True):
    """One entry of a stream."""

    position: Position
    data: bytes


class Gap(Exception):
    """`Log.read` can't continue from a position: entries after it are gone, or may be.

    To continue, report the loss to the reader and read after `resume_from`.
    """

    def __init__(self, epoch: str, oldest: Position | None, newest: Position | None = None) -> None:
        super().__init__("The stream cannot be read from this position.")
        self.epoch = epoch
        """The current epoch of the stream."""
        self.oldest = oldest
        """The position of the oldest entry left, or None if the stream is empty."""
        self.newest = newest
        """The position of the newest entry."""

    def resume_from(self, after: Position | None) -> Position | None:
        """Return where a reader at `after` continues, so that it skips and repeats nothing that is left."""
        newest = self.newest
        if after is None or newest is None or after.epoch != newest.epoch or after.offset <= newest.offset:
            return None
        return newest


class StoreFull(LocalError):
    """The value exceeds the room that is left for its kind. Nothing was changed."""


class ShareFull(StoreFull):
    """The value exceeds the room that is left for its share (`share_of`). Nothing was changed."""


class StoreUnavailable(LocalError):
    """The store didn't answer in time. The operation may have taken effect or not."""


class StreamSealed(LocalError):
    """The stream has its last entry. Nothing was appended."""


class Index(Struct, frozen=True, gc=False, array_like=True):
    """A second stream that keeps an entry under the position that the entry has in the first one.

    It's read for entries that the first stream has dropped, and never followed.
    """

    stream: str
    ttl: float
    max_entries: int


class CoAppend(Struct, frozen=True, gc=False, array_like=True):
    """An entry that announces a change of members."""

    stream: str
    data: bytes
    ttl: float
    max_entries: int


class Map(Protocol):
    """Values by key, each with a time to live.

    Operations on one key have one order that all workers see: a `get` that starts after a write has returned sees that
    write or a later one. There is no order across keys. A value lives until its time is over, unless the store loses
    data (a new `Backend.epoch`) or the value was written as `lossy`. `ttl` is in seconds, positive and finite. An
    expired value is absent for every method.

    A full kind refuses new values with `StoreFull`. A lossy value instead replaces those lossy values of its kind that
    were written longest ago. A program writes all values of a kind as lossy, or none. A share of a kind (`share_of`)
    may take half of the kind's room, and is refused more with `ShareFull`. A value that doesn't grow, or has at most
    `MARK_BYTES`, is accepted even then.
    """

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None if the key is absent."""
        ...

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of several keys, in their order, in as few round trips as possible."""
        ...

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        """Set the value unconditionally, and restart its time to live.

        Raises:
            StoreFull: the value doesn't fit. The old one is unchanged.
        """

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        """Set the value if the current one equals `expected`, and return whether it did.

        ``expected=None`` requires that the key is absent. ``value=None`` deletes the key and ignores `ttl`. If several
        workers compare with the same value at once, exactly one succeeds.

        Raises:
            StoreFull: the comparison succeeded and the value doesn't fit. The old one is unchanged.
        """
        ...

    async def delete(self, key: str) -> bool:
        """Delete the key, and return whether it was present."""
        ...

    async def keys(self, prefix: str) -> list[str]:
        """Return all keys that start with `prefix`, in no order.

        This may walk the whole store: use it at start-up and after failures. A key that is written or deleted during
        the walk may be missing. Every other key is in the result exactly once.
        """
        ...


class Log(Protocol):
    """Streams of entries that can be read again from a position.

    All workers see the entries of a stream in one order, that of their offsets. There is no order across streams. An
    acknowledged entry is never lost silently: reading past a lost one raises `Gap`.

    A full kind drops the oldest entries of any of its streams, or a whole stream.
    """

    async def append(
        self, stream: str, data: bytes, *, ttl: float, max_entries: int, index: Index | None = None, seal: bool = False
    ) -> Position:
        """Append an entry and return its position. An unknown stream begins with it.

        A reader sees the entry as soon as this has returned. Each append restarts the `ttl` of the whole stream.
        The newest `max_entries` entries are kept; older ones may go at any time. An append that fails with
        `StoreUnavailable` may have taken effect, but once at most, even if the store retries internally.

        Args:
            stream: its name.
            data: the entry.
            ttl: seconds until the stream expires.
            max_entries: how many entries to keep, at least 1.
            index: also append the entry to this stream, under the same position. Entries reach an index in the order
                of their positions. A failed append may leave the entry in the stream only, never in the index only.
                An index that is full is skipped.
            seal: this is the last entry. Every later append to the stream raises `StreamSealed`, until it has expired.

        Raises:
            StoreFull: the entry is larger than the store allows.
            Sealed: the stream has its last entry.
            StoreUnavailable: the store didn't answer in time.
        """
        ...

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        """Return the entries after a position, oldest first, or nothing if there are none yet. The position may lie
        between two entries.

        At most `limit` entries (at least 1), and none after the one with which their data reach `max_bytes`. If the
        result is shorter than both allow, it ends with the newest entry. ``after=None`` reads from the oldest entry
        left. A stream is unknown before its first append, after its `ttl`, after `trim`, and when a full store
        dropped it: it's empty then with ``after=None``, and a gap with a position.

        Raises:
            Gap: `after` belongs to another epoch, an entry after it was dropped, the stream is unknown, or `after` is
                beyond the newest entry. A store that can't tell for certain that nothing was dropped raises it too.
        """
        ...

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        """Return the newest entries, oldest first, or nothing if the stream is unknown.

        At most `limit` (at least 1), and none before the one with which their data, counted from the end, reach
        `max_bytes`.
        """
        ...

    async def touch(self, stream: str, ttl: float) -> bool:
        """Restart the time to live of a stream, as an append does. Return False if the stream is unknown."""
        ...

    async def trim(self, stream: str) -> None:
        """Drop the stream with all its entries. An unknown stream isn't an error."""

    def listen(
        self, stream: str, hear: Callable[[Entry], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """Call `hear` in the event loop with each entry that any worker appends, and return a function that stops it.

        Entries come in the order of the stream, with none left out since `listening` returned or since the last call
        of `interrupted`; one may come twice. Where that can't be guaranteed (a lost connection, a dropped message, an
        entry out of order), call `interrupted` instead: the listener then reads the stream. A store that can't push
        entries at all may call `interrupted` for each append. `millstream._stores.tail.Tail` is the listener to use.

        Callbacks neither block nor raise; they may add and stop listeners. A stopped listener is never called again,
        even during a delivery. The returned function may be called twice.
        """
        ...

    async def listening(self, stream: str) -> None:
        """Return when entries that any worker appends from now on reach the listeners of this stream."""


class Backend(Protocol):
    """What a store keeps, for one worker and one event loop. This is the interface to implement for a new store."""

    @property
    def shared(self) -> bool:
        """Whether other workers see what this one writes. If not, no worker needs leases or messages."""
        ...

    @property
    def lease(self) -> float:
        """Seconds after which a worker that doesn't renew its lease counts as dead."""
        ...

    @property
    def lasting(self) -> bool:
        """Whether paces (`charge`) survive the end of all workers."""
        ...

    @property
    def epoch(self) -> str:
        """Identify the data: 1 to 16 visible ASCII characters, known once open, and new whenever data may be lost.

        Positions that the store returns carry it.
        """
        ...

    @property
    def log(self) -> Log: ...

    @property
    def kv(self) -> Map: ...

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` in the loop whenever `epoch` has changed; return a function that stops it.

        Before that, the store calls `interrupted` of all listeners.
        """
        ...

    def time(self) -> float:
        """Return Unix time by one clock for all workers, give or take a round trip. It doesn't wait."""
        ...

    async def degraded_reason(self) -> str:
        """Return why the store may lose what it's given although it answers, or an empty text."""
        ...

    async def open(self) -> None:
        """Connect. Nothing else is called before.

        Raises:
            LocalError: the store can't be reached or used. `open` may be called again.
        """

    async def close(self) -> None:
        """Release connections and tasks, and stop all listeners. Data stay, and `open` may follow. Idempotent."""

    async def bind(self, worker: str) -> None:
        """Tie this connection to a worker. Return at once unless the store can tell when the connection ends.

        Such a store calls `millstream._stores.workers.expire` then, so the others needn't wait for the lease to end.
        """

    async def charge(self, worker: str, charges: Sequence[Charge], gone: Collection[str]) -> ChargeResults:
        """Take from every limit if each has enough, else from none, in one atomic step for all workers.

        The keys of one call are distinct. A charge above the whole count waits until the whole count is free. Taking a
        seat that the worker has already changes nothing. Seats of the workers in `gone` are free. If this raises, the
        charges may have been taken or not.

        Quotas live as long as values of `kv`. Paces and seats may start over when the store is opened again or loses
        data. A store with very many paces may forget the oldest ones of the most frequent kind: `ChargeResults.forgot`.

        Raises:
            StoreUnavailable: the store didn't answer in time.
        """
        ...

    async def release(self, worker: str, seats: Sequence[Seat]) -> None:
        """Give seats back. A seat that the worker doesn't have isn't an error.

        Raises:
            StoreUnavailable: the store didn't answer in time. Call it again.
        """


# What `millstream._stores.store` builds on a backend.


class Bus(Protocol):
    """Messages to the workers that are open now.

    A message reaches each subscriber once, in an order that is the same for all workers. After an outage it may come
    late; if it was lost, `interrupted` says so. A worker that opens later doesn't get it. Data that must not be lost
    belong in the map or in a log, and the message says that they are there.
    """

    async def send(self, worker: str, topic: str, data: bytes) -> bool:
        """Send to the subscribers of one worker, in the order of sending. Return False if that worker is gone."""
        ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Send to all subscribers of the topic, those of this worker included."""

    def subscribe(
        self, topic: str, receive: Callable[[bytes], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """Call `receive` in the event loop for every message from now on, and return a function that stops it.

        `interrupted` is called after messages may have been lost: reload then what they would have changed. Callbacks
        neither block nor raise; they may subscribe and stop. A stopped one is never called again.
        """
        ...


class Members(Protocol):
    """Groups of members, each held by the workers that it's connected to.

    Exactly one worker announces the first arrival of a member, and one the last departure. If a worker dies between a
    change and its announcement, the announcement may be missing; after a failed append it may be late or doubled.
    """

    async def join(self, group: str, member: str, value: bytes, told: CoAppend) -> tuple[bytes, Position | None]:
        """Hold a member for this worker. If it's new in the group, append `told` and return its position, else None.

        The value of the first worker stands, and is returned. A worker that joins after all others of the member have
        died, but before `abandoned` returned the member, takes it over without an announcement.
        """
        ...

    async def leave(self, group: str, member: str, told: CoAppend) -> Position | None:
        """Release a member. If no other worker holds it, it's gone: append `told` and return its position."""
        ...

    async def present(self, group: str) -> list[tuple[str, bytes]]:
        """Return the members of a group and their values, in no order."""
        ...

    async def abandoned(self) -> list[tuple[str, str, bytes]]:
        """Remove the members that only dead workers held, and return (group, member, value) of each.

        Of all workers exactly one gets a member, and announces that it left.
        """
        ...


class Workers(Protocol):
    """The workers that share the store. Each has a lease, which the store renews while it's open.

    A worker whose lease ended while it was stopped gets a new name, and everything under the old one is void.
    """

    @property
    def me(self) -> str:
        """The name of this worker: 12 lowercase hexadecimal digits, known once open, and never used again."""
        ...

    @property
    def lease(self) -> float:
        """Seconds after which a dead worker counts as gone."""
        ...

    async def alive(self, worker: str) -> bool:
        """Return whether a worker has a lease."""
        ...

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` after workers came or went, or this one got a new name; return a function that stops it."""
        ...


class Store(Protocol):
    """A backend and what is built on it. For one event loop."""

    @property
    def epoch(self) -> str: ...

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]: ...

    def time(self) -> float: ...

    async def degraded_reason(self) -> str: ...

    @property
    def shared(self) -> bool: ...

    @property
    def kv(self) -> Map: ...

    @property
    def log(self) -> Log: ...

    @property
    def bus(self) -> Bus: ...

    @property
    def members(self) -> Members: ...

    @property
    def workers(self) -> Workers: ...

    @property
    def rates(self) -> Rates: ...

    async def open(self) -> None: ...

    async def close(self) -> None: ...
