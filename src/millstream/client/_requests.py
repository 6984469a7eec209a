"""Requests of a client: connecting and negotiating, rounds of questions, and reconnection.

A client tries the per-request era first, then the handshake, then HTTP+SSE, see
https://modelcontextprotocol.io/specification/2026-07-28/basic/versioning. Only a `DiscoverResult`, or an error that
names revisions of the per-request era, proves that era; after another response, the client tries a handshake. The
result is cached per target, so the next client starts with the right request.

One `Requests` handles all concurrent calls of a client. It doesn't depend on the methods.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import msgspec
from msgspec import Struct

from millstream._confidential import Confidential
from millstream._copies import NotCopyable
from millstream._http.client import Inflow
from millstream._http.client.pool import ConnectionPool
from millstream._protocol.content import Icon
from millstream._protocol.errors import METHOD_NOT_FOUND, MISSING_CLIENT_CAPABILITY, UNSUPPORTED_VERSION
from millstream._protocol.foreign import MAX_WARNINGS, drop_nulls, foreign_decoder, present
from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import MALFORMED, Json, PeerError, decoder, encode, notification_message
from millstream._protocol.metadata import (
    CAPABILITIES_KEY,
    CLIENT_KEY,
    LOG_LEVEL_KEY,
    SERVER_KEY,
    TASKS,
    VERSION_KEY,
    Implementation,
    ParamHeader,
    find_annotations,
    param_headers,
)
from millstream._protocol.notifications import (
    DiscoverResult,
    InitializeResult,
    InputRequiredResult,
    ToolDescription,
)
from millstream._protocol.redaction import leave_out, redact_bytes, redact_failure
from millstream._protocol.revisions import BY_DATE, HANDSHAKE, NEWEST, NEWEST_HANDSHAKE, PER_REQUEST, Revision
from millstream._recent import Recent
from millstream._tasks import cancel_all, has_failed, retry_delay
from millstream._text import pluralize, shorten
from millstream.client._endpoint import Endpoint, redact_error
from millstream.client._errors import (
    AccessDenied,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    NotMcp,
    RequestTimeout,
    ServerError,
    SessionLost,
    UnknownVersion,
    client_logger,
)
from millstream.client._questions import QuestionHandler, answer_all
from millstream.client._recovery import ONLY_SESSION, Attempt, Recovery, has_only_session, plan_recovery
from millstream.client._server_messages import OnProgress, ServerMessages
from millstream.client._targets import Place, Remote
from millstream.client._transports import (
    DuplexTransport,
    Options,
    Transport,
    TransportFactory,
    TransportRequest,
    get_secrets,
    log_message,
)
from millstream.client._transports.http import HttpSseTransport, StreamableTransport
from millstream.client._transports.stdio import Command, StdioTransport, line_printer


class ServerInfo(Implementation, frozen=True):
    """The server's information about itself, such as ``client.server.title``. The client doesn't rely on it."""

    icons: tuple[Icon, ...] = ()


class Connection(Struct, NotCopyable, frozen=True):
    """A connection after a handshake or `server/discover`: ``conversation.negotiated.revision.date``."""

    transport: Transport
    revision: Revision
    capabilities: Mapping[str, Any]
    """Capabilities of the server."""
    server: ServerInfo
    instructions: str
    meta: bytes
    """The default `_meta` members of requests, as JSON without braces."""
    discovered: bytes
    """The raw result of `initialize` or `server/discover`."""


class OpenSession(Struct, frozen=True):
    """A session over Streamable HTTP that stays open without a connection.

    Example:
        ``session = conversation.requests.describe_session()``, and later ``await other.start(session)``
    """

    id: str
    cookies: Mapping[str, str]
    discovered: bytes
    """The raw result of `initialize`."""
    next_id: int
    """The first request id that it hasn't used."""


class DeclaredCapability(Struct, frozen=True):
    """A capability that an extension declares."""

    member: str
    """``extensions`` or ``experimental``."""
    name: str
    value: Mapping[str, Any]
    revisions: frozenset[str]
    """Dates of the revisions with it, or empty for all."""


def with_meta(params: bytes, meta: bytes) -> bytes:
    """Add `_meta` to encoded parameters."""
    if not meta:
        return params
    if b'"_meta"' in params:
        found: Json = msgspec.json.decode(params)
        if isinstance(found.get("_meta"), dict):  # the caller's members come first, so ours override them
            ours: Json = msgspec.json.decode(b"{%b}" % meta)
            return encode({**found, "_meta": found["_meta"] | ours})
    return params[:-1] + (b'"_meta":{' if params == b"{}" else b',"_meta":{') + meta + b"}}"


