"""GET and DELETE of Streamable HTTP: opening and resuming streams, and ending sessions."""

import secrets
from collections.abc import Iterable, Mapping, Sequence

from millstream._http.message import STREAM_HEAD, TEXT_HEAD, Handler, HttpRequest, Response, Sink
from millstream._protocol import sse
from millstream._protocol.admission import check_handshake_header, header_version
from millstream._protocol.errors import INVALID_REQUEST, SERVER_ERROR, ProtocolError
from millstream._protocol.metadata import ClientInfo
from millstream._protocol.revisions import names_per_request_era
from millstream._server.calls.services import (
    ANY_UPDATE,
    SESSION_OVER,
    Broadcast,
    ServerChange,
    Services,
    affected_uris,
    encode_change,
    expiry_of,
)
from millstream._server.calls.sessions import Session, SessionRecord
from millstream._server.peers import ReplyTakeover, SessionEnd, StandaloneTakeover
from millstream._stores.base import Entry, Gap, Position
from millstream._stores.tail import Tail
from millstream._transports.open_streams import (
    SESSION_NOT_FOUND,
    TOO_MANY_STREAMS,
    error_response,
    missing_session,
    no_stream,
    refusal,
)
from millstream._transports.streamable import END, OPEN, close_abandoned, event_id, log_name, parse_event_id, writer_of
from millstream._transports.streamable.sessions import EMPTY_STREAM, StreamableEndpoint

UNKNOWN_EVENT = refusal(400, INVALID_REQUEST, "Unknown Last-Event-ID. Open a new stream without it.")


class Resumption:
    """The resumed streams of calls on this worker.

    A resumed stream sends the log after an event id, then new messages, up to the end.
    """

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
        """Write the logged entries, then new ones, until the stream ends or is taken over."""
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
        tail.start()
        try:
            await tail.catch_up()
            if not sink.closed:
                await self._close_abandoned({name: reader})
            await sink.wait_closed()
        finally:
            await tail.close()

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

    def __init__(self, writer: str) -> None:
        self.sink: Sink | None = None
        """None until the other workers are notified."""
        self.writer = writer
        """The worker that runs the call."""
        self.id: int = secrets.randbits(63)
        """The id that other workers know."""
        self.placed = False
        """Whether this worker has received its own takeover. Later ones are newer."""


_STAND_ALONE = "main"
"""The prefix of the stream part of event ids. The rest is unique within the session. Call streams are hexadecimal."""
_MAX_HELD = 1_000


class _StandaloneStream:
    """One stand-alone stream."""

    __slots__ = (
        "_client", "_counter", "_early", "_follow", "_held", "_newer", "_owner", "_principal", "_services",
        "_sink", "_stream", "id", "loaded", "over", "placed", "subscribed",
    )  # fmt: skip

    def __init__(self, stream: str, client: ClientInfo, services: Services, request: HttpRequest) -> None:
        self._client = client
        self._services = services
        self._owner = request.owner
        self._principal = request.principal
        self._follow = services.changes.follow
        self._sink: Sink | None = None
        """None until the other workers are notified."""
        self._early: list[bytes] = []
        """Messages to write then."""
        self._stream = stream
        self._counter = 0
        self._held: list[tuple[ServerChange, bytes]] | None = []
        """Updates that arrived while the subscriptions were being read."""
        self._newer = False
        """Whether a newer record is being read."""
        self.id: int = secrets.randbits(63)
        """The id that other workers know."""
        self.placed = False
        """Whether this worker has received its own takeover. Later ones are newer."""
        self.over = False
        """Whether the session has ended or has another stream."""
        self.loaded = False
        """Whether the subscriptions have been loaded once."""
        self.subscribed: frozenset[str] = frozenset()

    def mark(self) -> str:
        """Return the next event id."""
        self._counter += 1
        return f"{self._stream}.{self._counter}"

    def open(self, sink: Sink) -> None:
        """Start writing to the client's connection."""
        self._sink = sink
        for message in self._early:
            self.write(message)
        self._early.clear()

    def close(self) -> None:
        """Stop writing to the client's connection."""
        if not self.over:
            self._follow(self.id, self._owner, ())
        self.over = True
        if self._sink is not None:
            self._sink.close()

    def write(self, message: bytes) -> None:
        """Write a notification."""
        if self._sink is not None:
            filters = self._services.notification_filters
            if filters is None or (message := filters.filter_outgoing(message, self._principal)):
                self._sink.write(sse.encode_message(message, self.mark()))
        elif len(self._early) < _MAX_HELD:
            self._early.append(message)

    def watcher(self, change: ServerChange, message: bytes) -> None:
        """Write a change that the session has subscribed to."""
        if change.kind == "updated" and self._held is not None:
            # Include current subscriptions, because the record being read may end them.
            if len(self._held) >= _MAX_HELD:
                self._held[:] = [(ANY_UPDATE, b"")]
            self._held.append((change, message))
        elif change.kind != "updated":
            if not isinstance(change, Broadcast) or change.reaches(self._client):
                self.write(message)
        else:
            self._update(change, message)

    def _update(self, change: ServerChange, message: bytes) -> None:
        for uri in affected_uris(change, self.subscribed):
            self.write(message if uri == change.uri else encode_change(ServerChange("updated", uri)))

    def begin(self, record: SessionRecord) -> None:
        """Use the record from when the stream opened, unless a newer one has arrived or is being read."""
        if not self.loaded and not self._newer:
            self.update_record(record)

    def update_record(self, record: SessionRecord | None) -> None:
        """Update the subscriptions, which another worker may have changed, or end the stream with its session."""
        self._newer = record is None
        if record is None:
            self._held = [] if self._held is None else self._held
            return
        self.loaded = True
        self.subscribed = frozenset(record.subscriptions)
        if not self.over:
            self._follow(self.id, self._owner, self.subscribed)
        held, self._held = self._held or [], None
        for change, message in held:
            self._update(change, message)
        if record.ended:
            self.close()


