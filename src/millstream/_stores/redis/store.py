"""The store in Redis: its log, its map, limits, and the connection that receives new entries.

It uses two connections: one for commands, and one that receives what other workers append. In a Cluster, there is one
command connection per server with keys. Redis replicates asynchronously, so a new or restarted primary may lack the
newest entries. The scripts detect this by the replication id and begin a new epoch.

A stream of the log is a Redis stream, and an entry's id is its offset. Offsets are consecutive. An append also
publishes the entry, for listeners to the whole stream, to its topic, or to the topic's first segment. Published entries
are only hints: after a broken connection and in a new epoch, listeners read the stream. In a Cluster, all streams and
channels are in one slot. The values of the map are Redis strings.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, count, zip_longest
from math import inf
from typing import Any

from msgspec import Struct, field

from millstream._override import override
from millstream._protocol.errors import LocalError
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
from millstream._stores.memory.log import REPEATED
from millstream._stores.rates import (
    Charge,
    ChargeResult,
    ConcurrencySlot,
    Quota,
    RateCharge,
    owner_for,
    share_room,
)
from millstream._stores.redis.address import RedisAddress
from millstream._stores.redis.client import ALLOW, PATIENCE, SILENCE, Argument, RedisClient, RedisRequest
from millstream._stores.redis.keys import HUB, RedisKeys, tag_of
from millstream._stores.tail import Listeners, Watchers, never
from millstream._tasks import cancel_all, has_failed, is_canceled
from millstream._troubles import LogOnce, run_on

_PAUSE = 0.2
_PAUSES = 10
_CANCEL = 0.05
_MOST_CHANNELS = 500
"""Maximum number of channels per command."""

_logger = logging.getLogger("millstream.stores")


class PushReader(Struct, eq=False):
    """A connection that receives published entries.

    Run `run` as a task. Redis publishes to a connection in order, and drops nothing while the connection lasts. Every
    connection has a number, so a caller can tell whether anything was lost in between.
    """

    _client: RedisClient
    _key: str
    """Any key of the hub's slot."""
    mark_channel: str
    """A channel that only this reader receives."""
    interrupted: Callable[[], None] = never
    """Called when a new connection receives all channels."""
    _callbacks: dict[bytes, Callable[[bytes], None]] = {}
    number: int = 0
    """The number of this connection."""
    _is_open: bool = False
    _is_complete: bool = False
    """Whether this connection has received all channels."""
    _commands: asyncio.Queue[tuple[str | bytes, ...]] = field(default_factory=asyncio.Queue[tuple[str | bytes, ...]])
    """Commands to send on this connection."""
    _asked: int = 0
    """Changes to the channels of this connection."""
    _confirmed: int = 0
    """How many of them Redis has confirmed."""
    _waiting: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque[tuple[int, asyncio.Future[None]]])
    """Waiters, each with the number of changes that it waits for. Waking all of them at each change would take a long
    time for thousands of channels."""
    marks: dict[bytes, asyncio.Future[None]] = {}
    """Messages for the `mark_channel`, each with the callback for its arrival."""
    _read_task: asyncio.Task[Any] | None = None
    _outage: Any = None

    def __post_init__(self) -> None:
        self.forget_all()
        self._outage = LogOnce(
            self._client.troubles,
            "The store can't be read; retrying",
            "The store can be read again.",
            catches=Exception,
        )

    def follow(self, channel: str, take: Callable[[bytes], None]) -> None:
        """Call `take` with each message of a channel."""
        self._callbacks[channel.encode()] = take
        self._ask("SSUBSCRIBE", [channel.encode()])

    def leave(self, channel: str) -> None:
        """Stop following a channel."""
        if self._callbacks.pop(channel.encode(), None) is not None:
            self._ask("SUNSUBSCRIBE", [channel.encode()])

    def forget_all(self) -> None:
        """Stop following all channels."""
        self._callbacks = {self.mark_channel.encode(): self._take_mark}

    async def wait_until_followed(self) -> int:
        """Wait until a connection receives all channels that are currently followed. Return its number."""
        while True:
            number, asked = self.number, self._asked
            if not (self._is_open and self._confirmed >= asked):
                confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append((asked, confirmed))
                await confirmed
            if self._is_open and self.number == number:
                return number

    def restart(self) -> None:
        """Reconnect. Called when this connection may lead to a former primary."""
        self._is_open = False
        if self._read_task is not None:
            self._read_task.cancel()

    async def run(self) -> None:
        """Read until canceled."""
        outage, failures = self._outage, 0
        try:
            while True:
                self._read_task = asyncio.create_task(self._read())
                await asyncio.wait([self._read_task])
                with outage:
                    if not self._read_task.cancelled():
                        self._read_task.result()
                failures = failures + 1 if outage.lasts and not self._is_complete else 0
                await asyncio.sleep(_PAUSE * min(failures, _PAUSES))
        finally:
            reading = self._read_task
            while reading is not None and not reading.done():
                reading.cancel()  # redis-py ignores it while it connects
                await asyncio.wait([reading], timeout=_CANCEL)

    async def _read(self) -> None:
        self._is_complete = False
        async with self._client.connection(self._key) as connection:
            if is_canceled():
                return
            self._begin()
            sending = asyncio.create_task(self._send(connection))
            sending.add_done_callback(has_failed)
            try:
                waits = False
                while not sending.done():
                    message = await connection.read_response(timeout=SILENCE / 2)
                    if message is not None:
                        waits = False
                        self._take(message)
                    elif waits:
                        raise ConnectionError("Redis doesn't respond.")
                    else:
                        waits = True
                        self._commands.put_nowait(("PING",))
            finally:
                self._is_open = False
                sending.cancel()
                await asyncio.wait([sending])

    def _begin(self) -> None:
        self.number += 1
        self._is_open = True
        self._asked = self._confirmed = 0
        self._commands = asyncio.Queue()
        channels = list(self._callbacks)
        for start in range(0, len(channels), _MOST_CHANNELS):
            self._ask("SSUBSCRIBE", channels[start : start + _MOST_CHANNELS])
        self._wake(inf)

    def _ask(self, command: str, channels: Sequence[bytes]) -> None:
        if self._is_open:
            self._asked += len(channels)
            self._commands.put_nowait((command, *channels))

    async def _send(self, connection: Any) -> None:
        while not is_canceled():
            await connection.send_command(*await self._commands.get(), check_health=False)

    def _take(self, message: Any) -> None:
        kind = message[0]
        if kind == b"smessage":
            take = self._callbacks.get(message[1])
            if take is not None:
                try:
                    take(message[2])
                except Exception:  # a failing callback must not end the shared connection
                    _logger.exception("A callback for entries of the store failed.")
        elif kind in (b"ssubscribe", b"sunsubscribe"):
            self._confirmed += 1
            if self._confirmed > self._asked:
                raise ConnectionError("The channels have moved to another server.")
            if self._confirmed == self._asked and not self._is_complete:
                self._outage.end()
                self._is_complete = True
                if self.number > 1:
                    self.interrupted()
            self._wake(self._confirmed)

    def _wake(self, number: float) -> None:
        """Wake the callers waiting for up to this number of changes."""
        while self._waiting and self._waiting[0][0] <= number:
            _, confirmed = self._waiting.popleft()
            if not confirmed.done():
                confirmed.set_result(None)

    def _take_mark(self, text: bytes) -> None:
        arrived = self.marks.get(text)
        if arrived is not None and not arrived.done():
            arrived.set_result(None)