def request_body(request_id: int, method: str, params: bytes) -> bytes:
    """Encode a request around encoded parameters."""
    return b'{"jsonrpc":"2.0","id":%d,"method":%b,"params":%b}' % (request_id, encode(method), params)


_logger = client_logger(__name__)
_NO_HEADERS: Mapping[str, str] = {}
_MAX_ANNOTATED = 10_000
"""Maximum number of tools to keep header annotations for."""


class ToolHeaders(Struct):
    """Header annotations of the tools that have been listed.

    They list the arguments that are also sent as headers. Tools with invalid annotations are left out of lists, as the
    specification requires: https://modelcontextprotocol.io/specification/2026-07-28/server/tools.
    """

    _known: Recent[str, tuple[ParamHeader, ...]] = msgspec.field(default_factory=lambda: Recent(_MAX_ANNOTATED))

    def learn(self, tools: list[ToolDescription]) -> list[ToolDescription]:
        """Store the annotations of tools and return the tools with valid annotations."""
        usable: list[ToolDescription] = []
        wrong = 0
        for tool in tools:
            try:
                found = find_annotations(tool.input_schema)
            except (ValueError, RecursionError) as exc:
                wrong += 1
                if wrong <= MAX_WARNINGS:
                    _logger.warning("Skipped the tool %s: %s", tool.name, exc)
                continue
            if found:
                self._known.keep(tool.name, found)
            else:
                self._known.pop(tool.name, None)
            usable.append(tool)
        if wrong > MAX_WARNINGS:
            _logger.warning("Skipped %d more tools.", wrong - MAX_WARNINGS)
        return usable

    def of(self, tool: str, arguments: Mapping[str, Any]) -> Mapping[str, str]:
        """Return the headers of a call."""
        known = self._known.get(tool)
        return param_headers(known, arguments) if known else _NO_HEADERS


_MAX_LINES = 256
"""Maximum number of lines to compare with the output of a second start."""


class Era(Struct):
    """What connections have detected about their server. Those to the same server can share it:
    ``conversation.requests.era = era``.
    """

    name: str = ""
    """``handshake`` or ``http+sse``, or empty if the next connection has to probe."""
    revision: Revision = NEWEST
    """The per-request revision to probe with: the newest, until the server reports an older one."""


class _InitializeAnswer(InitializeResult, frozen=True, kw_only=True):
    server_info: Any = None
    """Read by `_about`, because nothing depends on it."""


_decode_initialize = foreign_decoder(_InitializeAnswer)
_decode_discover = foreign_decoder(DiscoverResult)
_decode_error = decoder(PeerError)


def failure(error: bytes) -> ServerError:
    """Convert a JSON-RPC error to an exception."""
    try:
        decoded = _decode_error(error)
        data = msgspec.json.decode(decoded.data) if decoded.data else None
    except MALFORMED:
        text = shorten(error.decode("utf-8", "replace"))
        return ServerError(0, f"The server reported an error that can't be decoded: {text}")
    remedy = _handler_for(data) if decoded.code == MISSING_CLIENT_CAPABILITY else ""
    return ServerError(decoded.code, decoded.message or "The server gave no reason", data, remedy=remedy)


_HANDLERS = {"elicitation": "elicit", "sampling": "sample", "roots": "roots"}
"""Capability -> the option of `Client` that declares it."""


def _handler_for(data: Any) -> str:
    """Return a hint with the `Client` options that declare the required capabilities."""
    required = members(members(data).get("requiredCapabilities"))
    if TASKS in members(required.get("extensions")):
        return "Call the tool with task=True, or start it with client.tasks.start(…)."
    options = [
        f"{_HANDLERS[each]}=…" if each in _HANDLERS else "options=Options(extra_capabilities=…)" for each in required
    ]
    return f"Declare it with Client(…, {', '.join(dict.fromkeys(options))})." if options else ""


_INPUT_REQUIRED = b'"input_required"'
_FAILED = re.compile(rb'"isError"\s*:\s*true')
_MIN_WAIT = 0.05
_MAX_WAIT = 5.0
_UNAVAILABLE = frozenset({429, 502, 503, 504})
"""Status codes of proxies and limits in front of a server, which may still have a session."""
_MAX_RESTARTS = 3
"""Maximum consecutive connections lost during setup."""

