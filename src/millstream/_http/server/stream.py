"""A streamed reply that writes chunks directly to the transport, under its flow control."""

import asyncio
from typing import Protocol

from millstream._http.close_signal import LARGE, CloseSignal, LastFrame

_last = LastFrame()


class Channel(Protocol):
    """The connection that a stream writes to."""

    write_paused: bool
    """Whether the client reads more slowly than the server writes."""

    @property
    def transport(self) -> asyncio.Transport:
        """The socket."""
        ...

    def count_unsent(self, size: int) -> None:
        """Count a large piece that was just written, until the client has read it."""

    async def wait_writable(self) -> None:
        """Wait until the client has read data, or the connection is lost."""


class HttpReplyStream(CloseSignal):
    """The `Sink` of our own server. A client more than `limit` bytes behind is cut off."""

    __slots__ = ("_bodiless", "_chunked", "_limit", "_protocol", "_transport")

    def __init__(self, protocol: Channel, *, limit: int, chunked: bool, mute: bool = False) -> None:
        super().__init__()
        self._protocol = protocol
        self._transport = protocol.transport
        self._limit = limit
        self._chunked = chunked
        self._bodiless = mute
        """Whether this is the reply to HEAD: headers only."""

    @property
    def buffered(self) -> int:
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Write a chunk. Cut off a client that is already too far behind."""
        if self.closed or not data or self._bodiless:
            return
        transport = self._transport
        if transport.get_write_buffer_size() > self._limit:
            self.cut()
        elif not self._chunked:
            transport.write(data)
            if len(data) > LARGE:
                self._protocol.count_unsent(len(data))
        else:
            if _last.data is not data:
                _last.framed = b"%x\r\n%b\r\n" % (len(data), data)
                _last.data = data
                _last.is_large = len(data) > LARGE
            transport.write(_last.framed)
            if _last.is_large:
                self._protocol.count_unsent(len(data))

    async def drain(self) -> None:
        protocol = self._protocol
        while protocol.write_paused and not self.closed:
            await protocol.wait_writable()

    def close(self) -> None:
        """End the reply with the final chunk."""
        if self.closed:
            return
        if self._chunked and not self._bodiless:
            self._transport.write(b"0\r\n\r\n")
        self.connection_lost()

    def cut(self) -> None:
        """End the reply without the final chunk, and drop buffered data."""
        self._transport.abort()
        self.connection_lost()
