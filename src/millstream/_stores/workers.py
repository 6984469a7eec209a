"""The workers that share a backend, and the messages between them: leases in the map, messages in short-lived logs.

One record, the worker table, contains the leases of all workers. A worker renews its own lease by compare-and-set,
which also shows it new workers and ended leases. Messages to all workers share one log, and each worker has an inbox
log. A worker whose parent process runs the store gets the path of the parent's socket.

`read_again` and `Claim` help several writers of one key.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count

import msgspec
from msgspec import Struct, field

from millstream._copies import NotCopyable
from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._stores.base import Backend, Entry, Gap, Map, Position
from millstream._stores.tail import Listeners, Tail, Watchers, never
from millstream._tasks import cancel_all, retry_delay
from millstream._troubles import PAUSE, LogOnce, Troubles, run_on

_POLL = 0.05
"""Seconds between attempts to take another owner's claim. The store doesn't report when it's released."""


async def read_again(kv: Map, key: str, attempt: int) -> bytes | None:
    """Return a value to change by compare-and-set, after a delay if earlier attempts met another writer.

    Args:
        kv: The map.
        key: The key.
        attempt: Number of attempts so far, from 0. The delay grows with it, up to a tenth of a second.

    Example:
        ::

            for attempt in range(10):
                raw = await read_again(kv, key, attempt)
                if await kv.compare_and_set(key, raw, edit(raw), ttl):
                    break
    """
    if attempt:
        await asyncio.sleep(retry_delay(attempt, 0.001, 0.1, jitter=1))
    return await kv.get(key)


class Claim(Struct, NotCopyable):
    """The exclusive right to a key, for some seconds at a time."""

    kv: Map
    key: str
    ttl: float
    """Seconds after which another owner may take it, unless `keep` is called."""
    owner: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    """The key's value while this owner has the right. Unique by default."""

    async def take(self) -> bool:
        """Take the right if no owner has it. Return whether it was taken."""
        return await self.kv.compare_and_set(self.key, None, self.owner, self.ttl)

    async def keep(self) -> bool:
        """Renew the right, or take it. Return whether this owner has it."""
        return await self.kv.compare_and_set(self.key, self.owner, self.owner, self.ttl) or await self.take()

    async def leave(self) -> None:
        """Release the right. If it has expired and another owner has it, do nothing."""
        await self.kv.compare_and_set(self.key, self.owner, None, 1.0)

    @asynccontextmanager
    async def hold(self) -> AsyncGenerator[None]:
        """Wait for the right and release it at the end of the block."""
        while not await self.take():  # noqa: ASYNC110  the store sends no event
            await asyncio.sleep(_POLL)
        try:
            yield
        finally:
            await self.leave()


class _ParentConfig:
    """The configuration that this process got from its parent."""

    address: str | None = None


def use_parent(address: str) -> None:
    """Use the parent process for stores that would otherwise be private to this process.

    Args:
        address: The path of its socket.
    """
    _ParentConfig.address = address


def parent_address() -> str | None:
    """Return the address of the parent's store server, or None if this process isn't a worker."""
    return _ParentConfig.address


ROSTER = "roster:workers"
MESSAGES = "bus:all"
INBOX = "inbox:"
TTL = 86400.0
"""Time to live of the table and messages, in seconds."""
MAX_MESSAGES = 4_000
"""Maximum messages in a log. `interrupted` is called in a worker that falls further behind."""
_MAX_DEAD = 1_000
_SKEW = 1.0
"""Maximum difference between workers' views of the store's time, in seconds."""
_NOTE = ""
"""The topic of messages that tell other workers to read the table."""
_GOODBYE = 1.0
"""Seconds that closing waits for an unresponsive store."""


