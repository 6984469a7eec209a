"""A streamed reply in the lane: chunks straight to the transport, under its flow control."""

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl

from millstream._http.stream_end import Ending, LastFrame

_last = LastFrame()


class LaneSink(Ending):
    """The `Sink` of the lane. A reader more than `limit` bytes behind is cut off."""

    __slots__ = ("_chunked", "_flow", "_limit", "_mute", "_transport")

    def __init__(
        self, transport: asyncio.Transport, flow: FlowControl, *, limit: int, chunked: bool, mute: bool = False
    ) -> None:
        super().__init__()
        self._transport = transport
        self._flow = flow
        self._limit = limit
        self._chunked = chunked
        self._mute = mute
        """The reply to HEAD: headers only."""

    @property
    def buffered(self) -> int:
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Write a chunk; cut the peer when it is already too far behind."""
        if self.closed or not data or self._mute:
            return
        transport = self._transport
        if transport.get_write_buffer_size() > self._limit:
            self.cut()
        elif not self._chunked:
            transport.write(data)
        else:
            if _last.data is not data:
                _last.framed = b"%x\r\n%b\r\n" % (len(data), data)
                _last.data = data
            transport.write(_last.framed)

    async def drain(self) -> None:
        while self._flow.write_paused and not self.closed:
            await self._flow.drain()

    def close(self) -> None:
        """End the reply with the final chunk."""
        if self.closed:
            return
        if self._chunked and not self._mute:
            self._transport.write(b"0\r\n\r\n")
        self.lost()

    def cut(self) -> None:
        """End it without the final chunk and drop what is buffered."""
        self._transport.abort()
        self.lost()
