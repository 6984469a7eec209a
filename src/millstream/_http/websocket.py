"""WebSockets of our own server (`DirectSocket`) and of ASGI servers (`AsgiSocket`).

Their handler accepts or refuses the handshake, and then `run`s a coroutine that receives messages. The messages that it
sends are complete texts, followed by a close frame.

Events and notifications are unsolicited: a peer with too many unread bytes of them is cut off as slow. Answers aren't
counted, because a peer may request a lot over a slow connection. Instead, reading pauses while a peer doesn't read its
answers (`drain`).
"""

import asyncio
from collections import deque
from collections.abc import Collection, Coroutine
from typing import Any, Generic, Protocol, TypeVar

from msgspec import field

from millstream._http.asgi import Receive, Scope, Send, header_list, no_peer
from millstream._http.message import LARGE, CloseSignal, CompactEvent, HttpRequest, LastFrame, Response
from millstream._override import override

Item = TypeVar("Item")


class CompactQueue(Generic[Item]):
    """An `asyncio.Queue` for a single reader."""

    __slots__ = ("_items", "_news")

    def __init__(self) -> None:
        self._items: deque[Item] | None = None
        self._news = CompactEvent()

    def empty(self) -> bool:
        """Return whether the queue is empty."""
        return self._items is None

    def put_nowait(self, item: Item) -> None:
        """Append an item."""
        if self._items is None:
            self._items = deque()
        self._items.append(item)
        self._news.notify()

    async def get(self) -> Item:
        """Wait for an item. Remove and return the oldest."""
        while self._items is None:
            await self._news.wait_changed()
        item = self._items.popleft()
        if not self._items:
            self._items = None
        return item


GOING_AWAY = 1001
UNSUPPORTED_DATA = 1003
POLICY_VIOLATION = 1008
TOO_BIG = 1009
INTERNAL = 1011
SERVICE_RESTART = 1012
TRY_AGAIN_LATER = 1013
SLOW = "slow"


class SocketBase(CloseSignal, eq=False, kw_only=True):
    """One WebSocket, and a `Sink` for unsolicited messages. Writes after the close are dropped."""

    request: HttpRequest
    """The opening handshake."""
    limit: int
    """Maximum bytes of unsolicited messages that the peer hasn't accepted."""
    grace: float
    """Seconds to send written messages and the close frame after the close."""
    _farewell: tuple[int, str] | None = None

    @property
    def buffered(self) -> int:
        """Bytes of unsolicited messages that the peer hasn't accepted."""
        raise NotImplementedError

    def end(self, code: int, reason: str = "") -> None:
        """Close after sending written messages and the close frame, within the grace time. Idempotent."""
        self._end((code, reason))

    def close(self) -> None:
        """End all writing. Called when the peer is too slow or there is nothing more to write."""
        if self.buffered:
            self.cut()
        else:
            self.end(GOING_AWAY)

    def cut(self) -> None:
        """Drop queued messages of a slow peer. The close frame gives the reason."""
        self._drop()
        self.end(TRY_AGAIN_LATER, SLOW)

    @override
    def connection_lost(self) -> None:
        """Stop sending. Called when the peer has disconnected or the closing handshake has begun."""
        self._drop()
        self._end(None)

    def _end(self, farewell: tuple[int, str] | None) -> None:
        if not self.closed:
            self._farewell = farewell
            super().connection_lost()
            self._stop()

    def _drop(self) -> None:
        """Drop queued messages."""

    def _stop(self) -> None:
        """Wake all readers and waiters when the socket is closed."""

    @property
    def subprotocols(self) -> list[str]:
        """The subprotocols that the client offers."""
        values = [value.decode("latin-1") for name, value in self.request.raw_headers if name == _SUBPROTOCOLS]
        return [each.strip() for each in ",".join(values).split(",")]


_SUBPROTOCOLS = b"sec-websocket-protocol"


