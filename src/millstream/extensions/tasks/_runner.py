"""Runs tasks, and settles the tasks of dead workers.

A task runs in the worker that received its call. If that worker dies, the others find its tasks by their markers. A
task runs again if its tool allows that. Otherwise, it fails with an error that asks the caller to call again.

The store has, for each task, a record of its state, the saved call, and a marker of the worker that runs it. A record
changes only by compare-and-set, and never after the task has ended. If several workers settle a task at the same time,
only one succeeds, and a worker that was presumed dead can't overwrite another worker's result. The status message in a
record comes from the notifications that the task's function sends.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from millstream import Principal, ProtocolError
from millstream.extensions import (
    CallRun,
    Host,
    LimitReached,
    LocalError,
    LogOnce,
    PendingCall,
    RoundState,
    RunOutcome,
    SavedCall,
    SlotLimit,
    Slots,
    Tasks,
    format_time,
    run_on,
)
from millstream.protocol import INTERNAL_ERROR, OVERLOADED, RATE_LIMITED, Json, encode
from millstream.stores import StoreFull, read_again, share_for

WORKING = "working"
INPUT_REQUIRED = "input_required"
COMPLETED = "completed"
FAILED = "failed"
CANCELLED = "cancelled"

CHANGE_TOPIC = "tasks.changed"
"""The topic on which workers announce the keys of changed tasks."""
_ANONYMOUS = "anonymous"
_MAX_ID = 64
_OLD_ID = 48
_ROOM = bytes(512)
"""Bytes reserved in a record for its final state, so a full store can't prevent a task from ending."""


class TaskRecord(Struct, frozen=True, omit_defaults=True):
    """The state of a task."""

    id: str
    created: float
    updated: float
    ttl: float
    """Seconds from `created`."""
    poll: float
    """Seconds."""
    status: str = WORKING
    message: str = ""
    worker: str = ""
    """Worker that runs the task, or ran it until it ended, or empty while a question is open."""
    attempts: int = 1
    """Number of restarts after a worker stopped."""
    retry: bool = False
    state: RoundState | None = None
    """Answers of earlier rounds, and the open questions."""
    requests: dict[str, bytes] = {}
    """Open questions, as JSON by key."""
    responses: dict[str, bytes] = {}
    """Answers of this round, as JSON by key."""
    payload: bytes = b""
    """JSON result of a completed task, or JSON error from a failed one."""
    room: bytes = _ROOM

    @property
    def over(self) -> bool:
        """Whether the task has ended."""
        return self.status in (COMPLETED, FAILED, CANCELLED)

    @property
    def expires(self) -> float:
        """Unix time when the task is deleted."""
        return self.created + self.ttl

    def describe(self, *, detailed: bool = True) -> Json:
        """Return the task in the wire format of `tasks/get`, or of a new task."""
        task: Json = {"taskId": self.id, "status": self.status}
        if self.message:
            task["statusMessage"] = self.message
        task["createdAt"] = format_time(self.created)
        task["lastUpdatedAt"] = format_time(self.updated)
        task["ttlMs"] = round(self.ttl * 1000)
        task["pollIntervalMs"] = max(1, round(self.poll * 1000))
        if not detailed:
            return task
        if self.status == INPUT_REQUIRED:
            task["inputRequests"] = {key: msgspec.json.decode(request) for key, request in self.requests.items()}
        elif self.status == COMPLETED:
            task["result"] = msgspec.json.decode(self.payload)
        elif self.status == FAILED:
            task["error"] = msgspec.json.decode(self.payload)
        return task


Change = Callable[[TaskRecord], TaskRecord | None]
"""``change(record)`` returns the new record, or None to keep the old one."""

_encode = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(TaskRecord).decode
_decode_call = msgspec.msgpack.Decoder(SavedCall).decode


def name_of(task_id: str, principal: Principal | None, set_name: str) -> str:
    """Return the common part of a task's store keys.

    It includes the principal and the set, so that others can't find the task, nor the same caller at another address.
    """
    owner = _ANONYMOUS if principal is None else principal.binding.hex()
    # Tasks of older versions have shorter ids, and names without the mark of a share.
    share = share_for(owner) if len(task_id) > _OLD_ID else owner
    # No id has a period, so that "SET.ID" isn't the task of a set.
    return f"{share}.{set_name}.{task_id}" if set_name or "." in task_id else f"{share}.{task_id}"