_decode_required = foreign_decoder(InputRequiredResult)


class RawRequest(Struct, kw_only=True):
    """One request, as specified by the caller: ``RawRequest(method="tools/call", params=body, name="add")``."""

    method: str
    params: bytes = b"{}"
    """Encoded parameters."""
    name: str = ""
    """Name of the tool, prompt, or resource, for a header."""
    headers: Mapping[str, str] = {}
    """`Mcp-Param-…` headers."""
    timeout: float = 0
    """Timeout in seconds, or 0 for the client's default."""
    progress: OnProgress | None = None
    repeatable: bool = False
    """Whether the request only reads."""
    id: int = 0
    """Request id from `Requests.ids`, if the caller must know it beforehand."""
    meta: bytes = b""
    """`_meta` members as JSON without braces, instead of the connection's default ones."""
    wrapped: bool = False
    """Whether the extensions' hooks already wrap the request."""
    rounds: bool = True
    """Whether to answer the questions of the result; False returns an `input_required` result unchanged."""
    owner: str = ""
    """The caller whose share the arriving reply counts against, if there are several callers."""
    said: bytes = b""
    """The message of another caller that the request forwards, as it came. Errors can repeat what's in it."""


def declare_extension(meta: bytes, name: str) -> bytes:
    """Return the `_meta` members of a request that declares an extension.

    Args:
        meta: `_meta` members as JSON without braces, empty in handshake revisions.
        name: Identifier of the extension.
    """
    if not meta:
        return meta
    found: Json = msgspec.json.decode(b"{%b}" % meta)
    capabilities: Json = found[CAPABILITIES_KEY]
    capabilities["extensions"] = {name: {}, **members(capabilities.get("extensions"))}
    return encode(found)[1:-1]


NOT_CONNECTED = "The client isn't connected. Use `async with Client(…) as client:`."