class DirectWire(Protocol):
    """The connection of a `DirectSocket`."""

    transport: asyncio.Transport

    def count_unsent(self, size: int) -> None:
        """Count a large message that was just written, until the client has read it."""

    @property
    def room(self) -> CompactEvent:
        """An event that is set while the transport has space."""
        ...

    def accept(self, subprotocol: str) -> None:
        """Complete the handshake."""

    def refuse(self, response: Response) -> None:
        """Reject the handshake."""

    async def receive(self) -> str | bytes | None:
        """Return the next message, or None after `hang_up`."""

    def open_tunnel(self, subprotocol: str) -> None:
        """Complete the handshake for another server. From now on, `receive` returns the client's bytes unread."""

    def pass_on(self, data: bytes) -> None:
        """Write bytes of the other server, in any pieces."""

    def shutdown(self) -> None:
        """Close without waiting for the client. It gets a close frame, if the last frame is complete."""

    def hang_up(self) -> None:
        """Make `receive` return None."""

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame as soon as the transport has space."""


_last = LastFrame()


class DirectSocket(SocketBase, eq=False):
    """A WebSocket of our own server, which writes frames directly to the transport, under its flow control.

    ASGI's `send` is a coroutine, so a broadcast would wake one task per subscriber and message. Here, a message is
    framed once, and the same bytes are written to every subscribed socket, as an `HttpReplyStream` does with events.
    The transport's buffered bytes measure how far a peer is behind.
    """

    wire: DirectWire
    asked: int = 0
    """Maximum bytes of responses in the transport's buffer."""

    async def accept(self, subprotocol: str) -> None:
        """Complete the handshake, with a subprotocol or an empty string."""
        self.wire.accept(subprotocol)

    async def refuse(self, response: Response) -> None:
        """Reject the handshake."""
        self.wire.refuse(response)

    async def receive(self) -> str | bytes | None:
        """Return the next message, text or binary, or None when the socket is closed."""
        return await self.wire.receive()

    @property
    @override
    def buffered(self) -> int:
        return 0 if self.closed else max(0, self.wire.transport.get_write_buffer_size() - self.asked)

    def write(self, message: bytes, /) -> bool:
        """Send an unsolicited message. Return False if the socket is closed, or was cut because the peer is slow."""
        if self.closed or not message:
            return not self.closed
        transport = self.wire.transport
        if transport.get_write_buffer_size() - self.asked > self.limit:
            self.cut()
            return False
        if _last.data is not message:
            _last.framed = text_frame(message)
            _last.data = message
        transport.write(_last.framed)
        if len(message) > LARGE:
            self.wire.count_unsent(len(message))
        return True

    def answer(self, message: bytes) -> bool:
        """Send a message that the peer requested. Return False if the socket is closed."""
        if self.closed:
            return False
        data = text_frame(message)
        self.wire.transport.write(data)
        if len(data) > LARGE:
            self.wire.count_unsent(len(data))
        if not self.wire.room.is_set():
            self.asked += len(data)
        return True

    async def drain(self) -> None:
        """Wait until the peer accepts bytes again, or the socket is closed."""
        room = self.wire.room
        while not (room.is_set() or self.closed):
            await room.wait_changed()

    def took(self) -> None:
        """Resume writing. Called when the transport has space again."""
        self.asked = 0

    @override
    def _stop(self) -> None:
        self.wire.hang_up()
        self.wire.room.notify()

    async def run(self, reading: Coroutine[Any, Any, None]) -> None:
        """Read until the socket is closed, then send the close frame within the grace time."""
        try:
            await reading
        finally:
            try:
                async with asyncio.timeout(self.grace):
                    if self._farewell is not None:
                        await self.wire.close(*self._farewell)
            except TimeoutError:
                pass  # the peer didn't read the rest in time
            self.connection_lost()


def text_frame(message: bytes) -> bytes:
    """Return a complete text message as one uncompressed server frame (RFC 6455 §5.2)."""
    size = len(message)
    if size < 126:
        return b"\x81%c%b" % (size, message)
    if size < 65536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2), message)
    return b"\x81\x7f%b%b" % (size.to_bytes(8), message)


_HIGH_WATER = 64 * 1024


