"""Server-sent events: an encoder for servers and an incremental decoder for clients.

Both follow the WHATWG HTML standard, "Server-sent events" (§9.2.5 parsing, §9.2.6 interpreting an event stream). The
module has no knowledge of JSON, MCP methods, or the meaning of event ids.
"""

from msgspec import Struct

from millstream._protocol.errors import PARSE_ERROR, ProtocolError

COMMENT = b":\n\n"
"""A keep-alive comment that decoders ignore. The blank line flushes proxies that forward whole blocks."""

MAX_EVENT_BYTES = 4 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_MAX_RETRY_DIGITS = 15
"""Maximum digits of a reconnection time. Longer ones are ignored, so `int` never parses very long strings."""


def encode_event(data: bytes, *, event: str | None = None, id: str | None = None, retry_ms: int | None = None) -> bytes:
    """Return one event of a stream: ``encode_event(b"sold", id="7")``.

    Args:
        data: The data. CR, LF, and CRLF all end a line. Each line becomes its own ``data:`` field, so the client gets
            LF for all of them.
        event: Type of the event.
        id: Id of the event.
        retry_ms: Milliseconds after which a client reconnects.

    Raises:
        ValueError: `event` or `id` contains CR, LF, or NUL, or `retry_ms` is negative.
    """
    parts: list[bytes] = []
    if id is not None:
        parts.append(b"id: %b\n" % _one_line("id", id))
    if event is not None:
        parts.append(b"event: %b\n" % _one_line("event", event))
    if retry_ms is not None:
        parts.append(_retry_line(retry_ms))
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    parts.extend(b"data: %b\n" % line for line in lines)
    parts.append(b"\n")
    return b"".join(parts)


def encode_message(message: bytes, id: str = "") -> bytes:
    """Return a JSON-RPC message as ``event: message``. `message` must be one line, as msgspec's JSON is.

    Raises:
        ValueError: `id` contains CR, LF, or NUL.
    """
    if id:
        return b"id: %b\nevent: message\ndata: %b\n\n" % (_one_line("id", id), message)
    return b"event: message\ndata: %b\n\n" % message


def prime(id: str) -> bytes:
    """Return an event with an id and empty data, so a stream can be resumed before its first message (SEP-1699).

    Raises:
        ValueError: `id` contains CR, LF, or NUL.
    """
    return b"id: %b\ndata:\n\n" % _one_line("id", id)


def retry(retry_ms: int) -> bytes:
    """Return a reconnection time for the client. The field dispatches no event.

    Raises:
        ValueError: `retry_ms` is negative.
    """
    return _retry_line(retry_ms) + b"\n"


def endpoint(url: str) -> bytes:
    """Return the first event of an HTTP+SSE stream (2024-11-05): the URL that the client posts messages to.

    Raises:
        ValueError: `url` contains CR, LF, or NUL.
    """
    return b"event: endpoint\ndata: %b\n\n" % _one_line("endpoint", url)


def _one_line(field: str, value: str) -> bytes:
    if "\n" in value or "\r" in value or "\0" in value:
        raise ValueError(f"An SSE {field} must not contain CR, LF, or NUL: {value[:80]!r}.")
    return value.encode()


def _retry_line(retry_ms: int) -> bytes:
    if retry_ms < 0:
        raise ValueError(f"An SSE retry time must not be negative: {retry_ms}.")
    return b"retry: %d\n" % retry_ms


class SseEvent(Struct, frozen=True, gc=False):
    """A dispatched event."""

    data: str
    event: str = "message"
    id: str = ""
    """The last event id when the event was dispatched. An event without an ``id`` field has the id of an earlier one.
    """
    retry_ms: int | None = None
    """The reconnection time, if this event's block had a ``retry`` field."""


class Decoder:
    """A decoder of an event stream from chunks of any size. Use one per connection.

    A block without a ``data`` field dispatches no event, as in the standard, but updates `last_event_id` and
    `retry_ms`. A block with an empty ``data:`` field (MCP's priming event) is an event whose data is ``""``. Data after
    the last blank line is never dispatched.

    Args:
        max_event_bytes: The maximum size of one line, and of the data of one event. Comments and unknown fields take no
            memory and are unlimited.
        last_event_id: The id at the end of an earlier connection, which is valid until the server sends another one.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES, *, last_event_id: str = "") -> None:
        self._max = max_event_bytes
        # connection
        self.last_event_id = last_event_id
        """The id at the last blank line, which a client sends as ``Last-Event-ID``."""
        self.retry_ms: int | None = None
        """The newest reconnection time, or ``None`` before the server sends one."""
        self.line_count = 0
        """Lines since a reader last set this to 0. A line counts again for each chunk that continues it."""
        self._fault: ProtocolError | None = None
        self._first = True
        self._after_cr = False
        self._line = bytearray()
        self._id = last_event_id.encode()
        # event
        self._event = b""
        self._data: list[bytes] = []
        self._size = 0
        self._retry: int | None = None

    @property
    def unfinished_bytes(self) -> int:
        """Bytes kept for a line or an event that isn't complete."""
        return len(self._line) + self._size

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Return the events that `chunk` completes, in order.

        Raises:
            ProtocolError: A line or an event is larger than `max_event_bytes`. Events completed before it are returned
                first, and the next call raises the error, as does every later call.
        """
        events: list[SseEvent] = []
        if self._fault is None:
            try:
                self._take(chunk, events)
            except ProtocolError as exc:
                self._fault = exc
                self._line.clear()
                self._data.clear()
        if self._fault is not None and not events:
            raise self._fault
        return events

    def _take(self, chunk: bytes, events: list[SseEvent]) -> None:
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        # Unlike str.splitlines, bytes.splitlines splits only at CRLF, LF, and CR.
        pieces = chunk.splitlines(keepends=True)
        self.line_count += len(pieces)
        for piece in pieces:
            text = piece.rstrip(b"\r\n")
            self._grow(len(self._line) + len(text))
            self._after_cr = piece.endswith(b"\r")
            if len(text) == len(piece):
                self._line += text
                return
            if self._line:
                text = bytes(self._line) + text
                self._line.clear()
            self._end_line(text, events)

    def _grow(self, size: int) -> None:
        if size > self._max:
            raise ProtocolError(PARSE_ERROR, f"An event in the stream is larger than {self._max} bytes.")

    def _end_line(self, line: bytes, events: list[SseEvent]) -> None:
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if not line:
            self._dispatch(events)
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._size += len(value) + 1
            self._grow(self._size)
            self._data.append(value)
        elif name == b"event":
            self._event = value
        elif name == b"id" and b"\0" not in value:
            self._id = value
        # bytes.isdigit is ASCII only.
        elif name == b"retry" and value.isdigit() and len(value.lstrip(b"0")) <= _MAX_RETRY_DIGITS:
            self._retry = self.retry_ms = int(value[-_MAX_RETRY_DIGITS:])

    def _dispatch(self, events: list[SseEvent]) -> None:
        self.last_event_id = _text(self._id)
        if self._data:
            data = _text(b"\n".join(self._data))
            events.append(SseEvent(data, _text(self._event) or "message", self.last_event_id, self._retry))
            self._data.clear()
            self._size = 0
        self._event = b""
        self._retry = None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
