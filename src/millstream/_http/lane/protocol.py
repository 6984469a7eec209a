"""The lane: requests for hot endpoints go straight to their handler and back, with no ASGI between.

An application shows its lane as ``__millstream_lane__``; without one, and where uvicorn is configured with what the
short cut would bypass, this class is only the guard. A usual head is not even parsed (`usual`).
"""

import asyncio
from functools import partial
from typing import Any, cast

from millstream._http.lane.call import LaneExchange
from millstream._http.lane.guarded import GuardedProtocol
from millstream._http.lane.reply import BODY_TOO_LARGE
from millstream._http.lane.states import ASGI_BODY, ASKS, ENDS, EXPECTED, PERMITTED, REFUSED, TAKEN

_UNUSUAL = frozenset({b"origin", b"sec-fetch-site", b"expect", b"upgrade", b"x-forwarded-for", b"x-forwarded-proto"})


class LaneProtocol(GuardedProtocol):
    """One HTTP/1 connection: guarded, and short where it can be."""

    __slots__ = ("proxied", "short")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # configuration
        bypassed = self.traced or self.config.limit_concurrency is not None or self.config.reset_contextvars
        self.short = None if bypassed else self.lane
        # connection
        self.proxied = False
        """The peer is a proxy that says who its own peer is."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """What a connection over the cap asks is looked at by the guard, on the long way."""
        super().connection_made(transport)
        self.proxied = self.proxy is not None and self.peer in self.proxy.trusted_hosts
        if self.over_cap:
            self.short = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the call being answered."""
        call = self.current
        super().connection_lost(exc)
        if isinstance(call, LaneExchange):
            call.lost()

    def shutdown(self) -> None:
        """End the stream being written; a plain call is finished first."""
        super().shutdown()
        if isinstance(self.current, LaneExchange) and self.current.sink is not None:
            self.current.sink.close()

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
        if self.phase >= REFUSED or (
            (self.waiting or len(headers) > limits.max_header_count or self.seen + self.size > limits.max_header_bytes)
            and self.excessive()
        ):
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
            keep_alive=chunked and not self.guard.leaving and parser.should_keep_alive(),
        )
        if int(fields.get(b"content-length", 0)) > limits.max_body:
            return self.refuse(BODY_TOO_LARGE)
        unusual = not _UNUSUAL.isdisjoint(fields)
        if unusual and self.proxied and self.proxy is not None:
            call.forwarded(self.proxy)
        if (unusual or fields.get(b"host") not in short.policy.good or len(fields) != len(headers)) and not call.screen(
            short.policy
        ):
            return super().on_headers_complete()
        self.cycle = call
        self.phase = TAKEN[self.phase]
        self.seen = self.received = 0
        # Trailers come through on_header; they must not become headers.
        self.headers = []
        if unusual and call.asks:
            self.phase = ASKS[self.phase]
            if not self.busy:
                self.proceed()
        return None

    def on_body(self, body: bytes) -> None:
        if self.phase == ASGI_BODY:
            super().on_body(body)
        elif self.phase < REFUSED:
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
        if self.phase == ASGI_BODY or self.phase >= REFUSED:
            super().on_message_complete()
            return
        call = cast("LaneExchange", self.cycle)
        self.phase = ENDS[self.phase]
        self.seen = 0
        call.body = bytes(self.body)
        self.body = b""
        if self.counted:
            self.drop_body()
        if self.current is None and not self.flow.write_paused:
            self.begin(call)
        else:
            self.waiting.append(partial(self.begin, call))
            self.flow.pause_reading()

    # Calls.

    def begin(self, call: LaneExchange) -> None:
        """Run a call in a task of its own: a task that served two calls would carry one client's cancel to another."""
        self.current = call
        start = self.guard.start
        task = start(call.run())
        if task is not None and not (call.response_complete or call.left_open):
            # It can be cancelled now, and the server waits for it.
            call.task = task
            call.cancel = task.cancel
            self.tasks.add(task)

    def proceed(self) -> None:
        """Go on; a body that waits for permission gets it when nothing is in front of it."""
        super().proceed()
        if self.phase == EXPECTED and self.current is None:
            self.phase = PERMITTED[self.phase]
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
