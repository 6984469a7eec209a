"""MCP over Streamable HTTP: sessions, the exchange of one POST, its reply, and the log of its stream.

A reply is a single message, or a stream from the first notification on. Streams of handshake sessions are logged as
they're sent: their events have ids, the call outlives the connection, and a client whose connection broke can read the
rest on another one (https://modelcontextprotocol.io/specification/2025-11-25/basic/transports, resumability). Other
streams end with their connection.

`StreamableExchange` is one request to the MCP endpoint, and `StreamableEndpoint` the state that all requests share. The
calls of a batch run concurrently and share one reply. As for a single call, it becomes a stream when a call sends its
first message, if the client reads streams. Every answer is then an event of its own.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

import msgspec
from msgspec import Struct, field

from millstream._http.message import (
    JSON_HEAD,
    STREAM_HEAD,
    AcceptedTypes,
    Callback,
    HttpRequest,
    Response,
    Sink,
    client_id_of,
    parse_accept,
)
from millstream._protocol import revisions, seal, sse
from millstream._protocol.admission import Admission, Handshake, check_handshake_header
from millstream._protocol.errors import INTERNAL_ERROR, INVALID_REQUEST, SERVER_ERROR, ProtocolError
from millstream._protocol.jsonrpc import Envelope, RequestId, decode_id, encode, error_message, refusal_message
from millstream._protocol.metadata import ClientInfo
from millstream._protocol.principal import Principal, Share
from millstream._protocol.revisions import ASSUMED, HANDSHAKE, Revision
from millstream._protocol.seal import (
    SessionToken,
    capabilities_of,
    capability_bits,
    hash_principal,
)
from millstream._recent import Recent
from millstream._server.calls import call as calls
from millstream._server.calls.call import Call
from millstream._server.calls.services import Services
from millstream._server.calls.sessions import NO_RECORD, Session, SessionRecord, convert_store_errors
from millstream._server.dispatch import Dispatcher
from millstream._stores.base import Position, StoreFull, StoreUnavailable, StreamSealed, read_offset
from millstream._stores.rates import share_for
from millstream._stores.store import Store
from millstream._transports.connection import read_batch, refuse_batch, settle_task
from millstream._transports.open_streams import NULL_REPLY, OpenStreams, missing_session, unknown_session

OPEN, MESSAGE, END = b"o", b"m", b"e"
"""The first byte of a log entry: OPEN with the request id, MESSAGE, or END, which can be empty."""

TTL = 300.0
"""Seconds that the messages of a broken stream can be resumed."""
MAX_MESSAGES = 1_000
_WORKER = 12
"""Number of characters in a worker's name."""
_WORKER_LOST = "The worker that ran this call has stopped. The call may have taken effect. Check before you try again."

_NOT_KEPT = "The result is too large to be read again on another connection."


async def append(store: Store, name: str, mark: bytes, message: bytes, answers: RequestId | None) -> Position:
    """Append a message to the log and notify readers of the stream.

    Args:
        name: The log's name.
        mark: MESSAGE or END.
        message: The message, which can be empty.
        answers: The request that the message answers. If the message is too large, an error for this request is logged.
    """
    put = partial(store.log.append, name, ttl=TTL, max_entries=MAX_MESSAGES, seal=mark == END)
    position = None
    with suppress(StoreFull):
        position = await put(mark + message)
    if position is None:
        # The full message is sent once, and a client that resumes receives the error.
        position = await put(mark if answers is None else mark + error_message(answers, INTERNAL_ERROR, _NOT_KEPT))
    return position


async def close_abandoned(store: Store, name: str) -> None:
    """Write the end of a dead worker's stream: an error, unless the stream had already ended. If the worker was
    only paused, it can no longer write to the stream.

    Raises:
        LocalError, OSError: The store doesn't respond.
    """
    first = await store.log.read(name, None, 1)
    answer = b""
    # A long stream has lost its first entries, and a batch has many ids. Their clients see a stream without an answer.
    if first and first[0].data[:1] == OPEN and len(first[0].data) > 1:
        answer = error_message(decode_id(first[0].data[1:]), SERVER_ERROR, _WORKER_LOST)
    with suppress(StreamSealed):
        await append(store, name, END, answer, None)


