"""The sessions of Streamable HTTP, and the exchange of one POST with its session.

`StreamableExchange` is one request to the MCP endpoint, and `StreamableEndpoint` the state that all requests share. The
calls of a batch run concurrently and share one reply. As for a single call, it becomes a stream when a call sends its
first message, if the client reads streams. Every answer is then an event of its own.
"""

import asyncio
import secrets
from functools import partial
from typing import Any, cast

from msgspec import Struct

from millstream._http.message import (
    JSON_HEAD,
    STREAM_HEAD,
    AcceptedTypes,
    HttpRequest,
    Response,
    client_id_of,
    parse_accept,
)
from millstream._protocol import revisions, sse
from millstream._protocol.admission import Admission, Handshake, check_handshake_header
from millstream._protocol.errors import INVALID_REQUEST, ProtocolError
from millstream._protocol.jsonrpc import Envelope, RequestId, error_message
from millstream._protocol.jsonrpc import encode as encode_json
from millstream._protocol.metadata import ClientInfo
from millstream._protocol.principal import Principal, Share
from millstream._protocol.revisions import ASSUMED, HANDSHAKE, Revision
from millstream._protocol.seal import (
    SessionToken,
    capabilities_of,
    capability_bits,
    decode,
    encode,
    hash_principal,
)
from millstream._recent import Recent
from millstream._server.calls import call as calls
from millstream._server.calls.call import Call
from millstream._server.calls.services import Services
from millstream._server.calls.sessions import NO_RECORD, Session, SessionRecord
from millstream._server.dispatch import Dispatcher
from millstream._stores.rates import share_for
from millstream._transports.connection import read_batch, refuse_batch, settle_task
from millstream._transports.open_streams import NULL_REPLY, OpenStreams, missing_session, unknown_session
from millstream._transports.streamable import PostReplyChannel, StreamLog, log_name, stream_name

MAX_CACHED_SESSIONS = 16 * 1024
"""Maximum number of cached sessions. Each takes about 1.1 KiB."""
MAX_DELETES = 10_000
"""Maximum session tombstones per principal, or per address without one."""
_CAPABILITIES_ROOM = 16 * 1024 * 1024
"""Maximum bytes of capabilities to store within the lifetime of a record; half of it per caller."""


