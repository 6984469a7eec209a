"""Messages that the server initiates, and the timeouts of requests, which some of these messages extend."""

import asyncio
import inspect
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from msgspec import Raw, Struct, field

from millstream._protocol.errors import INTERNAL_ERROR, ProtocolError
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.handlers import NotificationFilters
from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import MALFORMED, Envelope, Json, encode, error_message, result_message
from millstream._protocol.metadata import SUBSCRIPTION_KEY
from millstream._protocol.notifications import (
    KEEP_ALIVE,
    LoggingMessageNotificationParams,
    NotificationParams,
    ProgressNotificationParams,
    ResourceUpdatedNotificationParams,
    read_cancellation,
)
from millstream._tasks import CancelReason, Tasks
from millstream.client._errors import (
    ClientError,
    ConnectFailed,
    ConnectionLost,
    SessionLost,
    TooManyMessages,
    client_logger,
)
from millstream.client._questions import QuestionHandler
from millstream.client._transports import Options, Transport

OnProgress = Callable[[float, float | None, str | None], Awaitable[None] | None]
"""Progress callback: ``progress(value, total, message)``."""


class PendingRequest(Struct, eq=False):
    """A request waiting for its response: its timeout and progress callback. Created by `ServerMessages.begin`."""

    _owner: "ServerMessages"
    _task: asyncio.Task[Any]
    _cancel_requests: int
    _seconds: float
    _latest: float
    """The latest possible deadline, on the event loop's clock."""
    when: float
    """Deadline, which progress extends."""
    progress: OnProgress | None
    """Progress callback."""
    _holds: int = 0
    """Questions of the server that the client hasn't answered yet."""
    _expired: bool = False

    def extend(self, now: float) -> None:
        """Restart the clock after progress."""
        if not self._holds and not self._expired:
            self.when = min(now + self._seconds, self._latest)
            self._owner.wake_at(self.when)

    def hold(self) -> None:
        """Pause the clock while the server waits for an answer from us."""
        self._holds += 1
        if not self._expired:
            self.when = self._latest

    def release(self, now: float) -> None:
        """Record that a question was answered. The clock restarts after the last one."""
        self._holds -= 1
        self.extend(now)

    @property
    def is_paused(self) -> bool:
        """Whether the clock is paused."""
        return self._holds > 0

    def expire(self) -> None:
        """Cancel the request's task; `end` then reports the timeout."""
        self.when = math.inf
        self._expired = True
        self._task.cancel()

    def end(self) -> bool:
        """Return whether the `CancelledError` that was just raised means a timeout."""
        if not self._expired:
            return False
        self._expired = False
        return self._task.uncancel() <= self._cancel_requests


_logger = client_logger(__name__)
_MAX_QUESTIONS = 100
"""Maximum number of unanswered questions from the server."""
_PAUSES = 1.0, 3.0, 9.0
"""Seconds before an answer is sent again."""

Kind = Literal["tools", "prompts", "resources", "resource", "again"]


class Change(Struct, frozen=True):
    """A change on the server."""

    kind: Kind
    """Kind of the list, `resource`, or `again` after an interruption, when changes may have been missed."""
    uri: str = ""
    """URI of the resource."""


class Notification(Struct, frozen=True):
    """Any notification, as received: ``if notification.method == "notifications/message": …``."""

    method: str
    params: Raw
    request_id: int = 0
    """Request with the stream that it arrived on, or 0 if the transport doesn't specify it."""


LogMessage = LoggingMessageNotificationParams
OnLog = Callable[[LogMessage], Awaitable[None] | None]
OnChange = Callable[[Change], Awaitable[None] | None]
Watcher = Callable[[Change, Any], None]
"""Callback for a change and the id of its subscription."""


class _PlainParams(NotificationParams):
    notifications: Json | None = None


_CHANGES: dict[str, Kind] = {
    "notifications/tools/list_changed": "tools",
    "notifications/prompts/list_changed": "prompts",
    "notifications/resources/list_changed": "resources",
    "notifications/resources/updated": "resource",
}
_decode_progress = foreign_decoder(ProgressNotificationParams)
_decode_log = foreign_decoder(LoggingMessageNotificationParams)
_decode_updated = foreign_decoder(ResourceUpdatedNotificationParams)
_decode_plain = foreign_decoder(_PlainParams)


