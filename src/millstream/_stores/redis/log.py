"""`EventLog` in Redis' streams. An entry's id is its offset, so a stream shows what it lost.

Streams of the hub's slot are heard through the one connection that reads. Whoever follows another one, the log of a
call, is noted beside it: the worker that appends learns of it with the reply and sends the entry to its inbox. So a
stream that nobody follows costs its appends and no more.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from millstream._protocol.errors import LocalError
from millstream._stores.base import PAGE_BYTES, Entry, Gap, Index, Position, StoreFull
from millstream._stores.memory.topics import Topics, Watchers, never
from millstream._stores.redis.commands import Asked, Commands
from millstream._stores.redis.inbox import Outbox
from millstream._stores.redis.keys import Keys, in_hub
from millstream._stores.redis.reader import Fields, Reader
from millstream._stores.redis.recent import REMEMBERED, Recent
from millstream._stores.redis.scripts import script
from millstream._stores.redis.standing import Standing

MAX_ENTRY: Final = 32 * 1024 * 1024
INDEX_STREAMS: Final = 100_000
FOLLOW_SECONDS: Final = 3600
"""How long a worker that follows a stream is noted, unless it says so again."""
CONTROL: Final = "control:bus"
"""The stream of messages to all workers."""
FOLLOWED: Final = "\0"
"""In front of the name of a stream: the topic under which its entries come to an inbox."""


def milliseconds(ttl: float) -> int:
    """A time to live as Redis takes it."""
    return max(1, min(int(ttl * 1000), 2**53))


class RedisLog:
    """The streams."""

    def __init__(
        self,
        commands: Commands,
        keys: Keys,
        standing: Standing,
        reader: Reader,
        outbox: Outbox,
        recent: Recent,
        *,
        room: int,
    ) -> None:
        # configuration
        self._commands = commands
        self._keys = keys
        self._standing = standing
        self._reader = reader
        self._outbox = outbox
        self._recent = recent
        self._room = room
        """The bytes that the indexes of one kind may have."""
        # process
        self._listeners = Topics[Entry]()
        self._interrupted: dict[str, Watchers] = {}
        self._followed: set[str] = set()
        """The streams outside the hub's slot beside which this worker is noted."""
        self._arranged: dict[str, asyncio.Task[None]] = {}
        """What makes that streams with listeners are heard."""
        self._append = script("append")
        self._reading = script("read")

    async def append(
        self, stream: str, data: bytes, *, ttl: float, max_entries: int, index: Index | None = None, seal: bool = False
    ) -> Position:
        if len(data) > MAX_ENTRY:
            raise StoreFull(f"An entry of {len(data)} bytes exceeds the {MAX_ENTRY} that Redis is given at once.")
        standing, keys = self._standing, self._keys
        hub = in_hub(stream)
        if index is not None and not (hub and in_hub(index.stream)):
            raise LocalError("In Redis only streams of the hub have an index: others may be on another server.")
        meta = keys.meta(stream)
        names = [keys.stream(stream), meta, keys.places(standing.me) if hub else meta]
        names.append(keys.generation if hub else keys.followers(stream))
        place, number = await standing.take()
        try:
            me = place if hub else f"{standing.me}.{place}"
            about = ""
            if hub:
                about = f"{standing.me} {place} {number} {milliseconds(ttl)} {max_entries}"
            rest: list[Any] = [data, milliseconds(ttl), max_entries, int(seal), standing.floor(stream), about]
            if index is not None:
                kind = index.stream.partition(":")[0]
                names += [keys.stream(index.stream), keys.order(kind), keys.sizes(kind)]
                kept: list[Any] = [milliseconds(index.ttl), index.max_entries, self._room, INDEX_STREAMS]
                rest[-1] = " ".join(map(str, [about, *kept, index.stream]))
                rest += kept

            def asked() -> Asked:
                return names, [me, number, standing.epoch, standing.run if hub else "", *rest]

            reply = await self._commands.run(self._append, asked)
        finally:
            standing.give(place)
        position = Position(reply[1].decode(), int(reply[0]))
        standing.seen(stream, position.offset)
        if hub:
            self._recent.add(stream, position.offset, rest[5].encode(), data)
        if reply[2]:
            self._forward(stream, position, data, reply[2])
        return position

    def _forward(self, stream: str, position: Position, data: bytes, followers: Sequence[bytes]) -> None:
        """Those who follow a stream outside the hub's slot get the entry."""
        me = self._standing.me
        for each in followers:
            worker = each.decode()
            if worker == me:
                self._listeners.tell(stream, Entry(position, data))
            else:
                head = f"{position.epoch} {position.offset} ".encode()
                self._outbox.post(worker, FOLLOWED + stream, head + data, self._keys.followers(stream))

    def take(self, topic: str, message: bytes) -> None:
        """An entry that another worker appended came to the inbox."""
        stream = topic.removeprefix(FOLLOWED)
        epoch, offset, data = message.split(b" ", 2)
        self._listeners.tell(stream, Entry(Position(epoch.decode(), int(offset)), data))

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        start = "" if after is None else after.offset
        epoch, gap, entries = await self._read(stream, start, limit, max_bytes, "")
        oldest, newest = (_positions(epoch, gap)) if gap else (None, None)
        if after is not None and epoch != after.epoch and not gap:
            oldest, newest = await self._ends(stream)
        if after is not None and (gap or epoch != after.epoch):
            raise Gap(epoch, oldest, newest)
        return entries

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        _, _, entries = await self._read(stream, "", limit, max_bytes, "newest")
        return entries[::-1]

    async def _ends(self, stream: str) -> tuple[Position | None, Position | None]:
        oldest, newest = await self._read(stream, "", 1, 1, ""), await self._read(stream, "", 1, 1, "newest")
        return (oldest[2][0].position if oldest[2] else None, newest[2][0].position if newest[2] else None)

    async def _read(
        self, stream: str, after: int | str, limit: int, max_bytes: int, order: str
    ) -> tuple[str, Sequence[bytes], list[Entry]]:
        keys = self._keys
        names = [keys.stream(stream), keys.meta(stream)]
        if in_hub(stream):
            names.append(keys.generation)

        def asked() -> Asked:
            return names, [after, limit, max_bytes, order, self._standing.run]

        told, gap, found = await self._commands.run(self._reading, asked)
        epoch = told.decode() or self._standing.epoch
        entries: list[Entry] = []
        for id, data, about in zip(found[::3], found[1::3], found[2::3], strict=True):
            entries.append(Entry(Position(epoch, offset := int(id)), data))
            if about:  # not in an index, nor in the log of a call
                self._recent.add(stream, offset, about, data)
        return epoch, gap, entries

    async def touch(self, stream: str, ttl: float) -> bool:
        keys = self._keys
        names = [keys.stream(stream), keys.meta(stream)]
        return bool(await self._commands.run(script("touch"), (names, [milliseconds(ttl)])))

    async def trim(self, stream: str) -> None:
        keys = self._keys
        name = keys.stream(stream)
        await self._commands.ask(name, "UNLINK", name, keys.meta(stream))
        self._recent.forget(stream)

    def listen(
        self, stream: str, heard: Callable[[Entry], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        stop_hearing = self._listeners.add(stream, heard)
        stop_watching = never
        if interrupted is not None:
            stop_watching = self._interrupted.setdefault(stream, Watchers()).add(interrupted)
        self._arrange(stream)

        def stop() -> None:
            stop_hearing()
            stop_watching()
            if stream not in self._listeners:
                self._interrupted.pop(stream, None)
                self._unfollow(stream)

        return stop

    async def listening(self, stream: str) -> None:
        if stream in self._listeners:
            await asyncio.shield(self._arrange(stream))

    def _arrange(self, stream: str) -> asyncio.Task[None]:
        """See to it that the appends of every worker are heard here: a task that is done when they are."""
        task = self._arranged.get(stream)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            follow = self._read_along(stream) if in_hub(stream) else self._be_noted(stream)
            task = self._arranged[stream] = asyncio.create_task(follow)
            task.add_done_callback(_retrieve)
        return task

    async def _read_along(self, stream: str) -> None:
        key = self._keys.stream(stream)
        last = await self._commands.ask(key, "HGET", self._keys.meta(stream), "last")
        if stream in self._listeners:
            self._reader.follow(key, f"{last.decode()}-0" if last else "0-0", self._taker(stream))
            await self._reader.cover(key)

    async def look_again(self, *, lost: bool) -> None:
        """Another run of Redis has the streams: read along from where they end, if that's not as far as before.

        Args:
            lost: entries may be others than those that were seen.
        """
        for stream in tuple(self._arranged):
            if in_hub(stream):
                key = self._keys.stream(stream)
                last = await self._commands.ask(key, "HGET", self._keys.meta(stream), "last")
                self._reader.rewind(key, int(last or 0))
        if lost:
            for stream in self._recent.streams():
                with self._recent.replaced(stream):
                    await self.newest(stream, REMEMBERED)

    async def _be_noted(self, stream: str) -> None:
        self._followed.add(stream)
        await self._note(stream)

    async def note_all(self) -> None:
        """Be noted again beside every stream that is followed: under a new name, or because time went by."""
        await asyncio.gather(*(self._note(stream) for stream in tuple(self._followed)))

    def interrupt(self, *, hub: bool = False) -> None:
        """What was sent to this worker may have been lost, or also what is in the hub's slot."""
        for stream, watchers in tuple(self._interrupted.items()):
            if hub or not in_hub(stream):
                watchers.tell()

    def end_all(self) -> None:
        """Nobody listens any more."""
        self._listeners.clear()
        self._interrupted.clear()
        self._followed.clear()
        for task in self._arranged.values():
            task.cancel()
        self._arranged.clear()

    async def _note(self, stream: str) -> None:
        names = [self._keys.followers(stream)]
        await self._commands.run(script("follow"), (names, [self._standing.me, FOLLOW_SECONDS * 1000]))

    def _unfollow(self, stream: str) -> None:
        """Nobody listens here any more. A note that stays costs others one message, which isn't taken."""
        task = self._arranged.pop(stream, None)
        if task is not None:
            task.cancel()
        self._reader.leave(self._keys.stream(stream))
        if stream in self._followed:
            self._followed.discard(stream)
            self._outbox.forget(self._keys.followers(stream))

    def _taker(self, stream: str) -> Callable[[str, Fields], None]:
        def take(id: str, fields: Fields) -> None:
            offset = int(id.partition("-")[0])
            self._standing.seen(stream, offset)
            self._recent.add(stream, offset, fields[3], fields[1])
            self._listeners.tell(stream, Entry(Position(self._standing.epoch, offset), fields[1]))

        return take


def _positions(epoch: str, ends: Sequence[bytes]) -> tuple[Position | None, Position | None]:
    oldest, newest = (Position(epoch, int(end)) if end else None for end in ends)
    return oldest, newest


def _retrieve(task: asyncio.Task[None]) -> None:
    """A failure is of interest only to whoever waits."""
    if not task.cancelled():
        task.exception()
