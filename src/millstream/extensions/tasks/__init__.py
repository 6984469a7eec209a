"""The tasks extension, `io.modelcontextprotocol/tasks`: calls that outlive their connection.

`TasksExtension` serves the extension's methods and its filter for `subscriptions/listen`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct, field

from millstream import Context, ProtocolError
from millstream._override import override
from millstream.extensions import CustomResult, Extension, Host, ListenSubscription, LocalError, PendingCall, cancel_all
from millstream.extensions.tasks._runner import CHANGE_TOPIC, TaskRecord, TaskRunner, logger, name_of
from millstream.protocol import INVALID_PARAMS, INVALID_REQUEST, PER_REQUEST, TASKS, Json

__all__ = ["TasksExtension"]


NOTIFICATION = "notifications/tasks"


class TaskParams(Struct, frozen=True, rename={"task_id": "taskId"}):
    """The params of `tasks/get` and `tasks/cancel`."""

    task_id: str


class UpdateParams(TaskParams, frozen=True, rename={"task_id": "taskId", "input_responses": "inputResponses"}):
    """The params of `tasks/update`."""

    input_responses: dict[str, Raw]


class TasksExtension(Extension):
    """Serves tasks. A server has this extension if a tool allows tasks, or if it's a gateway."""

    name: str = TASKS
    settings: Mapping[str, Any] | None = None
    revisions: Collection[str] = PER_REQUEST
    in_sets: bool = True
    _host: Host
    _runner: TaskRunner

    def __init__(self) -> None:
        self._followers: dict[_Follower, asyncio.Task[None]] = {}

    @override
    async def open(self, host: Host) -> None:
        """Announce the extension and settle the tasks of dead workers.

        Raises:
            ValueError: The server already runs in another event loop.
        """
        if host.serves("tasks/get"):
            raise ValueError(
                "This server already runs in another event loop. With tasks or upstreams, it can run in only one."
            )
        self._host = host
        self._runner = runner = TaskRunner(host)
        if host.has_task_tools:
            host.capability({})
        host.method("tasks/get", self._get, header="taskId", declared=True)
        host.method("tasks/update", self._update, header="taskId", declared=True)
        host.method("tasks/cancel", self._cancel, header="taskId", declared=True)
        host.listen("taskIds", self._follow)
        host.on_task_call(self._begin)
        runner.open()
        host.on_drain(runner.drain)
        host.on_close(host.bus.subscribe(CHANGE_TOPIC, self._on_change, interrupted=self._on_change))
        host.report("tasks", lambda: len(runner), limit=host.settings.max_tasks)

    @override
    async def close(self) -> None:
        """Stop running tasks."""
        await cancel_all(*self._followers.values())
        await self._runner.close()

    # Calls

    def _begin(self, call: PendingCall) -> Awaitable[bytes] | None:
        """Turn a call into a task if its client supports tasks."""
        return None if call.handshake or TASKS not in call.client.extensions else self._task(call)

    async def _task(self, call: PendingCall) -> bytes:
        if call.rules.deferred and (answer := await call.run()) is not None:
            return answer
        record = await self._runner.start(call)
        raise CustomResult({"resultType": "task", **record.describe(detailed=False)})

    # Methods

    async def _get(self, params: TaskParams, ctx: Context) -> Json:
        record = await self._runner.get_settled(name_of(params.task_id, ctx.principal, ctx.set_name))
        if record is None:
            raise _unknown_task()
        return record.describe()

    async def _update(self, params: UpdateParams, ctx: Context) -> None:
        responses = {key: bytes(response) for key, response in params.input_responses.items()}
        for key, response in responses.items():
            if not response.startswith(b"{"):
                raise ProtocolError(INVALID_PARAMS, f"Invalid inputResponses: {key[:100]!r} must be an object")
        if not await self._runner.answer(name_of(params.task_id, ctx.principal, ctx.set_name), responses):
            raise _unknown_task()

    async def _cancel(self, params: TaskParams, ctx: Context) -> None:
        if not await self._runner.cancel(name_of(params.task_id, ctx.principal, ctx.set_name)):
            raise _unknown_task()

    # Notifications

    async def _follow(self, wanted: Any, subscription: ListenSubscription, ctx: Context) -> list[str]:
        """Start pushing the states of tasks. Return the ids of the caller's tasks."""
        try:
            ids = list(dict.fromkeys(msgspec.convert(wanted, list[str])))
        except msgspec.ValidationError as exc:
            raise ProtocolError(INVALID_PARAMS, f"Invalid taskIds: {exc}") from exc
        limit = self._host.settings.max_subscriptions
        if len(ids) > limit:
            raise ProtocolError(INVALID_REQUEST, f"A subscription can't have more than {limit} tasks.")
        names = {name_of(each, ctx.principal, ctx.set_name): each for each in ids}
        existing = {name: each for name, each in names.items() if await self._runner.get(name) is not None}
        if existing:
            follower = _Follower(self._runner.get_settled, subscription, frozenset(existing), dict.fromkeys(existing))
            self._followers[follower] = asyncio.create_task(follower.run())

            def stop() -> None:
                self._followers.pop(follower).cancel()

            subscription.closes.append(stop)
        return list(existing.values())

    def _on_change(self, data: bytes = b"") -> None:
        """Push the state of one task, or of all tasks if change messages may have been lost."""
        for follower in self._followers:
            follower.notify(data.decode())


class _Follower(Struct, eq=False):
    """Pushes the current states of tasks to one subscription."""

    get: Callable[[str], Awaitable[TaskRecord | None]]
    subscription: ListenSubscription
    names: frozenset[str]
    changed_names: dict[str, None]
    """Names of tasks with a state to push, in order."""
    change_event: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self, name: str) -> None:
        """Push a task's state if the subscription includes it or, without a name, the state of all its tasks."""
        changed = self.names.intersection((name,)) if name else self.names
        if changed:
            self.changed_names.update(dict.fromkeys(changed))
            self.change_event.set()

    async def run(self) -> None:
        """Push the current states, and each later change, until the subscription ends."""
        while True:
            changed, self.changed_names = self.changed_names, {}
            for name in changed:
                try:
                    record = await self.get(name)
                    if record is not None and not self.subscription.push(NOTIFICATION, record.describe()):
                        return
                except LocalError:
                    logger.debug("A changed task can't be read", exc_info=True)
                except Exception:
                    logger.exception("The state of a task can't be sent to its subscriber.")
            await self.change_event.wait()
            self.change_event.clear()


def _unknown_task() -> ProtocolError:
    return ProtocolError(INVALID_PARAMS, "Unknown task. Its id is wrong, or it has expired.")
