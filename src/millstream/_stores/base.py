"""What a store is: values with expiry, event log with positions, bus, and who shares it. All on `bytes`, whose meaning
no store knows.

The docstrings are the contract: ordering, atomicity, loss, and what ``None`` means. The contract tests in
``tests/stores`` run against every implementation. A caller may rely on nothing that is not written here, even where
one store happens to give more.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._stores.rates import Rates

PAGE_BYTES: Final = 4 * 1024 * 1024
"""What one read of a stream brings at most, give or take one entry."""

MAX_OFFSET: Final = 2**63 - 1
_MAX_DIGITS: Final = len(str(MAX_OFFSET))


class Position(Struct, frozen=True, gc=False, array_like=True):
    """A place in one stream of an `EventLog`: just behind the entry that has it.

    Offsets of one stream and epoch are dense: each append takes the one after the last. So a hole between two entries
    that were read, or between a message of the bus and what was read, is a loss, and the only sure sign of one. A
    stream that was forgotten begins again with offsets that it never had in this epoch.
    """

    epoch: str
    """The epoch of the stream. Parts of a store may lose data separately: compare it with what this stream gave out
    before, not with `Store.epoch`."""
    offset: int
    """From 1 to `MAX_OFFSET`."""


def read_offset(digits: str) -> int | None:
    """The offset that a peer gives back in the digits of an id; None for what can be none."""
    if not digits.isascii() or not digits.isdigit() or len(digits) > _MAX_DIGITS:
        return None
    offset = int(digits)
    return offset if offset <= MAX_OFFSET else None


class Entry(Struct, frozen=True, gc=False, array_like=True):
    """One appended value."""

    position: Position
    data: bytes


class Gap(Exception):
    """`EventLog.read` cannot continue from the given position: entries after it are gone, or may be.

    To go on, tell the reader that it missed something and read behind `resume_from`.
    """

    def __init__(self, epoch: str, oldest: Position | None, newest: Position | None = None) -> None:
        super().__init__("The stream cannot be read from this position.")
        self.epoch = epoch
        """The epoch of the stream now."""
        self.oldest = oldest
        """The position of the oldest entry still held, or None when the stream holds nothing."""
        self.newest = newest
        """That of the newest one. Where a reader is ahead of it, the stream lost its tail, and goes on from here."""

    def resume_from(self, after: Position | None) -> Position | None:
        """Where a reader that stood at `after` goes on: it skips nothing that is left and repeats nothing it had."""
        newest = self.newest
        if after is None or newest is None or after.epoch != newest.epoch or after.offset <= newest.offset:
            return None
        return newest


class StoreFull(LocalError):
    """The store refuses a value because it would exceed its bound. Nothing was changed."""


class ShareFull(StoreFull):
    """The store refuses a value because its share would exceed its part of the room. Nothing was changed."""


class StoreUnavailable(LocalError):
    """The store didn't answer in time. What was asked may have been done or not; an append is never done twice."""


class Sealed(LocalError):
    """The stream has its last entry. Nothing was added."""


class Index(Struct, frozen=True, gc=False, array_like=True):
    """A second stream that keeps an appended entry, under the position that it has in the first.

    Its positions grow but aren't dense, so nobody follows it: it is for reading what the first one has dropped.
    """

    stream: str
    ttl: float
    max_entries: int


class Told(Struct, frozen=True, gc=False, array_like=True):
    """An entry that is appended together with a change of members, or not at all."""

    stream: str
    data: bytes
    ttl: float
    max_entries: int


