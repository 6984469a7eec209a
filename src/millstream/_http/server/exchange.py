"""One request and its reply. The hot path, `ServerExchange.run`, is written inline to save Python calls."""

import asyncio
from collections.abc import Collection
from typing import Protocol

from millstream._http.close_signal import LARGE, failure
from millstream._http.compression import FROM_BYTES, compress
from millstream._http.limits import HttpLimits
from millstream._http.message import JSON_HEAD, Handler, HttpRequest, Response, Sink
from millstream._http.server.replies import CLOSE, ReplyHeads
from millstream._http.server.states import COMPLETES, EXPECTED
from millstream._http.server.stream import Channel, HttpReplyStream
from millstream._override import override


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
            handler = self.handler
            response = await handler(self)
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
        if self.sink is not None:
            if self._left_open(response):
                return
        elif not self.disconnected:
            if not isinstance(response, Response):
                response = self.fail(RuntimeError("The handler returned neither a reply nor an open stream."))
            size = 0
            if len(response.body) >= FROM_BYTES:
                if b"accept-encoding" in self.headers:
                    response = compress(response, self.headers)
                size = len(response.body)
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
            if size > LARGE:
                protocol.count_unsent(size)
        self.response_complete = True
        protocol.current = None
        # `ServerConnection.complete`, inline.
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

    def _left_open(self, response: object) -> bool:
        """End the stream, unless the handler returned it open. Return whether it stays open."""
        sink = self.sink
        if sink is None or sink.closed or response is not sink:
            if sink is not None:
                sink.close()
            return False
        self.left_open = True
        sink.on_close(self._complete)
        return True

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
