"""One HTTP/1 connection without I/O, which converts bytes to events, and its requests, each with its reply.

`ServerConnection.receive` takes bytes and returns the next event, `next_event` returns further ones, and `complete`
marks the reply to a request as written. Requests are answered one at a time, in order of arrival; pipelined requests
wait in a queue.
A connection has two states, `reading` and `replying`, each with a table that maps the state before an event to the
state after. They change only by a lookup there, so an illegal transition raises KeyError.

Most requests are read by the fast head reader (`HeaderLineCache`), and all others by httptools. A connection creates a
parser for the first of these. Between two requests, the parser has no state, so either can read the next one. Sizes are
checked while a request is parsed. A request that exceeds a limit becomes its refusal, a `Response`, the last event of
its connection.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from functools import partial
from urllib.parse import unquote

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
    parse_url,
)
from msgspec import Struct

from millstream._http.hosts import EXEMPT, TrustedProxies, parse_authority
from millstream._http.message import (
    FROM_BYTES,
    JSON_HEAD,
    LARGE,
    MAX_FRAMING,
    CloseSignal,
    Handler,
    Header,
    HttpRequest,
    LastFrame,
    Response,
    Sink,
    body_too_large,
    compress,
    failure,
    refusal,
)
from millstream._http.server import Endpoints, read_chunk
from millstream._http.server.guard import CLOSE, ConnectionGuard, ServerSocket
from millstream._override import override

NOT_FOUND = refusal(404, "Not found.")
BAD_REQUEST = refusal(400, "The request isn't valid HTTP.")
BAD_TARGET = refusal(400, "The request target is malformed.")
BAD_HOST = refusal(400, "A request needs exactly one Host header.")
CHUNKS_TOO_SMALL = refusal(400, "The body arrived in too many small chunks. Send larger ones.")
UPGRADE_WITH_BODY = refusal(400, "An upgrade request must not have a body.")
HEADER_TIMEOUT = refusal(408, "The headers arrived too slowly.")
BODY_TIMEOUT = refusal(408, "The body arrived too slowly.")
TARGET_TOO_LONG = refusal(414, "The request target is too long.")
HEADERS_TOO_LARGE = refusal(431, "The request has too many headers, or its headers are too large.")
TOO_MANY_BODIES = refusal(
    503, "The server is receiving too much data. Retry the request, in one piece if possible.", retry_after="1"
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


class HttpSocket(ServerSocket):
    """The socket of an HTTP connection."""

    connection: "ServerConnection"
    current: "ServerExchange | None"
    """The call being answered."""


class HttpReplyStream(CloseSignal, eq=False):
    """The `Sink` of our own server. A client more than `limit` bytes behind is cut off.

    It writes its chunks directly to the transport, under the transport's flow control.
    """

    protocol: HttpSocket
    transport: asyncio.Transport
    limit: int
    chunked: bool
    mute: bool
    """Whether this is the reply to HEAD: headers only."""

    @property
    def buffered(self) -> int:
        return 0 if self.transport.is_closing() else self.transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Write a chunk. Cut off a client that is already too far behind."""
        if self.closed or not data or self.mute:
            return
        transport, framed = self.transport, data
        if transport.get_write_buffer_size() > self.limit:
            self.cut()
            return
        if self.chunked:
            if _last.data is not data:
                _last.framed = b"%x\r\n%b\r\n" % (len(data), data)
                _last.data = data
            framed = _last.framed
        transport.write(framed)
        if len(data) > LARGE:
            self.protocol.count_unsent(len(data))

    async def drain(self) -> None:
        room = self.protocol.room
        while not (room.is_set() or self.closed):
            await room.wait_changed()

    def close(self) -> None:
        """End the reply with the final chunk."""
        if self.closed:
            return
        if self.chunked and not self.mute:
            self.transport.write(b"0\r\n\r\n")
        self.connection_lost()

    def cut(self) -> None:
        """End the reply without the final chunk and drop buffered data."""
        self.transport.abort()
        self.connection_lost()


