"""Helpers of hub tests: outlets that record, a clock, a distant store, and clients."""

import asyncio
import inspect
import json
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from backend_stores import MemoryStore
from millstream._stores.base import Entry, Position
from millstream._stores.workers import LeasedWorker, WorkerTable, update_worker_table
from millstream._troubles import Troubles
from millstream.hub import Event, Hub, HubLimits, Member
from millstream.hub._event import unpack
from millstream.hub._journal import Journal
from millstream.hub._presence import STREAM, Presence
from patience import WAIT

PRESENCE = STREAM
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[str | None, str | None, str]).decode


class Clock:
    """A time that only tests advance."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def encode_line(event: Event) -> bytes:
    """Encode an event as one JSON line, which is easy to parse."""
    data = None if event.data is None else event.data.decode()
    return _encode([event.event, data, event.id]) + b"\n"


class Outlet:
    """An outlet that records chunks. What isn't read stays buffered."""

    def __init__(self, *, takes: bool = True) -> None:
        self.takes = takes
        self.closed = False
        self.chunks: list[bytes] = []
        self._callbacks: list[Callable[[], None]] = []
        self._written = asyncio.Event()

    @property
    def buffered(self) -> int:
        """The number of bytes if nothing is read."""
        return 0 if self.takes else sum(map(len, self.chunks))

    def write(self, data: bytes) -> None:
        """Record a chunk."""
        if not self.closed:
            self.chunks.append(data)
            self._written.set()

    async def drain(self) -> None:
        """Yield to the event loop, as a real outlet may."""
        await asyncio.sleep(0)

    def close(self) -> None:
        """Close the outlet and call the callbacks."""
        if not self.closed:
            self.closed = True
            callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                callback()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` on close, or immediately if already closed."""
        if self.closed:
            callback()
        else:
            self._callbacks.append(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Remove a callback."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def events(self) -> list[tuple[str | None, str | None, str]]:
        """Return (name, data, id) of all events, including those without data."""
        lines = b"".join(self.chunks).splitlines()
        return [_decode(line) for line in lines]

    @property
    def data(self) -> list[str]:
        """Data of published events, without `gap` and `cut`."""
        return [data for event, data, _ in self.events() if data is not None and event not in ("gap", "cut")]

    @property
    def last_id(self) -> str:
        """The last event id for a client to send."""
        return ([""] + [id for _, _, id in self.events() if id])[-1]

    @property
    def gaps(self) -> list[str]:
        """The reasons of the reported gaps."""
        return [json.loads(data or "")["reason"] for event, data, _ in self.events() if event == "gap"]

    async def until(self, count: int) -> list[str]:
        """Wait for `count` published events."""
        async with asyncio.timeout(WAIT):
            while len(self.data) < count:
                self._written.clear()
                await self._written.wait()
        return self.data


@asynccontextmanager
async def open_hub(
    store: Any = None, *, clock: Callable[[], float] | None = None, authorize: Any = None, **limits: Any
) -> AsyncIterator[Hub]:
    """Run a hub for the length of the block."""
    clock = clock or Clock()
    hub = Hub(store or MemoryStore(clock=clock), HubLimits(**limits), clock=clock, authorize=authorize)
    await hub.open()
    try:
        yield hub
    finally:
        await hub.close()


async def listen(hub: Hub, *channels: str, **options: Any) -> Outlet:
    """Subscribe a new outlet to channels, by default to `broadcast`."""
    outlet = Outlet()
    await hub.subscribe(channels or ("broadcast",), outlet, encode=encode_line, **options)
    return outlet


async def receive(hub: Hub, client_id: str, **options: Any) -> Outlet:
    """Connect a client to its mailbox."""
    outlet = Outlet()
    await hub.receive(client_id, outlet, encode=encode_line, **options)
    return outlet


async def turns(count: int = 20) -> None:
    """Let the tasks of the hub run."""
    for _ in range(count):
        await asyncio.sleep(0)


class DelayedStore:
    """A worker's view of a shared memory store with latency: calls wait some event loop turns before and after, and
    messages do, too.
    """

    def __init__(self, turns: Callable[[], int], store: MemoryStore, *, immediate: bool = False) -> None:
        self.epoch = store.epoch
        self.shared = True
        self.immediate = immediate
        """Appended entries reach listeners immediately."""
        self._turns = turns
        self.lease = 60.0
        self._store = store
        self.troubles = Troubles()
        self.workers: Any = LeasedWorker(self, self.troubles)
        self.kv: Any = _Delayed(self, store.kv)
        self.log: Any = _DelayedLog(self, store.log)
        self.bus: Any = _Delayed(self, store.bus)
        self.charge = store.backend.charge
        self.release = store.backend.release

    async def degraded_reason(self) -> str:
        """Return an empty reason: the store is healthy."""
        return ""

    def time(self) -> float:
        """Return the time, which is the same for all workers."""
        return time.time()

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Do nothing: the epoch never changes."""
        return lambda: None

    async def bind(self, worker: str) -> None:
        """Do nothing: there is no connection."""

    async def end_lease(self) -> None:
        """End the worker's lease, as if it had died. It continues under a new name."""

        def end(table: WorkerTable) -> bool:
            table.leases.setdefault(self.workers.me, 0.0)
            return table.end(self.workers.me, time.time())

        await update_worker_table(self._store.kv, end)
        self.workers.me = secrets.token_hex(6)

    async def wait(self) -> None:
        """Wait for the simulated latency."""
        for _ in range(self._turns()):
            await asyncio.sleep(0)

    async def open(self) -> None:
        """Do nothing: the store is open."""

    async def close(self) -> None:
        """Do nothing: the store stays open."""


def second_worker(store: MemoryStore) -> DelayedStore:
    """Return another worker's view of the store, without latency."""
    return DelayedStore(lambda: 0, store, immediate=True)


class _Delayed:
    """A part of a store whose methods have latency, except those that only listen."""

    def __init__(self, distance: DelayedStore, part: Any) -> None:
        self._distance = distance
        self._part = part

    def replace(self, part: Any) -> None:
        """Switch to another part."""
        self._part = part

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._part, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def delayed(*args: Any, **options: Any) -> Any:
            await self._distance.wait()
            result = await method(*args, **options)
            await self._distance.wait()
            return result

        return delayed


class _DelayedLog(_Delayed):
    def __init__(self, distance: DelayedStore, part: Any) -> None:
        super().__init__(distance, part)
        self._coming: deque[Callable[[], None]] = deque()
        self._bringing: asyncio.Task[None] | None = None
        self._listening: list[tuple[str, Callable[[Entry], None], Callable[[], None] | None, str | None]] = []

    def replace(self, part: Any) -> None:
        """Switch to another log, and move the listeners there."""
        super().replace(part)
        for stream, hear, interrupted, topic in self._listening:
            part.listen(stream, hear, interrupted=interrupted, topic=topic)

    def listen(
        self,
        stream: str,
        heard: Callable[[Entry], None],
        *,
        interrupted: Callable[[], None] | None = None,
        topic: str | None = None,
    ) -> Callable[[], None]:
        """Deliver entries late, but in order."""

        def hear(entry: Entry) -> None:
            self._bring(lambda: heard(entry))

        self._listening.append((stream, hear, interrupted, topic))
        stop: Callable[[], None] = self._part.listen(stream, hear, interrupted=interrupted, topic=topic)
        return stop

    async def wait_until_listening(self, stream: str) -> Position | None:
        """Wait until everything that's under way has arrived."""
        await self._distance.wait()
        position: Position | None = await self._part.wait_until_listening(stream)
        arrived = asyncio.Event()
        self._bring(arrived.set)
        await arrived.wait()
        return position

    def _bring(self, arrive: Callable[[], None]) -> None:
        """Let something arrive late, after everything before it."""
        if self._distance.immediate:
            arrive()
            return
        self._coming.append(arrive)
        if self._bringing is None or self._bringing.done():
            self._bringing = asyncio.ensure_future(self._bring_all())

    async def _bring_all(self) -> None:
        while self._coming:
            await self._distance.wait()
            if self._coming:
                self._coming.popleft()()


class Clients:
    """The clients that are connected to one worker."""

    def __init__(self, store: Any, clock: Callable[[], float] | None = None) -> None:
        self.presence = Presence(store, Journal(store, HubLimits(), store.time), clock or store.time, _ignore)

    async def join(self, channel: str, client: str, name: str = "") -> None:
        """Add a connection of a client."""
        self.presence.connect((channel, client), Member(client, name))
        await self.presence.update((channel, client))

    async def leave(self, channel: str, client: str) -> None:
        """Remove a connection of a client, if it has one."""
        connections = self.presence._connections.get((channel, client), [])
        if connections:
            self.presence.disconnect((channel, client), connections[0])
        await self.presence.update((channel, client))

    async def on(self, channel: str) -> list[str]:
        """Return the names of the clients on a channel, or their ids if they have none."""
        return [member.name or member.client_id for member in await self.presence.members(channel)]


async def announced(store: Any) -> list[str]:
    """Return all arrivals and departures, such as ``join chat ann``."""
    events, position = list[str](), None
    while page := await store.log.read(STREAM, position):
        position = page[-1].position
        for entry in page:
            event = unpack(entry)
            client = msgspec.json.decode(event.data or b"", type=Member).client_id
            events.append(f"{event.event} {event.channel.removeprefix('$presence.')} {client}")
    return events


async def _ignore(position: object) -> None:
    """Don't wait until an event is delivered: nothing delivers it."""
