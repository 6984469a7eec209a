"""A simulated store that a test's workers share: one memory store, with latency for each worker.

It guarantees only the contract: operations and messages may be late, in any order that the contract allows. A worker
can die, sleep until its lease expires, or lose messages.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from backend_stores import MemoryStore
from millstream._stores.base import PAGE_BYTES, Entry, Position, StoreUnavailable
from millstream._stores.memory.store import UsageCounter
from millstream._stores.rates import Charge, ChargeResult, ConcurrencySlot
from millstream._stores.tail import Topics
from millstream._troubles import Troubles


class SharedStore:
    """The memory store and the workers that share it."""

    def __init__(self, turns: Callable[[], int] = lambda: 1) -> None:
        self.core = MemoryStore()
        self.tally = UsageCounter(self.core.kv)
        self.turns = turns
        """Latency of one direction, in event loop turns."""
        self.live: dict[str, WorkerStore] = {}
        """Workers with a lease, by name."""
        self.expired_workers: set[str] = set()
        """Workers whose lease has ended."""

    def worker(self) -> "WorkerStore":
        """Return another worker's view of the store."""
        return WorkerStore(self)

    def lose_everything(self) -> None:
        """Delete all data and start a new epoch, like FLUSHALL."""
        self.core = MemoryStore()
        for each in list(self.live.values()):
            each.epochs.notify("", b"")

    def changed(self) -> None:
        """Notify all workers that the set of workers changed."""
        for each in list(self.live.values()):
            each.changes.notify("", b"")


class WorkerStore:
    """The `Store` of one worker."""

    def __init__(self, shared: SharedStore) -> None:
        self._shared = shared
        self.shared = True
        self.me = ""
        self.dead = False
        self._awake = asyncio.Event()
        self._awake.set()
        self.down = False
        """The store doesn't answer this worker."""
        self.drops_messages = False
        """Messages to this worker are dropped."""
        self.operations = Counter[str]()
        self.kv: Any = _Map(self)
        self.log: Any = _Log(self)
        self.bus: Any = _Bus(self)
        self.members: Any = None
        self.troubles = Troubles()
        self.workers = _Workers(self)
        self.topics = Topics[bytes]()
        self.lost = Topics[bytes]()
        self.changes = Topics[bytes]()
        self.epochs = Topics[bytes]()
        self._arriving: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
        self._pump: asyncio.Task[None] | None = None

    @property
    def core(self) -> MemoryStore:
        return self._shared.core

    @property
    def epoch(self) -> str:
        return self._shared.core.epoch

    async def degraded_reason(self) -> str:
        await self.travel("doubt")
        return await self.core.degraded_reason()

    def time(self) -> float:
        return self._shared.core.time()

    async def open(self) -> None:
        self._take_name()
        self._pump = asyncio.get_running_loop().create_task(self._deliver())

    async def close(self) -> None:
        self._shared.live.pop(self.me, None)
        self._shared.expired_workers.add(self.me)
        for topics in (self.topics, self.lost, self.changes, self.epochs):
            topics.clear()
        self._shared.changed()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)

    def _take_name(self) -> None:
        self.me = secrets.token_hex(6)
        self._shared.live[self.me] = self
        self._shared.changed()

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        return self.epochs.add("", lambda _: changed())

    async def charge(self, charges: Sequence[Charge]) -> list[ChargeResult]:
        await self.travel("take")
        charged = await self._shared.tally.charge(self.me, charges, self._shared.expired_workers)
        await self.back()
        return charged

    async def release(self, slots: Sequence[ConcurrencySlot]) -> None:
        await self.travel("leave")
        await self._shared.tally.release(self.me, slots)
        await self.back()

    # Faults of a worker

    def die(self, *, noticed: bool = True) -> None:
        """Kill the worker. If `noticed`, its lease ends."""
        self.dead = True
        for topics in (self.topics, self.lost, self.changes, self.epochs):
            topics.clear()
        if noticed:
            self.end_lease()

    def sleep(self) -> None:
        """Suspend the worker for longer than its lease. Its operations wait until `wake`."""
        self._awake.clear()
        self.end_lease()

    def pause(self) -> None:
        """Suspend the worker for less than its lease. Its operations wait until `resume`."""
        self._awake.clear()

    def resume(self) -> None:
        """Resume the worker under its name."""
        self._awake.set()

    def wake(self) -> None:
        """Resume the worker under a new name."""
        self._awake.set()
        self._take_name()

    def end_lease(self) -> None:
        """End the worker's lease, and notify the others."""
        self._shared.live.pop(self.me, None)
        self._shared.expired_workers.add(self.me)
        self._shared.changed()

    def miss(self) -> None:
        """Drop all pending messages, and report the loss."""
        while not self._arriving.empty():
            self._arriving.get_nowait()
        self.lost.notify("", b"")

    # Latency

    async def travel(self, operation: str) -> None:
        """Wait for the latency of a request. Raise if the store is down."""
        self.operations[operation] += 1
        await self.back()
        if self.down or self.dead:
            raise StoreUnavailable("The store doesn't answer.")

    async def back(self) -> None:
        """Wait for the latency of a reply."""
        for _ in range(self._shared.turns()):
            await asyncio.sleep(0)
        await self._awake.wait()

    def arrive(self, deliver: Callable[[], None]) -> None:
        """Queue a delivery after all pending ones."""
        if not self.dead and not self.drops_messages:
            self._arriving.put_nowait(deliver)

    async def _deliver(self) -> None:
        while True:
            deliver = await self._arriving.get()
            await self.back()
            deliver()


