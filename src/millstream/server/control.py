"""What a message says to a call that runs already: an answer to its question, a cancellation, the end of its session.

Transports speak to this and never to the call itself, so that what arrives at one worker can travel to another.
"""

from millstream.protocol.jsonrpc import Envelope, RequestId
from millstream.protocol.notifications import cancelled_id
from millstream.server.calls.call import Call
from millstream.server.questions.open import OpenQuestions


class Control:
    """The calls in flight by the names that later messages have for them."""

    __slots__ = ("_questions", "by_id")

    def __init__(self, questions: OpenQuestions) -> None:
        self._questions = questions
        self.by_id: dict[tuple[str, RequestId], Call] = {}
        """(session or connection, request id) -> call."""

    def enter(self, call: Call, scope: str) -> bool:
        """Note a call before it runs, so that whatever follows it can name it; False when its id is in flight."""
        return self.by_id.setdefault((scope, call.id), call) is call

    def notified(self, message: Envelope, scope: str) -> None:
        """Carry out a notification of a session or connection; unknown ones are ignored, as JSON-RPC wants."""
        if message.method == "notifications/cancelled":
            request_id = cancelled_id(message.params)
            if request_id is not None:
                self.cancel(scope, request_id)

    def cancel(self, scope: str, request_id: RequestId) -> bool:
        """Cancel a call; an unknown one is ignored, since it may have ended while the message traveled."""
        call = self.by_id.get((scope, request_id))
        if call is None:
            return False
        call.cancel()
        return True

    def answer(self, message: Envelope, scope: str) -> bool:
        """Give a client's answer to the call that asked; False when nobody in the scope waits for it (any more)."""
        return self._questions.answer(message, scope)

    def end(self, scope: str) -> None:
        """Cancel every call of a session that is over."""
        for call in [call for (each, _), call in self.by_id.items() if each == scope]:
            call.cancel()
