"""The store, built on any backend."""

from collections.abc import Callable, Sequence

from millstream._copies import NotCopyable
from millstream._stores.base import Backend, Bus, Log, Map
from millstream._stores.rates import Charge, ChargeResult, ConcurrencySlot
from millstream._stores.workers import LeasedWorker, SoleWorker
from millstream._troubles import Troubles


class Store(NotCopyable):
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
        self.troubles: Troubles = getattr(backend, "troubles", None) or Troubles()
        """What fails on this worker, in the backend and in what uses it."""
        self.kv: Map = backend.kv
        self.log: Log = backend.log
        self.workers: LeasedWorker | SoleWorker = (
            LeasedWorker(backend, self.troubles) if backend.shared else SoleWorker()
        )
        self.bus: Bus = self.workers

    @property
    def epoch(self) -> str:
        """See `Backend.epoch`."""
        return self.backend.epoch

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` whenever `epoch` changes, and return a function that stops it. See `Backend.watch`.

        Args:
            changed: The callback, which must not block or raise.
        """
        return self.backend.watch(changed)

    def time(self) -> float:
        """See `Backend.time`."""
        return self.backend.time()

    async def degraded_reason(self) -> str:
        """See `Backend.degraded_reason`."""
        return await self.backend.degraded_reason()

    async def charge(self, charges: Sequence[Charge]) -> list[ChargeResult]:
        """Take from every limit if each has enough, else from none: see `Backend.charge`.

        Args:
            charges: The amounts to take, each with its limit.

        Raises:
            StoreUnavailable: The store didn't respond in time.
        """
        return await self.backend.charge(self.workers.me, charges, self.workers.dead)

    async def release(self, slots: Sequence[ConcurrencySlot]) -> None:
        """Release slots. A slot that isn't taken isn't an error. Slots of dead workers are released automatically.

        Args:
            slots: The slots to release.

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
        try:
            await self.workers.open()
        except BaseException:
            await self.backend.close()
            raise

    async def close(self) -> None:
        """End the lease and all subscriptions and close the backend. Idempotent."""
        await self.workers.close()
        await self.backend.close()