def writer_of(log: str) -> str:
    """Return the worker that writes a call's stream, from the name of its log."""
    return log.rpartition(":")[2][:_WORKER]


def log_name(session_id: str, stream: str) -> str:
    """Return the name of a stream's log. It contains the session id, so other sessions can't name it."""
    return f"call:{session_id}:{stream}"


def event_id(stream: str, position: Position) -> str:
    """Return the event id that a client sends back in `Last-Event-ID`."""
    return f"{position.epoch}.{stream}.{position.offset}"


def parse_event_id(text: str) -> tuple[str, Position] | None:
    """Return the (stream, position) of an event id, or None if the id isn't ours."""
    epoch, _, rest = text.partition(".")
    stream, _, offset = rest.partition(".")
    number = read_offset(offset)
    if not epoch or not stream.isalnum() or number is None:
        return None
    return stream, Position(epoch, number)


_HIGH_WATER = 64 * 1024
_LOST = "The store was unavailable while this call ran, so a part of its stream is lost. Try again."

_logger = logging.getLogger("millstream")


class StreamLog(Struct, eq=False):
    """The log of a call's stream, which the client can read on another connection."""

    store: Store
    name: str
    stream: str
    """Name of the stream in event ids. It begins with the worker that writes the stream."""
    id: RequestId
    """The request of the call."""
    cancel: Callable[[], object]
    """Ends the call."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while an entry is logged and sent."""
    kept: bool = True
    """Whether everything sent so far is in the log."""

    async def append(
        self, mark: bytes, message: bytes, answers: RequestId | None, streams: OpenStreams
    ) -> Position | None:
        """Append a message. Return None if the store is unavailable or full.

        After that the stream has no ids, because its log has a gap. A client that resumes it gets an error at its end,
        while the connected client misses nothing.

        Raises:
            StreamSealed: Another worker has ended the log.
        """
        try:
            if self.kept:
                return await append(self.store, self.name, mark, message, answers)
            if mark == END:
                await self.end()
        except (StoreUnavailable, StoreFull) as failure:
            if self.kept:
                _logger.warning(
                    "The store is unavailable, so a call's stream continues without being logged: %s", failure
                )
            self.kept = False
            if mark == END:
                streams.unended.keep(self.name, self.end)
        return None

    async def end(self) -> None:
        """End the log with an error when a part of the stream is missing."""
        await append(self.store, self.name, END, error_message(self.id, INTERNAL_ERROR, _LOST), None)


