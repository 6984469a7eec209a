"""Questions to handshake clients that wait for their answers, which arrive as other messages of the same session."""

import asyncio
import contextlib
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from millstream._protocol.errors import METHOD_NOT_FOUND, Declined, ToolError, shorten
from millstream._protocol.jsonrpc import Envelope, PeerError, notification_message, request_message
from millstream._protocol.notifications import CancelledNotificationParams
from millstream._stores.base import Workers

Send = Callable[[bytes], Awaitable[None]]


_ID = re.compile(r"([0-9a-f]{12})-[0-9a-f]{32}")
_REASON = 1_000
"""Characters of a client's own error that the model reads."""
_decode_error = msgspec.json.Decoder(PeerError).decode


class OpenQuestions:
    """Requests to clients that have no answer yet. Bounded; each ends with its call at the latest."""

    __slots__ = ("_by_owner", "_open", "_said", "_timeout", "_workers", "max_open", "max_per_owner")

    def __init__(self, *, max_open: int, max_per_owner: int, timeout: float, workers: Workers) -> None:
        self._by_owner: Counter[str] = Counter()
        self._open: dict[str, tuple[str, asyncio.Future[bytes]]] = {}
        self._said: set[asyncio.Future[None]] = set()
        """Cancellations on their way to clients."""
        self._timeout = timeout
        self.max_open: int = max_open
        self.max_per_owner: int = max_per_owner
        self._workers = workers

    def __len__(self) -> int:
        return len(self._open)

    async def ask(self, send: Send, method: str, params: Any, *, owner: str, scope: str) -> bytes:
        """Send a request and wait for its result. A question that is given up is cancelled at the client.

        Args:
            send: takes messages to the client.
            method: of the question.
            params: of the question.
            owner: whose share of the open questions it takes.
            scope: the session whose messages can answer.

        Returns:
            The raw JSON of the result.

        Raises:
            ToolError: the client answered with an error, took too long, or too many questions are open.
        """
        if len(self._open) >= self.max_open or self._by_owner[owner] >= self.max_per_owner:
            raise ToolError("Too many questions are open. Try again later.")
        # The worker on which the call waits is a part of the id, so the answer finds its way whoever gets it.
        question_id = f"{self._workers.me}-{secrets.token_hex(16)}"
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._open[question_id] = (scope, future)
        self._by_owner[owner] += 1
        try:
            await send(request_message(question_id, method, params))
            async with asyncio.timeout(self._timeout):
                return await future
        except TimeoutError:
            await _give_up(send, question_id, "No answer came in time")
            raise ToolError(f"The client did not answer {method} in {self._timeout:g} seconds.") from None
        except asyncio.CancelledError:
            # A client may cancel again meanwhile, and is told all the same.
            said = asyncio.ensure_future(_give_up(send, question_id, "The call that asked was cancelled"))
            self._said.add(said)
            said.add_done_callback(self._said.discard)
            await asyncio.shield(said)
            raise
        finally:
            del self._open[question_id]
            self._by_owner[owner] -= 1
            if not self._by_owner[owner]:
                del self._by_owner[owner]

    def answer(self, message: Envelope, scope: str) -> bool:
        """Give an answer to the call that waits for it; False when no call of this session does (any more)."""
        entry = self._open.get(message.id) if isinstance(message.id, str) else None
        if entry is None or entry[0] != scope or entry[1].done():
            return False
        future = entry[1]
        if message.error:
            future.set_exception(_peer_error(message.error))
        else:
            future.set_result(message.result)
        return True

    def end_misnamed(self) -> None:
        """Fail every question whose answer cannot arrive, because this worker got another name."""
        for question_id, (_, future) in list(self._open.items()):
            if asker(question_id) != self._workers.me and not future.done():
                future.set_exception(
                    ToolError("The server was stopped for a while, and the answer is lost. Try again.")
                )

    def end(self, scope: str) -> None:
        """Fail every question to a session or connection whose client has gone for good."""
        for asked, future in list(self._open.values()):
            if asked == scope and not future.done():
                future.set_exception(ToolError("The client has gone away and cannot answer."))


def asker(question_id: object) -> str:
    """The worker that asked a question; empty for what isn't an id of ours."""
    match = _ID.fullmatch(question_id) if isinstance(question_id, str) else None
    return "" if match is None else match[1]


async def _give_up(send: Send, question_id: str, reason: str) -> None:
    """Tell the client that nobody waits for its answer any more, if it can still be reached."""
    with contextlib.suppress(Exception):
        await send(notification_message("notifications/cancelled", CancelledNotificationParams(question_id, reason)))


def _peer_error(raw: bytes) -> Exception:
    try:
        error = _decode_error(raw)
    except msgspec.DecodeError:
        return ToolError("The client answered with an error.")
    if error.code == -1:
        return Declined(shorten(error.message, _REASON) or "The person declined.")
    if error.code == METHOD_NOT_FOUND:
        return ToolError(f"The client does not support this: {shorten(error.message, _REASON)}")
    return ToolError(f"The client answered with an error: {shorten(error.message, _REASON)} ({error.code})")
