"""A WebSocket on a socket, based on `websockets.server.ServerProtocol`.

In addition to the rules of RFC 6455, every client is limited:

- Input is parsed in pieces. Parsing yields to the event loop after `MAX_FRAMES` frames, and pauses while a message
  waits for the application.
- Messages have a maximum size and number of fragments. An unfinished message counts against the budget for unfinished
  bodies and must be complete within the body timeout.
- While the client leaves too much unread, the server reads nothing, so it sends no pongs. A ping without a pong ends
  the connection. `ConnectionGuard` checks the time limits about once a second.

The server never negotiates compression, so messages can't inflate. The application gets a `DirectSocket`, which writes
messages without waiting for the event loop.
"""

import asyncio
import logging
from http import HTTPStatus
from math import inf
from secrets import token_bytes

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.http11 import Response as HandshakeReply
from websockets.protocol import State
from websockets.server import ServerProtocol

from millstream._http.message import (
    MAX_FRAGMENTS,
    PIECE,
    USUAL_FRAGMENT,
    HttpRequest,
    Response,
    failure,
    refusal,
)
from millstream._http.server.connection import BAD_REQUEST
from millstream._http.server.guard import ServerSocket
from millstream._http.websocket import CompactQueue, DirectSocket
from millstream._override import override
from millstream._text import pluralize

MAX_FRAMES = 512
"""Frames after which parsing yields to the event loop, at the end of the current piece."""
MAX_FRAME_HEAD = 14
PING_TIMEOUT = 20.0
"""Seconds that a pong may take."""
CLOSE_TIMEOUT = 10.0
"""Seconds that the client may take to answer a close frame."""

_CHECKED = (b"sec-websocket-", b"connection", b"upgrade", b"origin", b"content-length", b"transfer-encoding")
"""Prefixes of the headers that the parser checks."""
_NO_ANSWER = refusal(500, "Internal error.")
_BUDGET_EXCEEDED = "The server is receiving too much data. Reconnect, and send the message in one piece if possible."

_silent_logger = logging.getLogger("millstream.websockets")
_silent_logger.setLevel(logging.CRITICAL)  # clients must not be able to fill the log


