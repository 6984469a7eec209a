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

from msgspec import Struct, field

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
from millstream._stores.tail import Topics, channel_for, channels_for

SWEEP = 16
"""Heap items examined per call: more than one call adds, few enough to be cheap."""
SLACK = 64

Name = TypeVar("Name", str, int)


class ExpiryHeap(Generic[Name]):
    """Deadlines by name, in a heap that finds expired names without a scan.

    Moving a deadline leaves its heap item in place; the item is reinserted with the new deadline when it comes up.
    Stale items are removed together once they outnumber the live ones, which bounds the size of the heap.
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
        """Remove a name."""
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
REPEATED = "The stream has an entry with this id."

_REMOVED = Entry(Position("", 0), b"")
_INTERRUPT_PREFIX = "\0"
"""Prefix that turns a stream's name into the topic for its `interrupted` callbacks."""


class Stream(Struct, eq=False):
    """The entries of one stream. Dropped entries leave placeholders, which are removed in batches."""

    name: str
    floor: int
    """The lowest offset from which a reader can continue without a gap."""
    last: int
    """The offset of the newest entry."""
    size: int
    entries: list[Entry] = []
    head: int = 0
    """Index of the oldest entry held."""
    rank: int = 0
    """The bit length of `size` when it was last ranked."""
    sealed: bool = False

    def __len__(self) -> int:
        return len(self.entries) - self.head

    def drop_oldest(self) -> int:
        """Drop one entry. Return its size in bytes."""
        entries, head = self.entries, self.head
        oldest = entries[head]
        entries[head] = _REMOVED
        self.floor = oldest.position.offset
        self.head = head + 1
        if self.head >= SLACK and self.head * 2 >= len(entries):
            del entries[: self.head]
            self.head = 0
        freed = len(oldest.data) + ITEM_BYTES
        self.size -= freed
        return freed


class StreamKind(Struct, eq=False):
    """The streams of one kind.

    A stream begins above every offset that any stream of the kind has used, with a hole in between. A dropped stream
    that begins again therefore reuses no offset, and its old readers get `Gap`, although nothing is stored about it.

    A full kind drops entries of a stream that is the largest to within a factor of two, so large streams don't crowd
    out small ones. Among several, it takes the least recently appended one. Streams are grouped by the bit length of
    their size, so the choice takes constant time.
    """

    _clock: Callable[[], float]
    _max_bytes: int
    _epoch: str
    _dropped: Callable[[str], None]
    highest: int = -1
    """The highest offset of any stream."""
    streams: dict[str, Stream] = {}
    _ranks: list[OrderedDict[str, Stream]] = []
    """By rank, least recently appended first. A stream may reach twice the bound until room is made."""
    _latest: tuple[str, str] = ("", "")
    """The last two streams appended to, newest last. Their newest entries stay, so an event and its copy in a
    second stream can both be read."""
    _deadlines: ExpiryHeap[str] = field(default_factory=ExpiryHeap)
    size: int = 0
    """Stored bytes, as counted against the bound."""

    def __post_init__(self) -> None:
        self._ranks = [OrderedDict() for _ in range(self._max_bytes.bit_length() + 2)]

    def append(
        self, stream: str, data: bytes, *, ttl: float, max_entries: int, at: int | None = None, seal: bool = False
    ) -> Position:
        """Append an entry, like `Log.append`. In an index, `at` is the entry's offset in the first stream."""
        cost = len(data) + ITEM_BYTES
        if cost + len(stream) + STREAM_BYTES > self._max_bytes:
            raise StoreFull(f"An entry of {len(data)} bytes exceeds the {self._max_bytes} bytes of the in-memory log.")
        now = self._clock()
        held = self._present(stream, now) or self._begin(stream, at)
        if held.sealed:
            raise StreamSealed("The stream has ended.")
        held.sealed = seal
        held.last = held.last + 1 if at is None else at
        self.highest = max(self.highest, held.last)
        position = Position(self._epoch, held.last)
        held.entries.append(Entry(position, data))
        held.size += cost
        self.size += cost
        self._deadlines.set(stream, now + ttl)
        while len(held) > max_entries:
            self.size -= held.drop_oldest()
        self._unrank(held)
        self._rank(held)
        if self._latest[1] != stream:
            self._latest = (self._latest[1], stream)
        while self.size > self._max_bytes:
            self._make_room()
        return position

    def read(self, stream: str, after: Position | None, limit: int, max_bytes: int) -> Sequence[Entry]:
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

    def newest(self, stream: str, limit: int, max_bytes: int) -> Sequence[Entry]:
        held = self._present(stream, self._clock())
        if held is None:
            return []
        page = held.entries[max(held.head, len(held.entries) - limit) :]
        return page if held.size <= max_bytes else within(reversed(page), max_bytes)[::-1]

    def touch(self, stream: str, ttl: float) -> bool:
        now = self._clock()
        if self._present(stream, now) is None:
            return False
        self._deadlines.set(stream, now + ttl)
        return True

    def trim(self, stream: str) -> None:
        if self._present(stream, self._clock()) is not None:
            self._forget(stream)

    def sweep(self, now: float) -> None:
        """Drop some of the expired streams."""
        for name in self._deadlines.due(now):
            self._forget(name)

    def _present(self, stream: str, now: float) -> Stream | None:
        self.sweep(now)
        held = self.streams.get(stream)
        if held is not None and self._deadlines.has_expired(stream, now):
            self._forget(stream)
            return None
        return held

    def _begin(self, stream: str, at: int | None) -> Stream:
        size, floor = len(stream) + STREAM_BYTES, self.highest + 1 if at is None else at - 1
        held = self.streams[stream] = Stream(stream, floor, floor, size)
        self._rank(held)
        self.size += size
        return held

    def _forget(self, stream: str) -> None:
        self._dropped(stream)
        self._deadlines.forget(stream)
        held = self.streams.pop(stream)
        self._unrank(held)
        self.size -= held.size
        if not self.streams:
            self.streams.clear()

    def _rank(self, held: Stream) -> None:
        """Move a stream to the end of its size group."""
        held.rank = held.size.bit_length()
        self._ranks[held.rank][held.name] = held

    def _unrank(self, held: Stream) -> None:
        rank = self._ranks[held.rank]
        del rank[held.name]
        if not rank:
            rank.clear()

    def _make_room(self) -> None:
        """Drop the oldest entry of one of the largest streams. Drop the stream with its only entry."""
        held = self._largest()
        if len(held) == 1:
            self._forget(held.name)
        else:
            self.size -= held.drop_oldest()
            if held.size.bit_length() != held.rank:
                self._unrank(held)
                self._rank(held)

    def _largest(self) -> Stream:
        for rank in reversed(self._ranks):
            for held in rank.values():  # skips at most two
                if len(held) > 1 or held.name not in self._latest:
                    return held
        # Only two entries are left and together too large: keep the newer one.
        return self.streams[self._latest[0]]


