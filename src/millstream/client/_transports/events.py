"""Messages from event streams, across reconnections."""

import asyncio
from collections import deque

from millstream._backoff import retry_delay
from millstream._http.client.body import Body
from millstream._http.client.connection import too_large
from millstream._protocol.errors import ProtocolError
from millstream._protocol.jsonrpc import Envelope, read
from millstream._protocol.sse import Decoder, SseEvent
from millstream.client._errors import BadAnswer
from millstream.client._transports.transport import SkipLog, answered_id

_MIN_WAIT = 0.1
"""Minimum seconds between connections, even if the server requests less."""


class EventReader:
    """Reads successive connections of one stream, and keeps the last event id and the delay between them."""

    __slots__ = (
        "_counted_bytes", "_decoder", "_events", "_max", "_request_id", "_retry_ms", "_skip", "_stream", "attempts",
        "last_event_id", "response",
    )  # fmt: skip

    def __init__(self, max_bytes: int, skip: SkipLog | None = None, request_id: int = 0) -> None:
        self._max = max_bytes
        self._skip = skip or SkipLog()
        self._request_id = request_id
        self._retry_ms: int | None = None
        self.last_event_id = ""
        self.attempts = 0
        """Connection attempts since the last message."""
        self._stream: Body | None = None
        self._decoder = Decoder(max_bytes)
        self._events: deque[SseEvent] = deque()
        self._counted_bytes = 0
        """Bytes of the event in arrival."""
        self.response: Envelope | None = None
        """The response, if it arrived on another stream."""

    def set_response(self, answer: Envelope) -> None:
        """Provide the response from another stream, and stop reading."""
        self.response = answer
        self.close()

    def attach(self, stream: Body) -> None:
        """Read from this connection from now on."""
        self.close()
        self._stream = stream
        self._decoder = Decoder(self._max)
        self._events.clear()

    def close(self) -> None:
        """Close the current connection."""
        if self._stream is not None:
            self._stream.count(self._counted_bytes, 0)
            self._counted_bytes = 0
            self._stream.close()
            self._stream = None

    async def event(self) -> SseEvent | None:
        """Return the next event, or None when the connection has ended.

        Raises:
            TooLarge: the event is larger than allowed.
            ConnectionLost: the connection broke.
        """
        while not self._events:
            stream = self._stream
            chunk = await stream.read() if stream is not None else b""
            if stream is None or stream is not self._stream or not chunk:
                return None
            try:
                self._events.extend(self._decoder.feed(chunk))
            except ProtocolError as exc:
                raise too_large(self._max) from exc
            self._counted_bytes = stream.count(self._counted_bytes, self._decoder.unfinished_bytes)
            if self._decoder.retry_ms is not None:
                self._retry_ms = self._decoder.retry_ms
            if not self._events:
                self.last_event_id = self._decoder.last_event_id or self.last_event_id
            lines, self._decoder.line_count = self._decoder.line_count, 0
            if pause := stream.inflow.lines.take(lines, asyncio.get_running_loop().time()):
                await asyncio.sleep(pause)
        event = self._events.popleft()
        self.last_event_id = event.id or self.last_event_id
        return event

    async def message(self) -> Envelope | None:
        """Return the next message, or None when the connection has ended. Skips other events.

        Raises:
            BadAnswer: the response is invalid.
        """
        while (event := await self.event()) is not None:
            if event.data and event.event == "message":
                self.attempts = 0
                data = event.data.encode()
                try:
                    return read(data, allow_null=True)
                except ProtocolError as exc:
                    if self._request_id and answered_id(data) == self._request_id:
                        raise BadAnswer(f"The server sent an invalid response. {exc.message}.") from exc
                    self._skip(exc.message, data)
        return self.response

    def wait(self, first: float, longest: float) -> float:
        """Return the seconds until the next connection: the server's `retry`, or exponential backoff, with jitter."""
        if self._retry_ms is not None and self.attempts == 0:
            return max(self._retry_ms / 1000, _MIN_WAIT)
        return max(retry_delay(self.attempts, first, longest), min((self._retry_ms or 0) / 1000, longest))