class KeyValue(Protocol):
    """Values under a key, each with a time to live.

    Each method is atomic for its key, and the operations on one key have one order that all workers see: a `get` that
    starts after a write has returned sees that write or a later one. Nothing is promised across keys. A value is never
    lost before its time, except with the store's epoch, or when it was written as `lossy`. `ttl` is in seconds,
    positive and finite; an expired value is absent for every method.

    The kind of a key is its name in front of the first colon. Each kind has room of its own, so whoever fills one
    keeps nobody out of another. A full kind refuses; a lossy value instead takes the place of those lossy values of
    its kind that were written the longest ago. A program writes all values of a kind as lossy, or none. A share of a
    kind (`share_of`) has half of its room at most; a value that doesn't grow, or is a mark, is taken all the same.
    """

    async def get(self, key: str) -> bytes | None:
        """The value, or None when the key is absent."""
        ...

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of several keys, in their order: as many `get`, in one round trip where they are together."""
        ...

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        """Set the value whatever was there, and start its time to live again.

        Raises:
            StoreFull: the value does not fit; the old one, if any, stands. `ShareFull` where only its share is full.
        """

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        """Set the value only where the present one equals `expected`; say whether it did.

        ``expected=None`` means that the key must be absent. ``value=None`` means delete, and `ttl` has no meaning then.
        Of several workers that compare with the same value at once, exactly one gets True.

        Raises:
            StoreFull: the comparison held and the value does not fit; the old one, if any, stands.
        """
        ...

    async def delete(self, key: str) -> bool:
        """Remove the key; True when it was present."""
        ...

    async def keys(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix`, in no order.

        It costs a walk over the store: for start-up and for reloading after an interruption. It isn't a snapshot: a key
        that is written or removed meanwhile may be in it or not; every other one is in it exactly once.
        """
        ...


