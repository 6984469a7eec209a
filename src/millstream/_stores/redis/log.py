"""The log and the map in Redis, and the connection that follows streams.

A stream of the log is a Redis stream, and an entry's id is its offset. Offsets are consecutive. One connection waits
on every stream that this worker follows. It continues after the last entry it read, so a broken connection loses
nothing. Entries lost in Redis leave a hole in the offsets, which the listener detects. In a Cluster, all streams are in
one slot, because one connection reads all of them. The values of the map are Redis strings.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count, zip_longest
from typing import Any

from millstream._stores.base import (
    EPHEMERAL,
    ONCE_SECONDS,
    PAGE_BYTES,
    Entry,
    EntryRepeated,
    Gap,
    Index,
    Position,
    StoreFull,
    StoreUnavailable,
)
from millstream._stores.health import LogOnce
from millstream._stores.memory.log import REPEATED
from millstream._stores.memory.topics import Topics, Watchers
from millstream._stores.rates import MARK_BYTES, PART, owner_for
from millstream._stores.redis.client import Argument, RedisClient, RedisRequest
from millstream._stores.redis.keys import HUB, RedisKeys, tag_of
from millstream._stores.redis.scripts import script
from millstream._stores.tail import consecutive
from millstream._tasks import has_failed

_READ_PAGE = 64
_BLOCK = 2000
"""Milliseconds that one read blocks, less than `SILENCE`, after which a connection counts as broken."""
_PAUSE = 0.2
_PAUSES = 10
_TRIES = 40
_TURN = 1.0
_CANCEL = 0.05

Fields = Mapping[bytes, bytes]
Take = Callable[[str, Fields], None]
"""A callback that takes the id of an entry and its fields."""

_logger = logging.getLogger("millstream.stores")


class StreamReader:
    """A reader of several streams. Run `run` as a task."""

    def __init__(self, client: RedisClient, key: str) -> None:
        # configuration
        self._client = client
        self._key = key
        """Any key of the hub's slot."""
        self.poke: Callable[[], Any] | None = None
        """Returns a command that appends to a stream, which ends the pending read."""
        # process
        self._callbacks: dict[str, Take] = {}
        self._places: dict[str, str] = {}
        """The last id of each stream."""
        self._pending_streams: frozenset[str] = frozenset()
        """The streams of the pending read."""
        self._changed = asyncio.Event()
        self._moves = 0
        """Number of position changes. A read that began earlier is void."""
        self._read_task: asyncio.Task[Any] | None = None

    def follow(self, stream: str, last: str, take: Take) -> None:
        """Follow a stream after an id. Call `cover` to apply this immediately."""
        self._places[stream] = last
        self._callbacks[stream] = take
        self._moves += 1
        self._pending_streams -= {stream}

    def leave(self, stream: str) -> None:
        """Stop following a stream."""
        self._callbacks.pop(stream, None)
        self._places.pop(stream, None)

    def rewind(self, stream: str, end: int) -> None:
        """Continue after offset `end` if the last entry read was later: a failover may have lost entries."""
        if stream in self._callbacks and int(self._places[stream].partition("-")[0]) > end:
            self._places[stream] = f"{end}-0"
            self._moves += 1
            self._pending_streams = frozenset()

    def forget_all(self) -> None:
        """Stop following all streams."""
        self._callbacks.clear()
        self._places.clear()
        self._pending_streams = frozenset()

    async def cover(self, stream: str) -> None:
        """Wait until the current read includes a stream, or the next one will."""
        for _ in range(_TRIES):
            if stream in self._pending_streams or stream not in self._callbacks or self._read_task is None:
                return
            self._changed.clear()
            if self.poke is not None:
                with suppress(StoreUnavailable):
                    await self.poke()
            with suppress(TimeoutError):
                async with asyncio.timeout(_TURN):
                    await self._changed.wait()
                    continue
            # The read may wait on a former primary, or may have ended by itself.
            self._cancel_reading()

    def _cancel_reading(self) -> None:
        if self._read_task is not None:
            self._read_task.cancel()

    async def run(self) -> None:
        """Read until cancelled."""
        outage = LogOnce(_logger, "The store can't be read; retrying", "The store can be read again.")
        failures = 0
        try:
            while True:
                self._read_task = asyncio.create_task(self._read())
                await asyncio.wait([self._read_task])
                with outage:
                    if not self._read_task.cancelled():
                        self._read_task.result()
                failures = failures + 1 if outage.lasts else 0
                if failures:
                    self._pending_streams = frozenset()
                    await asyncio.sleep(_PAUSE * min(failures, _PAUSES))
        finally:
            reading, self._read_task = self._read_task, None
            while reading is not None and not reading.done():
                reading.cancel()  # redis-py ignores it while it connects
                await asyncio.wait([reading], timeout=_CANCEL)

    async def _read(self) -> None:
        streams = list(self._callbacks)
        self._pending_streams = frozenset(streams)
        self._changed.set()
        ids = [self._places[stream] for stream in streams]
        moves = self._moves
        command: list[Argument] = ["XREAD", "COUNT", _READ_PAGE, "BLOCK", _BLOCK, "STREAMS", *streams, *ids]
        reply = await self._client.block(self._key, *command)
        if moves != self._moves:
            return  # discard the reply: it's read again from the new positions
        for name, entries in reply or ():
            self._take(name.decode(), entries)

    def _take(self, stream: str, entries: list[tuple[bytes, Fields]]) -> None:
        for id, fields in entries:
            take = self._callbacks.get(stream)
            if take is None:
                return
            self._places[stream] = at = id.decode()
            try:
                take(at, fields)
            except Exception:  # a failing callback must not end the shared connection
                _logger.exception("A callback for entries of the store failed.")


