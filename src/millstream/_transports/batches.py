"""Batches of 2025-03-26: reading an array of messages. Each transport answers it in its own way."""

import asyncio
import contextlib

from millstream._protocol.admission import is_per_request
from millstream._protocol.errors import INVALID_REQUEST, ProtocolError
from millstream._protocol.jsonrpc import Envelope, read, split_batch


async def settle_task() -> None:
    """Take a cancellation that the function of a call left behind for its task: one that ends with it has no result."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


def is_batch(body: bytes) -> bool:
    """Return whether a body is a JSON array."""
    return body.lstrip(b" \t\r\n")[:1] == b"["


def refuse_batch(why: str) -> ProtocolError:
    """Return the refusal for an array that isn't an allowed batch."""
    return ProtocolError(INVALID_REQUEST, f"Invalid request: {why}", status=400)


def read_batch(body: bytes, max_items: int) -> list[Envelope | ProtocolError]:
    """Return the messages of a batch, or what is wrong with each.

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