ROOM = 64 * 1024 * 1024
"""Maximum bytes for lossy values of a kind, or of the indexes for them."""
_LOG_ROOMS = 8
"""Multiple of `ROOM` for all other streams of one kind. One owner's streams may take half of it, and one stream about
three quarters. Messages between workers aren't counted.
"""
_SILENT_MARK = 2.0
"""Seconds without a mark after which a connection is treated as broken."""
_MAX_BATCH = 64
_MAX_BATCH_BYTES = 1024 * 1024
_REPEATED = "0"
"""The offset that a script returns for a repeated entry."""
MAX_ENTRY = 32 * 1024 * 1024
INDEX_STREAMS = 100_000


def milliseconds(ttl: float) -> int:
    """Convert a time to live to milliseconds."""
    return max(1, min(int(ttl * 1000), 2**53))


class _Batch(Struct, eq=False):
    """Entries of one stream that one script call appends."""

    request: RedisRequest
    bounds: tuple[int, int, int]
    size: int = 0
    positions: list[asyncio.Future[Position]] = []

    def accepts(self, size: int, bounds: tuple[int, int, int]) -> bool:
        """Return whether another entry of this size fits. An entry that seals the stream is alone."""
        *_, seals = bounds
        return (
            not (seals or self.request.sent)
            and bounds == self.bounds
            and len(self.positions) < _MAX_BATCH
            and self.size + size <= _MAX_BATCH_BYTES
        )


