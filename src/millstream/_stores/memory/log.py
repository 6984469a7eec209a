"""The event log of the in-memory store, and the expiry of its streams and values.

Streams are lists, bounded in bytes including overhead. Each kind of stream has its own space. A full kind drops the
oldest entries of its largest streams, whose readers get `Gap`.
"""

from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from msgspec import Struct

from millstream._stores.base import (
    ONCE_SECONDS,
    PAGE_BYTES,
    Entry,
    EntryRepeated,
    Gap,
    Index,
    Position,
    StoreFull,
    StreamSealed,
)
from millstream._stores.rates import PART
from millstream._stores.tail import Listeners

SWEEP = 16
"""Maximum heap items examined per call. Must exceed the number that one call adds."""
SLACK = 64

Name = TypeVar("Name", str, int)


def exact(data: bytes) -> bytes:
    """Copy bytes, because msgspec's encoders allocate up to half as much again."""
    return bytes(memoryview(data))


class ExpiryHeap(Generic[Name]):
    """Deadlines by name, in a heap that finds expired names without a scan.

    Moving a deadline leaves its heap item in place. The item is reinserted with the new deadline when it comes up.
    Stale items are removed together when they outnumber the live ones, which bounds the size of the heap.
    """

    def __init__(self) -> None:
        self._until: dict[Name, float] = {}
        self._heap: list[tuple[float, Name]] = []

    def set(self, name: Name, deadline: float) -> None:
        """Set or change the deadline of a name."""
        known = self._until.get(name)
        self._until[name] = deadline
        if known is None or deadline < known:
            heappush(self._heap, (deadline, name))
            self._compact()

    def has_expired(self, name: Name, now: float) -> bool:
        """Return whether the deadline of a name has passed."""
        return self._until[name] <= now

    def expires_at(self, name: Name) -> float:
        """Return the expiry time of a name."""
        return self._until[name]

    def forget(self, name: Name) -> None:
        """Remove a name and its expiry time."""
        del self._until[name]
        if not self._until:
            self._until.clear()  # frees the table, which an emptied dict keeps
        self._compact()

    def due(self, now: float, look: int = SWEEP) -> Iterable[Name]:
        """Return expired names among the first `look` heap items. The caller must `forget` each of them."""
        heap = self._heap
        if not heap or heap[0][0] > now:
            return ()
        names: dict[Name, None] = {}  # a name may have several heap items
        while heap and heap[0][0] <= now and look > 0:
            look -= 1
            name = heappop(heap)[1]
            deadline = self._until.get(name)
            if deadline is None:
                continue
            if deadline <= now:
                names[name] = None
            else:
                heappush(heap, (deadline, name))
        return names

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._until) + SLACK:
            self._heap = [(deadline, name) for name, deadline in self._until.items()]
            heapify(self._heap)


ITEM_BYTES = 200
"""Overhead of a log entry, or of a key with its value and deadline, rounded up."""
STREAM_BYTES = 600
_MAX_ONCE = 100_000
REPEATED = "The stream already has an entry with this id."

_REMOVED = Entry(Position("", 0), b"")


class Stream(Struct, eq=False):
    """The entries of one stream. Dropped entries leave placeholders, which are removed in batches."""

    name: str
    kind: "StreamKind"
    floor: int
    """The lowest offset from which a reader can continue without a gap."""
    last: int
    """The offset of the newest entry."""
    size: int = 0
    entries: list[Entry] = []
    head: int = 0
    """Index of the oldest entry held."""
    rank: int = 0
    """The bit length of `size` when it was last ranked."""
    sealed: bool = False

    def __len__(self) -> int:
        return len(self.entries) - self.head

    def grow(self, size: int) -> None:
        """Add to the counted bytes of the stream and its kind."""
        self.size += size
        self.kind.size += size

    def drop_oldest(self) -> None:
        """Drop one entry."""
        entries, head = self.entries, self.head
        oldest = entries[head]
        entries[head] = _REMOVED
        self.floor = oldest.position.offset
        self.head = head + 1
        if self.head >= SLACK and self.head * 2 >= len(entries):
            del entries[: self.head]
            self.head = 0
        self.grow(-len(oldest.data) - ITEM_BYTES)


