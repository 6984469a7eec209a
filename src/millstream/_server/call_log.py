"""The log of a call's stream: its entries, its name, and event ids.

Streams of handshake sessions are logged as they're sent, so a client whose connection broke can read the rest on
another connection (https://modelcontextprotocol.io/specification/2025-11-25/basic/transports, resumability).
"""

from contextlib import suppress
from functools import partial

import msgspec

from millstream._protocol.errors import INTERNAL_ERROR, SERVER_ERROR
from millstream._protocol.jsonrpc import RequestId, error_message
from millstream._stores.base import Position, Store, StoreFull, StreamSealed, read_offset

OPEN, MESSAGE, END = b"o", b"m", b"e"
"""The first byte of a log entry: the opening entry, with the request id; a message; or the end, which can be empty."""

TTL = 300.0
"""Seconds for which the messages of a broken stream can be resumed."""
MAX_MESSAGES = 1_000
_WORKER = 12
"""Number of characters in a worker's name."""
_WORKER_LOST = "The worker that ran this call has stopped. Try again."
_decode_id = msgspec.json.Decoder(RequestId).decode

_NOT_KEPT = "The result is too large to be read again on another connection."


async def append(store: Store, name: str, mark: bytes, message: bytes, answers: RequestId | None) -> Position:
    """Append a message to the log and notify readers of the stream.

    Args:
        store: The store.
        name: The log's name.
        mark: MESSAGE or END.
        message: The message, which can be empty.
        answers: The request that the message answers. If the message is too large, an error for this request is logged.
    """
    put = partial(store.log.append, name, ttl=TTL, max_entries=MAX_MESSAGES, seal=mark == END)
    position = None
    with suppress(StoreFull):
        position = await put(mark + message)
    if position is None:
        # The full message is sent once, and a client that resumes receives the error.
        position = await put(mark if answers is None else mark + error_message(answers, INTERNAL_ERROR, _NOT_KEPT))
    return position


async def close_abandoned(store: Store, name: str) -> None:
    """Write the end of a dead worker's stream: an error, unless the stream had already ended. If the worker was
    only paused, it can no longer write to the stream.

    Raises:
        LocalError, OSError: The store doesn't respond.
    """
    first = await store.log.read(name, None, 1)
    answer = b""
    # A long stream has lost its first entries, and a batch has many ids. Their clients see a stream without an answer.
    if first and first[0].data[:1] == OPEN and len(first[0].data) > 1:
        answer = error_message(_decode_id(first[0].data[1:]), SERVER_ERROR, _WORKER_LOST)
    with suppress(StreamSealed):
        await append(store, name, END, answer, None)


def stream_name(worker: str, unique: str) -> str:
    """Return the name of a call's stream in event ids. It contains the worker that writes the stream."""
    return worker + unique


def writer_of(stream: str) -> str:
    """Return the worker that writes a call's stream."""
    return stream[:_WORKER]


def log_name(session_id: str, stream: str) -> str:
    """Return the name of a stream's log. It contains the session id, so other sessions can't name it."""
    return f"call:{session_id}:{stream}"


def event_id(stream: str, position: Position) -> str:
    """Return the event id that a client sends back in `Last-Event-ID`."""
    return f"{position.epoch}.{stream}.{position.offset}"


def parse_event_id(text: str) -> tuple[str, Position] | None:
    """Return the (stream, position) of an event id, or None if the id isn't ours."""
    epoch, _, rest = text.partition(".")
    stream, _, offset = rest.partition(".")
    number = read_offset(offset)
    if not epoch or not stream.isalnum() or number is None:
        return None
    return stream, Position(epoch, number)