class TaskRecords:
    """The tasks of one store."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._map = host.map

    # Tasks

    async def create(self, name: str, record: TaskRecord, call: SavedCall) -> None:
        """Store a new task that this worker runs.

        Raises:
            StoreFull: The store is full.
            StoreUnavailable: The store doesn't respond.
        """
        await self.mark(name, record.worker, record.expires)
        try:
            await self._map.put(f"taskcall:{name}", _encode(call), record.ttl)
            await self._map.put(f"task:{name}", _encode(record), record.ttl)
        except BaseException:
            await self._map.delete(f"taskcall:{name}")
            await self.unmark(name, record.worker)
            raise

    async def get(self, name: str) -> TaskRecord | None:
        """Return the task with a name, or None."""
        if len(name.rpartition(".")[2]) > _MAX_ID:
            return None
        raw = await self._map.get(f"task:{name}")
        if raw is None:
            return None
        record = _decode_record(raw)
        return record if record.expires > self._host.now() else None

    async def call_of(self, name: str) -> SavedCall | None:
        """Return the saved call of a task."""
        raw = await self._map.get(f"taskcall:{name}")
        return None if raw is None else _decode_call(raw)

    async def forget_call(self, name: str) -> None:
        """Delete the saved call of a task that won't run again."""
        await self._map.delete(f"taskcall:{name}")

    async def update(self, name: str, change: Change) -> TaskRecord | None:
        """Change a task that hasn't ended and announce the change. Return the new record, or None without a change.

        `change` is called again if another worker has changed the record in the meantime.

        Raises:
            StoreFull: The store is full.
            StoreUnavailable: The store doesn't respond.
        """
        kv, key = self._map, f"task:{name}"
        for attempt in count():
            raw = await read_again(kv, key, attempt)
            record = None if raw is None else _decode_record(raw)
            now = self._host.now()
            if record is None or record.over or record.expires <= now:
                return None
            changed = change(record)
            if changed is None:
                return None
            changed = replace(changed, updated=max(now, record.updated), room=b"" if changed.over else _ROOM)
            if await kv.compare_and_set(key, raw, _encode(changed), changed.expires - now):
                await self._host.bus.publish(CHANGE_TOPIC, name.encode())
                return changed
        return None

    # Markers

    async def mark(self, name: str, worker: str, expires: float) -> None:
        """Mark a task as run by a worker. The marker precedes the record, so no task of a dead worker is missed."""
        await self._map.put(f"taskrun:{worker}:{name}", b"", max(1.0, expires - self._host.now()))

    async def unmark(self, name: str, worker: str) -> None:
        """Delete the marker."""
        await self._map.delete(f"taskrun:{worker}:{name}")


_MAX_TEXT = 1_000
"""Maximum characters of a status message."""


class _Params(Struct, frozen=True, gc=False):
    progress: float = 0.0
    total: float | None = None
    message: str | None = None
    data: Any = None


class _Notification(Struct, gc=False):
    method: str = ""
    params: _Params = _Params()


_decode = msgspec.json.Decoder(_Notification).decode


def status_text(message: bytes) -> str:
    """Return the status message of a notification, or an empty string if it has none."""
    sent = _decode(message)
    params, text = sent.params, ""
    if sent.method == "notifications/message":
        text = params.data if isinstance(params.data, str) else encode(params.data).decode()
    elif sent.method == "notifications/progress":
        text = params.message or ""
        if params.total:
            share = f"{params.progress:g} of {params.total:g}"
            text = f"{text} ({share})" if text else share
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


logger = logging.getLogger("millstream")

CANCEL_TOPIC = "tasks.cancel"
"""The topic on which a worker receives the names of tasks to stop, and the ids of functions that wait."""
MAX_ATTEMPTS = 3
"""Maximum starts of a task, so that a task that crashes its worker can't crash all workers."""
RETRY_DELAY = 1.0
"""Seconds before a failed operation is retried."""
_STATUS_INTERVAL = 1.0
"""Minimum seconds between two status messages of a task."""
_WORKER_STOPPED = (
    "The server process that ran this task has stopped, and what the task did may have taken effect. Check, and then "
    "call again."
)


class _Run(Struct):
    """A task on this worker."""

    name: str
    record: TaskRecord
    saved_call: SavedCall
    """The call, without its parameters."""
    call: CallRun
    slots: Slots | None
    """Slots of the task, or None while a task of a dead worker waits for them."""
    release_slots: Callable[[], object]
    """Releases the slots of the call that became this task."""
    task: asyncio.Task[None] | None = None
    status_message: str = ""
    status_task: asyncio.Task[None] | None = None

    def owns(self, record: TaskRecord) -> bool:
        """Return whether the record still belongs to this run."""
        own = self.record
        return record.worker == own.worker and record.attempts == own.attempts and record.status == WORKING

    def change(self, **fields: Any) -> Change:
        """Return a change to the record while it belongs to this run."""
        return lambda record: replace(record, **fields) if self.owns(record) else None

    def fail(self, code: int, message: str, data: Any = None) -> Change:
        """Return the change to the record for a failed run."""
        return self.change(**_failure(code, message, data))

    @property
    def hands_over(self) -> bool:
        """Whether another worker will run the task again after this one has stopped."""
        return self.record.retry and self.call.halted