class PostReplyChannel(Struct, eq=False):
    """The `ReplyChannel` of one POST, for its call or for all calls of a batch.

    It has no reference to the call, which refers to its reply channel: a cycle would keep the request's body.
    """

    request: HttpRequest
    _revision: Revision
    _streams: OpenStreams
    _log: StreamLog | None
    _reads_streams: bool
    asks: bool
    """Whether questions can be asked. Answers come in the session's other requests."""
    _sink: Sink | None = None
    _number: int = 0
    """The stream among the open ones."""
    _end: Callback | None = None
    """Ends the stream's subscription."""
    streaming: bool = False
    """Whether the reply has become a stream."""

    async def keep_alive(self) -> None:
        """Turn the reply of a silent call into a stream, if the client reads streams."""
        if self._reads_streams and not self.streaming:
            await self._open()

    async def send(self, message: bytes, answers: RequestId | None = None) -> None:
        """Send a message as an event. It's dropped if the client can't read a stream.

        Args:
            answers: The request that the message answers, if the stream carries several answers.
        """
        if not self._reads_streams:
            return
        if not self.streaming:
            await self._open()
        await self._write(MESSAGE, message, answers)
        if self._sink is not None and self._sink.buffered > _HIGH_WATER:
            await self._sink.drain()

    def push(self, message: bytes) -> bool:
        """Send without waiting, on streams that aren't logged."""
        sink = self._sink
        if sink is None or sink.closed:
            return False
        sink.write(sse.encode_message(message))
        return not sink.closed

    def on_close(self, callback: Callback) -> Callback:
        """Call `callback` when the stream of a subscription ends for any reason. It ends with the caller's credential.
        Other calls don't last that long.
        """
        self._end = callback
        if self._sink is not None:
            self._subscribe(self._sink, callback)
        return self._has_ended

    def _subscribe(self, sink: Sink, callback: Callback) -> None:
        self._streams.subscribe(self._number, self.request, self._finish)
        sink.on_close(callback)

    def _has_ended(self) -> None:
        self._end = None

    async def interrupt(self, retry_ms: int | None) -> bool:
        """Close the connection. The client reads the rest with `Last-Event-ID`."""
        if self._log is None or not self._revision.priming:
            return False
        if not self.streaming:
            await self._open()
        sink = self._sink
        if sink is None:
            return False
        if retry_ms is not None:
            sink.write(sse.retry(retry_ms))
        self.leave()
        return True

    async def finish(self, message: bytes) -> None:
        """Send the response as the last event, unless it's empty, and end the stream. The client must read streams."""
        log = self._log
        if not self.streaming:
            await self._open()
        await self._write(END, message, None if log is None else log.id)
        if log is not None:
            self._streams.lines.pop(log.name, None)
        if self._sink is not None:
            self._sink.close()

    def _finish(self, then: Callback) -> None:
        """End a subscription's stream that reached its maximum age, with its result."""
        end, self._end = self._end, None
        (then if end is None else end)()

    def leave(self) -> None:
        """Stop writing. Called when another connection takes over the stream."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()

    async def _open(self) -> None:
        self.streaming, streams = True, self._streams
        sink = self._sink = self.request.open(200, STREAM_HEAD)
        self._number = streams.add(sink, kind=("http", self._revision.date))
        if self._end is not None:
            self._subscribe(sink, self._end)
        log = self._log
        if log is not None:
            streams.lines[log.name] = self
            position = await log.append(OPEN, encode(log.id), None, streams)
            if self._revision.priming and position is not None:
                sink.write(sse.prime(event_id(log.stream, position)))

    async def _write(self, mark: bytes, message: bytes, answers: RequestId | None) -> None:
        log = self._log
        if log is None:
            if self._sink is not None and message:
                self._sink.write(sse.encode_message(message))
            return
        async with log.lock:
            position, sealed = None, True
            with suppress(StreamSealed):
                position, sealed = await log.append(mark, message, answers, self._streams), False
            if sealed:  # this worker was paused for so long that another worker has already ended the stream
                self.leave()
                log.cancel()
                await asyncio.sleep(0)
                return
            sink = self._sink
            if message and sink is not None and not sink.closed:
                sink.write(sse.encode_message(message, "" if position is None else event_id(log.stream, position)))


MAX_CACHED_SESSIONS = 16 * 1024
"""Maximum number of cached sessions. Each takes about 1.1 KiB."""
MAX_DELETES = 10_000
"""Maximum session tombstones per principal, or per address without sign-in."""
_CAPABILITIES_ROOM = 16 * 1024 * 1024
"""Maximum bytes of capabilities to store within a record's lifetime. Each caller can use half."""