class WorkerTable(Struct, array_like=True):
    """The record of all workers."""

    leases: dict[str, float] = {}
    """End of each worker's lease, by the store's clock."""
    dead: dict[str, float] = {}
    """Time at which each worker's lease ended. Kept for a day, for the newest `_MAX_DEAD` workers."""
    unswept: list[str] = []
    """Dead workers that may still hold members."""
    last_renewal: float = 0.0
    """Time at which any worker last renewed its lease."""
    notes: dict[str, str] = {}
    """Sealed text of each worker with a lease, see `LeasedWorker.describe`."""
    renamed: dict[str, str] = {}
    """Present name of each worker in `dead` that was only suspended."""

    def end(self, worker: str, now: float) -> bool:
        """Move a worker to `dead`. Return False if it has no lease."""
        if self.leases.pop(worker, None) is None:
            return False
        self.dead[worker] = now
        self.unswept.append(worker)
        self.notes.pop(worker, None)
        return True

    def expire(self, now: float, lease: float) -> None:
        """Move workers with expired leases to `dead` and drop old entries of `dead`.

        Periods in which no worker renewed its lease don't count: the store was down, or its clock was set.
        """
        idle = now - self.last_renewal if self.last_renewal else 0.0
        # Live workers renew after a third of the lease, so a longer pause affects all of them.
        extra = idle if idle > lease * 2 / 3 or idle < -_SKEW else 0.0
        for worker, end in list(self.leases.items()):
            self.leases[worker] = until = end + extra
            if until <= now:
                self.end(worker, now)
        for worker, at in list(self.dead.items()):
            if at > now - TTL and len(self.dead) <= _MAX_DEAD:
                break
            del self.dead[worker]
            self.renamed.pop(worker, None)


_encode_table = msgspec.msgpack.Encoder().encode
_decode_table = msgspec.msgpack.Decoder(WorkerTable).decode
_encode_message = msgspec.msgpack.Encoder().encode
_decode_message = msgspec.msgpack.Decoder(tuple[str, bytes]).decode


async def update_worker_table(kv: Map, change: Callable[[WorkerTable], bool]) -> WorkerTable:
    """Save the table unless `change` returns False. Return it. `change` runs again after a conflict."""
    table = WorkerTable()
    for attempt in count():
        raw = await read_again(kv, ROSTER, attempt)
        table = WorkerTable() if raw is None else _decode_table(raw)
        if not change(table) or await kv.compare_and_set(ROSTER, raw, _encode_table(table), TTL):
            break
    return table


async def expire(backend: Backend, worker: str) -> None:
    """End the lease of a worker now. For backends that detect when a connection ends (`Backend.bind`).

    Args:
        backend: The backend that noticed the end of the connection.
        worker: Id of the worker.
    """
    await update_worker_table(backend.kv, lambda table: table.end(worker, backend.time()))
    await post(backend, MESSAGES, _NOTE, b"")


async def post(backend: Backend, stream: str, topic: str, data: bytes) -> None:
    """Append a message to the log of all workers or to an inbox."""
    await backend.log.append(stream, _encode_message((topic, data)), ttl=TTL, max_entries=MAX_MESSAGES)