class HttpSessions:
    """Sessions by their sealed ids.

    A session is its sealed id. Verified ids are cached in a small table, which only saves work.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._recorded = services.records.known
        self._remembered: Recent[bytes, tuple[Session, bytes, int]] = Recent(MAX_CACHED_SESSIONS)
        """Header value -> session, principal hash, expiry. Sessions without a record, or that this worker knows."""
        self._since = 0.0
        """Start of the current period."""
        self._kept = Share(_CAPABILITIES_ROOM)
        """Bytes of capabilities stored in it."""
        self._ended = Share()
        """Sessions that have ended in it."""
        services.records.on_forget(self._remembered.clear)

    async def mint(self, opening: Handshake, request: HttpRequest) -> tuple[Session, str]:
        """Create a session for a handshake, and return it with its sealed id. The store gets only data that doesn't fit
        into the id. The session's record counts against the share of its creator.

        Unknown capabilities above the limits are dropped, and the session begins with those in the id, so a flood of
        handshakes can't prevent others.
        """
        services = self._services
        now = int(services.clock())
        capabilities = dict(opening.client.capabilities)
        bits, exact = capability_bits(capabilities)
        expires_at = now + int(services.settings.session_ttl)
        owner, id = request.owner, secrets.token_hex(16)
        if owner:
            id = f"{share_for(owner)}.{id}"
        session = Session(id, opening.revision, opening.client, issued_at=now, expires_at=expires_at)
        self._start_period(now)
        recorded = not exact and self._kept.take(owner, len(encode_json(capabilities)))
        if recorded:
            try:
                await services.records.change(session, lambda _: SessionRecord(capabilities=capabilities))
            except ProtocolError:
                recorded = False
        token = SessionToken(
            id=session.id,
            revision=opening.revision.date,
            capabilities=bits,
            client_name=opening.client.name,
            client_version=opening.client.version,
            principal_hash=hash_principal(request.principal),
            issued_at=now,
            expires_at=expires_at,
            epoch=services.store.epoch,
            recorded=recorded,
        )
        return session, encode(token, services.ring, services.nonce())

    def _start_period(self, now: float) -> None:
        """Reset the counts once the sessions counted have expired."""
        if now - self._since > self._services.settings.session_ttl:
            self._since, self._kept, self._ended = now, Share(_CAPABILITIES_ROOM), Share()

    def find_known(self, value: bytes, principal: Principal | None) -> Session | None:
        """Return a session of the caller that has no record, or None to use `find`."""
        remembered = self._remembered.get(value)
        known = self._open(value) if remembered is None else remembered
        if known is None:
            return None
        session, principal_hash, expires_at = known
        clock = self._services.clock
        if (
            (b"" if principal is None else principal.binding) != principal_hash
            or session.id in self._recorded
            or expires_at <= clock()
            or (remembered is None and self._services.records.may_exist(session))
        ):
            return None
        if remembered is None:
            self._remembered.keep(value, known)
        return session

    async def find(self, request: HttpRequest) -> Session:
        """Return the session that a request names.

        Raises:
            ProtocolError: There is none. Unknown, expired, ended, and foreign sessions give the same error.
        """
        value = request.headers[b"mcp-session-id"]
        known = self._remembered.get(value)
        if known is None or known[2] <= self._services.clock():
            known = self._open(value)
        if known is None or known[1] != hash_principal(request.principal):
            raise unknown_session()
        session, records = known[0], self._services.records
        record = await records.get(session) if records.may_exist(session) else NO_RECORD
        if session.id in records.known or not records.may_exist(session):
            self._remembered.keep(value, known)
        if record is not NO_RECORD:
            if record.ended:
                raise unknown_session()
            if record.capabilities is not None:
                client = ClientInfo(record.capabilities, session.client.name, session.client.version)
                session = Session(
                    session.id, session.revision, client, current=session.current, issued_at=session.issued_at,
                    expires_at=session.expires_at,
                )  # fmt: skip
        return session

    def _open(self, value: bytes) -> tuple[Session, bytes, int] | None:
        services = self._services
        token = decode(value.decode("latin-1"), services.ring, services.clock() - services.leeway)
        revision: Revision | None = HANDSHAKE.get(token.revision) if token is not None else None
        if token is None or revision is None:
            return None
        client = ClientInfo(capabilities_of(token.capabilities), token.client_name, token.client_version)
        current = token.epoch == services.store.epoch
        issued_at = 0 if token.recorded else token.issued_at
        session = Session(token.id, revision, client, current=current, issued_at=issued_at, expires_at=token.expires_at)
        return session, token.principal_hash, token.expires_at + int(services.leeway)

    async def end(self, session: Session, owner: str) -> bool:
        """Write the tombstone of a session. Return False if the caller has ended too many.

        Raises:
            ProtocolError: The store is full.
        """
        now = self._services.clock()
        self._start_period(now)
        if self._ended.count(owner) >= MAX_DELETES:
            return False
        left = session.expires_at + self._services.leeway - now
        await self._services.records.bury(session, max(1.0, left))
        self._ended.take(owner)
        return True


EMPTY_STREAM = Response(b"", 200, STREAM_HEAD)
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
        can_stream = readable.stream and (not self.json_only or call.long_lived)
        session, log = call.session, None
        if session is not None and can_stream and call.revision.event_ids:
            store = self.services.store
            stream = stream_name(store.workers.me, secrets.token_hex(16))
            cancel = partial(self.dispatcher.control.cancel, session.id, call.id)
            log = StreamLog(store, log_name(session.id, stream), stream, call.id, cancel)
        streams = self.streams if can_stream else None
        return PostReplyChannel(request, call.revision, streams, log, can_stream and session is not None)


async def finish(call: Call, body: bytes) -> Response | None:
    """Send the response to a call on its stream, or return it as a single message if no stream is open."""
    line = call.reply_channel
    if isinstance(line, PostReplyChannel) and line.streaming:
        await line.finish(body)
        return None
    if not body:
        return EMPTY_STREAM
    error = call.failure.error if call.failure is not None else None
    return Response(body, _status(call), JSON_HEAD + error.head if error is not None else JSON_HEAD)


def _status(call: Call) -> int:
    """Return the HTTP status of a call's response. Handshake-era errors have status 200, unless they have a head."""
    error = call.failure.error if call.failure is not None else None
    if error is None or not (call.revision.result_type or error.head):
        return 200
    return error.status


