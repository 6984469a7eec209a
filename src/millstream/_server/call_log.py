"""The log of a call's stream: what is kept, under which name, and how clients name a place in it.

A stream of a handshake session is logged as it is sent, so that a client whose connection broke can read the rest on
another one (https://modelcontextprotocol.io/specification/2025-11-25/basic/transports, resumability).
"""

from contextlib import suppress
from functools import partial
from typing import Final

import msgspec

from millstream._config import Settings
from millstream._protocol.errors import INTERNAL_ERROR, SERVER_ERROR
from millstream._protocol.jsonrpc import RequestId, error_message
from millstream._stores.base import Position, Store, StoreFull, StreamSealed, read_offset

OPEN, MESSAGE, END = b"o", b"m", b"e"
"""First byte of a logged entry: the first one, with the id of the request; one more message; or the last one (which
may be empty)."""

_WORKER: Final = 12
"""The characters of a worker's name."""
_GONE = "The worker that ran this call has gone: try again"
_decode_id = msgspec.json.Decoder(RequestId).decode

_NOT_KEPT = "The result is too large to be read again on another connection"


async def append(
    store: Store, settings: Settings, name: str, mark: bytes, message: bytes, answers: RequestId | None
) -> Position:
    """Keep a message and tell whoever follows the stream.

    Args:
        store: of the server.
        settings: say how long and how much is kept.
        name: of the log.
        mark: MESSAGE or END.
        message: may be empty.
        answers: the request that it is the response to: where it is too large to be kept, an error for that is.
    """
    put = partial(store.log.append, name, ttl=settings.log_ttl, max_entries=settings.log_messages, seal=mark == END)
    position = None
    with suppress(StoreFull):
        position = await put(mark + message)
    if position is None:
        # Too large to keep: it goes out once, and whoever resumes is told so.
        position = await put(mark if answers is None else mark + error_message(answers, INTERNAL_ERROR, _NOT_KEPT))
    return position


async def close_abandoned(store: Store, settings: Settings, name: str) -> None:
    """Write the end of a stream whose worker is gone: an error that says so, unless the stream had ended. Should that
    worker only have slept, it cannot write any more.

    Raises:
        LocalError, OSError: the store does not answer.
    """
    first = await store.log.read(name, None, 1)
    answer = b""
    # A long stream has lost its beginning, and a batch has many ids: their clients see that it ends without an answer.
    if first and first[0].data[:1] == OPEN and len(first[0].data) > 1:
        answer = error_message(_decode_id(first[0].data[1:]), SERVER_ERROR, _GONE)
    with suppress(StreamSealed):
        await append(store, settings, name, END, answer, None)


def stream_name(worker: str, unique: str) -> str:
    """The name of a call's stream, as event ids have it: whoever reads one elsewhere knows who writes it."""
    return worker + unique


def writer_of(stream: str) -> str:
    """The worker that a call's stream belongs to."""
    return stream[:_WORKER]


def log_name(session_id: str, stream: str) -> str:
    """The log of one call's stream: nobody but its session can name it."""
    return f"call:{session_id}:{stream}"


def event_id(stream: str, position: Position) -> str:
    """The event id that a client gives back in `Last-Event-ID`."""
    return f"{position.epoch}.{stream}.{position.offset}"


def parse_event_id(text: str) -> tuple[str, Position] | None:
    """(stream, position) of an event id, or None for what isn't an id of ours."""
    epoch, _, rest = text.partition(".")
    stream, _, offset = rest.partition(".")
    number = read_offset(offset)
    if not epoch or not stream.isalnum() or number is None:
        return None
    return stream, Position(epoch, number)
