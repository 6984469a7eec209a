"""The store in this process: nothing is shared, nothing survives, nothing waits.

No method suspends and there is no timer: what has expired is absent at once, and its memory is given back a few items
at a time by later calls. Values and log are bounded in bytes, keys and overheads included. A full key-value part
refuses (`StoreFull`), since a forgotten tombstone would bring a session back to life; what is as small as a tombstone
has room of its own, so what sessions accumulate cannot keep one out. A full log drops the oldest entries of its largest
streams, whose readers get `Gap`. For one thread.
"""

import secrets
import sys
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import Final

from millstream.stores.base import Entry, Gap, Position, StoreFull

ITEM_BYTES: Final = 200
"""What a key with its value and deadline, or a log entry, takes besides its bytes; rounded up."""
STREAM_BYTES: Final = 600
SWEEP: Final = 16
"""Deadlines looked at in one call: enough to outrun what one call adds, too few to be felt."""
SLACK: Final = 64
MARK_BYTES: Final = 16
"""A value up to this size, such as a tombstone, may use the room that is kept back from larger ones."""
KEPT_BACK: Final = 16
"""One part in so many."""

_DROPPED: Final = Entry(Position("", 0), b"")


class _Deadlines:
    """Which names end when. A heap finds what is due without a walk over the living.

    A moved deadline leaves its heap item where it is: when that comes up, it is put back at the true time. Items of
    names that are gone are thrown out together once they outnumber the living, so the heap stays in proportion.
    """

    __slots__ = ("_heap", "_until")

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def set(self, name: str, deadline: float) -> None:
        known = self._until.get(name)
        self._until[name] = deadline
        if known is None or deadline < known:
            heappush(self._heap, (deadline, name))
            self._compact()

    def passed(self, name: str, now: float) -> bool:
        return self._until[name] <= now

    def forget(self, name: str) -> None:
        del self._until[name]
        if not self._until:
            self._until.clear()  # an emptied dict keeps its table, a cleared one does not
        self._compact()

    def due(self, now: float, look: int = SWEEP) -> Iterable[str]:
        """The names that ended, as far as `look` heap items show them. The caller forgets each of them."""
        heap = self._heap
        if not heap or heap[0][0] > now:
            return ()
        names: dict[str, None] = {}  # a name may have several heap items
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


class MemoryKeyValue:
    """`KeyValue` in a dict."""

    __slots__ = ("_clock", "_deadlines", "_max_bytes", "_values", "size")

    def __init__(self, clock: Callable[[], float], max_bytes: int) -> None:
        # configuration
        self._clock = clock
        self._max_bytes = max_bytes
        # process
        self._values: dict[str, bytes] = {}
        self._deadlines = _Deadlines()
        self.size = 0
        """Bytes held, as they are counted against the bound."""

    async def get(self, key: str) -> bytes | None:
        return self._present(key, self._clock())

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        self._store(key, value, ttl, self._clock())

    async def compare_and_set(self, key: str, expected: bytes | None, value: bytes | None, ttl: float) -> bool:
        now = self._clock()
        present = self._present(key, now)
        if present != expected:
            return False
        if value is not None:
            self._store(key, value, ttl, now)
        elif present is not None:
            self._forget(key)
        return True

    async def delete(self, key: str) -> bool:
        if self._present(key, self._clock()) is None:
            return False
        self._forget(key)
        return True

    async def keys(self, prefix: str) -> list[str]:
        now = self._clock()
        passed = self._deadlines.passed
        return [key for key in self._values if key.startswith(prefix) and not passed(key, now)]

    def _present(self, key: str, now: float) -> bytes | None:
        self._sweep(now)
        value = self._values.get(key)
        if value is not None and self._deadlines.passed(key, now):
            self._forget(key)
            return None
        return value

    def _store(self, key: str, value: bytes, ttl: float, now: float) -> None:
        self._present(key, now)  # an expired value must not be counted
        room = self._max_bytes
        if len(value) > MARK_BYTES:
            room -= room // KEPT_BACK
        if self.size + self._growth(key, value) > room:
            self._sweep(now, sys.maxsize)
            if self.size + self._growth(key, value) > room:
                raise StoreFull(f"The in-memory store holds its {self._max_bytes} bytes and takes no further value.")
        self.size += self._growth(key, value)
        self._values[key] = value
        self._deadlines.set(key, now + ttl)

    def _growth(self, key: str, value: bytes) -> int:
        old = self._values.get(key)
        return len(value) - len(old) if old is not None else len(value) + len(key) + ITEM_BYTES

    def _sweep(self, now: float, look: int = SWEEP) -> None:
        for key in self._deadlines.due(now, look):
            self._forget(key)

    def _forget(self, key: str) -> None:
        self._deadlines.forget(key)
        self.size -= len(self._values.pop(key)) + len(key) + ITEM_BYTES
        if not self._values:
            self._values.clear()


