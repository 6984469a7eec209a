"""What the tests of the hub share: outlets that keep what is written, a clock to turn, a store that is far away."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from millstream.hub import Event, Hub, HubLimits
from millstream.stores.base import PAGE_BYTES, Bus, Entry, EventLog, KeyValue, Position
from millstream.stores.memory.store import MemoryStore
from patience import WAIT


class Clock:
    """A time that only tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def encode_line(event: Event) -> bytes:
    """One JSON line an event: easy to read back, and another kind than server-sent events."""
    data = None if event.data is None else event.data.decode()
    return json.dumps([event.event, data, event.id]).encode() + b"\n"


class Outlet:
    """An outlet that keeps the chunks it is given; what is not taken stays buffered."""

    def __init__(self, *, takes: bool = True) -> None:
        self.takes = takes
        self.closed = False
        self.chunks: list[bytes] = []
        self._callbacks: list[Callable[[], None]] = []
        self._written = asyncio.Event()

    @property
    def buffered(self) -> int:
        """Everything, when nothing is taken."""
        return 0 if self.takes else sum(map(len, self.chunks))

    def write(self, data: bytes) -> None:
        """Keep a chunk."""
        if not self.closed:
            self.chunks.append(data)
            self._written.set()

    async def drain(self) -> None:
        """Give others a turn, as a real outlet may."""
        await asyncio.sleep(0)

    def close(self) -> None:
        """The end, from either side."""
        if not self.closed:
            self.closed = True
            callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                callback()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back at the end."""
        if self.closed:
            callback()
        else:
            self._callbacks.append(callback)

    def events(self) -> list[tuple[str | None, str | None, str]]:
        """(name, data, id) of everything written, places included."""
        lines = b"".join(self.chunks).splitlines()
        return [(event, data, id) for event, data, id in map(json.loads, lines)]

    @property
    def data(self) -> list[str]:
        """The data of the publishers' events."""
        return [data for event, data, _ in self.events() if data is not None and event not in ("gap", "cut")]

    @property
    def last_id(self) -> str:
        """What a client would send as its last event id."""
        return ([""] + [id for _, _, id in self.events() if id])[-1]

    @property
    def gaps(self) -> list[str]:
        """The reasons of the gaps that were told."""
        return [json.loads(data or "")["reason"] for event, data, _ in self.events() if event == "gap"]

    async def until(self, count: int) -> list[str]:
        """Wait for so many events of publishers."""
        async with asyncio.timeout(WAIT):
            while len(self.data) < count:
                self._written.clear()
                await self._written.wait()
        return self.data


@asynccontextmanager
async def running(
    store: Any = None, *, clock: Callable[[], float] | None = None, authorize: Any = None, **limits: Any
) -> AsyncIterator[Hub]:
    """A hub, open for the length of the block."""
    clock = clock or Clock()
    hub = Hub(store or MemoryStore(clock=clock), HubLimits(**limits), clock=clock, authorize=authorize)
    await hub.open()
    try:
        yield hub
    finally:
        await hub.close()


async def listen(hub: Hub, *channels: str, **options: Any) -> Outlet:
    """A new subscriber to channels, `broadcast` when none is named."""
    outlet = Outlet()
    await hub.subscribe(channels or ("broadcast",), outlet, encode=encode_line, **options)
    return outlet


async def receive(hub: Hub, client_id: str, **options: Any) -> Outlet:
    """A new connection of a client to its mailbox."""
    outlet = Outlet()
    await hub.receive(client_id, outlet, encode=encode_line, **options)
    return outlet


async def turns(count: int = 20) -> None:
    """Let the tasks of the hub run."""
    for _ in range(count):
        await asyncio.sleep(0)


class DistantStore:
    """A memory store as if behind a network: every call waits some turns, before and after; bus messages come late."""

    def __init__(self, turns: Callable[[], int], store: MemoryStore) -> None:
        self.epoch = store.epoch
        self.shared = True
        self._store = store
        self._turns = turns
        self.kv: KeyValue = _DistantKeyValue(self, store.kv)
        self.log: EventLog = _DistantLog(self, store.log)
        self.bus: Bus = _DistantBus(self, store.bus)

    async def wait(self) -> None:
        """The way through the network."""
        for _ in range(self._turns()):
            await asyncio.sleep(0)

    async def open(self) -> None:
        """It is open."""

    async def close(self) -> None:
        """It stays so."""


class _DistantKeyValue:
    def __init__(self, distance: DistantStore, kv: KeyValue) -> None:
        self._distance = distance
        self._kv = kv

    async def get(self, key: str) -> bytes | None:
        await self._distance.wait()
        return await self._kv.get(key)

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        await self._distance.wait()
        await self._kv.put(key, value, ttl, lossy=lossy)

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        await self._distance.wait()
        return await self._kv.compare_and_set(key, expected, value, ttl, lossy=lossy)

    async def delete(self, key: str) -> bool:
        await self._distance.wait()
        return await self._kv.delete(key)

    async def keys(self, prefix: str) -> list[str]:
        await self._distance.wait()
        return await self._kv.keys(prefix)


class _DistantLog:
    def __init__(self, distance: DistantStore, log: EventLog) -> None:
        self._distance = distance
        self._log = log

    async def append(self, stream: str, data: bytes, *, ttl: float, max_entries: int) -> Position:
        await self._distance.wait()
        position = await self._log.append(stream, data, ttl=ttl, max_entries=max_entries)
        await self._distance.wait()
        return position

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        await self._distance.wait()
        entries = await self._log.read(stream, after, limit, max_bytes)
        await self._distance.wait()
        return entries

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        await self._distance.wait()
        entries = await self._log.newest(stream, limit, max_bytes)
        await self._distance.wait()
        return entries

    async def touch(self, stream: str, ttl: float) -> bool:
        await self._distance.wait()
        return await self._log.touch(stream, ttl)

    async def trim(self, stream: str) -> None:
        await self._log.trim(stream)


class _DistantBus:
    def __init__(self, distance: DistantStore, bus: Bus) -> None:
        self._distance = distance
        self._bus = bus

    async def publish(self, topic: str, data: bytes) -> None:
        await self._distance.wait()
        await self._bus.publish(topic, data)

    def subscribe(
        self, topic: str, receive: Callable[[bytes], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        return self._bus.subscribe(topic, receive, interrupted=interrupted)
