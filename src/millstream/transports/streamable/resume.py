"""A broken stream of a call, read again: what the log has behind an event id, then what comes, up to its end."""

from millstream.http.message import STREAM_HEAD, Request, Response, Sink
from millstream.protocol import sse
from millstream.protocol.errors import INVALID_REQUEST
from millstream.server.call_log import END, event_id, log_name
from millstream.server.calls.sessions import Session
from millstream.stores.base import Gap, Position
from millstream.transports.refusals import refusal
from millstream.transports.streamable.exchange import EMPTY_STREAM, Endpoint

UNKNOWN_EVENT = refusal(400, INVALID_REQUEST, "Unknown Last-Event-ID: open a new stream without it")


class Resumption:
    """The streams of calls that are read again here."""

    __slots__ = ("_endpoint", "_readers")

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._readers: dict[str, Sink] = {}

    async def serve(
        self, request: Request, session: Session, owner: str, stream: str, position: Position
    ) -> Response | None:
        """Replay what the log has after a position, then what the bus brings, up to the last entry."""
        name = log_name(session.id, stream)
        store = self._endpoint.services.store
        early: list[bytes] | None = []
        reader: _Reader | None = None

        def receive(data: bytes) -> None:
            if early is not None:
                early.append(data)
            elif reader is not None:
                reader.take(int.from_bytes(data[:8], "big"), data[8:])

        unsubscribe = store.bus.subscribe(name, receive)
        try:
            try:
                entries = await store.log.read(name, position)
                if not entries and await self._ended(name, position):
                    return EMPTY_STREAM
            except Gap:
                return UNKNOWN_EVENT
            self._take_over(name)
            sink = self._readers[name] = request.open(200, STREAM_HEAD)
            self._endpoint.streams.add(sink, owner)
            reader = _Reader(sink, stream, position)
            sink.write(sse.COMMENT)
            while entries:
                for entry in entries:
                    reader.take(entry.position.offset, entry.data)
                await sink.drain()
                entries = await store.log.read(name, reader.position)
            held, early = early or [], None
            for data in held:
                receive(data)
            await sink.wait_closed()
        finally:
            unsubscribe()
            if reader is not None and self._readers.get(name) is reader.sink:
                del self._readers[name]
        return None

    async def _ended(self, name: str, position: Position) -> bool:
        """Whether the entry at a position is the last one of its stream."""
        log = self._endpoint.services.store.log
        at = await log.read(name, Position(position.epoch, position.offset - 1))
        return bool(at) and at[0].data[:1] == END

    def _take_over(self, name: str) -> None:
        """Whoever else carries the stream stops: each message goes to one connection."""
        reader = self._readers.pop(name, None)
        if reader is not None:
            reader.close()
        line = self._endpoint.streams.lines.get(name)
        if line is not None:
            line.leave()


class _Reader:
    """Writes log entries to a sink, each once, and closes it behind the last."""

    __slots__ = ("_stream", "position", "sink")

    def __init__(self, sink: Sink, stream: str, position: Position) -> None:
        self.sink = sink
        self._stream = stream
        self.position = position

    def take(self, offset: int, data: bytes) -> None:
        if offset <= self.position.offset:
            return
        self.position = Position(self.position.epoch, offset)
        message = data[1:]
        if message:
            self.sink.write(sse.encode_message(message, event_id(self._stream, self.position)))
        if data[:1] == END:
            self.sink.close()