class HttpSessions:
    """Sessions by sealed id.

    The id contains the session itself. A small table caches verified ids.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._recorded = services.records.known
        self._remembered: Recent[bytes, tuple[Session, bytes, int, str]] = Recent(MAX_CACHED_SESSIONS)
        """Header value -> what `_open` returned. Contains sessions that have no record or that this worker knows."""
        self._since = 0.0
        """Start of the current period."""
        self._kept = Share(_CAPABILITIES_ROOM)
        """Bytes of capabilities stored in this period."""
        self._ended = Share()
        """Number of sessions ended in this period, by caller."""
        services.records.on_forget = self._remembered.clear

    async def mint(self, opening: Handshake, request: HttpRequest, address: str) -> tuple[Session, str]:
        """Create a session for a handshake at an address and return it with its sealed id.

        The store gets only data that doesn't fit into the id. The session's record counts against the share of its
        creator.

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
        session = Session(id, opening.revision, opening.client, issued_at=now, expires_at=expires_at, address=address)
        self._start_period(now)
        recorded = not exact and self._kept.take(owner, len(encode(capabilities)))
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
            worker=services.session_holder if services.binds_sessions else "",
            address=address,
        )
        return session, seal.encode(token, services.ring, services.nonce(), services.server_name)

    def _start_period(self, now: float) -> None:
        """Reset the counts when the sessions counted have expired."""
        if now - self._since > self._services.settings.session_ttl:
            self._since, self._kept, self._ended = now, Share(_CAPABILITIES_ROOM), Share()

    def find_known(self, value: bytes, principal: Principal | None, address: str) -> Session | None:
        """Return a session of the caller at an address that has no record, or None to use `find`."""
        remembered = self._remembered.get(value)
        known = self._open(value) if remembered is None else remembered
        if known is None:
            return None
        session, principal_hash, expires_at, holder = known
        if (
            (b"" if principal is None else principal.binding) != principal_hash
            or session.address != address
            or session.id in self._recorded
            or expires_at <= self._services.clock()
            or (remembered is None and (holder or self._services.records.may_exist(session)))
        ):
            return None
        if remembered is None:
            self._remembered.keep(value, known)
        return session

    async def find(self, request: HttpRequest, address: str) -> Session:
        """Return the session that a request to an address names.

        Raises:
            ProtocolError: There is none. Unknown, expired, ended, and foreign sessions, and those of other addresses,
                give the same error.
        """
        value = request.headers[b"mcp-session-id"]
        remembered = self._remembered.get(value)
        known = remembered or self._open(value)
        if (
            known is None
            or known[0].address != address
            or known[1] != hash_principal(request.principal)
            or known[2] <= self._services.clock()
        ):
            raise unknown_session()
        session, records = known[0], self._services.records
        if remembered is None and known[3] and await self._is_alive(known[3]):
            raise unknown_session()  # it's on another machine
        record = await records.get(session) if records.may_exist(session) else NO_RECORD
        if session.id in records.known or not records.may_exist(session):
            self._remembered.keep(value, known)
        if record is not NO_RECORD:
            if record.ended:
                raise unknown_session()
            if record.capabilities is not None:
                client = ClientInfo(record.capabilities, session.client.name, session.client.version)
                session = msgspec.structs.replace(session, client=client)
        return session

    async def _is_alive(self, holder: str) -> bool:
        with convert_store_errors():
            return await self._services.store.workers.alive(holder)

    def _open(self, value: bytes) -> tuple[Session, bytes, int, str] | None:
        """Return a session, the hash of its principal, its expiry, and its holder unless this worker may serve it."""
        services = self._services
        now = services.clock() - services.leeway
        token = seal.decode(value.decode("latin-1"), services.ring, now, services.server_name)
        revision: Revision | None = HANDSHAKE.get(token.revision) if token is not None else None
        if token is None or revision is None:
            return None
        client = ClientInfo(capabilities_of(token.capabilities), token.client_name, token.client_version)
        current = token.epoch == services.store.epoch
        issued_at = 0 if token.recorded else token.issued_at
        session = Session(
            token.id,
            revision,
            client,
            current=current,
            issued_at=issued_at,
            expires_at=token.expires_at,
            address=token.address,
        )
        is_here = services.finds_holders or token.worker in ("", services.session_holder)
        return session, token.principal_hash, token.expires_at + int(services.leeway), "" if is_here else token.worker

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
_JSON_ONLY = "Not acceptable. This server responds with application/json."