class StandaloneStreams:
    """The stand-alone streams on this worker, one per session.

    They carry hints about changed state. The newest GET wins. Hints aren't logged. A client that resumes gets hints
    about everything that may have changed while it was disconnected.
    """

    def __init__(self, endpoint: StreamableEndpoint) -> None:
        self._endpoint = endpoint
        self._by_session: dict[str, _StandaloneStream] = {}
        services = endpoint.services
        services.peers.on(StandaloneTakeover, self._on_takeover, own=True)
        services.peers.on_interruption(self._place_all)
        services.peers.on(SessionEnd, lambda message, worker: self.close(message.session))
        services.peers.on_loss(self.close_all)

    def close(self, session_id: str) -> None:
        """End the stream of a session, if it has one."""
        found = self._by_session.pop(session_id, None)
        if found is not None:
            found.close()

    def close_all(self) -> None:
        """End all streams, because the store lost the sessions' state. Clients reconnect."""
        for session_id in list(self._by_session):
            self.close(session_id)

    def _on_takeover(self, message: StandaloneTakeover, _worker: str) -> None:
        """Process a takeover. All workers receive takeovers in the same order, and the last one wins."""
        found = self._by_session.get(message.session)
        if found is None:
            return
        if message.id == found.id:
            found.placed = True
        elif found.placed:
            self.close(message.session)

    def _place_all(self) -> None:
        """Stop waiting for takeover messages that may have been lost."""
        for standing in self._by_session.values():
            standing.placed = True

    async def serve(self, request: HttpRequest, session: Session, *, resumed: bool) -> Response | None:
        """Open the stream and send changes until it closes."""
        services, peers = self._endpoint.services, self._endpoint.services.peers
        self.close(session.id)
        stream = f"{services.store.epoch}.{_STAND_ALONE}{secrets.token_hex(8)}"
        standing = _StandaloneStream(stream, session.client, services, request)
        self._by_session[session.id] = standing
        stop = services.changes.watch(standing.watcher)
        services.records.watch(session.id, standing.update_record)
        try:
            # This runs before the client can send a request, because other workers learn of later streams afterward.
            if not await peers.tell(StandaloneTakeover(session.id, standing.id)):
                standing.placed = True
            if standing.over:
                return EMPTY_STREAM
            if self._endpoint.streams.full(request):  # many may have waited for that
                return TOO_MANY_STREAMS
            sink = request.open(200, STREAM_HEAD)
            until = expiry_of(request.principal)
            self._endpoint.streams.add(sink, request, ("http", session.revision.date), until=until)
            standing.open(sink)
            record = await services.records.get(session)
            sink.write(sse.prime(standing.mark(), None) if session.revision.priming else sse.COMMENT)
            standing.begin(record)
            for change in self._hints(standing.subscribed or record.subscriptions) if resumed else ():
                standing.write(encode_change(change))
            await sink.wait_closed()
        finally:
            stop()
            services.records.unwatch(session.id, standing.update_record)
            if self._by_session.get(session.id) is standing:
                del self._by_session[session.id]
            standing.close()
        return None

    def _hints(self, subscribed: Iterable[str]) -> list[ServerChange]:
        """Return everything that may have changed while the client was away."""
        offers = self._endpoint.dispatcher.registry.offers
        kinds = [kind for kind in ("tools", "prompts", "resources") if offers(kind)]
        return [ServerChange(kind) for kind in kinds] + [ServerChange("updated", uri) for uri in sorted(subscribed)]


