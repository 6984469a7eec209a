"""A `Log` in Redis streams. An entry's id is its offset. Offsets are consecutive.

In a Cluster, all streams are in one slot, because one connection reads every stream that has listeners.
"""

import asyncio
from collections.abc import Callable, Sequence

from millstream._stores.base import EPHEMERAL, PAGE_BYTES, Entry, Gap, Index, Position, StoreFull
from millstream._stores.memory.topics import Topics, Watchers
from millstream._stores.redis.client import Argument, RedisClient
from millstream._stores.redis.keys import RedisKeys
from millstream._stores.redis.reader import Fields, StreamReader
from millstream._stores.redis.scripts import script
from millstream._stores.redis.state import RedisState
from millstream._stores.tail import consecutive

MAX_ENTRY = 32 * 1024 * 1024
INDEX_STREAMS = 100_000


def milliseconds(ttl: float) -> int:
    """Convert a time to live to milliseconds."""
    return max(1, min(int(ttl * 1000), 2**53))


class RedisLog:
    """The streams."""

    def __init__(
        self, client: RedisClient, keys: RedisKeys, state: RedisState, reader: StreamReader, *, room: int
    ) -> None:
        # configuration
        self._client = client
        self._keys = keys
        self._state = state
        self._reader = reader
        self._room = room
        """Maximum bytes of the indexes of one kind."""
        # process
        self._listeners = Topics[Entry]()
        self._interrupted = Watchers()
        self._start_tasks: dict[str, asyncio.Task[None]] = {}
        """Tasks that start reading a stream for its listeners, by stream."""
        self._append = script("append")
        self._read_script = script("read")

    async def append(
        self, stream: str, data: bytes, *, ttl: float, max_entries: int, index: Index | None = None, seal: bool = False
    ) -> Position:
        if len(data) > MAX_ENTRY:
            raise StoreFull(f"An entry of {len(data)} bytes exceeds the maximum of {MAX_ENTRY} for Redis.")
        state, keys = self._state, self._keys
        names = [keys.stream(stream), keys.meta(stream), keys.places(state.id), keys.generation]
        place, number = await state.take_place()
        try:
            args: list[Argument] = [place, number, state.epoch, data, milliseconds(ttl), max_entries, int(seal)]
            if index is not None:
                kind = index.stream.partition(":")[0]
                names += [keys.stream(index.stream), keys.order(kind), keys.sizes(kind)]
                args += [milliseconds(index.ttl), index.max_entries, self._room, INDEX_STREAMS]
            confirm = stream.partition(":")[0] not in EPHEMERAL
            offset, epoch = await self._client.run(self._append, names, args, confirm=confirm)
        finally:
            state.free_place(place)
        position = Position(epoch.decode(), int(offset))
        state.adopt(position.epoch)
        return position

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        epoch, gap, entries = await self._read(stream, "" if after is None else after.offset, limit, max_bytes, "")
        if after is None or (not gap and epoch == after.epoch):
            return entries
        oldest, newest = (Position(epoch, int(end)) if end else None for end in gap or (b"", b""))
        if not gap:
            first, last = await self._read(stream, "", 1, 1, ""), await self._read(stream, "", 1, 1, "newest")
            oldest, newest = (part[2][0].position if part[2] else None for part in (first, last))
        raise Gap(epoch, oldest, newest)

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        _, _, entries = await self._read(stream, "", limit, max_bytes, "newest")
        return entries[::-1]

    async def _read(
        self, stream: str, after: int | str, limit: int, max_bytes: int, order: str
    ) -> tuple[str, Sequence[bytes], list[Entry]]:
        keys, state = self._keys, self._state
        names = [keys.stream(stream), keys.meta(stream), keys.generation]
        args = [after, limit, max_bytes, order, state.epoch]
        told, gap, found = await self._client.run(self._read_script, names, args)
        epoch = told.decode()
        state.adopt(epoch)
        entries = [Entry(Position(epoch, int(id)), data) for id, data in zip(found[::2], found[1::2], strict=True)]
        return epoch, gap, entries

    async def touch(self, stream: str, ttl: float) -> bool:
        keys = self._keys
        names = [keys.stream(stream), keys.meta(stream)]
        return bool(await self._client.run(script("touch"), names, [milliseconds(ttl)]))

    async def trim(self, stream: str) -> None:
        keys = self._keys
        await self._client.run(script("trim"), [keys.stream(stream), keys.meta(stream)], [])

    def listen(
        self, stream: str, hear: Callable[[Entry], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        stop_hearing = self._listeners.add(stream, consecutive(hear, interrupted))
        stop_watching = self._interrupted.add(interrupted)
        self._arrange(stream)

        def stop() -> None:
            stop_hearing()
            stop_watching()
            if stream not in self._listeners:
                task = self._start_tasks.pop(stream, None)
                if task is not None:
                    task.cancel()
                self._reader.leave(self._keys.stream(stream))

        return stop

    async def wait_until_listening(self, stream: str) -> None:
        if stream in self._listeners:
            await asyncio.shield(self._arrange(stream))

    def _arrange(self, stream: str) -> asyncio.Task[None]:
        """Return a task that finishes once new entries of a stream arrive here."""
        task = self._start_tasks.get(stream)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._start_tasks[stream] = asyncio.create_task(self._read_along(stream))
            task.add_done_callback(_retrieve)
        return task

    async def _read_along(self, stream: str) -> None:
        key, last = self._keys.stream(stream), await self._last(stream)
        if stream in self._listeners:
            self._reader.follow(key, f"{last}-0", self._taker(stream))
            await self._reader.cover(key)

    async def _last(self, stream: str) -> int:
        meta = self._keys.meta(stream)
        return int(await self._client.ask(meta, "HGET", meta, "last") or 0)

    async def look_again(self) -> None:
        """Rewind to the current end of streams that now end earlier, for example after a failover.

        Raises:
            StoreUnavailable: the store didn't answer in time.
        """
        for stream in tuple(self._start_tasks):
            self._reader.rewind(self._keys.stream(stream), await self._last(stream))

    def interrupt(self) -> None:
        """Notify all listeners that entries may have been lost."""
        self._interrupted.notify()

    def end_all(self) -> None:
        """Stop all listeners."""
        self._listeners.clear()
        self._interrupted.clear()
        for task in self._start_tasks.values():
            task.cancel()
        self._start_tasks.clear()

    def _taker(self, stream: str) -> Callable[[str, Fields], None]:
        def take(id: str, fields: Fields) -> None:
            # Use the epoch of the append, which may differ from the one that this worker has.
            position = Position(fields[b"e"].decode(), int(id.partition("-")[0]))
            self._listeners.notify(stream, Entry(position, fields[b"d"]))

        return take


def _retrieve(task: asyncio.Task[None]) -> None:
    """Consume the error, which only waiters need."""
    if not task.cancelled():
        task.exception()
