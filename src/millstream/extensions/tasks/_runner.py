"""Runs tasks, and settles those of workers that stopped.

A task runs in the worker that got its call. When that worker is gone, the others find what it ran by its markers: a
task whose tool allows it runs again, and every other one fails with an error that says to call the tool again.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from millstream._limits.concurrency import concurrency_limits
from millstream._limits.hashed_keys import hash_key
from millstream._limits.store_limiter import StoreLimiter
from millstream._protocol.errors import INTERNAL_ERROR, OVERLOADED, RATE_LIMITED, LocalError, ProtocolError
from millstream._protocol.jsonrpc import encode
from millstream._protocol.revisions import BY_DATE
from millstream._protocol.rounds import Rounds
from millstream._server.calls.call import RUNNING, Call, params_of
from millstream._server.dispatch import Dispatcher, Outcome
from millstream._server.features.tools import TaskRules, Tool
from millstream._stores.base import StoreFull
from millstream._stores.health import LogOnce
from millstream._stores.rates import Seat
from millstream._stores.tail import PAUSE
from millstream.extensions.tasks._records import (
    CANCELLED,
    COMPLETED,
    FAILED,
    HANDED_OVER,
    INPUT_REQUIRED,
    WORKING,
    TaskCall,
    TaskRecord,
    TaskRecords,
    name_of,
    new_id,
)
from millstream.extensions.tasks._status_line import StatusLine

logger = logging.getLogger("millstream")

CANCEL: Final = "tasks.cancel"
"""The topic on which a worker gets the name of a task that it should stop."""
ORPHANS: Final = "tasks.orphans"
"""The topic that tells all workers to look for tasks without a worker."""
MAX_ATTEMPTS: Final = 3
"""How often a task begins at most, so that one that kills its worker doesn't kill all of them."""
_NOTE_EVERY: Final = 1.0
"""Seconds between two status messages of a task."""
_STOPPED = "The worker that ran this task stopped before the task was done. Call the tool again."
_DRAINED = "The server stopped before this task was done. Call the tool again."
_TOO_OFTEN = f"The worker that ran this task stopped {MAX_ATTEMPTS} times before the task was done."
_GONE = "The server doesn't have this tool any more."
_TOO_LARGE = "The store has no room for the result of this task."

Start = Callable[[str], None]


class _Asked(Struct, gc=False):
    kind: str = msgspec.field(default="", name="resultType")
    requests: dict[str, Raw] = msgspec.field(default={}, name="inputRequests")


_decode_asked = msgspec.json.Decoder(_Asked).decode


class _Run:
    """A task that runs here."""

    __slots__ = ("call", "lost", "name", "note", "noting", "record", "release", "seats", "task")

    def __init__(self, name: str, record: TaskRecord, call: Call, seats: list[Seat]) -> None:
        self.name = name
        self.record = record
        self.call = call
        self.seats = seats
        self.task: asyncio.Task[None] | None = None
        self.lost = False
        """Another worker may have settled it: the lease of this one was over."""
        self.note = ""
        self.noting: asyncio.Task[None] | None = None
        self.release: Callable[[], object] | None = None
        """Gives back the seats of the call that became this task."""

    def owns(self, record: TaskRecord) -> bool:
        """Whether the record still says that this is the run of the task."""
        mine = self.record
        return record.worker == mine.worker and record.attempts == mine.attempts and record.status == WORKING


