"""What one WebSocket reads: frames, some at a time, and messages that come in time and find room.

A read may bring forty thousand empty frames, which would hold the loop until the last one is handled. So the parser
gets a piece of it at a time, others have their turn after `MAX_FRAMES`, and while a message waits for the application
the rest waits as the bytes that it is. A message that hasn't come whole counts in the budget of unfinished bodies, and
has as long as one.
"""

import asyncio
from typing import Any

from uvicorn._types import ASGIReceiveEvent
from uvicorn.config import Config
from uvicorn.middleware.message_logger import MessageLoggerMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import CloseCode

from millstream._config import Settings
from millstream._http.lane import ATTRIBUTE, Lane
from millstream._http.lane.guard import guard_of
from millstream._http.limits import HttpLimits
from millstream._http.websocket.waiting import CompactQueue

PIECE = 8192
"""Bytes that the parser gets at a time; a read that isn't larger can't be a flood."""
MAX_FRAMES = 512
"""Frames after which others have their turn; the piece that brings more is handled to its end."""

_UNREADABLE = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_NO_ROOM = "The server is receiving too much at once. Connect again, and send it in one piece if you can."
_DEFAULTS = HttpLimits.of(Settings())


class ReadingProtocol(WebSocketsSansIOProtocol):
    """One connection, as far as it reads."""

    __slots__ = ("ahead", "counted", "deadline", "guard", "turn")

    app: Any
    transport: asyncio.Transport

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # process
        self.guard = guard_of(server_state, _limits(self.app), self.loop)
        self.guard.unfinished.fit(config.ws_max_size)
        # connection
        self.ahead = b""
        """What has come and isn't parsed: it waits for the answer to the handshake, the application, or its turn."""
        self.turn: asyncio.Handle | None = None
        """When the rest of it is parsed, if that only waits for its turn."""
        self.counted = 0
        """Bytes of the unfinished message in the guard's count of all."""
        self.deadline: asyncio.TimerHandle | None = None
        """When the unfinished message has taken too long."""
        # uvicorn's own is an `asyncio.Queue`, of which this does what it asks for.
        self.queue = CompactQueue()  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Bytes of the peer; the first are its handshake, which has bounds of its own (length of a line, no body).

        Frames that come before the answer wait for it, and no more are read: a pong would stand in front of the answer.
        """
        if not self.handshake_initiated:
            self._open(data)
            return
        if len(data) > PIECE or self.ahead or not self.handshake_complete:
            self.ahead += data
            self.go_on()
            if self.ahead:
                self.hold()
            return
        frames, conn = self._parse(data), self.conn
        if conn.reader.buffer or conn.current_size is not None or self.deadline is not None:
            self._weigh(frames)

    def _open(self, data: bytes) -> None:
        self._parse(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(_UNREADABLE)
            self.transport.close()

    async def receive(self) -> ASGIReceiveEvent:
        """The next message for the application; with the last of them, the connection reads on."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            if self.ahead:
                self._wait_for_turn()  # or an application that takes them all would be the only one to run
            else:
                self.go_on()
        return message

    def hold(self) -> None:
        """Read no more for now."""
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def go_on(self) -> None:
        """Parse what has come until a message waits for the application, or others must have their turn; then read on.

        After our close frame messages are dropped, and only that of the peer is waited for.
        """
        if self.turn is not None or not self.handshake_complete:
            return
        data, self.ahead = self.ahead, b""
        at = frames = 0
        while at < len(data) and frames < MAX_FRAMES and self._takes():
            frames += self._parse(data[at : at + PIECE])
            at += PIECE
        if self.transport.is_closing():
            return
        self.ahead = data[at:]
        if self._takes():
            if self.ahead:
                self._wait_for_turn()
            elif self.read_paused:
                self.read_paused = False
                self.transport.resume_reading()
        if frames or at:
            self._weigh(frames)

    def _wait_for_turn(self) -> None:
        if self.turn is None:
            self.turn = self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self.turn = None
        self.go_on()

    def _takes(self) -> bool:
        """Whether a message could be taken now."""
        return (self.close_sent or self.queue.empty()) and not self.transport.is_closing()

    def _parse(self, data: bytes) -> int:
        """Handle the frames that end in these bytes; gives how many."""
        conn = self.conn
        conn.receive_data(data)
        if conn.parser_exc is not None:
            self.handle_parser_exception()
            return 0
        frames = len(conn.events)
        self.handle_events()
        return frames

    # Unfinished messages

    def _weigh(self, frames: int) -> None:
        """Count what has come of an unfinished message, or of a frame, which all connections together have room for."""
        conn = self.conn
        size, part = len(conn.reader.buffer), conn.current_size
        if frames and part is None:
            self.in_time()
        if self.transport.is_closing() or (part is None and not size):
            self.in_time()
            return
        if self.deadline is None:
            self._set_deadline()
        size += part or 0
        more, self.counted = size - self.counted, size
        if more < 0:
            self.guard.unfinished.give(self._peer, -more)
        elif more and not self.guard.unfinished.take(self._peer, more):
            self.fail(CloseCode.TRY_AGAIN_LATER, _NO_ROOM)

    @property
    def _peer(self) -> str:
        """Whose share of the room it takes: that of the guard's other connections."""
        return self.client[0] if self.client else ""

    def in_time(self) -> None:
        """What was unfinished has come whole. What follows counts from its first byte, and has time of its own."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
        if self.counted:
            self.guard.unfinished.give(self._peer, self.counted)
            self.counted = 0

    def drop_message(self) -> None:
        """Nothing of an unfinished message is held any more."""
        self.in_time()
        self.frames = []

    def _set_deadline(self) -> None:
        self.deadline = self.loop.call_later(self.guard.limits.body_timeout, self._is_late)

    def _is_late(self) -> None:
        self.deadline = None
        if self.read_paused:
            # We have stopped reading, so the peer cannot go on.
            self._set_deadline()
            return
        seconds = self.guard.limits.body_timeout
        reason = f"The message came too slowly: it may take {seconds:g} seconds. Send it faster, or send smaller ones."
        self.fail(CloseCode.POLICY_VIOLATION, reason)

    def fail(self, code: CloseCode, reason: str) -> None:
        """End the connection at once: what it sends can't be read on."""
        self.conn.fail(code, reason)
        self.handle_parser_exception()


def _limits(app: object) -> HttpLimits:
    """The limits of the application, below what uvicorn puts around it."""
    while isinstance(app, ProxyHeadersMiddleware | MessageLoggerMiddleware):
        app = app.app
    lane = getattr(app, ATTRIBUTE, None)
    return lane.limits if isinstance(lane, Lane) else _DEFAULTS
