"""Tasks in the store: one record with the state of each, one value with the call that it runs, and a marker for each
task that a worker runs.

A record changes only by compare-and-set, and one that is over never changes. So of several workers that settle a task
at once, one succeeds, and a worker that was taken for dead can't overwrite what another one wrote.
"""

import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from millstream import Principal
from millstream._protocol.rounds import RoundState
from millstream.extensions import SavedCall, ServerHost, back_off

WORKING: Final = "working"
INPUT_REQUIRED: Final = "input_required"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"

CHANGED: Final = "tasks.changed"
"""The topic on which workers announce the key of a task that has changed."""
HANDED_OVER: Final = "-"
"""The worker of a task that waits for one: no worker has this name."""
_ANONYMOUS: Final = "anonymous"
_MAX_ID: Final = 64
_ROOM: Final = bytes(512)
"""Bytes that a record keeps free for its end, so that a full store can't refuse the end of a task."""


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
    """The worker that runs it; empty if none does."""
    attempts: int = 1
    """How often it began because a worker had stopped."""
    retry: bool = False
    state: RoundState | None = None
    """The answers of earlier rounds, and the open questions."""
    requests: dict[str, bytes] = {}
    """The questions that wait for an answer, as JSON by key."""
    responses: dict[str, bytes] = {}
    """The answers to the questions of this round, as JSON by key."""
    payload: bytes = b""
    """JSON: the result of a task that is completed, or the error of one that failed."""
    room: bytes = _ROOM

    @property
    def over(self) -> bool:
        """Whether the task has ended."""
        return self.status in (COMPLETED, FAILED, CANCELLED)

    @property
    def expires(self) -> float:
        """When the task is deleted, in Unix time."""
        return self.created + self.ttl

    def describe(self, *, detailed: bool = True) -> dict[str, Any]:
        """Return the members of the task on the wire: those that `tasks/get` has, or those of a new task."""
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
"""``change(record)`` returns the record to write, or None to leave it as it is."""

_encode = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(TaskRecord).decode
_decode_call = msgspec.msgpack.Decoder(SavedCall).decode


def new_id() -> str:
    """Return an id with 192 bits of randomness."""
    return secrets.token_urlsafe(24)


def name_of(task_id: str, principal: Principal | None) -> str:
    """Return the part that all keys of a task have in common. It follows from the principal, too, so the id of another
    principal's task names no record.
    """
    share = _ANONYMOUS if principal is None else principal.bound.hex()
    return f"{share}.{task_id}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TaskRecords:
    """The tasks of one store."""

    __slots__ = ("_bus", "_clock", "_map")

    def __init__(self, host: ServerHost) -> None:
        self._map = host.map
        self._bus = host.bus
        self._clock = host.now

    # Tasks

    async def create(self, name: str, record: TaskRecord, call: SavedCall) -> None:
        """Store a new task that this worker runs.

        Raises:
            StoreFull: there's no room for it.
            StoreUnavailable: the store doesn't answer.
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
        """Return a task, or None if there's none of this name."""
        if len(name.rpartition(".")[2]) > _MAX_ID:
            return None
        raw = await self._map.get(f"task:{name}")
        if raw is None:
            return None
        record = _decode_record(raw)
        return record if record.expires > self._clock() else None

    async def call_of(self, name: str) -> SavedCall | None:
        """Return the call that a task runs."""
        raw = await self._map.get(f"taskcall:{name}")
        return None if raw is None else _decode_call(raw)

    async def forget_call(self, name: str) -> None:
        """Delete the call of a task that never runs again."""
        await self._map.delete(f"taskcall:{name}")

    async def update(self, name: str, change: Change) -> TaskRecord | None:
        """Change a task that isn't over, and announce it. Return what was written, or None if nothing was.

        `change` runs again if another worker was faster.

        Raises:
            StoreFull: there's no room for it.
            StoreUnavailable: the store doesn't answer.
        """
        kv = self._map
        attempt = 0
        while True:
            raw = await kv.get(f"task:{name}")
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
            if await kv.compare_and_set(f"task:{name}", raw, _encode(changed), changed.expires - now):
                await self._bus.publish(CHANGED, name.encode())
                return changed
            await back_off(attempt)
            attempt += 1

    # Markers

    async def mark(self, name: str, record: TaskRecord) -> None:
        """Note which worker runs a task. It's written before the record, so no task of a dead worker is missed."""
        left = max(1.0, record.expires - self._clock())
        await self._map.put(f"taskrun:{record.worker}:{name}", b"", left)

    async def unmark(self, name: str, worker: str) -> None:
        """Remove the note."""
        await self._map.delete(f"taskrun:{worker}:{name}")

    async def marked(self) -> Sequence[tuple[str, str]]:
        """Return (worker, name) of every task that a worker runs or ran when it stopped."""
        keys = await self._map.keys("taskrun:")
        found = (key.removeprefix("taskrun:").partition(":") for key in keys)
        return [(worker, name) for worker, _, name in found]
