"""The exact path of a POST: media types, JSON, envelope, era, and session. Each error has its code and status."""

import contextlib

from millstream._http.message import HttpRequest, Response, carries_json
from millstream._protocol import revisions
from millstream._protocol.admission import admit_per_request, check_notification, is_per_request
from millstream._protocol.errors import INVALID_REQUEST, ProtocolError
from millstream._protocol.handshake import read_initialize
from millstream._protocol.jsonrpc import Envelope, check_text, error_message, read, result_message
from millstream._protocol.revisions import ASSUMED, NEWEST
from millstream._server.calls.call import Call
from millstream._transports.batches import is_batch
from millstream._transports.refusals import WRONG_TYPE, error_response, refusal, too_many_streams, unknown_session
from millstream._transports.streamable.batch import serve_batch
from millstream._transports.streamable.exchange import LISTEN, StreamableEndpoint, StreamableExchange

_ACCEPTED = Response(b"", 202, b"")
_UNREADABLE = refusal(406, INVALID_REQUEST, "Not acceptable. Accept application/json, text/event-stream, or both.")
_UNREADABLE_STREAM = "Not acceptable. A subscription is answered with text/event-stream."
_STREAM_BOUND = frozenset({"resources/subscribe", "resources/unsubscribe"})
"""Methods whose effects are lost with an older store epoch. The client must initialize and subscribe again."""


async def serve_exactly(endpoint: StreamableEndpoint, request: HttpRequest) -> Response | None:
    """Answer a POST of any kind."""
    exchange = StreamableExchange(endpoint, request)
    turned_away = _check_media(exchange)
    if turned_away is not None:
        endpoint.services.note("", "http", status=str(turned_away.status))
        return turned_away
    message: Envelope | None = None
    try:
        check_text(request.body)
        if is_batch(request.body):
            return await serve_batch(exchange)
        message = read(request.body)
        if message.is_answer:
            return await _take_answer(exchange, message)
        if message.is_request:
            endpoint.dispatcher.load.admit(request, message.method)
            if message.method != LISTEN:
                exchange.check_readable()
        if is_per_request(message, request.headers):
            opened: Call | Response = _per_request(exchange, message)
        else:
            opened = await _handshake(exchange, message)
        if isinstance(opened, Call):
            endpoint.dispatcher.load.take(opened, len(opened.params))
    except ProtocolError as exc:
        return _refuse(exchange, message, exc)
    if isinstance(opened, Response):
        return opened
    # The call has its own data and can run for a day, so the request's body is released.
    request.body = b""
    del message
    return await exchange.run(opened)


def _check_media(exchange: StreamableExchange) -> Response | None:
    if not carries_json(exchange.request.headers):
        return WRONG_TYPE
    return None if exchange.accepts.json or exchange.accepts.stream else _UNREADABLE


def _refuse(exchange: StreamableExchange, message: Envelope | None, exc: ProtocolError) -> Response:
    method = "" if message is None else message.method or "response"
    request_id = message.id if message is not None and message.is_request else None
    if message is not None and not _describes_itself(exchange, message):
        exc = revisions.error(exc, ASSUMED)
    exchange.endpoint.services.note(method, "http", status=str(exc.code))
    if exc.status == 503:
        return error_response(exc, request_id)
    return exchange.reply(error_message(request_id, exc.code, exc.message, exc.data), exc.status, exc.head)


def _describes_itself(exchange: StreamableExchange, message: Envelope) -> bool:
    with contextlib.suppress(ProtocolError):
        return is_per_request(message, exchange.request.headers)
    return True


# The per-request era


def _per_request(exchange: StreamableExchange, message: Envelope) -> Call | Response:
    endpoint, request = exchange.endpoint, exchange.request
    if message.id is None:
        check_notification(message)
        kept = endpoint.services.admit_notification(message, request.principal)
        if kept is not None and kept.method in endpoint.dispatcher.registry.notification_handlers:
            exchange.hear(kept, None, NEWEST)
        endpoint.services.note(message.method, "http", principal=request.principal)
        return _ACCEPTED
    if message.method == LISTEN and not exchange.accepts.stream:
        raise ProtocolError(INVALID_REQUEST, _UNREADABLE_STREAM, status=406)
    if message.method == LISTEN and endpoint.streams.full(request):
        raise too_many_streams()
    registry = endpoint.dispatcher.registry
    admitted = admit_per_request(
        message,
        serves=registry.serves,
        requires=registry.requires,
        header_params=registry.header_params,
        headers=request.headers,
        raw_headers=request.raw_headers,
    )
    return exchange.per_request_call(message, admitted)


# The handshake era


async def _handshake(exchange: StreamableExchange, message: Envelope) -> Call | Response:
    endpoint, request = exchange.endpoint, exchange.request
    if message.method == "initialize" and message.id is not None:
        return await _initialize(exchange, message)
    session, revision = await exchange.session()
    if session is not None and not session.current and message.method in _STREAM_BOUND:
        raise unknown_session()
    if message.id is None:
        check_notification(message)
        kept = endpoint.services.admit_notification(message, request.principal)
        if kept is not None:
            await endpoint.dispatcher.control.notified_anywhere(kept, "" if session is None else session.id)
            if kept.method in endpoint.dispatcher.registry.notification_handlers:
                exchange.hear(kept, session, revision)
        endpoint.services.note(message.method, "http", session, principal=request.principal)
        return _ACCEPTED
    # Many requests may have waited for their session's record.
    endpoint.dispatcher.load.admit(request, message.method)
    return exchange.handshake_call(message, session, revision)


async def _initialize(exchange: StreamableExchange, message: Envelope) -> Response:
    endpoint, request = exchange.endpoint, exchange.request
    sessions = endpoint.sessions
    if sessions is not None and b"mcp-session-id" in request.headers:
        raise ProtocolError(INVALID_REQUEST, "Invalid request: this session is already initialized", status=400)
    opening = read_initialize(message.params)
    assert message.id is not None  # noqa: S101  the caller has looked
    result = endpoint.dispatcher.announcement.initialize(opening.revision, streams=sessions is not None)
    head, session = b"", None
    if sessions is not None and not opening.sessionless:
        session, sealed = await sessions.mint(opening, request)
        head = b"mcp-session-id: %b\r\n" % sealed.encode()
    endpoint.services.note("initialize", "http", session, principal=request.principal, opening=opening)
    return exchange.reply(result_message(message.id, result), head=head)


async def _take_answer(exchange: StreamableExchange, message: Envelope) -> Response:
    """Pass a client's answer to the call that asked, which may be on another worker."""
    endpoint, request = exchange.endpoint, exchange.request
    if endpoint.sessions is None or b"mcp-session-id" not in request.headers:
        raise ProtocolError(INVALID_REQUEST, "Invalid request: a response needs the session of its request", status=400)
    session = await endpoint.sessions.find(request)
    await endpoint.dispatcher.control.answer_anywhere(message, session.id)
    endpoint.services.note("response", "http", session, principal=request.principal)
    return _ACCEPTED
