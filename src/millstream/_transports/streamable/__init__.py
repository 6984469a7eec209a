"""MCP over Streamable HTTP: the reply to one POST, and the log of its stream.

A reply is a single message, or a stream from the first notification on. Streams of handshake sessions are logged as
they're sent: their events have ids, the call outlives the connection, and a client whose connection broke can read the
rest on another one (https://modelcontextprotocol.io/specification/2025-11-25/basic/transports, resumability). Other
streams end with their connection.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgspec
from msgspec import Struct, field

from millstream._http.message import STREAM_HEAD, Callback, HttpRequest, Sink
from millstream._protocol import sse
from millstream._protocol.errors import INTERNAL_ERROR, SERVER_ERROR
from millstream._protocol.jsonrpc import RequestId, encode, error_message
from millstream._protocol.revisions import Revision
from millstream._server.calls.services import expiry_of
from millstream._stores.base import Position, Store, StoreFull, StoreUnavailable, StreamSealed, read_offset
from millstream._transports.open_streams import OpenStreams

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


_HIGH_WATER = 64 * 1024
_LOST = "The store was unavailable while this call ran, so a part of its stream is lost. Try again."

_NOWHERE = Position("", 0)
_logger = logging.getLogger("millstream")


class StreamLog(Struct, eq=False):
    """The log of a call's stream, which the client can read on another connection."""

    store: Store
    name: str
    stream: str
    """Name of the stream in event ids."""
    id: RequestId
    """The request of the call."""
    cancel: Callable[[], object]
    """Ends the call."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while an entry is logged and sent."""
    kept: bool = True
    """Whether everything sent so far is in the log."""

    async def append(
        self, mark: bytes, message: bytes, answers: RequestId | None, streams: OpenStreams
    ) -> Position | None:
        """Append a message. Return None if the store is unavailable or full.

        After that the stream has no ids, because its log has a gap. A client that resumes it gets an error at its end,
        while the connected client misses nothing.

        Raises:
            StreamSealed: Another worker has ended the log.
        """
        try:
            if self.kept:
                return await append(self.store, self.name, mark, message, answers)
            if mark == END:
                await self.end()
        except (StoreUnavailable, StoreFull) as failure:
            if self.kept:
                _logger.warning(
                    "The store is unavailable, so the stream of a call continues without being logged: %s", failure
                )
            self.kept = False
            if mark == END:
                streams.end_later(self.name, self.end)
        return None

    async def end(self) -> None:
        """End the log with an error, because a part of the stream is missing."""
        await append(self.store, self.name, END, error_message(self.id, INTERNAL_ERROR, _LOST), None)


class PostReplyChannel(Struct, eq=False):
    """The `ReplyChannel` of one POST, for its call or for all calls of a batch.

    It has no reference to the call, which refers to its reply channel: a cycle would keep the request's body.
    """

    request: HttpRequest
    _revision: Revision
    _streams: OpenStreams | None
    """None if the client can't read a stream."""
    _log: StreamLog | None
    asks: bool
    """Whether questions can be asked. Answers come in other requests of the session."""
    _sink: Sink | None = None
    _end: Callback | None = None
    """Ends the stream's subscription."""
    streaming: bool = False
    """Whether the reply has become a stream."""

    async def keep_alive(self) -> None:
        """Turn the reply of a silent call into a stream, if the client reads streams."""
        if self._streams is not None and not self.streaming:
            await self._open(self._streams)

    async def send(self, message: bytes, answers: RequestId | None = None) -> None:
        """Send a message as an event. It's dropped if the client can't read a stream.

        Args:
            message: The message.
            answers: The request that the message answers, if the stream carries several answers.
        """
        streams = self._streams
        if streams is None:
            return
        if not self.streaming:
            await self._open(streams)
        await self._write(streams, MESSAGE, message, answers)
        if self._sink is not None and self._sink.buffered > _HIGH_WATER:
            await self._sink.drain()

    def push(self, message: bytes) -> bool:
        """Send without waiting, on streams that aren't logged."""
        sink = self._sink
        if sink is None or sink.closed:
            return False
        sink.write(sse.encode_message(message))
        return not sink.closed

    def on_close(self, callback: Callback) -> Callback:
        """Call `callback` when the stream of a subscription ends for any reason. It ends with the caller's credential.
        Other calls don't last that long.
        """
        self._end = callback
        if self._sink is not None and self._streams is not None:
            self._subscribe(self._streams, self._sink, callback)
        return self._has_ended

    def _subscribe(self, streams: OpenStreams, sink: Sink, callback: Callback) -> None:
        streams.subscribe(sink, self.request, self._finish, expiry_of(self.request.principal))
        sink.on_close(callback)

    def _has_ended(self) -> None:
        self._end = None

    async def interrupt(self, retry_ms: int | None) -> bool:
        """Close the connection. The client reads the rest with `Last-Event-ID`."""
        if self._log is None or self._streams is None or not self._revision.priming:
            return False
        if not self.streaming:
            await self._open(self._streams)
        sink = self._sink
        if sink is None:
            return False
        if retry_ms is not None:
            sink.write(sse.retry(retry_ms))
        self.leave()
        return True

    async def finish(self, message: bytes) -> None:
        """Send the response as the last event, unless it's empty, and end the stream."""
        streams, log = self._streams, self._log
        assert streams is not None  # noqa: S101  callers have looked
        if not self.streaming:
            await self._open(streams)
        await self._write(streams, END, message, None if log is None else log.id)
        if log is not None:
            streams.lines.pop(log.name, None)
        if self._sink is not None:
            self._sink.close()

    def _finish(self, then: Callback) -> None:
        """End a subscription's stream that reached its maximum age, with its result."""
        end, self._end = self._end, None
        (then if end is None else end)()

    def leave(self) -> None:
        """Stop writing, because another connection reads the stream."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()

    async def _open(self, streams: OpenStreams) -> None:
        self.streaming = True
        sink = self._sink = self.request.open(200, STREAM_HEAD)
        streams.add(sink, kind=("http", self._revision.date))
        if self._end is not None:
            self._subscribe(streams, sink, self._end)
        log = self._log
        if log is not None:
            streams.lines[log.name] = self
            position = await log.append(OPEN, encode(log.id), None, streams)
            if self._revision.priming and position is not None:
                sink.write(sse.prime(event_id(log.stream, position), None))

    async def _write(self, streams: OpenStreams, mark: bytes, message: bytes, answers: RequestId | None) -> None:
        log = self._log
        if log is None:
            if self._sink is not None and message:
                self._sink.write(sse.encode_message(message))
            return
        async with log.lock:
            position: Position | None = _NOWHERE
            with suppress(StreamSealed):
                position = await log.append(mark, message, answers, streams)
            if position is _NOWHERE:
                # This worker was paused for so long that another worker has already ended the stream.
                self.leave()
                log.cancel()
                await asyncio.sleep(0)
                return
            sink = self._sink
            if message and sink is not None and not sink.closed:
                sink.write(sse.encode_message(message, "" if position is None else event_id(log.stream, position)))