class StreamableEndpoint:
    """The shared state of all requests to one MCP endpoint of a server."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        streams: OpenStreams,
        sessions: HttpSessions | None,
    ) -> None:
        self.dispatcher = dispatcher
        self.address: str = dispatcher.address.name
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
            stream = store.workers.me + secrets.token_hex(16)
            cancel = partial(self.dispatcher.control.cancel, session.id, call.id)
            log = StreamLog(store, log_name(session.id, stream), stream, call.id, cancel)
        asks = can_stream and session is not None
        return PostReplyChannel(request, call.revision, self.streams, log, can_stream, asks)


async def finish(call: Call, body: bytes) -> Response | None:
    """Send the response to a call on its stream, or return it as a single message if no stream is open."""
    line = call.reply_channel
    if isinstance(line, PostReplyChannel) and line.streaming:
        await line.finish(body)
        return None
    if not body:
        return EMPTY_STREAM
    return Response(body, *_status(call))


def _status(call: Call) -> tuple[int, bytes]:
    """Return the HTTP status and head of a call's response. Handshake-era errors have status 200, unless they have a
    head.
    """
    error = None if call.failure is None else call.failure.error
    if error is None or not (call.revision.result_type or error.head):
        return 200, JSON_HEAD
    return error.status, JSON_HEAD + error.head


class StreamableExchange(Struct, eq=False):
    """One POST on the exact path."""

    endpoint: StreamableEndpoint
    request: HttpRequest
    charged: bool = False
    """Whether its message is charged to the limits."""

    @property
    def accepts(self) -> AcceptedTypes:
        """The reply types that the client accepts."""
        return parse_accept(self.request.headers.get(b"accept"))

    def check_readable(self) -> None:
        """Reject a client that reads only streams, if the server sends none.

        Raises:
            ProtocolError: HTTP 406.
        """
        if self.endpoint.json_only and not self.accepts.json:
            raise ProtocolError(INVALID_REQUEST, _JSON_ONLY, status=406)

    def reply(self, body: bytes, status: int = 200, head: bytes = b"") -> Response:
        """Return a single message, as an event if the status is 200 and the client reads only streams."""
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
            session = await sessions.find(self.request, self.endpoint.address)
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

    async def admit(self) -> None:
        """Charge its message before it's handled. See `RequestLimits.admit`."""
        self.charged = True
        await self.endpoint.services.request_limits.admit(self.request)

    def charge(self) -> ProtocolError | None:
        """Charge its message, unless that's done. See `RequestLimits.charge`."""
        if self.charged:
            return None
        self.charged = True
        return self.endpoint.services.request_limits.charge(self.request.principal, self.request.peer)

    def note(self, method: str, session: Session | None, status: str = "") -> None:
        """Report a message to the observers."""
        self.endpoint.services.note(method, "http", session, status, principal=self.request.principal)

    async def notify(self, message: Envelope, session: Session | None, revision: Revision) -> None:
        """Pass a notification to the extension that handles it, and in the handshake era to a call that it cancels."""
        self.note(message.method, session)
        dispatcher = self.endpoint.dispatcher
        kept = self.endpoint.services.notification_filters.filter_incoming(message, self.request.principal)
        if kept is None:
            return
        if revision.handshake:
            await dispatcher.control.notified_anywhere(kept, "" if session is None else session.id)
        if dispatcher.registry.notification_handler(kept.method) is not None:
            way = {**self._way(), "open_reply": None, "reply_channel": NULL_REPLY}
            dispatcher.notify(calls.notification_call(kept, session, revision, **way))

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
        if body and not self.accepts.json and _status(call)[0] == 200:
            await call.open_reply_channel().keep_alive()
        return await finish(call, body)


async def serve_batch(exchange: StreamableExchange) -> Response | None:
    """Answer a batch.

    Raises:
        ProtocolError: The revision has no batches, or the batch is rejected as a whole.
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
        """Process every message and answer with an array unless the reply became a stream."""
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
            self._charge()
            if not message.is_answer:
                await self.exchange.notify(message, self.session, self.revision)
                return None, b""
            self.exchange.note("response", self.session)
            try:
                await dispatcher.control.answer_anywhere(message, self.scope, self.exchange.request.owner)
            except ProtocolError as exc:
                return None, self._refuse(None, "response", exc, charged=True)
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

    def _charge(self) -> ProtocolError | None:
        request = self.exchange.request
        return self.exchange.endpoint.services.request_limits.charge(request.principal, request.peer)

    def _refuse(self, request_id: RequestId | None, method: str, exc: ProtocolError, *, charged: bool = False) -> bytes:
        exc = revisions.error((None if charged else self._charge()) or exc, self.revision)
        self.exchange.note(method, self.session, str(exc.code))
        return refusal_message(request_id, exc)

    def _connect(self, call: Call) -> PostReplyChannel:
        """Return the shared reply channel, created when the first call needs it."""
        if self.line is None:
            self.line = self.exchange.endpoint.open_line(call)
        return self.line
