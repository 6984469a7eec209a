"""Resuming a call's broken stream: the log after an event id, then new messages, up to the end."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence

from millstream._http.message import STREAM_HEAD, HttpRequest, Response, Sink
from millstream._protocol import sse
from millstream._protocol.errors import INVALID_REQUEST
from millstream._server.call_log import END, OPEN, close_abandoned, event_id, log_name, writer_of
from millstream._server.calls.services import expiry_of
from millstream._server.calls.sessions import Session
from millstream._server.peers import ReplyTakeover
from millstream._stores.base import Entry, Gap, Position
from millstream._stores.tail import Tail
from millstream._transports.refusals import TOO_MANY_STREAMS, refusal
from millstream._transports.streamable.exchange import EMPTY_STREAM, StreamableEndpoint

UNKNOWN_EVENT = refusal(400, INVALID_REQUEST, "Unknown Last-Event-ID. Open a new stream without it.")


class Resumption:
    """The resumed streams of calls on this worker."""

    def __init__(self, endpoint: StreamableEndpoint) -> None:
        self._endpoint = endpoint
        self._readers: dict[str, _Reader] = {}
        peers = endpoint.services.peers
        peers.on(ReplyTakeover, self._on_takeover, own=True)
        peers.on_interruption(self._place_all)
        peers.on_workers(lambda: self._close_abandoned(dict(self._readers)))

    async def serve(self, request: HttpRequest, session: Session, stream: str, position: Position) -> Response | None:
        """Send the log after a position, then new entries, up to the last one."""
        services, name = self._endpoint.services, log_name(session.id, stream)
        log = services.store.log
        try:
            if not await log.read(name, position, 1) and await self._is_end(name, position):
                return EMPTY_STREAM
        except Gap:
            return UNKNOWN_EVENT
        self._take_over(name)
        reader = self._readers[name] = _Reader(writer_of(stream))
        try:
            # This runs before the client can send a request, because later readers take over from this one.
            if not await services.peers.tell(ReplyTakeover(name, reader.id)):
                reader.placed = True
            if self._readers.get(name) is not reader:  # a newer reader took over in between
                return EMPTY_STREAM
            if self._endpoint.streams.full(request):  # many may have waited for the store and the workers
                return TOO_MANY_STREAMS
            reader.sink = request.open(200, STREAM_HEAD)
            self._endpoint.streams.add(reader.sink, request, until=expiry_of(request.principal))
            await self._read(reader, reader.sink, stream, name, position)
        finally:
            if self._readers.get(name) is reader:
                del self._readers[name]
        return None

    async def _read(self, reader: "_Reader", sink: Sink, stream: str, name: str, position: Position) -> None:
        """Write log entries and new ones until the stream ends or is taken over."""
        sink.write(sse.COMMENT)

        def take(entries: Sequence[Entry]) -> None:
            for entry in entries:
                mark, message = entry.data[:1], entry.data[1:]
                if message and mark != OPEN:
                    sink.write(sse.encode_message(message, event_id(stream, entry.position)))
                if mark == END:
                    sink.close()

        def close_on_gap(gap: Gap) -> None:  # clients that resume after the last event get the error
            sink.close()

        tail = Tail(self._endpoint.services.store.log, name, position, take, close_on_gap, drain=sink.drain)
        following = asyncio.create_task(tail.run())
        try:
            await tail.catch_up()
            if not sink.closed:
                await self._close_abandoned({name: reader})
            await sink.wait_closed()
        finally:
            tail.stop()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _is_end(self, name: str, position: Position) -> bool:
        """Return whether the entry at a position is the last one of its stream."""
        newest = await self._endpoint.services.store.log.newest(name, 1)
        return bool(newest) and newest[0].position == position and newest[0].data[:1] == END

    # One message, one connection

    def _take_over(self, name: str) -> None:
        """Stop other connections on this worker that carry the stream."""
        reader = self._readers.pop(name, None)
        if reader is not None and reader.sink is not None:
            reader.sink.close()
        line = self._endpoint.streams.lines.get(name)
        if line is not None:
            line.leave()

    def _on_takeover(self, message: ReplyTakeover, _worker: str) -> None:
        """Process a takeover. All workers receive takeovers in the same order, and the last one wins."""
        reader = self._readers.get(message.log)
        if reader is None or (reader.placed and message.id != reader.id):
            self._take_over(message.log)
        elif message.id == reader.id:
            reader.placed = True

    def _place_all(self) -> None:
        """Stop waiting for takeover messages that may have been lost."""
        for reader in self._readers.values():
            reader.placed = True

    # Workers that are gone

    async def _close_abandoned(self, readers: Mapping[str, "_Reader"]) -> None:
        """End the streams whose worker is gone."""
        services = self._endpoint.services
        workers, lines = services.store.workers, self._endpoint.streams.lines
        elsewhere = {name: reader.writer for name, reader in readers.items() if name not in lines}
        gone = {each for each in set(elsewhere.values()) if each != workers.me and not await workers.alive(each)}
        for name, writer in elsewhere.items():
            if writer in gone:
                await close_abandoned(services.store, name)


class _Reader:
    """A connection on this worker that reads a stream."""

    __slots__ = ("id", "placed", "sink", "writer")

    def __init__(self, writer: str) -> None:
        self.sink: Sink | None = None
        """None until the other workers are notified."""
        self.writer = writer
        """The worker that runs the call."""
        self.id: int = secrets.randbits(63)
        """The id that other workers know."""
        self.placed = False
        """Whether this worker has received its own takeover. Later ones are newer."""
