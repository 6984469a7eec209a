"""uvicorn's WebSocket protocol with the bounds that it lacks. Give uvicorn the name `CLASS_NAME` as its ``ws``.

uvicorn bounds the size of a message but not the number of its fragments, writes a pong for every ping whether the peer
reads or not, closes a connection whose peer takes nothing by waiting for it to take the rest, and leaves one open whose
handshake `websockets` cannot read. Here all four come to an end.

It also writes an error to the log for what is a peer's doing and has its answer: a handshake that the application
refuses, and text that is no UTF-8. Here neither can fill the log.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

CLASS_NAME = "millstream.transports.websocket_uvicorn:WebSocketProtocol"
MAX_FRAGMENTS = 256
MAX_UNREAD = 1024 * 1024
"""Bytes that the socket has not taken when a ping asks for one more answer."""

_UNREADABLE = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection."""

    transport: asyncio.Transport

    def data_received(self, data: bytes) -> None:
        """Bytes of the peer; the first are its handshake, which has bounds of its own (length of a line, no body)."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(_UNREADABLE)
            self.transport.close()

    def handle_cont(self, event: Frame) -> None:
        """A further fragment; one too many ends the connection."""
        if self.close_sent:
            return
        if len(self.frames) >= MAX_FRAGMENTS:
            self.frames = []
            self.conn.fail(CloseCode.POLICY_VIOLATION, "too many fragments")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """A whole message; text that is no UTF-8 ends the connection (RFC 6455 §8.1)."""
        if self.curr_msg_data_type == "text" and not self.close_sent:
            data = b"".join(self.frames)
            self.frames = [data]
            try:
                data.decode()
            except UnicodeDecodeError:
                self.frames = []
                self.conn.fail(CloseCode.INVALID_DATA, "not UTF-8")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def send(  # pyright: ignore[reportIncompatibleMethodOverride]  to pyright a coroutine is of one class only
        self, message: ASGISendEvent
    ) -> Coroutine[Any, Any, None]:
        """What the application says. No coroutine of its own: it gives the one that does the work."""
        refuses = message["type"] == "websocket.http.response.body"
        return self.refuse_handshake(message) if refuses else super().send(message)

    async def refuse_handshake(self, message: ASGISendEvent) -> None:
        """The body of a refusal; with its end the handshake is complete, though no socket is open."""
        await super().send(message)
        self.handshake_complete = self.close_sent

    def handle_ping(self) -> None:
        """A ping; the pong is written already where the peer reads what it is sent."""
        super().handle_ping()
        if self.transport.get_write_buffer_size() > MAX_UNREAD:
            self.transport.abort()

    def keepalive_timeout(self) -> None:
        """A ping without its pong: nobody is there to take what is still unsent."""
        super().keepalive_timeout()
        self.drop_unread()

    async def run_asgi(self) -> None:
        """Run the application. When it is over it has given the peer its time to read."""
        await super().run_asgi()
        if not self.writable.is_set():
            self.drop_unread()

    def drop_unread(self) -> None:
        """Do not wait for a peer that does not read."""
        transport: Any = self.transport
        if transport.get_write_buffer_size():
            transport.abort()