_NOT_ALLOWED = Response(b"Method not allowed: POST to this path.\n", 405, TEXT_HEAD + b"allow: POST\r\n")
_STREAMS_GONE = refusal(404, SESSION_NOT_FOUND, "Session not found. Its streams are gone, so initialize again.")
_TOO_MANY_ENDED = refusal(503, SERVER_ERROR, "Too many ended sessions. Try again later.", head=b"retry-after: 60\r\n")
_NAMING = frozenset({b"mcp-session-id", b"mcp-protocol-version", b"last-event-id"})
"""A GET without any of these headers is from a client of the first revision."""


class SessionStreams:
    """GET and DELETE of the MCP endpoint."""

    def __init__(self, endpoint: StreamableEndpoint, *, first: Handler | None = None) -> None:
        self._endpoint = endpoint
        self._first = first
        """Serves a GET without these headers: the HTTP+SSE transport of the first revision."""
        self._standing = StandaloneStreams(endpoint)
        self._resumption = Resumption(endpoint)

    async def get(self, request: HttpRequest) -> Response | Sink | None:
        """Open the stand-alone stream, or resume a broken one."""
        headers = request.headers
        if self._endpoint.sessions is None or names_per_request_era(header_version(headers)):
            return _NOT_ALLOWED
        if (unread := no_stream(headers.get(b"accept"))) is not None:
            return unread
        if headers.keys().isdisjoint(_NAMING) and self._first is not None:
            return await self._first(request)
        try:
            session = await self._find(request)
        except ProtocolError as exc:
            return error_response(exc)
        if not session.current:
            return _STREAMS_GONE
        if self._endpoint.streams.full(request):
            return TOO_MANY_STREAMS
        last = headers.get(b"last-event-id")
        if last is not None:
            return await self._resume(request, session, last.decode("latin-1").strip())
        return await self._standing.serve(request, session, resumed=False)

    async def _resume(self, request: HttpRequest, session: Session, last: str) -> Response | None:
        parsed = parse_event_id(last)
        if parsed is None:
            return UNKNOWN_EVENT
        stream, position = parsed
        if not stream.startswith(_STAND_ALONE):
            return await self._resumption.serve(request, session, stream, position)
        if position.epoch != self._endpoint.services.store.epoch:
            return UNKNOWN_EVENT
        return await self._standing.serve(request, session, resumed=True)

    async def delete(self, request: HttpRequest) -> Response | None:
        """End a session."""
        sessions = self._endpoint.sessions
        if sessions is None or names_per_request_era(header_version(request.headers)):
            return _NOT_ALLOWED
        try:
            session = await self._find(request)
            if not await sessions.end(session, request.owner):
                return _TOO_MANY_ENDED
        except ProtocolError as exc:
            return error_response(exc)
        self._endpoint.services.note(SESSION_OVER, "http", session)
        self._standing.close(session.id)
        await self._endpoint.dispatcher.control.end_anywhere(session.id)
        return Response(b"", 204, b"")

    async def _find(self, request: HttpRequest) -> Session:
        """Return the session that a request names.

        Raises:
            ProtocolError: The session or version is unknown or missing.
        """
        sessions = self._endpoint.sessions
        if sessions is None or b"mcp-session-id" not in request.headers:
            raise missing_session()
        session = await sessions.find(request)
        check_handshake_header(request.headers, session.revision)
        return session
