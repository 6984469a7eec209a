"""Pending questions to handshake clients. Answers arrive in other messages of the session."""

import asyncio
import contextlib
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from millstream._protocol.errors import METHOD_NOT_FOUND, Declined, ToolError
from millstream._protocol.jsonrpc import Envelope, PeerError, decoder, notification_message, request_message
from millstream._protocol.notifications import CancelledNotificationParams
from millstream._protocol.principal import Share
from millstream._server.peers import AnswerMessage
from millstream._stores.workers import LeasedWorker, SoleWorker
from millstream._tasks import Tasks, cancel_reason
from millstream._text import pluralize, shorten

Send = Callable[[bytes], Awaitable[None]]


OVER = "The call has ended, so the client can't answer. Await each question before the function returns."
"""The error for a task that outlives its function."""
_ID = re.compile(r"([0-9a-f]{12})-[0-9a-f]{32}")
_REASON = 1_000
"""Maximum characters of a client's error that the model sees."""
_decode_error = decoder(PeerError)


class ClientRefusal(ToolError):
    """The client answered a question with an error: ``except ClientRefusal as exc: code = exc.code``."""

    def __init__(self, text: str, code: int, reason: str) -> None:
        super().__init__(text)
        self.code = code
        """The code of the client's error."""
        self.reason = reason
        """The message of the client's error."""


class _PendingQuestion(NamedTuple):
    """An unanswered question."""

    scope: str
    """The session or connection that can answer it."""
    future: asyncio.Future[bytes]
    send: Send
    owner: str


