"""The store contract: a `Backend` keeps bytes in logs and in a map, and `Store` builds everything else on it.

To add a store, write a `Backend`: a `Log`, a `Map`, `charge`, and a handful of small methods. Messages between workers,
leases, presence, and limits are built on these once, in `millstream._stores.store`. The docstrings here are the whole
contract: order, atomicity, loss, and bounds. `tests/stores/test_contract.py` checks them on every backend. Callers
must not rely on anything else, even if one store guarantees more.

Names are text, data are bytes, and stores interpret neither. The one exception is the *kind*, the part of a name before
its first colon. Each kind has its own storage limit, so a full kind doesn't take space from another, except in Redis:
its memory is the only limit of values that are neither lossy nor in a share, and of messages between workers.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from msgspec import Struct

from millstream._copies import CopyableError
from millstream._protocol.errors import LocalError
from millstream._stores.rates import Charge, ChargeResult, ConcurrencySlot

PAGE_BYTES = 4 * 1024 * 1024
"""Approximate maximum bytes returned by one read of a log."""
EPHEMERAL = frozenset({"bus", "inbox", "member", "roster"})
"""Kinds that describe running workers. A store that outlives its workers may keep these in memory."""
INDEX_KINDS = {"mailbox": "hub"}
"""Kind of index -> kind of the streams that it indexes. All other indexes have the kind of their streams."""

ONCE_SECONDS = 120.0
"""Seconds that a stream rejects an entry that repeats another one."""
MAX_OFFSET = 2**63 - 1
_MAX_DIGITS = len(str(MAX_OFFSET))


class Position(Struct, frozen=True, gc=False, array_like=True):
    """The position of an entry in one stream of a `Log`. Reading after a position starts with the next entry.

    Offsets increase within a stream and need not be consecutive. A stream never reuses an offset within an epoch, even
    after it was trimmed or has expired.
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


class Gap(CopyableError):
    """Raised when `Log.read` can't continue from a position, because entries after it may be gone.

    To continue, report the loss to the reader and read after `resume_from`.

    Args:
        epoch: The current epoch of the stream.
        oldest: Position of the oldest remaining entry, or None if the stream is empty.
        newest: Position of the newest entry.
    """

    def __init__(self, epoch: str, oldest: Position | None, newest: Position | None = None) -> None:
        super().__init__("The stream can't be read from this position.")
        self.epoch = epoch
        """The current epoch of the stream."""
        self.oldest = oldest
        """The position of the oldest remaining entry, or None if the stream is empty."""
        self.newest = newest
        """The position of the newest entry."""

    def resume_from(self, after: Position | None) -> Position | None:
        """Return the position to read after, so a reader at `after` neither skips nor repeats a remaining entry.

        Args:
            after: The position that `Log.read` rejected.
        """
        newest = self.newest
        if after is None or newest is None or after.epoch != newest.epoch or after.offset <= newest.offset:
            return None
        return newest


class StoreFull(LocalError):
    """The value exceeds the space left for its kind. Nothing was changed."""


class OwnerQuotaExceeded(StoreFull):
    """The value exceeds the space left for its share (`share_for`). Nothing was changed."""


class StoreUnavailable(LocalError):
    """The store didn't respond in time. The operation may or may not have taken effect."""


class StreamSealed(LocalError):
    """The stream has its last entry. Nothing was appended."""


class EntryRepeated(LocalError):
    """The entry repeats a recent one. Nothing was appended."""


class Index(Struct, frozen=True, gc=False, array_like=True):
    """A second stream that stores entries under their positions in the first stream.

    It's read to find entries that the first stream has dropped. It has no listeners.
    """

    stream: str
    ttl: float
    max_entries: int


class Map(Protocol):
    """Values by key, each with a time to live.

    Operations on one key are linearizable: a `get` that starts after a write has returned sees that write or a later
    one. Operations on different keys have no order. A value lives until its `ttl` ends, unless the store loses data (a
    new `Backend.epoch`) or the value was written as `lossy`. `ttl` is in seconds, positive and finite. An expired
    value is absent for every method.

    A full kind rejects new values with `StoreFull`. A share of a kind (`share_for`) may take half of the kind's space;
    beyond that, writes raise `OwnerQuotaExceeded`. A value that doesn't grow is accepted even then, and so are values
    of at most `MARK_BYTES`, until those of the share and their keys take another sixteenth of the space. A lossy value
    is rejected only if it's too large: it replaces the oldest lossy values of a full share or kind. Within a kind,
    either all values are lossy or none.
    """

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None if the key is absent.

        Args:
            key: The key, whose part before the first colon is its kind.
        """
        ...

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of several keys, in the order of `keys`, in as few round trips as possible.

        Args:
            keys: The keys. An absent one gives None.
        """
        ...

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        """Set the value unconditionally and restart its time to live.

        Args:
            key: The key.
            value: The new value.
            ttl: Seconds until the value expires, positive and finite.
            lossy: Whether the value may be dropped when its kind or share is full.

        Raises:
            StoreFull: The value doesn't fit. The old one is unchanged.
        """

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        """Set the value if the current one equals `expected`. Return whether it did.

        If several workers compare with the same value at once, exactly one succeeds.

        Args:
            key: The key.
            expected: The value that the key must have; None requires that it's absent.
            value: The new value; None deletes the key and ignores `ttl`.
            ttl: Seconds until the value expires, positive and finite.
            lossy: As for `put`.

        Raises:
            StoreFull: The comparison succeeded, but the new value doesn't fit. The old one is unchanged.
        """
        ...

    async def delete(self, key: str) -> bool:
        """Delete the key. Return whether it was present.

        Args:
            key: The key.
        """
        ...

    async def keys(self, prefix: str) -> list[str]:
        """Return all keys that start with `prefix`, in no particular order.

        This may scan the whole store: use it at startup and after failures. A key that is written or deleted during the
        scan may be missing. Every other matching key is returned exactly once, unless NATS has more than 100,000 keys
        of the kind: if some change during the scan, others may be missing or returned twice.

        Args:
            prefix: The beginning of the keys.
        """
        ...