class ServerMessages(Struct, eq=False):
    """Receives the server's requests and notifications, from all connections of a client.

    Notifications report progress, log messages, and changes. Requests are questions of the handshake era. Handlers run
    in the order of the messages. Plain functions run immediately; coroutines wait in a bounded queue, and the client
    disconnects a server that overflows it.

    One timer serves the timeouts of all requests, which progress and questions extend. Nearly all requests finish long
    before their timeout, so most individual timers would be set up just to be canceled.
    """

    _questions: QuestionHandler
    on_log: OnLog | None
    on_change: OnChange | None
    options: Options
    observer: Callable[[Notification], object] | None = None
    """Callback for each notification that the filters keep, before its handler."""
    background: Tasks = field(default_factory=Tasks)
    """Owns the tasks of the client."""
    custom: dict[str, Callable[[bytes], Awaitable[None] | None]] = {}
    """Extension notification -> its handler."""
    filters: NotificationFilters = field(
        default_factory=lambda: NotificationFilters(logging.getLogger("millstream").error)
    )
    """Filters of notifications in both directions, for extensions."""
    _timer: asyncio.TimerHandle | None = None
    _wakes_at: float = math.inf
    """When the timer fires: no later than the first deadline."""
    running: dict[int, PendingRequest] = {}
    """Pending requests by id, which is also the progress token."""
    watchers: set[Watcher] = set()
    acknowledgments: dict[int, Callable[[bool], object]] = {}
    """Callbacks for acknowledgments of subscriptions, by id. The argument is whether the server accepted any change."""
    subscribed: asyncio.Event = field(default_factory=asyncio.Event)
    interruption_callbacks: set[Callable[[Transport, ClientError], None]] = set()
    """Called when messages outside calls have stopped."""
    _failing: set[str] = set()
    """Methods of notifications whose processing failed, which is logged once."""
    _queue: deque[Awaitable[None]] = field(default_factory=deque[Awaitable[None]])
    _worker: asyncio.Task[None] | None = None
    _answer_tasks: dict[Any, asyncio.Task[None]] = {}

    def receive(self, message: Envelope, transport: Transport, request_id: int = 0) -> None:
        """Receive one message. `request_id` is the request on whose stream it arrived, or 0 if the transport doesn't
        specify it.

        Raises:
            TooManyMessages: Too many messages are waiting.
        """
        if message.id is not None:
            self._handle_request(message, transport, request_id)
            return
        kept = self.filters.filter_incoming(message)
        if kept is None:
            return
        message = kept
        try:
            if self.observer is not None:
                self.observer(Notification(message.method, Raw(message.params or b"{}"), request_id))
            handler = self._HANDLERS.get(message.method)
            if handler is not None:
                handler(self, message)
            elif (custom := self.custom.get(message.method)) is not None:
                self._run_handler(custom, bytes(message.params))
        except MALFORMED:
            _logger.debug("The server sent a %s that can't be decoded.", message.method)
        except ClientError:
            raise
        except Exception:  # one notification must not end the stream of all later ones
            key = message.method if message.method in self._HANDLERS or message.method in self.custom else ""
            if key not in self._failing:
                _logger.exception("A %.100s from the server can't be processed.", message.method)
            self._failing.add(key)

    def on_interruption(self, transport: Transport, fault: ClientError | None) -> None:
        """Report that messages outside calls have stopped, because of `fault`, or were missed if `fault` is None."""
        if fault is None:
            self.report_change(Change("again"))
            return
        for callback in tuple(self.interruption_callbacks):
            callback(transport, fault)

    async def wait_for_handlers(self) -> None:
        """Wait until the handlers have processed all messages received so far."""
        worker = self._worker
        if worker is not None and worker is not asyncio.current_task() and not worker.done():
            await asyncio.wait([worker])

    # Timeouts

    def begin(self, request_id: int, seconds: float, progress: OnProgress | None) -> PendingRequest:
        """Start timing a request in the current task. Remove it from `running` when it finishes.

        Args:
            seconds: Timeout without a response; `math.inf` for none.
            progress: Called with each progress report.
        """
        now = asyncio.get_running_loop().time()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  requests are sent in tasks
        latest = now + max(self.options.max_call_seconds, seconds)
        pending = PendingRequest(self, task, task.cancelling(), seconds, latest, now + seconds, progress)
        self.running[request_id] = pending
        self.wake_at(pending.when)
        return pending

    def wake_at(self, when: float) -> None:
        """Check for expired requests at `when`, or earlier."""
        if when < self._wakes_at:
            self.stop_timer()
            self._wakes_at = when
            self._timer = asyncio.get_running_loop().call_at(when, self._expire)

    def _expire(self) -> None:
        self._wakes_at = soonest = math.inf
        now = asyncio.get_running_loop().time()
        for pending in self.running.values():
            if pending.when <= now:
                pending.expire()
            soonest = min(soonest, pending.when)
        self.wake_at(soonest)

    def stop_timer(self) -> None:
        """Stop checking for expired requests."""
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = math.inf

    # Notifications

    def _handle_progress(self, message: Envelope) -> None:
        params = _decode_progress(message.params)
        token = params.progress_token
        pending = self.running.get(token) if isinstance(token, int) else None
        if pending is not None:
            pending.extend(asyncio.get_running_loop().time())
            if pending.progress is not None and KEEP_ALIVE not in members(params.meta):
                self._run_handler(pending.progress, params.progress, params.total, params.message)

    def _handle_log_message(self, message: Envelope) -> None:
        if self.on_log is not None:
            self._run_handler(self.on_log, _decode_log(message.params))

    def _handle_change(self, message: Envelope) -> None:
        kind = _CHANGES[message.method]
        if kind == "resource":
            updated = _decode_updated(message.params)
            change, meta = Change(kind, updated.uri), updated.meta
        else:
            change, meta = Change(kind), _decode_plain(message.params or b"{}").meta
        self.report_change(change, meta.get(SUBSCRIPTION_KEY))

    def report_change(self, change: Change, subscription: Any = None) -> None:
        """Report a change to all watchers."""
        for watcher in list(self.watchers):
            watcher(change, subscription)
        if self.on_change is not None:
            self._run_handler(self.on_change, change)

    def _handle_acknowledgment(self, message: Envelope) -> None:
        params = _decode_plain(message.params or b"{}")
        subscription: Any = params.meta.get(SUBSCRIPTION_KEY)
        acknowledge = self.acknowledgments.get(subscription) if isinstance(subscription, int) else None
        if acknowledge is not None:
            acknowledge(params.notifications is None or any(params.notifications.values()))

    def _handle_cancellation(self, message: Envelope) -> None:
        request_id, reason = read_cancellation(message.params)
        task = self._answer_tasks.get(request_id)
        if task is not None:
            task.cancel(CancelReason(reason))

    def _run_handler(self, handler: Callable[..., Awaitable[None] | None], *args: Any) -> None:
        try:
            rest = handler(*args)
        except Exception:
            _logger.exception("A client message handler raised an error.")
            return
        if not inspect.isawaitable(rest):
            return
        most = self.options.max_queued_messages
        if len(self._queue) >= most:
            if inspect.iscoroutine(rest):
                rest.close()
            raise TooManyMessages(
                f"{most:,} messages from the server are waiting for your handlers, which is the limit "
                "(Options.max_queued_messages)."
            )
        self._queue.append(rest)
        if self._worker is None or self._worker.done():
            self._worker = self.background.spawn(self._work())

    async def _work(self) -> None:
        try:
            while self._queue:
                try:
                    await self._queue.popleft()
                except Exception:
                    _logger.exception("A client message handler raised an error.")
        finally:
            while self._queue:  # the client was closed
                rest = self._queue.popleft()
                if inspect.iscoroutine(rest):
                    rest.close()

    # Questions

    def _handle_request(self, message: Envelope, transport: Transport, request_id: int) -> None:
        if len(self._answer_tasks) >= _MAX_QUESTIONS:
            raise TooManyMessages(f"The server asked {_MAX_QUESTIONS} questions at once.")
        if message.id in self._answer_tasks:
            return  # a resumed stream repeats messages
        task = self.background.spawn(self._answer(message, transport, request_id))
        self._answer_tasks[message.id] = task
        task.add_done_callback(lambda _: self._answer_tasks.pop(message.id, None))

    async def _answer(self, message: Envelope, transport: Transport, request_id: int) -> None:
        assert message.id is not None  # noqa: S101  it's a request
        try:
            try:
                with self.pause_timeouts(request_id):
                    result = await self._questions.answer(message.method, message.params, request_id)
                answer = result_message(message.id, encode(result))
            except ProtocolError as exc:
                answer = error_message(message.id, exc.code, exc.message, exc.data)
            except (TypeError, ValueError, RecursionError):
                _logger.exception("A client handler returned a value that JSON can't represent.")
                answer = error_message(message.id, INTERNAL_ERROR, "The client couldn't answer")
            await _send_answer(answer, transport)
        except ClientError as exc:
            _logger.debug("The answer to %s couldn't be sent to the server: %s", message.method, exc)

    @contextmanager
    def pause_timeouts(self, request_id: int = 0) -> Generator[None]:
        """Pause the timeouts of our requests while the server waits for a person.

        Args:
            request_id: The request that caused the question. If it's unknown, all timeouts are paused.
        """
        cause = self.running.get(request_id)
        paused = dict(self.running) if cause is None else {request_id: cause}
        for pending in paused.values():
            pending.hold()
        try:
            yield
        finally:
            now = asyncio.get_running_loop().time()
            for each, pending in paused.items():
                if self.running.get(each) is pending:
                    pending.release(now)

    _HANDLERS: ClassVar[Mapping[str, Callable[..., None]]] = {
        "notifications/progress": _handle_progress,
        "notifications/message": _handle_log_message,
        "notifications/subscriptions/acknowledged": _handle_acknowledgment,
        "notifications/cancelled": _handle_cancellation,
        **dict.fromkeys(_CHANGES, _handle_change),
    }


async def _send_answer(answer: bytes, transport: Transport) -> None:
    """Send an answer, again if the server may not have got it: else, its call would wait until it times out. Servers
    take the first answer to a question, so a second one has no effect.
    """
    for pause in _PAUSES:
        try:
            await transport.send(answer, "")
        except (ConnectFailed, ConnectionLost) as exc:
            if transport.lost or isinstance(exc, SessionLost):
                raise
            await asyncio.sleep(pause)
        else:
            return
    await transport.send(answer, "")
