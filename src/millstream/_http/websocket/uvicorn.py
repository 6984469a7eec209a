"""uvicorn's WebSocket protocol with the bounds that it lacks. Give uvicorn the name `CLASS_NAME` as its ``ws``.

uvicorn bounds the size of a message but not the number of its fragments, writes a pong for every ping whether the peer
reads or not, closes a connection whose peer takes nothing by waiting for it to take the rest, and leaves one open whose
handshake `websockets` cannot read. Here all four come to an end. It also reads frames before it has answered the
handshake, so that their pongs come first; here they wait. What bounds the frames of a read, and messages that never
end, is in `reading`.

It also writes an error to the log for what is a peer's doing and has its answer: a handshake that the application
refuses, and text that isn't UTF-8. Here neither can fill the log.

It is also the `Wire` of `websocket_direct`: messages go out without a turn of the event loop.
"""

import asyncio
from math import inf
from typing import Any

from uvicorn._types import ASGISendEvent
from websockets.extensions import Extension
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request

from millstream._http.websocket.direct import EXTENSION, DirectSocket
from millstream._http.websocket.reading import ReadingProtocol
from millstream._http.websocket.waiting import CompactEvent

CLASS_NAME = "millstream._http.websocket.uvicorn:WebSocketProtocol"
MAX_FRAGMENTS = 256
USUAL_FRAGMENT = 4096
"""Bytes of a fragment as common clients make them. The largest message may come in fragments of this size."""
MAX_UNREAD = 1024 * 1024
"""Bytes of pongs for a peer that does not read."""


class _Dropped(Extension):
    """Stands in for compression when messages are dropped: one byte inflates to a thousand, and nobody reads them."""

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        frame.rsv1 = False
        return frame


