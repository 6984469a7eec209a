"""One request in flight, independent of its transport, and the `ReplyChannel` for messages to its caller.

A transport creates a `Call`, the dispatcher runs it, and user code accesses it through `Context`.

Scopes limit the items that a caller can list and use. A caller that starts this program and talks to it directly, over
stdio or in the same process, needs no scopes, unless a test gives it a principal.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from math import nan
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec
from msgspec import UNSET, Raw, Struct

from millstream._confidential import Confidential
from millstream._copies import NotCopyable
from millstream._http.message import peer_network
from millstream._protocol.admission import Admission
from millstream._protocol.errors import ProtocolError
from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import MALFORMED, Envelope, Json, RequestId, decoder
from millstream._protocol.metadata import ClientInfo, ProgressToken, decode_params_with_meta
from millstream._protocol.notifications import progress_token
from millstream._protocol.principal import EVERYTHING, Principal
from millstream._protocol.revisions import Revision
from millstream._protocol.seal import Rounds
from millstream._server.calls.services import Services
from millstream._server.calls.sessions import Session
from millstream._server.refusals import Refusal
from millstream._suggestions import no_attribute

DEFERRED = "deferred"
RUNNING = "running"
"""Values of `Call.task`."""
UNKNOWN_CLIENT = ClientInfo()
"""A client without information about itself."""


class TaskStart(BaseException):
    """Ends the request of a call that goes on as a task. Not an `Exception`, so user code doesn't catch it."""

    def __init__(self, rounds: Rounds | None = None) -> None:
        super().__init__("task start")
        self.rounds = rounds
        """The rounds of a call that waits until its task resumes it, or None for one that runs again."""


