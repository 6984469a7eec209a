"""The store in this process: nothing is shared, nothing survives, nothing waits.

No method suspends and there is no timer: what has expired is absent at once, and its memory is given back a few items
at a time by later calls. Each kind of values and of streams is bounded in bytes, keys and overheads included. A full
kind of values refuses (`StoreFull`), since a forgotten tombstone would bring a session back to life; part of its room
is kept back for what is as small as a tombstone, so what sessions accumulate cannot keep one out. For one thread.
"""

import secrets
import sys
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from millstream._stores.base import ShareFull, StoreFull
from millstream._stores.memory.expiry_heap import SWEEP, ExpiryHeap
from millstream._stores.memory.log import ITEM_BYTES, MemoryLog, kind_of
from millstream._stores.memory.topics import never
from millstream._stores.rates import MARK_BYTES, PART, share_of
from millstream._stores.store import BackendStore
from millstream._stores.tally import Tally

KEPT_BACK: Final = 16
"""The fraction of space reserved for values of at most `MARK_BYTES`."""


class ValueKind:
    """The values of one kind."""

    __slots__ = ("lossy", "shares", "size", "values")

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.lossy: OrderedDict[str, None] = OrderedDict()
        """Keys of those that may go, the one written the longest ago first."""
        self.size = 0
        """Stored bytes, as counted against the bound."""
        self.shares: Counter[str] = Counter()
        """Share -> its bytes of these."""

    def count(self, key: str, growth: int) -> None:
        """Change the number of stored bytes for a key."""
        self.size += growth
        share = share_of(key)
        if share:
            self.shares[share] += growth
            if not self.shares[share]:
                del self.shares[share]

    def growth(self, key: str, value: bytes) -> int:
        """Return the additional bytes of a new value."""
        old = self.values.get(key)
        return len(value) - len(old) if old is not None else len(value) + len(key) + ITEM_BYTES


