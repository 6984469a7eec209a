"""Streamable HTTP, the GET and DELETE sides: stand-alone streams, resumption, the end of a session (digest §4.3).

One stand-alone stream a session: the newest wins. It carries hints about changed state, which are not logged; whoever
resumes it is told again of everything that may have changed. Streams of calls are read from the event log and
followed on the bus, so any worker can serve them.
"""

from collections.abc import Iterable

from millstream.http.media import accepted
from millstream.http.message import STREAM_HEAD, TEXT_HEAD, Handler, Request, Response, Sink
from millstream.protocol import sse
from millstream.protocol.admission import check_handshake_header, header_version
from millstream.protocol.errors import INVALID_REQUEST, ProtocolError
from millstream.protocol.revisions import names_per_request_era
from millstream.server.calls.changes import Change, encode_change
from millstream.server.calls.services import SESSION_OVER, principal_id
from millstream.server.calls.sessions import FULL, Session
from millstream.server.dispatch import Dispatcher
from millstream.stores.base import Gap, Position
from millstream.transports.open_streams import TOO_MANY_STREAMS
from millstream.transports.streamable.line import END, event_id, log_name, parse_event_id
from millstream.transports.streamable.post import EMPTY_STREAM, Streamable
from millstream.transports.streamable.sessions import missing_session, refusal

_NOT_ALLOWED = Response(b"Method not allowed: POST to this path.\n", 405, TEXT_HEAD + b"allow: POST\r\n")
_UNREADABLE = refusal(406, INVALID_REQUEST, "Not acceptable: a GET is answered as text/event-stream")
_UNKNOWN_EVENT = refusal(400, INVALID_REQUEST, "Unknown Last-Event-ID: open a new stream without it")
_LATER = b"retry-after: 60\r\n"
_NAMING = frozenset({b"mcp-session-id", b"mcp-protocol-version", b"last-event-id"})
"""A GET with none of these is a client of the first revision."""
_STAND_ALONE = "main"
"""The stream part of event ids on stand-alone streams."""


