"""A batch over HTTP: its calls run concurrently and share one reply.

As for a single call, the reply becomes a stream when a call sends its first message, if the client reads streams. Every
answer is then an event of its own.

Batches of 2025-03-26: decoding an array of messages. Each transport answers in its own way.
"""

import asyncio
import contextlib
from typing import Any, cast

from millstream._http.message import Response
from millstream._protocol import revisions
from millstream._protocol.admission import is_per_request
from millstream._protocol.errors import INVALID_REQUEST, ProtocolError
from millstream._protocol.jsonrpc import Envelope, RequestId, error_message, read, split_batch
from millstream._protocol.revisions import Revision
from millstream._server.calls.call import Call
from millstream._server.calls.sessions import Session
from millstream._transports.streamable.reply_channel import PostReplyChannel
from millstream._transports.streamable.sessions import StreamableExchange

MAX_ITEMS = 50


async def settle_task() -> None:
    """Consume a cancellation that a function left behind for its task, so the task can still return its result."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


def is_batch(body: bytes) -> bool:
    """Return whether a body is a JSON array."""
    return body.lstrip(b" \t\r\n")[:1] == b"["


def refuse_batch(why: str) -> ProtocolError:
    """Return the error for an array that isn't an allowed batch."""
    return ProtocolError(INVALID_REQUEST, f"Invalid request: {why}", status=400)


def read_batch(body: bytes) -> list[Envelope | ProtocolError]:
    """Return the messages of a batch, or an error for each invalid one.

    Raises:
        ProtocolError: The batch is empty or too large, or it contains `initialize` or a message of another era.
    """
    messages: list[Envelope | ProtocolError] = []
    for item in split_batch(body, MAX_ITEMS):
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


async def serve_batch(exchange: StreamableExchange) -> Response | None:
    """Answer a batch.

    Raises:
        ProtocolError: The revision has no batches, or the batch is refused as a whole.
    """
    messages = read_batch(exchange.request.body)
    exchange.request.body = b""  # each call has its own part, and can run for a day
    session, revision = await exchange.session()
    if not revision.batches:
        raise refuse_batch(f"revision {revision.date} has no batches")
    exchange.check_readable()
    return await _Batch(exchange, session, revision).serve(messages)


class _Batch:
    """The calls of one batch, and their shared reply channel."""

    def __init__(self, exchange: StreamableExchange, session: Session | None, revision: Revision) -> None:
        self._exchange = exchange
        self._session = session
        self._scope = "" if session is None else session.id
        self._revision = revision
        self._line: PostReplyChannel | None = None

    async def serve(self, messages: list[Envelope | ProtocolError]) -> Response | None:
        """Process every message, and answer with an array unless the reply became a stream."""
        work = [self._take(message) for message in messages]
        messages.clear()
        answers = [each for each in await asyncio.gather(*work) if each[1]]
        line = self._line
        if line is not None and line.streaming:
            for request_id, body in answers:
                await line.send(body, request_id)
            await line.finish(b"")
            return None
        array = b",".join(body for _, body in answers)
        return self._exchange.reply(b"[%b]" % array) if array else Response(b"", 202, b"")

    async def _take(self, message: Envelope | ProtocolError) -> tuple[RequestId | None, bytes]:
        """Return the id and answer of a request, unless it was answered on the stream."""
        if isinstance(message, ProtocolError):
            return None, self._refuse(None, "", message)
        dispatcher = self._exchange.endpoint.dispatcher
        if message.is_answer or message.id is None:
            if not message.is_answer:
                await self._exchange.notify(message, self._session, self._revision)
                return None, b""
            self._exchange.note("response", self._session)
            try:
                await dispatcher.control.answer_anywhere(message, self._scope)
            except ProtocolError as exc:
                return None, self._refuse(None, "response", exc)
            return None, b""
        try:
            call = self._exchange.handshake_call(message, self._session, self._revision)
            dispatcher.load.admit(call, call.method)
            dispatcher.load.take(call, len(call.params))
        except ProtocolError as exc:
            return message.id, self._refuse(message.id, message.method, exc)
        # The request covers the whole batch, but a cancellation is for one call.
        call.stop = cast("asyncio.Task[Any]", asyncio.current_task()).cancel
        call.open_reply = self._connect
        body = await dispatcher.call(call, self._scope)
        await settle_task()
        if not body or self._line is None or not self._line.streaming:
            return call.id, body
        await self._line.send(body, call.id)
        return call.id, b""

    def _refuse(self, request_id: RequestId | None, method: str, exc: ProtocolError) -> bytes:
        exc = revisions.error(exc, self._revision)
        self._exchange.note(method, self._session, str(exc.code))
        return error_message(request_id, exc.code, exc.message)

    def _connect(self, call: Call) -> PostReplyChannel:
        """Return the shared reply channel, created when the first call needs it."""
        if self._line is None:
            self._line = self._exchange.endpoint.open_line(call)
        return self._line