class MemoryLog:
    """A `Log` in lists, with a byte limit for each kind of stream."""

    def __init__(
        self,
        clock: Callable[[], float],
        max_bytes: int,
        epoch: str,
    ) -> None:
        # configuration
        self._clock = clock
        self._epoch = epoch
        self.max_bytes = max_bytes
        """Maximum bytes of one kind."""
        # process
        self.kinds: dict[str, StreamKind] = {}
        """Streams by kind. There are few kinds, because the program chooses them, not its clients."""
        self.listeners = Topics[Entry]()
        self._once: dict[tuple[str, str], tuple[float, str]] = {}
        """Text that entries must not repeat -> when that ends, and its owner. Oldest first."""
        self._once_by_owner: defaultdict[str, dict[tuple[str, str], None]] = defaultdict(dict)

    @property
    def size(self) -> int:
        """Total stored bytes of all kinds."""
        return sum(kind.size for kind in self.kinds.values())

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
        now = self._clock()
        for each in self.kinds.values():  # unused kinds must free their space, too
            each.sweep(now)
        key = (stream, once)
        while self._once and next(iter(self._once.values()))[0] <= now:
            self._forget_once(next(iter(self._once)))
        if once and key in self._once:
            raise EntryRepeated(REPEATED)
        position = self.kind(stream).append(stream, data, ttl=ttl, max_entries=max_entries, seal=seal)
        if index is not None:
            with suppress(StoreFull):
                self.kind(index.stream).append(
                    index.stream, data, ttl=index.ttl, max_entries=index.max_entries, at=position.offset
                )
        if once:
            held = self._once_by_owner.get(owner, {})
            while held and (len(held) >= _MAX_ONCE // PART or len(self._once) >= _MAX_ONCE):
                self._forget_once(next(iter(held)))
            if len(self._once) < _MAX_ONCE:
                self._once[key], self._once_by_owner[owner][key] = (now + ONCE_SECONDS, owner), None
        entry = Entry(position, data)
        for channel in channels_for(stream, topic):
            self.listeners.notify(channel, entry)
        return position

    def listen(
        self,
        stream: str,
        hear: Callable[[Entry], None],
        *,
        interrupted: Callable[[], None] | None = None,
        topic: str | None = None,
    ) -> Callable[[], None]:
        """Call `hear` with each entry, like `Log.listen`. Only dropping a stream interrupts its listeners."""
        stop_hearing = self.listeners.add(channel_for(stream, topic), hear)
        if interrupted is None:
            return stop_hearing
        stop_watching = self.listeners.add(_INTERRUPT_PREFIX + stream, lambda _: interrupted())

        def stop() -> None:
            stop_hearing()
            stop_watching()

        return stop

    async def wait_until_listening(self, stream: str) -> Position | None:
        newest = await self.newest(stream, 1)
        return newest[0].position if newest else None

    def _forget_once(self, key: tuple[str, str]) -> None:
        _, owner = self._once.pop(key)
        del self._once_by_owner[owner][key]
        if not self._once_by_owner[owner]:
            del self._once_by_owner[owner]

    def _drop(self, stream: str) -> None:
        self.listeners.notify(_INTERRUPT_PREFIX + stream, _REMOVED)

    def end_all(self) -> None:
        """Remove all listeners."""
        self.listeners.clear()

    def kind(self, stream: str) -> StreamKind:
        """Return the kind of a stream."""
        name = kind_of(stream)
        kind = self.kinds.get(name)
        if kind is None:
            kind = self.kinds[name] = StreamKind(self._clock, self.max_bytes, self._epoch, self._drop)
        return kind

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        kind = self.kinds.get(kind_of(stream))
        if kind is not None:
            return kind.read(stream, after, limit, max_bytes)
        if after is not None:
            raise Gap(self._epoch, None)
        return []

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        kind = self.kinds.get(kind_of(stream))
        return [] if kind is None else kind.newest(stream, limit, max_bytes)

    async def touch(self, stream: str, ttl: float) -> bool:
        kind = self.kinds.get(kind_of(stream))
        return kind is not None and kind.touch(stream, ttl)

    async def trim(self, stream: str) -> None:
        kind = self.kinds.get(kind_of(stream))
        if kind is not None:
            kind.trim(stream)


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
