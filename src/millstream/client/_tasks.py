"""Tasks of a server: start them, wait for them, answer their questions, and cancel them.

Tasks run on the server. The client polls them and reconnects as needed, so waiting continues across lost connections
and server restarts.
"""

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from millstream._copies import NotCopyable
from millstream._protocol.errors import OVERLOADED, RATE_LIMITED
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import encode
from millstream._protocol.metadata import TASKS
from millstream._protocol.notifications import InputRequest
from millstream._protocol.redaction import redact, redact_value
from millstream._tasks import retry_delay
from millstream._text import pluralize
from millstream.client._conversation import Conversation
from millstream.client._errors import (
    ClientError,
    ConnectFailed,
    ConnectionLost,
    NotSupported,
    RequestTimeout,
    ServerError,
)
from millstream.client._questions import answer_all
from millstream.client._requests import RawRequest, declare_extension
from millstream.client._results import Result, read, read_result
from millstream.client._server_messages import OnProgress
from millstream.client._transports import get_secrets

_OUTAGE_TIMEOUT = 120.0
"""Maximum seconds to wait for a task without a response."""
_MIN_PAUSE = 0.05
_MAX_PAUSE = 60.0
_MAX_RETRY_PAUSE = 5.0
_DEFAULT_PAUSE = 1.0
"""Seconds between two polls, if the server doesn't specify an interval."""

Status = Literal["working", "input_required", "completed", "failed", "cancelled"]


class TaskError(Struct):
    """The JSON-RPC error of a failed call: ``task.error.message``."""

    code: int
    message: str
    data: Any = None


class Task(Struct, frozen=True, rename="camel"):
    """The state of a task when it was requested: ``(await client.tasks.get(task_id)).status``."""

    task_id: str
    """Task id, or empty for a call that finished immediately."""
    status: Status
    status_message: str = ""
    """Description of the current work, or the reason why the task ended."""
    created_at: str = ""
    """Creation time, ISO 8601."""
    last_updated_at: str = ""
    ttl_ms: int | None = None
    """Milliseconds from the creation until the server deletes the task."""
    poll_interval_ms: float | None = None
    """Milliseconds to wait before the next poll."""
    input_requests: dict[str, InputRequest] = {}
    """Unanswered questions by key; answer them with `ClientTasks.update`."""
    result: Raw | UnsetType = UNSET
    error: TaskError | UnsetType = UNSET

    @property
    def over(self) -> bool:
        """Whether the task has ended."""
        return self.status in ("completed", "failed", "cancelled")

    @property
    def pause(self) -> float:
        """Seconds to wait before the next poll."""
        seconds = _DEFAULT_PAUSE if self.poll_interval_ms is None else self.poll_interval_ms / 1000
        return min(max(seconds, _MIN_PAUSE), _MAX_PAUSE)

    def outcome(self) -> Result:
        """Return the result of a task that has ended. Raises the same errors as `raw_outcome`."""
        return read_result(self.raw_outcome())

    def raw_outcome(self) -> bytes:
        """Return the result of a task that has ended, as JSON.

        Raises:
            ServerError: The call failed with an error.
            ClientError: The task was canceled, or hasn't ended.
        """
        if not isinstance(self.error, UnsetType):
            raise ServerError(self.error.code, self.error.message, self.error.data)
        if self.status == "cancelled":
            raise ClientError(f"The task {self.task_id} was canceled.")
        if isinstance(self.result, UnsetType):
            raise ClientError(f"The task {self.task_id} hasn't ended. Wait for it: await client.tasks.wait(task_id)")
        return bytes(self.result)


class _Kind(Struct):
    result_type: str = msgspec.field(default="complete", name="resultType")


_decode_kind = foreign_decoder(_Kind)
_decode_task = foreign_decoder(Task)


