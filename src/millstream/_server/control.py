"""What a message says to a call that runs already: an answer to its question, a cancellation, the end of its session.

Transports speak to this and never to the call itself, since the call may run on another worker than the one that the
message came to.
"""

from collections.abc import Callable
from time import monotonic

import msgspec

from millstream._protocol.errors import INVALID_REQUEST, SERVER_ERROR, LocalError, ProtocolError
from millstream._protocol.jsonrpc import Envelope, RequestId, encode
from millstream._protocol.notifications import cancelled_id
from millstream._server.calls.call import Call
from millstream._server.peer_messages import AnswerMessage, CancelCall, SessionEnd
from millstream._server.peers import Peers
from millstream._server.questions.pending_questions import PendingQuestions, asker

PER_SECOND = 100
"""Messages to other workers that one session may cause. More cancellations are ignored, more answers refused."""
_decode_id = msgspec.json.Decoder(RequestId).decode


class Control:
    """The calls in flight by the names that later messages have for them."""

    __slots__ = ("_allowance", "_peers", "_questions", "by_id")

    def __init__(self, questions: PendingQuestions, peers: Peers) -> None:
        self._questions = questions
        self._peers = peers
        self._allowance = Allowance(PER_SECOND, monotonic)
        self.by_id: dict[tuple[str, RequestId], Call] = {}
        """(session or connection, request id) -> call."""
        peers.on(AnswerMessage, self._on_answer)
        peers.on(CancelCall, self._on_cancel)
        peers.on(SessionEnd, lambda message, worker: self.end(message.session))
        peers.on_workers(self._look_at_my_name)

    def enter(self, call: Call, scope: str) -> bool:
        """Note a call before it runs, so that whatever follows it can name it; False when its id is in flight."""
        return self.by_id.setdefault((scope, call.id), call) is call

    # On a connection, whose calls all run here

    def notified(self, message: Envelope, scope: str) -> None:
        """Carry out a notification of a connection; unknown ones are ignored, as JSON-RPC wants."""
        request_id = _cancelled(message)
        if request_id is not None:
            self.cancel(scope, request_id)

    def answer(self, message: Envelope, scope: str) -> bool:
        """Give a client's answer to the call that asked; False when nobody in the scope waits for it (any more)."""
        return self._questions.answer(message, scope)

    def cancel(self, scope: str, request_id: RequestId) -> bool:
        """Cancel a call; an unknown one is ignored, since it may have ended while the message traveled."""
        call = self.by_id.get((scope, request_id))
        if call is None:
            return False
        call.cancel()
        return True

    def end(self, scope: str) -> None:
        """Cancel every call of a session that is over."""
        for call in [call for (each, _), call in self.by_id.items() if each == scope]:
            call.cancel()

    # In a session, whose calls run anywhere

    async def notified_anywhere(self, message: Envelope, session_id: str) -> None:
        """Carry out a notification of a session. A cancellation may be lost on its way."""
        request_id = _cancelled(message)
        if request_id is None or self.cancel(session_id, request_id) or not session_id:
            return
        if self._peers.shared and self._allowance.take(session_id):
            await self._peers.tell(CancelCall(session_id, encode(request_id)))

    async def answer_anywhere(self, message: Envelope, session_id: str) -> None:
        """Give a client's answer to the call that asked. One that comes too late is ignored: the client cannot know.

        https://modelcontextprotocol.io/specification/2025-11-25/basic/utilities/cancellation

        Raises:
            ProtocolError: the worker that asked is gone, or cannot be reached now.
        """
        if self._questions.answer(message, session_id):
            return
        worker = asker(message.id)
        if not self._peers.shared or not worker or self._peers.is_me(worker):
            return
        if not self._allowance.take(session_id):
            raise ProtocolError(SERVER_ERROR, "Too many answers at once: try again", status=503)
        assert isinstance(message.id, str)  # noqa: S101  it has a worker's name in it
        try:
            there = await self._peers.send(worker, AnswerMessage(session_id, message.id, message.result, message.error))
        except LocalError as exc:
            raise ProtocolError(
                SERVER_ERROR, "The call that asked cannot be reached now: try again", status=503
            ) from exc
        if not there:
            raise ProtocolError(INVALID_REQUEST, "The worker that asked has gone, and its call with it", status=400)

    async def end_anywhere(self, session_id: str) -> None:
        """Cancel every call of a session that was deleted, and close its streams on other workers."""
        self.end(session_id)
        await self._peers.tell(SessionEnd(session_id))

    async def _look_at_my_name(self) -> None:
        self._questions.end_misnamed()

    def _on_cancel(self, message: CancelCall, worker: str) -> None:
        self.cancel(message.session, _decode_id(message.id))

    def _on_answer(self, message: AnswerMessage, worker: str) -> None:
        # Whose question it is was not known there.
        answer = Envelope(id=message.id, method="", params=b"", result=message.result, error=message.error)
        self._questions.answer(answer, message.session)


def _cancelled(message: Envelope) -> RequestId | None:
    return cancelled_id(message.params) if message.method == "notifications/cancelled" else None


class Allowance:
    """How often each of many may do something in a second of a clock. Counts are kept for the present second only."""

    __slots__ = ("_clock", "_most", "_second", "_used")

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._second = 0
        self._used: dict[str, int] = {}

    def take(self, who: str) -> bool:
        """Whether somebody may do it once more."""
        now = int(self._clock())
        if now != self._second:
            self._second, self._used = now, {}
        used = self._used.get(who, 0)
        self._used[who] = used + 1
        return used < self._most