class RedisState:
    """The state of one open connection."""

    def __init__(self) -> None:
        self.id = secrets.token_hex(6)
        """The identifier of this connection in retry detection."""
        self.epoch = ""
        self.renewed: Callable[[], None] = lambda: None
        """Callback for changes of `epoch`."""
        self._numbers = count(1)
        self._free: list[int] = []
        self._places = count()
        self._at: tuple[float, float] | None = None

    def adopt(self, epoch: str) -> None:
        """Set the epoch that a script returned. Epochs begin with a time, so late replies are ignored."""
        before = self.epoch
        if epoch == before or epoch[:11] < before[:11]:
            return
        self.epoch = epoch
        if before:
            self.renewed()

    def take_place(self) -> tuple[int, int]:
        """Return a place and a number that let Redis recognize retries. Release it with `free_place`."""
        return self._free.pop() if self._free else next(self._places), next(self._numbers)

    def free_place(self, place: int) -> None:
        """Release the place of a finished attempt."""
        self._free.append(place)

    def set_time(self, microseconds: int, asked: float) -> None:
        """Set the clock from the time of Redis, requested at the monotonic time `asked`."""
        now = time.monotonic()
        self._at = (microseconds / 1e6 + (now - asked) / 2, now)

    def time(self) -> float:
        """Return the time by Redis' clock."""
        if self._at is None:
            return time.time()
        at, measured = self._at
        return at + time.monotonic() - measured


_MAX_BATCH = 64
_MAX_BATCH_BYTES = 1024 * 1024
_REPEATED = "0"
"""The offset that a script gives for an entry that repeats another one."""
MAX_ENTRY = 32 * 1024 * 1024
INDEX_STREAMS = 100_000


def milliseconds(ttl: float) -> int:
    """Convert a time to live to milliseconds."""
    return max(1, min(int(ttl * 1000), 2**53))


