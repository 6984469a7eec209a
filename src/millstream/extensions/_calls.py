"""Calls that extensions handle: custom methods, and pending, saved, or running tool calls.

`CallContext` is the context of a custom method, `ReplyStream` is a reply with a stream of notifications, and `JsonType`
converts between JSON and a declared type.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self

import msgspec
from msgspec import Raw, Struct

from millstream._override import override
from millstream._protocol.errors import ProtocolError
from millstream._protocol.json_schema import Schema
from millstream._protocol.jsonrpc import decoder, notification_message
from millstream._protocol.metadata import ClientInfo
from millstream._protocol.principal import Principal
from millstream._protocol.seal import Rounds, RoundState
from millstream._server.calls.call import DEFERRED, Call, TaskStart, granted_scopes, params_of
from millstream._server.calls.context import Context
from millstream._server.control import LIGHT, release_arguments, too_many_streams
from millstream._server.dispatch import Dispatcher
from millstream._server.features.tools import TaskRules, Tool
from millstream._server.functions.engine import VALUE, engine_of_type, read_value
from millstream._server.functions.msgspec_engine import encode
from millstream._transports.open_streams import NullReplyChannel
from millstream.protocol import CopyableError, NotCopyable

_RETRY_DELAY = 1.0
"""Seconds before a run checks again whether there's space for its arguments."""


class CallContext(Context):
    """The context of a custom method or notification: a `Context` that can also keep its reply open."""

    __slots__ = ()

    @property
    def scopes(self) -> frozenset[str] | None:
        """The caller's scopes, or None for a caller without restrictions, such as one on standard input."""
        return granted_scopes(self._call)

    def stream(self) -> "ReplyStream":
        """Keep the reply open and send notifications on it: ``async with ctx.stream() as stream: …``."""
        return ReplyStream(self._call)


class ReplyStream(NotCopyable):
    """The reply of a call as a stream, open until its client closes it or the server stops.

    The call has no timeout. It counts toward the caller's limit of open streams, as `subscriptions/listen` does.

    Example:
        ``async with ctx.stream() as stream:``, then ``await stream.send("com.example/sold", {"sku": "7"})`` and
        ``await stream.wait_closed()``.
    """

    _unregister: Callable[[], None]

    def __init__(self, call: Call) -> None:
        self._call = call
        self._closed_event = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Open the stream of notifications.

        Raises:
            ProtocolError: The caller or the server has too many open streams.
        """
        call, services = self._call, self._call.services
        if not services.streams.take(call.owner):
            raise too_many_streams(services.streams.count(call.owner))
        call.long_lived = True
        call.params = b""  # the stream may stay open for a day
        release_arguments(call, services.bodies)
        services.endings.add(self._closed_event.set)
        line = call.open_reply_channel()
        self._unregister = line.on_close(self._closed_event.set)
        try:
            await line.keep_alive()  # opens the stream, so that `push` can be first
        except BaseException:
            self._release()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        """End the stream, and then send the method's result."""
        self._release()

    def _release(self) -> None:
        services, owner = self._call.services, self._call.owner
        self._closed_event.set()
        services.endings.discard(self._closed_event.set)
        self._unregister()
        services.streams.leave(owner)

    @property
    def closed(self) -> bool:
        """Whether the stream ended: the client closed it or read too slowly, or the server is stopping."""
        return self._closed_event.is_set()

    async def send(self, method: str, params: Any = None) -> None:
        """Send a notification. Wait if the client reads too slowly.

        Args:
            method: Method of the notification.
            params: Its parameters, a mapping or Struct.
        """
        await self._call.send_to_caller(notification_message(method, params))

    def push(self, method: str, params: Any = None) -> bool:
        """Send a notification without waiting. Return False if the stream is closed.

        A client that reads too slowly is disconnected.

        Args:
            method: Method of the notification.
            params: Its parameters, a mapping or Struct.
        """
        if not self.closed and not self._call.push_to_caller(notification_message(method, params)):
            self._closed_event.set()
        return not self.closed

    async def wait_closed(self) -> None:
        """Wait until the stream is closed."""
        await self._closed_event.wait()