class AsgiSocket(SocketBase, eq=False):
    """A WebSocket over ASGI: a bounded queue of whole text messages, which `run` sends until the socket is closed.

    ASGI doesn't expose the socket, so a peer is treated as slow only while a `send` blocks and messages wait behind it.
    Of these, only unsolicited messages are counted.
    """

    receive_message: Receive
    send: Send
    extensions: Collection[str] = ()
    """ASGI extensions of the server."""
    _queue: deque[tuple[bytes, int]] = field(default_factory=deque[tuple[bytes, int]])
    """Queued messages, each with its bytes counted as unsolicited."""
    _waiting: int = 0
    _unasked: int = 0
    _held: bool = False
    _deadline: asyncio.Timeout | None = None
    _news: CompactEvent = field(default_factory=CompactEvent)

    async def accept(self, subprotocol: str) -> None:
        """Complete the handshake, with a subprotocol or an empty string."""
        try:
            await self.send({"type": "websocket.accept", "subprotocol": subprotocol or None})
        except OSError:
            self.connection_lost()

    async def refuse(self, response: Response) -> None:
        """Reject the handshake with a response if the server supports that, else with the server's own 403."""
        if "websocket.http.response" not in self.extensions:
            await self.send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        headers = header_list(response.head)
        await self.send({"type": "websocket.http.response.start", "status": response.status, "headers": headers})
        await self.send({"type": "websocket.http.response.body", "body": response.body, "more_body": False})

    async def receive(self) -> str | bytes | None:
        """Return the next message, text or binary, or None when the socket is closed."""
        message = await self.receive_message()
        if message["type"] != "websocket.receive":
            return None
        text: str | None = message.get("text")
        return bytes(message.get("bytes") or b"") if text is None else text

    @property
    @override
    def buffered(self) -> int:
        """Bytes of unsolicited messages behind one that the peer hasn't accepted."""
        return self._unasked if self._held else 0

    def write(self, message: bytes, /) -> bool:
        """Send an unsolicited message. Return False if the socket is closed, or was cut because the peer is slow."""
        if self._held and self._unasked > self.limit:
            self.cut()
        self._unasked += len(message)
        return self._put(message, len(message))

    def answer(self, message: bytes) -> bool:
        """Send a message that the peer requested. Return False if the socket is closed."""
        return self._put(message, 0)

    def _put(self, message: bytes, unasked: int) -> bool:
        if self.closed or not message:
            return not self.closed
        self._queue.append((message, unasked))
        self._waiting += len(message)
        self._news.notify()
        return True

    async def drain(self) -> None:
        """Wait until the peer accepts bytes again, or the socket is closed."""
        while self._waiting > _HIGH_WATER and not self.closed:
            await self._news.wait_changed()

    @override
    def _drop(self) -> None:
        self._queue.clear()

    @override
    def _stop(self) -> None:
        self._news.notify()
        if self._deadline is not None:
            self._deadline.reschedule(asyncio.get_running_loop().time() + self.grace)

    async def run(self, reading: Coroutine[Any, Any, None]) -> None:
        """Read and send until the socket is closed and empty, or the peer has disconnected or doesn't read in time."""
        reader = asyncio.create_task(reading)
        try:
            await self._run()
        finally:
            if not reader.done():
                reader.cancel()
            await asyncio.wait((reader,))
        if not reader.cancelled():
            reader.result()

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(self.grace if self.closed else None) as self._deadline:
                while not self.closed or self._queue:
                    if not self._queue:
                        await self._news.wait_changed()
                        continue
                    message, unasked = self._queue.popleft()
                    self._waiting -= len(message)
                    self._unasked -= unasked
                    self._held = True
                    await self.send({"type": "websocket.send", "text": message.decode()})
                    self._held = False
                    if self._waiting <= _HIGH_WATER:
                        self._news.notify()
                if self._farewell is not None:
                    code, reason = self._farewell
                    await self.send({"type": "websocket.close", "code": code, "reason": reason})
        except (OSError, RuntimeError):
            # ASGI 2.4 servers raise OSError if the peer has disconnected. Our own deadline raises TimeoutError, which
            # is also an OSError. uvicorn raises RuntimeError after it has closed the connection itself, because a ping
            # wasn't answered.
            pass
        finally:
            self._deadline = None
            self.connection_lost()


Socket = DirectSocket | AsgiSocket


def asgi_handshake(scope: Scope, root_path: str) -> HttpRequest:
    """Return the opening handshake of an ASGI scope. `root_path` is the prefix that a proxy removed, if the ASGI server
    doesn't know it.
    """
    root = scope.get("root_path") or root_path
    headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    client, scheme = scope.get("client"), scope.get("scheme", "ws").replace("ws", "http")
    return HttpRequest(
        "GET", scope["path"].removeprefix(root), headers, dict(headers),
        peer=client[0] if client else no_peer(scope), root_path=root, scheme=scheme,
    )  # fmt: skip