class _Batch:
    """Entries of one stream that are appended by one script."""

    __slots__ = ("_bounds", "_positions", "_size", "request")

    def __init__(self, request: RedisRequest, bounds: tuple[int, int, int]) -> None:
        self.request = request
        self._bounds = bounds
        self._size = 0
        self._positions: list[asyncio.Future[Position]] = []

    def accepts(self, size: int, bounds: tuple[int, int, int]) -> bool:
        """Return whether another entry of this size fits. An entry that seals the stream is alone."""
        *_, seals = bounds
        return (
            not (seals or self.request.sent)
            and bounds == self._bounds
            and len(self._positions) < _MAX_BATCH
            and self._size + size <= _MAX_BATCH_BYTES
        )

    def add(self, size: int, position: asyncio.Future[Position]) -> None:
        """Add an entry, whose position is set later."""
        self._size += size
        self._positions.append(position)

    def settle(self, reply: asyncio.Future[Any]) -> str:
        """Pass each entry its position or error. Return the epoch, or an empty string after an error."""
        failure = reply.exception()
        offsets, epoch = ("", "") if failure is not None else (part.decode() for part in reply.result())
        for position, offset in zip_longest(self._positions, offsets.split()):
            if position.done():
                continue
            if failure is not None:
                position.set_exception(type(failure)(*failure.args))
            elif offset == _REPEATED:
                position.set_exception(EntryRepeated(REPEATED))
            else:
                position.set_result(Position(epoch, int(offset)))
        return epoch


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
        self._batches: dict[str, _Batch] = {}
        """Appends that are under way, the last one of each stream."""
        self._read_script = script("read")

    async def append(
        self,
        stream: str,
        data: bytes,
        *,
        ttl: float,
        max_entries: int,
        index: Index | None = None,
        seal: bool = False,
        once: str = "",
    ) -> Position:
        if len(data) > MAX_ENTRY:
            raise StoreFull(f"An entry of {len(data)} bytes exceeds the maximum of {MAX_ENTRY} for Redis.")
        keys, bounds = self._keys, (milliseconds(ttl), max_entries, int(seal))
        batch = self._batches.get(stream)
        if batch is None or not batch.accepts(len(data), bounds):
            batch = self._batches[stream] = self._begin(stream, bounds)
        request = batch.request
        entry: list[Argument] = [data, "", "", ""]
        if index is not None:
            kind = index.stream.partition(":")[0]
            request.keys += [keys.stream(index.stream), keys.order(kind), keys.sizes(kind)]
            entry[1:3] = [milliseconds(index.ttl), index.max_entries]
        if once:
            request.keys.append(keys.once(stream, once))
            entry[3] = milliseconds(ONCE_SECONDS)
        request.args += entry
        position: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        batch.add(len(data), position)
        return await position

    def _begin(self, stream: str, bounds: tuple[int, int, int]) -> "_Batch":
        """Send an append, to which entries are added until it's written."""
        state, keys = self._state, self._keys
        place, number = state.take_place()
        names = [keys.stream(stream), keys.meta(stream), keys.places(state.id), keys.generation]
        args: list[Argument] = [place, number, state.epoch, *bounds, self._room, INDEX_STREAMS]
        confirm = stream.partition(":")[0] not in EPHEMERAL
        batch = _Batch(self._client.send(self._append, names, args, confirm=confirm), bounds)

        def settle(reply: asyncio.Future[Any]) -> None:
            state.free_place(place)
            if self._batches.get(stream) is batch:
                del self._batches[stream]
            if epoch := batch.settle(reply):
                state.adopt(epoch)

        batch.request.reply.add_done_callback(settle)
        return batch

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
        if task is None or has_failed(task):
            task = self._start_tasks[stream] = asyncio.create_task(self._read_along(stream))
            task.add_done_callback(has_failed)
        return task

    async def _read_along(self, stream: str) -> None:
        key, last = self._keys.stream(stream), await self._last(stream)

        def take(id: str, fields: Fields) -> None:
            # Use the epoch of the append, which may differ from the one that this worker has.
            position = Position(fields[b"e"].decode(), int(id.partition("-")[0]))
            self._listeners.notify(stream, Entry(position, fields[b"d"]))

        if stream in self._listeners:
            self._reader.follow(key, f"{last}-0", take)
            await self._reader.cover(key)

    async def _last(self, stream: str) -> int:
        meta = self._keys.meta(stream)
        return int(await self._client.ask(meta, "HGET", meta, "last") or 0)

    async def look_again(self) -> None:
        """Rewind to the current end of streams that now end earlier, for example after a failover.

        Raises:
            StoreUnavailable: The store didn't respond in time.
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


MAX_VALUE = 32 * 1024 * 1024
_PAGE = 1000


class RedisMap:
    """The `Map` in Redis. Writes aren't retried after a broken connection: that could undo writes made since."""

    def __init__(self, client: RedisClient, keys: RedisKeys, room: int) -> None:
        self._client = client
        self._keys = keys
        self._room = room
        """Maximum bytes of the lossy values of one kind. A share may take a fraction of it."""

    async def get(self, key: str) -> bytes | None:
        name = self._keys.value(key)
        found: bytes | None = await self._client.ask(name, "GET", name)
        return found

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return list(await asyncio.gather(*map(self.get, keys)))

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        await self._set(key, ("any", b""), value, ttl, lossy)

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        compare = ("absent", b"") if expected is None else ("equal", expected)
        return await self._set(key, compare, value, ttl, lossy)

    async def delete(self, key: str) -> bool:
        return await self._set(key, ("any", b""), None, 1, False)

    async def keys(self, prefix: str) -> list[str]:
        found: set[str] = set()
        for key in await self._client.scan(self._keys.values_pattern(prefix), _PAGE):
            name = self._keys.name_of(key)
            if name is not None and name.startswith(prefix):
                found.add(name)
        return list(found)

    async def _set(self, key: str, compare: tuple[str, bytes], value: bytes | None, ttl: float, lossy: bool) -> bool:
        if value is not None and len(value) > MAX_VALUE:
            raise StoreFull(f"A value of {len(value)} bytes exceeds the maximum of {MAX_VALUE} for Redis.")
        share, kind = owner_for(key), key.partition(":")[0]
        names = [self._keys.value(key), *(self._keys.share(key) if share else ())]
        if tag_of(key) == HUB:
            names += [self._keys.order(kind), self._keys.sizes(kind)]
        most = self._room // PART if share else self._room
        about = (milliseconds(ttl), int(lossy), most, MARK_BYTES if share else "", self._room)
        args: list[Any] = [*compare, int(value is not None), value or b"", *about]
        return bool(await self._client.run(script("set"), names, args, again=False))