class JsonType(NotCopyable):
    """A type with its JSON schema, which converts values from and to JSON.

    It supports the types that tools support, such as msgspec Structs, dataclasses, TypedDicts, and pydantic models.

    Args:
        annotation: The type.

    Raises:
        TypeError: The type has no JSON schema.

    Example:
        ``JsonType(Order).read(b'{"id": "7"}')`` is an ``Order``.
    """

    _COPY_ADVICE = "Create it from the type again."

    def __init__(self, annotation: Any) -> None:
        self._engine = engine_of_type(annotation)
        self._whole: Schema = self._engine.input_schema

    @property
    def schema(self) -> Schema:
        """The JSON schema of the type, with its ``$defs``."""
        schema = self._whole["properties"][VALUE]
        while "$ref" in schema:
            schema = self._whole["$defs"][schema["$ref"].rpartition("/")[2]]
        if "$defs" in self._whole:
            schema = {**schema, "$defs": self._whole["$defs"]}
        return {key: value for key, value in schema.items() if key != "default"}

    def read(self, data: bytes) -> Any:  # a value of the type that the constructor got
        """Return the value of JSON text.

        Args:
            data: JSON text in UTF-8.

        Raises:
            ValueError: The JSON doesn't match the type. The message lists each problem with its location.
        """
        return read_value(self._engine, data)

    @staticmethod
    def write(value: Any) -> bytes:
        """Return the JSON of a value.

        Args:
            value: The value, of any type that JSON can represent.

        Raises:
            TypeError: The value can't be encoded as JSON.
        """
        return encode(value)


class SavedCall(Struct, frozen=True):
    """A tool call as data. Any worker can run it with `Host.run_call`."""

    tool: str
    params: bytes
    """JSON of the name, the arguments, and `_meta`."""
    revision: str
    client: ClientInfo
    principal: Principal | None
    transport: str
    owner: str
    """The owner against whose limits the call counts."""
    set_name: str = ""
    """See `Context.set_name`."""


class PendingCall(Struct, NotCopyable, eq=False):
    """A call of a tool with ``task=`` that has been validated but not started. See `Host.on_task_call`."""

    _call: Call
    _tool: Tool
    _run_tool: Callable[[Call, Tool], Awaitable[bytes]]
    _rounds: Rounds | None = None

    @property
    def rules(self) -> TaskRules:
        """The options of the tool."""
        assert self._tool.task is not None  # noqa: S101  only calls of such tools are pending
        return self._tool.task

    @property
    def client(self) -> ClientInfo:
        """Capabilities that the client declared."""
        return self._call.client

    @property
    def principal(self) -> Principal | None:
        """The caller."""
        return self._call.principal

    @property
    def set_name(self) -> str:
        """See `Context.set_name`."""
        return str(self._call.dispatcher.address.name)

    @property
    def handshake(self) -> bool:
        """Whether the caller's revision has sessions."""
        return self._call.revision.handshake

    @property
    def state(self) -> RoundState | None:
        """Answers of earlier rounds, or the function that waits, for `Host.run_call`."""
        rounds = self._rounds or self._call.rounds
        return None if rounds is None else rounds.state(0)

    @property
    def responses(self) -> dict[str, bytes]:
        """Answers of this round, as JSON by key."""
        return {key: bytes(answer) for key, answer in (self._call.responses or {}).items()}

    async def run(self) -> bytes | None:
        """Run the call and return its result, or None if the function called ``ctx.start_task()``."""
        self._call.task = DEFERRED
        try:
            return await self._run_tool(self._call, self._tool)
        except TaskStart as start:
            self._rounds = start.rounds
            return None

    def save(self) -> SavedCall:
        """Return the call as data, without the client's answers."""
        call, params = self._call, params_of(self._call)
        members = {"name": call.name, "arguments": params.arguments, "_meta": params.meta}
        return SavedCall(
            self._tool.name,
            encode({name: value for name, value in members.items() if value}),
            call.revision.date,
            call.client,
            call.principal,
            call.transport,
            call.owner,
            self.set_name,
        )

    def keep_slots(self) -> Callable[[], object]:
        """Keep the slots of this call after it ends. Return a function that releases them."""
        release, self._call.release = self._call.release, None
        return release or (lambda: None)