class TaskRunner(TaskRecords):
    """The tasks of one worker, which runs some of the tasks in the store."""

    _closing = False

    def __init__(self, host: Host) -> None:
        """Create a runner of the host's calls. `open` starts it."""
        super().__init__(host)
        self._settings = host.settings
        self._me = host.worker
        self._running: dict[str, _Run] = {}
        self._sweep_event = asyncio.Event()
        """Set to search for tasks of dead workers, and for canceled ones."""
        self._tasks = Tasks()

    def __len__(self) -> int:
        return len(self._running)

    def open(self) -> None:
        """Listen to the other workers and settle the tasks of dead ones."""
        host = self._host
        host.on_workers_change(self._on_workers_change)
        host.on_close(host.bus.subscribe(CANCEL_TOPIC, self._cancel_here, interrupted=self._sweep_event.set))
        self._sweep_event.set()
        trouble = LogOnce(host.troubles, "Tasks can't be read; retrying", "Tasks can be read again.")
        self._tasks.spawn(run_on(self._sweep_event, self._sweep, trouble, pause=RETRY_DELAY))

    async def drain(self, seconds: float) -> None:
        """Stop running tasks and settle them within the given time."""
        self._closing = True
        for run in list(self._running.values()):
            run.call.stop_for_shutdown()
        waiting = [run.task for run in self._running.values() if run.task is not None]
        if waiting:
            await asyncio.wait(waiting, timeout=seconds)

    async def close(self) -> None:
        """End the tasks that `drain` left."""
        self._closing = True
        await self._tasks.close()

    # Requests of clients

    async def start(self, call: PendingCall) -> TaskRecord:
        """Turn a call into a task and run it.

        Raises:
            ProtocolError: Too many tasks are running.
        """
        self._check_open()
        # In hexadecimal, an id never begins with a hyphen, which commands take for an option.
        task_id, now, saved = secrets.token_hex(25), self._host.now(), call.save()
        name = name_of(task_id, call.principal, call.set_name)
        slots = await self._take_slots(task_id, saved.owner)
        settings, rules = self._settings, call.rules
        record = TaskRecord(
            id=task_id,
            created=now,
            updated=now,
            ttl=settings.task_ttl if rules.ttl is None else rules.ttl,
            poll=settings.task_poll,
            worker=self._me,
            retry=rules.retry,
            state=call.state,
            responses=call.responses,
        )
        try:
            await self.create(name, record, saved)
        except BaseException:
            self._host.release_slots(slots)
            raise
        self._run(name, record, saved, slots, call.keep_slots())
        return record

    async def answer(self, name: str, responses: Mapping[str, bytes]) -> bool:
        """Save answers to the questions of a task and run it when all are answered. Return False if the task doesn't
        exist.

        Raises:
            ProtocolError: Too many tasks are running.
        """
        me = self._me

        def change(record: TaskRecord) -> TaskRecord | None:
            accepted = {key: response for key, response in responses.items() if key in record.requests}
            if not accepted:
                return None
            rest = {key: request for key, request in record.requests.items() if key not in accepted}
            answers = {**record.responses, **accepted}
            if rest:
                return replace(record, requests=rest, responses=answers)
            return replace(record, status=WORKING, message="", worker=me, requests={}, responses=answers)

        record = await self.get(name)
        if record is None or change(record) is None:
            return record is not None
        self._check_open()
        saved = await self.call_of(name)
        if saved is None:
            return False
        slots = await self._take_slots(record.id, saved.owner, saved)
        claimed = None
        try:
            claimed = await self._claim(name, me, record.expires, change)
        finally:
            if claimed is None:
                self._host.release_slots(slots)
        if claimed is not None:
            self._run(name, claimed, saved, slots)
        return True

    async def cancel(self, name: str) -> bool:
        """Cancel a task unless it has ended. Return False if the task doesn't exist."""
        changed = await self.update(
            name,
            lambda record: replace(
                record, status=CANCELLED, message="Canceled by the client.", requests={}, responses={}
            ),
        )
        if changed is None:
            return await self.get(name) is not None
        worker, running = changed.worker, name
        if not worker:
            await self.forget_call(name)
            if changed.state is not None and changed.state.ticket is not None:
                worker, running = changed.state.ticket.worker, changed.state.ticket.id
        if worker == self._me:
            self._cancel_here(running.encode())
        elif worker:
            await self._host.bus.send(worker, CANCEL_TOPIC, running.encode())
        return True

    async def get_settled(self, name: str) -> TaskRecord | None:
        """Return the current state of a task. If its worker is dead, settle it first."""
        record = await self.get(name)
        if (
            record is not None
            and record.status == WORKING
            and record.worker != self._me
            and not await self._host.alive(record.worker)
        ):
            await self._recover(record.worker, name)
            record = await self.get(name)
        return record

    def _check_open(self) -> None:
        if self._closing or self._host.stopping:
            raise ProtocolError(OVERLOADED, "The server is stopping. Try again in a moment.", status=503)

    async def _take_slots(self, holder: str, owner: str, saved: SavedCall | None = None) -> Slots:
        """Take the slots of another task and return them.

        Args:
            holder: Id of the task.
            owner: Owner of the call.
            saved: Call of a resumed task, which has no slots of a request.

        Raises:
            ProtocolError: RATE_LIMITED; too many tasks are running.
        """
        try:
            return await self._host.acquire_slots(holder, self._limits(owner), call=saved)
        except LimitReached as reached:
            if not reached.name:
                text = "Too many concurrent calls. Try again when one has finished."
            else:
                settings = self._settings
                text = (
                    f"{settings.max_tasks_per_caller:,} of your tasks"
                    if reached.key
                    else f"{settings.max_tasks:,} tasks"
                )
                text += " are already running, which is the limit. Try again later."
            raise ProtocolError(RATE_LIMITED, text, status=429) from reached

    def _limits(self, owner: str) -> list[SlotLimit]:
        settings = self._settings
        limits = [SlotLimit("tasks", "", settings.max_tasks)]
        return [*limits, SlotLimit("tasks", owner, settings.max_tasks_per_caller)] if owner else limits

    # Running

    def _run(
        self,
        name: str,
        record: TaskRecord,
        saved: SavedCall,
        slots: Slots | None,
        release: Callable[[], object] = lambda: None,
    ) -> None:
        """Run a task claimed by this worker."""
        call = self._host.run_call(
            saved, id=record.id, state=record.state, responses=record.responses, report=partial(self._report, name)
        )
        run = self._running[name] = _Run(name, record, replace(saved, params=b""), call, slots, release)
        run.task = self._tasks.spawn(self._work(run))

    async def _work(self, run: _Run) -> None:
        call, name = run.call, run.name
        expiry = asyncio.get_running_loop().call_later(run.record.expires - self._host.now(), call.cancel)
        try:
            if run.slots is None:
                await self._wait_for_slots(run)
            outcome = await call.outcome()
            if run.status_task is not None:
                run.status_task.cancel()
            await self._settle(run, outcome)
        finally:
            expiry.cancel()
            if self._running.get(name) is run:
                del self._running[name]
            self._host.release_slots(run.slots or ())
            run.release_slots()

    async def _wait_for_slots(self, run: _Run) -> None:
        """Wait until the limits have free slots for the task of a dead worker and take them."""
        limits = self._limits(run.saved_call.owner)
        while not run.call.cancelled:
            with suppress(LimitReached):
                run.slots = await self._host.acquire_slots(run.record.id, limits, call=run.saved_call)
                return
            await asyncio.sleep(RETRY_DELAY)

    async def _settle(self, run: _Run, outcome: RunOutcome) -> None:
        """Save the outcome of a run and retry while the store doesn't respond."""
        change = self._record_change(run, outcome)
        trouble = LogOnce(
            self._host.troubles,
            "The outcome of a task can't be stored; retrying",
            "The outcomes of tasks can be stored again.",
            catches=Exception,
        )
        while self._host.now() < run.record.expires:
            with trouble:
                try:
                    await self._finish(run, change)
                except StoreFull:
                    logger.warning("%s: the store has no space for the task's result", run.saved_call.tool)
                    change = run.fail(OVERLOADED, "The store has no space for this task's result.")
                    continue
            if not trouble.lasts:
                break
            await asyncio.sleep(RETRY_DELAY)

    async def _finish(self, run: _Run, change: Change) -> None:
        written = await self.update(run.name, change)
        if not run.hands_over:  # otherwise, others find it by its marker
            await self.unmark(run.name, run.record.worker)
        if written is not None and written.over:
            await self.forget_call(run.name)

    def _record_change(self, run: _Run, outcome: RunOutcome) -> Change:
        """Return the change to the record for the outcome of a run."""
        error = outcome.error
        if run.hands_over:
            return run.change(attempts=run.record.attempts - 1)  # a restart of the server doesn't count
        if run.call.halted:
            return run.fail(OVERLOADED, _WORKER_STOPPED)
        if error is not None:
            return run.fail(error.code, error.message, error.data)
        if outcome.requests:
            requests = dict(outcome.requests)
            return run.change(status=INPUT_REQUIRED, worker="", state=outcome.state, requests=requests, responses={})
        if not outcome.result:  # canceled, which is already in the record
            return lambda record: None
        return run.change(status=COMPLETED, message="", state=None, responses={}, payload=outcome.result)

    # Status messages

    def _report(self, name: str, message: bytes) -> None:
        """Save the latest status message of the function, once per `_STATUS_INTERVAL`."""
        run, text = self._running.get(name), status_text(message)
        if run is not None and text:
            run.status_message = text
            if run.status_task is None or run.status_task.done():
                run.status_task = self._tasks.spawn(self._save_status(run))

    async def _save_status(self, run: _Run) -> None:
        while run.status_message:
            text, run.status_message = run.status_message, ""
            try:
                await self.update(run.name, run.change(message=text))
            except LocalError:
                logger.debug("A task's status message couldn't be stored", exc_info=True)
            await asyncio.sleep(_STATUS_INTERVAL)

    # Other workers

    def _cancel_here(self, data: bytes) -> None:
        run = self._running.get(name := data.decode())
        if run is not None:
            run.call.cancel()
        else:
            self._host.end_waiting_call(name)

    def _on_workers_change(self) -> None:
        me = self._host.worker
        if me != self._me:
            self._me = me
            for run in self._running.values():
                run.call.stop_for_shutdown()
        self._sweep_event.set()

    async def _sweep(self) -> None:
        """Stop running tasks that were canceled, because a message may have been lost, and settle those of dead
        workers.
        """
        for run in () if self._closing else tuple(self._running.values()):
            record = await self.get(run.name)
            if record is None or not run.owns(record):
                run.call.cancel()
        alive: dict[str, bool] = {self._me: True}
        for key in await self._map.keys("taskrun:"):
            _, worker, name = key.split(":", 2)
            if worker not in alive:
                alive[worker] = await self._host.alive(worker)
            if not alive[worker] and await self._recover(worker, name):
                await self.unmark(name, worker)

    async def _recover(self, worker: str, name: str) -> bool:
        """Settle the task of a dead worker: run it again, or fail it. Return False to leave it to other workers."""
        record = await self.get(name)
        if record is None or record.over or record.worker != worker:
            return True
        saved = await self.call_of(name)
        if saved is None or not self._host.has_tool(saved.tool, saved.set_name):
            text = "The server no longer has this tool."
        elif not record.retry:
            text = _WORKER_STOPPED
        elif record.attempts >= MAX_ATTEMPTS:
            text = f"The worker that ran this task stopped {MAX_ATTEMPTS} times before the task was done."
        elif self._closing or self._host.stopping:
            return False
        else:
            me, attempts = self._me, record.attempts + 1
            claimed = await self._claim(
                name,
                me,
                record.expires,
                lambda record: (
                    replace(record, worker=me, attempts=attempts, message="") if record.worker == worker else None
                ),
            )
            if claimed is not None:
                logger.info("A task for %s is restarting, because its worker stopped", saved.tool)
                self._run(name, claimed, saved, None)
            return True
        logger.warning("A task for %s failed: %s", "a tool" if saved is None else saved.tool, text)
        await self.update(
            name,
            lambda record: replace(record, **_failure(INTERNAL_ERROR, text)) if record.worker == worker else None,
        )
        await self.forget_call(name)
        return True

    async def _claim(self, name: str, me: str, expires: float, change: Change) -> TaskRecord | None:
        """Change a record so that this worker runs the task. Return it, or None if the task isn't this worker's."""
        await self.mark(name, me, expires)
        changed = await self.update(name, change)
        if changed is not None and changed.worker == me:
            return changed
        if name not in self._running:
            await self.unmark(name, me)
        return None


def _failure(code: int, message: str, data: Any = None) -> Json:
    """Return the record fields of a failed task."""
    error = {"code": code, "message": message} if data is None else {"code": code, "message": message, "data": data}
    return {
        "status": FAILED,
        "message": message[:500],
        "state": None,
        "requests": {},
        "responses": {},
        "payload": encode(error),
    }
