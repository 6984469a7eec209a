"""The lane: requests for hot endpoints go straight to their handler and back, with no ASGI between.

An application shows its lane as ``__millstream_lane__``; without one, and where uvicorn is configured with what the
short cut would bypass, this class is only the guard. A usual head is not even parsed (`usual`). The hot path is written
inline, because at this speed what is left to save are Python calls.
"""

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.server import ServerState

from millstream.http.compression import FROM_BYTES, compressed
from millstream.http.hosts import EXEMPT
from millstream.http.lane import Lane
from millstream.http.lane.call import LaneExchange
from millstream.http.lane.guard import BODY, IDLE
from millstream.http.lane.guarded import GuardedProtocol
from millstream.http.lane.reply import BODY_TOO_LARGE
from millstream.http.message import JSON_HEAD, Request, Response

_UNUSUAL = frozenset({b"origin", b"sec-fetch-site", b"expect", b"upgrade", b"x-forwarded-for", b"x-forwarded-proto"})
_new_task = cast("Callable[..., asyncio.Task[None]]", asyncio.Task)
if sys.version_info >= (3, 12):
    # It takes its first step at once: a call that waits for nothing costs no turn of the loop.
    _new_task = partial(_new_task, eager_start=True)


class LaneProtocol(GuardedProtocol):
    """One HTTP/1 connection: guarded, and short where it can be."""

    __slots__ = ("body", "building", "continue_due", "missing", "short")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # configuration
        bypassed = self.traced or config.limit_concurrency is not None or config.reset_contextvars
        self.short = None if bypassed else self.lane
        # request
        self.building: LaneExchange | None = None
        """The call whose body is being read."""
        self.body: bytes | bytearray = b""
        self.continue_due = False
        self.missing = 0
        """Bytes still to come of the body of a request that the parser has not seen."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """What a connection over the cap asks is looked at by the guard, on the long way."""
        super().connection_made(transport)
        if self.over_cap:
            self.short = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the call being answered."""
        super().connection_lost(exc)
        if isinstance(self.current, LaneExchange):
            self.current.lost()

    def shutdown(self) -> None:
        """End the stream being written; a plain call is finished first."""
        super().shutdown()
        if isinstance(self.current, LaneExchange) and self.current.sink is not None:
            self.current.sink.close()

    def data_received(self, data: bytes) -> None:
        """Read a request with a usual head at once, and leave everything else to the parser."""
        short = self.short
        if short is None or self.phase or self.current is not None or self.refused:
            if self.missing:
                self._go_on(data)
            else:
                self._parse(data)
            return
        head, end, body = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        found = short.by_line.get(lines.pop(0))
        if found is None or not end or self.flow.write_paused:
            self._parse(data)
            return
        try:
            fields = dict(map(self.guard.lines.__getitem__, lines))
            size = int(fields[b"content-length"])
        except KeyError:
            self._parse(data)
            return
        limits = self.limits
        if (
            fields.get(b"host") not in short.policy.good
            or len(fields) != len(lines)
            or size > limits.max_body
            or len(lines) > limits.max_header_count
            or len(head) > limits.max_header_bytes
        ):
            self._parse(data)
            return
        call = LaneExchange(
            found[1],
            found[2],
            fields.items(),
            fields,
            body,
            b"",
            self.peer,
            self.root_path,
            self.scheme or "http",
            connection=self,
            handler=found[0],
        )
        self.cycle = call
        if size == len(body):
            self._begin(call)
        else:
            self._await(call, body, size)

    # Parser callbacks.

    def on_headers_complete(self) -> None:
        """Take the short cut, or leave the request to ASGI."""
        headers, short, limits = self.headers, self.short, self.limits
        if short is None:
            return super().on_headers_complete()
        parser = self.parser
        method, query = parser.get_method(), b""
        found = short.hot.get((method, self.url))
        if found is None:
            path, _, query = self.url.partition(b"?")
            handler = None if b"%" in path else short.lookup(method, path)
            if handler is None:
                return super().on_headers_complete()
            found = (handler, method.decode("ascii"), path.decode("ascii"))
        if (
            self.refused
            or self.waiting
            or len(headers) > limits.max_header_count
            or self.seen + self.size > limits.max_header_bytes
        ) and self.excessive():
            return None
        fields = dict(headers)
        chunked = parser.get_http_version() != "1.0"
        call = LaneExchange(
            found[1],
            found[2],
            headers,
            fields,
            b"",
            query,
            self.peer,
            self.root_path,
            self.scheme or "http",
            connection=self,
            handler=found[0],
            chunked=chunked,
            keep_alive=chunked and parser.should_keep_alive(),
        )
        if int(fields.get(b"content-length", 0)) > limits.max_body:
            return self.refuse(BODY_TOO_LARGE)
        if (
            fields.get(b"host") not in short.policy.good
            or len(fields) != len(headers)
            or not _UNUSUAL.isdisjoint(fields)
        ) and not self._screen(short, call):
            return super().on_headers_complete()
        self.cycle = self.building = call
        self.phase = BODY
        self.seen = self.received = 0
        # Trailers come through on_header; they must not become headers.
        self.headers = []
        return None

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self.building is None:
            super().on_body(body)
            return
        self.seen = 0
        self.received += len(body)
        if self.received > self.limits.max_body:
            self.refuse(BODY_TOO_LARGE)
        elif not self.body:
            self.body = body
        else:
            # The usual single piece is not copied; thousands of small ones go into one buffer.
            self.body = self.body if isinstance(self.body, bytearray) else bytearray(self.body)
            self.body += body

    def on_message_complete(self) -> None:
        """The request is whole: run it, or let it wait for its turn."""
        call = self.building
        if call is None or self.refused:
            super().on_message_complete()
            return
        self.building = None
        self.continue_due = False
        self.phase = IDLE
        self.seen = 0
        call.body = bytes(self.body)
        self.body = b""
        if self.current is None and not self.flow.write_paused:
            self._begin(call)
        else:
            self.waiting.append(partial(self._begin, call))
            self.flow.pause_reading()

    _parse = GuardedProtocol.data_received

    # A body that comes later than its usual head: the parser has seen neither.

    def _await(self, call: LaneExchange, body: bytes, size: int) -> None:
        call.body = b""
        self.building = call
        self.phase = BODY
        self.since = self.guard.clock
        self.received = 0
        self.missing = size
        self._go_on(body)

    def _go_on(self, data: bytes) -> None:
        if self.refused or not data:
            return
        body = data[: self.missing]
        self.missing -= len(body)
        self.on_body(body)
        if not self.missing:
            self.on_message_complete()
            if len(data) > len(body):
                self.data_received(data[len(body) :])

    # Calls.

    def _begin(self, call: LaneExchange) -> None:
        """Run a call in a task of its own: a task that served two calls would carry one client's cancel to another."""
        self.current = call
        task = _new_task(self.run(call), loop=self.loop)
        if not (call.response_complete or call.left_open):
            # It can be cancelled now, and the server waits for it.
            call.task = task
            call.cancel = task.cancel
            self.tasks.add(task)

    async def run(self, call: LaneExchange) -> None:  # noqa: C901, PLR0912  the hot path, inline
        """Run one call and write its reply, all in the call's own task."""
        try:
            response = await call.handler(call)
        except asyncio.CancelledError:
            if not call.cancelled:
                self._give_up(call)
                raise
            response = None
        except Exception as exc:
            response = call.failed(exc)
        except BaseException:
            self._give_up(call)
            raise
        finally:
            if call.task is not None:
                self.tasks.discard(call.task)
                call.cancel = call.task = None
        if call.sink is not None:
            if self._left_open(call, response):
                return
        elif not call.disconnected:
            if not isinstance(response, Response):
                response = call.failed(RuntimeError("The handler gave neither a reply nor a stream."))
            if len(response.body) >= FROM_BYTES and b"accept-encoding" in call.headers:
                response = compressed(response, call.headers)
            heads, body = self.guard.heads, response.body
            if (
                response.head is JSON_HEAD
                and response.status == 200
                and heads.source is self.server_state.default_headers
                and call.keep_alive
                and not call.cors
                and call.method == "POST"
            ):
                # `Heads.reply` of the usual reply, inline.
                self.transport.write(b"%b%d\r\n\r\n%b" % (heads.usual, len(body), body))
            else:
                self.transport.write(
                    heads.reply(response, call.cors, keep_alive=call.keep_alive, bodiless=call.method == "HEAD")
                )
        if self.lane is not None and self.lane.access is not None:
            self.lane.access(call, response if isinstance(response, Response) else None)
        # `_complete`, inline.
        call.response_complete = True
        self.current = None
        self.since = self.guard.clock
        self.server_state.total_requests += 1
        if not call.keep_alive:
            self.transport.close()
        elif self.waiting or self.flow.read_paused or self.farewell is not None or self.continue_due:
            self.proceed()

    def _give_up(self, call: LaneExchange) -> None:
        """The task of a call ends by force: neither the peer nor the server waits for a reply that never comes."""
        call.response_complete = True
        self.transport.abort()

    def _left_open(self, call: LaneExchange, response: object) -> bool:
        """End the stream of a call, unless its handler gave it back open: the connection goes on when it closes."""
        sink = call.sink
        if sink is None or sink.closed or response is not sink:
            if sink is not None:
                sink.close()
            return False
        call.left_open = True
        sink.on_close(partial(self._complete, call))
        return True

    def _complete(self, call: LaneExchange) -> None:
        """A stream that its handler left open is over: go on with the connection."""
        call.response_complete = True
        self.current = None
        self.since = self.guard.clock
        self.server_state.total_requests += 1
        if call.keep_alive:
            self.proceed()
        else:
            self.transport.close()

    def proceed(self) -> None:
        """Go on; a body that waits for permission gets it when nothing is in front of it."""
        super().proceed()
        if self.continue_due and self.current is None and not self.refused:
            self.continue_due = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _screen(self, lane: Lane, call: LaneExchange) -> bool:
        """The slow half of the Host and Origin check, CORS and ``Expect``. False: this is one for ASGI after all."""
        fields = call.headers
        if b"upgrade" in fields:
            return False
        if self.proxy is not None and self.peer in self.proxy.trusted_hosts:
            _forwarded(self.proxy, call)
        reply = None
        if call.path not in EXEMPT:
            reply = lane.policy.check(call.method, fields, call.raw_headers, call.peer)
        origin = fields.get(b"origin")
        if reply is None and origin is not None:
            call.cors = lane.policy.cors_head(origin)
            reply = lane.policy.preflight(call)
        if reply is not None:
            call.handler = partial(_give, reply)
        if fields.get(b"expect", b"").strip().lower() == b"100-continue" and call.chunked:
            self.continue_due = True
            if not self.busy:
                self.proceed()
        return True


async def _give(response: Response, _request: Request) -> Response:
    return response


def _forwarded(proxy: ProxyHeadersMiddleware, request: Request) -> None:
    """What uvicorn's middleware makes of the headers of a proxy it trusts."""
    scheme = request.headers.get(b"x-forwarded-proto", b"").decode("latin-1").strip()
    if scheme in ("http", "https"):
        request.scheme = scheme
    chain = b", ".join(value for name, value in request.raw_headers if name == b"x-forwarded-for")
    if chain:
        request.peer = proxy.trusted_hosts.get_trusted_client_address(chain.decode("latin-1"))[0] or request.peer