class TaskRunner:
    """The tasks of one worker."""

    def __init__(self, dispatcher: Dispatcher, records: TaskRecords, pool: Callable[[], StoreLimiter]) -> None:
        """Nothing runs before `open`.

        Args:
            dispatcher: runs the calls.
            records: of the store.
            pool: gives the way to the limits.
        """
        # Configuration
        self._dispatcher = dispatcher
        self._services = dispatcher.services
        self._settings = dispatcher.services.settings
        self._store = dispatcher.services.store
        self._records = records
        self._pool = pool
        # Process
        self._me = self._store.workers.me
        self._running: dict[str, _Run] = {}
        self._closing = False
        self._stops: list[Callable[[], None]] = []
        self._sweeps = False
        self._sweeping: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def open(self) -> None:
        """Listen to the other workers, and settle the tasks of those that are gone."""
        store = self._store
        self._closing = False
        self._stops = [
            store.workers.watch(self._workers_changed),
            store.bus.subscribe(ORPHANS, lambda _: self._sweep_soon(), interrupted=self._sweep_soon),
            store.bus.subscribe(CANCEL, self._cancel_here, interrupted=self._look_at_all),
        ]
        self._sweep_soon()

    async def drain(self, seconds: float) -> None:
        """Stop what still runs, and settle it within that time."""
        self._closing = True
        for run in list(self._running.values()):
            run.call.halt()
        waiting = [run.task for run in self._running.values() if run.task is not None]
        if waiting:
            await asyncio.wait(waiting, timeout=seconds)

    async def close(self) -> None:
        """Stop listening, and end what `drain` has left."""
        self._closing = True
        for stop in self._stops:
            stop()
        tasks = [*self._beside, *(run.task for run in self._running.values() if run.task is not None)]
        if self._sweeping is not None:
            tasks.append(self._sweeping)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What clients ask for

    async def start(self, call: Call, tool: Tool, rules: TaskRules) -> TaskRecord:
        """Make a task of a call whose arguments were read, and run it.

        Raises:
            ProtocolError: too many tasks run, or the store has no room for one more.
        """
        self._check_open()
        task_id, now = new_id(), self._services.clock()
        name = name_of(task_id, call.principal)
        seats = await self._take(call.owner, task_id)
        state = None if call.rounds is None else call.rounds.state(0)
        settings = self._settings
        record = TaskRecord(
            id=task_id,
            created=now,
            updated=now,
            ttl=settings.task_ttl if rules.ttl is None else rules.ttl,
            poll=settings.task_poll,
            worker=self._me,
            retry=rules.retry,
            state=state,
            responses={key: bytes(answer) for key, answer in (call.responses or {}).items()},
        )
        stored = TaskCall(
            tool=tool.name,
            params=_params(call),
            revision=call.revision.date,
            client=call.client,
            principal=call.principal,
            transport=call.transport,
            owner=call.owner,
        )
        try:
            await self._records.create(name, record, stored)
        except BaseException as exc:
            self._pool().leave(seats)
            if isinstance(exc, StoreFull):
                text = "The store has no room for another task. Try again later."
                raise ProtocolError(OVERLOADED, text, status=503) from exc
            raise
        # The task goes on with the seats of its call.
        release, call.release = call.release, None
        self._run(name, record, stored, seats, release)
        return record

    async def answer(self, name: str, responses: Mapping[str, bytes]) -> bool:
        """Take answers to the questions of a task, and run it once it has all of them. Return False if there's no such
        task.

        Raises:
            ProtocolError: too many tasks run.
        """
        record = await self._records.get(name)
        if record is None:
            return False
        given = {key: response for key, response in responses.items() if key in record.requests}
        if record.status != INPUT_REQUIRED or not given:
            return True
        self._check_open()
        call = await self._records.call_of(name)
        if call is None:
            return False
        seats = await self._take(call.owner, record.id, call.tool)
        me = self._me
        await self._records.mark(name, msgspec.structs.replace(record, worker=me))

        def change(record: TaskRecord) -> TaskRecord | None:
            mine = {key: response for key, response in given.items() if key in record.requests}
            if record.status != INPUT_REQUIRED or not mine:
                return None
            rest = {key: request for key, request in record.requests.items() if key not in mine}
            answers = {**record.responses, **mine}
            if rest:
                return msgspec.structs.replace(record, requests=rest, responses=answers)
            return msgspec.structs.replace(
                record, status=WORKING, message="", worker=me, requests={}, responses=answers
            )

        changed = None
        try:
            changed = await self._records.update(name, change)
        finally:
            if changed is None or changed.status != WORKING:
                self._pool().leave(seats)
        if changed is not None and changed.status == WORKING:
            self._run(name, changed, call, seats)
        elif name not in self._running:
            await self._records.unmark(name, me)
        return True

    async def cancel(self, name: str) -> bool:
        """Cancel a task unless it's over. Return False if there's no such task."""
        worker = ""

        def change(record: TaskRecord) -> TaskRecord:
            nonlocal worker
            worker = record.worker
            return msgspec.structs.replace(
                record, status=CANCELLED, message="Cancelled by the client.", worker="", requests={}, responses={}
            )

        changed = await self._records.update(name, change)
        if changed is None:
            return await self._records.get(name) is not None
        if worker in ("", HANDED_OVER):
            await self._records.forget_call(name)
        elif worker == self._me:
            self._cancel_here(name.encode())
        else:
            await self._store.bus.send(worker, CANCEL, name.encode())
        return True

    async def get(self, name: str) -> TaskRecord | None:
        """Return a task as it is now: one whose worker is gone is settled first."""
        record = await self._records.get(name)
        if (
            record is not None
            and record.status == WORKING
            and record.worker not in (self._me, HANDED_OVER)
            and not await self._store.workers.alive(record.worker)
        ):
            await self._recover(record.worker, name)
            record = await self._records.get(name)
        return record

    def _check_open(self) -> None:
        if self._closing or self._dispatcher.stopping:
            raise ProtocolError(OVERLOADED, "The server is stopping. Try again in a moment.", status=503)

    async def _take(self, owner: str, holder: str, again: str = "") -> list[Seat]:
        """Return the seats of one more task.

        Args:
            owner: of the call.
            holder: the task.
            again: the tool of a task that goes on, which has no seats of a call.

        Raises:
            ProtocolError: RATE_LIMITED, if there are too many.
        """
        settings = self._settings
        seats = [Seat(hash_key("tasks", ""), settings.max_tasks, holder)]
        if owner:
            seats.append(Seat(hash_key("tasks", owner), settings.max_tasks_per_caller, holder))
        tool = self._dispatcher.registry.tools.get(again) if again else None
        own = len(seats)
        if tool is not None:
            limits = concurrency_limits(owner, settings.limit_concurrency, tool.name, tool.concurrency)
            seats.extend(Seat(hash_key(limit, key), most, holder) for limit, key, most in limits)
        decision = await self._pool().take(seats)
        if decision is not None and any(taken.wait > 0 for taken in decision.taken):
            if all(taken.wait <= 0 for taken in decision.taken[:own]):
                raise ProtocolError(
                    RATE_LIMITED, "Too many concurrent calls. Try again when one has ended.", status=429
                )
            mine = decision.taken[0].wait <= 0
            whose = f"{settings.max_tasks_per_caller:,} of your tasks" if mine else f"{settings.max_tasks:,} tasks"
            raise ProtocolError(RATE_LIMITED, f"{whose} run already, which is the limit. Try again later.", status=429)
        return seats

    # Running

    def _run(
        self,
        name: str,
        record: TaskRecord,
        stored: TaskCall,
        seats: list[Seat],
        release: Callable[[], object] | None = None,
    ) -> None:
        """Run a task that this worker has claimed."""
        responses = {key: Raw(answer) for key, answer in record.responses.items()}
        call = Call(
            revision=BY_DATE[stored.revision],
            id=record.id,
            method="tools/call",
            params=stored.params,
            responses=responses or None,
            rounds=None if record.state is None else Rounds(record.state, responses),
            token=record.id,
            log_level="info",
            client=stored.client,
            principal=stored.principal,
            transport=stored.transport,
            task=RUNNING,
            lasting=True,
        )
        run = self._running[name] = _Run(name, record, call, seats)
        run.release = release
        call.line = StatusLine(lambda text: self._note(run, text))
        run.task = asyncio.get_running_loop().create_task(self._work(run))

    async def _work(self, run: _Run) -> None:
        call, name = run.call, run.name
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  it's the one that runs this
        call.stop = task.cancel
        left = run.record.expires - self._services.clock()
        expiry = asyncio.get_running_loop().call_later(max(0.0, left), call.cancel)
        try:
            # It may have been cancelled before its first step.
            outcome = Outcome() if call.cancelled else await self._dispatcher.outcome(call)
            call.stop = None
            if run.noting is not None:
                run.noting.cancel()
            await self._settle(run, outcome)
        finally:
            expiry.cancel()
            if self._running.get(name) is run:
                del self._running[name]
            self._pool().leave(run.seats)
            if run.release is not None:
                run.release()

    async def _settle(self, run: _Run, outcome: Outcome) -> None:
        """Write how a run ended, and try again while the store doesn't answer."""
        change = self._end(run, outcome)
        trouble = LogOnce(logger, "The end of a task can't be stored; trying again", "The ends of tasks are stored.")
        written: TaskRecord | None = None
        while self._services.clock() < run.record.expires:
            with trouble:
                try:
                    written = await self._finish(run, change)
                except StoreFull:
                    logger.warning("%s: the store has no room for the result of the task", run.call.name)
                    change = _failing(run, OVERLOADED, _TOO_LARGE)
                    continue
            if not trouble.lasts:
                break
            await asyncio.sleep(PAUSE)
        if written is not None and written.worker == HANDED_OVER:
            await self._store.bus.publish(ORPHANS, b"")

    async def _finish(self, run: _Run, change: Callable[[TaskRecord], TaskRecord | None]) -> TaskRecord | None:
        name, worker = run.name, run.record.worker
        if self._hands_over(run):
            await self._records.mark(name, msgspec.structs.replace(run.record, worker=HANDED_OVER))
        written = await self._records.update(name, change)
        await self._records.unmark(name, worker)
        if written is not None and written.over:
            await self._records.forget_call(name)
        return written

    def _hands_over(self, run: _Run) -> bool:
        return run.record.retry and (run.call.halted or run.lost)

    def _end(self, run: _Run, outcome: Outcome) -> Callable[[TaskRecord], TaskRecord | None]:
        """Return the change that writes how a run ended."""
        call, error = run.call, outcome.error
        if self._hands_over(run):
            return lambda record: msgspec.structs.replace(record, worker=HANDED_OVER) if run.owns(record) else None
        if run.lost:
            return _failing(run, INTERNAL_ERROR, _STOPPED)
        if call.halted:
            return _failing(run, OVERLOADED, _DRAINED)
        if error is not None:
            return _failing(run, error.code, error.message, error.data)
        result = outcome.result
        if not result:  # cancelled, which the record says already
            return lambda record: None
        if result.startswith(b'{"resultType":"input_required"') and call.rounds is not None:
            asked, state = _decode_asked(result), call.rounds.state(0)
            requests = {key: bytes(request) for key, request in asked.requests.items()}
            return lambda record: (
                msgspec.structs.replace(
                    record, status=INPUT_REQUIRED, worker="", state=state, requests=requests, responses={}
                )
                if run.owns(record)
                else None
            )
        return lambda record: (
            msgspec.structs.replace(
                record, status=COMPLETED, message="", worker="", state=None, responses={}, payload=result
            )
            if run.owns(record)
            else None
        )

    # Status messages

    def _note(self, run: _Run, text: str) -> None:
        """Store a status message, at most one in `_NOTE_EVERY` seconds; the newest one counts."""
        run.note = text
        if run.noting is None or run.noting.done():
            run.noting = asyncio.get_running_loop().create_task(self._write_notes(run))
            self._beside.add(run.noting)
            run.noting.add_done_callback(self._beside.discard)

    async def _write_notes(self, run: _Run) -> None:
        while run.note:
            text, run.note = run.note, ""
            change = partial(_noted, run, text)
            try:
                await self._records.update(run.name, change)
            except LocalError:
                logger.debug("A status message of a task isn't stored", exc_info=True)
            await asyncio.sleep(_NOTE_EVERY)

    # Other workers

    def _cancel_here(self, data: bytes) -> None:
        run = self._running.get(data.decode())
        if run is not None:
            run.call.cancel()

    def _look_at_all(self) -> None:
        """Messages may have been lost: look whether a task that runs here was cancelled."""
        self._spawn(self._stop_cancelled())

    async def _stop_cancelled(self) -> None:
        for run in list(self._running.values()):
            record = await self._records.get(run.name)
            if record is None or not run.owns(record):
                run.call.cancel()

    def _workers_changed(self) -> None:
        me = self._store.workers.me
        if me != self._me:
            self._me = me
            for run in self._running.values():
                run.lost = True
                run.call.halt()
        self._sweep_soon()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(_quietly(work))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    def _sweep_soon(self) -> None:
        """Look for tasks whose worker is gone."""
        self._sweeps = True
        if not self._closing and (self._sweeping is None or self._sweeping.done()):
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        trouble = LogOnce(logger, "Tasks of other workers can't be read; trying again", "Tasks can be read again.")
        while self._sweeps and not self._closing:
            self._sweeps = False
            with trouble:
                await self._sweep_once()
            if trouble.lasts:
                self._sweeps = True
                await asyncio.sleep(PAUSE)

    async def _sweep_once(self) -> None:
        alive: dict[str, bool] = {self._me: True, HANDED_OVER: False}
        for worker, name in await self._records.marked():
            if worker not in alive:
                alive[worker] = await self._store.workers.alive(worker)
            if not alive[worker]:
                await self._recover(worker, name)
                await self._records.unmark(name, worker)

    async def _recover(self, worker: str, name: str) -> None:
        """Settle a task that a worker ran which is gone: run it again, or let it fail."""
        record = await self._records.get(name)
        if record is None or record.over or record.worker != worker:
            return
        call = await self._records.call_of(name)
        tool = None if call is None else self._dispatcher.registry.tools.get(call.tool)
        handed = worker == HANDED_OVER
        if call is None or tool is None:
            text = _GONE
        elif not record.retry:
            text = _STOPPED
        elif record.attempts >= MAX_ATTEMPTS and not handed:
            text = _TOO_OFTEN
        else:
            await self._claim(worker, name, record, call)
            return
        logger.warning("A task of %s failed: %s", "a tool" if call is None else call.tool, text)
        await self._records.update(
            name, lambda record: _failed(record, INTERNAL_ERROR, text) if record.worker == worker else None
        )
        await self._records.forget_call(name)

    async def _claim(self, worker: str, name: str, record: TaskRecord, call: TaskCall) -> None:
        if self._closing or self._dispatcher.stopping:
            return
        me = self._me
        attempts = record.attempts + (worker != HANDED_OVER)
        await self._records.mark(name, msgspec.structs.replace(record, worker=me))
        claimed = await self._records.update(
            name,
            lambda record: (
                msgspec.structs.replace(record, worker=me, attempts=attempts, message="")
                if record.worker == worker
                else None
            ),
        )
        if claimed is None:
            if name not in self._running:
                await self._records.unmark(name, me)
            return
        logger.info("A task of %s runs again, because its worker stopped", call.tool)
        self._run(name, claimed, call, [])


def _noted(run: _Run, text: str, record: TaskRecord) -> TaskRecord | None:
    return msgspec.structs.replace(record, message=text) if run.owns(record) else None


def _failed(record: TaskRecord, code: int, message: str, data: Any = None) -> TaskRecord:
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return msgspec.structs.replace(
        record, status=FAILED, message=message[:500], worker="", state=None, requests={}, responses={},
        payload=encode(error),
    )  # fmt: skip


def _failing(run: _Run, code: int, message: str, data: Any = None) -> Callable[[TaskRecord], TaskRecord | None]:
    return lambda record: _failed(record, code, message, data) if run.owns(record) else None


def _params(call: Call) -> bytes:
    """Return the params of the call that the task runs: without the answers, which the record has."""
    params = params_of(call)
    members = [b'"name":%b' % encode(call.name)]
    if bytes(params.arguments):
        members.append(b'"arguments":%b' % bytes(params.arguments))
    if bytes(params.meta):
        members.append(b'"_meta":%b' % bytes(params.meta))
    return b"{%b}" % b",".join(members)


async def _quietly(work: Any) -> None:
    try:
        await work
    except (LocalError, OSError):
        logger.debug("Work beside the tasks failed", exc_info=True)