class StreamableExchange(Struct, eq=False):
    """One POST on the exact path."""

    endpoint: StreamableEndpoint
    request: HttpRequest

    @property
    def accepts(self) -> AcceptedTypes:
        """The reply types that the client accepts."""
        return parse_accept(self.request.headers.get(b"accept"))

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

    def note(self, method: str, session: Session | None, status: str = "") -> None:
        """Report a message to the observers."""
        self.endpoint.services.note(method, "http", session, status, principal=self.request.principal)

    async def notify(self, message: Envelope, session: Session | None, revision: Revision) -> None:
        """Pass a notification to the extension that handles it, and in the handshake era to a call that it cancels."""
        self.note(message.method, session)
        dispatcher = self.endpoint.dispatcher
        kept = self.endpoint.services.admit_notification(message, self.request.principal)
        if kept is None:
            return
        if revision.handshake:
            await dispatcher.control.notified_anywhere(kept, "" if session is None else session.id)
        if kept.method in dispatcher.registry.notification_handlers:
            way = {**self._way(), "open_reply": None, "reply_channel": NULL_REPLY}
            dispatcher.hear(calls.notification_call(kept, session, revision, **way))

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


async def serve_batch(exchange: StreamableExchange) -> Response | None:
    """Answer a batch.

    Raises:
        ProtocolError: The revision has no batches, or the batch is refused as a whole.
    """
    messages = read_batch(exchange.request.body)
    exchange.request.body = b""  # each call has its own part, and can run for a day
    session, revision = await exchange.session()
    if not revision.batches:
        raise refuse_batch(f"revision {revision.date} has no batches")
    exchange.check_readable()
    return await _Batch(exchange, session, revision, "" if session is None else session.id).serve(messages)


class _Batch(Struct, eq=False):
    """The calls of one batch, and their shared reply channel."""

    exchange: StreamableExchange
    session: Session | None
    revision: Revision
    scope: str
    line: PostReplyChannel | None = None

    async def serve(self, messages: list[Envelope | ProtocolError]) -> Response | None:
        """Process every message, and answer with an array unless the reply became a stream."""
        work = [self._take(message) for message in messages]
        messages.clear()
        answers = [each for each in await asyncio.gather(*work) if each[1]]
        line = self.line
        if line is not None and line.streaming:
            for request_id, body in answers:
                await line.send(body, request_id)
            await line.finish(b"")
            return None
        array = b",".join(body for _, body in answers)
        return self.exchange.reply(b"[%b]" % array) if array else Response(b"", 202, b"")

    async def _take(self, message: Envelope | ProtocolError) -> tuple[RequestId | None, bytes]:
        """Return the id and answer of a request, unless it was answered on the stream."""
        if isinstance(message, ProtocolError):
            return None, self._refuse(None, "", message)
        dispatcher = self.exchange.endpoint.dispatcher
        if message.is_answer or message.id is None:
            if not message.is_answer:
                await self.exchange.notify(message, self.session, self.revision)
                return None, b""
            self.exchange.note("response", self.session)
            try:
                await dispatcher.control.answer_anywhere(message, self.scope)
            except ProtocolError as exc:
                return None, self._refuse(None, "response", exc)
            return None, b""
        try:
            call = self.exchange.handshake_call(message, self.session, self.revision)
            dispatcher.load.admit(call, call.method)
            dispatcher.load.take(call, len(call.params))
        except ProtocolError as exc:
            return message.id, self._refuse(message.id, message.method, exc)
        # The request covers the whole batch, but a cancellation is for one call.
        call.stop = cast("asyncio.Task[Any]", asyncio.current_task()).cancel
        call.open_reply = self._connect
        body = await dispatcher.call(call, self.scope)
        await settle_task()
        if not body or self.line is None or not self.line.streaming:
            return call.id, body
        await self.line.send(body, call.id)
        return call.id, b""

    def _refuse(self, request_id: RequestId | None, method: str, exc: ProtocolError) -> bytes:
        exc = revisions.error(exc, self.revision)
        self.exchange.note(method, self.session, str(exc.code))
        return error_message(request_id, exc.code, exc.message)

    def _connect(self, call: Call) -> PostReplyChannel:
        """Return the shared reply channel, created when the first call needs it."""
        if self.line is None:
            self.line = self.exchange.endpoint.open_line(call)
        return self.line
