"""One request in the lane and its reply: what the server's own request cycle is on the ASGI path.

The hot path, `run`, is written inline, because at this speed what is left to save are Python calls.
"""

import asyncio
from functools import partial

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from millstream._http.compression import FROM_BYTES, compressed
from millstream._http.hosts import HostPolicy
from millstream._http.lane.order import OrderedProtocol
from millstream._http.lane.reply import CLOSE
from millstream._http.lane.sink import LaneSink
from millstream._http.lane.states import EXPECTED
from millstream._http.message import JSON_HEAD, Handler, Request, Response, Sink
from millstream._http.stream_end import failure

_NOBODY_WAITS = asyncio.Event()
"""uvicorn sets its cycle's event when something happens; nobody waits for that of a lane call."""


class LaneExchange(Request, eq=False, kw_only=True):
    """A request and its reply."""

    connection: OrderedProtocol
    handler: Handler
    chunked: bool = True
    """The peer understands chunks: HTTP/1.1."""
    keep_alive: bool = True
    # what uvicorn looks at, with `keep_alive`
    response_complete: bool = False
    disconnected: bool = False
    message_event: asyncio.Event = _NOBODY_WAITS
    # request
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    # reply
    cors: bytes = b""
    sink: LaneSink | None = None
    left_open: bool = False
    """The handler is done, its stream is not."""

    def ends_call(self) -> bool:
        """See `Request`."""
        return self.disconnected

    @property
    def response_started(self) -> bool:
        """The head of the reply is written."""
        return self.response_complete or self.sink is not None

    @property
    def asks(self) -> bool:
        """Whether the peer waits for permission to send the body (RFC 9110 §10.1.1)."""
        return self.chunked and self.headers.get(b"expect", b"").strip().lower() == b"100-continue"

    def screen(self, policy: HostPolicy) -> bool:
        """The slow half of the Host and Origin check, and CORS. False: this is one for ASGI after all."""
        if b"upgrade" in self.headers:
            return False
        reply, self.cors = policy.screen(self)
        if reply is not None:
            self.handler = partial(_give, reply)
        return True

    def forwarded(self, proxy: ProxyHeadersMiddleware) -> None:
        """Take from a trusted proxy's headers what uvicorn's middleware takes."""
        scheme = self.headers.get(b"x-forwarded-proto", b"").decode("latin-1").strip()
        if scheme in ("http", "https"):
            self.scheme = scheme
        chain = b", ".join(value for name, value in self.raw_headers if name == b"x-forwarded-for")
        if chain:
            self.peer = proxy.trusted_hosts.get_trusted_client_address(chain.decode("latin-1"))[0] or self.peer

    def open(self, status: int, head: bytes) -> Sink:
        """Start a streamed reply."""
        if self.sink is not None or self.response_complete:
            raise RuntimeError("This request already has its reply.")
        connection = self.connection
        self.sink = sink = LaneSink(
            connection.transport,
            connection.flow,
            limit=connection.limits.stream_buffer,
            chunked=self.chunked,
            mute=self.method == "HEAD",
        )
        if self.disconnected:
            sink.lost()
            return sink
        connection.transport.write(
            b"%b%b%b%b%b\r\n"
            % (
                connection.guard.heads.make(status),
                head,
                self.cors,
                b"transfer-encoding: chunked\r\n" if self.chunked else b"",
                b"" if self.keep_alive else CLOSE,
            )
        )
        return sink

    def failed(self, exc: Exception) -> Response:
        """The reply for a handler that failed; a stream that has begun is cut instead."""
        if self.sink is not None:
            self.sink.cut()
        return failure(exc, self.method, self.path)

    def lost(self) -> None:
        """The peer has gone: end the stream, and the call if it asked for that."""
        self.disconnected = True
        if self.sink is not None:
            self.sink.lost()
        if self.task is not None and self.cancel_on_disconnect:
            self.cancelled = True
            self.task.cancel()

    async def run(self) -> None:  # noqa: C901, PLR0912  the hot path, inline
        """Run the handler and write its reply, all in the call's own task."""
        connection = self.connection
        waited = False
        try:
            handler = self.handler
            response = await handler(self)
        except asyncio.CancelledError:
            if not self.cancelled:
                self._give_up()
                raise
            response = None
        except Exception as exc:
            response = self.failed(exc)
        except BaseException:
            self._give_up()
            raise
        finally:
            if self.task is not None:
                waited = True
                connection.tasks.discard(self.task)
                self.cancel = self.task = None
        if self.sink is not None:
            if self._left_open(response):
                return
        elif not self.disconnected:
            if not isinstance(response, Response):
                response = self.failed(RuntimeError("The handler gave neither a reply nor a stream."))
            if len(response.body) >= FROM_BYTES and b"accept-encoding" in self.headers:
                response = compressed(response, self.headers)
            heads, body = connection.guard.heads, response.body
            if (
                response.head is JSON_HEAD
                and response.status == 200
                and heads.source is connection.server_state.default_headers
                and self.keep_alive
                and not self.cors
                and self.method == "POST"
            ):
                # `Heads.reply` of the usual reply, inline.
                connection.transport.write(b"%b%d\r\n\r\n%b" % (heads.usual, len(body), body))
            else:
                connection.transport.write(
                    heads.reply(response, self.cors, keep_alive=self.keep_alive, bodiless=self.method == "HEAD")
                )
        # `_complete`, inline.
        self.response_complete = True
        connection.current = None
        connection.since = connection.guard.clock
        connection.server_state.total_requests += 1
        if not self.keep_alive:
            connection.transport.close()
        elif waited and (connection.waiting or connection.flow.read_paused or connection.phase == EXPECTED):
            # A call that never waited was begun by `proceed`, which goes on itself, or has nothing behind it.
            connection.proceed()

    def _give_up(self) -> None:
        """The task ends by force: neither the peer nor the server waits for a reply that never comes."""
        self.response_complete = True
        self.connection.transport.abort()

    def _left_open(self, response: object) -> bool:
        """End the stream, unless the handler gave it back open: the connection goes on when it closes."""
        sink = self.sink
        if sink is None or sink.closed or response is not sink:
            if sink is not None:
                sink.close()
            return False
        self.left_open = True
        sink.on_close(self._complete)
        return True

    def _complete(self) -> None:
        """A stream that its handler left open is over: go on with the connection."""
        connection = self.connection
        self.response_complete = True
        connection.current = None
        connection.server_state.total_requests += 1
        if self.keep_alive:
            connection.proceed()
        else:
            connection.transport.close()


async def _give(response: Response, _request: Request) -> Response:
    return response