class EventLog(Protocol):
    """Streams of entries that can be read again from a position.

    All workers see the entries of one stream in one order, the order of their offsets. Nothing is promised across
    streams. What is gone is never skipped in silence: reading over it raises `Gap`.
    """

    async def append(
        self, stream: str, data: bytes, *, ttl: float, max_entries: int, index: Index | None = None, seal: bool = False
    ) -> Position:
        """Add an entry at the end and return its position; an unknown stream begins with it.

        Atomic: a reader sees the entry whole or not at all, and sees it once this has returned. The stream lives on for
        `ttl` seconds (positive, finite); each append starts that time again for the whole stream. The newest
        `max_entries` (at least 1) are kept; older ones may go at any time. An entry whose append failed may have been
        added or not, but it is never added twice: a store that tries again recognizes what it has.

        Args:
            stream: its name.
            data: the entry.
            ttl: how long the stream lives on.
            max_entries: how many it keeps.
            index: keep the entry there, too: both or none. An index that has no room is left out.
            seal: this is the last entry of the stream. Whoever appends behind it, even a worker that was stopped
                and wakes later, gets `Sealed`.

        The kind of a stream is its name in front of the first colon. Each kind has room of its own: a store that is
        full of one may drop the oldest entries of any stream of that kind, or forget one, and of no other.

        Raises:
            StoreFull: the entry alone is larger than the store allows.
            Sealed: the stream has its last entry already.
            StoreUnavailable: the store didn't answer within the time that it is given.
        """
        ...

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        """The entries behind `after`, oldest first; empty when there are none yet.

        At most `limit` (at least 1), and none behind that with which their data reach `max_bytes`. Fewer than that
        are the last ones. ``after=None`` reads from the oldest entry held, which need not be the first that was
        appended. To go on, pass the position of the last entry got. A stream is unknown before its first append, after
        its `ttl`, after `trim`, and when a full store forgot it: with ``after=None`` it is empty then, with a position
        it is a gap.

        Raises:
            Gap: `after` is of another epoch, entries behind it were dropped, the stream is unknown, or `after` is
                behind the newest entry (it was never handed out, or the store lost its tail).
        """
        ...

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        """The newest entries, oldest first; empty when the stream is unknown.

        At most `limit` (at least 1), and none before that with which their data, counted from the end, reach
        `max_bytes`.
        """
        ...

    async def touch(self, stream: str, ttl: float) -> bool:
        """Start the time of a stream again, as an append does; False when the stream is unknown."""
        ...

    async def trim(self, stream: str) -> None:
        """Forget the stream with all its entries. An unknown stream is not an error."""

    def listen(
        self, stream: str, heard: Callable[[Entry], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """Call `heard` in the event loop with what any worker appends from now on; returns the way to stop.

        A hint, as everything that travels: an entry may come late, twice or, after an interruption, not at all. The
        offsets tell: what is not the next one has to be read (`millstream._stores.follow` does that). Nothing that is
        appended after `listening` has returned is missed without `interrupted`. Listening to a stream that nobody
        appends to costs nothing; what nobody listens to costs its append and no more. Rules as for `Bus.subscribe`.
        """
        ...

    async def listening(self, stream: str) -> None:
        """Return when the appends of every worker are heard here. Reading before it may leave a gap behind the read."""


class Bus(Protocol):
    """Messages to whoever listens now, on this worker and on all others that share the store.

    At most once: a message is lost for a subscriber that is not there, or whose connection is interrupted. Messages of
    one publisher on one topic arrive in the order of their `publish` calls, if each was awaited before the next, and
    those of several publishers in one order everywhere; nothing is promised across topics. What must not be lost
    belongs in the `KeyValue` or the `EventLog`; the bus says that it is there.
    """

    async def send(self, worker: str, topic: str, data: bytes) -> bool:
        """Send to the subscribers that one worker has; False when its lease is over, and then nobody gets it.

        A worker that lives gets what was sent, in the order of sending, also after an interruption of its connection,
        as long as its lease lasts.
        """
        ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Send to every present subscriber of the topic, those of this worker included. None at all is not an error.

        It returns when the message is on its way; subscribers may have got it already, or get it later.
        """

    def subscribe(
        self, topic: str, receive: Callable[[bytes], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """Call `receive` in the event loop for every message published from now on; returns the way to stop.

        `receive` and `interrupted` must neither block nor raise; they may subscribe and unsubscribe. `interrupted` is
        called after messages may have been lost, once the subscription works again: whoever mirrors a state reloads
        it then. The returned function may be called again without effect; after it neither is called any more.
        The same `receive` subscribed twice is called twice.
        """
        ...


class Members(Protocol):
    """Groups of members, each vouched for by the workers where it is.

    A worker vouches with its lease (see `Workers`): for nobody any more when that is over. Each change is atomic for
    its group, so of all workers exactly one sees the first arrival and the last departure of a member.
    """

    async def join(self, group: str, member: str, value: bytes, told: Told) -> tuple[bytes, Position | None]:
        """This worker vouches for a member. When nobody did before, `told` is appended: gives its position, else None.

        The value of whoever vouched first stands, and is given, too. Vouching again for a member isn't an error. A
        worker that joins after the last lease ended, but before `abandoned` gave the member out, takes over silently.
        """
        ...

    async def leave(self, group: str, member: str, told: Told) -> Position | None:
        """This worker vouches no more. When nobody else does, the member is gone and `told` is appended."""
        ...

    async def present(self, group: str) -> list[tuple[str, bytes]]:
        """Members and values of a group for whom somebody vouches, in no order."""
        ...

    async def abandoned(self) -> list[tuple[str, str, bytes]]:
        """(group, member, value) of those for whom only workers without a lease vouched. They are gone from then on;
        each is given to one caller of all workers, once, who tells that it left.
        """
        ...


class Workers(Protocol):
    """Who shares the store. A worker has a lease by the store's clock, which its store renews while it is open.

    A worker whose lease ran out while it was stopped gets a new name: whatever was given to the old one is void.
    """

    @property
    def me(self) -> str:
        """The name of this worker: 12 lowercase hexadecimal digits. Known once opened; no other worker ever has it."""
        ...

    @property
    def lease(self) -> float:
        """Seconds after which a worker that died counts as gone, at most."""
        ...

    async def alive(self, worker: str) -> bool:
        """Whether a worker has its lease."""
        ...

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` in the loop after workers came or went, or this one got a new name; returns how to stop."""
        ...


class Store(Protocol):
    """The parts, opened and closed together. For one event loop, except where an implementation says more."""

    @property
    def epoch(self) -> str:
        """A new one whenever stored data may have been lost: 1 to 16 visible ASCII characters, known once opened."""
        ...

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` in the loop whenever `epoch` has changed while the store is open; returns the way to stop."""
        ...

    def time(self) -> float:
        """Unix time by the clock of the store, the same for all workers but for the length of a round trip. It doesn't
        wait: the difference to this machine's clock is measured now and then.
        """
        ...

    async def doubt(self) -> str:
        """Why it may not keep what it's given although it answers; empty as long as nothing says so."""
        ...

    @property
    def shared(self) -> bool:
        """True when other workers see what this one writes."""
        ...

    @property
    def kv(self) -> KeyValue: ...

    @property
    def log(self) -> EventLog: ...

    @property
    def bus(self) -> Bus: ...

    @property
    def members(self) -> Members: ...

    @property
    def workers(self) -> Workers: ...

    @property
    def rates(self) -> Rates: ...

    async def open(self) -> None:
        """Connect. Call it before anything else.

        Raises:
            LocalError: the store cannot be reached or used; `open` may be tried again.
        """

    async def close(self) -> None:
        """Release connections and tasks, and end all subscriptions. Idempotent.

        Stored data stay, and `open` may follow.
        """
