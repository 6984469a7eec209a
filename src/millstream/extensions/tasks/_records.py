"""Tasks in the store: for each task, a record of its state, the saved call, and a marker of the worker that runs it.

A record changes only by compare-and-set, and never after the task has ended. If several workers settle a task at the
same time, one succeeds, and a worker that was presumed dead can't overwrite the result of another. The status message
in a record comes from the notifications that the task's function sends.
"""

import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any

import msgspec
from msgspec import Struct

from millstream import Principal
from millstream.extensions import RoundState, SavedCall, ServerHost
from millstream.stores import read_again

WORKING = "working"
INPUT_REQUIRED = "input_required"
COMPLETED = "completed"
FAILED = "failed"
CANCELLED = "cancelled"

CHANGE_TOPIC = "tasks.changed"
"""The topic on which workers announce the keys of changed tasks."""
HANDED_OVER = "-"
"""Placeholder for the worker of a task that waits for another worker."""
_ANONYMOUS = "anonymous"
_MAX_ID = 64
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
    """Worker that runs the task; empty if none does."""
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
    """JSON of the result of a completed task, or of the error of a failed one."""
    room: bytes = _ROOM

    @property
    def over(self) -> bool:
        """Whether the task has ended."""
        return self.status in (COMPLETED, FAILED, CANCELLED)

    @property
    def expires(self) -> float:
        """Unix time at which the task is deleted."""
        return self.created + self.ttl

    def describe(self, *, detailed: bool = True) -> dict[str, Any]:
        """Return the task in the wire format of `tasks/get`, or of a new task."""
        task: dict[str, Any] = {"taskId": self.id, "status": self.status}
        if self.message:
            task["statusMessage"] = self.message
        task["createdAt"] = _moment(self.created)
        task["lastUpdatedAt"] = _moment(self.updated)
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


def new_id() -> str:
    """Return an id with 192 bits of randomness. It never begins with a hyphen, which commands take for an option."""
    return secrets.token_hex(24)


def name_of(task_id: str, principal: Principal | None) -> str:
    """Return the common part of a task's store keys. It includes the principal, so others don't find the task."""
    share = _ANONYMOUS if principal is None else principal.binding.hex()
    return f"{share}.{task_id}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TaskRecords:
    """The tasks of one store."""

    def __init__(self, host: ServerHost) -> None:
        self._map = host.map
        self._bus = host.bus
        self._clock = host.now

    # Tasks

    async def create(self, name: str, record: TaskRecord, call: SavedCall) -> None:
        """Store a new task that this worker runs.

        Raises:
            StoreFull: The store is full.
            StoreUnavailable: The store doesn't respond.
        """
        await self.mark(name, record)
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
        return record if record.expires > self._clock() else None

    async def call_of(self, name: str) -> SavedCall | None:
        """Return the saved call of a task."""
        raw = await self._map.get(f"taskcall:{name}")
        return None if raw is None else _decode_call(raw)

    async def forget_call(self, name: str) -> None:
        """Delete the saved call of a task that won't run again."""
        await self._map.delete(f"taskcall:{name}")

    async def update(self, name: str, change: Change) -> TaskRecord | None:
        """Change a task that hasn't ended, and announce the change. Return the new record, or None without a change.

        `change` is called again if another worker changed the record in between.

        Raises:
            StoreFull: The store is full.
            StoreUnavailable: The store doesn't respond.
        """
        kv, key = self._map, f"task:{name}"
        for attempt in count():
            raw = await read_again(kv, key, attempt)
            record = None if raw is None else _decode_record(raw)
            now = self._clock()
            if record is None or record.over or record.expires <= now:
                return None
            changed = change(record)
            if changed is None:
                return None
            changed = msgspec.structs.replace(
                changed, updated=max(now, record.updated), room=b"" if changed.over else _ROOM
            )
            if await kv.compare_and_set(key, raw, _encode(changed), changed.expires - now):
                await self._bus.publish(CHANGE_TOPIC, name.encode())
                return changed
        return None

    # Markers

    async def mark(self, name: str, record: TaskRecord) -> None:
        """Mark a task as run by this worker. The marker precedes the record, so no task of a dead worker is missed."""
        ttl = max(1.0, record.expires - self._clock())
        await self._map.put(f"taskrun:{record.worker}:{name}", b"", ttl)

    async def unmark(self, name: str, worker: str) -> None:
        """Delete the marker."""
        await self._map.delete(f"taskrun:{worker}:{name}")

    async def running_tasks(self) -> Sequence[tuple[str, str]]:
        """Return the worker and name of every task that has a marker."""
        keys = await self._map.keys("taskrun:")
        found = (key.removeprefix("taskrun:").partition(":") for key in keys)
        return [(worker, name) for worker, _, name in found]


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
    """Return the status message of a notification; empty if it has none."""
    sent = _decode(message)
    params = sent.params
    if sent.method == "notifications/message":
        text = params.data if isinstance(params.data, str) else msgspec.json.encode(params.data).decode()
    elif sent.method == "notifications/progress":
        text = params.message or ""
        if params.total:
            share = f"{params.progress:g} of {params.total:g}"
            text = f"{text} ({share})" if text else share
    else:
        return ""
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