class Log(Protocol):
    """Append-only streams that can be read from any position.

    All workers see the entries of a stream in the order of their offsets. Entries of different streams have no order.
    An acknowledged entry isn't lost silently: reading past a lost one raises `Gap`. The exception is a power loss with
    SQLite's ``durability=normal``, after which offsets are also reused.

    A full kind drops a whole stream, or the oldest entries of any stream.
    """

    async def append(
        self,
        stream: str,
        data: bytes,
        *,
        ttl: float,
        max_entries: int,
        index: Index | None = None,
        seal: bool = False,
        once: str = "",
        owner: str = "",
        topic: str = "",
    ) -> Position:
        """Append an entry and return its position. Create the stream if it doesn't exist.

        Readers see the entry as soon as this returns. Each append restarts the `ttl` of the whole stream. The newest
        `max_entries` entries are kept; older ones may be dropped at any time. An append that fails with
        `StoreUnavailable` may have taken effect, but at most once, even if the store retries internally.

        Args:
            stream: Its name.
            data: The entry.
            ttl: Seconds until the stream expires.
            max_entries: How many entries to keep, at least 1.
            index: Also append the entry to this stream, under the same position. For its kind, see `INDEX_KINDS`.
                Entries reach an index in the order of their positions. A failed append may leave the entry in the
                stream only, never in the index only. An index that is full is skipped.
            seal: This is the last entry. Every later append to the stream raises `StreamSealed`, until it's gone.
            once: If an entry with the same text was appended to the stream within `ONCE_SECONDS`, by any worker,
                append nothing. Empty text never counts as a repeat. A full store may forget texts earlier.
            owner: Owner of `once`, such as a principal. A store never forgets one owner's texts to store another's.
            topic: The subject of the entry, for listeners that don't want all entries. Dots separate segments.

        Raises:
            StoreFull: The entry is larger than the store allows.
            StreamSealed: The stream has its last entry.
            EntryRepeated: The stream has an entry with the same `once`.
            StoreUnavailable: The store didn't respond in time.
        """
        ...

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        """Return the entries after a position, oldest first. The position may lie between two entries.

        If both limits leave space for more, the result ends with the newest entry. A stream is unknown before its
        first append, after its `ttl`, after `trim`, and when a full store dropped it. Reading an unknown stream
        returns nothing with ``after=None`` and raises `Gap` with a position.

        Args:
            stream: Its name.
            after: The position; None reads from the oldest remaining entry.
            limit: Maximum number of entries, at least 1.
            max_bytes: The result ends with the entry that reaches this size.

        Raises:
            Gap: `after` belongs to another epoch, an entry after it was dropped, the stream is unknown, or `after` is
                beyond the newest entry. A store that can't tell for certain that nothing was dropped raises it too.
        """
        ...

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        """Return the newest entries, oldest first, or nothing if the stream is unknown.

        Args:
            stream: Its name.
            limit: Maximum number of entries, at least 1.
            max_bytes: Counted from the end, the result stops at the entry that reaches this size.
        """
        ...

    async def touch(self, stream: str, ttl: float) -> bool:
        """Restart the time to live of a stream, as an append does. Return False if the stream is unknown.

        Args:
            stream: Its name.
            ttl: Seconds until the stream expires.
        """
        ...

    async def trim(self, stream: str) -> None:
        """Drop the stream and all its entries. An unknown stream isn't an error.

        Args:
            stream: Its name.
        """

    def listen(
        self,
        stream: str,
        hear: Callable[[Entry], None],
        *,
        interrupted: Callable[[], None] | None = None,
        topic: str | None = None,
    ) -> Callable[[], None]:
        """Call `hear` in the event loop with each entry that any worker appends. Return a function that stops it.

        Entries arrive in stream order, even those of several topics, without gaps since `wait_until_listening` returned
        or since the last call of `interrupted`. An entry may arrive twice. If the store can't guarantee that (a lost
        connection, a dropped message, an entry out of order), it calls `interrupted` instead, and the listener reads
        the stream. A store that can't push entries at all can call `interrupted` for each append. Use
        `millstream._stores.tail.Tail` as the listener.

        Callbacks must not block or raise. They may add and stop listeners. A stopped listener is never called again,
        even during a delivery. The returned function may be called twice.

        Args:
            stream: Its name.
            hear: Called with each entry.
            interrupted: Called when entries may have been missed.
            topic: Listen only to entries of this topic, or of all topics with this first segment if it ends with a
                dot. A store that can't filter calls `hear` with all entries.
        """
        ...

    async def wait_until_listening(self, stream: str) -> Position | None:
        """Wait until every later append by any worker reaches the listeners of this stream.

        Return a position up to which they have received every entry since they began to listen, at or after every
        append before this call. Return None if the stream is unknown, or if the store can't filter or can't tell. Then
        the listener reads the stream.

        Args:
            stream: Its name.
        """
        ...