class RedisLog(Listeners[Entry]):
    """The streams."""

    def __init__(self, client: RedisClient, keys: RedisKeys, backend: "RedisBackend", pushes: PushReader) -> None:
        super().__init__()
        self._client = client
        self._keys = keys
        self._backend = backend
        self._pushes = pushes
        self._room = ROOM
        """Maximum bytes for a kind's indexes."""
        pushes.interrupted = self.interrupt
        self._filtered: set[str] = set()
        """Streams that have had listeners by topic."""
        self._pushed: dict[str, Position] = {}
        """The last pushed position, for each stream with a listener to all entries."""
        self._batches: dict[str, _Batch] = {}
        """Pending appends, the last one of each stream."""

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
        owner: str = "",
        topic: str = "",
    ) -> Position:
        if len(data) > MAX_ENTRY:
            raise StoreFull(f"The entry is {len(data)} bytes, but the maximum for Redis is {MAX_ENTRY} bytes.")
        keys, bounds = self._keys, (milliseconds(ttl), max_entries, int(seal))
        batch = self._batches.get(stream)
        if batch is None or not batch.accepts(len(data), bounds):
            batch = self._batches[stream] = self._begin(stream, bounds)
        request = batch.request
        entry: list[Argument] = [data, "", "", "", topic]
        if index is not None:
            kind = index.stream.partition(":")[0]
            request.keys += [keys.stream(index.stream)[0], keys.order(kind), keys.sizes(kind)]
            entry[1:3] = [milliseconds(index.ttl), index.max_entries]
        if once:
            request.keys.append(keys.once(stream, once))
            entry[3] = milliseconds(ONCE_SECONDS)
        request.args += entry
        position: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        batch.positions.append(position)
        batch.size += len(data)
        return await position

    def _begin(self, stream: str, bounds: tuple[int, int, int]) -> _Batch:
        """Send an append, to which entries are added until it's written."""
        backend, keys = self._backend, self._keys
        place, number = backend.take_place()
        names = [*keys.stream(stream), keys.places(backend.id), keys.generation, *keys.rooms(stream)]
        confirm = stream.partition(":")[0] not in EPHEMERAL
        rooms = self._room, INDEX_STREAMS, keys.channel(stream), _LOG_ROOMS * self._room * confirm
        args: list[Argument] = [place, number, backend.epoch, *bounds, *rooms]
        batch = _Batch(self._client.send("append", names, args, confirm=confirm), bounds)

        batch.request.reply.add_done_callback(partial(self._settle, stream, place, batch))
        return batch

    def _settle(self, stream: str, place: int, batch: _Batch, reply: asyncio.Future[Any]) -> None:
        """Pass each entry of a batch its position or error."""
        self._backend.free_places.append(place)
        if self._batches.get(stream) is batch:
            del self._batches[stream]
        failure = reply.exception()
        offsets, epoch = ("", "") if failure is not None else (part.decode() for part in reply.result())
        for position, offset in zip_longest(batch.positions, offsets.split()):
            if position.done():
                continue
            if failure is not None:
                position.set_exception(type(failure)(*failure.args))
            elif offset == _REPEATED:
                position.set_exception(EntryRepeated(REPEATED))
            else:
                position.set_result(Position(epoch, int(offset)))
        if epoch:
            self._backend.adopt(epoch)

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        return await self._read(stream, after, limit, max_bytes, "")

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        return (await self._read(stream, None, limit, max_bytes, "newest"))[::-1]

    async def _read(
        self, stream: str, after: Position | None, limit: int, max_bytes: int, order: str
    ) -> Sequence[Entry]:
        keys, backend = self._keys, self._backend
        names = [*keys.stream(stream), keys.generation]
        # A position may come from a client, so its epoch may be any text.
        begin = ("", "") if after is None else (after.offset, after.epoch.encode(errors="replace"))
        args = [*begin, limit, max_bytes, order, backend.epoch]
        epoch_text, gap, found = await self._client.run("read", names, args)
        epoch = epoch_text.decode()
        backend.adopt(epoch)
        if gap:
            raise Gap(epoch, *(Position(epoch, int(end)) if end else None for end in gap))
        return [Entry(Position(epoch, int(id)), data) for id, data in zip(found[::2], found[1::2], strict=True)]

    async def touch(self, stream: str, ttl: float) -> bool:
        return bool(await self._client.run("touch", self._keys.stream(stream), [milliseconds(ttl)]))

    async def trim(self, stream: str) -> None:
        await self._client.run("trim", self._keys.stream(stream), [])

    @override
    def _follow(self, channel: str) -> None:
        stream, is_topic, _ = channel.partition("\0")
        if is_topic:
            self._filtered.add(stream)
        self._pushes.follow(self._keys.channel(channel), partial(self._take, channel))

    @override
    def _leave(self, channel: str) -> None:
        self._pushed.pop(channel, None)
        self._pushes.leave(self._keys.channel(channel))

    def _take(self, channel: str, message: bytes) -> None:
        # Use the epoch of the append, which may differ from the one that this worker has.
        epoch, offset, data = message.split(b" ", 2)
        position = Position(epoch.decode(), int(offset))
        if "\0" not in channel:  # then offsets are consecutive
            if self._pushed.get(channel) != Position(position.epoch, position.offset - 1):
                self.interrupt(channel)
            self._pushed[channel] = position
        self._listeners.notify(channel, Entry(position, data))

    async def wait_until_listening(self, stream: str) -> Position | None:
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    number = await self._pushes.wait_until_followed()
                    if stream not in self._filtered:
                        return None
                    newest, arrived = await self._mark(stream)
                    if arrived and self._pushes.number == number:
                        return newest
        except TimeoutError:
            raise StoreUnavailable("The store didn't respond in time: it can't be read.") from None

    async def _mark(self, stream: str) -> tuple[Position | None, bool]:
        """Return the newest position, and whether the pushes of all entries up to it have arrived."""
        keys, pushes, number = self._keys, self._pushes, self._pushes.number
        text = secrets.token_bytes(8)
        arrived = pushes.marks[text] = asyncio.get_running_loop().create_future()
        try:
            names = [keys.stream(stream)[1], keys.generation]
            last, epoch = await self._client.run("mark", names, [self._backend.epoch, pushes.mark_channel, text])
            self._backend.adopt(epoch.decode())
            await asyncio.wait([arrived], timeout=_SILENT_MARK)
        finally:
            del pushes.marks[text]
        if not arrived.done() and pushes.number == number:
            pushes.restart()
        return Position(epoch.decode(), int(last)) if last else None, arrived.done()


