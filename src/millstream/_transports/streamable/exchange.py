"""POST requests to the MCP endpoint: `StreamableExchange` is one request, `StreamableEndpoint` the shared state."""

from typing import Any

from millstream._http.message import (
    JSON_HEAD,
    STREAM_HEAD,
    AcceptedTypes,
    HttpRequest,
    Response,
    client_id_of,
    parse_accept,
)
from millstream._protocol import sse
from millstream._protocol.admission import Admission, check_handshake_header
from millstream._protocol.errors import INVALID_REQUEST, ProtocolError
from millstream._protocol.jsonrpc import Envelope
from millstream._protocol.revisions import ASSUMED, Revision
from millstream._server.calls import call as calls
from millstream._server.calls.call import Call
from millstream._server.calls.sessions import Session
from millstream._server.dispatch import Dispatcher
from millstream._transports.null_reply import NULL_REPLY
from millstream._transports.open_streams import OpenStreams
from millstream._transports.refusals import missing_session
from millstream._transports.streamable.reply_channel import PostReplyChannel
from millstream._transports.streamable.sessions import HttpSessions

EMPTY_STREAM = Response(b"", 200, STREAM_HEAD)
LISTEN = "subscriptions/listen"
_JSON_ONLY = "Not acceptable. This server answers with application/json."


class StreamableEndpoint:
    """The shared state of all requests to the MCP endpoint of one server."""

    def __init__(self, dispatcher: Dispatcher, streams: OpenStreams, sessions: HttpSessions | None) -> None:
        self.dispatcher = dispatcher
        self.services = dispatcher.services
        self.json_only = dispatcher.services.settings.json_only
        self.sessions = sessions
        """None if handshake requests are served without sessions."""
        self.streams = streams

    def open_line(self, call: Call) -> PostReplyChannel:
        """Return the reply channel of a POST's call."""
        request = call.origin
        assert isinstance(request, HttpRequest)  # noqa: S101  every POST's call has its request
        readable = parse_accept(request.headers.get(b"accept"))
        can_stream = readable.stream and (not self.json_only or call.long_lived or call.method == LISTEN)
        return PostReplyChannel(
            request, call, self.services, self.streams, can_stream=can_stream, cancel=self.dispatcher.control.cancel
        )


async def finish(call: Call, body: bytes) -> Response | None:
    """Send the answer of a call on its stream, or return it as a single message if no stream is open."""
    line = call.reply_channel
    if isinstance(line, PostReplyChannel) and line.streaming:
        await line.finish(body)
        return None
    if not body:
        return EMPTY_STREAM
    error = call.failure.error if call.failure is not None else None
    return Response(body, _status(call), JSON_HEAD + error.head if error is not None else JSON_HEAD)


def _status(call: Call) -> int:
    """Return the HTTP status of a call's answer. Handshake-era errors have status 200, unless they have a head."""
    error = call.failure.error if call.failure is not None else None
    if error is None or not (call.revision.result_type or error.head):
        return 200
    return error.status


class StreamableExchange:
    """One POST on the exact path."""

    __slots__ = ("accepts", "endpoint", "request")

    def __init__(self, endpoint: StreamableEndpoint, request: HttpRequest) -> None:
        self.endpoint = endpoint
        self.request = request
        self.accepts: AcceptedTypes = parse_accept(request.headers.get(b"accept"))

    def check_readable(self) -> None:
        """Refuse a client that reads only streams, if the server sends none.

        Raises:
            ProtocolError: HTTP 406.
        """
        if self.endpoint.json_only and not self.accepts.json:
            raise ProtocolError(INVALID_REQUEST, _JSON_ONLY, status=406)

    def reply(self, body: bytes, status: int = 200, head: bytes = b"") -> Response:
        """Return a single message, as an event if the client reads only streams."""
        if status == 200 and not self.accepts.json:
            return Response(sse.encode_message(body), status, STREAM_HEAD + head)
        return Response(body, status, JSON_HEAD + head if head else JSON_HEAD)

    async def session(self) -> tuple[Session | None, Revision]:
        """Return the session and revision of a handshake-era request.

        Raises:
            ProtocolError: The session or version is unknown or missing.
        """
        headers, sessions = self.request.headers, self.endpoint.sessions
        if sessions is not None and b"mcp-session-id" in headers:
            session = await sessions.find(self.request)
            return session, check_handshake_header(headers, session.revision) or session.revision
        revision = check_handshake_header(headers, None)
        if revision is not None and sessions is not None:
            raise missing_session()
        return None, revision or ASSUMED

    def handshake_call(self, message: Envelope, session: Session | None, revision: Revision) -> Call:
        """Return a call of the handshake era. Without a session, the call ends with its connection, because the answer
        can't be resumed.
        """
        self.request.cancel_on_disconnect = session is None
        return calls.handshake_call(message, session, revision, **self._way())

    def per_request_call(self, message: Envelope, admitted: Admission) -> Call:
        """Return a call of the per-request era. It ends with its connection."""
        self.request.cancel_on_disconnect = True
        return calls.per_request_call(admitted, message, **self._way())

    def hear(self, message: Envelope, session: Session | None, revision: Revision) -> None:
        """Pass a notification to the extension that handles it."""
        way = {**self._way(), "open_reply": None, "reply_channel": NULL_REPLY}
        self.endpoint.dispatcher.hear(calls.notification_call(message, session, revision, **way))

    def _way(self) -> dict[str, Any]:
        request = self.request
        return {
            "open_reply": self.endpoint.open_line,
            "origin": request,
            "transport": "http",
            "principal": request.principal,
            "headers": request.headers,
            "client_id": client_id_of(request.query) if request.query else "",
        }

    async def run(self, call: Call) -> Response | None:
        """Run a call and return its reply."""
        body = await self.endpoint.dispatcher.call(call, "" if call.session is None else call.session.id)
        if body and not self.accepts.json and _status(call) == 200:
            line = call.open_reply_channel()
            assert isinstance(line, PostReplyChannel)  # noqa: S101  lines of this endpoint are
            await line.finish(body)
            return None
        return await finish(call, body)
