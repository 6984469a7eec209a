"""One request in flight, whatever carried it; and the `ReplyChannel` by which messages go back to its caller.

A `Call` is made by a transport, run by the dispatcher, and seen by user code through `Context`.
"""

from collections.abc import Awaitable, Callable, Mapping
from math import nan
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec
from msgspec import UNSET, Raw, Struct

from millstream._http.message import peer_network
from millstream._protocol.admission import Admission
from millstream._protocol.errors import ProtocolError
from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import Envelope, RequestId
from millstream._protocol.metadata import ClientInfo, ProgressToken, RequestMeta, read_capabilities
from millstream._protocol.notifications import progress_token
from millstream._protocol.principal import Principal
from millstream._protocol.revisions import Revision
from millstream._protocol.rounds import Rounds
from millstream._protocol.suggestions import no_attribute
from millstream._server.calls.services import Services
from millstream._server.calls.sessions import Session

DEFERRED = "deferred"
RUNNING = "running"
"""Values of `Call.task`."""
NOBODY = ClientInfo()
"""A client that said nothing about itself."""


class ReplyChannel(Protocol):
    """The way back to one caller. Messages are whole JSON-RPC messages without framing, sent in order."""

    asks: bool
    """Requests can travel to the client on this line, and their answers find their way back."""

    async def send(self, message: bytes) -> None:
        """Send with back-pressure. A line whose client is gone drops the message, or keeps it for a resume."""

    def push(self, message: bytes) -> bool:
        """Send without waiting; False when the line is closed, or was cut because the client reads too slowly."""
        ...

    async def interrupt(self, retry_ms: int | None) -> bool:
        """Close the connection but not the call, where the client can come back for the rest."""
        ...

    async def keep_alive(self) -> None:
        """The call has been silent for long: show the caller that it is alive, where nothing else does."""

    def on_close(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back when the line closes, unless its end stops the call anyway; or before that, where the server closes
        it, so that the call ends with its result. Returns what ends that.
        """
        ...


class Origin(Protocol):
    """What brought a request: an HTTP request, or the connection that it came on."""

    peer: str
    """The address of the other side; empty where there is none."""

    cancel: Callable[[], object] | None
    """Stops the work, once something can be stopped; None where only the task of the call can be."""

    def ends_call(self) -> bool:
        """Called when the task of a call was cancelled, but not the call. True if the other side has gone; if not, the
        function cancelled its own task, and the other side still waits for an answer.
        """
        ...


class CallFailure(Struct):
    """How a call ended that did not succeed."""

    outcome: str
    """For observers: ``tool_error``, ``cancelled``, or the JSON-RPC error code."""
    error: ProtocolError | None = None
    """The error of the answer; None where the answer is a result (of a tool that failed), or none is sent."""
    incident: str = ""
    """Identifier under which the log has the details of an unexpected failure."""


class CallProgress(Struct, gc=False):
    """What the caller has been told of the progress of a call."""

    value: float = 0.0
    total: float | None = None
    reported: float | None = None
    """The last progress that user code reported."""
    reported_before: float | None = nan
    """What `reported` was at the last heartbeat; not a number before the first."""
    nudged: bool = False
    """The server reported progress on its own."""


class Call(Struct, eq=False, kw_only=True):
    """A request on its way through the server. One exists for each request in flight; user code sees `Context`.

    A Struct because one is made for every request, without a Python call.
    """

    # What was asked
    revision: Revision
    id: RequestId
    method: str
    name: str = ""
    params: bytes = b""
    """Raw JSON of `params`. Of a call that a transport has prepared it's read from the request when it's needed: use
    `raw_params`, or `params_of`.
    """
    tool: Any = None
    """The `Tool` of a call that the transport has prepared: decoded, checked, ready to run."""
    arguments: Any = None
    responses: Mapping[str, Any] | None = None
    """`inputResponses` of a multi-round request, raw values."""
    state: str = ""
    """`requestState` as the client echoed it."""
    rounds: Rounds | None = None
    """The rounds of this call: of a state that it came with, or made when user code first asks."""
    bound: bytes = b""
    """The hash that a state of this call is bound to, once it was made."""
    token: ProgressToken | None = None
    log_level: str = ""
    shared: dict[str, Any] | None = None
    """`Context.state`, where several contexts of the call share one: middleware, dependencies and the function."""
    # Who asked
    client: ClientInfo
    session: Session | None = None
    principal: Principal | None = None
    headers: Mapping[bytes, bytes] | None = None
    origin: Origin | None = None
    transport: str = ""
    """What carried it, for observers: http, sse, stdio, websocket, rest, memory."""
    client_id: str = ""
    """Whose stream also gets what the call says, where the transport knows one."""
    # The way back
    open_reply: "Callable[[Call], ReplyChannel] | None" = None
    """Opens the line at first use, where the reply may also be a single message."""
    line: ReplyChannel | None = None
    meta: dict[str, Any] | None = None
    """`_meta` of the result, beside what the revision puts there."""
    tee: "Callable[[bytes], Awaitable[None]] | None" = None
    """Also takes progress and response: the stream of a client that asked for one (``stream: true``)."""
    bare: bool = False
    """The transport has its own envelope: the answer is the result alone."""
    # Progress of the work
    services: Services = cast("Services", None)
    """Of the running server; set by the dispatcher."""
    stop: Callable[[], object] | None = None
    """Cancels the task of the call, where its origin does not."""
    release: Callable[[], object] | None = None
    """Called when the call is over, where it holds something that others wait for."""
    lasting: bool = False
    """It's open until its client closes it, as `subscriptions/listen` is: no limit of time holds."""
    task: str = ""
    """`DEFERRED` while the function may still make a task of the call. `RUNNING` for the work of a task: gates don't
    see it, because they saw the request that made the task.
    """
    weight: int = 0
    """Bytes that the call takes of the budget for large ones, see `Load.take`. Most calls take nothing."""
    started: float = 0.0
    """When the sweep first saw it."""
    cancelled: bool = False
    expired: bool = False
    halted: bool = False
    """The server stopped before it was done."""
    over: bool = False
    """It has been answered: whatever user code left running says nothing more."""
    asked: set[str] | None = None
    """The ids of its questions that are open, once it has asked."""
    failure: CallFailure | None = None
    progress: CallProgress | None = None

    @property
    def owner(self) -> str:
        """Whose share of the server's capacity it takes: the principal's, else that of the peer's `peer_network`."""
        if self.principal is not None:
            return self.principal.id
        return "" if self.origin is None else peer_network(self.origin.peer)

    def raw_params(self) -> bytes:
        """Return the JSON of `params` as it came; empty without any."""
        if not self.params and self.tool is not None:
            body: bytes = getattr(self.origin, "body", b"")
            self.params = bytes(_decode_body(body).params) if body else b""
        return self.params

    def open_line(self) -> ReplyChannel:
        """The line, opened when it was not yet."""
        line = self.line
        if line is None:
            assert self.open_reply is not None  # noqa: S101  a call has a line or can make one
            line = self.line = self.open_reply(self)
        return line

    async def send_to_caller(self, message: bytes) -> None:
        """Send a message about the call to its caller; after the answer, nothing more is said."""
        if not self.over:
            await self.open_line().send(message)

    def cancel(self) -> None:
        """Stop the work because the caller does not want the answer any more."""
        self.cancelled = True
        stop = self.stop
        if stop is None and self.origin is not None:
            stop = self.origin.cancel
        if stop is not None:
            stop()

    def expire(self) -> None:
        """Stop work that took longer than any call may."""
        self.expired = True
        self.cancel()

    def halt(self) -> None:
        """Stop work because the server stops. What was stopped already stays what it was."""
        if not self.cancelled:
            self.halted = True
            self.cancel()


class RawParams(Struct, frozen=True, gc=False, rename={"meta": "_meta"}):
    """What requests have in their params, each as raw JSON; empty where it's missing."""

    meta: Raw = Raw(b"")
    name: Raw = Raw(b"")
    uri: Raw = Raw(b"")
    arguments: Raw = Raw(b"")


class _Body(Struct, gc=False):
    params: Raw = Raw(b"")


class _MetaParams(Struct, frozen=True, gc=False, rename={"meta": "_meta"}):
    meta: Raw = Raw(b"")


class _MetaBody(Struct, gc=False):
    params: _MetaParams = _MetaParams()


_NO_PARAMS = RawParams()
_decode_params = msgspec.json.Decoder(RawParams).decode
_decode_body = msgspec.json.Decoder(_Body).decode
_decode_meta_in = msgspec.json.Decoder(_MetaBody).decode


def raw_meta(call: Call) -> bytes:
    """Return `_meta` of a request as JSON; empty if it's missing or can't be read."""
    if call.params or call.tool is None:
        return bytes(params_of(call).meta)
    body: bytes = getattr(call.origin, "body", b"")
    try:
        return bytes(_decode_meta_in(body).params.meta) if body else b""
    except (msgspec.DecodeError, RecursionError):
        return b""


def params_of(call: Call) -> RawParams:
    """Return the params of a call; none if they aren't an object."""
    try:
        raw = call.raw_params()
        return _decode_params(raw) if raw else _NO_PARAMS
    except (msgspec.DecodeError, RecursionError):
        return _NO_PARAMS


def value_of(raw: Raw) -> Any:
    """Return the value of raw JSON; None where it's missing or can't be read."""
    try:
        return msgspec.json.decode(raw) if bytes(raw) else None
    except (msgspec.DecodeError, RecursionError):
        return None


ELSEWHERE = {
    "client_id": "See `ctx.principal.client` and `ctx.client`.",
    "fastmcp": "Use the server itself, by its global name.",
    "get_http_headers": "Read `ctx.headers`.",
    "get_http_request": "Read `ctx.headers` and `ctx.principal`.",
    "get_state": "Read `ctx.state[name]`; for values that outlive the call, `await ctx.session_state.get(name)`.",
    "list_roots": "Write `await ctx.roots()`.",
    "mcp": "Use the server itself, by its global name.",
    "notice": "Write `await ctx.log('notice', data)`.",
    "request": "Read `ctx.headers` and `ctx.principal`.",
    "request_context": "Read `ctx.meta`, `ctx.lifespan`, `ctx.session`, and `ctx.headers`.",
    "send_notification": "Changes of lists are announced by themselves. Use `ctx.log` or `ctx.progress`.",
    "session_id": "Read `ctx.session`; values that the session keeps are in `ctx.session_state`.",
    "set_state": "Write `ctx.state[name] = value`; for values that outlive the call, `ctx.session_state.set`.",
    "warn": "Write `await ctx.warning(data)`.",
}
"""Name of another package -> what to write in a function with a context."""


class CallInfo:
    """The call as it came."""

    __slots__ = ("_call", "_home", "_memo", "_services", "state")

    def __init__(self, call: Call, home: object = None) -> None:
        self._call = call
        self._home = home
        self._services: Services = call.services
        self._memo: dict[str, Any] = {}
        shared = call.shared
        self.state: dict[str, Any] = {} if shared is None else shared
        """A place for values of this call; middleware, dependencies and functions share it."""

    if not TYPE_CHECKING:  # type checkers would take every name for one that exists

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, ELSEWHERE)

    @property
    def request_id(self) -> RequestId:
        """The JSON-RPC id of the request: ``log.info("call %s", ctx.request_id)``."""
        return self._call.id

    @property
    def revision(self) -> str:
        """The date of the protocol revision in use, to compare as text: ``if ctx.revision < newest: …``."""
        return self._call.revision.date

    @property
    def client(self) -> ClientInfo:
        """Capabilities as declared, and name and version for display: ``ctx.client.info.name``."""
        return self._call.client

    @property
    def principal(self) -> Principal | None:
        """The authenticated caller, such as ``ctx.principal.subject``; None without authentication."""
        return self._call.principal

    @property
    def session(self) -> Session | None:
        """The handshake session; None in the per-request era and for sessionless calls."""
        return self._call.session

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers of the request, ``ctx.headers.get("user-agent")``; empty on other transports."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in (self._call.headers or {}).items()}

    @property
    def meta(self) -> Mapping[str, Any]:
        """`_meta` of the request, which can't be changed: ``ctx.meta.get("com.example/trace")``. Empty without."""
        if "meta" not in self._memo:
            self._memo["meta"] = MappingProxyType(members(value_of(params_of(self._call).meta)))
        meta: Mapping[str, Any] = self._memo["meta"]
        return meta

    @property
    def cancelled(self) -> bool:
        """Whether the caller gave up. It ends an `async def` function anyway; in a thread, ``if ctx.cancelled: …``."""
        return self._call.cancelled

    @property
    def lifespan(self) -> Any:
        """What the lifespan of the function's own server yielded (``ctx.lifespan.db``), or of its parent's."""
        return self._services.lifespan_of(self._home)


