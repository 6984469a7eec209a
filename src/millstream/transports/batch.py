"""Batches of 2025-03-26: an array of messages, answered by an array (digest §1, §4.3).

The calls of a batch run side by side. They share one reply, so they cannot stream: notifications are dropped and
questions are refused as on any reply that cannot carry them.
"""

import asyncio
from typing import TYPE_CHECKING

from millstream.http import Request, Response
from millstream.protocol.admission import is_per_request
from millstream.protocol.errors import INVALID_REQUEST, ProtocolError
from millstream.protocol.jsonrpc import Message, error_message, read, split_batch
from millstream.protocol.principal import Principal
from millstream.server.dispatch import Dispatcher
from millstream.server.inbox import take_notification
from millstream.transports.post_line import PostLine

if TYPE_CHECKING:
    from millstream.transports.streamable import Streamable


def is_batch(body: bytes) -> bool:
    """Whether a body is a JSON array."""
    return body.lstrip(b" \t\r\n")[:1] == b"["


def refuse_batch(why: str) -> ProtocolError:
    """The refusal for an array that is no allowed batch."""
    return ProtocolError(INVALID_REQUEST, f"Invalid request: {why}", status=400)


def read_batch(body: bytes, max_items: int) -> list[Message | ProtocolError]:
    """The messages of a batch, or what is wrong with each.

    Raises:
        ProtocolError: an empty or oversize batch, or one with a message of another era or an `initialize`.
    """
    messages: list[Message | ProtocolError] = []
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
) -> Response:
    """Answer a batch.

    Raises:
        ProtocolError: the revision has no batches, or the batch as a whole is refused.
    """
    messages = read_batch(request.body, streamable.services.settings.max_batch)
    session, revision = await streamable.session_of(request, principal)
    if not revision.batches:
        raise refuse_batch(f"revision {revision.date} has no batches")
    streamable.check_readable(request)
    scope = "" if session is None else session.id
    note = streamable.services.note

    async def answer(message: Message | ProtocolError) -> bytes:
        if isinstance(message, ProtocolError):
            note("", "http", session, str(message.code), principal=principal)
            return error_message(None, message.code, message.message)
        if message.is_answer or message.id is None:
            note(message.method or "response", "http", session, principal=principal)
            if message.is_answer:
                dispatcher.answer(message, scope)
            else:
                take_notification(dispatcher, message, scope)
            return b""
        call = streamable.handshake_call(request, message, session, revision, principal)
        call.carrier = None  # it is the batch as a whole; a cancel is for one of its calls
        call.line = PostLine(request, call, streamable.services, streamable.streams, can_stream=False)
        return await dispatcher.call(call, scope)

    answers = await asyncio.gather(*(answer(message) for message in messages))
    body = b",".join(each for each in answers if each)
    return streamable.reply(request, b"[%b]" % body) if body else Response(b"", 202, b"")
