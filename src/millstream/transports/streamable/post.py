"""Streamable HTTP, the POST side, for every revision on one path (digest §2.3, §4.3, §4.4).

Bytes in, bytes out: it tells the eras apart, finds session and principal, and hands a `Call` to the dispatcher. The
common case of the newest revision is decoded in one typed pass; everything else climbs the exact ladder.
"""

from collections.abc import Awaitable, Callable, Mapping

import msgspec
from msgspec import UNSET

from millstream.http.media import REMEMBERED, accepted, carries_json
from millstream.http.message import JSON_HEAD, STREAM_HEAD, Request, Response, client_id_of
from millstream.protocol import sse
from millstream.protocol.admission import (
    admit_per_request,
    check_handshake_header,
    check_notification,
    is_per_request,
)
from millstream.protocol.depth import too_deep
from millstream.protocol.errors import INVALID_REQUEST, ProtocolError
from millstream.protocol.handshake import read_initialize
from millstream.protocol.jsonrpc import Envelope, check_text, error_message, read, result_message
from millstream.protocol.metadata import Client
from millstream.protocol.principal import Principal
from millstream.protocol.revisions import ASSUMED, HANDSHAKE, NEWEST, Revision
from millstream.server.calls.call import Call
from millstream.server.calls.services import principal_id
from millstream.server.calls.sessions import Session
from millstream.server.dispatch import Dispatcher
from millstream.server.features.prepared import PreparedCall, decode_handshake_call
from millstream.server.inbox import progress_token, take_notification
from millstream.transports.batches import is_batch, serve_batch
from millstream.transports.open_streams import TOO_MANY_STREAMS, OpenStreams
from millstream.transports.streamable.line import PostLine
from millstream.transports.streamable.sessions import HttpSessions, missing_session, refusal, unknown_session

Authenticate = Callable[[Request], Awaitable[Principal | None]]

_ACCEPTED = Response(b"", 202, b"")
_UNREADABLE = refusal(406, INVALID_REQUEST, "Not acceptable: accept application/json, text/event-stream or both")
_UNREADABLE_STREAM = refusal(406, INVALID_REQUEST, "Not acceptable: a subscription is answered as text/event-stream")
_JSON_ONLY = "Not acceptable: this server answers as application/json"
_WRONG_TYPE = refusal(415, INVALID_REQUEST, "Unsupported media type: send content-type application/json")
_BUSY = refusal(503, -32000, "Too many calls are running: try again later", head=b"retry-after: 1\r\n")
EMPTY_STREAM = Response(b"", 200, STREAM_HEAD)
_NOBODY = Client()
_LISTEN = "subscriptions/listen"
_STREAM_BOUND = frozenset({"resources/subscribe", "resources/unsubscribe"})
"""What an older store epoch has taken with it: the client initializes and subscribes again."""
_VERSION = NEWEST.date.encode()
_BY_HEADER: Mapping[bytes | None, Revision] = {
    None: ASSUMED,
    **{date.encode(): revision for date, revision in HANDSHAKE.items()},
}
"""`MCP-Protocol-Version` of a handshake-era request -> revision, where no session says more."""