class ClientTasks(Struct, NotCopyable, eq=False):
    """The tasks extension, for one client: ``client.tasks``."""

    _conversation: Conversation

    @property
    def supported(self) -> bool:
        """Whether the server has tasks: ``if client.tasks.supported: …``."""
        negotiated = self._conversation.negotiated
        return not negotiated.revision.handshake and TASKS in members(negotiated.capabilities.get("extensions"))

    async def start(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float = 0,
        meta: Mapping[str, Any] | None = None,
    ) -> Task:
        """Call a tool and return its task: ``task = await client.tasks.start("report", {"year": 2026})``.

        Save `Task.task_id`: any client of the same principal can use it to get the task later. The server decides which
        calls become tasks. A call that finishes immediately returns a task without an id.

        Args:
            tool: Name of the tool.
            arguments: Arguments of the call.
            timeout: Seconds to wait, or 0 for the client's timeout.
            meta: As for `Client.call`.

        Raises:
            NotSupported: The server has no tasks.
            ServerError: The server responded with an error.
            ClientError: There was no response.
        """
        declared = await self._extension_meta()
        raw = await self._conversation.call(tool, arguments or {}, None, timeout, meta=meta, declared=declared)
        if read("tools/call", _decode_kind, raw).result_type == "task":
            return read("tools/call", _decode_task, raw)
        return Task("", "completed", result=Raw(raw))

    async def get(self, task_id: str, *, timeout: float = 0) -> Task:
        """Return the current state of a task.

        Args:
            task_id: Id of the task.
            timeout: Seconds to wait, or 0 for the client's timeout.

        Raises:
            NotSupported: The server has no tasks.
            ServerError: There's no such task, for example because it has expired.
            ClientError: There was no response.
        """
        task = read("tasks/get", _decode_task, await self._ask("tasks/get", task_id, {}, timeout))
        if not isinstance(task.error, UnsetType):
            secrets, error = get_secrets(self._conversation.transport), task.error
            error.message, error.data = redact(error.message, secrets), redact_value(error.data, secrets)
        return task

    async def update(self, task_id: str, answers: Mapping[str, Any], *, timeout: float = 0) -> None:
        """Answer questions of a task: ``await client.tasks.update(task_id, {key: {"action": "decline"}})``.

        `wait` does this with the client's handlers. Raises the same errors as `get`.

        Args:
            task_id: Id of the task.
            answers: Answers by the keys of `Task.input_requests`.
            timeout: Seconds to wait, or 0 for the client's timeout.
        """
        await self._ask("tasks/update", task_id, {"inputResponses": answers}, timeout)

    async def cancel(self, task_id: str, *, timeout: float = 0) -> None:
        """Cancel a task unless it has ended: ``await client.tasks.cancel(task_id)``. Raises the same errors as `get`.

        Args:
            task_id: Id of the task.
            timeout: Seconds to wait, or 0 for the client's timeout.
        """
        await self._ask("tasks/cancel", task_id, {}, timeout)

    async def wait(
        self, task: str | Task, *, progress: OnProgress | None = None, timeout: float = 0, raise_on_error: bool = True
    ) -> Result:
        """Wait until a task ends and return its result: ``(await client.tasks.wait(task_id)).text``.

        The client's handlers answer the task's questions. If you stop waiting, the task continues.

        Args:
            task: The task's id, or the result of `start`.
            progress: Handler for each new status message: ``progress(count, None, message)``.
            timeout: Seconds to wait, or 0 for no limit.
            raise_on_error: As for `Client.call`.

        Raises:
            ToolFailed: The tool reported an error.
            ServerError: The call failed with an error, or there's no such task.
            RequestTimeout: The task didn't end in time.
            ClientError: The task was canceled, or the server no longer responds.
        """
        task_id = task if isinstance(task, str) else task.task_id
        limit = asyncio.timeout(timeout or None)
        try:
            async with limit:
                ended = await self._follow(task, progress)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise RequestTimeout(
                f"The task {task_id} didn't end within {pluralize(timeout, 'second')}. It continues on the server."
            ) from exc
        result = ended.outcome()
        if raise_on_error:
            result.check()
        return result

    async def _follow(self, task: str | Task, progress: OnProgress | None) -> Task:
        current = await self._get_again(task) if isinstance(task, str) else task
        answered: set[str] = set()
        message, reports = "", 0
        while not current.over:
            if current.status_message and current.status_message != message:
                message, reports = current.status_message, reports + 1
                if progress is not None and inspect.isawaitable(pending := progress(reports, None, message)):
                    await pending
            new = {key: question for key, question in current.input_requests.items() if key not in answered}
            if new:
                answered.update(new)
                await self.update(current.task_id, await answer_all(self._conversation.questions, new, "The task"))
            await asyncio.sleep(current.pause)
            current = await self._get_again(current.task_id)
        return current

    async def _get_again(self, task_id: str) -> Task:
        """Return a task, retrying while the server restarts."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _OUTAGE_TIMEOUT
        attempt = 0
        while True:
            try:
                return await self.get(task_id)
            except (ConnectionLost, ConnectFailed, RequestTimeout):
                if loop.time() >= until:
                    raise
            except ServerError as exc:
                if exc.code not in _TEMPORARY_ERRORS or loop.time() >= until:
                    raise
            await asyncio.sleep(retry_delay(attempt, _MIN_PAUSE, _MAX_RETRY_PAUSE))
            attempt += 1

    async def _ask(self, method: str, task_id: str, params: Mapping[str, Any], timeout: float) -> bytes:
        meta = await self._extension_meta()
        ask = RawRequest(
            method=method,
            params=encode({"taskId": task_id, **params}),
            name=task_id,
            timeout=timeout,
            repeatable=True,
            meta=meta,
        )
        return await self._conversation.requests.ask(ask)

    async def _extension_meta(self) -> bytes:
        """Return the `_meta` of a request that declares the extension.

        Raises:
            NotSupported: The server has no tasks.
        """
        connection = await self._conversation.requests.connect()
        if not self.supported:
            raise NotSupported("The server doesn't announce the tasks extension, or it uses an older revision.")
        return declare_extension(connection.meta, TASKS)


_TEMPORARY_ERRORS = frozenset({OVERLOADED, RATE_LIMITED})
"""Codes of temporary errors: the server is overloaded, or a rate limit was reached."""
