"""A third-party store, written from the docstrings of `millstream.stores` alone.

All workers of a test share one `Data`. Offsets come from one counter, so a stream's offsets have gaps. It pushes no
entries to readers, only notifications that there are some.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from itertools import takewhile

from millstream.stores import (
    MARK_BYTES,
    ONCE_SECONDS,
    Entry,
    EntryRepeated,
    Gap,
    Index,
    OwnerQuotaExceeded,
    Position,
    StoreFull,
    StreamSealed,
    UsageCounter,
    owner_for,
)

PAGE_BYTES = 4 * 2**20
MAX_VALUES = 32 * 2**20
MAX_ENTRIES = 64 * 2**20
ENTRY_OVERHEAD = 100


class Stream:
    """The entries of one stream."""

    def __init__(self, floor: int) -> None:
        self.floor = self.last = floor
        """Readers at or after this offset have missed nothing."""
        self.entries: list[Entry] = []
        self.until = 0.0
        self.sealed = False


class Data:
    """Data that the workers share: a `Map` and a `Log`."""

    def __init__(self) -> None:
        self.epoch = secrets.token_hex(4)
        self.values: dict[str, tuple[bytes, float, bool]] = {}
        self.streams: dict[str, Stream] = {}
        self.listeners: dict[str, dict[object, Callable[[], None]]] = {}
        self.offset = 0
        self.once: dict[tuple[str, str], float] = {}

    # As `Map`

    async def get(self, key: str) -> bytes | None:
        await asyncio.sleep(0)  # as a remote store would
        return self._present(key)

    def _present(self, key: str) -> bytes | None:
        value, until, _ = self.values.get(key, (None, 0.0, False))
        return value if until > time.monotonic() else None

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return [await self.get(key) for key in keys]

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        now = time.monotonic()
        self.values = {name: held for name, held in self.values.items() if held[1] > now}
        self._make_room(key, value, lossy)
        self.values.pop(key, None)  # keeps the dict ordered by write time
        self.values[key] = (value, now + ttl, lossy)

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        if self._present(key) != expected:
            return False
        if value is None:
            await self.delete(key)
        else:
            await self.put(key, value, ttl, lossy=lossy)
        return True

    async def delete(self, key: str) -> bool:
        present = self._present(key) is not None
        self.values.pop(key, None)
        return present

    async def keys(self, prefix: str) -> list[str]:
        return [key for key in list(self.values) if key.startswith(prefix) and self._present(key) is not None]

    def _make_room(self, key: str, value: bytes, lossy: bool) -> None:
        def used_bytes(wanted: Callable[[str], bool]) -> int:
            others = (held[0] for name, held in self.values.items() if name != key and wanted(name))
            return sum(len(each) + ENTRY_OVERHEAD for each in (value, *others))

        old, share, kind = self.values.get(key), owner_for(key), kind_of(key)
        if old is not None and len(value) <= len(old[0]):
            return
        is_mark = len(value) <= MARK_BYTES and not lossy
        room = MAX_VALUES // 2 + (MAX_VALUES // 16 if is_mark else 0)
        while share and used_bytes(lambda name: owner_for(name) == share) > room:
            oldest = next((name for name, held in self.values.items() if held[2] and owner_for(name) == share), key)
            if not lossy or oldest == key or len(value) + ENTRY_OVERHEAD > MAX_VALUES // 2:
                raise OwnerQuotaExceeded("The share is full.")
            del self.values[oldest]
        while not is_mark and used_bytes(lambda name: kind_of(name) == kind) > MAX_VALUES:
            oldest = next((name for name, held in self.values.items() if held[2] and kind_of(name) == kind), key)
            if not lossy or oldest == key or len(value) + ENTRY_OVERHEAD > MAX_VALUES:
                raise StoreFull("The store is full.")
            del self.values[oldest]

    # As `Log`

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
        if len(data) > MAX_ENTRIES:
            raise StoreFull("The entry is too large.")
        held = self._find(stream)
        if held is not None and held.sealed:
            raise StreamSealed("The stream has ended.")
        if once and self.once.get((stream, once), 0.0) > time.monotonic():
            raise EntryRepeated("The stream has an entry with this text.")
        self.once[stream, once] = time.monotonic() + ONCE_SECONDS
        self.offset += 3
        position = Position(self.epoch, self.offset)
        self._add(stream, Entry(position, data), ttl, max_entries).sealed = seal
        if index is not None:
            self._add(index.stream, Entry(position, data), index.ttl, index.max_entries)
        for interrupted in list(self.listeners.get(stream, {}).values()):
            interrupted()
        return position

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        held = self._find(stream)
        if held is None:
            if after is None:
                return []
            raise Gap(self.epoch, None)
        if after is not None and (after.epoch != self.epoch or not held.floor <= after.offset <= held.last):
            raise Gap(self.epoch, held.entries[0].position, held.entries[-1].position)
        start = 0 if after is None else after.offset
        return within([each for each in held.entries if each.position.offset > start][:limit], max_bytes)

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        held = self._find(stream)
        return [] if held is None else within(held.entries[: -limit - 1 : -1], max_bytes)[::-1]

    async def touch(self, stream: str, ttl: float) -> bool:
        held = self._find(stream)
        if held is not None:
            held.until = time.monotonic() + ttl
        return held is not None

    async def trim(self, stream: str) -> None:
        self.streams.pop(stream, None)

    def listen(
        self,
        stream: str,
        hear: Callable[[Entry], None],
        *,
        interrupted: Callable[[], None] | None = None,
        topic: str | None = None,
    ) -> Callable[[], None]:
        mark = object()
        self.listeners.setdefault(stream, {})[mark] = interrupted or (lambda: None)
        return lambda: void(self.listeners[stream].pop(mark, None))

    async def wait_until_listening(self, stream: str) -> None:
        """Return immediately."""

    def _find(self, stream: str) -> Stream | None:
        held = self.streams.get(stream)
        return held if held is not None and held.until > time.monotonic() else None

    def _add(self, stream: str, entry: Entry, ttl: float, max_entries: int) -> Stream:
        held = self._find(stream)
        if held is None:
            held = self.streams[stream] = Stream(entry.position.offset - 1)
        held.entries.append(entry)
        held.last, held.until = entry.position.offset, time.monotonic() + ttl
        siblings = [each for name, each in self.streams.items() if kind_of(name) == kind_of(stream)]
        while len(held.entries) > max_entries or sum(map(size_of, siblings)) > MAX_ENTRIES:
            longest = held if len(held.entries) > max_entries else max(siblings, key=size_of)
            longest.floor = longest.entries.pop(0).position.offset
        self.streams = {name: each for name, each in self.streams.items() if each.entries}
        return held


class DictBackend:
    """The `Backend` of one worker."""

    shared = True

    def __init__(self, data: Data, tally: UsageCounter, lease: float) -> None:
        self.kv = self.log = data
        self.lease = lease
        self.charge = tally.charge
        self.release = tally.release

    @property
    def epoch(self) -> str:
        return self.kv.epoch

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    def time(self) -> float:
        return time.time()

    async def degraded_reason(self) -> str:
        return ""

    async def open(self) -> None:
        """Do nothing: there is no connection."""

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    async def bind(self, worker: str) -> None:
        """Do nothing: there is no connection."""


def kind_of(name: str) -> str:
    return name.partition(":")[0]


def size_of(stream: Stream) -> int:
    return sum(len(each.data) + ENTRY_OVERHEAD for each in stream.entries)


def void(_: object) -> None:
    """Discard the argument."""


def within(entries: Sequence[Entry], max_bytes: int) -> list[Entry]:
    total = 0

    def fits(entry: Entry) -> bool:
        nonlocal total
        total += len(entry.data)
        return total - len(entry.data) < max_bytes

    return list(takewhile(fits, entries)) if max_bytes > 0 else list(entries[:1])