def per_request_call(admitted: Admission, message: Envelope, **way: Any) -> Call:
    """A request of the per-request era as a call.

    Args:
        admitted: what the ladder found.
        message: the request.
        way: what the transport adds: who asked, and the way back.
    """
    assert message.id is not None  # noqa: S101  only requests become calls
    meta = admitted.meta
    return Call(
        revision=admitted.revision,
        id=message.id,
        method=message.method,
        name=admitted.name,
        params=message.params,
        token=None if meta.progress_token is UNSET else meta.progress_token,
        log_level=meta.log_level or "",
        client=admitted.client,
        **way,
    )


def notification_call(message: Envelope, session: Session | None, revision: Revision, **way: Any) -> Call:
    """A notification as a call that isn't answered; the arguments are those of `per_request_call`."""
    client = _declared(message) if session is None else session.client
    return Call(
        revision=revision, id="", method=message.method, params=message.params, client=client, session=session, **way
    )


class _NotificationParams(Struct, gc=False, rename={"meta": "_meta"}):
    meta: RequestMeta = msgspec.field(default_factory=RequestMeta)


_decode_notification = msgspec.json.Decoder(_NotificationParams).decode


def _declared(message: Envelope) -> ClientInfo:
    """What a notification says about its client."""
    try:
        meta = _decode_notification(message.params or b"{}").meta
        capabilities = {} if meta.capabilities is UNSET else read_capabilities(meta.capabilities)
    except (msgspec.DecodeError, RecursionError):
        return NOBODY
    if meta.client is UNSET:
        return ClientInfo(capabilities)
    return ClientInfo(capabilities, meta.client.name, meta.client.version)


def handshake_call(message: Envelope, session: Session | None, revision: Revision, **way: Any) -> Call:
    """A request of the handshake era as a call; the arguments are those of `per_request_call`.

    Raises:
        ProtocolError: the progress token is too long.
    """
    assert message.id is not None  # noqa: S101  only requests become calls
    return Call(
        revision=revision,
        id=message.id,
        method=message.method,
        params=message.params,
        token=progress_token(message.params),
        client=NOBODY if session is None else session.client,
        session=session,
        **way,
    )
