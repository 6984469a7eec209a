"""One request and its reply, whole or streamed. The hot path, `ServerExchange.run`, is inline to save Python calls.

A connection has two states, `reading` and `replying`, each with a table that maps the state before an event to the
state after. They change only by a lookup there, so an illegal transition raises KeyError.
"""

import asyncio
from collections.abc import Collection
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

from millstream._http.message import (
    FROM_BYTES,
    JSON_HEAD,
    LARGE,
    CloseSignal,
    Handler,
    HttpLimits,
    HttpRequest,
    LastFrame,
    Response,
    Sink,
    compress,
    failure,
    refusal,
)
from millstream._override import override

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
CLOSE = b"connection: close\r\n"
_BODILESS = frozenset({204, 304})


class ReplyHeads:
    """Reply heads with status line and date, built once per status and second."""

    def __init__(self) -> None:
        self._date = b""
        self._heads: dict[int, bytes] = {}
        self.usual = b""
        """The head of a 200 with JSON, up to its length."""
        self.tick()

    def tick(self) -> None:
        """Update the date of later replies."""
        date = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        if date != self._date:
            self._date = date
            self._heads.clear()
            self.usual = self.make(200) + JSON_HEAD + b"content-length: "

    def make(self, status: int) -> bytes:
        """Return the head for a status, up to the reply's own lines."""
        head = self._heads.get(status)
        if head is None:
            head = self._heads[status] = b"HTTP/1.1 %d %b\r\n%b" % (status, _PHRASES.get(status, b""), self._date)
        return head

    def reply(self, response: Response, cors: bytes = b"", *, keep_alive: bool, bodiless: bool = False) -> bytes:
        """Return a complete reply. `bodiless` is for HEAD."""
        body = response.body
        return b"%b%b%b%b%b\r\n%b" % (
            self.make(response.status),
            response.head,
            cors,
            b"" if response.status in _BODILESS or (bodiless and not body) else b"content-length: %d\r\n" % len(body),
            b"" if keep_alive else CLOSE,
            b"" if bodiless else body,
        )


NOT_FOUND = refusal(404, "Not found.")
BAD_REQUEST = refusal(400, "The request isn't valid HTTP.")
BAD_TARGET = refusal(400, "The request target is malformed.")
BAD_HOST = refusal(400, "A request needs exactly one Host header.")
CHUNKS_TOO_SMALL = refusal(400, "The body arrives in too many small chunks. Send larger ones.")
UPGRADE_WITH_BODY = refusal(400, "An upgrade request must not have a body.")
HEADER_TIMEOUT = refusal(408, "The headers arrived too slowly.")
BODY_TIMEOUT = refusal(408, "The body arrived too slowly.")
BODY_TOO_LARGE = refusal(413, "The body is too large.")
TARGET_TOO_LONG = refusal(414, "The request target is too long.")
HEADERS_TOO_LARGE = refusal(431, "The request has too many headers, or its headers are too large.")
TOO_MANY_BODIES = refusal(
    503, "The server is receiving too much data. Retry the request, in one piece if possible.", retry_after="1"
)
TOO_MANY_CONNECTIONS = refusal(503, "The server has too many connections. Retry later.", retry_after="1")
TOO_MANY_FROM_ADDRESS = refusal(
    503, "There are too many connections from your address. Close some, then retry.", retry_after="1"
)


NEW, IDLE, HEAD, BODY, EXPECTED, FAST_BODY, DONE = range(7)
"""The states of reading. No byte of a request has arrived before `HEAD`.

- NEW: no request has arrived yet.
- IDLE: the next request has not begun.
- HEAD: the parser is in the head of a request.
- BODY: the parser is in the body of a request.
- EXPECTED: the client waits for ``100 Continue``, and an earlier reply is pending.
- FAST_BODY: the rest of a body whose head was read without the parser.
- DONE: nothing more is read.
"""

SILENT, ANSWERING, CLOSED = range(3)
"""The states of replying.

- SILENT: no call is running.
- ANSWERING: a call is running, or its stream is open.
- CLOSED: the last reply is written, or the connection is lost.
"""

# Reading
BEGINS = {NEW: HEAD, IDLE: HEAD, DONE: DONE}
"""The parser reads the first byte of a request."""
TAKEN = {HEAD: BODY}
"""A head is complete and within the limits."""
ASKS = {BODY: EXPECTED}
"""The head contained ``Expect: 100-continue``."""
PERMITTED = {EXPECTED: BODY}
"""The connection returned the event that permits the body."""
READ_WHOLE = {NEW: IDLE, IDLE: IDLE}
"""The fast head reader read a head and its complete body."""
READ_IN_PART = {NEW: FAST_BODY, IDLE: FAST_BODY}
"""The fast head reader read a head, and the body ends later."""
IGNORES_UPGRADE = {HEAD: IDLE}
"""The head requests an upgrade that the server ignores. It's parsed again without it."""
ENDS = {BODY: IDLE, EXPECTED: IDLE, FAST_BODY: IDLE}
"""A request is complete."""
STOPS = dict.fromkeys(range(DONE + 1), DONE)
"""A refusal, an upgrade, a full pipeline, or a lost connection."""

