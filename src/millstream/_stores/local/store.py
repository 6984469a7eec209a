"""A worker's side of the store that its parent holds."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from millstream._stores.base import PAGE_BYTES, Entry, Index, Position, Told
from millstream._stores.local import wire
from millstream._stores.local.link import Events, Link
from millstream._stores.memory.topics import Topics, Watchers
from millstream._stores.parent import Address
from millstream._stores.rates import Charge, Decision, Seat

CLOCK: Final = 10.0
"""Seconds until the clock of the store is looked at again."""

T = TypeVar("T")


class _Receivers(Generic[T]):
    """Those who hear what is pushed, by topic; the parent hears of the first, and when the last has gone."""

    __slots__ = ("_interrupted", "_kind", "acknowledged", "topics")

    def __init__(self, kind: Callable[..., wire.Request]) -> None:
        self._kind = kind
        self.topics = Topics[T]()
        self._interrupted = Watchers()
        self.acknowledged: dict[str, asyncio.Future[Any] | None] = {}
        """For each topic, what is done when the parent knows."""

    def add(
        self, link: Link, topic: str, heard: Callable[[T], None], interrupted: Callable[[], None] | None
    ) -> Callable[[], None]:
        stop_hearing = self.topics.add(topic, heard)
        stop_telling = self._interrupted.add(interrupted) if interrupted is not None else None
        if topic not in self.acknowledged:
            self.acknowledged[topic] = link.say(self._kind, topic, True)

        def stop() -> None:
            stop_hearing()
            if stop_telling is not None:
                stop_telling()
            if topic not in self.topics and self.acknowledged.pop(topic, False) is not False:
                link.say(self._kind, topic, False)

        return stop

    def again(self, link: Link) -> None:
        """The connection is a new one: tell the parent everything."""
        for topic in self.acknowledged:
            self.acknowledged[topic] = link.say(self._kind, topic, True)

    def interrupted(self) -> None:
        self._interrupted.tell()

    def clear(self) -> None:
        self.topics.clear()
        self._interrupted.clear()
        self.acknowledged.clear()


class LocalKeyValue:
    """`KeyValue` in the parent."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    async def get(self, key: str) -> bytes | None:
        found: bytes | None = await self._link.ask(wire.Get, key)
        return found

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        found: list[bytes | None] = await self._link.ask(wire.GetMany, list(keys))
        return found

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        await self._link.ask(wire.Put, key, value, ttl, lossy)

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        done: bool = await self._link.ask(wire.CompareAndSet, key, expected, value, ttl, lossy)
        return done

    async def delete(self, key: str) -> bool:
        done: bool = await self._link.ask(wire.Delete, key)
        return done

    async def keys(self, prefix: str) -> list[str]:
        found: list[str] = await self._link.ask(wire.Keys, prefix)
        return found