MAX_VALUE = 32 * 1024 * 1024
_PAGE = 1000


class RedisMap(Struct, eq=False):
    """The `Map` in Redis. Writes aren't retried after a broken connection: that could undo writes made since."""

    _client: RedisClient
    _keys: RedisKeys
    _room: int = ROOM
    """Maximum bytes for lossy values of a kind. A share may take a fraction of it."""

    async def get(self, key: str) -> bytes | None:
        name = self._keys.value(key)
        found: bytes | None = await self._client.run("", [name], ["GET", name])
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
        found = map(self._keys.name_of, await self._client.scan(self._keys.values_pattern(prefix), _PAGE))
        return list({name for name in found if name is not None and name.startswith(prefix)})

    async def _set(self, key: str, compare: tuple[str, bytes], value: bytes | None, ttl: float, lossy: bool) -> bool:
        if value is not None and len(value) > MAX_VALUE:
            raise StoreFull(f"A value of {len(value)} bytes exceeds the maximum of {MAX_VALUE} for Redis.")
        share, kind = owner_for(key), key.partition(":")[0]
        names = [self._keys.value(key), *(self._keys.share(key) if share else ())]
        if tag_of(key) == HUB:
            names += [self._keys.order(kind), self._keys.sizes(kind)]
        most = share_room(value or b"", self._room, lossy=lossy) if share else self._room
        about = (milliseconds(ttl), int(lossy), most, int(bool(share)), self._room)
        args: list[Any] = [*compare, int(value is not None), value or b"", *about]
        return bool(await self._client.run("set", names, args, again=False))


LEASE = 6.0
RENEW = 2.5
"""Seconds between checks of the epoch and the clock of Redis."""
_RESTORE_PAUSE = 0.5
_MICRO = 1e6