class RunOutcome(Struct, frozen=True):
    """How a run of a saved call ended."""

    result: bytes = b""
    """JSON, or empty without a result."""
    error: ProtocolError | None = None
    requests: Mapping[str, bytes] = {}
    """Open questions of the function, as JSON by key."""
    state: RoundState | None = None
    """State for the next run, which also needs the answers to `requests`."""


class CallRun(Struct, NotCopyable, eq=False):
    """One run of a saved call on this worker. Await `outcome`."""

    _dispatcher: Dispatcher
    _call: Call
    _owner: str

    async def outcome(self) -> RunOutcome:
        """Run the call in the current task and return its outcome. A canceled call has none."""
        call, task = self._call, asyncio.current_task()
        assert task is not None  # noqa: S101  a coroutine runs in a task
        # Large arguments count as those of other calls do. The request that began the run has just released its space.
        bodies = self._dispatcher.services.bodies
        size = min(len(call.params), bodies.each) if len(call.params) > LIGHT else 0
        while not call.cancelled and not bodies.take(self._owner, size):  # noqa: ASYNC110  a share sends no event
            await asyncio.sleep(_RETRY_DELAY)
        if call.cancelled:  # canceled before its first step
            return RunOutcome()
        call.stop = task.cancel
        try:
            result, error = await self._dispatcher.outcome(call)
        finally:
            call.stop = None
            bodies.leave(self._owner, size)
        if error is not None:
            return RunOutcome(error=error)
        if call.asked_rounds is not None and result.startswith(b'{"resultType":"input_required"'):
            requests = {key: bytes(request) for key, request in _decode_questions(result).requests.items()}
            return RunOutcome(requests=requests, state=call.asked_rounds.state(0))
        return RunOutcome(result)

    @property
    def cancelled(self) -> bool:
        """Whether the run was canceled or halted."""
        return self._call.cancelled

    @property
    def halted(self) -> bool:
        """Whether the run was stopped because this worker is stopping."""
        return self._call.halted

    def cancel(self) -> None:
        """Cancel the run."""
        self._call.cancel()

    def stop_for_shutdown(self) -> None:
        """Stop the function because this worker is stopping."""
        self._call.halt()


class ReportChannel(NullReplyChannel):
    """The reply channel of a call without a client. It passes the function's notifications to `report`."""

    def __init__(self, report: Callable[[bytes], object]) -> None:
        self._report = report

    @override
    async def send(self, message: bytes) -> None:
        self._report(message)


class LimitReached(CopyableError):
    """A limit has no free slot. See `Host.acquire_slots`.

    Args:
        name: Name of the limit.
        key: Owner of the slots.
    """

    def __init__(self, name: str, key: str) -> None:
        super().__init__(f"The limit {name or 'of concurrent calls'} is reached")
        self.name: str = name
        """Name of the limit, or empty for limits of concurrent calls."""
        self.key: str = key


class SlotLimit(Struct, frozen=True):
    """A limit on concurrent work across all workers."""

    name: str
    key: str
    """Owner of the limit, such as `SavedCall.owner`, or empty for a limit of the whole server."""
    most: int


class _RoundAnswers(Struct, gc=False):
    requests: dict[str, Raw] = msgspec.field(default={}, name="inputRequests")


_decode_questions = decoder(_RoundAnswers)


Slots = Sequence[Any]
"""Slots taken by `Host.acquire_slots`, to release with `Host.release_slots`."""


def format_time(seconds: float) -> str:
    """Return a time as ISO 8601, in UTC with milliseconds: ``format_time(host.now())``.

    Args:
        seconds: Unix time.
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
