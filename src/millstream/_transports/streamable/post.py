"""POST requests of Streamable HTTP. A usual message of either era is decoded once, strictly, by `Streamable`.

Anything unusual, and anything invalid, is left to `serve_exactly`, which begins again with the request's bytes.
"""

from collections.abc import Mapping

from msgspec import UNSET

from millstream._http.message import HttpRequest, Response, carries_json, parse_accept
from millstream._protocol import revisions
from millstream._protocol.admission import admit_per_request, check_notification, per_request_revision, read_initialize
from millstream._protocol.errors import INVALID_REQUEST, ProtocolError
from millstream._protocol.jsonrpc import (
    Envelope,
    check_text,
    read,
    refusal_message,
    result_message,
)
from millstream._protocol.revisions import ASSUMED, HANDSHAKE, NEWEST, PER_REQUEST, Revision
from millstream._server.calls.call import UNKNOWN_CLIENT, Call
from millstream._server.calls.services import UNLIMITED
from millstream._server.calls.sessions import Session
from millstream._transports.connection import is_batch
from millstream._transports.open_streams import NOT_JSON, error_response, rpc_refusal
from millstream._transports.streamable import StreamableEndpoint, StreamableExchange, finish, serve_batch
from millstream._transports.usual import (
    LISTEN,
    Sender,
    is_unread,
    open_usual,
    read_usual,
)

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
        if message.method != LISTEN:
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
    if message.method == LISTEN and not exchange.accepts.stream:
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


class Streamable:
    """The POST handler of the MCP endpoint."""

    def __init__(self, endpoint: StreamableEndpoint) -> None:
        self._endpoint = endpoint
        self._dispatcher = endpoint.dispatcher

    async def post(self, request: HttpRequest) -> Response | None:
        """Serve one POST of any revision."""
        headers = request.headers
        found = None
        if (
            # Without one of these, the request needs checks before it's decoded.
            headers.get(b"content-type") == b"application/json"
            and len(headers) == len(request.raw_headers)
            and parse_accept(headers.get(b"accept")).json
            and b"content-encoding" not in headers
            and not request.query
        ):
            found = self._read(request)
        if isinstance(found, Response):
            return found
        if found is None:
            return await serve_exactly(self._endpoint, request)
        session = found.session
        answer = await self._dispatcher.call(found, "" if session is None else session.id)
        if answer and found.reply_channel is None and found.failure is None:
            return Response(answer)
        return await finish(found, answer)

    def _read(self, request: HttpRequest) -> Call | Response | None:
        """Return a usual request as a call, or the response to a usual notification, or None for another message."""
        found, headers = read_usual(request.body), request.headers
        if found is None:
            return None
        message, sender = found
        if b"mcp-method" in headers:
            if (
                sender is None
                or _PER_REQUEST.get(headers.get(b"mcp-protocol-version")) is not sender[0]
                or headers[b"mcp-method"] != message.method.encode()
                or headers.get(b"mcp-name", b"") != (name := message.params.name).encode()
                or not (name.isascii() and name.isprintable())
                or name.startswith("=?")  # the sentinel of a value in Base64
            ):
                return None
        elif sender is not None or (sender := self._handshake(request)) is None:
            return None
        if message.id is UNSET:
            if not is_unread(self._dispatcher, message.method, request.body):
                return None
            self._endpoint.services.note(message.method, "http", sender[1], principal=request.principal)
            return _ACCEPTED
        call = open_usual(self._dispatcher, message, request.body, sender, request, self._endpoint.open_line)
        if call is not None:
            request.cancel_on_disconnect = call.session is None
        return call

    def _handshake(self, request: HttpRequest) -> Sender | None:
        """Return the sender of a message without the headers of the per-request era, or None if it's unusual."""
        headers, sessions = request.headers, self._endpoint.sessions
        value, revision = headers.get(b"mcp-session-id"), _BY_HEADER.get(headers.get(b"mcp-protocol-version"))
        if revision is None:
            return None
        if sessions is None:
            return revision, None, UNKNOWN_CLIENT
        if value is None:
            return None if b"mcp-protocol-version" in headers else (ASSUMED, None, UNKNOWN_CLIENT)
        session = sessions.find_known(value, request.principal, self._endpoint.address)
        if session is None or self._dispatcher.stopping:
            return None
        return session.revision, session, session.client