class RedisBackend:
    """`Backend` in Redis."""

    shared = True

    def __init__(self, address: RedisAddress, *, lease: float = LEASE) -> None:
        self.lease = lease
        self._keys = keys = RedisKeys(address.prefix)
        self.id = secrets.token_hex(6)
        """The id of this connection, for detecting retries."""
        self.epoch = ""
        self._numbers = count(1)
        self.free_places: list[int] = []
        """Slots of finished operations, for reuse."""
        self._places = count()
        self._ahead = time.time() - time.monotonic()
        """Offset of Redis' clock from this process's monotonic clock, in seconds."""
        self._client = client = RedisClient(address, keys.generation)
        self._pushes = pushes = PushReader(client, keys.generation, keys.mark_channel(self.id))
        self.troubles = client.troubles
        self.kv = RedisMap(client, keys)
        self.log = RedisLog(client, keys, self, pushes)
        self._epochs = Watchers()
        self.watch = self._epochs.watch
        self._hurries = asyncio.Event()
        client.reconnected = self._hurries.set
        self._new_run = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def time(self) -> float:
        """Return the time by Redis' clock."""
        return time.monotonic() + self._ahead

    def adopt(self, epoch: str) -> None:
        """Set the epoch that a script returned. Epochs begin with a time, so late replies are ignored."""
        before = self.epoch
        if epoch == before or epoch[:11] < before[:11]:
            return
        self.epoch = epoch
        if before:
            _logger.warning("Redis may have lost data, because the primary or its run id changed. Readers get a gap.")
            self._new_run.set()

    def take_place(self) -> tuple[int, int]:
        """Return a slot and a number by which Redis recognizes retries. Add the slot to `free_places` afterward."""
        return self.free_places.pop() if self.free_places else next(self._places), next(self._numbers)

    async def degraded_reason(self) -> str:
        return self._client.degraded_reason

    async def bind(self, worker: str) -> None:
        """Do nothing, because Redis doesn't report ended connections."""

    async def open(self) -> None:
        await self._client.open()
        try:
            await self._check()
            await self._renew()
        except BaseException:
            await self._client.close()
            raise
        outage = LogOnce(self.troubles, "The new epoch can't be applied; retrying", "The new epoch has been applied.")
        restoring = run_on(self._new_run, self._restore, outage, pause=_RESTORE_PAUSE)
        self._tasks = [asyncio.create_task(each) for each in (self._pushes.run(), self._run(), restoring)]

    async def close(self) -> None:
        if self._client.closed:
            return
        await cancel_all(*self._tasks)
        self._tasks = []
        await self._client.close()
        self._pushes.forget_all()
        self.log.remove_listeners()
        self._epochs.clear()

    async def charge(self, worker: str, charges: Sequence[Charge], dead: Collection[str]) -> list[ChargeResult]:
        if not charges:
            return []
        described = [_arguments(charge) for charge in charges]
        names = [self._keys.rate(each[0], charge.key) for each, charge in zip(described, charges, strict=True)]
        dead = dead if any(isinstance(charge, ConcurrencySlot) for charge in charges) else ()
        args: list[Argument] = [worker, len(dead), *dead, *chain.from_iterable(described)]
        # Don't retry after a broken connection: that could charge twice.
        found = await self._client.run("charge", names, args, again=False)
        triples = zip(found[::3], found[1::3], found[2::3], strict=True)
        return [ChargeResult(int(wait) / _MICRO, float(left), float(amount)) for wait, left, amount in triples]

    async def release(self, worker: str, slots: Sequence[ConcurrencySlot]) -> None:
        names = [self._keys.rate("s", slot.key) for slot in slots]
        if not names:
            return
        await self._client.run("release", names, [f"{worker} {slot.holder}" for slot in slots])

    async def _check(self) -> None:
        """Check at startup that all commands are permitted, so the first event doesn't fail.

        Raises:
            LocalError: A command isn't permitted.
        """
        missing = await self._client.run("may", [self._keys.generation], [])
        if missing:
            names = ", ".join(each.decode() for each in missing)
            raise LocalError(
                f"Redis doesn't permit the user in the store's URL to run {names} on Millstream's keys. {ALLOW}"
            )

    async def _run(self) -> None:
        """Check epoch and time periodically and after failures. Leases report if the store doesn't respond."""
        trouble = LogOnce(
            self.troubles,
            "The epoch can't be read; retrying",
            "The epoch can be read again.",
            catches=Exception,
        )
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW):
                    await self._hurries.wait()
            self._hurries.clear()
            with trouble, suppress(LocalError):
                await self._renew()

    async def _renew(self) -> None:
        keys, begun = self._keys, time.monotonic()
        now, epoch = await self._client.run("renew", [keys.generation, keys.places(self.id)], [self.epoch])
        self._ahead = int(now) / _MICRO - (begun + time.monotonic()) / 2
        self.adopt(epoch.decode())

    async def _restore(self) -> None:
        """Apply the new epoch, then notify all subscribers."""
        self._pushes.restart()
        await self._pushes.wait_until_followed()
        self.log.interrupt()
        self._epochs.notify_all()


def _arguments(charge: Charge) -> tuple[str, int, int, str | int, str]:
    """Return a charge as five arguments, the first of which is its kind."""
    if isinstance(charge, RateCharge):
        return "p", charge.count, int(charge.seconds * _MICRO), repr(charge.cost), repr(charge.most)
    if isinstance(charge, Quota):
        return "q", charge.count, int(charge.until * _MICRO), repr(charge.cost), ""
    return "s", charge.count, 0, 1, charge.holder
