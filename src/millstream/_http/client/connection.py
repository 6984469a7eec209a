"""An HTTP/1.1 connection that sends one request at a time as bytes.

llhttp parses the replies. An event stream is returned as soon as its head has arrived, any other reply when it's
complete (RFC 9112 §6).
"""

import asyncio
import select
import socket
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from msgspec import Struct

from millstream._http.client.body import Body
from millstream._http.client.errors import ClientError, ConnectionLost, InvalidResponse, TooLarge
from millstream._http.client.inflow import Inflow
from millstream._http.client.url import Url
from millstream._http.message import MAX_FRAMING, CompactEvent
from millstream._override import override

_MAX_DIGITS = 10
_MAX_HEAD = 64 * 1024
"""Maximum bytes of heads before a body, because the parser buffers them."""
_MAX_WRITE = 16 * 1024
"""Maximum bytes that a socket's buffer always takes at once."""
_MAX_DISCARD = 256 * 1024
"""Maximum size of an unread body to discard so that the connection can be reused, in bytes."""
_CODINGS = frozenset((b"deflate", b"gzip", b"x-gzip"))
_GZIP_OR_ZLIB = zlib.MAX_WBITS + 32
_FIRST = frozenset((0x1F & 0xF, 8))
"""Low bits of the first byte in gzip and zlib data."""
_DISCARD_TIMEOUT = 1.0
"""Maximum seconds to wait until such a body has ended."""
_KEEP_ALIVE_OPTIONS = (("TCP_KEEPIDLE", 30), ("TCP_KEEPALIVE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
"""TCP keep-alive: idle seconds, interval, and number of probes. `TCP_KEEPALIVE` is `TCP_KEEPIDLE` on macOS."""


class HttpReply(Struct, eq=False):
    """A server's response: ``reply.status, reply.body``.

    Event streams have a `stream` instead of a body, and so has a reply that switches protocols (RFC 9110 §7.8).
    """

    status: int
    headers: dict[bytes, bytes]
    """Last value of each header, by lower-case name. `set-cookie` has all values, one per line."""
    body: bytes = b""
    stream: Body | None = None
    final_url: Url | None = None
    """The final URL, if the request was redirected."""

    def header(self, name: bytes) -> str:
        """Return a header as text, or an empty string if it's missing.

        Args:
            name: Name in lower case, such as ``b"content-type"``.
        """
        return self.headers.get(name, b"").decode("latin-1")

    def discard(self) -> None:
        """Close the stream, if there's one."""
        if self.stream is not None:
            self.stream.close()

    @property
    def media_type(self) -> str:
        """The `Content-Type` without parameters."""
        return self.header(b"content-type").partition(";")[0].strip().lower()

    @property
    def is_temporary(self) -> bool:
        """Whether the status means that the server is temporarily unavailable."""
        return self.status >= 500 or self.status == 429

    @property
    def retry_after(self) -> float | None:
        """The seconds in the `Retry-After` header (RFC 9110 §10.2.3), or None."""
        text = self.header(b"retry-after").strip()
        if text.isascii() and text.isdecimal() and len(text) < _MAX_DIGITS:
            return float(text)
        from email.utils import parsedate_to_datetime  # noqa: PLC0415  most servers send seconds

        try:
            return max(0.0, round(parsedate_to_datetime(text).timestamp() - time.time()))
        except (ValueError, OverflowError):
            return None


class HttpConnection(asyncio.Protocol):
    """A connection for one request at a time, created by the pool."""

    closed = False
    poller: "select.poll | None" = None
    """Reports data that has arrived but that the event loop hasn't read yet."""
    reply_count = 0
    """Number of replies received."""
    has_answered = False
    """Whether the server has replied on an earlier connection."""
    free_since = 0.0
    _transport: asyncio.Transport
    # Reply
    _waiter: asyncio.Future[HttpReply] | None = None
    _owner = ""
    _reply: HttpReply | None = None
    _body: bytes | bytearray = b""
    _size = 0
    """Bytes of the body so far."""
    _counted_bytes = 0
    """Bytes of the body counted as unfinished."""
    _framing_bytes = 0
    """Bytes of the head, or of the body's framing since its first piece."""
    _framed_since = 0.0
    """Time at which a stream's framing bytes were last reset."""
    _is_head = False
    """Whether the reply has no body, regardless of its head (RFC 9110 §9.3.2)."""
    tunnel: asyncio.Transport | None = None
    """The transport to the server, after a proxy has accepted CONNECT (RFC 9110 §9.3.6)."""
    _connects = False
    _switches = False
    """Whether the server may switch protocols."""
    _switched: Body | None = None
    """What the server sends after it has switched protocols."""
    _inflater: Any = None
    """Decompresses the body. Servers may compress without a request (RFC 9110 §12.5.3)."""
    _inflates: bool = False
    """Whether some of the body has arrived."""
    _reply_began = False
    _is_large = False
    """Whether the request may take several writes."""
    _ends_with_connection = False
    """Whether the body has no length and ends with the connection."""
    _discards = False
    """Whether the rest of the body has no reader."""
    _timer: asyncio.TimerHandle | None = None
    _error: ClientError | None = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        max_body: int,
        on_end: Callable[["HttpConnection"], None],
        inflow: Inflow,
        *,
        decompress: bool = False,
    ) -> None:
        self._loop = loop
        self._decompresses = decompress
        self._max_body = max_body
        self._on_end = on_end
        """Callback for when the connection becomes free or is closed."""
        self._inflow = inflow
        self._parser = HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._room = CompactEvent()
        """Set while the transport has space."""
        self._room.set()

    # For the pool

    def send(self, data: bytes, owner: str, *, switches: bool = False) -> asyncio.Future[HttpReply]:
        """Write a caller's request. Return a future for its reply.

        Args:
            data: The complete request.
            owner: See `ConnectionPool.send`.
            switches: Whether the server may switch protocols.
        """
        waiter = self._waiter = self._loop.create_future()
        self._headers = {}
        self._owner = owner
        self._is_head = data.startswith(b"HEAD ")
        self._connects = data.startswith(b"CONNECT ")
        self._switches = switches
        self._is_large = len(data) > _MAX_WRITE
        self._size = self._framing_bytes = 0
        self._reply_began = False
        self._transport.write(data)
        return waiter

    @property
    def closed_before_reply(self) -> bool:
        """Whether the server closed a reused connection before the first byte of the reply."""
        return self.closed and self.reply_count > 0 and not self._reply_began

    def abort(self) -> None:
        """Close immediately, even during a request."""
        self._end(None)
        self._transport.abort()

    # For the body

    def pause(self) -> None:
        """Pause reading."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Resume reading."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    async def write(self, data: bytes) -> None:
        """Write to a server that has switched protocols, and wait until the transport has space."""
        if not self.closed:
            self._transport.write(data)
        while not (self._room.is_set() or self.closed):
            await self._room.wait_changed()

    def release(self) -> None:
        """Discard the rest of the body. If that completes soon, the connection is reused."""
        if self._switched is not None:
            self._end(None)
            self._transport.close()
            return
        self._discards = True
        self._size = 0
        self.resume()
        self._timer = self._loop.call_later(_DISCARD_TIMEOUT, self.abort)

    # From the transport

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        _enable_keep_alive(transport)
        peer = transport.get_extra_info("socket")
        if peer is not None and hasattr(select, "poll"):  # not on Windows
            self.poller = select.poll()
            self.poller.register(peer.fileno(), select.POLLIN)

    @override
    def pause_writing(self) -> None:
        self._room.clear()

    @override
    def resume_writing(self) -> None:
        self._room.set()

    @override
    def data_received(self, data: bytes) -> None:
        switched = self._switched
        if switched is not None:
            switched.feed(data)
            return
        if self._waiter is None and self._reply is None:
            self.abort()  # unsolicited data
            return
        self._reply_began = True
        before = self._size
        try:
            self._parser.feed_data(data)
            if self._reply is not None or self._waiter is not None:
                self._count(len(data), before)
        except TooLarge as exc:
            self._error = self._error or exc
        except HttpParserUpgrade as exc:
            if self._switched is None:
                self._error = InvalidResponse("The server switched protocols without being asked to.")
            else:
                self._switched.feed(data[exc.args[0] :])
        except HttpParserError as exc:
            if self._error is None and not self.closed:
                self._error = InvalidResponse(f"The server doesn't speak HTTP/1.1: {exc}.")
        if self._error is not None:
            self._end(self._error)
            self.abort()

    def _count(self, received: int, before: int) -> None:
        """Count the received bytes of an unfinished reply, as the server does for requests.

        Raises:
            TooLarge: There's too much framing for its body, or the server sends too much at a time.
        """
        size, reply = self._size, self._reply
        framing = max(0, self._framing_bytes + received - (size - before))
        self._framing_bytes = framing if before or not size else 0
        limit = MAX_FRAMING + size // 8 if size else _MAX_HEAD
        if self._framing_bytes > limit:
            now = self._loop.time()
            if reply is None or reply.stream is None or now - self._framed_since < 1:
                raise TooLarge(
                    f"The server's reply is larger than {limit // 1024} KiB, not counting its body. Its chunks may be "
                    "too small."
                )
            self._framed_since = now  # a stream that stays open for days has many chunks
            self._framing_bytes = 0
        if reply is not None and reply.stream is None:
            self._counted_bytes = self._inflow.count(self._counted_bytes, size, self._owner)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._reply is not None and self._ends_with_connection and exc is None:
            self._complete(reusable=False)
        self._end(None)

    # From the parser

    def on_message_begin(self) -> None:
        if self._waiter is None:  # the next caller would read what belongs to another one
            self._error = InvalidResponse("The server sent more than the response to the request.")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"set-cookie" and name in self._headers:
            value = self._headers[name] + b"\n" + value
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers = self._headers
        switches = status == 101 and self._switches
        if status < 200 and not switches:
            self._headers = {}
            return  # interim responses, such as 100 Continue, precede the reply
        reply = self._reply = HttpReply(status, headers)
        self._headers = {}  # trailers must not become headers
        self._inflater, self._inflates = None, False
        if self._decompresses and headers.get(b"content-encoding", b"").strip().lower() in _CODINGS:
            del headers[b"content-encoding"]
            self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
        length = headers.get(b"content-length")
        self._ends_with_connection = length is None and b"transfer-encoding" not in headers and status not in (204, 304)
        kind = headers.get(b"content-type")
        if self._connects and status < 300:
            self.tunnel = self._transport
            self._deliver(reply)
        elif self._is_head or self._connects:
            self._complete(reusable=False)  # without the body, for which the parser waits
        elif switches:
            self._switched = reply.stream = Body(self, self._inflow, self._owner)
            self._deliver(reply)
        elif kind != b"application/json" and reply.media_type == "text/event-stream":
            reply.stream = Body(self, self._inflow, self._owner)
            self._deliver(reply)
        elif length is not None and int(length) > self._max_body:
            self._error = too_large(self._max_body)

    def on_body(self, data: bytes) -> None:
        reply = self._reply
        if reply is None or self._error is not None:
            return
        if self._inflater is not None and not self._discards:
            data = self._decompress(self._inflater, data)
        self._size += len(data)
        if self._discards:
            if self._size > _MAX_DISCARD:
                self._loop.call_soon(self.abort)
        elif reply.stream is not None:
            reply.stream.feed(data)
        elif self._size > self._max_body:
            self._error = too_large(self._max_body)
        elif not self._body:
            self._body = data
        else:
            # A body in one piece, the usual case, isn't copied. Thousands of small pieces go into one buffer.
            self._body = self._body if isinstance(self._body, bytearray) else bytearray(self._body)
            self._body += data

    def _decompress(self, inflater: Any, data: bytes) -> bytes:
        # Some servers send deflate without its header.
        if not self._inflates and data[:1] and data[0] & 0xF not in _FIRST:
            inflater = self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._inflates = True
        try:
            found: bytes = inflater.decompress(data, self._max_body + 1)
        except zlib.error:
            self._error = InvalidResponse("The server's response can't be decompressed.")
            return b""
        if inflater.unconsumed_tail:
            self._error = too_large(self._max_body)
        return found

    def on_message_complete(self) -> None:
        if self._inflater is not None and self._inflates and not self._inflater.eof and not self._discards:
            self._error = self._error or InvalidResponse("The server's compressed response is incomplete.")
        if self._reply is not None and self._switched is None and self._error is None:
            self._complete(reusable=self._parser.should_keep_alive())

    # Ends

    def _clear(self) -> None:
        """Stop the timer and drop the part of the body that has arrived."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._body = b""
        if self._counted_bytes:
            self._counted_bytes = self._inflow.count(self._counted_bytes, 0, self._owner)

    def _deliver(self, reply: HttpReply) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(reply)

    def _complete(self, *, reusable: bool) -> None:
        reply, self._reply = self._reply, None
        assert reply is not None  # noqa: S101  both callers look
        body = bytes(self._body)
        self._clear()
        self._discards = False
        self.reply_count += 1
        if reply.stream is not None:
            reply.stream.end()
        else:
            reply.body = body
            self._deliver(reply)
        if self._is_large and self._transport.get_write_buffer_size():
            reusable = False  # the server could read the rest of the request as another one
        if not reusable and not self.closed:
            self.closed = True
            self._transport.close()
        self.free_since = time.monotonic()
        self._on_end(self)

    def _end(self, error: ClientError | None) -> None:
        """Wake all waiters when nothing more will arrive."""
        waiter, self._waiter = self._waiter, None
        reply, self._reply = self._reply, None
        was_closed, self.closed = self.closed, True
        self._clear()
        self._room.notify()
        if waiter is not None and not waiter.done():
            plain = self._transport.get_extra_info("sslcontext") is None
            is_new = not self.has_answered and not self.reply_count
            remedy = "If it serves https, write https:// in the URL." if plain and is_new else ""
            text = "The server closed the connection before it responded."
            waiter.set_exception(error or ConnectionLost(text, remedy=remedy))
        if reply is not None and reply.stream is not None:
            reply.stream.end(error or ConnectionLost("The server closed the connection in the middle of a stream."))
        if not was_closed:
            self._on_end(self)


def too_large(limit: int) -> TooLarge:
    """Return the error for a message over the limit."""
    text = f"The server sent a message of more than {limit:,} bytes."
    return TooLarge(text, remedy="To allow more, set Options.max_bytes.")


def _enable_keep_alive(transport: asyncio.BaseTransport) -> None:
    """Enable TCP keep-alive, to detect dead servers and keep idle connections open through NAT."""
    peer = transport.get_extra_info("socket")
    if peer is None or peer.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with suppress(OSError):  # the socket may be closed, or the system may lack an option
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE_OPTIONS:
            if (option := getattr(socket, name, None)) is not None:
                peer.setsockopt(socket.IPPROTO_TCP, option, value)
