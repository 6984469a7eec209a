"""Values, streams, and their entries as rows. Runs in the writer's thread, inside a transaction."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from msgspec import Struct, field

from millstream._stores.base import (
    ONCE_SECONDS,
    PAGE_BYTES,
    Entry,
    EntryRepeated,
    Gap,
    Index,
    OwnerQuotaExceeded,
    Position,
    StoreFull,
    StreamSealed,
)
from millstream._stores.memory.log import ITEM_BYTES, REPEATED, STREAM_BYTES, kind_of, within
from millstream._stores.rates import owner_for, rooms_for
from millstream._stores.sqlite.file import Database

_SWEEP = 10.0
"""Seconds between scans for expired values and streams."""


class Items(Struct, eq=False):
    """The values of one file.

    Each kind of value has its own space. A full kind rejects writes, unless its values are lossy: then it drops the
    oldest. Part of the space is reserved for values as small as tombstones, so session data can't keep one out.
    """

    _file: Database
    _clock: Callable[[], float]
    _max_bytes: int
    _sizes: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """Counted bytes by kind and share. The empty share is the whole kind."""
    _place: int = 0
    """Sequence number of the last lossy value that was written."""
    _swept: float = 0.0

    def load(self) -> None:
        """Count the bytes in the file, after opening it and after a failed transaction."""
        self._sizes.clear()
        for kind, share, size in self._file.run("SELECT kind, share, sum(size) FROM items GROUP BY kind, share"):
            for each in {"", share}:
                self._sizes[kind, each] += size
        self._place = self._file.one("SELECT coalesce(max(place), 0) FROM items")[0]

    def get(self, key: str) -> bytes | None:
        """See `Map.get`."""
        row = self._file.one("SELECT value FROM items WHERE key=? AND until>?", (key, self._clock()))
        return None if row is None else row[0]

    def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        """See `Map.put`."""
        now = self._clock()
        if now - self._swept > _SWEEP:
            self._sweep(now)
        old = self._file.one("SELECT size, until FROM items WHERE key=?", (key,))
        if old is not None and old[1] <= now:
            self._forget(key)
            old = None
        size = len(value) + len(key) + ITEM_BYTES
        growth = size - (0 if old is None else old[0])
        if growth > 0:
            self._check(key, value, growth, now, lossy=lossy)
        self._place += lossy
        self._file.run(
            "INSERT OR REPLACE INTO items VALUES (?,?,?,?,?,?,?)",
            (key, kind_of(key), owner_for(key), value, size, now + ttl, self._place if lossy else None),
        )
        self._count(key, growth)

    def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        """See `Map.compare_and_set`."""
        if self.get(key) != expected:
            return False
        if value is not None:
            self.put(key, value, ttl, lossy=lossy)
        else:
            self._forget(key)
        return True

    def delete(self, key: str) -> bool:
        """See `Map.delete`."""
        present = self.get(key) is not None
        self._forget(key)
        return present

    def keys(self, prefix: str) -> list[str]:
        """See `Map.keys`."""
        rows = self._file.run(
            "SELECT key FROM items WHERE key>=? AND substr(key, 1, ?)=? AND kind=coalesce(?, kind) AND until>?",
            (prefix, len(prefix), prefix, kind_of(prefix) if ":" in prefix else None, self._clock()),
        )
        return [key for (key,) in rows]

    def _check(self, key: str, value: bytes, growth: int, now: float, *, lossy: bool) -> None:
        """Free space for a value, or raise `StoreFull`."""
        kind = kind_of(key)
        for part, room in rooms_for(key, value, self._max_bytes, lossy=lossy).items():
            if self._sizes[kind, part] + growth <= room:
                continue
            self._sweep(now)
            if lossy and len(value) + len(key) + ITEM_BYTES <= room:
                self._evict(key, kind, part, self._sizes[kind, part] + growth - room)
            if self._sizes[kind, part] + growth > room:
                text = f"The store is full: this {'share' if part else 'kind'} of values is limited to {room} bytes."
                raise (OwnerQuotaExceeded if part else StoreFull)(text)

    def _evict(self, key: str, kind: str, share: str, missing: int) -> None:
        """Drop the oldest lossy values of a share, or of the whole kind, until `missing` bytes are free."""
        only, fields = ("AND share=?", (kind, key, share)) if share else ("", (kind, key))
        statement = f"SELECT key, size FROM items WHERE kind=? AND key<>? {only} AND place IS NOT NULL"  # noqa: S608
        while missing > 0:
            oldest = self._file.one(f"{statement} ORDER BY place LIMIT 1", fields)
            if oldest is None:
                return
            self._forget(oldest[0])
            missing -= oldest[1]

    def _count(self, key: str, growth: int) -> None:
        for share in {"", owner_for(key)}:
            self._sizes[kind_of(key), share] += growth

    def _forget(self, key: str) -> None:
        row = self._file.one("SELECT size FROM items WHERE key=?", (key,))
        if row is not None:
            self._file.run("DELETE FROM items WHERE key=?", (key,))
            self._count(key, -row[0])

    def _sweep(self, now: float) -> None:
        self._swept = now
        for (key,) in self._file.run("SELECT key FROM items WHERE until<=?", (now,)).fetchall():
            self._forget(key)


class Streams(Struct, eq=False):
    """The streams of one file.

    Each kind of stream has its own space. A full kind drops the oldest entries of its largest streams. A stream's first
    offset is higher than all offsets used by streams of its kind, so a dropped stream never reuses an offset.
    """

    _file: Database
    _clock: Callable[[], float]
    _max_bytes: int
    _sizes: Counter[str] = field(default_factory=Counter[str])
    """Counted bytes by kind."""
    _highest: dict[str, int] = {}
    _latest: tuple[int, int] = (0, 0)
    """The last two streams appended to. Their newest entries stay, so a writer can read its own entry."""
    _swept: float = 0.0

    def load(self) -> None:
        """Count the bytes in the file, after opening it and after a failed transaction."""
        self._sizes.clear()
        self._sizes.update(dict(self._file.run("SELECT kind, sum(size) FROM streams GROUP BY kind")))
        self._highest = dict(self._file.run("SELECT name, highest FROM kinds"))

    def append(
        self,
        stream: str,
        data: bytes,
        *,
        ttl: float,
        max_entries: int,
        index: Index | None = None,
        seal: bool = False,
        once: str = "",
        **_: object,
    ) -> Position:
        """See `Log.append`."""
        now = self._clock()
        if now - self._swept > _SWEEP:
            self._swept = now
            self._sweep(now)
        if once and self._file.one("SELECT 1 FROM once WHERE stream=? AND id=? AND until>?", (stream, once, now)):
            raise EntryRepeated(REPEATED)
        offset = self._append(stream, data, ttl, max_entries, now, seal=seal)
        if once:
            self._file.run("INSERT OR REPLACE INTO once VALUES (?,?,?)", (stream, once, now + ONCE_SECONDS))
        if index is not None:
            with suppress(StoreFull):
                self._append(index.stream, data, index.ttl, index.max_entries, now, at=offset)
        return Position(self._file.epoch, offset)

    def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        """See `Log.read`."""
        epoch, run = self._file.epoch, self._file.run
        row = self._file.one("SELECT id, floor, last FROM streams WHERE name=? AND until>?", (stream, self._clock()))
        if row is None:
            if after is None:
                return []
            raise Gap(epoch, None)
        number, floor, last = row
        if after is not None and (after.epoch != epoch or not floor <= after.offset <= last):
            oldest = self._file.one("SELECT min(offset) FROM entries WHERE stream=?", (number,))[0]
            raise Gap(epoch, Position(epoch, oldest), Position(epoch, last))
        rows = run(
            "SELECT offset, data FROM entries WHERE stream=? AND offset>? ORDER BY offset LIMIT ?",
            (number, -1 if after is None else after.offset, limit),
        )
        return within((Entry(Position(epoch, offset), data) for offset, data in rows), max_bytes)

    def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        """See `Log.newest`."""
        rows = self._file.run(
            "SELECT offset, data FROM entries WHERE stream=(SELECT id FROM streams WHERE name=? AND until>?)"
            " ORDER BY offset DESC LIMIT ?",
            (stream, self._clock(), limit),
        )
        epoch = self._file.epoch
        return within((Entry(Position(epoch, offset), data) for offset, data in rows), max_bytes)[::-1]

    def touch(self, stream: str, ttl: float) -> bool:
        """See `Log.touch`."""
        now = self._clock()
        changed = self._file.run("UPDATE streams SET until=? WHERE name=? AND until>?", (now + ttl, stream, now))
        return changed.rowcount > 0

    def trim(self, stream: str) -> None:
        """See `Log.trim`."""
        row = self._file.one("SELECT id, kind, size FROM streams WHERE name=?", (stream,))
        if row is not None:
            self._forget(*row)

    def _append(
        self, stream: str, data: bytes, ttl: float, max_entries: int, now: float, *, seal: bool = False, at: int = -1
    ) -> int:
        """Append an entry. In an index, use its offset in the first stream."""
        run, kind = self._file.run, kind_of(stream)
        cost = len(data) + ITEM_BYTES
        if cost + len(stream) + STREAM_BYTES > self._max_bytes:
            raise StoreFull(
                f"The entry is {len(data)} bytes, but the store's log is limited to {self._max_bytes} bytes."
            )
        row = self._file.one(
            "SELECT id, floor, last, entries, size, sealed, until FROM streams WHERE name=?", (stream,)
        )
        if row is not None and row[6] <= now:
            self._forget(row[0], kind, row[4])
            row = None
        highest = self._highest.get(kind, -1)
        if row is None:
            floor, size = (highest + 1 if at < 0 else at - 1), len(stream) + STREAM_BYTES
            added = run(
                "INSERT INTO streams (name, kind, floor, last, entries, size, sealed, until) VALUES (?,?,?,?,0,0,0,?)",
                (stream, kind, floor, floor, now + ttl),
            )
            self._sizes[kind] += size
            row = added.lastrowid or 0, floor, floor, 0, size, False
        number, floor, last, entries, size, sealed = row[:6]
        if sealed:
            raise StreamSealed("The stream has ended.")
        offset = last + 1 if at < 0 else at
        run("INSERT OR REPLACE INTO entries VALUES (?,?,?)", (number, offset, data))
        self._sizes[kind] += cost
        entries, size = entries + 1, size + cost
        if entries > max_entries:
            floor, freed = self._cut(number, entries - max_entries)
            entries, size = max_entries, size - freed
            self._sizes[kind] -= freed
        run(
            "UPDATE streams SET floor=?, last=?, entries=?, size=?, sealed=?, until=? WHERE id=?",
            (floor, offset, entries, size, seal, now + ttl, number),
        )
        if offset > highest:
            self._highest[kind] = offset
            run("INSERT OR REPLACE INTO kinds VALUES (?,?)", (kind, offset))
        if self._latest[1] != number:
            self._latest = (self._latest[1], number)
        if self._sizes[kind] > self._max_bytes:
            self._sweep(now)
            while self._sizes[kind] > self._max_bytes:
                self._make_room(kind)
        return offset

    def _cut(self, number: int, count: int) -> tuple[int, int]:
        """Drop the oldest entries of a stream. Return the offset of the last one, and the bytes freed."""
        rows = self._file.run(
            "SELECT offset, length(data) FROM entries WHERE stream=? ORDER BY offset LIMIT ?", (number, count)
        ).fetchall()
        floor = rows[-1][0]
        self._file.run("DELETE FROM entries WHERE stream=? AND offset<=?", (number, floor))
        return floor, sum(length + ITEM_BYTES for _, length in rows)

    def _make_room(self, kind: str) -> None:
        """Drop the oldest entry of the largest stream. If it's the only one, drop the stream."""
        number, entries, size = self._file.one(
            "SELECT id, entries, size FROM streams WHERE kind=? AND (entries>1 OR id NOT IN (?,?))"
            " ORDER BY size DESC LIMIT 1",
            (kind, *self._latest),
        ) or self._file.one("SELECT id, entries, size FROM streams WHERE id=?", self._latest[:1])
        if entries == 1:
            self._forget(number, kind, size)
            return
        floor, freed = self._cut(number, 1)
        self._sizes[kind] -= freed
        self._file.run("UPDATE streams SET floor=?, entries=entries-1, size=size-? WHERE id=?", (floor, freed, number))

    def _forget(self, number: int, kind: str, size: int) -> None:
        self._file.run("DELETE FROM entries WHERE stream=?", (number,))
        self._file.run("DELETE FROM streams WHERE id=?", (number,))
        self._sizes[kind] -= size

    def _sweep(self, now: float) -> None:
        self._file.run("DELETE FROM once WHERE until<=?", (now,))
        for row in self._file.run("SELECT id, kind, size FROM streams WHERE until<=?", (now,)).fetchall():
            self._forget(*row)
