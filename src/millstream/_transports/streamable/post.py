"""POST requests of Streamable HTTP: fast paths for usual tool calls and lists. Everything else takes the exact path.

A usual call of either era is decoded in one or two typed passes and passed to the dispatcher, with no object other than
the `Call`. Anything unusual is left to `serve_exactly`.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from millstream._http.message import HttpRequest, Response, carries_json, parse_accept
from millstream._protocol import revisions
from millstream._protocol.admission import admit_per_request, check_notification, per_request_revision, read_initialize
from millstream._protocol.errors import INVALID_REQUEST, ProtocolError
from millstream._protocol.jsonrpc import (
    MALFORMED,
    MAX_ID,
    Envelope,
    check_text,
    exceeds_limits,
    is_utf8,
    read,
    refusal_message,
    result_message,
)
from millstream._protocol.metadata import ClientInfo
from millstream._protocol.revisions import ASSUMED, HANDSHAKE, NEWEST, PER_REQUEST, Revision
from millstream._server.calls.call import UNKNOWN_CLIENT, Call
from millstream._server.calls.services import UNLIMITED
from millstream._server.calls.sessions import Session
from millstream._server.control import LIGHT
from millstream._server.features.tools import (
    PreparedCall,
    decode_handshake_call,
    decode_handshake_message,
    decode_handshake_params,
    decode_request,
    decode_request_params,
)
from millstream._transports.connection import is_batch
from millstream._transports.open_streams import NOT_JSON, error_response, rpc_refusal
from millstream._transports.streamable import StreamableEndpoint, StreamableExchange, finish, serve_batch

_LISTEN = "subscriptions/listen"
_ACCEPTED = Response(b"", 202, b"")
_UNREADABLE = rpc_refusal(406, INVALID_REQUEST, "Not acceptable. Accept application/json, text/event-stream, or both.")
_UNREADABLE_STREAM = "Not acceptable. A subscription is answered with text/event-stream."


async def serve_exactly(endpoint: StreamableEndpoint, request: HttpRequest) -> Response | None:
    """Respond to a POST of any kind.

    This is the exact path. It checks media types, JSON, envelope, era, and session. Each error has its code and status.
    """
    exchange = StreamableExchange(endpoint, request)
    readable = exchange.accepts.json or exchange.accepts.stream
    if not (readable and carries_json(request.headers)):
        if (over := exchange.charge()) is not None:
            return _refuse(exchange, None, over)
        refused = _UNREADABLE if carries_json(request.headers) else NOT_JSON
        endpoint.services.note("", "http", status=str(refused.status))
        return refused
    message: Envelope | None = None
    revision = NEWEST
    try:
        check_text(request.body)
        if is_batch(request.body):
            return await serve_batch(exchange)
        message = read(request.body)
        named = per_request_revision(message, request.headers)
        revision = named or ASSUMED
        opened = await _open(exchange, message, named)
        if isinstance(opened, Call):
            endpoint.dispatcher.load.take(opened, len(opened.params))
    except ProtocolError as exc:
        return _refuse(exchange, message, revisions.error(exc, revision))
    if isinstance(opened, Response):
        exchange.charge()
        return opened
    # The call has its own data and can run for a day, so the request's body is released.
    request.body = b""
    del message
    return await exchange.run(opened)


async def _open(exchange: StreamableExchange, message: Envelope, named: Revision | None) -> Call | Response:
    """Return the call for a request, or the response to any other message. `named` is a per-request revision."""
    if message.is_answer:
        return await _take_answer(exchange, message)
    if message.is_request:
        exchange.endpoint.dispatcher.load.admit(exchange.request, message.method)
        if message.method != _LISTEN:
            exchange.check_readable()
    return await (_handshake(exchange, message) if named is None else _per_request(exchange, message, named))


def _refuse(exchange: StreamableExchange, message: Envelope | None, exc: ProtocolError) -> Response:
    exc = exchange.charge() or exc
    method = "" if message is None else message.method or "response"
    request_id = message.id if message is not None and message.is_request else None
    exchange.endpoint.services.note(method, "http", status=str(exc.code))
    if exc.status == 503:
        return error_response(exc, request_id)
    return exchange.reply(refusal_message(request_id, exc), exc.status, exc.head)


# The per-request era


async def _per_request(exchange: StreamableExchange, message: Envelope, revision: Revision) -> Call | Response:
    endpoint, request = exchange.endpoint, exchange.request
    if message.id is None:
        check_notification(message)
        await exchange.notify(message, None, revision)
        return _ACCEPTED
    if message.method == _LISTEN and not exchange.accepts.stream:
        raise ProtocolError(INVALID_REQUEST, _UNREADABLE_STREAM, status=406)
    registry = endpoint.dispatcher.registry
    admitted = admit_per_request(
        message,
        serves=registry.admits,
        requires=registry.requires,
        header_params=registry.header_params,
        headers=request.headers,
        raw_headers=request.raw_headers,
    )
    return exchange.per_request_call(message, admitted)


# The handshake era


async def _handshake(exchange: StreamableExchange, message: Envelope) -> Call | Response:
    if message.method == "initialize" and message.id is not None:
        return await _initialize(exchange, message)
    session, revision = await exchange.session()
    if message.id is None:
        check_notification(message)
        await exchange.notify(message, session, revision)
        return _ACCEPTED
    # Many requests may have waited for their session's record.
    exchange.endpoint.dispatcher.load.admit(exchange.request, message.method)
    return exchange.handshake_call(message, session, revision)


async def _initialize(exchange: StreamableExchange, message: Envelope) -> Response:
    endpoint, request = exchange.endpoint, exchange.request
    sessions = endpoint.sessions
    opening = read_initialize(message.params)
    if endpoint.services.request_limits is not UNLIMITED:
        await exchange.admit()
    known: Session | None = None
    if sessions is not None and b"mcp-session-id" in request.headers:
        known = await sessions.find(request, endpoint.address)
    if known is not None and not opening.repeats(known.revision, known.client):
        raise ProtocolError(INVALID_REQUEST, "Invalid request: this session is already initialized", status=400)
    assert message.id is not None  # noqa: S101  the caller has looked
    head, session, result = b"", known, b""
    if sessions is not None and session is None and not opening.sessionless:
        session, sealed = await sessions.mint(opening, request, endpoint.address)
        head = b"mcp-session-id: %b\r\n" % sealed.encode()
    if (relayed := endpoint.dispatcher.registry.relayed) is not None:
        result = await relayed.open_session(exchange.handshake_call(message, session, opening.revision))
    announced = endpoint.dispatcher.announcement
    result = result or announced.initialize(opening.revision, request, streams=sessions is not None)
    endpoint.services.note("initialize", "http", session, principal=request.principal, opening=opening)
    return exchange.reply(result_message(message.id, result), head=head)


async def _take_answer(exchange: StreamableExchange, message: Envelope) -> Response:
    """Pass a client's answer to the call that asked, which may be on another worker."""
    endpoint, request = exchange.endpoint, exchange.request
    if endpoint.sessions is None or b"mcp-session-id" not in request.headers:
        raise ProtocolError(
            INVALID_REQUEST, "Invalid request: a response must be sent in the session of its request", status=400
        )
    session = await endpoint.sessions.find(request, endpoint.address)
    await endpoint.dispatcher.control.answer_anywhere(message, session.id, request.owner)
    exchange.note("response", session)
    return _ACCEPTED


