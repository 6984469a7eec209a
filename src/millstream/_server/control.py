"""Control of running calls: their limits, answers to their questions, cancellations, and the end of a session.

Transports use this module instead of the call itself, because a call can run on a different worker from the one that
received the message. The number and size of calls are limited, and one caller can use half of each limit.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from time import monotonic

from millstream._http.message import HttpRequest
from millstream._limits import Limiter, Rate
from millstream._protocol.errors import INVALID_REQUEST, OVERLOADED, SERVER_ERROR, LocalError, ProtocolError
from millstream._protocol.jsonrpc import Envelope, RequestId, decode_id, encode
from millstream._protocol.notifications import read_cancellation
from millstream._protocol.principal import Share
from millstream._protocol.redaction import redact_foreign
from millstream._server.calls.call import Call
from millstream._server.calls.pending_questions import PendingQuestions, owner_worker
from millstream._server.calls.services import Services
from millstream._server.peers import AnswerMessage, CancelCall, Peers, SessionEnd
from millstream._tasks import CancelReason

logger = logging.getLogger("millstream")

LIGHT = 16 * 1024
"""Requests smaller than this count as calls, but their bytes aren't counted."""

SPARE = 1_000
"""Number of pings that can run in addition to the maximum of calls. Hooks can make pings slow, so their number is also
limited.
"""

_RECOUNT = 0.25
"""Seconds that a count of calls per caller stays valid for rejecting calls."""