class StreamKind(Struct, eq=False):
    """The streams of one kind and the space that they use.

    A stream begins above every offset that any stream of the kind has used, with a hole in between. A dropped stream
    that begins again therefore reuses no offset, and its old readers get `Gap`, although nothing is stored about it.

    A full kind drops entries of a stream that is the largest to within a factor of two, so large streams don't crowd
    out small ones. Among several, it takes the least recently appended one. Streams are grouped by the bit length of
    their size, so the choice takes constant time.
    """

    ranks: list[OrderedDict[str, Stream]]
    """Streams by rank, least recently appended first. A stream may reach twice the limit before entries are dropped."""
    highest: int = -1
    """The highest offset of any stream."""
    latest: tuple[str, str] = ("", "")
    """The last two streams appended to, newest last. Their newest entries stay, so an event and its copy in a
    second stream can both be read."""
    size: int = 0
    """Stored bytes, as counted against the bound."""

    def rank(self, held: Stream) -> None:
        """Move a stream to the end of its size group."""
        self.unrank(held)
        held.rank = held.size.bit_length()
        self.ranks[held.rank][held.name] = held

    def unrank(self, held: Stream) -> None:
        """Remove a stream from its size group."""
        rank = self.ranks[held.rank]
        rank.pop(held.name, None)
        if not rank:
            rank.clear()