# Replying
BEGINS_REPLY = {SILENT: ANSWERING}
"""A request is passed to its handler."""
COMPLETES = {ANSWERING: SILENT, CLOSED: CLOSED}
"""The reply is written, or the connection was lost."""
CLOSES = dict.fromkeys(range(CLOSED + 1), CLOSED)
"""The refusal or the upgrade is passed to the protocol, or the connection is lost."""

_last = LastFrame()


class Channel(Protocol):
    """The connection that a stream writes to."""

    write_paused: bool
    """Whether the client reads more slowly than the server writes."""

    @property
    def transport(self) -> asyncio.Transport:
        """The socket."""
        ...

    def count_unsent(self, size: int) -> None:
        """Count a large piece that was just written, until the client has read it."""

    async def wait_writable(self) -> None:
        """Wait until the client has read data, or the connection is lost."""


class HttpReplyStream(CloseSignal):
    """The `Sink` of our own server. A client more than `limit` bytes behind is cut off.

    It writes its chunks directly to the transport, under the transport's flow control.
    """

    __slots__ = ("_bodiless", "_chunked", "_limit", "_protocol", "_transport")

    def __init__(self, protocol: Channel, *, limit: int, chunked: bool, mute: bool = False) -> None:
        super().__init__()
        self._protocol = protocol
        self._transport = protocol.transport
        self._limit = limit
        self._chunked = chunked
        self._bodiless = mute
        """Whether this is the reply to HEAD: headers only."""

    @property
    def buffered(self) -> int:
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Write a chunk. Cut off a client that is already too far behind."""
        if self.closed or not data or self._bodiless:
            return
        transport = self._transport
        if transport.get_write_buffer_size() > self._limit:
            self.cut()
        elif not self._chunked:
            transport.write(data)
            if len(data) > LARGE:
                self._protocol.count_unsent(len(data))
        else:
            if _last.data is not data:
                _last.framed = b"%x\r\n%b\r\n" % (len(data), data)
                _last.data = data
                _last.is_large = len(data) > LARGE
            transport.write(_last.framed)
            if _last.is_large:
                self._protocol.count_unsent(len(data))

    async def drain(self) -> None:
        protocol = self._protocol
        while protocol.write_paused and not self.closed:
            await protocol.wait_writable()

    def close(self) -> None:
        """End the reply with the final chunk."""
        if self.closed:
            return
        if self._chunked and not self._bodiless:
            self._transport.write(b"0\r\n\r\n")
        self.connection_lost()

    def cut(self) -> None:
        """End the reply without the final chunk, and drop buffered data."""
        self._transport.abort()
        self.connection_lost()


class ReplyContext(Protocol):
    """The limits and headers of the server, for a reply."""

    heads: ReplyHeads
    limits: HttpLimits
    clock: float


class ReplyQueue(Protocol):
    """The connection state that a reply needs (`ServerConnection`)."""

    reading: int
    replying: int
    since: float
    newest: "ServerExchange | None"

    @property
    def queue(self) -> Collection[object]:
        """The requests that wait for an earlier reply."""
        ...

    def complete(self, exchange: "ServerExchange") -> None:
        """Continue after the reply to a request is written."""


class TaskHolder(Protocol):
    """The background tasks of the server."""

    tasks: set[asyncio.Task[None]]


class Carrier(Channel, Protocol):
    """The connection that carries a reply (`HttpProtocol`)."""

    current: "ServerExchange | None"
    read_paused: bool

    @property
    def guard(self) -> ReplyContext:
        """The limits of the server."""
        ...

    @property
    def connection(self) -> ReplyQueue:
        """The state of the connection."""
        ...

    @property
    def state(self) -> TaskHolder:
        """The calls of the server."""
        ...

    def proceed(self) -> None:
        """Process queued events."""


class ServerExchange(HttpRequest, eq=False, kw_only=True):
    """A request of a `ServerConnection`, and its reply."""

    handler: Handler
    chunked: bool = True
    """Whether the client supports chunked encoding (HTTP/1.1)."""
    keep_alive: bool = True
    """Whether the connection stays open after the reply."""
    protocol: Carrier | None = None
    """The connection that carries the reply, set when the call starts."""
    # Request
    task: asyncio.Task[None] | None = None
    disconnected: bool = False
    cancelled: bool = False
    # Reply
    cors: bytes = b""
    sink: HttpReplyStream | None = None
    left_open: bool = False
    """Whether the handler has returned while its stream is still open."""
    response_complete: bool = False

    @override
    def ends_call(self) -> bool:
        """See `HttpRequest`."""
        return self.disconnected

    @property
    def response_started(self) -> bool:
        """Whether the head of the reply is written."""
        return self.response_complete or self.sink is not None

    @override
    def open(self, status: int, head: bytes) -> Sink:
        """Start a streamed reply."""
        protocol = self.protocol
        if self.sink is not None or self.response_complete or protocol is None:
            raise RuntimeError("This request was already answered.")
        self.sink = sink = HttpReplyStream(
            protocol,
            limit=protocol.guard.limits.stream_buffer,
            chunked=self.chunked,
            mute=self.method == "HEAD",
        )
        if self.disconnected:
            sink.connection_lost()
            return sink
        protocol.transport.write(
            b"%b%b%b%b%b\r\n"
            % (
                protocol.guard.heads.make(status),
                head,
                self.cors,
                b"transfer-encoding: chunked\r\n" if self.chunked else b"",
                b"" if self.keep_alive else CLOSE,
            )
        )
        return sink

    def fail(self, exc: Exception) -> Response:
        """Return the reply for a failed handler. Cut the stream instead if it has begun."""
        if self.sink is not None:
            self.sink.cut()
        return failure(exc, self.method, self.path)

    def connection_lost(self) -> None:
        """End the stream because the client is gone. Cancel the call if it asked for that."""
        self.disconnected = True
        if self.sink is not None:
            self.sink.connection_lost()
        if self.task is not None and self.cancel_on_disconnect:
            self.cancelled = True
            self.task.cancel()

    async def run(self, protocol: Carrier) -> None:  # noqa: C901, PLR0912  the hot path, inline
        """Run the handler and write its reply, all in the call's own task."""
        waited = False
        try:
            response = await self.handler(self)
            if (
                isinstance(response, Response)
                and len(response.body) >= FROM_BYTES
                and b"accept-encoding" in self.headers
            ):
                response = await compress(response, self, protocol.guard.limits.compression)
        except asyncio.CancelledError:
            if not self.cancelled:
                self._abort(protocol)
                raise
            response = None
        except Exception as exc:
            response = self.fail(exc)
        except BaseException:
            self._abort(protocol)
            raise
        finally:
            if self.task is not None:
                waited = True
                protocol.state.tasks.discard(self.task)
                self.cancel = self.task = None
        sink = self.sink
        if sink is not None:
            if response is sink and not sink.closed:
                self.left_open = True
                sink.on_close(self._complete)
                return
            sink.close()
        elif not self.disconnected:
            if not isinstance(response, Response):
                response = self.fail(RuntimeError("The handler returned neither a reply nor an open stream."))
            heads, body = protocol.guard.heads, response.body
            if (
                response.head is JSON_HEAD
                and response.status == 200
                and self.keep_alive
                and not self.cors
                and self.method == "POST"
            ):
                # `ReplyHeads.reply` for the usual reply, inline.
                protocol.transport.write(b"%b%d\r\n\r\n%b" % (heads.usual, len(body), body))
            else:
                protocol.transport.write(
                    heads.reply(response, self.cors, keep_alive=self.keep_alive, bodiless=self.method == "HEAD")
                )
            if len(body) > LARGE:
                protocol.count_unsent(len(body))
        self.response_complete = True
        protocol.current = None
        # `ServerConnection.complete`, inline (tests/transports/test_inlined_code.py).
        connection = protocol.connection
        connection.replying = COMPLETES[connection.replying]
        connection.since = protocol.guard.clock
        if connection.newest is self:
            connection.newest = None
        if not self.keep_alive:
            protocol.transport.close()
        elif waited and (connection.queue or protocol.read_paused or connection.reading == EXPECTED):
            # The caller of an exchange that never suspended continues by itself.
            protocol.proceed()

    def _abort(self, protocol: Carrier) -> None:
        """Close without a reply, because the task was stopped by force."""
        self.response_complete = True
        protocol.transport.abort()

    def _complete(self) -> None:
        """Continue the connection after the end of a stream that its handler left open."""
        protocol = self.protocol
        if protocol is None or self.response_complete:
            return
        self.response_complete = True
        protocol.current = None
        protocol.connection.complete(self)
        if self.keep_alive:
            protocol.proceed()
        else:
            protocol.transport.close()