class Load:
    """Counts of a server's in-flight calls."""

    def __init__(self, calls: Collection[Call], services: Services) -> None:
        self.max_calls: int = services.settings.max_calls
        self.max_each: int = max(1, self.max_calls // 2)
        """Maximum calls in flight per caller. With fewer in total, no count per caller is needed."""
        self._calls = calls
        self._endings = services.endings
        self._bodies = services.bodies
        self._shares: Counter[str] = Counter()
        """Caller -> number of its calls, counted on demand."""
        self._full: set[str] = set()
        """Callers that were at their limit at the last count."""
        self._counted_at = -_RECOUNT

    @property
    def running(self) -> int:
        """Return the number of running calls. Open subscriptions are counted as streams instead."""
        return len(self._calls) - len(self._endings)

    def admit(self, caller: Call | HttpRequest, method: str = "") -> None:
        """Reject a call if the limit is reached, in total or for its caller.

        Answers and cancellations aren't rejected for load, because they reduce it. A ping isn't
        rejected either, because an overloaded server is still alive.

        Raises:
            ProtocolError: OVERLOADED, HTTP 503.
        """
        if (
            len(self._calls) >= self.max_each
            and not (method == "ping" and self.running < self.max_calls + SPARE)
            and self.full(caller.owner)
        ):
            raise busy_error()

    def take(self, call: Call, size: int) -> None:
        """Count the bytes of a request until its call is over. This is the last step before the call runs.

        Raises:
            ProtocolError: The limit is reached (see `admit`).
        """
        if not self.takes(call, size):
            raise busy_error()

    def full(self, owner: str) -> bool:
        """Return whether a caller is at its limit."""
        running = self.running
        if running >= self.max_calls:
            return True
        if not owner or running < self.max_each:
            return False
        now = monotonic()
        if now - self._counted_at > _RECOUNT:
            self._counted_at = now
            self._full.clear()
            self._shares = Counter(self._owners())
        if self._shares[owner] >= self.max_each:
            if owner not in self._full:  # some counted calls may have finished
                self._shares[owner] = sum(each == owner for each in self._owners())
            if self._shares[owner] >= self.max_each:
                self._full.add(owner)
                return True
        self._shares[owner] += 1
        return False

    def takes(self, call: Call, size: int) -> bool:
        """Count the bytes like `take`, but return False instead of raising."""
        if size > LIGHT:
            if not self._bodies.take(call.owner, size):
                return False
            call.weight = size
        return True

    def _owners(self) -> Iterator[str]:
        return (call.owner for call in self._calls if not call.long_lived)


def busy_error() -> ProtocolError:
    """Return the error for a call beyond the limit."""
    return ProtocolError(OVERLOADED, "Too many calls are running. Try again later.", status=503)


def too_many_streams(yours: int) -> ProtocolError:
    """Return the error for a stream beyond the limit."""
    text = f"Too many open streams, {yours} of them yours. Close some, or try again later."
    return ProtocolError(OVERLOADED, text, status=503, head=b"retry-after: 1\r\n")


def release_arguments(call: Call, bodies: Share) -> None:
    """Release the arguments of a large call, so they're no longer counted."""
    if call.weight:
        bodies.leave(call.owner, call.weight)
        call.weight = 0


Gate = Callable[[Call], Awaitable[None] | None]
"""Returns, or raises `ProtocolError`, immediately or when awaited."""
PER_SECOND = 100
"""Messages to other workers that a session can cause per second. More cancellations are ignored, more answers
rejected.
"""
_MAX_ID = 1024
"""Maximum size of a request id that is sent to all workers to cancel the request, in bytes."""


class Control:
    """In-flight calls, by the names that later messages use for them."""

    def __init__(self, questions: PendingQuestions, peers: Peers) -> None:
        self._questions = questions
        self._peers = peers
        self._allowance = Limiter("messages", Rate(PER_SECOND, 1))
        self.by_id: dict[tuple[str, RequestId], Call] = {}
        """(session or connection, request id) -> call."""
        # The sending worker doesn't know which question this answers.
        peers.on(AnswerMessage, lambda message, worker: questions.answer(message, message.session))
        peers.on(
            CancelCall,
            lambda message, worker: self.cancel(message.session, decode_id(message.id), message.reason),
        )
        peers.on(SessionEnd, lambda message, worker: self.end(message.session))
        peers.on_workers(questions.end_misnamed)

    # Messages on a connection, where all calls run on this worker

    def notify(self, message: Envelope, scope: str) -> tuple[RequestId, str] | None:
        """Process a notification of a connection. Unknown ones are ignored, as in JSON-RPC.

        Return the request to cancel and the reason, if it isn't running here.
        """
        if message.method != "notifications/cancelled":
            return None
        request_id, reason = read_cancellation(message.params)
        return None if request_id is None or self.cancel(scope, request_id, reason) else (request_id, reason)

    def cancel(self, scope: str, request_id: RequestId, reason: str = "") -> bool:
        """Cancel a call. An unknown one is ignored, because it may just have ended."""
        call = self.by_id.get((scope, request_id))
        if call is None:
            return False
        if reason:
            logger.debug("The client canceled %s: %s", call.method, redact_foreign(reason))
        call.cancel(CancelReason(reason))
        return True

    def end(self, scope: str) -> None:
        """Cancel every call of a session that is over."""
        for call in [call for (each, _), call in self.by_id.items() if each == scope]:
            call.cancel()

    # Messages in a session, where calls can run on any worker

    async def notified_anywhere(self, message: Envelope, session_id: str) -> None:
        """Process a notification of a session. A cancellation can be lost."""
        elsewhere = self.notify(message, session_id)
        if elsewhere is None or not session_id:
            return
        request_id, reason = elsewhere
        encoded = encode(request_id)
        if self._peers.shared and len(encoded) <= _MAX_ID and not self._allowance.take(session_id):
            await self._peers.broadcast(CancelCall(session_id, encoded, reason))

    async def answer_anywhere(self, message: Envelope, session_id: str, owner: str) -> None:
        """Pass a client's answer to the call that asked. A late answer is ignored, because the client can't know that
        it's late.

        See https://modelcontextprotocol.io/specification/2025-11-25/basic/utilities/cancellation

        Raises:
            ProtocolError: The worker that asked has exited or is unreachable, or the session sends too many answers.
        """
        if self._questions.answer(message, session_id):
            return
        worker = owner_worker(message.id)
        if not self._peers.shared or not worker or self._peers.is_me(worker):
            return
        if self._allowance.take(session_id):
            raise ProtocolError(
                SERVER_ERROR, "Too many responses from this session in one second. Retry in a second.", status=503
            )
        assert isinstance(message.id, str)  # noqa: S101  it has a worker's name in it
        try:
            answer = AnswerMessage(session_id, message.id, message.result, message.error)
            there = await self._peers.deliver(worker, answer, owner)
        except LocalError as exc:
            raise ProtocolError(
                SERVER_ERROR, "The worker that runs the call is unreachable at the moment. Try again.", status=503
            ) from exc
        if not there:
            raise ProtocolError(
                INVALID_REQUEST,
                "The call ended because its worker stopped. Start the call again.",
                status=400,
            )

    async def end_anywhere(self, session_id: str) -> None:
        """Cancel every call of a deleted session and close its streams on other workers."""
        self.end(session_id)
        await self._peers.broadcast(SessionEnd(session_id))