class _Worker:
    """A worker of a store, and the store's `Bus`."""

    lease: float = 0.0
    live: frozenset[str] = frozenset()
    """Workers with a lease, as last read."""
    dead: frozenset[str] = frozenset()
    """Workers whose lease ended within the last day."""
    notes: Mapping[str, str] = {}
    """Notes of the workers with a lease, as last read."""

    def __init__(self) -> None:
        self.me: str = secrets.token_hex(6)
        self.names: set[str] = {self.me}
        """All names that this worker has had. It gets a new one when its lease has ended."""
        self._topics = Listeners[bytes]()

    def subscribe(
        self, topic: str, receive: Callable[[bytes], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        return self._topics.listen(topic, receive, interrupted=interrupted)

    async def open(self) -> None:
        """Take a lease and start reading messages, if there can be other workers."""

    async def close(self) -> None:
        """End the lease and all subscriptions. Idempotent."""
        self._topics.remove_listeners()


class SoleWorker(_Worker):
    """The worker of a store that isn't shared. A message reaches every subscriber before `publish` returns."""

    async def alive(self, worker: str) -> bool:
        return worker == self.me

    async def find(self, worker: str) -> str:
        """Return the present name of a worker, or nothing if it's gone."""
        return self.me if worker in self.names else ""

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Do nothing, because there are no other workers."""
        return never

    async def read(self) -> WorkerTable:
        """Return a table in which no worker is dead."""
        return WorkerTable()

    async def publish(self, topic: str, data: bytes) -> None:
        self._topics.push(topic, "", data)

    async def send(self, worker: str, topic: str, data: bytes) -> bool:
        if worker != self.me:
            return False
        await self.publish(topic, data)
        return True


class LeasedWorker(_Worker):
    """A worker of a store that is shared.

    The workers have leases in the table. Messages are in two logs: one for all workers, and the inbox of this one.
    """

    def __init__(self, backend: Backend, troubles: Troubles) -> None:
        super().__init__()
        self._backend = backend
        self._troubles = troubles
        self.lease: float = backend.lease
        self._changed = Watchers()
        self._hurry = asyncio.Event()
        self._log_once = LogOnce(
            troubles, "This worker's lease can't be renewed; retrying", "This worker's lease has been renewed."
        )
        self._tails: list[Tail] = []
        """The readers of the log for all workers and of the inbox."""
        self._stop_watching: Callable[[], None] = never
        self._run_task: asyncio.Task[None] | None = None
        self._renewed_at = 0.0
        self._renewing = asyncio.Lock()
        self._tried = asyncio.Event()
        self._make_note: Callable[[str], str] | None = None

    @property
    def may_be_dead(self) -> bool:
        """Whether other workers may treat this one as dead, because it was suspended. During an outage of the store,
        no worker can tell.
        """
        return self._backend.time() > self._renewed_at + self.lease and not self._log_once.lasts

    @property
    def is_cut_off(self) -> bool:
        """Whether the store didn't respond to the last renewal."""
        return self._log_once.lasts

    async def make_certain(self) -> None:
        """If other workers may treat this one as dead, wait until it has tried to renew its lease."""
        while self.may_be_dead and self._run_task is not None:  # an attempt from before a suspension doesn't count
            self.hurry()
            await self._tried.wait()

    @override
    async def open(self) -> None:
        """Take a lease under a new name, and start reading at the end of both logs.

        Raises:
            LocalError: The store doesn't respond.
        """
        self.me: str = secrets.token_hex(6)
        self.names.add(self.me)
        try:
            await self.renew()
            await post(self._backend, MESSAGES, _NOTE, b"")
            newest = await self._backend.log.newest(MESSAGES, 1)
            self._tails = [
                self._follow(MESSAGES, newest[-1].position if newest else None),
                self._follow(INBOX + self.me, None),
            ]
            await self._tails[0].catch_up()
        except BaseException:
            await self.close()
            raise
        self._stop_watching = self._backend.watch(self.interrupt)
        self._run_task = asyncio.create_task(self.run())

    @override
    async def close(self) -> None:
        """End the lease, unless the store doesn't respond, and all subscriptions."""
        run_task, self._run_task = self._run_task, None
        self._stop_watching()
        await cancel_all(run_task)
        await super().close()
        tails, self._tails = self._tails, []
        for tail in tails:
            await tail.close()
        if run_task is not None:
            self._changed.clear()
            with suppress(LocalError, OSError):
                async with asyncio.timeout(_GOODBYE):
                    await expire(self._backend, self.me)

    # The lease

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        return self._changed.watch(changed)

    async def alive(self, worker: str) -> bool:
        await self.read()
        return worker in self.live

    async def find(self, worker: str) -> str:
        """Return the present name of a worker, which may have got a new one, or nothing if it's gone.

        Raises:
            LocalError: The store doesn't respond.
        """
        if worker in self.names:
            return self.me
        name = (await self.read()).renamed.get(worker, worker)
        return name if name in self.live else ""

    async def is_renewing(self, worker: str) -> bool:
        """Return whether a worker has renewed its lease lately. A running worker always has more than a third left.

        Raises:
            LocalError: The store doesn't respond.
        """
        end = (await self.read()).leases.get(worker, 0.0)
        return end > self._backend.time() + self.lease / 3

    def hurry(self) -> None:
        """Renew the lease soon: the table may have changed."""
        self._hurry.set()

    async def run(self) -> None:
        """Renew the lease until canceled."""
        third = self.lease / 3
        await run_on(self._hurry, self._try_to_renew, self._log_once, every=third, pause=min(PAUSE, third))

    async def _try_to_renew(self) -> None:
        try:
            await self.renew()
        except Exception:
            if not self.may_be_dead:
                raise
            async with asyncio.timeout(self.lease / 3):  # the attempt may only have failed because of a suspension
                await self.renew()
        finally:
            self._tried.set()
            self._tried = asyncio.Event()

    async def renew(self) -> None:
        """Renew the lease. A worker whose lease is over gets a new name.

        Raises:
            LocalError: The store doesn't respond.
        """
        async with self._renewing:
            await self._renew()

    async def _renew(self) -> None:
        other, name, now = secrets.token_hex(6), self.me, 0.0

        def change(table: WorkerTable) -> bool:
            nonlocal name, now
            now = self._backend.time()
            table.expire(now, self.lease)
            name = other if self.me in table.dead else self.me
            if name != self.me:
                table.renamed.update(dict.fromkeys(self.names & table.dead.keys(), name))
            table.leases[name] = now + self.lease
            table.last_renewal = now
            if self._make_note is not None:
                table.notes[name] = self._make_note(name)
            return True

        await self._backend.bind(self.me)
        table = await update_worker_table(self._backend.kv, change)
        self._renewed_at = now
        if name != self.me:
            await self._backend.bind(name)
            self.me = name
            self.names.add(name)
            for inbox in self._tails[1:]:  # there are none before `open`
                inbox.stop()
                self._tails[1] = self._follow(INBOX + name, None)
            self.interrupt()
            self._learn(table, always=True)
            await post(self._backend, MESSAGES, _NOTE, b"")
        else:
            self._learn(table)

    async def describe(self, make_note: Callable[[str], str]) -> None:
        """Add a note to the lease, and tell the other workers. It ends with the lease.

        Args:
            make_note: Returns the text for a name of this worker. It's called at each renewal.

        Raises:
            LocalError: The store doesn't respond.
        """
        self._make_note = make_note
        await self.renew()
        await post(self._backend, MESSAGES, _NOTE, b"")

    async def read(self) -> WorkerTable:
        """Return the table and update the known workers from it.

        Raises:
            LocalError: The store doesn't respond.
        """
        raw = await self._backend.kv.get(ROSTER)
        table = WorkerTable() if raw is None else _decode_table(raw)
        self._learn(table)
        return table

    def _learn(self, table: WorkerTable, *, always: bool = False) -> None:
        table.expire(self._backend.time(), self.lease)
        live = frozenset(table.leases)
        self.dead: frozenset[str] = frozenset(table.dead)
        if self.me in self.dead or self.me not in live:
            self.hurry()
        if always or live != self.live or table.notes != self.notes:
            self.live = live
            self.notes: Mapping[str, str] = table.notes
            self._changed.notify_all()

    # Messages

    async def publish(self, topic: str, data: bytes) -> None:
        await post(self._backend, MESSAGES, topic, data)

    async def send(self, worker: str, topic: str, data: bytes) -> bool:
        if not await self.alive(worker):
            return False
        await post(self._backend, INBOX + worker, topic, data)
        return True

    def interrupt(self) -> None:
        """Notify subscribers that messages may have been lost."""
        self.hurry()
        self._topics.interrupt()

    def _follow(self, stream: str, after: Position | None) -> Tail:
        tail = Tail(self._backend.log, self._troubles, stream, after, self._take, self._on_gap)
        tail.start()
        return tail

    def _take(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            try:
                topic, data = _decode_message(entry.data)
            except msgspec.DecodeError:  # message from another version, during a deployment
                continue
            if topic == _NOTE:
                self.hurry()
            else:
                self._topics.push(topic, "", data)

    def _on_gap(self, gap: Gap) -> None:
        self.interrupt()