class ServerExchange(HttpRequest, eq=False, kw_only=True):
    """A request of a `ServerConnection`, and its reply."""

    handler: Handler
    chunked: bool = True
    """Whether the client supports chunked encoding (HTTP/1.1)."""
    keep_alive: bool = True
    """Whether the connection stays open after the reply."""
    protocol: HttpSocket | None = None
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

    @override
    def open(self, status: int, head: bytes) -> Sink:
        """Start a streamed reply."""
        protocol = self.protocol
        if self.sink is not None or self.response_complete or protocol is None:
            raise RuntimeError("This request was already answered.")
        self.sink = sink = HttpReplyStream(
            protocol,
            protocol.transport,
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
        """End the stream because the client has disconnected. Cancel the call if it asked for that."""
        self.disconnected = True
        if self.sink is not None:
            self.sink.connection_lost()
        if self.task is not None and self.cancel_on_disconnect:
            self.cancelled = True
            self.task.cancel()

    async def run(self, protocol: HttpSocket) -> None:  # noqa: C901, PLR0912  each end of a call
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
                sink.on_close(partial(self._complete, protocol))
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
                protocol.transport.write(b"%b%d\r\n\r\n%b" % (heads.usual, len(body), body))
            else:
                protocol.transport.write(
                    heads.reply(response, self.cors, keep_alive=self.keep_alive, bodiless=self.method == "HEAD")
                )
            if len(body) > LARGE:
                protocol.count_unsent(len(body))
        self._complete(protocol, waited=waited)

    def _abort(self, protocol: HttpSocket) -> None:
        """Close without a reply. Called when the task was canceled."""
        self.response_complete = True
        protocol.transport.abort()

    def _complete(self, protocol: HttpSocket, *, waited: bool = True) -> None:
        """Continue the connection after the reply. The caller of an exchange that never waited continues by itself."""
        self.response_complete = True
        protocol.current = None
        connection = protocol.connection
        connection.complete(self)
        if not self.keep_alive:
            protocol.transport.close()
        elif waited and (connection.queue or protocol.read_paused or connection.reading == EXPECTED):
            protocol.proceed()


MAX_PIPELINE = 64
"""Maximum number of requests queued behind a running one. Parsing stops at the next."""

_PROBES = frozenset(path.encode() for path in EXEMPT)
_POLICY_HEADERS = frozenset({b"origin", b"sec-fetch-site"})
_FORWARDED_HEADERS = frozenset({b"x-forwarded-for", b"x-forwarded-proto"})


class Upgrade(Struct):
    """Continue as a WebSocket, with the handshake and any frames received after it."""

    request: ServerExchange
    ahead: bytes = b""


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

Event = ServerExchange | Response | Upgrade | bytes
"""What to do next: answer a request, reject it and close, continue as a WebSocket, or write bytes."""


class ServerConnection:
    """The state of one connection.

    Args:
        table: The endpoints.
        shared: The state shared by all connections of the server.
        peer: The client's address without the port, or an empty string.
        scheme: ``http`` or ``https``.
        proxies: Proxies whose forwarded headers are trusted.
    """

    def __init__(
        self,
        table: Endpoints,
        shared: ConnectionGuard,
        *,
        peer: str,
        scheme: str,
        proxies: TrustedProxies | None = None,
    ) -> None:
        self._table = table
        self._shared = shared
        self._peer = peer
        self._scheme = scheme
        self._proxies = proxies
        self.over_cap: Response | None = None
        """The refusal for a connection above a cap: its only reply, unless it sends a health probe."""
        self.fast: Endpoints | None = None if shared.leaving else table
        """The table, or None if each request has to use the parser, so that its reply announces the close."""
        # Connection
        self._parser: HttpRequestParser | None = None
        self.reading = NEW
        self.replying = SILENT
        self.since = shared.clock
        """Start of the current wait, by the clock of the last sweep."""
        self.held = False
        """Whether events are withheld because the client doesn't read its replies."""
        self.queue: deque[ServerExchange | Response | Upgrade] = deque()
        """Events held back until an earlier reply is sent."""
        self.newest: ServerExchange | None = None
        """The request that arrived last, until its reply is written."""
        # Request
        self._target = b""
        self._headers: list[Header] = []
        self._wants_websocket = False
        """Whether the request is a WebSocket handshake, even if WebSockets aren't served."""
        self._handshake: Upgrade | None = None
        """The WebSocket handshake."""
        self._ignored_head = b""
        """The head of a request whose upgrade is ignored, without the upgrade, until it's parsed again."""
        self._ignored_upgrade = b""
        self._ignores_body = False
        """Whether the head alone determines the reply."""
        self.body: bytes | bytearray = b""
        self._chunk_bytes = 0
        """Bytes of the chunk being parsed."""
        self._bytes_since_body = 0
        """Bytes since this request began, or since the last piece of its body."""
        self._body_bytes = 0
        """Bytes of the body."""
        self._budgeted_bytes = 0
        """Bytes of the unfinished body in the server's budget."""
        self._framing_bytes = 0
        """Bytes of framing received with the body, since the second chunk."""
        self._remaining_bytes = 0
        """Remaining bytes of a body whose head was read without the parser."""

    @property
    def busy(self) -> bool:
        """Whether a reply is pending, so the server doesn't wait for the client."""
        return self.replying == ANSWERING or bool(self.queue)

    # Events

    def receive(self, data: bytes) -> Event | None:  # noqa: C901, PLR0912  one frame for each request
        """Process received bytes. Return the next event, or `None` if more bytes or `complete` are needed."""
        table = self.fast
        if table is None or self.reading > IDLE or self.replying != SILENT or self.held:
            if self.reading == FAST_BODY:
                if len(data) == self._remaining_bytes and not (self._body_bytes or self.held):
                    return self._take_body(data)
                self._receive_body(data)
            else:
                self._parse(data)
            return self.next_event()
        head, end, body = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        found = table.by_line.get(lines.pop(0))
        if found is None or not end:
            self._parse(data)
            return self.next_event()
        try:
            fields = dict(map(table.read_line, lines))
        except KeyError:
            # Keep this block minimal, so user code's errors don't get this one as their context.
            fields = dict[bytes, bytes]()
        size, length = -1, fields.get(b"content-length")
        if b"transfer-encoding" not in fields:
            size = -1 if length is None else int(length)
        elif length is None and (chunk := read_chunk(body)) is not None:
            body, size = chunk, len(chunk)
        limits = table.limits
        if (
            fields.get(b"host") not in table.policy.good
            or len(fields) != len(lines)
            or not 0 <= size <= limits.max_body
            or len(lines) > limits.max_header_count
            or len(head) > limits.max_header_bytes
        ):
            self._parse(data)
            return self.next_event()
        exchange = ServerExchange(
            found[1], found[2], fields.items(), fields, body, b"", self._peer, table.root_path, self._scheme,
            handler=found[0],
        )  # fmt: skip
        if fields.get(b"connection") == b"close":
            exchange.keep_alive = False
        if self._proxies is not None and not _FORWARDED_HEADERS.isdisjoint(fields):
            self._proxies.apply(exchange)
        self._ignores_body = False
        if b"origin" in fields or b"sec-fetch-site" in fields:
            reply, exchange.cors = table.policy.screen(exchange)
            if reply is not None:
                exchange.handler = partial(_reply, reply)
                self._ignores_body = True
        self.newest = exchange
        if size == len(body):
            self.reading = READ_WHOLE[self.reading]
            self.replying = BEGINS_REPLY[self.replying]
            return exchange
        exchange.body = b""
        self.reading = READ_IN_PART[self.reading]
        self.since = self._shared.clock
        self._body_bytes = 0
        self._remaining_bytes = size
        if not body:
            return None
        self._receive_body(body)
        return self.next_event()

    def _take_body(self, body: bytes) -> ServerExchange | None:
        """Return the request whose head came alone, with its whole body."""
        exchange = self.newest
        assert exchange is not None  # noqa: S101  the head was read, and its reply isn't written
        self.reading = ENDS[self.reading]
        self.replying = BEGINS_REPLY[self.replying]
        if not self._ignores_body:
            exchange.body = body
        return exchange

    def next_event(self) -> Event | None:
        """Return the next event, or `None` if more bytes or `complete` are needed, or while the client doesn't read."""
        if self.replying != SILENT or self.held:
            return None
        if self.queue:
            event = self.queue.popleft()
            self.replying = (BEGINS_REPLY if isinstance(event, ServerExchange) else CLOSES)[self.replying]
            return event
        if self.reading == EXPECTED:
            self.reading = PERMITTED[self.reading]
            return CONTINUE
        return None

    def complete(self, exchange: ServerExchange) -> None:
        """Continue after the reply to a request is written."""
        self.replying = COMPLETES[self.replying]
        self.since = self._shared.clock
        if self.newest is exchange:
            self.newest = None

    def refuse(self, response: Response) -> None:
        """Stop reading and queue a refusal behind pending replies."""
        if self.reading != DONE:
            self._stop()
            self.queue.append(response)

    def announce_close(self) -> None:
        """Make the last pending reply announce the close, or the next reply if that one's head is already written."""
        self.fast = None  # The fast head reader doesn't announce it.
        if self.newest is not None and self.newest.sink is None:
            self.close_after_newest()

    def close_after_newest(self) -> bool:
        """Close the connection after the reply to the newest request. Return False if it's written already."""
        newest = self.newest
        if newest is None or newest.response_complete:
            return False
        newest.keep_alive = False
        return True

    def lose(self) -> None:
        """Drop all request state. Called when the connection is lost or has switched protocols."""
        self._stop()
        self.replying = CLOSES[self.replying]
        self.queue.clear()
        self.newest = None
        # The parser refers to this connection, so dropping it avoids a reference cycle.
        self._parser = None

    def _stop(self) -> None:
        self.reading = STOPS[self.reading]
        self._drop_body()

    # Bytes

    def _parse(self, data: bytes) -> None:  # noqa: C901  one branch for each way in which the parser stops
        while data and self.reading != DONE:
            self._chunk_bytes = size = len(data)
            self._bytes_since_body = self._bytes_since_body + size if self.reading > IDLE else size
            rest = b""
            upgrade = False
            parser = self._parser
            if parser is None:
                parser = self._parser = HttpRequestParser(self)
                # Bytes after a request with `Connection: close` must not cause its refusal.
                parser.set_dangerous_leniencies(lenient_data_after_close=True)
            try:
                parser.feed_data(data)
            except HttpParserCallbackError as exc:
                # An error in this program, not the client's. The parser would hide the exception.
                self.refuse(failure(exc.__context__ or exc, "Parsing", self._target.decode("latin-1")))
            except HttpParserError:
                self.refuse(BAD_REQUEST)
            except HttpParserUpgrade as exc:
                rest, upgrade = data[exc.args[0] :], True
            if upgrade and self.reading != DONE:
                if self._handshake:
                    self._stop()
                    self._handshake.ahead = rest
                    self.queue.append(self._handshake)
                    return
                if self._wants_websocket:
                    self._stop()  # the next bytes may be WebSocket frames
                    return
                # The server ignores this upgrade (RFC 9110 §7.8). The parser treats the body as another protocol, so a
                # new parser reads the request without the upgrade.
                self._parser = None
                self.reading = IGNORES_UPGRADE[self.reading]
                rest = self._ignored_head + rest
            elif IDLE < self.reading < DONE:
                if self._bytes_since_body > self._table.limits.max_header_bytes:
                    self.refuse(HEADERS_TOO_LARGE)
                elif self._body_bytes and self.reading > HEAD:
                    self._count_framing()
            data = rest

    def _receive_body(self, data: bytes) -> None:
        """Process the rest of a body whose head bypassed the parser. The parser reads a request that follows it."""
        body = data[: self._remaining_bytes]
        self._remaining_bytes -= len(body)
        self.on_body(body)
        if self._remaining_bytes:
            self._count_body()
            return
        self.on_message_complete()
        self._parse(data[len(body) :])

    def _count_framing(self) -> None:
        """Count the body bytes and the framing bytes in a chunk of an unfinished body."""
        self._framing_bytes = (
            self._framing_bytes + self._chunk_bytes - (self._body_bytes - self._budgeted_bytes)
            if self._budgeted_bytes
            else 0
        )
        if self._framing_bytes > MAX_FRAMING + self._body_bytes // 8:
            self.refuse(CHUNKS_TOO_SMALL)
        else:
            self._count_body()

    def _count_body(self) -> None:
        if self._shared.unfinished.take(self._peer, self._body_bytes - self._budgeted_bytes):
            self._budgeted_bytes = self._body_bytes
        else:
            self.refuse(TOO_MANY_BODIES)

    def _drop_body(self) -> None:
        self.body = b""
        if self._budgeted_bytes:
            self._shared.unfinished.leave(self._peer, self._budgeted_bytes)
            self._budgeted_bytes = 0

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers = []
        self.reading = BEGINS[self.reading]
        self.since = self._shared.clock

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > self._table.limits.max_url:
            self.refuse(TARGET_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Process a header, or a trailer if it follows the body."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:  # noqa: C901  the checks of a head, in their order
        if self.reading == DONE or self._is_excessive():
            return
        headers, table, parser = self._headers, self._table, self._parser
        assert parser is not None  # noqa: S101  this is one of its callbacks
        if self._ignored_upgrade:
            headers.append((b"upgrade", self._ignored_upgrade))
            self._ignored_head = self._ignored_upgrade = b""
        # Trailers arrive through `on_header`, but must not become headers.
        self._headers = []
        fields = dict(headers)
        upgrade = fields.get(b"upgrade")
        method, target = parser.get_method(), self._target
        self._wants_websocket = (
            upgrade is not None
            and parser.should_upgrade()
            and upgrade.strip().lower() == b"websocket"
            and method != b"HEAD"  # the refusal of a HEAD request must not have a body
        )
        wrong = self._check(method, fields, headers)
        if wrong is not None:
            self.refuse(wrong)
            return
        if parser.should_upgrade() and not self._wants_websocket:
            version = parser.get_http_version().encode()
            others = [header for header in headers if header[0] != b"upgrade"]
            self._ignored_head = _write_head(b"%b %b HTTP/%b" % (method, target, version), others)
            self._ignored_upgrade = fields[b"upgrade"]
            return
        found, query = table.hot.get((method, target)), b""
        if found is None:
            split = _split_target(target)
            if split is None:
                self.refuse(BAD_TARGET)
                return
            path, query = split
            name = method.decode("ascii")
            handler = table.find(name, path)
        else:
            handler, name, path = found
        persistent = parser.get_http_version() != "1.0"
        exchange = ServerExchange(
            name, path, headers, fields, b"", query, self._peer, table.root_path, self._scheme,
            handler=handler or _not_found,
            is_http_1_0=not persistent,
            chunked=persistent,
            keep_alive=persistent
            and parser.should_keep_alive()
            and not (self._shared.leaving or self.over_cap is not None or self._wants_websocket),
        )  # fmt: skip
        if self._proxies is not None and not _FORWARDED_HEADERS.isdisjoint(fields):
            self._proxies.apply(exchange)
        if self._wants_websocket and table.websocket is not None:
            self._handshake = Upgrade(exchange)
            return
        self.newest = exchange
        self._ignores_body = handler is None
        if (
            fields.get(b"host") not in table.policy.good
            or len(fields) != len(headers)
            or not _POLICY_HEADERS.isdisjoint(fields)
        ):
            reply, exchange.cors = table.policy.screen(exchange)
            if reply is not None:
                exchange.handler = partial(_reply, reply)
                self._ignores_body = True
        self.reading = TAKEN[self.reading]
        self._bytes_since_body = self._body_bytes = 0
        if persistent and fields.get(b"expect", b"").strip().lower() == b"100-continue":
            self.reading = ASKS[self.reading]

    def on_body(self, body: bytes) -> None:
        if self.reading == DONE:
            return
        self._bytes_since_body = 0
        self._body_bytes += len(body)
        if self._body_bytes > self._table.limits.max_body:
            self.refuse(body_too_large(self._table.limits.max_body))
        elif self._ignores_body:
            return
        elif not self.body:
            self.body = body
        else:
            # A body in one piece, the usual case, isn't copied. Thousands of small pieces go into one buffer.
            self.body = self.body if isinstance(self.body, bytearray) else bytearray(self.body)
            self.body += body

    def on_message_complete(self) -> None:
        if self.reading == DONE or self._handshake or self._ignored_head:
            return
        self.reading = ENDS[self.reading]
        self._bytes_since_body = 0
        self._target = b""
        self._headers = []  # Discard trailers.
        if self.newest is not None:
            self.newest.body = bytes(self.body)
            self.queue.append(self.newest)
        self._drop_body()

    # Checks of a head

    def _is_excessive(self) -> bool:
        """Reject a head that is too large and stop reading if the queue is full. Return whether either happened."""
        limits, headers = self._table.limits, self._headers
        if len(self.queue) >= MAX_PIPELINE + (self.replying == SILENT):
            # Queued requests are answered. The reply to the last one announces the close.
            self.close_after_newest()
            self._stop()
        elif len(headers) > limits.max_header_count or (
            self._bytes_since_body + self._chunk_bytes > limits.max_header_bytes
            and sum(len(name) + len(value) + 4 for name, value in headers) > limits.max_header_bytes
        ):
            self.refuse(HEADERS_TOO_LARGE)
        self._bytes_since_body = self._body_bytes = 0
        return self.reading == DONE

    def _check(self, method: bytes, fields: dict[bytes, bytes], headers: list[Header]) -> Response | None:
        """Return the refusal for an invalid head, or None."""
        target = self._target
        if method == b"CONNECT":
            return BAD_TARGET
        size = int(fields.get(b"content-length", 0))
        has_body = bool(size) or b"transfer-encoding" in fields
        if self.over_cap is not None and (
            has_body or target.partition(b"?")[0] not in _PROBES or method not in (b"GET", b"HEAD")
        ):
            return self.over_cap
        if fields.get(b"host") not in self._table.policy.good or len(fields) != len(headers):
            hosts = [value for name, value in headers if name == b"host"]
            if (len(hosts) != 1 or parse_authority(hosts[0]) is None) and target.partition(b"?")[0] not in _PROBES:
                return BAD_HOST
        if size > self._table.limits.max_body:
            return body_too_large(self._table.limits.max_body)
        if not target.startswith(b"/") and _split_target(target) is None:
            return BAD_TARGET
        if self._wants_websocket:
            if has_body:
                return UPGRADE_WITH_BODY
            if self._table.websocket is not None and self.busy:
                return BAD_REQUEST
        return None


def _write_head(first: bytes, headers: Iterable[Header]) -> bytes:
    return b"%b\r\n%b\r\n" % (first, b"".join(b"%b: %b\r\n" % header for header in headers))


def _split_target(target: bytes) -> tuple[str, bytes] | None:
    """Return the decoded path and the query of a request target, or `None` if it has no path."""
    try:
        url = parse_url(target)
        path = (url.path or b"").decode("ascii")
    except (HttpParserInvalidURLError, UnicodeDecodeError):
        return None
    return (unquote(path) if "%" in path else path, url.query or b"") if path else None


async def _reply(response: Response, _request: HttpRequest) -> Response:
    return response


_not_found = partial(_reply, NOT_FOUND)