class MemoryLog(Listeners[Entry]):
    """A `Log` in lists, with a byte limit for each kind of stream. Only dropping a stream interrupts its listeners."""

    def __init__(self, clock: Callable[[], float], max_bytes: int, epoch: str) -> None:
        super().__init__()
        self._clock = clock
        self._epoch = epoch
        self.max_bytes = max_bytes
        """Maximum bytes per kind."""
        self.kinds: defaultdict[str, StreamKind] = defaultdict(
            lambda: StreamKind([OrderedDict() for _ in range(max_bytes.bit_length() + 2)])
        )
        """The streams by kind. There are few kinds, because the program chooses them, not its clients."""
        self._streams: dict[str, Stream] = {}
        self._deadlines = ExpiryHeap[str]()
        self._once: dict[tuple[str, str], tuple[float, str]] = {}
        """Text that entries must not repeat -> when that expires, and its owner. Oldest first."""
        self._once_by_owner: defaultdict[str, dict[tuple[str, str], None]] = defaultdict(dict)

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
        now, key = self._clock(), (stream, once)
        while self._once and next(iter(self._once.values()))[0] <= now:
            self._forget_once(next(iter(self._once)))
        if once and key in self._once:
            raise EntryRepeated(REPEATED)
        data = exact(data)
        entry = self._append(stream, data, ttl, max_entries, now, seal=seal)
        if index is not None:
            with suppress(StoreFull):
                self._append(index.stream, data, index.ttl, index.max_entries, now, at=entry.position.offset)
        if once:
            held = self._once_by_owner.get(owner, {})
            while held and (len(held) >= _MAX_ONCE // PART or len(self._once) >= _MAX_ONCE):
                self._forget_once(next(iter(held)))
            if len(self._once) < _MAX_ONCE:
                self._once[key], self._once_by_owner[owner][key] = (now + ONCE_SECONDS, owner), None
        self.push(stream, topic, entry)
        return entry.position

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        held = self._present(stream, self._clock())
        if held is None:
            if after is None:
                return []
            raise Gap(self._epoch, None)
        entries, start = held.entries, held.head
        if after is not None:
            if after.epoch != self._epoch or not held.floor <= after.offset <= held.last:
                raise Gap(self._epoch, entries[start].position, entries[-1].position)
            start = bisect_right(entries, after.offset, start, key=_offset)
        page = entries[start : start + limit]
        return page if held.size <= max_bytes else within(page, max_bytes)

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        held = self._present(stream, self._clock())
        if held is None:
            return []
        page = held.entries[max(held.head, len(held.entries) - limit) :]
        return page if held.size <= max_bytes else within(reversed(page), max_bytes)[::-1]

    async def touch(self, stream: str, ttl: float) -> bool:
        now = self._clock()
        if self._present(stream, now) is None:
            return False
        self._deadlines.set(stream, now + ttl)
        return True

    async def trim(self, stream: str) -> None:
        if self._present(stream, self._clock()) is not None:
            self._forget(stream)

    async def wait_until_listening(self, stream: str) -> Position | None:
        held = self._present(stream, self._clock())
        return None if held is None else held.entries[-1].position

    def _append(
        self,
        stream: str,
        data: bytes,
        ttl: float,
        max_entries: int,
        now: float,
        *,
        seal: bool = False,
        at: int | None = None,
    ) -> Entry:
        """Append an entry. In an index, `at` is the entry's offset in the first stream."""
        cost = len(data) + ITEM_BYTES
        if cost + len(stream) + STREAM_BYTES > self.max_bytes:
            raise StoreFull(
                f"The entry is {len(data)} bytes, but the in-memory log is limited to {self.max_bytes} bytes."
            )
        held = self._present(stream, now)
        if held is None:
            kind = self.kinds[kind_of(stream)]
            floor = kind.highest + 1 if at is None else at - 1
            held = self._streams[stream] = Stream(stream, kind, floor, floor)
            held.grow(len(stream) + STREAM_BYTES)
        if held.sealed:
            raise StreamSealed("The stream has ended.")
        kind = held.kind
        held.sealed = seal
        held.last = held.last + 1 if at is None else at
        kind.highest = max(kind.highest, held.last)
        entry = Entry(Position(self._epoch, held.last), data)
        held.entries.append(entry)
        held.grow(cost)
        self._deadlines.set(stream, now + ttl)
        while len(held) > max_entries:
            held.drop_oldest()
        kind.rank(held)
        if kind.latest[1] != stream:
            kind.latest = (kind.latest[1], stream)
        while kind.size > self.max_bytes:
            self._make_room(kind)
        return entry

    def _present(self, stream: str, now: float) -> Stream | None:
        for name in self._deadlines.due(now):
            self._forget(name)
        held = self._streams.get(stream)
        if held is not None and self._deadlines.has_expired(stream, now):
            self._forget(stream)
            return None
        return held

    def _forget(self, stream: str) -> None:
        self.interrupt(stream)
        self._deadlines.forget(stream)
        held = self._streams.pop(stream)
        held.kind.unrank(held)
        held.grow(-held.size)
        if not self._streams:
            self._streams.clear()  # frees the table, which an emptied dict keeps

    def _make_room(self, kind: StreamKind) -> None:
        """Drop the oldest entry of one of the largest streams. If it's the only one, drop the stream."""
        every = (held for rank in reversed(kind.ranks) for held in rank.values())
        held = next(
            (held for held in every if len(held) > 1 or held.name not in kind.latest), None
        )  # skips at most two
        if held is None:  # only two entries are left, and they're too large together: keep the newer one
            held = self._streams[kind.latest[0]]
        if len(held) == 1:
            self._forget(held.name)
            return
        held.drop_oldest()
        if held.size.bit_length() != held.rank:
            kind.rank(held)

    def _forget_once(self, key: tuple[str, str]) -> None:
        _, owner = self._once.pop(key)
        del self._once_by_owner[owner][key]
        if not self._once_by_owner[owner]:
            del self._once_by_owner[owner]


def kind_of(name: str) -> str:
    """Return the kind of a stream or key: the text before its first colon."""
    kind, colon, _ = name.partition(":")
    return kind if colon else ""


def _offset(entry: Entry) -> int:
    return entry.position.offset


def within(entries: Iterable[Entry], max_bytes: int) -> list[Entry]:
    """Return the first entries, up to the one that reaches `max_bytes`."""
    found: list[Entry] = []
    for entry in entries:
        found.append(entry)
        max_bytes -= len(entry.data)
        if max_bytes <= 0:
            break
    return found