class _Stream:
    """The entries of one stream. Dropped ones stay as a placeholder until they are cut off together."""

    __slots__ = ("entries", "floor", "head", "name", "rank", "size")

    def __init__(self, name: str, floor: int, size: int) -> None:
        self.name = name
        self.entries: list[Entry] = []
        self.head = 0
        """Index of the oldest entry held."""
        self.floor = floor
        """A reader at this offset has missed nothing; one below it may have."""
        self.size = size
        self.rank = 0
        """The length of `size` in bits, when last looked at."""

    def __len__(self) -> int:
        return len(self.entries) - self.head

    def drop_oldest(self) -> int:
        """Drop one entry; returns the bytes that it took."""
        entries, head = self.entries, self.head
        oldest = entries[head]
        entries[head] = _DROPPED
        self.floor = oldest.position.offset
        self.head = head + 1
        if self.head >= SLACK and self.head * 2 >= len(entries):
            del entries[: self.head]
            self.head = 0
        freed = len(oldest.data) + ITEM_BYTES
        self.size -= freed
        return freed


class MemoryLog:
    """`EventLog` in lists.

    One counter numbers the entries of all streams. So a stream that was forgotten and begins again starts above every
    position handed out before, and an old reader is found out without a trace of the old stream being kept.

    A full log takes room from a stream that is the largest to within a factor of two, the one appended to longest ago
    where several are: small streams do not feel large ones. They are kept by the length of their size in bits, so the
    choice costs the same however many there are.
    """

    __slots__ = ("_clock", "_deadlines", "_epoch", "_last", "_latest", "_max_bytes", "_ranks", "_streams", "size")

    def __init__(self, clock: Callable[[], float], max_bytes: int, epoch: str) -> None:
        # configuration
        self._clock = clock
        self._max_bytes = max_bytes
        self._epoch = epoch
        # process
        self._last = 0
        self._streams: dict[str, _Stream] = {}
        # By rank, and in each the one appended to longest ago first. Until room is made, one may have twice the bound.
        self._ranks = [OrderedDict[str, _Stream]() for _ in range(max_bytes.bit_length() + 2)]
        self._latest = ("", "")
        """The two streams appended to last, the newer one behind. Their newest entries stay: who writes an event to
        one stream and a copy to another must still find the first when it reads."""
        self._deadlines = _Deadlines()
        self.size = 0
        """Bytes held, as they are counted against the bound."""

    async def append(self, stream: str, data: bytes, *, ttl: float, max_entries: int) -> Position:
        cost = len(data) + ITEM_BYTES
        if cost + len(stream) + STREAM_BYTES > self._max_bytes:
            raise StoreFull(f"An entry of {len(data)} bytes exceeds the {self._max_bytes} of the in-memory log.")
        now = self._clock()
        held = self._present(stream, now) or self._begin(stream)
        self._last += 1
        position = Position(self._epoch, self._last)
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

    async def read(self, stream: str, after: Position | None, limit: int = 1000) -> Sequence[Entry]:
        held = self._present(stream, self._clock())
        if held is None:
            if after is None:
                return []
            raise Gap(self._epoch, None)
        entries, start = held.entries, held.head
        if after is not None:
            if after.epoch != self._epoch or not held.floor <= after.offset <= entries[-1].position.offset:
                raise Gap(self._epoch, entries[start].position)
            start = bisect_right(entries, after.offset, start, key=_offset)
        return entries[start : start + limit]

    async def trim(self, stream: str) -> None:
        if self._present(stream, self._clock()) is not None:
            self._forget(stream)

    def _present(self, stream: str, now: float) -> _Stream | None:
        for name in self._deadlines.due(now):
            self._forget(name)
        held = self._streams.get(stream)
        if held is not None and self._deadlines.passed(stream, now):
            self._forget(stream)
            return None
        return held

    def _begin(self, stream: str) -> _Stream:
        size = len(stream) + STREAM_BYTES
        held = self._streams[stream] = _Stream(stream, self._last, size)
        self._rank(held)
        self.size += size
        return held

    def _forget(self, stream: str) -> None:
        self._deadlines.forget(stream)
        held = self._streams.pop(stream)
        self._unrank(held)
        self.size -= held.size
        if not self._streams:
            self._streams.clear()

    def _rank(self, held: _Stream) -> None:
        """Put a stream behind the others of its size."""
        held.rank = held.size.bit_length()
        self._ranks[held.rank][held.name] = held

    def _unrank(self, held: _Stream) -> None:
        rank = self._ranks[held.rank]
        del rank[held.name]
        if not rank:
            rank.clear()

    def _make_room(self) -> None:
        """Drop the oldest entry of a largest stream; the stream is forgotten with its only one."""
        held = self._largest()
        if len(held) == 1:
            self._forget(held.name)
        else:
            self.size -= held.drop_oldest()
            if held.size.bit_length() != held.rank:
                self._unrank(held)
                self._rank(held)

    def _largest(self) -> _Stream:
        for rank in reversed(self._ranks):
            for held in rank.values():  # at most two are passed over
                if len(held) > 1 or held.name not in self._latest:
                    return held
        # Two entries are all that is left, and together too large: the newer one stays.
        return self._streams[self._latest[0]]


