"""Values by key as rows. Runs in the writer's thread, inside a transaction.

Each kind of value has its own space. A full kind rejects writes, unless its values are lossy: then it drops the oldest.
Part of the space is reserved for values as small as tombstones, so session data can't keep one out.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from millstream._stores.base import ShareFull, StoreFull
from millstream._stores.memory.log import ITEM_BYTES, kind_of
from millstream._stores.memory.store import RESERVED_PART
from millstream._stores.rates import MARK_BYTES, PART, share_of
from millstream._stores.sqlite.file import Database

_SWEEP = 10.0
"""Seconds between scans for expired values."""


class Items:
    """The values of one file."""

    def __init__(self, file: Database, clock: Callable[[], float], max_bytes: int) -> None:
        # configuration
        self._file = file
        self._clock = clock
        self._max_bytes = max_bytes
        # process
        self._sizes: Counter[str] = Counter()
        """Counted bytes by kind."""
        self._shares: Counter[tuple[str, str]] = Counter()
        """Counted bytes by kind and share."""
        self._place = 0
        """Sequence number of the last lossy value that was written."""
        self._swept = 0.0

    def load(self) -> None:
        """Count the bytes in the file, after opening it and after a failed transaction."""
        self._sizes.clear()
        self._shares.clear()
        for kind, share, size in self._file.run("SELECT kind, share, sum(size) FROM items GROUP BY kind, share"):
            self._sizes[kind] += size
            self._shares[kind, share] = size
        self._place = self._file.one("SELECT coalesce(max(place), 0) FROM items")[0]

    def get(self, key: str) -> bytes | None:
        """See `Map.get`."""
        row = self._file.one("SELECT value FROM items WHERE key=? AND until>?", (key, self._clock()))
        return None if row is None else row[0]

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """See `Map.get_many`."""
        return [self.get(key) for key in keys]

    def put(self, key: str, value: bytes, ttl: float, lossy: bool) -> None:
        """See `Map.put`."""
        now = self._clock()
        if now - self._swept > _SWEEP:
            self._sweep(now)
        old = self._file.one("SELECT size, until FROM items WHERE key=?", (key,))
        if old is not None and old[1] <= now:
            self._forget(key)
            old = None
        kind, share, size = kind_of(key), share_of(key), len(value) + len(key) + ITEM_BYTES
        growth = size - (0 if old is None else old[0])
        if growth > 0:
            self._check(key, kind, share, growth, len(value), now, lossy=lossy)
        self._place += lossy
        self._file.run(
            "INSERT OR REPLACE INTO items VALUES (?,?,?,?,?,?,?)",
            (key, kind, share, value, size, now + ttl, self._place if lossy else None),
        )
        self._count(kind, share, growth)

    def compare_and_set(self, key: str, expected: bytes | None, value: bytes | None, ttl: float, lossy: bool) -> bool:
        """See `Map.compare_and_set`."""
        if self.get(key) != expected:
            return False
        if value is not None:
            self.put(key, value, ttl, lossy)
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

    def _check(self, key: str, kind: str, share: str, growth: int, length: int, now: float, *, lossy: bool) -> None:
        """Make room for a value, or raise `StoreFull`."""
        reserved = length <= MARK_BYTES or lossy
        rooms = {"": self._max_bytes if reserved else self._max_bytes - self._max_bytes // RESERVED_PART}
        if share and (lossy or not reserved):
            rooms = {share: self._max_bytes // PART, **rooms}
        for part, room in rooms.items():
            if self._get_usage(kind, part) + growth <= room:
                continue
            self._sweep(now)
            if lossy and length + len(key) + ITEM_BYTES <= room:
                self._evict(key, kind, part, self._get_usage(kind, part) + growth - room)
            if self._get_usage(kind, part) + growth > room:
                text = f"The store is full: this {'share' if part else 'kind'} of values has {room} bytes."
                raise (ShareFull if part else StoreFull)(text)

    def _get_usage(self, kind: str, share: str) -> int:
        return self._shares[kind, share] if share else self._sizes[kind]

    def _evict(self, key: str, kind: str, share: str, missing: int) -> None:
        """Drop the oldest lossy values of a share, or of the whole kind, until `missing` bytes are free."""
        while missing > 0:
            oldest = self._file.one(
                "SELECT key, size FROM items WHERE kind=? AND share=coalesce(?, share) AND place IS NOT NULL "
                "AND key<>? ORDER BY place LIMIT 1",
                (kind, share or None, key),
            )
            if oldest is None:
                return
            self._forget(oldest[0])
            missing -= oldest[1]

    def _count(self, kind: str, share: str, growth: int) -> None:
        self._sizes[kind] += growth
        if share:
            self._shares[kind, share] += growth

    def _forget(self, key: str) -> None:
        row = self._file.one("SELECT size FROM items WHERE key=?", (key,))
        if row is not None:
            self._file.run("DELETE FROM items WHERE key=?", (key,))
            self._count(kind_of(key), share_of(key), -row[0])

    def _sweep(self, now: float) -> None:
        self._swept = now
        for (key,) in self._file.run("SELECT key FROM items WHERE until<=?", (now,)).fetchall():
            self._forget(key)
