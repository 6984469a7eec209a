"""HTTP+SSE, the transport of 2024-11-05: a stream for server messages, and a path for client messages.

`GET /sse` opens the stream. Its first event names the path for POST requests, with a sealed id that tells any worker
which worker has the stream, and who owns it. Closing the stream ends the session. The handshake revisions can be
negotiated, and requests of the per-request era are also served.
"""

import secrets
from functools import partial
from hashlib import sha256

import msgspec
from msgspec import Struct

from millstream._http.message import STREAM_HEAD, TEXT_HEAD, HttpRequest, Response, Sink, carries_json, query_value
from millstream._protocol import sse
from millstream._protocol.admission import check_notification
from millstream._protocol.errors import INVALID_REQUEST, SERVER_ERROR, ProtocolError
from millstream._protocol.jsonrpc import check_text, read, require_json
from millstream._protocol.principal import Principal
from millstream._protocol.seal import hash_principal
from millstream._server.dispatch import Dispatcher
from millstream._server.peers import PostedMessage
from millstream._stores.base import StoreFull, StoreUnavailable
from millstream._transports.connection import ClientConnection, is_batch
from millstream._transports.open_streams import (
    NOT_JSON,
    SESSION_NOT_FOUND,
    TOO_MANY_STREAMS,
    OpenStreams,
    error_response,
    no_stream,
    rpc_refusal,
)

_ACCEPTED = Response(b"Accepted", 202, TEXT_HEAD)
_NO_ID = rpc_refusal(
    400, INVALID_REQUEST, "Bad request: session_id is missing. POST to the path in the endpoint event."
)
_UNREACHABLE = rpc_refusal(
    503, SERVER_ERROR, "This session's stream is unavailable. Try again.", head=b"retry-after: 1\r\n"
)
_UNKNOWN = rpc_refusal(404, SESSION_NOT_FOUND, "Session not found. Open a new stream.")


class _Address(Struct, frozen=True, gc=False, array_like=True):
    """The contents of a session id."""

    worker: str
    unique: bytes
    rights_hash: bytes
    set_name: str = ""


_KIND = b"sse"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Address).decode


class HttpSse:
    """The GET and POST handlers of the transport."""

    def __init__(self, dispatcher: Dispatcher, streams: OpenStreams) -> None:
        self._dispatcher = dispatcher
        self._services = services = dispatcher.services
        self._streams = streams
        self._connections: dict[str, tuple[ClientConnection, bytes, Sink]] = {}
        """Session id -> connection, a hash of its caller and their scopes, and its stream."""
        self._name = services.store.workers.me
        services.peers.on_workers(self._check_own_name)
        services.peers.on(PostedMessage, self._on_posted)

    async def get(self, request: HttpRequest) -> Response | None:
        """Open the stream and serve the session until it closes."""
        if (unread := no_stream(request.headers.get(b"accept"))) is not None:
            return unread
        principal = request.principal
        if self._streams.full(request):
            return TOO_MANY_STREAMS
        sink = request.open(200, STREAM_HEAD)
        services, owner = self._services, _hash_rights(principal)
        name = self._dispatcher.address.name
        address = _Address(services.store.workers.me, secrets.token_bytes(16), owner, name)
        session_id = services.ring.seal(_KIND, _encode(address), services.nonce())
        connection = ClientConnection(
            self._dispatcher,
            partial(_write, sink),
            sink.drain,
            principal=principal,
            peer=request.peer,
            headers=request.headers,
            transport="sse",
        )
        self._streams.add(sink, request, ("sse", ""), finish=connection.finish)
        self._connections[session_id] = (connection, owner, sink)
        request.leave = partial(connection.leave, sink.close)
        try:
            sink.write(sse.endpoint(f"{request.root_path}{self._dispatcher.address.messages}?session_id={session_id}"))
            await sink.wait_closed()
        finally:
            request.leave = None  # it refers to the stream
            del self._connections[session_id]
            sink.close()
            await connection.close()
        return None

    async def post(self, request: HttpRequest) -> Response:
        """Process one message. The response is sent on the stream."""
        reply = await self._take(request)
        if reply is not _ACCEPTED:  # else the connection charges the message
            if (refused := self._services.request_limits.charge(request.principal, request.peer)) is not None:
                reply = error_response(refused)
            self._services.note("", "sse", status=str(reply.status))
        return reply

    async def _take(self, request: HttpRequest) -> Response:
        if not carries_json(request.headers):
            return NOT_JSON
        session_id = query_value("session_id", request.query)
        if not session_id:
            return _NO_ID
        found = self._connections.get(session_id)
        if found is not None and found[1] != _hash_rights(request.principal):
            return _UNKNOWN
        worker = "" if found is not None else self._worker_of(session_id, request.principal)
        if found is None and not worker:
            return _UNKNOWN
        try:
            check_text(request.body)
            _check_message(request.body)
        except ProtocolError as exc:
            return error_response(exc)
        if found is not None:
            found[0].receive(request.body)
            return _ACCEPTED
        try:
            there = await self._services.peers.deliver(worker, PostedMessage(session_id, request.body), request.owner)
        except (StoreUnavailable, StoreFull):
            return _UNREACHABLE
        return _ACCEPTED if there else _UNKNOWN

    async def _check_own_name(self) -> None:
        """End all streams after this worker got a new name, because their session ids contain a former one."""
        if self._services.peers.is_me(self._name):
            return
        self._name = self._services.store.workers.me
        for _, _, sink in list(self._connections.values()):
            sink.close()

    def _on_posted(self, message: PostedMessage, worker: str) -> None:
        # The sending worker knows the owner of the session, but not whether its stream is still open.
        found = self._connections.get(message.connection)
        if found is not None:
            found[0].receive(message.body)

    def _worker_of(self, session_id: str, principal: Principal | None) -> str:
        """Return the worker that has the stream of a principal's session, or an empty string if it's this one or there
        is none.
        """
        services = self._services
        if not services.peers.shared:
            return ""
        try:
            address = _decode(services.ring.open(_KIND, session_id) or b"")
        except msgspec.DecodeError:
            return ""
        is_foreign = address.set_name != self._dispatcher.address.name
        if is_foreign or address.rights_hash != _hash_rights(principal) or services.peers.is_me(address.worker):
            return ""
        return address.worker


def _hash_rights(principal: Principal | None) -> bytes:
    """Return a hash of a caller and their scopes. Calls of a session run with the scopes of its stream, so a token with
    other scopes needs a stream of its own.
    """
    scopes = " ".join(() if principal is None else sorted(principal.scopes))
    return sha256(hash_principal(principal) + scopes.encode("utf-8", "surrogatepass")).digest()[:16]


def _check_message(body: bytes) -> None:
    """Refuse a message without an id to answer, which the stream's errors couldn't name."""
    if is_batch(body):
        require_json(body)
        return
    message = read(body)
    if message.id is None and message.method:
        check_notification(message)


def _write(sink: Sink, message: bytes) -> bool:
    sink.write(sse.encode_message(message))
    return not sink.closed