class _Workers:
    lease = 10.0

    def __init__(self, store: WorkerStore) -> None:
        self._store = store

    @property
    def me(self) -> str:
        return self._store.me

    @property
    def dead(self) -> set[str]:
        return self._store._shared.expired_workers

    async def read(self) -> None:
        await self._store.travel("read workers")

    @property
    def live(self) -> frozenset[str]:
        return frozenset(self._store._shared.live)

    async def alive(self, worker: str) -> bool:
        await self._store.travel("alive")
        return worker in self._store._shared.live

    @property
    def names(self) -> set[str]:
        return {self.me}

    async def find(self, worker: str) -> str:
        return worker if worker == self.me or await self.alive(worker) else ""

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        return self._store.changes.add("", lambda _: changed())


class _Map:
    def __init__(self, store: WorkerStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        async def operation(*arguments: Any, **named: Any) -> Any:
            await self._store.travel(name)
            result = await getattr(self._store.core.kv, name)(*arguments, **named)
            await self._store.back()
            return result

        return operation


class _Log:
    def __init__(self, store: WorkerStore) -> None:
        self._store = store

    async def append(self, stream: str, data: bytes, **options: Any) -> Position:
        await self._store.travel("append")
        position = await self._store.core.log.append(stream, data, **options)
        await self._store.back()
        return position

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        await self._store.travel("read")
        entries = await self._store.core.log.read(stream, after, limit, max_bytes)
        await self._store.back()
        return entries

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        await self._store.travel("newest")
        entries = await self._store.core.log.newest(stream, limit, max_bytes)
        await self._store.back()
        return entries

    async def touch(self, stream: str, ttl: float) -> bool:
        await self._store.travel("touch")
        return await self._store.core.log.touch(stream, ttl)

    def listen(
        self,
        stream: str,
        heard: Callable[[Entry], None],
        *,
        interrupted: Callable[[], None] | None = None,
        topic: str | None = None,
    ) -> Callable[[], None]:
        return self._store.core.log.listen(stream, lambda entry: self._store.arrive(lambda: heard(entry)))

    async def wait_until_listening(self, stream: str) -> None:
        await self._store.travel("wait_until_listening")


class _Bus:
    def __init__(self, store: WorkerStore) -> None:
        self._store = store

    async def publish(self, topic: str, data: bytes) -> None:
        await self._store.travel("publish")
        for each in list(self._store._shared.live.values()):
            each.arrive(lambda each=each: each.topics.notify(topic, data))  # type: ignore[misc]

    async def send(self, worker: str, topic: str, data: bytes) -> bool:
        await self._store.travel("send")
        there = self._store._shared.live.get(worker)
        if there is None:
            return False
        there.arrive(lambda: there.topics.notify(topic, data))
        return True

    def subscribe(
        self, topic: str, receive: Callable[[bytes], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        stops = [self._store.topics.add(topic, receive)]
        if interrupted is not None:
            stops.append(self._store.lost.add("", lambda _: interrupted()))
        return lambda: _stop_all(stops)


def _stop_all(stops: Sequence[Callable[[], None]]) -> None:
    for stop in stops:
        stop()