class DataSource(Protocol):
    """The common base of a backend and the store on top of it."""

    @property
    def shared(self) -> bool:
        """Whether other workers see the writes of this one. If not, leases and messages aren't needed."""
        ...

    @property
    def epoch(self) -> str:
        """The generation of the data: 1 to 16 visible ASCII characters. It changes whenever data may be lost.

        It's available when the store is open. Positions that the store returns contain it.
        """
        ...

    @property
    def log(self) -> Log: ...

    @property
    def kv(self) -> Map: ...

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` in the event loop whenever `epoch` changes. Return a function that stops it.

        The store calls `interrupted` of all listeners first.

        Args:
            changed: The callback, which must not block or raise.
        """
        ...

    def time(self) -> float:
        """Return the Unix time of a clock that all workers share, within a round trip, without waiting."""
        ...

    async def degraded_reason(self) -> str:
        """Return why the store may lose data although it responds, or an empty string."""
        ...

    async def open(self) -> None:
        """Connect. Call this before any other method.

        Raises:
            LocalError: The store can't be reached or used. `open` may be called again.
        """

    async def close(self) -> None:
        """Release connections and tasks and stop all listeners. Data remain, and `open` may follow. Idempotent."""


class Backend(DataSource, Protocol):
    """The interface to implement for a new store. An instance serves one worker and one event loop.

    `charge`, `Map.compare_and_set`, and `Log.append` to one stream are atomic across all workers. Nothing else is: two
    keys, a key and a stream, or a stream and its index can differ. Callers know that. They store a record before they
    announce it, repeat a comparison that failed with the value that's there now, and let a later look find what an
    index lacks.

    After `StoreUnavailable`, nobody knows whether an operation took effect. A caller reads again before it repeats one,
    gives slots back that it may have taken, and passes `once` where a repeated entry would matter.
    """

    @property
    def lease(self) -> float:
        """Seconds after which a worker that doesn't renew its lease is treated as dead."""
        ...

    async def bind(self, worker: str) -> None:
        """Tie this connection to a worker, if the store can detect when the connection ends.

        Such a store then calls `millstream._stores.workers.expire`, so other workers don't wait for the lease to end.

        Args:
            worker: Id of the worker.
        """

    async def charge(self, worker: str, charges: Sequence[Charge], dead: Collection[str]) -> list[ChargeResult]:
        """Take from every limit if each has enough, else from none, atomically across all workers.

        A charge larger than the limit waits until the whole limit is available. Taking a slot that the worker already
        has changes nothing. If this raises, the charges may or may not have been taken.

        Quotas live as long as values of `kv`. Rates and slots may start over when the store is reopened or loses data.
        A store with very many rates may drop the oldest ones of the most frequent kind.

        Args:
            worker: Id of the worker that takes slots.
            charges: Charges with distinct keys.
            dead: Workers whose slots are free.

        Returns:
            The result of each charge, in order.

        Raises:
            StoreUnavailable: The store didn't respond in time.
        """
        ...

    async def release(self, worker: str, slots: Sequence[ConcurrencySlot]) -> None:
        """Give slots back. A slot that the worker doesn't have isn't an error.

        Args:
            worker: Id of the worker that has them.
            slots: The slots.

        Raises:
            StoreUnavailable: The store didn't respond in time. Call it again.
        """


# `millstream._stores.workers` implements the interface below on a backend.


class Bus(Protocol):
    """Messages between the workers that are currently open.

    A message reaches each subscriber once, in the same order for all workers. After an outage it may arrive late. If it
    was lost, `interrupted` is called. A worker that opens later doesn't receive it. Put data that must not be lost in
    the map or in a log, and send a message to announce it.
    """

    async def send(self, worker: str, topic: str, data: bytes) -> bool:
        """Send to the subscribers of one worker, in order. Return False if that worker is dead.

        Args:
            worker: Name of the worker.
            topic: Topic of the subscribers.
            data: The message.
        """
        ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Send to all subscribers of the topic, including this worker's.

        Args:
            topic: Topic of the subscribers.
            data: The message.
        """

    def subscribe(
        self, topic: str, receive: Callable[[bytes], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """Call `receive` in the event loop for every message from now on. Return a function that stops it.

        Callbacks must not block or raise. They can subscribe and stop. A stopped callback is never called again.

        Args:
            topic: The topic.
            receive: Called with each message.
            interrupted: Called after messages may have been lost: reload the state that they would have changed.
        """
        ...
