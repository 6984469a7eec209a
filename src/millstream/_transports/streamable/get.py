"""GET and DELETE of Streamable HTTP: opening and resuming streams, and ending sessions."""

import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from msgspec import Struct, field

from millstream._http.message import TEXT_HEAD, Handler, HttpRequest, Response, Sink
from millstream._override import override
from millstream._protocol import sse
from millstream._protocol.admission import header_version
from millstream._protocol.errors import INVALID_REQUEST, SERVER_ERROR, ProtocolError
from millstream._protocol.metadata import ClientInfo
from millstream._protocol.revisions import names_per_request_era
from millstream._server.calls.services import (
    ANY_UPDATE,
    SESSION_OVER,
    ServerChange,
    Services,
    encode_change,
    session_messages,
)
from millstream._server.calls.sessions import Session, SessionRecord, growth_of_uris, spellings
from millstream._server.peers import SessionEnd, StreamTakeover
from millstream._stores.base import Entry, Gap, Position
from millstream._stores.tail import Tail
from millstream._transports.open_streams import (
    TOO_MANY_STREAMS,
    drop_head,
    error_response,
    missing_session,
    no_stream,
    rpc_refusal,
)
from millstream._transports.streamable import (
    EMPTY_STREAM,
    END,
    OPEN,
    StreamableEndpoint,
    StreamableExchange,
    close_abandoned,
    event_id,
    log_name,
    parse_event_id,
    writer_of,
)

UNKNOWN_EVENT = rpc_refusal(400, INVALID_REQUEST, "Unknown Last-Event-ID. Open a new stream without it.")


class _NewestStream(Struct, eq=False, kw_only=True):
    """A stream on this worker. If several connections claim it, the last one keeps it."""

    id: int = field(default_factory=partial(secrets.randbits, 63))
    """The id that other workers know."""
    placed: bool = False
    """Whether this worker has received its own takeover. Later ones are newer."""
    sink: Sink | None = None
    """None until the other workers are notified."""
    over: bool = False
    """Whether another connection has the stream, or its session has ended."""

    def close(self) -> None:
        """Stop writing to the client's connection."""
        self.over = True
        if self.sink is not None:
            self.sink.close()


class _NewestStreams:
    """Streams on this worker. The last connection to claim one, on any worker, carries it."""

    def __init__(self, endpoint: StreamableEndpoint) -> None:
        self._endpoint = endpoint
        self._streams: dict[str, _NewestStream] = {}
        """Streams by session, or by log."""
        peers = endpoint.services.peers
        peers.on(StreamTakeover, self._on_takeover, own=True)
        peers.on_interruption(self._place_all)

    async def _claim(self, name: str, stream: _NewestStream) -> bool:
        """Take over from other connections. Return False if a newer one has taken over in between.

        This runs before the client can send a request, because other workers learn of later connections afterward.
        """
        self.close(name)
        self._streams[name] = stream
        if not await self._endpoint.services.peers.broadcast(StreamTakeover(name, stream.id)):
            stream.placed = True
        return not stream.over

    def close(self, name: str) -> None:
        """Stop the connection on this worker that carries a stream, if there's one."""
        stream = self._streams.pop(name, None)
        if stream is not None:
            stream.close()
        line = self._endpoint.streams.lines.get(name)
        if line is not None:
            line.leave()

    def _leave(self, name: str, stream: _NewestStream) -> None:
        if self._streams.get(name) is stream:
            del self._streams[name]

    def _on_takeover(self, message: StreamTakeover, _worker: str) -> None:
        """Process a takeover. All workers receive takeovers in the same order, and the last one wins."""
        stream = self._streams.get(message.name)
        if stream is not None and message.id == stream.id:
            stream.placed = True
        elif stream is None or stream.placed:
            self.close(message.name)

    def _place_all(self) -> None:
        """Stop waiting for takeover messages that may have been lost."""
        for stream in self._streams.values():
            stream.placed = True