class Requests(Confidential, Struct, kw_only=True):
    """Connects to one server and sends it requests."""

    place: Place
    options: Options
    questions: QuestionHandler
    incoming: ServerMessages
    pinned: Revision | None
    headers: Mapping[str, str]
    timeout: float
    inflow: Inflow
    era: Era
    about: Implementation | msgspec.Raw
    """Name and version of the client."""
    reconnects: bool = True
    """Whether a lost session is replaced by a new one. If not, each later request raises `SessionLost`."""
    declared: list[DeclaredCapability] = []
    """Capabilities of extensions."""
    ids: Iterator[int] = msgspec.field(default_factory=lambda: count(1))
    stderr_lines: list[str] = []
    """Standard error of the server since the connection was opened."""
    around: Callable[[RawRequest], Awaitable[bytes]] | None = None
    """Hooks of extensions around each request."""
    connection: Connection | None = None
    last: Connection | None = None
    """The newest connection, even after it was lost."""
    lock: asyncio.Lock = msgspec.field(default_factory=asyncio.Lock)

    async def connect(self, *, first: bool = False) -> Connection:
        """Return the connection, reconnecting if the last one was lost.

        Raises:
            ClientError: The client is closed, or it isn't open yet and this isn't the `first` connection.
        """
        connection = self.connection
        if connection is not None and not connection.transport.lost:
            return connection
        if self.last is None and not first:
            raise ClientError(NOT_CONNECTED)
        return await self._renew(connection)

    async def _renew(self, old: Connection | None) -> Connection:
        """Return a connection other than `old`. The first of concurrent callers opens it."""
        if not self.reconnects and (self.last is not None or old is not None):  # it may be closed by now
            raise SessionLost("The session has ended on the server.")
        async with self.lock:
            if self.connection is not None and self.connection is not old:
                return self.connection
            before = self.last
            if self.connection is not None:
                ended, self.connection = self.connection, None
                self.incoming.on_interruption(ended.transport, SessionLost("The next request reconnects, if possible."))
                await ended.transport.close()
            connection = await self._open_again(0 if before is None else _MAX_RESTARTS)
            if before is not None and self.last is None:
                await connection.transport.close()
                raise ClientError(NOT_CONNECTED)
            self.connection = self.last = connection
        if before is not None:
            with contextlib.suppress(ServerError):
                await self.restore(connection, before)
        return connection

    def describe_session(self) -> OpenSession | None:
        """Return the session if another connection can resume it after `leave_session`."""
        connection = self.connection
        if connection is None or not isinstance(transport := connection.transport, StreamableTransport):
            return None
        if not transport.has_session or transport.lost:
            return None
        return OpenSession(*transport.session, connection.discovered, next(self.ids))

    def leave_session(self) -> None:
        """Leave the session open on the server when this is closed."""
        if self.connection is not None and isinstance(self.connection.transport, StreamableTransport):
            self.connection.transport.leave_session()

    def end_session(self) -> None:
        """Use another session from now on, because this one doesn't work any more."""
        transport = None if self.connection is None else self.connection.transport
        if isinstance(transport, StreamableTransport | DuplexTransport):
            transport.end(ConnectionLost("The session doesn't work any more."))

    async def resume(self, session: OpenSession) -> Connection:
        """Connect to a session that an earlier connection has left open.

        Raises:
            SessionLost: The server doesn't know it any more.
            ClientError: The server can't be reached. The session may still be open.
        """
        transport = self._new_transport(sse=False)
        assert isinstance(transport, StreamableTransport)  # noqa: S101  it described the session
        transport.resume(session.id, session.cookies)
        result = _decode_initialize(session.discovered)
        revision = HANDSHAKE[result.protocol_version]
        connection = self._new_connection(transport, revision, result, result.server_info, session.discovered)
        self.ids = count(session.next_id)
        try:
            await self._check_resumed(connection)
        except BaseException:
            transport.leave_session()
            await transport.close()
            raise
        transport.open_stream()
        self.connection = self.last = connection
        return connection

    async def _check_resumed(self, connection: Connection) -> None:
        ask = RawRequest(method="ping", timeout=self.options.connect_timeout, repeatable=True)
        for attempt in range(_MAX_RESTARTS + 1):
            try:
                await self.send(connection, ask)
            except RequestTimeout:
                return  # a busy server still has it
            except ClientError as exc:
                if isinstance(exc, ConnectFailed) or exc.status in _UNAVAILABLE:
                    raise
                if isinstance(exc, ServerError) and exc.code == METHOD_NOT_FOUND:
                    return
                # Servers say in different ways that they don't know a session, but most errors can also be temporary.
                if isinstance(exc, SessionLost) or attempt == _MAX_RESTARTS:
                    raise SessionLost("The session has ended on the server.") from exc
            else:
                return
            await asyncio.sleep(retry_delay(2 * attempt, _MIN_WAIT, _MAX_WAIT))

    async def restore(self, connection: Connection, before: Connection | None) -> None:
        """Restore the state of the old connection on a new one."""

    async def _open_again(self, more: int) -> Connection:
        for attempt in range(more):
            try:
                return await self._open()
            except ConnectionLost:
                await asyncio.sleep(retry_delay(2 * attempt, _MIN_WAIT, _MAX_WAIT))
        return await self._open()

    async def close(self) -> None:
        """Close the session and the connection."""
        connection, self.connection, self.last = self.connection, None, None
        self.incoming.stop_timer()
        if connection is not None:
            await connection.transport.close()

    async def ask(self, ask: RawRequest) -> bytes:
        """Send a request and return the raw result, after any rounds of questions.

        Raises:
            ServerError: The server responded with an error.
            ClientError: There was no response.
        """
        if self.around is not None and not ask.wrapped:
            ask.wrapped = True
            return await self.around(ask)
        rounds = 0
        since = 0.0
        extra = b""
        while True:
            result = await self._once(ask, extra)
            required = _input_required(result) if ask.rounds and _INPUT_REQUIRED in result else None
            if required is None:
                return result
            if not required.input_requests and required.request_state is None:
                raise InvalidResponse(f"The server requires input for {ask.method}, but sent no questions.")
            rounds += 1
            if rounds > self.options.max_rounds:
                raise InvalidResponse(
                    f"The server asked {rounds} times without returning a result (Options.max_rounds)."
                )
            now = asyncio.get_running_loop().time()
            since = 0.0 if required.input_requests else since or now
            if since and now - since > (ask.timeout or self.timeout):  # rounds without questions
                raise RequestTimeout(f"The server postponed its response to {ask.method} {rounds} times.")
            extra = await self._answers(required, rounds, ask.id)

    async def _answers(self, required: InputRequiredResult, rounds: int, request_id: int) -> bytes:
        """Return the members to add to the next round's parameters."""
        members: Json = {}
        if required.input_requests:
            members["inputResponses"] = await answer_all(
                self.questions, required.input_requests, "The server", request_id
            )
        else:
            await asyncio.sleep(retry_delay(rounds, _MIN_WAIT, _MAX_WAIT))
        if required.request_state is not None:
            members["requestState"] = required.request_state
        return encode(members)[1:-1]

    async def _once(self, ask: RawRequest, extra: bytes) -> bytes:
        """Send one round. Retry it on a new connection if that's safe."""
        connection = self.connection
        if connection is None or connection.transport.lost:
            connection = await self.connect()
        try:
            return await self.send(connection, ask, extra)
        except ClientError as exc:
            return await self.send_again(connection, ask, exc, extra)

    async def send_again(
        self, connection: Connection, ask: RawRequest, error: ClientError, extra: bytes = b""
    ) -> bytes:
        """Send a request again that failed on a connection, if it's safe and can succeed. Otherwise raise the error.

        Args:
            ask: The request.
            error: Why it failed.
            extra: See `send`.
        """
        if isinstance(error, SessionLost):
            pass  # it wasn't processed: https://modelcontextprotocol.io/specification/2025-11-25/basic
        elif isinstance(error, ConnectionLost):
            lost = connection.transport.lost
            if not ask.repeatable or (connection.revision.handshake and not lost):
                raise error
            if not lost:
                return await self.send(connection, ask, extra)
        elif not self._may_be_replaced(connection, error) or await self._is_current(connection):
            raise error  # if the server rejects what was negotiated, it hasn't processed the request
        renewed = await self._renew(connection)
        if not ask.rounds and renewed.revision is not connection.revision:
            raise SessionLost("The server has been replaced by one with another revision.")
        return await self.send(renewed, ask, extra)

    def _may_be_replaced(self, connection: Connection, error: ClientError) -> bool:
        """Return whether an error can mean that another server has taken over the URL since the negotiation."""
        if connection.transport.name != "streamable-http":  # a replaced server closes the connection
            # A gateway keeps it, although the server behind it was replaced.
            return isinstance(error, ServerError) and error.code == UNSUPPORTED_VERSION
        return plan_recovery(error, Attempt(is_connected=True)) is Recovery.NEGOTIATE

    async def _is_current(self, connection: Connection) -> bool:
        """Return whether the server still accepts what was negotiated."""
        if connection is not self.connection:
            return False
        method = "ping" if connection.revision.handshake else "server/discover"
        try:
            await self.send(connection, RawRequest(method=method, repeatable=True))
        except SessionLost:
            return False
        except ClientError as exc:
            return not self._may_be_replaced(connection, exc)
        return True

    def send(self, connection: Connection, ask: RawRequest, extra: bytes = b"") -> Coroutine[Any, Any, bytes]:
        """Send one request on one connection and return its result."""
        request_id = ask.id or next(self.ids)
        params = ask.params
        if extra:
            params = params[:-1] + (b"" if params == b"{}" else b",") + extra + b"}"
        meta = ask.meta or connection.meta
        if ask.progress is not None:
            meta = b'%b%b"progressToken":%d' % (meta, b"," if meta else b"", request_id)
        body = request_body(request_id, ask.method, with_meta(params, meta))
        request = TransportRequest(
            request_id, ask.method, body, ask.name, ask.headers, None, ask.repeatable, ask.owner, ask.said
        )
        return self._exchange(connection.transport, request, ask.timeout or self.timeout, ask.progress)

    async def _exchange(
        self, transport: Transport, request: TransportRequest, seconds: float, progress: OnProgress | None = None
    ) -> bytes:
        """Send a request on an open transport and return its result.

        Raises:
            ServerError: The server responded with an error.
            ClientError: There was no response.
        """
        incoming = self.incoming
        pending = incoming.begin(request.id, seconds, progress)
        try:
            log_message("sent", request.body)
            answer = await transport.exchange(request)
            # A failed tool returns its error as a result.
            result = answer.result
            if b'"isError"' in result and _FAILED.search(result):
                result = redact_failure(result, leave_out(request.said, get_secrets(transport)))
            log_message("received", redact_bytes(answer.error, get_secrets(transport)) if answer.error else result)
        except asyncio.CancelledError as exc:
            if pending.end():
                remedy = "If it starts slowly, set a longer timeout." if request.method == "initialize" else ""
                text = f"The server didn't respond to {request.method} within {pluralize(seconds, 'second')}."
                raise RequestTimeout(text, remedy=remedy) from exc
            raise
        finally:
            pending.end()
            del incoming.running[request.id]
        if progress is not None:
            await incoming.wait_for_handlers()
        if answer.error:
            error = failure(answer.error)
            redact_error(error, leave_out(request.said, get_secrets(transport)))
            raise error
        return result

    # Transports

    async def _open(self) -> Connection:
        """Connect and negotiate, over the transport that the server has."""
        place = self.place
        if not isinstance(place, Remote) or place.url.scheme in ("ws", "wss"):
            return await self._connect_with()
        is_fixed = place.kind == "sse"
        sse = is_fixed or self.era.name == "http+sse"
        try:
            return await self._connect_with(sse=sse)
        except ClientError as exc:
            attempt = Attempt(sse=sse, is_first=self.last is None)
            if is_fixed or plan_recovery(exc, attempt) is not Recovery.OTHER_TRANSPORT:
                raise
            why = exc
        try:
            return await self._connect_with(sse=not sse)
        except AccessDenied:
            raise
        except ClientError as other:
            # There is an event stream, but it can't be used.
            is_stream = not other.status if isinstance(other, NotMcp) else isinstance(why, NotMcp)
            raise (other if sse or is_stream else why) from None

    def resize(self, connections: int) -> None:
        """Change the maximum number of open connections, also for the current transport."""
        self.options = msgspec.structs.replace(self.options, max_connections=connections)
        if self.connection is not None and isinstance(transport := self.connection.transport, StreamableTransport):
            transport.resize(connections)

    def _new_transport(self, *, sse: bool) -> Transport:
        place, options, incoming = self.place, self.options, self.incoming
        background = incoming.background
        if isinstance(place, Command):
            show = line_printer(options.stderr)
            if show is not None:
                show = self._without_repeats(show)
                if place.ours:  # readable logs, although stderr is a pipe
                    place = msgspec.structs.replace(place, env={"MILLSTREAM_LOG_FORMAT": "text"} | dict(place.env))
            return StdioTransport(place, incoming, background, options.max_bytes, show=show)
        if isinstance(place, TransportFactory):
            return place.new_transport(incoming, background)
        if not isinstance(place, Remote):
            from millstream.client._transports.memory import MemoryTransport  # noqa: PLC0415 - loads the server

            return MemoryTransport(place, incoming, background)
        url, headers = place.url, {**place.headers, **self.headers}
        if url.scheme in ("ws", "wss"):
            from millstream.client._transports.websocket import WebSocketTransport  # noqa: PLC0415 - loads a library

            return WebSocketTransport(url, headers, incoming, background, options, self.inflow)
        pool = ConnectionPool(
            url,
            max_connections=options.max_connections,
            max_body=options.max_bytes,
            connect_timeout=options.connect_timeout,
            tls=options.tls,
            inflow=self.inflow,
            decompress=True,
        )
        endpoint = Endpoint(url, headers, pool, options.auth, incoming.pause_timeouts)
        if sse:
            return HttpSseTransport(endpoint, incoming, background, options)
        return StreamableTransport(endpoint, incoming, background, options.max_bytes)

    def _without_repeats(self, show: Callable[[str], object]) -> Callable[[str], object]:
        """Skip lines that a second start of the server repeats, such as a traceback."""
        before, self.stderr_lines = self.stderr_lines, []
        shown = self.stderr_lines

        def line(text: str) -> None:
            if len(shown) < _MAX_LINES:
                shown.append(text)
            if before and before.pop(0) == text:
                return
            before.clear()
            show(text)

        return line

    # Negotiation

    def capabilities(self, revision: Revision) -> Json:
        """Return the capabilities to declare in a revision."""
        capabilities = self.questions.capabilities(revision, self.options.extra_capabilities)
        for each in self.declared:
            if not each.revisions or revision.date in each.revisions:
                capabilities[each.member] = {**members(capabilities.get(each.member)), each.name: each.value}
        return capabilities

    def meta(self, revision: Revision) -> bytes:
        """Return the default `_meta` members of requests:
        https://modelcontextprotocol.io/specification/2026-07-28/basic."""
        if revision.handshake:
            return b""
        found: Json = {
            VERSION_KEY: revision.date,
            CAPABILITIES_KEY: self.capabilities(revision),
            CLIENT_KEY: self.about,
        }
        # Earlier revisions send a client's messages from `info` on if it names no level.
        if level := self.options.log_level or ("info" if self.incoming.on_log is not None else ""):
            found[LOG_LEVEL_KEY] = level
        return encode(found)[1:-1]

    async def _connect_with(self, *, sse: bool = False) -> Connection:
        """Open a transport and negotiate.

        It's tried a second time if the server exits on an unknown method or its era has changed.
        """
        era = self.era
        handshake = era.name != ""
        self.stderr_lines = []
        for attempts in (1, 2):
            transport = self._new_transport(sse=sse)
            try:
                await transport.open()
                connection = await self._agree(transport, handshake=handshake)
            except BaseException as exc:
                await transport.close()
                if era.name == "handshake":
                    era.name = ""  # its successor may support the newer era
                attempt = Attempt(
                    sse=sse,
                    is_pinned=self.pinned is not None,
                    began_with_handshake=handshake,
                    has_ended=transport.lost and not getattr(self.place, "ours", False),
                )
                if attempts == 2 or plan_recovery(exc, attempt) is not Recovery.OTHER_ERA:
                    raise
                handshake = not handshake
            else:
                if not connection.revision.handshake:
                    era.name, era.revision = "", connection.revision
                else:
                    era.name = "http+sse" if sse else "handshake"
                return connection
        raise AssertionError

    async def _agree(self, transport: Transport, *, handshake: bool) -> Connection:
        pinned = self.pinned
        if pinned is not None:
            if pinned.handshake:
                return await self._initialize(transport, pinned)
            found = await self._probe(transport, pinned)
            if found is None:
                raise UnknownVersion(f"The server doesn't support revision {pinned.date}.")
            return found
        skips = handshake or transport.name == "http+sse"  # which exists only in the handshake era
        probe = None if skips else asyncio.create_task(self._probe(transport, self.era.revision))
        shake: asyncio.Task[Connection] | None = None
        try:
            if probe is not None:
                seconds, waits = min(self.options.probe_timeout, self.timeout / 2), True
                while waits and not probe.done():
                    await asyncio.wait([probe], timeout=seconds)
                    # During a sign-in, a second request would begin another one.
                    waits = any(pending.is_paused for pending in self.incoming.running.values())
                if probe.done() and (found := probe.result()) is not None:
                    return found
            shake = asyncio.create_task(self._initialize(transport, NEWEST_HANDSHAKE))
            return await self._settle(transport, None if probe is None or probe.done() else probe, shake)
        finally:
            await cancel_all(probe, shake)

    async def _settle(
        self, transport: Transport, late: asyncio.Task[Connection | None] | None, shake: asyncio.Task[Connection]
    ) -> Connection:
        """Return the connection of a handshake, unless the server turns out to speak the per-request era.

        Args:
            late: The probe, if there was no response so far: the server ignores it, or starts slowly.
        """
        if late is not None:
            await asyncio.wait([late, shake], return_when=asyncio.FIRST_COMPLETED)
            # On other transports, `initialize` may have set the era of the whole connection.
            if transport.name == "streamable-http" and late.done() and (found := late.result()) is not None:
                await cancel_all(shake)
                transport.set_revision(found.revision)  # the handshake may have set its own, and begun a session
                return found
        try:
            connection = await shake
        except ServerError as exc:
            if exc.code != UNSUPPORTED_VERSION:
                raise
            # The response to the probe was an error or is late, or the server was replaced.
            found = (late and await late) or await self._probe(transport, self.era.revision)
            if found is None:
                raise UnknownVersion(
                    f"The server doesn't support any protocol revision that this client supports: {exc.message}."
                ) from exc
            return found
        if late is not None and late.done() and not has_failed(late) and late.result() is not None:
            return await self._probe(transport, self.era.revision) or connection
        return connection

    async def _probe(self, transport: Transport, revision: Revision) -> Connection | None:
        """Send `server/discover`. Return None if the method is unknown or, unless pinned, if there's no response."""
        for _ in (0, 1):
            try:
                result = await self._ask(transport, "server/discover", b"{}", revision, self.timeout)
                found = _decode_discover(result)
            except ServerError as exc:
                named = versions(exc)
                common = newest(named)
                if exc.code != UNSUPPORTED_VERSION or self.pinned is not None:
                    return None
                if common is None and any(each in HANDSHAKE for each in named):
                    return None
                if common is None:
                    raise UnknownVersion(_unknown(named)) from exc
                revision = common
                continue
            except (NotMcp, InvalidResponse, *MALFORMED):
                return None
            except (ConnectionLost, RequestTimeout) as exc:
                if self.pinned is not None or (isinstance(exc, ConnectionLost) and transport.lost):
                    raise
                return None  # for example a status 500 from a server that didn't expect the method
            agreed = newest(each for each in found.supported_versions if self.pinned is None or each == revision.date)
            if agreed is None:
                return None
            return self._new_connection(transport, agreed, found, found.meta.get(SERVER_KEY), result)
        return None

    async def _initialize(self, transport: Transport, revision: Revision) -> Connection:
        capabilities = self.capabilities(revision)
        params: Json = {"protocolVersion": revision.date, "capabilities": capabilities, "clientInfo": self.about}
        try:
            raw = await self._ask(transport, "initialize", encode(params), revision, self.timeout)
        except ServerError as exc:
            if has_only_session(exc):
                raise ServerError(exc.code, exc.message, exc.data, remedy=ONLY_SESSION) from None
            raise
        try:
            result = _decode_initialize(raw)
        except MALFORMED as exc:
            raise InvalidResponse(f"The server's response to initialize is invalid: {exc}.") from exc
        agreed = HANDSHAKE.get(result.protocol_version)
        if result.protocol_version in PER_REQUEST:
            # A server of the per-request era whose response to the probe was lost or late.
            dates = {"supported": [result.protocol_version]}
            raise ServerError(UNSUPPORTED_VERSION, "The server doesn't support the handshake.", dates)
        if agreed is None:
            raise UnknownVersion(_unknown([result.protocol_version]))
        connection = self._new_connection(transport, agreed, result, result.server_info, raw)
        await self.notify(transport, "notifications/initialized")
        return connection

    def _new_connection(
        self,
        transport: Transport,
        revision: Revision,
        result: DiscoverResult | _InitializeAnswer,
        server: Any,
        discovered: bytes,
    ) -> Connection:
        transport.set_revision(revision)
        about, meta = _about(server), self.meta(revision)
        return Connection(
            transport, revision, present(result.capabilities), about, result.instructions, meta, discovered
        )

    async def notify(self, transport: Transport, method: str, params: Any = None) -> None:
        """Send a notification.

        Raises:
            RequestTimeout: The server didn't accept it in time.
            ClientError: It couldn't be sent.
        """
        if not (message := self.incoming.filters.filter_outgoing(notification_message(method, params))):
            return
        try:
            log_message("sent", message)
            async with asyncio.timeout(self.timeout):
                await transport.send(message, method)
        except TimeoutError as exc:
            raise RequestTimeout(
                f"The server didn't accept {method} within {pluralize(self.timeout, 'second')}."
            ) from exc

    async def _ask(self, transport: Transport, method: str, params: bytes, revision: Revision, seconds: float) -> bytes:
        request_id = next(self.ids)
        body = request_body(request_id, method, with_meta(params, self.meta(revision)))
        request = TransportRequest(request_id, method, body, revision=revision, repeatable=True)
        return await self._exchange(transport, request, seconds)


