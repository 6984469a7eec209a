"""A broken stream of a call, read again: what the log has behind an event id, then what comes, up to its end."""

import asyncio
from collections.abc import Sequence

from millstream.http.message import STREAM_HEAD, Request, Response, Sink
from millstream.protocol import sse
from millstream.protocol.errors import INVALID_REQUEST
from millstream.server.call_log import END, event_id, log_name
from millstream.server.calls.sessions import Session
from millstream.stores.base import Entry, Gap, Position
from millstream.stores.follow import Tail
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
        """Replay what the log has after a position, then what comes, up to the last entry."""
        name, store = log_name(session.id, stream), self._endpoint.services.store
        try:
            if not await store.log.read(name, position, 1) and await self._ended(name, position):
                return EMPTY_STREAM
        except Gap:
            return UNKNOWN_EVENT
        self._take_over(name)
        sink = self._readers[name] = request.open(200, STREAM_HEAD)
        self._endpoint.streams.add(sink, owner)
        sink.write(sse.COMMENT)

        def take(entries: Sequence[Entry]) -> None:
            for entry in entries:
                if len(entry.data) > 1:
                    sink.write(sse.encode_message(entry.data[1:], event_id(stream, entry.position)))
                if entry.data[:1] == END:
                    sink.close()

        def lost(gap: Gap) -> None:  # whoever resumes behind the last event is told
            sink.close()

        tail = Tail(store.log, name, position, take, lost, drain=sink.drain)
        following = asyncio.create_task(tail.run())
        try:
            await tail.catch_up()
            await sink.wait_closed()
        finally:
            tail.stop()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            if self._readers.get(name) is sink:
                del self._readers[name]
        return None

    async def _ended(self, name: str, position: Position) -> bool:
        """Whether the entry at a position is the last one of its stream."""
        log = self._endpoint.services.store.log
        at = await log.read(name, Position(position.epoch, position.offset - 1), 1)
        return bool(at) and at[0].data[:1] == END

    def _take_over(self, name: str) -> None:
        """Whoever else carries the stream stops: each message goes to one connection."""
        reader = self._readers.pop(name, None)
        if reader is not None:
            reader.close()
        line = self._endpoint.streams.lines.get(name)
        if line is not None:
            line.leave()
