"""Batches of 2025-03-26: an array of messages, answered by an array, or on one stream (digest §1, §4.3).

The calls of a batch run side by side and share one reply. As that of a single call, it becomes a stream when the first
of them has something to say, if the client reads streams; then every answer is an event of its own.
"""

import asyncio
from typing import TYPE_CHECKING, Any, cast

from millstream.http.media import accepted
from millstream.http.message import Request, Response
from millstream.protocol.admission import is_per_request
from millstream.protocol.errors import INVALID_REQUEST, ProtocolError
from millstream.protocol.jsonrpc import Envelope, RequestId, error_message, read, split_batch
from millstream.protocol.principal import Principal
from millstream.protocol.revisions import Revision
from millstream.server.calls.call import Call
from millstream.server.calls.sessions import Session
from millstream.server.dispatch import Dispatcher
from millstream.server.inbox import take_notification
from millstream.transports.streamable.line import PostLine

if TYPE_CHECKING:
    from millstream.transports.streamable.post import Streamable


def is_batch(body: bytes) -> bool:
    """Whether a body is a JSON array."""
    return body.lstrip(b" \t\r\n")[:1] == b"["


def refuse_batch(why: str) -> ProtocolError:
    """The refusal for an array that is no allowed batch."""
    return ProtocolError(INVALID_REQUEST, f"Invalid request: {why}", status=400)


def read_batch(body: bytes, max_items: int) -> list[Envelope | ProtocolError]:
    """The messages of a batch, or what is wrong with each.

    Raises:
        ProtocolError: an empty or oversize batch, or one with a message of another era or an `initialize`.
    """
    messages: list[Envelope | ProtocolError] = []
    for item in split_batch(body, max_items):
        try:
            message = read(item)
        except ProtocolError as exc:
            messages.append(exc)
            continue
        if message.method == "initialize":
            raise refuse_batch("initialize must not be in a batch")
        if message.method and is_per_request(message):
            raise refuse_batch("this revision has no batches")
        messages.append(message)
    return messages


async def serve_batch(
    streamable: "Streamable", dispatcher: Dispatcher, request: Request, principal: Principal | None
) -> Response | None:
    """Answer a batch.

    Raises:
        ProtocolError: the revision has no batches, or the batch as a whole is refused.
    """
    messages = read_batch(request.body, streamable.services.settings.max_batch)
    session, revision = await streamable.session_of(request, principal)
    if not revision.batches:
        raise refuse_batch(f"revision {revision.date} has no batches")
    streamable.check_readable(request)
    return await _Batch(streamable, dispatcher, request, session, revision, principal).serve(messages)


class _Batch:
    """The calls of one batch, and the line that they share."""

    __slots__ = ("_dispatcher", "_line", "_principal", "_request", "_revision", "_scope", "_session", "_streamable")

    def __init__(
        self,
        streamable: "Streamable",
        dispatcher: Dispatcher,
        request: Request,
        session: Session | None,
        revision: Revision,
        principal: Principal | None,
    ) -> None:
        # Of the server
        self._streamable = streamable
        self._dispatcher = dispatcher
        # Of the request
        self._request = request
        self._session = session
        self._scope = "" if session is None else session.id
        self._revision = revision
        self._principal = principal
        self._line: PostLine | None = None

    async def serve(self, messages: list[Envelope | ProtocolError]) -> Response | None:
        """Take every message; answer by an array, unless the line became a stream."""
        answers = [each for each in await asyncio.gather(*map(self._take, messages)) if each[1]]
        line = self._line
        if line is not None and line.streaming:
            for request_id, body in answers:
                await line.send(body, request_id)
            await line.finish(b"")
            return None
        array = b",".join(body for _, body in answers)
        return self._streamable.reply(self._request, b"[%b]" % array) if array else Response(b"", 202, b"")

    async def _take(self, message: Envelope | ProtocolError) -> tuple[RequestId | None, bytes]:
        """The id and the answer of a request that is not answered on the stream."""
        if isinstance(message, ProtocolError):
            self._note("", status=str(message.code))
            return None, error_message(None, message.code, message.message)
        if message.is_answer or message.id is None:
            self._note(message.method or "response")
            if message.is_answer:
                self._dispatcher.answer(message, self._scope)
            else:
                take_notification(self._dispatcher, message, self._scope)
            return None, b""
        call = self._streamable.handshake_call(self._request, message, self._session, self._revision, self._principal)
        call.canceller = None  # it is the batch as a whole; a cancel is for one of its calls
        call.stop = cast("asyncio.Task[Any]", asyncio.current_task()).cancel
        call.open_reply = self._connect
        body = await self._dispatcher.call(call, self._scope)
        if not body or self._line is None or not self._line.streaming:
            return call.id, body
        await self._line.send(body, call.id)
        return call.id, b""

    def _note(self, method: str, status: str = "") -> None:
        self._streamable.services.note(method, "http", self._session, status, principal=self._principal)

    def _connect(self, call: Call) -> PostLine:
        """One line for all, made when the first call needs it."""
        if self._line is None:
            streamable = self._streamable
            can_stream = (
                accepted(self._request.headers.get(b"accept")).stream and not streamable.services.settings.json_only
            )
            self._line = PostLine(self._request, call, streamable.services, streamable.streams, can_stream=can_stream)
        return self._line