def _input_required(result: bytes) -> InputRequiredResult | None:
    try:
        required = _decode_required(result)
    except MALFORMED:
        return None
    return required if required.result_type == "input_required" else None


def _about(info: Any) -> ServerInfo:
    """Return a server's name, version, and other information, without invalid members, because nothing depends on
    them."""
    found = members(info)
    texts = {name: each for name, each in found.items() if isinstance(each, str)}
    try:
        icons = msgspec.convert(drop_nulls(found.get("icons") or (), Icon), tuple[Icon, ...])
    except msgspec.ValidationError:
        icons = ()
    return msgspec.convert({**texts, "icons": icons}, ServerInfo)


def versions(refusal: ServerError) -> list[str]:
    """Return the revisions that an error lists."""
    try:
        return msgspec.convert(members(refusal.data).get("supported"), list[str])
    except msgspec.ValidationError:
        return []


def newest(dates: Iterable[str]) -> Revision | None:
    """Return the newest revision of the per-request era that both sides support."""
    common = [date for date in dates if date in PER_REQUEST]
    return BY_DATE[max(common)] if common else None


def _unknown(dates: list[str]) -> str:
    theirs = f"supports {', '.join(dates)}" if dates else "doesn't list the revisions it supports"
    return f"The server {theirs}; this client supports the revisions {', '.join(BY_DATE)}."