_PER_REQUEST: Mapping[bytes | None, Revision] = {date.encode(): each for date, each in PER_REQUEST.items()}
_BY_HEADER: Mapping[bytes | None, Revision] = {
    None: ASSUMED,
    **{date.encode(): revision for date, revision in HANDSHAKE.items()},
}
"""`MCP-Protocol-Version` of a handshake-era request -> revision, for requests without a session."""
_HANDSHAKE_METHODS = frozenset[str]().union(*(each.requests for each in HANDSHAKE.values()))
_UNDECODED = {
    method.encode(): method
    for revision in PER_REQUEST.values()
    for method in revision.requests
    if method.endswith(("/list", "/discover", "tools/call"))
}
"""Methods whose handlers read the parameters. For tool calls, another server reads them."""
_MAX_USUAL = 64 * 1024
"""Maximum size of a usual body, in bytes. The exact path reads a larger one in parts, each with its own bound."""


class Streamable:
    """The POST handler of the MCP endpoint."""

    def __init__(self, endpoint: StreamableEndpoint) -> None:
        dispatcher = endpoint.dispatcher
        self._endpoint = endpoint
        self._dispatcher = dispatcher
        self._open_line = endpoint.open_line
        self._prepares = dispatcher.begin is None
        self._fast = dispatcher.registry.fast if self._prepares else {}
        self._tools = dispatcher.registry.tools
        self._calls = dispatcher.calls
        self._most = dispatcher.load.max_each
        """With fewer calls in flight, no caller can exceed its limit."""

    async def post(self, request: HttpRequest) -> Response | None:  # noqa: C901  one frame for each call
        """Serve one POST of any revision."""
        headers, body = request.headers, request.body
        call, size = None, len(body)
        if (
            # The request needs checks before it's decoded.
            headers.get(b"content-type") != b"application/json"
            or size > _MAX_USUAL
            or len(headers) != len(request.raw_headers)
            or not (body.isascii() or is_utf8(body))
            or exceeds_limits(body)
            or (len(self._calls) >= self._most and self._dispatcher.load.full(request.owner))
            or not parse_accept(headers.get(b"accept")).json
            or b"content-encoding" in headers
        ):
            pass
        elif b"mcp-method" not in headers:
            if self._prepares:
                taken = self._fast_handshake_call(request)
                if isinstance(taken, Call):
                    call = taken
                elif taken is not None:
                    return taken if isinstance(taken, Response) else await self._fast_initialize(request, taken)
        elif (named := _PER_REQUEST.get(headers.get(b"mcp-protocol-version"))) is None:
            pass
        elif headers[b"mcp-method"] == b"tools/call" and self._dispatcher.registry.relayed is None:
            fast = self._fast.get(headers.get(b"mcp-name", b""))
            if fast is not None:
                call = self._fast_call(request, fast, named)
        elif headers[b"mcp-method"] in _UNDECODED:
            call = self._fast_request(request, named)
        if call is None or (size > LIGHT and not self._dispatcher.load.takes(call, size)):
            del body  # a stream may be open for a day
            return await serve_exactly(self._endpoint, request)
        session = call.session
        answer = await self._dispatcher.call(call, "" if session is None else session.id)
        if answer and call.reply_channel is None and call.failure is None:
            return Response(answer)
        return await finish(call, answer)

    async def _fast_initialize(self, request: HttpRequest, message: Envelope) -> Response:
        exchange = StreamableExchange(self._endpoint, request)
        try:
            return await _initialize(exchange, message)
        except ProtocolError as exc:
            return _refuse(exchange, message, revisions.error(exc, ASSUMED))

    def _fast_handshake_call(self, request: HttpRequest) -> Call | Envelope | Response | None:
        """Decode a message of a handshake revision in two typed passes.

        Return a call, the envelope of `initialize`, or the response to a notification. Return None for an unusual
        message, which the exact path reads.
        """
        headers, sessions = request.headers, self._endpoint.sessions
        value = headers.get(b"mcp-session-id")
        if sessions is None:
            session, revision = None, _BY_HEADER.get(headers.get(b"mcp-protocol-version"))
        elif value is None:
            session, revision = None, None if b"mcp-protocol-version" in headers else ASSUMED
        else:
            session = sessions.find_known(value, request.principal, self._endpoint.address)
            revision = None if session is None or self._dispatcher.stopping else session.revision
            if headers.get(b"mcp-protocol-version") not in _BY_HEADER:
                return None
        if revision is None:
            return None
        if b'"tools/call"' not in request.body or self._dispatcher.registry.relayed is not None:
            return self._fast_message(request, session, revision)
        try:
            envelope = decode_handshake_call(request.body)
            params = envelope.params
            meta, tool = params.meta, self._tools.get(params.name)
            if tool is None or not tool.plain or meta.version is not UNSET:
                return None
            decode = tool.decode
            arguments = decode(params.arguments)
        except Exception:  # as in `_fast_call`
            return None
        if session is None:
            request.cancel_on_disconnect = True
        return Call(
            revision=revision,
            id=envelope.id,
            method="tools/call",
            client=UNKNOWN_CLIENT if session is None else session.client,
            open_reply=self._open_line,
            origin=request,
            session=session,
            principal=request.principal,
            headers=headers,
            name=params.name,
            token=None if meta.token is UNSET else meta.token,
            tool=tool,
            body=request.body,
            arguments=arguments,
        )

    def _fast_message(
        self, request: HttpRequest, session: Session | None, revision: Revision
    ) -> Call | Envelope | Response | None:
        """Return a message whose parameters its handler reads, as `_fast_handshake_call` does."""
        try:
            message = decode_handshake_message(request.body)
            params = bytes(message.params)
            meta = decode_handshake_params(params or b"{}").meta
        except MALFORMED:
            return None
        method, services = message.method, self._endpoint.services
        if len(request.body) > MAX_ID or request.query or meta.version is not UNSET:
            return None
        if message.id is UNSET:
            if (
                not method.startswith("notifications/")
                or method == "notifications/cancelled"
                or services.notification_filters
                or services.request_limits is not UNLIMITED
                or self._dispatcher.registry.relayed is not None
                or method in self._dispatcher.registry.notification_handlers
            ):
                return None
            services.note(method, "http", session, principal=request.principal)
            return _ACCEPTED
        if method == "initialize":
            return Envelope(message.id, method, params)
        if method not in _HANDSHAKE_METHODS:
            return None
        request.cancel_on_disconnect = session is None
        return Call(
            revision=revision,
            id=message.id,
            method=method,
            params=params,
            client=UNKNOWN_CLIENT if session is None else session.client,
            open_reply=self._open_line,
            origin=request,
            session=session,
            principal=request.principal,
            headers=request.headers,
            token=None if meta.token is UNSET else meta.token,
        )

    def _fast_call(self, request: HttpRequest, fast: PreparedCall, revision: Revision) -> Call | None:
        """Return a call decoded in one typed pass over the body, or None if anything is unusual."""
        try:
            decode = fast.decode
            envelope = decode(request.body)
        except Exception:  # Includes errors of validators, which the exact path reports.
            return None
        params = envelope.params
        meta = params.meta
        if meta.version != revision.date:
            return None
        about = meta.client
        request.cancel_on_disconnect = True
        return Call(  # a 16th keyword argument would make Python build a dict
            revision=revision,
            id=envelope.id,
            method="tools/call",
            client=ClientInfo(meta.capabilities, about.name, about.version) if about else ClientInfo(meta.capabilities),
            open_reply=self._open_line,
            origin=request,
            principal=request.principal,
            headers=request.headers,
            name=params.name,
            token=None if meta.token is UNSET else meta.token,
            log_level="" if meta.log_level is UNSET else meta.log_level,
            tool=fast.tool,
            body=request.body,
            arguments=params.arguments,
            responses=params.responses or None,
        )

    def _fast_request(self, request: HttpRequest, revision: Revision) -> Call | None:
        """Return a request decoded in two typed passes, or None if anything is unusual. Its handler reads the
        parameters.
        """
        headers, body = request.headers, request.body
        if len(body) > MAX_ID or request.query:
            return None
        try:
            envelope = decode_request(body)
            params = decode_request_params(envelope.params)
            meta: Any = params.meta  # its levels are a Literal created at runtime
        except MALFORMED:
            return None
        method = envelope.method
        if (
            method != _UNDECODED[headers[b"mcp-method"]]
            or params.name.encode() != headers.get(b"mcp-name", b"")
            or meta.version != revision.date
            or not self._dispatcher.registry.admits(method, revision)
        ):
            return None
        about = meta.client
        request.cancel_on_disconnect = True
        return Call(
            revision=revision,
            id=envelope.id,
            method=method,
            params=bytes(envelope.params),
            client=ClientInfo(meta.capabilities, about.name, about.version) if about else ClientInfo(meta.capabilities),
            open_reply=self._open_line,
            origin=request,
            principal=request.principal,
            headers=headers,
            name=params.name,
            token=None if meta.token is UNSET else meta.token,
            log_level="" if meta.log_level is UNSET else meta.log_level,
        )