class Resumption(_NewestStreams):
    """The resumed streams of calls on this worker.

    A resumed stream sends the log after an event id, then new messages, up to the end.
    """

    def __init__(self, endpoint: StreamableEndpoint) -> None:
        super().__init__(endpoint)
        endpoint.services.peers.on_workers(lambda: self._close_abandoned(list(self._streams)))

    async def serve(self, request: HttpRequest, session: Session, stream: str, position: Position) -> Response | None:
        """Send the log after a position, then new entries, up to the last one."""
        services, name = self._endpoint.services, log_name(session.id, stream)
        log = services.store.log
        try:
            if not await log.read(name, position, 1) and await self._is_end(name, position):
                return EMPTY_STREAM
        except Gap:
            return UNKNOWN_EVENT
        reader = _NewestStream()
        try:
            if not await self._claim(name, reader):
                return EMPTY_STREAM
            sink = reader.sink = self._endpoint.streams.open(request)
            if sink is None:  # many may have waited for the store and the workers
                return TOO_MANY_STREAMS
            drop_head(request)
            await self._read(sink, stream, name, position)
        finally:
            self._leave(name, reader)
        return None

    async def _read(self, sink: Sink, stream: str, name: str, position: Position) -> None:
        """Write the logged entries, then new ones, until the stream ends or another connection takes over."""
        sink.write(sse.COMMENT)

        def take(entries: Sequence[Entry]) -> None:
            for entry in entries:
                mark, message = entry.data[:1], entry.data[1:]
                if message and mark != OPEN:
                    sink.write(sse.encode_message(message, event_id(stream, entry.position)))
                if mark == END:
                    sink.close()

        store = self._endpoint.services.store
        # After a gap, clients that resume after the last event get the error.
        tail = Tail(store.log, store.troubles, name, position, take, lambda _: sink.close(), drain=sink.drain)
        tail.start()
        try:
            await tail.catch_up()
            if not sink.closed:
                await self._close_abandoned((name,))
            await sink.wait_closed()
        finally:
            await tail.close()

    async def _is_end(self, name: str, position: Position) -> bool:
        """Return whether the entry at a position is the last one of its stream."""
        newest = await self._endpoint.services.store.log.newest(name, 1)
        return bool(newest) and newest[0].position == position and newest[0].data[:1] == END

    async def _close_abandoned(self, logs: Iterable[str]) -> None:
        """End the streams whose worker is gone."""
        services = self._endpoint.services
        workers, lines = services.store.workers, self._endpoint.streams.lines
        elsewhere = {name: writer_of(name) for name in logs if name not in lines}
        gone = {each for each in set(elsewhere.values()) if each != workers.me and not await workers.alive(each)}
        for name, writer in elsewhere.items():
            if writer in gone:
                await close_abandoned(services.store, name)


_logger = logging.getLogger("millstream")

_STAND_ALONE = "main"
"""The prefix of stream names in event ids. The rest is unique within the session. Call streams are hexadecimal."""
_MAX_HELD = 1_000


class _StandaloneStream(_NewestStream, eq=False):
    """One stand-alone stream."""

    stream: str
    client: ClientInfo
    services: Services
    request: HttpRequest
    reports: Callable[[str], bool]
    """Returns whether the caller may be notified of an update."""
    subscribed: dict[str, str] = {}
    charged_bytes: int = 0
    """Bytes of `Services.client_memory` that the stream takes."""
    has_news: bool = False
    """Whether a newer record than the one at the opening has arrived or is being read."""
    early: list[bytes] = []
    """Messages to write when there is a sink."""
    counter: int = 0
    held: list[tuple[ServerChange, bytes]] | None = []
    """Updates that arrived while the subscriptions were being read."""

    def mark(self) -> str:
        """Return the next event id."""
        self.counter += 1
        return f"{self.stream}.{self.counter}"

    def open(self, sink: Sink) -> None:
        """Start writing to the client's connection."""
        self.sink = sink
        for message in self.early:
            self.write(message)
        self.early.clear()

    @override
    def close(self) -> None:
        if not self.over:
            self.services.changes.source.follow(self.id, self.request.owner, {})
            self.services.client_memory.bytes.leave(self.request.owner, self.charged_bytes)
        super().close()

    def write(self, message: bytes) -> None:
        """Send a notification, or keep it until the stream opens."""
        if self.sink is not None:
            if message := self.services.notification_filters.filter_outgoing(message, self.request.principal):
                self.sink.write(sse.encode_message(message, self.mark()))
        elif len(self.early) < _MAX_HELD:
            self.early.append(message)

    def watcher(self, change: ServerChange, message: bytes) -> None:
        """Write a change that the session has subscribed to."""
        if change.kind == "updated" and self.held is not None:
            # Include current subscriptions, because the record being read may end them.
            if len(self.held) >= _MAX_HELD:
                self.held[:] = [(ANY_UPDATE, b"")]
            self.held.append((change, message))
        else:
            for each in session_messages(change, message, self.client, self.subscribed, self.reports):
                self.write(each)

    def _charge(self, before: dict[str, str]) -> None:
        """Count what the subscriptions take and drop them if the caller's share is used up."""
        memory, owner = self.services.client_memory.bytes, self.request.owner
        memory.leave(owner, self.charged_bytes)
        self.charged_bytes += growth_of_uris(before, self.subscribed, self.services.changes.source.entry_bytes)
        if not memory.take(owner, self.charged_bytes):
            _logger.warning(
                "%s gets no updates for its %d resources, because its sessions use too much memory",
                owner,
                len(self.subscribed),
            )
            self.charged_bytes, self.subscribed = 0, {}

    def begin(self, record: SessionRecord) -> None:
        """Use the record from when the stream opened, unless a newer one has arrived or is being read."""
        if not self.has_news:
            self.update_record(record)

    def update_record(self, record: SessionRecord | None) -> None:
        """Update the subscriptions, which another worker may have changed, or end the stream with its session."""
        self.has_news = True
        if record is None:
            self.held = [] if self.held is None else self.held
            return
        before, self.subscribed = self.subscribed, record.subscriptions
        if not self.over:
            self._charge(before)
            self.services.changes.source.follow(self.id, self.request.owner, self.subscribed)
        held, self.held = self.held or [], None
        for change, message in held:
            self.watcher(change, message)
        if record.ended:
            self.close()