class ReplyChannel(Protocol):
    """The channel for messages to a caller. Messages are complete JSON-RPC messages without framing, sent in order. By
    default, they're discarded.
    """

    asks: bool = False
    """Whether the channel can carry requests to the client and route their answers back."""

    async def send(self, message: bytes) -> None:
        """Send a message with back-pressure. If the client has disconnected, drop the message or keep it until the
        client resumes."""
        return

    def push(self, message: bytes) -> bool:
        """Send without waiting. Return False if the channel is closed, or was cut because the client reads too
        slowly.
        """
        return True

    async def interrupt(self, retry_ms: int | None) -> bool:
        """Close the connection but not the call, if the client can reconnect for the rest. Return whether it was
        closed.
        """
        return False

    async def keep_alive(self) -> None:
        """Show a caller that a silent call is alive, if the transport doesn't do so otherwise."""
        return

    def on_close(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` when the channel closes, unless that stops the call anyway. If the server closes the channel,
        call it first, so the call can end with its result. Return a function that removes the callback.
        """
        return lambda: None


class Origin(Protocol):
    """The source of a request: an HTTP request, or a connection."""

    peer: str
    """The address of the peer, or an empty string."""

    cancel: Callable[[str], object] | None
    """Stops the work, if it can be stopped. None if only the call's task can be canceled."""

    def ends_call(self) -> bool:
        """Return whether the peer has disconnected. Called when a call's task was canceled but the call wasn't. If the
        peer is still connected, the function canceled its own task, and the peer is waiting for a response.
        """
        ...


SERVER_FAILURE = "server_error"
"""The outcome of a tool call that failed because of the server, or of a server behind it."""


class CallFailure(Struct):
    """The failure of a call."""

    outcome: str
    """A label for observers: ``tool_error``, ``server_error``, ``cancelled``, or the JSON-RPC error code."""
    error: ProtocolError | None = None
    """The error to send. None if the response is a result (of a failed tool) or isn't sent."""
    incident: str = ""
    """The id of the log entry with the details of an unexpected failure."""
    refusal: Refusal | None = None
    """The row of the table, if the function's exception is there and the same call can succeed later."""


OWN_STEP = 1e-4
"""The step of progress that the server reports for a silent call: the smallest that no client writes as 1e-05."""


class CallProgress(Struct, gc=False):
    """The progress that has been reported to the caller of a call."""

    value: float = -OWN_STEP
    total: float | None = None
    message: str | None = None
    last_reported: float | None = None
    """The last progress that user code reported."""
    reported_at_heartbeat: float | None = nan
    """The value of `last_reported` at the last heartbeat. NaN before the first."""
    sent_heartbeat: bool = False
    """Whether a heartbeat has reported progress."""


class Mirror(Protocol):
    """A stream that receives a call's messages, in addition to the call's own reply."""

    @property
    def url(self) -> str:
        """Path of the stream."""
        ...

    async def __call__(self, message: bytes) -> None:
        """Send a message."""
        ...


class Call(Confidential, Struct, NotCopyable, eq=False, kw_only=True):
    """A request in flight. User code accesses it through `Context`.

    A Struct, because creating one takes no Python call.

    Example:
        ``if call.principal is None: raise ProtocolError(INVALID_REQUEST, "Sign in first.")``
    """

    # Request
    revision: Revision
    id: RequestId
    method: str
    name: str = ""
    """The name or URI that the caller used."""
    item: str = ""
    """The name or URI of the item at the main address, which records and limits use. Empty if it's `name`."""
    trace: str = ""
    """The id of its trace, if there's one."""
    params: bytes = b""
    """The raw JSON of `params`. For a prepared call it's extracted on demand: use `raw_params` or `params_of`."""
    body: bytes = b""
    """The message of a prepared call."""
    tool: Any = None
    """The `Tool` of a prepared call, which is decoded, validated, and ready to run."""
    arguments: Any = None
    responses: Mapping[str, Any] | None = None
    """The `inputResponses` of a multi-round request, undecoded."""
    state: str = ""
    """The `requestState` from the client."""
    rounds: Rounds | None = None
    """The rounds of this call: from its state, or created when user code asks its first question."""
    asked_rounds: Rounds | None = None
    """The rounds that the call has ended with, if it ended with questions."""
    parked: Any = None
    """The `ParkedCall`, if the function can wait for answers without a request."""
    claim: Any = None
    """The `IdempotentCall`, if the call runs once."""
    approver: str = ""
    """Subject of another person who approved the call."""
    read: str = ""
    """What a tool such as `read_resource` read for the caller: a URI, or the name of a prompt."""
    collects: str = ""
    """Id of the request for approval with the call's arguments, as message hooks returned them."""
    binding: bytes = b""
    """The hash that binds the state to this call, once computed."""
    token: ProgressToken | None = None
    log_level: str = ""
    shared_state: dict[str, Any] | None = None
    """The `Context.state` of calls with several contexts: middleware, dependencies, and the function."""
    # Caller
    client: ClientInfo
    session: Session | None = None
    principal: Principal | None = None
    headers: Mapping[bytes, bytes] | None = None
    origin: Origin | None = None
    transport: str = "http"
    """The transport, for observers: http, sse, stdio, websocket, rest, or memory."""
    client_id: str = ""
    """The hub client whose stream also receives the call's messages, if the transport knows one."""
    # Reply
    open_reply: "Callable[[Call], ReplyChannel] | None" = None
    """Opens the reply channel on first use, for transports whose reply can also be a single message."""
    reply_channel: ReplyChannel | None = None
    meta: Json | None = None
    """`_meta` of the result, in addition to what the revision requires."""
    tee: "Mirror | None" = None
    """Also receives progress and the response, for a client that requested a stream (``stream: true``)."""
    bare: bool = False
    """Whether the transport has its own envelope. The response is then the bare result."""
    # Lifecycle
    services: Services = cast("Services", None)
    """The shared services of the running server, set by the dispatcher."""
    dispatcher: Any = None
    """The dispatcher of the address at which the call arrived. It sets itself."""
    stop: Callable[[str], object] | None = None
    """Cancels the task of the call, if its origin can't."""
    release: Callable[[], object] | None = None
    """Called when the call ends, to free resources that other calls wait for."""
    long_lived: bool = False
    """Whether the call is open until its client closes it, like `subscriptions/listen`. Time limits don't apply."""
    task: str = ""
    """`DEFERRED` while the function may still turn the call into a task. `RUNNING` for a task's work, which gates don't
    check, because they checked the request that created the task.
    """
    weight: int = 0
    """Bytes of the budget for large calls (see `Load.take`). Most calls use none."""
    deadline: asyncio.Timeout | None = None
    """The time limit of the tool."""
    open_questions: int = 0
    """Questions that the function waits for. The time limit doesn't count meanwhile."""
    time_left: float = 0.0
    """Seconds until the time limit, while the function waits."""
    started: float = 0.0
    """Time at which the sweep first saw the call."""
    cancelled: bool = False
    expired: bool = False
    halted: bool = False
    """Whether the server stopped the call because it shut down."""
    over: bool = False
    """Whether the call has been answered. Later messages of user code are dropped."""
    question_ids: set[str] | None = None
    """Ids of open questions to the client. None before the first question."""
    failure: CallFailure | None = None
    progress: CallProgress | None = None

    @property
    def owner(self) -> str:
        """The owner whose share of the server's capacity the call uses: the principal, otherwise the peer's
        `peer_network`.
        """
        if self.principal is not None:
            return self.principal.id
        return "" if self.origin is None else peer_network(self.origin.peer)

    def raw_params(self) -> bytes:
        """Return the raw JSON of `params`, or empty bytes."""
        if not self.params and self.body:
            self.params = bytes(_decode_body(self.body).params)
        return self.params

    def raw_meta(self) -> bytes:
        """Return the `_meta` of the request as JSON, or empty bytes if it's missing or unreadable."""
        if self.params or not self.body:
            return bytes(params_of(self).meta)
        return bytes(_decode_meta_in(self.body).params.meta)  # a transport has already decoded the body

    def get_rounds(self) -> Rounds:
        """Return the rounds, created on first use."""
        if self.rounds is None:
            self.rounds = Rounds(None, self.responses or {})
        return self.rounds

    def saved_value(self, key: str) -> bytes | None:
        """Return the value that `save_value` stored in an earlier round of the call, or None.

        Args:
            key: Key of the value.
        """
        return None if self.rounds is None else self.rounds.find_settled(key, key)

    def save_value(self, key: str, value: bytes) -> None:
        """Store a value for the next round of the call, in the sealed state that the client returns.

        Args:
            key: Key of the value.
            value: The value. It's sent to the client and back, so keep it small.
        """
        self.get_rounds().settle(key, key, value)

    def begin(self, *, begun: bool = True) -> None:
        """Record that the function starts, or that an upstream gets the call: from here on, it may have an effect.

        Args:
            begun: Whether that's so. False takes it back.
        """
        for each in (self.parked, self.claim):
            if each is not None:
                each.begun = begun

    @property
    def can_start_task(self) -> bool:
        """Whether `start_task` has an effect: the tool is deferrable, and the client supports tasks."""
        return self.task == DEFERRED

    def start_task(self) -> None:
        """Turn the call into a task, if possible. The function stops here and starts again, with the values of
        `save_value`."""
        if self.can_start_task:
            raise TaskStart

    def open_reply_channel(self) -> ReplyChannel:
        """Return the reply channel and open it if necessary."""
        channel = self.reply_channel
        if channel is None:
            assert self.open_reply is not None  # noqa: S101  a call has a reply channel or can open one
            channel = self.reply_channel = self.open_reply(self)
        return channel

    async def send_to_caller(self, message: bytes, *, late: bool = False) -> None:
        """Send a message about the call to its caller.

        Args:
            message: A notification or request (see `millstream.protocol.notification_message`).
            late: Whether to send it even if the function has returned, as long as the result hasn't been sent.
        """
        if self.over and not late:
            self.postpone(partial(self.send_to_caller, message), len(message))
        elif message := self.services.notification_filters.filter_outgoing(message, self.principal):
            await self.open_reply_channel().send(message)

    def postpone(self, send: Callable[[], Awaitable[None]], size: int) -> None:
        """Keep a message of a function that waits without a request until the next one. Otherwise, drop it.

        Args:
            send: Sends the message.
            size: Its size in bytes.
        """
        if self.parked is not None:
            self.parked.postpone(send, size)

    def push_to_caller(self, message: bytes) -> bool:
        """Send a message without waiting. Return False if the reply channel is closed.

        Args:
            message: See `send_to_caller`.
        """
        message = self.services.notification_filters.filter_outgoing(message, self.principal)
        return not message or self.open_reply_channel().push(message)

    def cancel(self, reason: str = "") -> None:
        """Stop the work because the caller canceled the call.

        Args:
            reason: The message of the `CancelledError`.
        """
        self.cancelled = True
        stop = self.stop
        if stop is None and self.origin is not None:
            stop = self.origin.cancel
        if stop is not None:
            stop(reason)

    def expire(self) -> None:
        """Stop work that exceeded the time limit of calls."""
        self.expired = True
        self.cancel()

    def halt(self) -> None:
        """Stop work because the server is shutting down. A call that has been stopped keeps its reason."""
        if not self.cancelled:
            self.halted = True
            self.cancel()


class RawParams(Struct, frozen=True, gc=False, rename={"meta": "_meta"}):
    """Members of a request's params as raw JSON, empty if missing."""

    meta: Raw = Raw(b"")
    name: Raw = Raw(b"")
    uri: Raw = Raw(b"")
    arguments: Raw = Raw(b"")


class _Body(Struct, gc=False):
    params: Raw = Raw(b"")


_NO_PARAMS = RawParams()


class _MetaBody(Struct, gc=False):
    params: RawParams = _NO_PARAMS


_decode_params = decoder(RawParams)
_decode_body = decoder(_Body)
_decode_meta_in = decoder(_MetaBody)


def params_of(call: Call) -> RawParams:
    """Return the params of a call, or empty ones if they aren't an object."""
    try:
        raw = call.raw_params()
        return _decode_params(raw) if raw else _NO_PARAMS
    except MALFORMED:
        return _NO_PARAMS


def value_of(raw: Raw) -> Any:
    """Return the value of raw JSON, or None if it's missing or unreadable."""
    try:
        return msgspec.json.decode(raw) if bytes(raw) else None
    except MALFORMED:
        return None


ELSEWHERE = {
    "client_id": "See `ctx.principal.client` and `ctx.client`.",
    "fastmcp": "Use the server itself, by its global name.",
    "get_http_headers": "Read `ctx.headers`.",
    "get_http_request": "Read `ctx.headers` and `ctx.principal`.",
    "get_state": "Read `ctx.state[name]`; for values that outlive the call, `await ctx.session_state.get(name)`.",
    "lifespan_context": "Read `ctx.lifespan`.",
    "list_roots": "Write `await ctx.roots()`.",
    "mcp": "Use the server itself, by its global name.",
    "notice": "Write `await ctx.log('notice', data)`.",
    "request": "Read `ctx.headers` and `ctx.principal`.",
    "request_context": "Read `ctx.meta`, `ctx.lifespan`, `ctx.session`, and `ctx.headers`.",
    "send_notification": "The server announces list changes. Use `ctx.log` or `ctx.progress`.",
    "session_id": "Read `ctx.session`; session values are in `ctx.session_state`.",
    "set_state": "Write `ctx.state[name] = value`; for values that outlive the call, `ctx.session_state.set`.",
    "warn": "Write `await ctx.warning(data)`.",
}
"""Names in other packages, with the alternative in a function with a context."""


class _NoCall:
    @property
    def services(self) -> Services:
        raise TypeError("a function receives its context in a parameter, such as def order(isbn: str, ctx: Context)")


_NO_CALL: Any = _NoCall()
"""What `Context()` without a call is about."""


class CallInfo:
    """Information about a call. Only `state` can be changed."""

    __slots__ = ("_call", "_home", "_memo", "_services", "state")

    def __init__(self, call: Call = _NO_CALL, home: object = None) -> None:
        self._call = call
        self._home = home
        self._services: Services = call.services
        self._memo: dict[str, Any] = {}
        shared = call.shared_state
        self.state: dict[str, Any] = {} if shared is None else shared
        """Values of this call, shared by middleware, dependencies, and functions."""

    if not TYPE_CHECKING:  # type checkers would accept any attribute name

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, ELSEWHERE)

    @property
    def request_id(self) -> RequestId:
        """The JSON-RPC id of the request: ``log.info("call %s", ctx.request_id)``."""
        return self._call.id

    @property
    def set_name(self) -> str:
        """Name of the set of items that the caller uses: ``if ctx.set_name == "interns": …``.

        It's empty at the server's main address. See `Server.add_set`.
        """
        return str(self._call.dispatcher.address.name)

    @property
    def revision(self) -> str:
        """The date of the protocol revision. Compare it as text: ``if ctx.revision < newest: …``."""
        return self._call.revision.date

    @property
    def client(self) -> ClientInfo:
        """The client's declared capabilities, and its name and version for display: ``ctx.client.name``."""
        return self._call.client

    @property
    def principal(self) -> Principal | None:
        """The authenticated caller, such as ``ctx.principal.subject``, or None without sign-in, as over stdio."""
        return self._call.principal

    @property
    def session(self) -> Session | None:
        """The handshake session, or None in the per-request era and for sessionless calls."""
        return self._call.session

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers of the request: ``ctx.headers.get("user-agent")``. Empty on other transports."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in (self._call.headers or {}).items()}

    @property
    def meta(self) -> Mapping[str, Any]:
        """The read-only `_meta` of the request: ``ctx.meta.get("com.example/trace")``. Empty if there is none."""
        if "meta" not in self._memo:
            self._memo["meta"] = MappingProxyType(members(value_of(params_of(self._call).meta)))
        meta: Mapping[str, Any] = self._memo["meta"]
        return meta

    @property
    def cancelled(self) -> bool:
        """Whether the caller canceled the call. An `async def` function is also canceled. In a thread, check ``if
        ctx.cancelled: …``.
        """
        return self._call.cancelled

    @property
    def lifespan(self) -> Any:  # the program's lifespan decides its type
        """The value that the lifespan of the function's own server, or of its parent, yielded: ``ctx.lifespan.db``."""
        return self._services.lifespan_of(self._home)


def per_request_call(admitted: Admission, message: Envelope, **way: Any) -> Call:
    """Return a request of the per-request era as a call.

    Args:
        admitted: The result of admission.
        message: The request.
        way: Fields from the transport: caller and reply channel.
    """
    assert message.id is not None  # noqa: S101  only requests become calls
    meta = admitted.meta
    return Call(
        revision=admitted.revision,
        id=message.id,
        method=message.method,
        name=admitted.name,
        params=message.params,
        token=None if meta.token is UNSET else meta.token,
        log_level=meta.log_level or "",
        client=admitted.client,
        long_lived=message.method == "subscriptions/listen",
        **way,
    )


def notification_call(message: Envelope, session: Session | None, revision: Revision, **way: Any) -> Call:
    """Return a notification as a call without a response. Takes the same arguments as `per_request_call`."""
    client = _declared_client(message) if session is None else session.client
    return Call(
        revision=revision, id="", method=message.method, params=message.params, client=client, session=session, **way
    )


def _declared_client(message: Envelope) -> ClientInfo:
    """Return the client information in a notification."""
    try:
        return decode_params_with_meta(message.params or b"{}").meta.read_client()
    except MALFORMED:
        return UNKNOWN_CLIENT


def handshake_call(message: Envelope, session: Session | None, revision: Revision, **way: Any) -> Call:
    """Return a request of the handshake era as a call. Takes the same arguments as `per_request_call`.

    Raises:
        ProtocolError: The progress token is too long.
    """
    assert message.id is not None  # noqa: S101  only requests become calls
    return Call(
        revision=revision,
        id=message.id,
        method=message.method,
        params=message.params,
        token=progress_token(message.params),
        client=UNKNOWN_CLIENT if session is None else session.client,
        session=session,
        **way,
    )


_DIRECT = frozenset(("stdio", "memory"))
_NONE = frozenset[str]()


class Caller(Protocol):
    """A call, a request, or a connection: ``caller.principal``."""

    @property
    def principal(self) -> Principal | None:
        """The caller, or None without sign-in."""
        ...


def granted_scopes(call: Caller) -> frozenset[str] | None:
    """Return the scopes of a caller, or None for a caller with full access.

    Args:
        call: The caller's call.

    Example:
        ``scopes = granted_scopes(call)``, and then ``scopes is None or "orders:read" in scopes``.
    """
    # `Registry.reports` also passes requests, which have no transport.
    return None if getattr(call, "transport", "") in _DIRECT else scopes_of(call.principal)


def scopes_of(principal: Principal | None) -> frozenset[str] | None:
    """Return the scopes of a remote caller, or None for a caller with full access.

    Args:
        principal: The caller, or None without sign-in.
    """
    scopes = _NONE if principal is None else principal.scopes
    return None if EVERYTHING in scopes else scopes


def check_scopes(call: Call, needed: frozenset[str]) -> None:
    """Reject a caller without the scopes of an item: ``check_scopes(call, frozenset({"orders:write"}))``

    Args:
        call: The caller's call.
        needed: Required scopes. The caller needs all of them.

    Raises:
        ProtocolError: INSUFFICIENT_SCOPE, HTTP 403. The error lists all scopes, so that the client can request them
            together.
    """
    if needed:
        scopes = granted_scopes(call)
        if scopes is not None and not needed <= scopes:
            raise call.services.scope_error(needed)
