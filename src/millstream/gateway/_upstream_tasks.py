"""Tasks of upstreams, as `_bridge` reads and stores them."""

from msgspec import Raw, Struct, field

from millstream import ToolError
from millstream.client import InvalidResponse, ServerError
from millstream.protocol import MALFORMED, EmptyResult, InputRequest, foreign_decoder

_SHORTEST_PAUSE = 0.05
_LONGEST_PAUSE = 60.0
_TASK_MARKER = b'"task"'


class StoredTask(Struct, frozen=True, array_like=True):
    """A task of an upstream, between two requests of the client or two runs of the gateway's own task."""

    id: str
    asked_keys: list[str]
    """Keys of the questions that the client has received."""


class _Error(Struct):
    code: int
    message: str
    data: object = None


class UpstreamTask(Struct, rename="camel"):
    """The state of a task."""

    task_id: str
    status: str
    result_type: str = ""
    status_message: str = ""
    poll_interval_ms: float = 1_000.0
    input_requests: dict[str, InputRequest] = field(default_factory=dict[str, InputRequest])
    result: Raw = Raw(b"")
    error: _Error | None = None

    @property
    def pause(self) -> float:
        """Seconds before the next poll."""
        return min(max(self.poll_interval_ms / 1000, _SHORTEST_PAUSE), _LONGEST_PAUSE)

    def outcome(self) -> bytes | None:
        """Return the result, or None if the task isn't over.

        Raises:
            ServerError: The call failed at the upstream.
            ToolError: The task was canceled at the upstream.
        """
        if self.status in ("working", "input_required"):
            return None
        if self.status == "completed" and bytes(self.result):
            return bytes(self.result)
        if self.status == "failed" and self.error is not None:
            raise ServerError(self.error.code, self.error.message, self.error.data)
        if self.status == "cancelled":
            raise ToolError("The server canceled the task.")
        raise InvalidResponse(
            f"The upstream's task has the status {self.status[:50]!r}, but no matching result or error."
        )


_decode_type = foreign_decoder(EmptyResult)
_decode_task = foreign_decoder(UpstreamTask)


def read_created_task(result: bytes) -> UpstreamTask | None:
    """Return the task that a call became; None for every other result.

    Raises:
        InvalidResponse: It can't be read.
    """
    if _TASK_MARKER not in result:
        return None
    try:
        return read_task(result) if _decode_type(result).result_type == "task" else None
    except MALFORMED:
        return None


def read_task(result: bytes) -> UpstreamTask:
    """Return a task.

    Raises:
        InvalidResponse: It can't be read.
    """
    try:
        return _decode_task(result)
    except MALFORMED as exc:
        raise InvalidResponse(f"The upstream's task can't be read: {exc}.") from exc