class SessionStreams:
    """GET and DELETE of the MCP endpoint."""

    __slots__ = ("_by_session", "_dispatcher", "_first", "_readers", "_services", "_streamable")

    def __init__(self, streamable: Streamable, dispatcher: Dispatcher, *, first: Handler | None = None) -> None:
        self._streamable = streamable
        self._dispatcher = dispatcher
        self._services = dispatcher.services
        self._first = first
        """Serves a GET that names nothing: the HTTP+SSE transport of the first revision."""
        self._by_session: dict[str, Sink] = {}
        self._readers: dict[str, Sink] = {}

    async def get(self, request: Request) -> Response | Sink | None:
        """Open the stand-alone stream, or resume a broken one."""
        headers = request.headers
        if self._streamable.sessions is None or names_per_request_era(header_version(headers)):
            return _NOT_ALLOWED
        if not accepted(headers.get(b"accept")).stream:
            return _UNREADABLE
        if headers.keys().isdisjoint(_NAMING) and self._first is not None:
            return await self._first(request)
        try:
            session, owner = await self._find(request)
        except ProtocolError as exc:
            return refusal(exc.status, exc.code, exc.message)
        if not session.current:
            return refusal(404, -32001, "Session not found: its streams are gone, initialize again")
        if self._streamable.streams.full(owner):
            return TOO_MANY_STREAMS
        last = headers.get(b"last-event-id")
        if last is not None:
            return await self._resume(request, session, owner, last.decode("latin-1").strip())
        await self._stand_alone(request, session, owner, resumed=False)
        return None

    async def delete(self, request: Request) -> Response | None:
        """End a session."""
        sessions = self._streamable.sessions
        if sessions is None or names_per_request_era(header_version(request.headers)):
            return _NOT_ALLOWED
        try:
            session, owner = await self._find(request)
            if not await sessions.end(session, owner):
                return refusal(503, FULL, "Too many ended sessions: try again later", head=_LATER)
        except ProtocolError as exc:
            return refusal(exc.status, exc.code, exc.message, head=_LATER if exc.status == 503 else b"")
        self._services.note(SESSION_OVER, "http", session)
        for call in [call for (scope, _), call in self._dispatcher.by_id.items() if scope == session.id]:
            call.cancel()
        sink = self._by_session.get(session.id)
        if sink is not None:
            sink.close()
        return Response(b"", 204, b"")

    async def _find(self, request: Request) -> tuple[Session, str]:
        """The session that a request names, and the owner its streams count for.

        Raises:
            ProtocolError: a session or version that is unknown or missing.
        """
        streamable = self._streamable
        if streamable.sessions is None or b"mcp-session-id" not in request.headers:
            raise missing_session()
        principal = await streamable.authenticate(request) if streamable.authenticate is not None else None
        session = await streamable.sessions.find(request, principal)
        check_handshake_header(request.headers, session.revision)
        return session, principal_id(principal)

    # The stand-alone stream

    async def _stand_alone(self, request: Request, session: Session, owner: str, *, resumed: bool) -> None:
        older = self._by_session.pop(session.id, None)
        if older is not None:
            older.close()
        sink = self._by_session[session.id] = request.open(200, STREAM_HEAD)
        self._streamable.streams.add(sink, owner, ("http", session.revision.date))
        counter = 0

        def mark() -> str:
            nonlocal counter
            counter += 1
            return f"{self._services.store.epoch}.{_STAND_ALONE}.{counter}"

        subscribed: frozenset[str] = frozenset()

        def watcher(change: Change, message: bytes) -> None:
            if change.kind != "updated" or change.uri in subscribed:
                sink.write(sse.encode_message(message, mark()))

        def resubscribed(uris: list[str]) -> None:
            nonlocal subscribed
            subscribed = frozenset(uris)

        stop = self._services.changes.watch(watcher)
        self._services.records.watch(session.id, resubscribed)
        try:
            resubscribed((await self._services.records.get(session)).subscriptions)
            sink.write(sse.prime(mark(), None) if session.revision.priming else sse.COMMENT)
            for change in self._hints(subscribed) if resumed else ():
                sink.write(sse.encode_message(encode_change(change), mark()))
            await sink.wait_closed()
        finally:
            stop()
            self._services.records.unwatch(session.id, resubscribed)
            if self._by_session.get(session.id) is sink:
                del self._by_session[session.id]
            sink.close()

    def _hints(self, subscribed: Iterable[str]) -> list[Change]:
        """Everything that may have changed while the client was away."""
        kinds = [kind for kind in ("tools", "prompts", "resources") if self._dispatcher.registry.offers(kind)]
        return [Change(kind) for kind in kinds] + [Change("updated", uri) for uri in sorted(subscribed)]

    # Streams of calls

    async def _resume(self, request: Request, session: Session, owner: str, last: str) -> Response | None:
        parsed = parse_event_id(last)
        if parsed is None:
            return _UNKNOWN_EVENT
        stream, position = parsed
        if stream == _STAND_ALONE:
            if position.epoch != self._services.store.epoch:
                return _UNKNOWN_EVENT
            await self._stand_alone(request, session, owner, resumed=True)
            return None
        return await self._follow(request, log_name(session.id, stream), stream, position, owner)

    async def _ended(self, name: str, position: Position) -> bool:
        """Whether the entry at a position is the last one of its stream."""
        at = await self._services.store.log.read(name, Position(position.epoch, position.offset - 1))
        return bool(at) and at[0].data[:1] == END

    def _take_over(self, name: str) -> None:
        """Whoever else carries the stream stops: each message goes to one connection."""
        reader = self._readers.pop(name, None)
        if reader is not None:
            reader.close()
        line = self._streamable.streams.lines.get(name)
        if line is not None:
            line.leave()

    async def _follow(
        self, request: Request, name: str, stream: str, position: Position, owner: str
    ) -> Response | None:
        """Replay what the log has after a position, then what the bus brings, up to the last entry."""
        store = self._services.store
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
                return _UNKNOWN_EVENT
            self._take_over(name)
            sink = self._readers[name] = request.open(200, STREAM_HEAD)
            self._streamable.streams.add(sink, owner)
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