class WebSocketProtocol(ReadingProtocol):
    """One connection."""

    # uvicorn has 37 attributes; more than thirty in its dict would no longer be shared between connections.
    __slots__ = ("curr_msg_data_type", "frames", "initial_response", "last_ping_rtt", "outbox",
                 "parting", "pending_ping_payload", "ping_sent_at", "pongs", "request", "response", "room", "scope",
                 "unread")  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outbox: DirectSocket | None = None
        self.parting: asyncio.TimerHandle | None = None
        """When to look whether the peer still reads, once the connection ends."""
        self.pongs = 0
        """Bytes of pongs since the transport had no more room."""
        self.unread = 0
        """Bytes in front of the ping, when the peer was last seen to read."""
        self.room = CompactEvent()
        self.room.set()
        # uvicorn's own is an `asyncio.Event`, of which this does what it asks for.
        self.writable = self.room  # type: ignore[assignment]

    def hang_up(self) -> None:
        """The application ends the connection: what it waits for comes no more."""
        self.queue.put_nowait({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL_CLOSURE})

    def no_more_frames(self) -> None:
        """The closing handshake has begun, or there is no connection."""
        self.drop_message()
        if self.outbox is not None:
            self.outbox.lost()

    def handle_connect(self, event: Request) -> None:
        """The opening handshake, which the application is asked about in a task that has not begun yet."""
        super().handle_connect(event)
        if not self.close_sent:
            self.scope["extensions"][EXTENSION] = self  # type: ignore[assignment]  # ours, not in the ASGI types

    async def send(self, message: ASGISendEvent) -> None:
        """What the application sends."""
        await super().send(message)
        if message["type"] == "websocket.accept":
            # The parser keeps the request for as long as the connection lives.
            self.request.headers.clear()
            self.response.headers.clear()
            self.go_on()
        elif message["type"] == "websocket.close":
            if self.conn.extensions:
                self.conn.extensions[:] = [_Dropped()]  # in place: the parser has this list for the frame that it's in
            self.go_on()
            self.part()
        elif message["type"] == "websocket.http.response.body":
            # With the end of a refusal the handshake is complete, though no socket is open.
            self.handshake_complete = self.close_sent

    def resume_writing(self) -> None:
        """The transport has room again."""
        super().resume_writing()
        if self.outbox is not None:
            self.outbox.took()

    def handle_close(self, event: Frame) -> None:
        """The peer closes, or answers our close."""
        self.no_more_frames()
        super().handle_close(event)
        self.part()

    def handle_parser_exception(self) -> None:
        """The peer's bytes aren't frames; the parser has written the close frame."""
        self.no_more_frames()
        super().handle_parser_exception()
        self.part()

    def eof_received(self) -> None:
        """The peer sends no more; the event loop closes the transport."""
        self.part()

    def shutdown(self) -> None:
        """uvicorn ends. A connection that has ended already takes no close frame, and is waited for no longer."""
        self.no_more_frames()
        if self.transport.is_closing():
            self.transport.abort()
            return
        super().shutdown()
        self.part()

    def connection_lost(self, exc: Exception | None) -> None:
        """There is no connection any more. What it has read goes at once, not with the next collection of cycles."""
        self.no_more_frames()
        super().connection_lost(exc)
        if self.parting is not None:
            self.parting.cancel()
            self.parting = None
        self.ahead = b""
        self.conn.parser.close()
        self.conn.reader.buffer.clear()

    def handle_text(self, event: Frame) -> None:
        """A message, or its first fragment. After our close frame nobody takes it."""
        if self.close_sent:
            event.data = b""
            return
        super().handle_text(event)
        event.data = b""  # the parser keeps the frame until the next one

    def handle_bytes(self, event: Frame) -> None:
        """A binary message, or its first fragment; as above."""
        if self.close_sent:
            event.data = b""
            return
        super().handle_bytes(event)
        event.data = b""

    def handle_cont(self, event: Frame) -> None:
        """A further fragment; one too many ends the connection."""
        if self.close_sent:
            event.data = b""
            return
        if len(self.frames) >= MAX_FRAGMENTS and len(self.frames) >= self.config.ws_max_size // USUAL_FRAGMENT:
            self.fail(CloseCode.POLICY_VIOLATION, "too many fragments")
            return
        super().handle_cont(event)
        event.data = b""

    def send_receive_event_to_app(self) -> None:
        """A whole message; text that isn't UTF-8 ends the connection (RFC 6455 §8.1)."""
        if self.deadline is not None:
            self.in_time()
        if self.curr_msg_data_type != "text" or self.close_sent:
            super().send_receive_event_to_app()
            return
        frames, self.frames = self.frames, []
        try:
            text = (frames[0] if len(frames) == 1 else b"".join(frames)).decode()
        except UnicodeDecodeError:
            self.fail(CloseCode.INVALID_DATA, "not UTF-8")
            return
        self.queue.put_nowait({"type": "websocket.receive", "text": text})
        self.hold()

    def handle_ping(self) -> None:
        """A ping. Its pong waits behind the rest, and of a peer that reads nothing there must not be many."""
        pong = b"".join(self.conn.data_to_send())
        if not pong:
            return  # it went out with that of the first ping of its piece
        self.transport.write(pong)
        self.pongs = 0 if self.room.is_set() else self.pongs + len(pong)
        if self.pongs > MAX_UNREAD:
            self.transport.abort()

    def send_keepalive_ping(self) -> None:
        """It is time to see whether somebody is there."""
        super().send_keepalive_ping()
        self.unread = self.transport.get_write_buffer_size()

    def keepalive_timeout(self) -> None:
        """A ping without its pong: a peer that has read since may still be on its way to it, else nobody is there."""
        unread = self.transport.get_write_buffer_size()
        if unread and unread < self.unread and not self.close_sent:
            self.unread = unread
            self.pong_timer = self.loop.call_later(self.ping_timeout or 0, self.keepalive_timeout)
            return
        self.no_more_frames()
        super().keepalive_timeout()
        self.drop_unread()

    async def run_asgi(self) -> None:
        """Run the application. When it is over it has given the peer its time to read."""
        await super().run_asgi()
        if not self.writable.is_set():
            self.drop_unread()
        elif not self.disconnected:
            self.part()

    def part(self) -> None:
        """The connection ends: a closed transport would wait without an end for a peer that leaves something unread."""
        if self.parting is None:
            self._see_it_read(inf)

    def _see_it_read(self, before: float) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread and unread >= before:
            self.transport.abort()
        elif unread or self.close_timer is not None:
            self.parting = self.loop.call_later(self.guard.limits.write_timeout, self._see_it_read, unread)

    def drop_unread(self) -> None:
        """Do not wait for a peer that does not read."""
        transport: Any = self.transport
        if transport.get_write_buffer_size():
            transport.abort()
