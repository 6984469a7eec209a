"""The implementation of `Store`, built on the log and map of any backend.

A store whose data outlive its workers may keep ephemeral kinds (`base.EPHEMERAL`) in memory: `SplitMap`, `SplitLog`.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Generic, TypeVar, cast

from msgspec import Struct

from millstream._stores.base import EPHEMERAL, Backend, Bus, Log, Map
from millstream._stores.rates import Charge, ChargeResults, ConcurrencySlot
from millstream._stores.tail import never
from millstream._stores.workers import LeasedWorker, SoleWorker
from millstream._tasks import cancel_all

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class _Split(Struct, Generic[T], eq=False):
    """Two implementations: `memory` for ephemeral kinds, and `durable` for all others."""

    durable: T
    memory: T


def _place(split: _Split[T], name: str) -> T:
    return split.memory if _is_ephemeral(name) else split.durable


def _forward(method: F) -> F:
    """Return a method that forwards to the implementation for its first argument's kind."""

    @wraps(method)
    def call(self: _Split[Any], name: str, *args: Any, **options: Any) -> Any:
        return getattr(_place(self, name), method.__name__)(name, *args, **options)

    return cast("F", call)


class SplitMap(_Split[Map]):
    """A `Map` that keeps ephemeral kinds in `memory` and all others in `durable`."""

    get = _forward(Map.get)
    put = _forward(Map.put)
    compare_and_set = _forward(Map.compare_and_set)
    delete = _forward(Map.delete)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        if not any(_is_ephemeral(key) for key in keys):
            return await self.durable.get_many(keys)
        return [await _place(self, key).get(key) for key in keys]

    async def keys(self, prefix: str) -> list[str]:
        if ":" in prefix:
            return await _place(self, prefix).keys(prefix)
        return await self.durable.keys(prefix) + await self.memory.keys(prefix)


class SplitLog(_Split[Log]):
    """A `Log` that keeps ephemeral kinds in `memory` and all others in `durable`."""

    append = _forward(Log.append)
    read = _forward(Log.read)
    newest = _forward(Log.newest)
    touch = _forward(Log.touch)
    trim = _forward(Log.trim)
    listen = _forward(Log.listen)
    wait_until_listening = _forward(Log.wait_until_listening)


def _is_ephemeral(name: str) -> bool:
    return name.partition(":")[0] in EPHEMERAL


class Store:
    """A backend and what every store has in addition: messages between workers and leases.

    A store serves one event loop.

    Args:
        backend: The backend. Opening the store opens it.

    Example:
        >>> store = Store(MemoryBackend())
        >>> await store.open()
        >>> await store.kv.put("cart:ada", b"Dune", ttl=60.0)
        >>> await store.close()
    """

    def __init__(self, backend: Backend) -> None:
        """Create a store without opening the backend."""
        self.backend = backend
        self.shared: bool = backend.shared
        self.kv: Map = backend.kv
        self.log: Log = backend.log
        self.workers: LeasedWorker | SoleWorker = LeasedWorker(backend) if backend.shared else SoleWorker()
        self.bus: Bus = self.workers
        self._lease_task: asyncio.Task[None] | None = None
        self._stop_watching: Callable[[], None] = never

    @property
    def epoch(self) -> str:
        """See `Backend.epoch`."""
        return self.backend.epoch

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """See `Backend.watch`."""
        return self.backend.watch(changed)

    def time(self) -> float:
        """See `Backend.time`."""
        return self.backend.time()

    async def degraded_reason(self) -> str:
        """See `Backend.degraded_reason`."""
        return await self.backend.degraded_reason()

    async def charge(self, charges: Sequence[Charge]) -> ChargeResults:
        """Take from every limit if each has enough, else from none: see `Backend.charge`.

        Raises:
            StoreUnavailable: The store didn't respond in time.
        """
        return await self.backend.charge(self.workers.me, charges, self.workers.dead)

    async def release(self, slots: Sequence[ConcurrencySlot]) -> None:
        """Release slots. A slot that isn't taken isn't an error. Slots of dead workers are released automatically.

        Raises:
            StoreUnavailable: The store didn't respond in time. Call it again.
        """
        await self.backend.release(self.workers.me, slots)

    async def open(self) -> None:
        """Open the backend and take a lease.

        Raises:
            LocalError: The store can't be reached or used. `open` may be called again.
        """
        await self.backend.open()
        workers = self.workers
        if isinstance(workers, SoleWorker):
            return
        try:
            await workers.enter()
            await workers.begin()
        except BaseException:
            await workers.end()
            await self.backend.close()
            raise
        self._stop_watching = self.backend.watch(workers.interrupt)
        self._lease_task = asyncio.create_task(workers.run())

    async def close(self) -> None:
        """End the lease and all subscriptions and close the backend. Idempotent."""
        self._stop_watching()
        lease_task, self._lease_task = self._lease_task, None
        await self.workers.end()
        if lease_task is not None and isinstance(self.workers, LeasedWorker):
            await cancel_all(lease_task)
            await self.workers.exit()
        await self.backend.close()