class StandaloneStreams(_NewestStreams):
    """The stand-alone streams on this worker, one per session.

    They carry hints about changed state, which aren't logged. The newest GET wins. A client that resumes gets hints
    about everything that may have changed while it was disconnected.
    """

    def __init__(self, endpoint: StreamableEndpoint) -> None:
        super().__init__(endpoint)
        peers = endpoint.services.peers
        peers.on(SessionEnd, lambda message, worker: self.close(message.session))
        peers.on_loss(self.close_all)

    def close_all(self) -> None:
        """End all streams when the store has lost the sessions' state. Clients reconnect."""
        for session_id in list(self._streams):
            self.close(session_id)

    async def serve(self, request: HttpRequest, session: Session, *, resumed: bool) -> Response | None:
        """Open the stream and send changes until it closes."""
        services = self._endpoint.services
        stream = f"{services.store.epoch}.{_STAND_ALONE}{secrets.token_hex(8)}"
        registry = self._endpoint.dispatcher.registry
        reports = partial(registry.reports, request)
        standing = _StandaloneStream(stream, session.client, services, request, reports)
        stop = services.changes.watch(standing.watcher, session.address, session)
        services.records.watch(session.id, standing.update_record)
        try:
            if not await self._claim(session.id, standing):
                return EMPTY_STREAM
            sink = self._endpoint.streams.open(request, ("http", session.revision.date))
            if sink is None:  # many may have waited for that
                return TOO_MANY_STREAMS
            drop_head(request)
            standing.open(sink)
            record = await services.records.get(session)
            sink.write(sse.prime(standing.mark()) if session.revision.priming else sse.COMMENT)
            standing.begin(record)
            if resumed:  # everything may have changed while the client was disconnected
                changes = [ServerChange(kind) for kind in ("tools", "prompts", "resources") if registry.announces(kind)]
                uris = filter(reports, sorted(spellings(standing.subscribed or record.subscriptions)))
                for change in changes + [ServerChange("updated", uri) for uri in uris]:
                    standing.write(encode_change(change))
            await sink.wait_closed()
        finally:
            stop()
            services.records.unwatch(session.id, standing.update_record)
            self._leave(session.id, standing)
            standing.close()
        return None


_NOT_ALLOWED = Response(b"Method not allowed: POST to this path.\n", 405, TEXT_HEAD + b"allow: POST\r\n")
_TOO_MANY_ENDED = rpc_refusal(
    503, SERVER_ERROR, "Too many ended sessions. Try again later.", head=b"retry-after: 60\r\n"
)
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
        if self._endpoint.sessions is None or names_per_request_era(header_version(request.headers)):
            return _NOT_ALLOWED
        if (unread := no_stream(request.headers.get(b"accept"))) is not None:
            return unread
        if request.headers.keys().isdisjoint(_NAMING) and self._first is not None:
            return await self._first(request)
        try:
            session = await self._find(request)
        except ProtocolError as exc:
            return error_response(exc)
        if self._endpoint.streams.full(request):
            return TOO_MANY_STREAMS
        last = request.headers.get(b"last-event-id")
        if last is not None:
            return await self._resume(request, session, last.decode("latin-1").strip())
        # The client of a session from before a restart may have missed changes.
        return await self._standing.serve(request, session, resumed=not session.current)

    async def _resume(self, request: HttpRequest, session: Session, last: str) -> Response | None:
        parsed = parse_event_id(last)
        if parsed is None:
            return UNKNOWN_EVENT
        stream, position = parsed
        if not stream.startswith(_STAND_ALONE):
            return await self._resumption.serve(request, session, stream, position)
        return await self._standing.serve(request, session, resumed=True)

    async def delete(self, request: HttpRequest) -> Response | None:
        """End a session."""
        sessions, limits = self._endpoint.sessions, self._endpoint.services.request_limits
        if sessions is None or names_per_request_era(header_version(request.headers)):
            return _NOT_ALLOWED
        try:
            session = await self._find(request)
            if not await sessions.end(session, request.owner):
                return _TOO_MANY_ENDED
        except ProtocolError as exc:
            return error_response(limits.charge(request.principal, request.peer) or exc)
        limits.charge(request.principal, request.peer)
        self._endpoint.services.note(SESSION_OVER, "http", session)
        self._endpoint.services.end_session(session.id)
        self._standing.close(session.id)
        await self._endpoint.dispatcher.control.end_anywhere(session.id)
        return Response(b"", 204, b"")

    async def _find(self, request: HttpRequest) -> Session:
        """Return the session that a request names.

        Raises:
            ProtocolError: The session or version is unknown or missing.
        """
        session, _ = await StreamableExchange(self._endpoint, request).session()
        if session is None:
            raise missing_session()
        return session