class Streamable:
    """The POST handler of the MCP endpoint."""

    __slots__ = (
        "_dispatcher", "_fast", "_json_only", "_max_calls", "_max_depth", "_prepares",
        "authenticate", "services", "sessions", "streams",
    )  # fmt: skip

    def __init__(
        self,
        dispatcher: Dispatcher,
        streams: OpenStreams,
        sessions: HttpSessions | None,
        *,
        authenticate: Authenticate | None = None,
    ) -> None:
        settings = dispatcher.services.settings
        self._dispatcher = dispatcher
        self._prepares = not settings.tool_timeout and dispatcher.begin is None
        self._fast = dispatcher.registry.fast if self._prepares else {}
        self._json_only = settings.json_only
        self._max_calls = settings.max_calls
        self._max_depth = settings.max_depth
        self.authenticate = authenticate
        self.services = dispatcher.services
        self.sessions = sessions
        """None: handshake requests are served without sessions."""
        self.streams = streams

    async def post(self, request: Request) -> Response | None:
        """One POST of any revision."""
        headers, body = request.headers, request.body
        call = None
        if (
            # Nothing about the request needs a closer look before it is decoded.
            headers.get(b"content-type") == b"application/json"
            and len(headers) == len(request.raw_headers)
            and body.isascii()
            and not too_deep(body, self._max_depth)
            and (len(self._dispatcher.calls) < self._max_calls or not self._busy())
            and (REMEMBERED.get(headers.get(b"accept")) or accepted(headers.get(b"accept"))).json
            and b"content-encoding" not in headers
        ):
            if b"mcp-method" not in headers:
                if self._prepares and self.authenticate is None:
                    call = self._fast_handshake_call(request)
            elif headers[b"mcp-method"] == b"tools/call" and headers.get(b"mcp-protocol-version") == _VERSION:
                fast = self._fast.get(headers.get(b"mcp-name", b""))
                if fast is not None:
                    call = self._fast_call(request, fast)
        if call is None:
            return await self._exact(request)
        if self.authenticate is not None:
            call.principal = await self.authenticate(request)
        session = call.session
        answer = await self._dispatcher.call(call, "" if session is None else session.id)
        if call.line is None and answer:
            return Response(answer, call.status)
        return await self._finish(call, answer)

    def _fast_handshake_call(self, request: Request) -> Call | None:
        """A tool call of a handshake revision in two typed passes; None when anything is unusual."""
        headers = request.headers
        if self.sessions is None:
            session, revision = None, _BY_HEADER.get(headers.get(b"mcp-protocol-version"))
        else:
            session = self.sessions.remembered(headers.get(b"mcp-session-id"))
            revision = None if session is None else session.revision
            if headers.get(b"mcp-protocol-version") not in _BY_HEADER:
                return None
        if revision is None:
            return None
        try:
            envelope = decode_handshake_call(request.body)
            params = envelope.params
            tool = self._dispatcher.registry.tools.get(params.name)
            if tool is None or not tool.plain or params.meta.version is not UNSET:
                return None
            arguments = tool.plan.decoder.decode(params.arguments)
        except (msgspec.DecodeError, RecursionError):
            return None
        return Call(
            revision=revision,
            id=envelope.id,
            method="tools/call",
            client=_NOBODY if session is None else session.client,
            open_reply=self._line,
            canceller=request,
            transport="http",
            session=session,
            headers=headers,
            name=params.name,
            token=None if params.meta.token is UNSET else params.meta.token,
            tool=tool,
            arguments=arguments,
        )

    def _fast_call(self, request: Request, fast: PreparedCall) -> Call | None:
        """One typed pass over the whole body; None when anything is unusual."""
        try:
            envelope = fast.decode(request.body)
        except (msgspec.DecodeError, RecursionError):
            return None
        params = envelope.params
        meta = params.meta
        about = meta.client
        call = Call(
            revision=NEWEST,
            id=envelope.id,
            method="tools/call",
            client=Client(meta.capabilities, about.name, about.version) if about else Client(meta.capabilities),
            open_reply=self._line,
            canceller=request,
            transport="http",
            headers=request.headers,
            name=params.name,
            token=None if meta.token is UNSET else meta.token,
            log_level=meta.log_level or "",
        )
        call.tool = fast.tool
        call.arguments = params.arguments
        if params.responses:
            call.responses = params.responses
        call.state = params.state
        request.cancel_on_disconnect = True
        return call

    async def _exact(self, request: Request) -> Response | None:
        """The ladder: media types, JSON, envelope, era."""
        refused = self._check_media(request)
        if refused is not None:
            self.services.note("", "http", status=str(refused.status))
            return refused
        message: Envelope | None = None
        try:
            principal = await self.authenticate(request) if self.authenticate is not None else None
            check_text(request.body, self._max_depth)
            if is_batch(request.body):
                return await serve_batch(self, self._dispatcher, request, principal)
            message = read(request.body)
            if message.is_answer:
                return await self._answer(request, message, principal)
            if message.is_request and message.method != _LISTEN:
                self.check_readable(request)
            if is_per_request(message, request.headers):
                return await self._per_request(request, message, principal)
            return await self._handshake(request, message, principal)
        except ProtocolError as exc:
            method = "" if message is None else message.method or "response"
            self.services.note(method, "http", status=str(exc.code))
            request_id = message.id if message is not None and message.is_request else None
            return self.reply(request, error_message(request_id, exc.code, exc.message, exc.data), exc.status)

    def _check_media(self, request: Request) -> Response | None:
        headers = request.headers
        if not carries_json(headers):
            return _WRONG_TYPE
        readable = accepted(headers.get(b"accept"))
        if not (readable.json or readable.stream):
            return _UNREADABLE
        return _BUSY if self._busy() else None

    def _busy(self) -> bool:
        """As many calls run as may; open subscriptions have a cap of their own."""
        return self._dispatcher.running >= self._max_calls

    def check_readable(self, request: Request) -> None:
        """Refuse a client that reads streams only, where none are made.

        Raises:
            ProtocolError: HTTP 406.
        """
        if self._json_only and not accepted(request.headers.get(b"accept")).json:
            raise ProtocolError(INVALID_REQUEST, _JSON_ONLY, status=406)

    def _line(self, call: Call) -> PostLine:
        request = call.canceller
        readable = accepted(request.headers.get(b"accept"))
        can_stream = readable.stream and (not self._json_only or call.method == _LISTEN)
        return PostLine(request, call, self.services, self.streams, can_stream=can_stream)

    async def _finish(self, call: Call, body: bytes) -> Response | None:
        """Give the answer on the line, or as a single message when no stream was opened."""
        line = call.line
        if isinstance(line, PostLine) and line.streaming:
            await line.finish(body)
            return None
        if not body:
            return EMPTY_STREAM
        return Response(body, call.status)

    def reply(self, request: Request, body: bytes, status: int = 200, head: bytes = b"") -> Response:
        """A single message, as an event where the client reads nothing else."""
        if status == 200 and not accepted(request.headers.get(b"accept")).json:
            return Response(sse.encode_message(body), status, STREAM_HEAD + head)
        return Response(body, status, JSON_HEAD + head if head else JSON_HEAD)

    async def _run(self, request: Request, call: Call, scope: str) -> Response | None:
        body = await self._dispatcher.call(call, scope)
        if body and call.status == 200 and not accepted(request.headers.get(b"accept")).json:
            await call.open_line().finish(body)  # type: ignore[attr-defined]  # lines of this transport are PostLines
            return None
        return await self._finish(call, body)

    # The per-request era

    async def _per_request(self, request: Request, message: Envelope, principal: Principal | None) -> Response | None:
        if message.id is None:
            check_notification(message)
            self.services.note(message.method, "http", principal=principal)
            return _ACCEPTED
        if message.method == _LISTEN:
            refused = self._check_stream(request, principal)
            if refused is not None:
                self.services.note(_LISTEN, "http", status=str(refused.status), principal=principal)
                return refused
        registry = self._dispatcher.registry
        admitted = admit_per_request(
            message,
            offers=registry.offers,
            requires=registry.requires,
            headers=request.headers,
            raw_headers=request.raw_headers,
        )
        meta = admitted.meta
        call = Call(
            revision=admitted.revision,
            id=message.id,
            method=message.method,
            client=admitted.client,
            open_reply=self._line,
            canceller=request,
            transport="http",
            principal=principal,
            headers=request.headers,
            name=admitted.name,
            params=message.params,
            client_id=client_id_of(request.query),
            root_path=request.root_path,
            token=meta.progress_token if meta.progress_token is not msgspec.UNSET else None,
            log_level=meta.log_level or "",
        )
        request.cancel_on_disconnect = True
        return await self._run(request, call, "")

    def _check_stream(self, request: Request, principal: Principal | None) -> Response | None:
        if not accepted(request.headers.get(b"accept")).stream:
            return _UNREADABLE_STREAM
        return TOO_MANY_STREAMS if self.streams.full(principal_id(principal)) else None

    # The handshake era

    async def _handshake(self, request: Request, message: Envelope, principal: Principal | None) -> Response | None:
        if message.method == "initialize" and message.id is not None:
            return await self._initialize(request, message, principal)
        session, revision = await self.session_of(request, principal)
        if session is not None and not session.current and message.method in _STREAM_BOUND:
            raise unknown_session()
        if message.id is None:
            check_notification(message)
            take_notification(self._dispatcher, message, session.id if session is not None else "")
            self.services.note(message.method, "http", session, principal=principal)
            return _ACCEPTED
        call = self.handshake_call(request, message, session, revision, principal)
        return await self._run(request, call, session.id if session is not None else "")

    def handshake_call(
        self,
        request: Request,
        message: Envelope,
        session: Session | None,
        revision: Revision,
        principal: Principal | None,
    ) -> Call:
        """A call of the handshake era."""
        assert message.id is not None  # noqa: S101  only requests become calls
        return Call(
            revision=revision,
            id=message.id,
            method=message.method,
            client=session.client if session is not None else _NOBODY,
            open_reply=self._line,
            canceller=request,
            transport="http",
            session=session,
            principal=principal,
            headers=request.headers,
            params=message.params,
            client_id=client_id_of(request.query),
            root_path=request.root_path,
            token=progress_token(message.params),
        )

    async def session_of(self, request: Request, principal: Principal | None) -> tuple[Session | None, Revision]:
        """Session and revision of a handshake-era request.

        Raises:
            ProtocolError: a session or version that is unknown or missing.
        """
        headers = request.headers
        if self.sessions is not None and b"mcp-session-id" in headers:
            session = await self.sessions.find(request, principal)
            return session, check_handshake_header(headers, session.revision) or session.revision
        revision = check_handshake_header(headers, None)
        if revision is not None and self.sessions is not None:
            raise missing_session()
        return None, revision or ASSUMED

    async def _initialize(self, request: Request, message: Envelope, principal: Principal | None) -> Response:
        if self.sessions is not None and b"mcp-session-id" in request.headers:
            raise ProtocolError(INVALID_REQUEST, "Invalid request: this session is initialized already", status=400)
        opening = read_initialize(message.params)
        assert message.id is not None  # noqa: S101  the caller has looked
        result = self._dispatcher.announcement.initialize(opening.revision, streams=self.sessions is not None)
        head, session = b"", None
        if self.sessions is not None and not opening.sessionless:
            session, sealed = await self.sessions.mint(opening, principal)
            head = b"mcp-session-id: %b\r\n" % sealed.encode()
        self.services.note("initialize", "http", session, principal=principal, opening=opening)
        return self.reply(request, result_message(message.id, result), head=head)

    async def _answer(self, request: Request, message: Envelope, principal: Principal | None) -> Response:
        """A client's answer to a question of a call."""
        if self.sessions is None or b"mcp-session-id" not in request.headers:
            raise ProtocolError(
                INVALID_REQUEST, "Invalid request: a response needs the session of its request", status=400
            )
        session = await self.sessions.find(request, principal)
        if not self._dispatcher.answer(message, session.id):
            raise ProtocolError(
                INVALID_REQUEST, "Invalid request: nobody in this session waits for this response", status=400
            )
        self.services.note("response", "http", session, principal=principal)
        return _ACCEPTED
