"""GET and DELETE of Streamable HTTP: opening and resuming streams, and ending sessions."""

from millstream._http.message import TEXT_HEAD, Handler, HttpRequest, Response, Sink
from millstream._protocol.admission import check_handshake_header, header_version
from millstream._protocol.errors import SERVER_ERROR, ProtocolError
from millstream._protocol.revisions import names_per_request_era
from millstream._server.call_log import parse_event_id
from millstream._server.calls.services import SESSION_OVER
from millstream._server.calls.sessions import Session
from millstream._transports.refusals import (
    SESSION_NOT_FOUND,
    TOO_MANY_STREAMS,
    error_response,
    missing_session,
    no_stream,
    refusal,
)
from millstream._transports.streamable.exchange import StreamableEndpoint
from millstream._transports.streamable.resume import UNKNOWN_EVENT, Resumption
from millstream._transports.streamable.standalone_stream import StandaloneStreams, is_standalone

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
        if not is_standalone(stream):
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
