"""Batches of 2025-03-26: decoding an array of messages. Each transport answers in its own way."""

import asyncio
import contextlib

from millstream._protocol.admission import is_per_request
from millstream._protocol.errors import INVALID_REQUEST, ProtocolError
from millstream._protocol.jsonrpc import Envelope, read, split_batch

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