class PendingQuestions:
    """Unanswered requests to clients. Their number is bounded, and each ends no later than its call."""

    def __init__(self, *, max_open: int, timeout: float, workers: LeasedWorker | SoleWorker) -> None:
        self._share = Share(max_open)
        self._open: dict[str, _PendingQuestion] = {}
        self._cancellations = Tasks()
        """Cancellations being sent to clients."""
        self._timeout = timeout
        self._workers = workers

    def __len__(self) -> int:
        return len(self._open)

    async def ask(
        self, send: Send, method: str, params: Any, *, owner: str, scope: str, asked: set[str] | None = None
    ) -> bytes:
        """Send a request and wait for its result. Cancel it at the client if it takes too long or the call is canceled.

        Args:
            send: Sends messages to the client.
            params: The parameters.
            owner: The owner whose share of open questions it uses.
            scope: The session that can answer.
            asked: The set for `take_back`. It contains the question's id until an answer or cancellation.

        Returns:
            The raw JSON of the result.

        Raises:
            ToolError: The client answered with an error or took too long, too many questions are open, or the question
                was
                taken back.
        """
        if not self._share.take(owner):
            yours = self._share.count(owner)
            raise ToolError(f"Too many questions are open, {yours} of them yours. Answer them, or try again later.")
        # The id contains the worker that asked, so that any worker can route the answer.
        question_id = f"{self._workers.me}-{secrets.token_hex(16)}"
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._open[question_id] = _PendingQuestion(scope, future, send, owner)
        asked = set() if asked is None else asked
        asked.add(question_id)
        telling: asyncio.Future[None] | None = None
        try:
            await send(request_message(question_id, method, params))
            async with asyncio.timeout(self._timeout):
                return await future
        except TimeoutError:
            if not _lacks_answer(future):
                return future.result()  # the answer arrived in time, but before the loop's next iteration
            future.cancel()
            telling = self._tell(send, question_id, "No answer arrived in time.", asked)
            await asyncio.shield(telling)
            raise ToolError(
                f"The client didn't respond to {method} within {pluralize(self._timeout, 'second')}."
            ) from None
        except asyncio.CancelledError as exc:
            if _lacks_answer(future):
                future.cancel()
                reason = cancel_reason(exc) or "The call that asked this question was canceled."
                telling = self._tell(send, question_id, reason, asked)
                # The caller may cancel again during this, but the client must still be notified.
                await asyncio.shield(telling)
            raise
        finally:
            del self._open[question_id]
            if telling is None:
                asked.discard(question_id)
            if future.done() and not future.cancelled():
                future.exception()  # otherwise asyncio logs that the exception was never retrieved
            self._share.leave(owner)

    def answer(self, message: Envelope | AnswerMessage, scope: str) -> bool:
        """Pass an answer to the waiting call. Return False if no call of this session waits for it."""
        entry = self._open.get(message.id) if isinstance(message.id, str) else None
        if entry is None or entry.scope != scope or entry.future.done():
            return False
        future = entry.future
        if message.error:
            future.set_exception(_peer_error(message.error))
        else:
            future.set_result(message.result)
        return True

    async def end_misnamed(self) -> None:
        """Fail all questions whose ids contain an earlier name of this worker, because answers can't arrive."""
        for question_id, each in list(self._open.items()):
            if owner_worker(question_id) != self._workers.me and not each.future.done():
                each.future.set_exception(ToolError("The server was suspended, and the answer was lost. Try again."))

    def end(self, scope: str, reason: str = "The client has disconnected and can't answer.") -> None:
        """Fail all questions to a session or connection after its client has disconnected."""
        for _, question in self._in(scope):
            question.future.set_exception(ToolError(reason))

    def end_of(self, gone: Callable[[str], bool]) -> None:
        """Fail all questions to owners who have lost access, or whose rights have changed."""
        for each in list(self._open.values()):
            if each.owner and not each.future.done() and gone(each.owner):
                each.future.set_exception(ToolError("Your rights have changed, so no answer counts. Call again."))

    def withdraw(self, scope: str) -> None:
        """Take back all questions to a session or connection at shutdown."""
        for question_id, question in self._in(scope):
            # Send the cancellation before the call reacts to it.
            self._tell(question.send, question_id, "The server is stopping.")
            question.future.set_exception(ToolError("The server is stopping, so it can't wait for the answer."))

    async def take_back(self, asked: set[str], send: Send) -> None:
        """Withdraw a finished call's questions."""
        without = self.fail(asked)
        asked.difference_update(without)
        for question_id in without:
            await _give_up(send, question_id, "The call that asked this question has ended.")

    def fail(self, asked: Iterable[str]) -> list[str]:
        """Fail a finished call's questions. Return the ids of unanswered ones."""
        without: list[str] = []
        for question_id in asked:
            question = self._open.get(question_id)
            if question is None or _lacks_answer(question.future):
                without.append(question_id)
            if question is not None and not question.future.done():
                question.future.set_exception(ToolError(OVER))
        return without

    def _in(self, scope: str) -> list[tuple[str, _PendingQuestion]]:
        """Return the open questions to a session or connection."""
        return [each for each in self._open.items() if each[1].scope == scope and not each[1].future.done()]

    def _tell(self, send: Send, question_id: str, reason: str, asked: set[str] | None = None) -> asyncio.Future[None]:
        return self._cancellations.spawn(_give_up(send, question_id, reason, asked))


def owner_worker(question_id: object) -> str:
    """Return the worker that asked a question, or an empty string for a foreign id."""
    match = _ID.fullmatch(question_id) if isinstance(question_id, str) else None
    return "" if match is None else match[1]


def _lacks_answer(future: asyncio.Future[bytes]) -> bool:
    """Return whether there was no answer, or the waiting task was canceled."""
    return future.cancelled() or not future.done()


async def _give_up(send: Send, question_id: str, reason: str, asked: set[str] | None = None) -> None:
    """Cancel a question at the client, if it's reachable.

    Args:
        send: Sends messages to the client.
        question_id: The question's id.
        reason: A reason for display.
        asked: Questions that haven't been canceled at the client. Others are skipped.
    """
    if asked is not None:
        if question_id not in asked:
            return
        asked.discard(question_id)
    with contextlib.suppress(Exception):
        await send(notification_message("notifications/cancelled", CancelledNotificationParams(question_id, reason)))


def _peer_error(raw: bytes) -> Exception:
    try:
        error = _decode_error(raw)
    except msgspec.DecodeError:
        return ToolError("The client responded with an error.")
    if error.code == -1:
        return Declined(shorten(error.message, _REASON) or "The user declined.")
    reason = shorten(error.message, _REASON)
    if error.code == METHOD_NOT_FOUND:
        return ClientRefusal(f"The client doesn't support this: {reason}", error.code, reason)
    return ClientRefusal(f"The client responded with an error: {reason} ({error.code})", error.code, reason)