def _offset(entry: Entry) -> int:
    return entry.position.offset


class _Subscription:
    __slots__ = ("active", "receive")

    def __init__(self, receive: Callable[[bytes], None]) -> None:
        self.receive = receive
        self.active = True


class MemoryBus:
    """`Bus` by plain calls: every subscriber has the message when `publish` returns, so there is no queue to bound."""

    __slots__ = ("_topics",)

    def __init__(self) -> None:
        # Replaced, never changed: a delivery under way keeps walking the tuple it began with.
        self._topics: dict[str, tuple[_Subscription, ...]] = {}

    async def publish(self, topic: str, data: bytes) -> None:
        for subscription in self._topics.get(topic, ()):
            if subscription.active:
                subscription.receive(data)

    def subscribe(
        self, topic: str, receive: Callable[[bytes], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """As `Bus.subscribe`; `interrupted` is never called, for nothing can come between."""
        subscription = _Subscription(receive)
        self._topics[topic] = (*self._topics.get(topic, ()), subscription)

        def unsubscribe() -> None:
            if not subscription.active:
                return
            subscription.active = False
            others = tuple(other for other in self._topics[topic] if other is not subscription)
            if others:
                self._topics[topic] = others
            else:
                del self._topics[topic]

        return unsubscribe

    def end_all(self) -> None:
        for subscriptions in self._topics.values():
            for subscription in subscriptions:
                subscription.active = False
        self._topics.clear()


class MemoryStore:
    """The store of one process. Its data live as long as the object, also when it is closed and opened again."""

    __slots__ = ("bus", "epoch", "kv", "log", "shared")

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        epoch: str = "",
        max_value_bytes: int = 64 * 1024 * 1024,
        max_log_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self.epoch = epoch or secrets.token_hex(6)
        self.shared = False
        self.kv = MemoryKeyValue(clock, max_value_bytes)
        self.log = MemoryLog(clock, max_log_bytes, self.epoch)
        self.bus = MemoryBus()

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        self.bus.end_all()