class WebSocketProtocol(ServerSocket):
    """A WebSocket of a `SocketListener`, from its handshake on."""

    __slots__ = (
        "_ahead", "_answer", "_closed", "_closes_at", "_conn", "_counted", "_fragment_bytes", "_fragments",
        "_frame_bytes", "_is_open", "_is_text", "_loop", "_messages", "_ping", "_pinged_at", "_tunnel", "_turn",
        "_unfinished_since", "outbox",
    )  # fmt: skip

    # The application ends a WebSocket with a close frame.
    idle = arriving = False

    def __init__(self, taken: ServerSocket, request: HttpRequest) -> None:
        """Take over the socket of an HTTP connection, which has bounded the handshake `request`."""
        table, guard = taken.table, taken.guard
        super().__init__(table, taken.state, guard)
        guard.unfinished.fit(table.max_message)
        # Connection
        self.transport = taken.transport
        self._loop = asyncio.get_running_loop()
        self.outbox = DirectSocket(
            wire=self, request=request, limit=guard.limits.stream_buffer, grace=guard.limits.write_timeout
        )
        self._conn = ServerProtocol(max_size=table.max_message, logger=_silent_logger)
        self._answer: HandshakeReply | None = None
        """The reply to the handshake that the application may still refuse."""
        self._messages: CompactQueue[str | bytes | None] = CompactQueue()
        self._is_open = False
        """Whether the handshake is complete."""
        self._closed = False
        """Whether a close frame was sent."""
        self._closes_at = inf
        """Time at which the socket is closed, unless the client answers the close frame."""
        self._tunnel: FrameScanner | None = None
        """Finds the ends of another server's frames, if there's one behind this socket."""
        # Reading
        self._ahead = b""
        """Received bytes that haven't been processed yet."""
        self._turn: asyncio.Handle | None = None
        """Timer for parsing the rest, if it only waits for its turn."""
        self._frame_bytes = 0
        """Bytes of an incomplete frame."""
        self._fragments: list[bytes] = []
        self._fragment_bytes = 0
        """Bytes of an unfinished message's fragments."""
        self._is_text = False
        self._counted = 0
        """Bytes of the unfinished message in the server's budget, at least one."""
        self._unfinished_since = 0.0
        # Pings
        self._ping = b""
        """Payload of the last ping, until its pong."""
        self._pinged_at = guard.clock
        """Time of the last ping, or of its pong."""

    # The connection

    @property
    @override
    def owner(self) -> str:
        return self.outbox.request.owner

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Notify the application and drop received data."""
        self._end_messages()
        self.guard.release(self)
        self.room.set()
        if exc is None:
            self.transport.close()
        self._ahead = b""
        self._conn.receive_eof()  # this drops the buffer

    @property
    def answering(self) -> bool:
        """Whether a stopping server waits for this socket: the other server closes it when its calls have ended."""
        return self._tunnel is not None

    def announce_close(self) -> None:
        """Do nothing, because the application closes its WebSockets when the server stops."""

    def shutdown(self) -> None:
        """Close. Called when the server stops."""
        self._end_messages()
        if self.transport.is_closing():
            self.transport.abort()
            return
        if not self._is_open:
            self._fail_handshake()
        elif not self._closed and (self._tunnel is None or self._tunnel.is_between_frames):
            self._conn.send_close(CloseCode.SERVICE_RESTART)
            self._flush()
        self.transport.close()

    @override
    def close_if_late(self, now: float) -> bool:
        if self.read_paused:  # the client can't continue
            self._pinged_at = self._unfinished_since = now
        if self.transport.is_closing():
            return False
        if now > self._closes_at:
            self.transport.close()
            return True
        if self._closed or not self._is_open or self._tunnel is not None:  # the other server checks a tunnel
            return False
        limits, heartbeat = self.guard.limits, self.table.heartbeat
        if self._counted and now - self._unfinished_since > limits.body_timeout:
            reason = (
                f"The message arrived too slowly: it took more than {pluralize(limits.body_timeout, 'second')}. "
                "Send it faster, or send smaller messages."
            )
            self._fail_with(CloseCode.POLICY_VIOLATION, reason)
            return True
        if self._ping and now - self._pinged_at > PING_TIMEOUT:
            self._fail_with(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")
            return True
        if not self._ping and 0 < heartbeat <= now - self._pinged_at:
            self._ping, self._pinged_at = token_bytes(4), now
            self._conn.send_ping(self._ping)
            self._flush()
        return False

    # Reading

    @override
    def data_received(self, data: bytes) -> None:
        """Process received bytes.

        Frames that arrive before the reply to the handshake wait for it, because a pong must not precede that reply.
        """
        self._ahead += data
        self.proceed()
        if self._ahead:
            self.pause_reading()

    def open(self) -> None:
        """Pass the handshake to the application.

        The parser has smaller limits than the HTTP connection, for example for cookies, and only gets what it checks.
        """
        request = self.outbox.request
        lines = [b"%b: %b\r\n" % header for header in request.raw_headers if header[0].startswith(_CHECKED)]
        self._conn.receive_data(b"%b / HTTP/1.1\r\n%b\r\n" % (request.method.encode(), b"".join(lines)))
        if self._conn.handshake_exc is not None:
            self.refuse(BAD_REQUEST)
            return
        for parsed in self._conn.events_received():
            if isinstance(parsed, Request):
                answer = self._conn.accept(parsed)
                if answer.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
                    self._send_response(answer)
                    self.transport.close()
                    return
                self._answer = answer
                task = self._loop.create_task(self._run())
                task.add_done_callback(self.state.tasks.discard)
                self.state.tasks.add(task)
                parsed.headers.clear()  # the parser keeps the request for the lifetime of the connection

    @override
    def proceed(self) -> None:
        """Parse received bytes until a message waits for the application or the event loop gets its turn.

        After our close frame, messages are dropped, and only the client's close frame matters.
        """
        if self._turn is not None or not self._is_open:
            return
        data, self._ahead = self._ahead, b""
        at = frames = 0
        while at < len(data) and frames < MAX_FRAMES and self._can_process():
            frames += self._parse(data[at : at + PIECE])
            at += PIECE
        if self.transport.is_closing():
            return
        self._ahead = data[at:]
        if self._can_process():
            if self._ahead:
                self._schedule_parsing()
            else:
                self.resume_reading()
        if at:
            self._count_unfinished(frames)

    def _schedule_parsing(self) -> None:
        if self._turn is None:
            self._turn = self._loop.call_soon(self._continue_parsing)

    def _continue_parsing(self) -> None:
        self._turn = None
        self.proceed()

    def _can_process(self) -> bool:
        """Return whether a message can be processed now, and a pong can be sent."""
        drops = self._closed and self._tunnel is None
        return (drops or self._messages.empty()) and self.room.is_set() and not self.transport.is_closing()

    def _parse(self, data: bytes) -> int:
        """Handle the frames that end in these bytes and return their number."""
        if self._tunnel is not None:
            self._messages.put_nowait(data)
            self.pause_reading()
            return 1
        conn = self._conn
        conn.receive_data(data)
        frames = [event for event in conn.events_received() if isinstance(event, Frame)]
        failed = conn.state is not State.OPEN and not any(each.opcode is Opcode.CLOSE for each in frames)
        if failed and b"" in self._flush():
            # The bytes aren't valid frames, and the parser has written the close frame.
            self._fail()
            return 0
        if any(each.opcode is Opcode.PING for each in frames):
            self._flush()
        self._frame_bytes += len(data)
        for frame in frames:
            self._frame_bytes -= _wire_size(frame)
            self._handle(frame)
            frame.data = b""  # the parser keeps the frame until the next one
        if frames:
            self._frame_bytes = min(max(0, self._frame_bytes), len(data))
        return len(frames)

    def _handle(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            self._handle_close()
        elif frame.opcode is Opcode.PONG:
            if self._ping and bytes(frame.data) == self._ping:
                self._ping, self._pinged_at = b"", self.guard.clock
        elif frame.opcode is not Opcode.PING and not self._closed:
            self._handle_data(frame)

    def _handle_data(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CONT:
            most = max(MAX_FRAGMENTS, self.table.max_message // USUAL_FRAGMENT)
            if len(self._fragments) >= most:
                self._fail_with(CloseCode.POLICY_VIOLATION, "too many fragments")
                return
            self._fragments.append(bytes(frame.data))
        else:
            self._is_text = frame.opcode is Opcode.TEXT
            self._fragments = [bytes(frame.data)]
        if frame.fin:
            self._deliver()
        else:
            self._fragment_bytes += len(frame.data)

    def _deliver(self) -> None:
        """Pass a complete message to the application. Invalid UTF-8 ends the connection (RFC 6455 §8.1)."""
        self._release_unfinished()
        fragments, self._fragments, self._fragment_bytes = self._fragments, [], 0
        data = fragments[0] if len(fragments) == 1 else b"".join(fragments)
        try:
            self._messages.put_nowait(data.decode() if self._is_text else data)
        except UnicodeDecodeError:
            self._fail_with(CloseCode.INVALID_DATA, "not UTF-8")
            return
        self.pause_reading()

    def _handle_close(self) -> None:
        """Handle the client's close frame, or its response to ours."""
        self._end_messages()
        self._closes_at = inf
        if not self.transport.is_closing():
            self._flush()
            self.transport.close()

    # Unfinished messages

    def _count_unfinished(self, frames: int) -> None:
        """Count the received part of a message or frame in the budget of all connections."""
        is_unfinished = bool(self._fragments or self._frame_bytes) and not self.transport.is_closing()
        if not is_unfinished or (frames and not self._fragments):
            self._release_unfinished()  # the next message has its own timeout
        if not is_unfinished:
            return
        if not self._counted:
            self._unfinished_since = self.guard.clock
        # Exclude frame heads. Otherwise the largest message would not fit into a budget of its size.
        size = max(1, self._fragment_bytes + max(min(1, self._frame_bytes), self._frame_bytes - MAX_FRAME_HEAD))
        more = size - self._counted
        if more < 0:
            self.guard.unfinished.leave(self.outbox.request.peer, -more)
        elif not self.guard.unfinished.take(self.outbox.request.peer, more):
            self._fail_with(CloseCode.TRY_AGAIN_LATER, _BUDGET_EXCEEDED)
            return
        self._counted = size

    def _release_unfinished(self) -> None:
        if self._counted:
            self.guard.unfinished.leave(self.outbox.request.peer, self._counted)
            self._counted = 0

    def _end_messages(self) -> None:
        """Stop accepting messages when the closing handshake begins or the connection is lost."""
        self._release_unfinished()
        self._fragments = []
        self._fragment_bytes = 0
        self.outbox.connection_lost()

    def _fail_with(self, code: CloseCode, reason: str) -> None:
        """Close immediately. Called when the client's input can't be parsed."""
        self._conn.fail(code, reason)
        self._flush()
        self._fail()

    def _fail(self) -> None:
        self._end_messages()
        self._closed = True
        self.transport.close()

    # Writing

    def _flush(self) -> list[bytes]:
        """Write and return the parser's output. An empty part marks the end."""
        output = self._conn.data_to_send()
        data = b"".join(output)
        if data and not self.transport.is_closing():
            self.transport.write(data)
        return output

    @override
    def resume_writing(self) -> None:
        """Resume writing. Called when the transport's buffer has space."""
        self.outbox.took()
        self._pinged_at = self._unfinished_since = self.guard.clock  # the server has read nothing until now
        super().resume_writing()

    # The application

    async def _run(self) -> None:
        """Run the application, then end the connection."""
        application, request = self.table.websocket, self.outbox.request
        try:
            if application is not None:
                await application(self.outbox)
        except Exception as exc:
            reply = failure(exc, "WebSocket", request.path)
            if self._answer is not None:
                self.refuse(reply)
        finally:
            self._fail_handshake()
        if self._closes_at == inf:
            self.transport.close()

    def _fail_handshake(self) -> None:
        """Reject a handshake to which the application didn't respond."""
        if self._answer is not None:
            self.refuse(_NO_ANSWER)

    def refuse(self, response: Response) -> None:
        """Reject the handshake with an HTTP response, and close the connection."""
        self._answer = None
        if not self.transport.is_closing():
            self.transport.write(self.guard.heads.reply(response, keep_alive=False))
            self.transport.close()

    def _send_response(self, response: HandshakeReply) -> None:
        self._conn.send_response(response)
        self._flush()

    def hang_up(self) -> None:
        """Make `receive` return None. Called when the socket is closed."""
        self._messages.put_nowait(None)

    async def receive(self) -> str | bytes | None:
        """Return the next message for the application. Resume reading after the last one."""
        message = await self._messages.get()
        if self.read_paused and self._messages.empty():
            self._schedule_parsing()  # An application that takes every message must not block the event loop.
        return message

    def accept(self, subprotocol: str) -> None:
        """Complete the handshake, and parse the frames that arrived before."""
        answer, self._answer = self._answer, None
        if answer is None or self.transport.is_closing():
            return
        if subprotocol:
            answer.headers["Sec-WebSocket-Protocol"] = subprotocol
        self._is_open = True
        self._pinged_at = self.guard.clock
        self._send_response(answer)
        self.proceed()

    def open_tunnel(self, subprotocol: str) -> None:
        """Complete the handshake for another server, which reads and writes the frames."""
        self._tunnel = FrameScanner()
        self.accept(subprotocol)

    def pass_on(self, data: bytes) -> None:
        """Write bytes of the other server."""
        if self._tunnel is not None and not self.transport.is_closing():
            self.transport.write(data)
            self._closed |= self._tunnel.feed(data)

    async def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake as soon as the transport has space."""
        await self.room.wait()
        if not self._is_open or self._closed or self.transport.is_closing():
            return
        self._conn.send_close(code, reason)
        self._flush()
        self._closed = True
        self._closes_at = self._loop.time() + CLOSE_TIMEOUT
        self.proceed()


class FrameScanner:
    """Finds out where a server's frames end (RFC 6455 §5.2). They aren't masked."""

    __slots__ = ("_head", "_rest")

    def __init__(self) -> None:
        self._head = b""
        """Bytes of an incomplete frame head."""
        self._rest = 0
        """Bytes of the current frame that are still to come."""

    @property
    def is_between_frames(self) -> bool:
        """Whether the last frame is complete."""
        return not (self._head or self._rest)

    def feed(self, data: bytes) -> bool:
        """Read the next bytes. Return whether a close frame begins in them."""
        data, at, closes = self._head + data, self._rest, False
        while at + 1 < len(data):
            size = data[at + 1]
            end = at + 2 + _LENGTHS.get(size, 0)
            if end > len(data):
                break
            closes |= data[at] & 0xF == Opcode.CLOSE
            at = end + (size if end == at + 2 else int.from_bytes(data[at + 2 : end]))
        self._head, self._rest = data[at:], max(0, at - len(data))
        return closes


_LENGTHS = {126: 2, 127: 8}
"""Bytes of an extended length, by the length in the second byte of a frame."""


def _wire_size(frame: Frame) -> int:
    """Return the size of a client's frame in bytes: head, mask, and payload."""
    size = len(frame.data)
    return 6 + size + (0 if size < 126 else 2 if size < 65536 else 8)
