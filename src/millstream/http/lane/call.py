"""One request in the lane and its reply: what the server's own request cycle is on the ASGI path."""

import asyncio
from typing import Protocol

from uvicorn.protocols.http.flow_control import FlowControl

from millstream.config import Settings
from millstream.http.lane.guard import Guard
from millstream.http.lane.reply import CLOSE
from millstream.http.lane.sink import LaneSink
from millstream.http.message import Handler, Request, Response, Sink
from millstream.http.stream_end import failure

_NOBODY_WAITS = asyncio.Event()
"""uvicorn sets its cycle's event when something happens; nobody waits for that of a lane call."""


class Connection(Protocol):
    """What a call needs of its connection."""

    transport: asyncio.Transport
    flow: FlowControl
    guard: Guard
    limits: Settings


class LaneExchange(Request, eq=False, kw_only=True):
    """A request and its reply."""

    connection: Connection
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
