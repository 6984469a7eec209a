"""Messages about running calls: answers to questions, cancellations, and the end of a session.

Transports use this module instead of the call itself, because a call can run on another worker than the one that
received the message.

Client notifications that an extension handles. Each runs as a task, within the limits of calls.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from millstream._limits.limiters import Limiter, Rate
from millstream._protocol.errors import INVALID_REQUEST, SERVER_ERROR, LocalError, ProtocolError, ToolError
from millstream._protocol.jsonrpc import Envelope, RequestId, encode
from millstream._protocol.notifications import cancelled_id
from millstream._protocol.principal import Share
from millstream._server.calls.call import Call
from millstream._server.calls.pending_questions import PendingQuestions, asker
from millstream._server.calls.services import Services
from millstream._server.features.registry import Registry
from millstream._server.load import Load
from millstream._server.peers import AnswerMessage, CancelCall, Peers, SessionEnd

PER_SECOND = 100
"""Messages to other workers that a session can cause per second. More cancellations are ignored, more answers
refused.
"""
_decode_id = msgspec.json.Decoder(RequestId).decode


class Control:
    """The calls in flight, by the names that later messages use."""

    __slots__ = ("_allowance", "_peers", "_questions", "by_id")

    def __init__(self, questions: PendingQuestions, peers: Peers) -> None:
        self._questions = questions
        self._peers = peers
        self._allowance = Limiter("messages", Rate(PER_SECOND, 1))
        self.by_id: dict[tuple[str, RequestId], Call] = {}
        """(session or connection, request id) -> call."""
        peers.on(AnswerMessage, self._on_answer)
        peers.on(CancelCall, lambda message, worker: self.cancel(message.session, _decode_id(message.id)))
        peers.on(SessionEnd, lambda message, worker: self.end(message.session))
        peers.on_workers(self._look_at_my_name)

    def enter(self, call: Call, scope: str) -> bool:
        """Register a call before it runs. Return False if its id is in flight."""
        return self.by_id.setdefault((scope, call.id), call) is call

    # Messages on a connection, whose calls all run on this worker

    def notify(self, message: Envelope, scope: str) -> None:
        """Process a notification of a connection. Unknown ones are ignored, as in JSON-RPC."""
        request_id = _cancelled_request_id(message)
        if request_id is not None:
            self.cancel(scope, request_id)

    def answer(self, message: Envelope, scope: str) -> bool:
        """Pass a client's answer to the call that asked. Return False if no call in the scope waits for it."""
        return self._questions.answer(message, scope)

    def cancel(self, scope: str, request_id: RequestId) -> bool:
        """Cancel a call. An unknown one is ignored, because it may just have ended."""
        call = self.by_id.get((scope, request_id))
        if call is None:
            return False
        call.cancel()
        return True

    def end(self, scope: str) -> None:
        """Cancel every call of a session that is over."""
        for call in [call for (each, _), call in self.by_id.items() if each == scope]:
            call.cancel()

    # Messages in a session, whose calls can run on any worker

    async def notified_anywhere(self, message: Envelope, session_id: str) -> None:
        """Process a notification of a session. A cancellation can be lost."""
        request_id = _cancelled_request_id(message)
        if request_id is None or self.cancel(session_id, request_id) or not session_id:
            return
        if self._peers.shared and not self._allowance.take(session_id):
            await self._peers.tell(CancelCall(session_id, encode(request_id)))

    async def answer_anywhere(self, message: Envelope, session_id: str) -> None:
        """Pass a client's answer to the call that asked. A late answer is ignored, because the client can't know.

        See https://modelcontextprotocol.io/specification/2025-11-25/basic/utilities/cancellation

        Raises:
            ProtocolError: The worker that asked is gone or unreachable.
        """
        if self._questions.answer(message, session_id):
            return
        worker = asker(message.id)
        if not self._peers.shared or not worker or self._peers.is_me(worker):
            return
        if self._allowance.take(session_id):
            raise ProtocolError(
                SERVER_ERROR, "Too many responses from this session in one second. Retry in a second.", status=503
            )
        assert isinstance(message.id, str)  # noqa: S101  it has a worker's name in it
        try:
            there = await self._peers.send(worker, AnswerMessage(session_id, message.id, message.result, message.error))
        except LocalError as exc:
            raise ProtocolError(
                SERVER_ERROR, "The worker of the call that asked is unreachable at the moment. Try again.", status=503
            ) from exc
        if not there:
            raise ProtocolError(
                INVALID_REQUEST,
                "The call has ended, because its worker has stopped. Start the call again.",
                status=400,
            )

    async def end_anywhere(self, session_id: str) -> None:
        """Cancel every call of a deleted session, and close its streams on other workers."""
        self.end(session_id)
        await self._peers.tell(SessionEnd(session_id))

    async def _look_at_my_name(self) -> None:
        self._questions.end_misnamed()

    def _on_answer(self, message: AnswerMessage, worker: str) -> None:
        # The sending worker doesn't know which question this is.
        answer = Envelope(id=message.id, method="", params=b"", result=message.result, error=message.error)
        self._questions.answer(answer, message.session)


def _cancelled_request_id(message: Envelope) -> RequestId | None:
    return cancelled_id(message.params) if message.method == "notifications/cancelled" else None


_logger = logging.getLogger("millstream")


class Notifications:
    """The running handlers of one server.

    A notification isn't answered. One that exceeds a limit is dropped and logged at debug level.
    """

    def __init__(self, registry: Registry, services: Services, load: Load) -> None:
        self._registry = registry
        self._services = services
        self._tasks: set[asyncio.Task[None]] = set()
        self._share = Share(load.max_calls, each=load.max_each)

    def take(self, call: Call, gate: Callable[[Call], Awaitable[None] | None] | None) -> None:
        """Start the handler of a notification, unless too many are running or `gate` refuses it."""
        owner = call.owner
        if not self._share.take(owner):
            _logger.debug("Dropped a client's %s: too many notifications are being handled.", call.method)
            return
        task = asyncio.get_running_loop().create_task(self._run(call, gate))
        self._tasks.add(task)

        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._share.leave(owner)

        task.add_done_callback(end)

    async def _run(self, call: Call, gate: Callable[[Call], Awaitable[None] | None] | None) -> None:
        call.services = self._services
        try:
            if gate is not None and (gated := gate(call)) is not None:
                await gated
            handler = self._registry.notification_handlers.get(call.method)
            if handler is not None:
                await handler(call)
        except (ProtocolError, ToolError) as exc:
            _logger.debug("Refused a client's %s: %s", call.method, exc)
        except Exception:
            _logger.exception("The handler of %s failed.", call.method)
        finally:
            call.over = True
            if call.release is not None:
                call.release()

    def close(self) -> None:
        """Stop the running handlers."""
        for task in self._tasks:
            task.cancel()