class LocalLog:
    """`EventLog` in the parent."""

    __slots__ = ("_link", "receivers")

    def __init__(self, link: Link) -> None:
        self._link = link
        self.receivers = _Receivers[Entry](wire.Listen)

    async def append(
        self, stream: str, data: bytes, *, ttl: float, max_entries: int, index: Index | None = None, seal: bool = False
    ) -> Position:
        position: Position = await self._link.ask(wire.Append, stream, data, ttl, max_entries, index, seal)
        return position

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        found: Sequence[Entry] = await self._link.ask(wire.Read, stream, after, limit, max_bytes)
        return found

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        found: Sequence[Entry] = await self._link.ask(wire.Newest, stream, limit, max_bytes)
        return found

    async def touch(self, stream: str, ttl: float) -> bool:
        done: bool = await self._link.ask(wire.Touch, stream, ttl)
        return done

    async def trim(self, stream: str) -> None:
        await self._link.ask(wire.Trim, stream)

    def listen(
        self, stream: str, heard: Callable[[Entry], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        return self.receivers.add(self._link, stream, heard, interrupted)

    async def listening(self, stream: str) -> None:
        if stream not in self.receivers.acknowledged:
            return
        known = self.receivers.acknowledged[stream]
        if known is None or (known.done() and known.exception() is not None):
            # It was asked for while there was no connection: a new one asks for all.
            await self._link.ask(wire.Listen, stream, True)
        else:
            await asyncio.shield(known)


class LocalBus:
    """`Bus` through the parent."""

    __slots__ = ("_link", "receivers")

    def __init__(self, link: Link) -> None:
        self._link = link
        self.receivers = _Receivers[bytes](wire.Subscribe)

    async def publish(self, topic: str, data: bytes) -> None:
        await self._link.ask(wire.Publish, topic, data)

    async def send(self, worker: str, topic: str, data: bytes) -> bool:
        done: bool = await self._link.ask(wire.Send, worker, topic, data)
        return done

    def subscribe(
        self, topic: str, receive: Callable[[bytes], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        return self.receivers.add(self._link, topic, receive, interrupted)


class LocalMembers:
    """`Members` in the parent."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    async def join(self, group: str, member: str, value: bytes, told: Told) -> tuple[bytes, Position | None]:
        joined: tuple[bytes, Position | None] = await self._link.ask(wire.Join, group, member, value, told)
        return joined

    async def leave(self, group: str, member: str, told: Told) -> Position | None:
        position: Position | None = await self._link.ask(wire.Leave, group, member, told)
        return position

    async def present(self, group: str) -> list[tuple[str, bytes]]:
        found: list[tuple[str, bytes]] = await self._link.ask(wire.Present, group)
        return found

    async def abandoned(self) -> list[tuple[str, str, bytes]]:
        found: list[tuple[str, str, bytes]] = await self._link.ask(wire.Abandoned)
        return found


class LocalRates:
    """`Rates` in the parent."""

    __slots__ = ("_link",)

    lasting = False

    def __init__(self, link: Link) -> None:
        self._link = link

    async def take(self, charges: Sequence[Charge]) -> Decision:
        decision: Decision = await self._link.ask(wire.Take, list(charges))
        return decision

    async def leave(self, seats: Sequence[Seat]) -> None:
        await self._link.ask(wire.Vacate, list(seats))


class LocalWorkers:
    """`Workers` by their connections to the parent."""

    __slots__ = ("_link", "changed", "lease", "me")

    def __init__(self, link: Link) -> None:
        self._link = link
        self.me = ""
        self.lease = wire.LEASE
        self.changed = Watchers()

    async def alive(self, worker: str) -> bool:
        done: bool = await self._link.ask(wire.Alive, worker)
        return done

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        return self.changed.add(changed)


class LocalStore:
    """What a worker has of a store that its parent holds. For one event loop."""

    __slots__ = (
        "_ahead", "_changed", "_looked", "_looks", "bus", "epoch", "kv", "link", "log", "members", "rates", "shared",
        "workers",
    )  # fmt: skip

    def __init__(self, address: Address, url: str) -> None:
        """`url` is what the parent opens; a path in it is absolute."""
        self.link = Link(
            address, url, Events(self._welcome, self._heard, self._message, self._missed, self._workers_changed)
        )
        self.epoch = ""
        self.shared = True
        self.kv = LocalKeyValue(self.link)
        self.log = LocalLog(self.link)
        self.bus = LocalBus(self.link)
        self.members = LocalMembers(self.link)
        self.rates = LocalRates(self.link)
        self.workers = LocalWorkers(self.link)
        self._changed = Watchers()
        self._ahead = time.time() - time.monotonic()
        """How far the store's clock is ahead of this process's monotonic one."""
        self._looked = 0.0
        self._looks: asyncio.Future[Any] | None = None

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        return self._changed.add(changed)

    def time(self) -> float:
        now = time.monotonic()
        if now - self._looked > CLOCK and (self._looks is None or self._looks.done()):
            self._looked = now
            self._looks = self.link.say(wire.Clock)
            if self._looks is not None:
                self._looks.add_done_callback(lambda answer: self._set_clock(now, answer))
        return now + self._ahead

    async def doubt(self) -> str:
        why: bytes = await self.link.ask(wire.Doubt)
        return why.decode()

    async def open(self) -> None:
        await self.link.open()

    async def close(self) -> None:
        for part in (self.log.receivers, self.bus.receivers):
            part.clear()
        self._changed.clear()
        self.workers.changed.clear()
        await self.link.close()

    def _set_clock(self, asked: float, answer: asyncio.Future[Any]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self._ahead = answer.result() - (asked + time.monotonic()) / 2.0

    def _welcome(self, greeting: wire.Greeting) -> None:
        again, before = bool(self.workers.me), self.epoch
        self.workers.me, self.epoch = greeting.me, greeting.epoch
        self._looked = time.monotonic()
        self._ahead = greeting.time - self._looked
        for part in (self.log.receivers, self.bus.receivers):
            part.again(self.link)
        if again:
            self._missed()
            self.workers.changed.tell()
            if before != self.epoch:
                self._changed.tell()

    def _heard(self, heard: wire.Heard) -> None:
        self.log.receivers.topics.tell(heard.stream, heard.entry)

    def _message(self, message: wire.Message) -> None:
        self.bus.receivers.topics.tell(message.topic, message.data)

    def _missed(self) -> None:
        self.log.receivers.interrupted()
        self.bus.receivers.interrupted()

    def _workers_changed(self) -> None:
        self.workers.changed.tell()