class MemoryMap:
    """`Map` in a dict for each kind."""

    __slots__ = ("_clock", "_deadlines", "_lost", "kinds", "max_bytes")

    def __init__(
        self, clock: Callable[[], float], max_bytes: int, lost: Callable[[str], None] = lambda key: None
    ) -> None:
        """`lost` is called with each key that ends, whatever the reason."""
        # configuration
        self._clock = clock
        self._lost = lost
        self.max_bytes = max_bytes
        """The room of one kind."""
        # process
        self._deadlines = ExpiryHeap[str]()
        self.kinds: defaultdict[str, ValueKind] = defaultdict(ValueKind)
        """Few: this program names its keys, not its peers."""

    @property
    def size(self) -> int:
        """Stored bytes of all kinds."""
        return sum(kind.size for kind in self.kinds.values())

    async def get(self, key: str) -> bytes | None:
        return self._present(key, self._clock())

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        now = self._clock()
        return [self._present(key, now) for key in keys]

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        self._store(key, value, ttl, self._clock(), lossy)

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        now = self._clock()
        present = self._present(key, now)
        if present != expected:
            return False
        if value is not None:
            self._store(key, value, ttl, now, lossy)
        elif present is not None:
            self._forget(key)
        return True

    async def delete(self, key: str) -> bool:
        if self._present(key, self._clock()) is None:
            return False
        self._forget(key)
        return True

    async def keys(self, prefix: str) -> list[str]:
        now, passed = self._clock(), self._deadlines.has_expired
        kinds = [self.kinds[kind_of(prefix)]] if ":" in prefix else self.kinds.values()
        return [key for kind in kinds for key in kind.values if key.startswith(prefix) and not passed(key, now)]

    def _present(self, key: str, now: float) -> bytes | None:
        self._sweep(now)
        value = self.kinds[kind_of(key)].values.get(key)
        if value is not None and self._deadlines.has_expired(key, now):
            self._forget(key)
            return None
        return value

    def _store(self, key: str, value: bytes, ttl: float, now: float, lossy: bool) -> None:
        self._present(key, now)  # an expired value must not be counted
        kind = self.kinds[kind_of(key)]
        self._make_room(kind, key, value, now, lossy)
        self._hold(kind, key, value, now + ttl, lossy)

    def _hold(self, kind: ValueKind, key: str, value: bytes, until: float, lossy: bool) -> None:
        kind.count(key, kind.growth(key, value))
        kind.values[key] = value
        self._deadlines.set(key, until)
        if lossy:
            kind.lossy[key] = None
            kind.lossy.move_to_end(key)

    def _make_room(self, kind: ValueKind, key: str, value: bytes, now: float, lossy: bool) -> None:
        growth = kind.growth(key, value)
        if growth <= 0:
            return
        room = self.max_bytes
        if len(value) > MARK_BYTES and not lossy:
            room -= room // KEPT_BACK
            share = share_of(key)
            if share and kind.shares[share] + growth > self.max_bytes // PART:
                self._sweep(now, sys.maxsize)
                if kind.shares[share] + growth > self.max_bytes // PART:
                    raise ShareFull(f"This share of the in-memory store holds its {self.max_bytes // PART} bytes.")
        if kind.size + growth > room:
            self._sweep(now, sys.maxsize)
            fits = len(key) + len(value) + ITEM_BYTES <= room
            while lossy and fits and kind.lossy and kind.size + kind.growth(key, value) > room:
                self._forget(next(iter(kind.lossy)))
            if kind.size + kind.growth(key, value) > room:
                raise StoreFull(f"The in-memory store holds its {self.max_bytes} bytes and takes no further value.")

    def _sweep(self, now: float, look: int = SWEEP) -> None:
        for key in self._deadlines.due(now, look):
            self._forget(key)

    def held(self, key: str) -> tuple[bytes, float, bool] | None:
        """Value, end and whether it's lossy, as they are held; None where nothing is."""
        kind = self.kinds[kind_of(key)]
        value = kind.values.get(key)
        return None if value is None else (value, self._deadlines.expires_at(key), key in kind.lossy)

    def restore(self, key: str, value: bytes, until: float, lossy: bool) -> None:
        """Hold a value as it was once, whatever is held."""
        self.forget(key)
        self._hold(self.kinds[kind_of(key)], key, value, until, lossy)

    def forget(self, key: str) -> None:
        """Hold a value no more, as if it had never been."""
        if key in self.kinds[kind_of(key)].values:
            self._forget(key, noted=False)

    def _forget(self, key: str, *, noted: bool = True) -> None:
        if noted:
            self._lost(key)
        self._deadlines.forget(key)
        kind = self.kinds[kind_of(key)]
        kind.count(key, -(len(kind.values.pop(key)) + len(key) + ITEM_BYTES))
        kind.lossy.pop(key, None)
        if not kind.values:
            kind.values.clear()  # an emptied dict keeps its table, a cleared one does not


class MemoryBackend:
    """`Backend` of one process. Its data live as long as the object, also when it's closed and opened again."""

    __slots__ = ("charge", "epoch", "kv", "lasting", "lease", "log", "release", "shared")

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        epoch: str = "",
        max_value_bytes: int = 32 * 1024 * 1024,
        max_log_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self.shared = False
        self.lasting = False
        self.lease = 0.0
        self.epoch = epoch or secrets.token_hex(6)
        self.kv = MemoryMap(clock, max_value_bytes)
        self.log = MemoryLog(clock, max_log_bytes, self.epoch)
        tally = Tally(self.kv, clock=clock)
        self.charge = tally.charge
        self.release = tally.release

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """See `Backend.watch`. The epoch never changes."""
        return never

    def time(self) -> float:
        return time.time()

    async def degraded_reason(self) -> str:
        return ""

    async def bind(self, worker: str) -> None:
        """Do nothing, because there is no connection."""

    async def open(self) -> None:
        """Do nothing, because there is no connection."""

    async def close(self) -> None:
        self.log.end_all()


class MemoryStore(BackendStore):
    """The store of one process."""

    backend: MemoryBackend
    kv: MemoryMap  # pyright: ignore[reportIncompatibleVariableOverride]  the store makes both itself
    log: MemoryLog  # pyright: ignore[reportIncompatibleVariableOverride]  as above

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        epoch: str = "",
        max_value_bytes: int = 32 * 1024 * 1024,
        max_log_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """Make an empty store.

        Args:
            clock: seconds that only grow, for the times to live.
            epoch: of its positions; random by default.
            max_value_bytes: room of each kind of values.
            max_log_bytes: room of each kind of streams.
        """
        super().__init__(
            MemoryBackend(clock=clock, epoch=epoch, max_value_bytes=max_value_bytes, max_log_bytes=max_log_bytes)
        )
