"""POST requests of Streamable HTTP. A usual message of either era is decoded once, strictly, by `Streamable`.

Anything unusual, and every error, is left to `serve_exactly`, which begins again with the request's bytes.
"""

from collections.abc import Mapping

from msgspec import UNSET, Raw, Struct

from millstream._http.message import HttpRequest, Response, carries_json, parse_accept
from millstream._protocol import revisions
from millstream._protocol.admission import admit_per_request, check_notification, per_request_revision, read_initialize
from millstream._protocol.errors import INVALID_REQUEST, ProtocolError
from millstream._protocol.jsonrpc import (
    MALFORMED,
    MAX_ID,
    Envelope,
    check_text,
    decoder,
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
from millstream._transports.connection import is_batch
from millstream._transports.open_streams import NOT_JSON, error_response, rpc_refusal, unknown_session
from millstream._transports.streamable import StreamableEndpoint, StreamableExchange, finish, serve_batch
from millstream._transports.usual import UsualMessage, prepare, read_usual

_LISTEN = "subscriptions/listen"
_ACCEPTED = Response(b"", 202, b"")
_UNREADABLE = rpc_refusal(406, INVALID_REQUEST, "Not acceptable. Accept application/json, text/event-stream, or both.")
_UNREADABLE_STREAM = "Not acceptable. A subscription is answered with text/event-stream."
_STREAM_BOUND = frozenset({"resources/subscribe", "resources/unsubscribe"})
"""Methods whose effects are lost with an older store epoch. The client must initialize and subscribe again."""


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
    if session is not None and not session.current and message.method in _STREAM_BOUND:
        raise unknown_session()
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
_USUAL = {
    revision.date: frozenset(revision.requests) - {"initialize", _LISTEN} - _STREAM_BOUND
    for revision in (*HANDSHAKE.values(), *PER_REQUEST.values())
}
"""Date of a revision -> requests that take no more checks than `Streamable` has."""
_MAX_USUAL = 64 * 1024
"""Maximum size of a usual body, in bytes. The exact path reads a larger one in parts, each with its own bound."""


class _Body(Struct, gc=False):
    params: Raw = Raw(b"")


_decode_body = decoder(_Body)


def _is_short(request: HttpRequest) -> bool:
    """Return whether an id can't be too long, and no client of the hub is named."""
    return len(request.body) <= MAX_ID and not request.query


class Streamable:
    """The POST handler of the MCP endpoint."""

    def __init__(self, endpoint: StreamableEndpoint) -> None:
        self._endpoint = endpoint
        self._dispatcher = endpoint.dispatcher
        self._registry = endpoint.dispatcher.registry

    async def post(self, request: HttpRequest) -> Response | None:
        """Serve one POST of any revision."""
        headers, body, dispatcher = request.headers, request.body, self._dispatcher
        found, size = None, len(body)
        if (
            # Without one of these, the request needs checks before it's decoded.
            dispatcher.begin is None
            and headers.get(b"content-type") == b"application/json"
            and size <= _MAX_USUAL
            and len(headers) == len(request.raw_headers)
            and (body.isascii() or is_utf8(body))
            and not exceeds_limits(body)
            # With fewer calls in flight, no caller can exceed its limit.
            and (len(dispatcher.calls) < dispatcher.load.max_each or not dispatcher.load.full(request.owner))
            and parse_accept(headers.get(b"accept")).json
            and b"content-encoding" not in headers
        ):
            found = self._read(request)
        if isinstance(found, Response):
            return found
        if found is None or (size > LIGHT and not dispatcher.load.takes(found, size)):
            del body  # a stream may be open for a day
            return await serve_exactly(self._endpoint, request)
        session = found.session
        answer = await dispatcher.call(found, "" if session is None else session.id)
        if answer and found.reply_channel is None and found.failure is None:
            return Response(answer)
        return await finish(found, answer)

    def _read(self, request: HttpRequest) -> Call | Response | None:
        """Return a usual request as a call, or the response to a usual notification. Return None for any other message.

        A tool's arguments are decoded here. The handlers of other methods decode their parameters.
        """
        try:
            message = read_usual(request.body)
        except MALFORMED:
            return None
        by_header = b"mcp-method" in request.headers
        known = self._per_request(message, request) if by_header else self._handshake(message, request)
        if known is None:
            return None
        method, params, (revision, session, client) = message.method, message.params, known
        if message.id is UNSET:
            return self._note(message, request, session) if revision.handshake else None
        tool, arguments, rest, body = None, None, b"", request.body
        if method == "tools/call" and self._registry.relayed is None:
            prepared = prepare(self._registry, params, client)
            if prepared is None:
                return None
            tool, arguments = prepared
        elif method in _USUAL[revision.date] and self._registry.admits(method, revision) and _is_short(request):
            rest, body = bytes(_decode_body(body).params), b""
        else:
            return None
        meta = params.meta
        request.cancel_on_disconnect = session is None
        call = Call(
            revision=revision,
            id=message.id,
            method=method,
            params=rest,
            client=client,
            open_reply=self._endpoint.open_line,
            origin=request,
            session=session,
            principal=request.principal,
            headers=request.headers,
            name=params.name,
            token=None if meta.token is UNSET else meta.token,
            tool=tool,
            body=body,
            arguments=arguments,
        )
        if not revision.handshake and (meta.log_level or params.responses):
            call.log_level, call.responses = meta.log_level or "", params.responses or None
        return call

    def _per_request(
        self, message: UsualMessage, request: HttpRequest
    ) -> tuple[Revision, Session | None, ClientInfo] | None:
        """Return the revision, session, and client of a message, or None if the headers or `_meta` need more checks."""
        headers, meta = request.headers, message.params.meta
        revision = _PER_REQUEST.get(headers.get(b"mcp-protocol-version"))
        if (
            revision is None
            or meta.version != revision.date
            or headers[b"mcp-method"] != message.method.encode()
            or headers.get(b"mcp-name", b"") != message.params.name.encode()
            or meta.capabilities is UNSET
        ):
            return None
        about = meta.client
        client = ClientInfo(meta.capabilities, about.name, about.version) if about else ClientInfo(meta.capabilities)
        return revision, None, client

    def _handshake(
        self, message: UsualMessage, request: HttpRequest
    ) -> tuple[Revision, Session | None, ClientInfo] | None:
        """Return what `_per_request` returns, for a message of the other era."""
        headers, sessions = request.headers, self._endpoint.sessions
        value, revision = headers.get(b"mcp-session-id"), _BY_HEADER.get(headers.get(b"mcp-protocol-version"))
        if revision is None or message.params.meta.version is not UNSET:
            return None
        if sessions is None:
            return revision, None, UNKNOWN_CLIENT
        if value is None:
            return None if b"mcp-protocol-version" in headers else (ASSUMED, None, UNKNOWN_CLIENT)
        session = sessions.find_known(value, request.principal, self._endpoint.address)
        if session is None or self._dispatcher.stopping:
            return None
        return session.revision, session, session.client

    def _note(self, message: UsualMessage, request: HttpRequest, session: Session | None) -> Response | None:
        """Return the response to a notification that nothing here reads."""
        method, services, registry = message.method, self._endpoint.services, self._registry
        if (
            not method.startswith("notifications/")
            or method == "notifications/cancelled"
            or services.notification_filters
            or services.request_limits is not UNLIMITED
            or registry.relayed is not None
            or method in registry.notification_handlers
            or not _is_short(request)
        ):
            return None
        services.note(method, "http", session, principal=request.principal)
        return _ACCEPTED
