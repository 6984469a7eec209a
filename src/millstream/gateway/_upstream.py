"""One server behind the gateway: its configuration, and its state while the gateway runs."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from functools import partial
from http import HTTPStatus
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, cast

import msgspec
from msgspec import Raw, Struct, structs

from millstream import ProtocolError, __version__
from millstream._http.client import ArrivingBytes, Inflow, UnsendableRequest
from millstream._http.hosts import TrustedProxies
from millstream._override import override
from millstream._parts import PartHost
from millstream._protocol.errors import UNSUPPORTED_VERSION, closest_name
from millstream._protocol.jsonrpc import decode_members
from millstream._protocol.metadata import Implementation
from millstream._protocol.notifications import ResourceUpdatedNotificationParams
from millstream._protocol.principal import Share
from millstream._recent import Recent
from millstream._server.calls.call import Call
from millstream._server.calls.services import ServerChange, SessionChange
from millstream._server.features.sources import Item
from millstream._server.pool import Pool
from millstream._tasks import Tasks, cancel_all, retry_delay
from millstream.client import (
    AccessDenied,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    Options,
    RequestTimeout,
    ServerError,
    SessionLost,
    TargetError,
    TooMuchArriving,
    TransportFactory,
)
from millstream.client._endpoint import check_headers
from millstream.client._requests import NO_HANDSHAKE, Era
from millstream.client._server_messages import Change
from millstream.client._targets import Remote, find_server
from millstream.client.lowlevel import Command, Conversation, RawRequest
from millstream.gateway._catalog import (
    METHODS,
    STORED_SECONDS,
    Catalog,
    Description,
    Pins,
    QuarantinedItem,
    StoredCatalog,
    fetch,
)
from millstream.gateway._credentials import Credentials, PerUserOAuth
from millstream.gateway._links import (
    MAX_HTTP_CALLS,
    MAX_STREAMS,
    SHARED_KEY,
    Breaker,
    Channel,
    ClientIdentity,
    InUse,
    Link,
    LinkKey,
    Links,
    NoCredentials,
    ResourceWatches,
    choose_channel,
)
from millstream.gateway._names import PREFIX, PREFIX_RULE, Names, UpstreamPattern
from millstream.gateway._parked_calls import ParkedCalls
from millstream.gateway._policy import Policy, UpstreamPolicy, uri_forms
from millstream.gateway._processes import ProcessOptions, ProcessPool, UpstreamProcesses
from millstream.gateway._programs import library_of
from millstream.gateway._programs.program import Program, caller_of, upstream_of
from millstream.gateway._relay import (
    ALL_ABILITIES,
    CHANGES,
    QUESTIONS,
    OwnSession,
    Relays,
    abilities_of,
    answer_errors,
    can_ask,
    limit_abilities,
    logger,
    message_for_client,
)
from millstream.protocol import (
    BY_DATE,
    INVALID_PARAMS,
    MALFORMED,
    METHOD_NOT_FOUND,
    NEWEST,
    NEWEST_HANDSHAKE,
    TASKS,
    Json,
    Revision,
    SuggestionMeta,
    decode_object,
    decoder,
    encode,
    members,
)

if TYPE_CHECKING:
    from millstream.gateway._credentials.source import UpstreamCredentials

NAME = "millstream-gateway"
"""Name that the gateway sends to upstreams if it doesn't forward a client's name."""
State = Literal["connecting", "ready", "degraded"]
_decode_resource = decoder(ResourceUpdatedNotificationParams)

CONNECTION_FAILURES = (ConnectFailed, ConnectionLost, RequestTimeout, TargetError)
_MIN_LISTED = 1.0
"""Minimum seconds between two reads of the lists at a client's request."""
_MIN_REFRESH = 5.0
"""Minimum seconds between unannounced refreshes, even if the lists expire earlier."""
_OTHER_CONNECTIONS = 28
"""HTTP connections for lists, subscriptions, and polls of tasks, in addition to connections for calls."""
_SUBSCRIBE_SECONDS = 1.0
"""Seconds to wait for the subscription to changes before the first lists are read."""
_MAX_INFO = 16 * 1024
"""Maximum size of a client's self-description to pass on, in bytes."""
_MAX_WARNINGS = 1000
_MAX_START_FACTOR = 8
_MAX_PLAIN_METAS = 256
_WEB_SCHEMES = "data", "http", "https", "mailto"
"""Schemes of links that clients open themselves."""


_TAKES = {
    "auth": "credentials from millstream.gateway, such as bearer(…)",
    "policy": "an UpstreamPolicy",
    **dict.fromkeys(("headers", "env"), "a dict of strings"),
    "forward_headers": "a list of strings",
    "trust": "'follow' or 'pin'",
    "isolation": "'shared', 'per_principal', or 'per_session'",
}
"""Options -> what they take, for errors."""


class UpstreamConfig(ProcessOptions, frozen=True, kw_only=True, metaclass=SuggestionMeta):
    """A server behind the gateway. ``UpstreamConfig(name="files", target=["uvx", "mcp-server-files", "."])``"""

    _ELSEWHERE: ClassVar = dict.fromkeys(("url", "command"), "Write upstream(name, URL_OR_COMMAND).")

    target: Any
    """A URL, a command as text or list, a file, an entry of `mcpServers`, or a server object of this process."""
    prefix: str | None = None
    """Prefix of names, by default `name`. Empty for the upstream's own names."""
    headers: Mapping[str, str] = {}
    """Headers for each HTTP request to the upstream."""
    env: Mapping[str, str] = {}
    """Environment variables for a command, in addition to the few that every program needs."""
    cwd: str | None = None
    """Working directory of a command."""
    auth: Credentials | None = None
    """Source of credentials that aren't fixed headers: `bearer`, `per_user_oauth`, and others."""
    forward_headers: Sequence[str] = ()
    """Names of the caller's HTTP headers to pass on."""
    forward_client: bool = True
    """Whether upstreams see the client's name and version instead of the gateway's."""
    isolation: Literal["shared", "per_principal", "per_session"] = "shared"
    """Number of processes for a command: one, one per principal, or one per session. Callers of one process share what
    it remembers. In the handshake era, a process that two principals have used can't ask questions.
    """
    connect_timeout: float = 10.0
    """Seconds to wait for a connection."""
    start_timeout: float = 5.0
    """Seconds to wait for the first lists when the gateway starts, unless there's a stored copy."""
    refresh_seconds: float = 300.0
    """Seconds between refreshes of the lists, unless the upstream specifies their lifetime."""
    max_connections: int = 1000
    """Maximum open connections."""
    max_catalog_bytes: int = 8 * 1024 * 1024
    """Maximum bytes of the upstream's lists together."""
    policy: UpstreamPolicy | None = None
    """Rules for callers: see `UpstreamPolicy`."""
    trust: Literal["follow", "pin"] = "follow"
    """``pin`` hides a tool whose definition has changed until the operator accepts it."""
    revision: str | None = None
    """The only protocol revision to use, as a date, by default the newest that both sides support."""
    openapi: Any = None
    """Instead of a target: the URL or file of an OpenAPI document, the document itself, a FastAPI application, or an
    `OpenApi` that selects operations.
    """

    def __post_init__(self) -> None:
        """Check the types of the options, whose values may be secret.

        Raises:
            TypeError: A value has the wrong type.
        """
        for each in structs.fields(type(self)):
            try:
                if each.name != "cwd":  # a path is fine as well
                    msgspec.convert(getattr(self, each.name), each.type)
            except msgspec.ValidationError as exc:
                takes = _TAKES.get(each.name)
                what = f"takes {takes}" if takes else f"has the wrong type: {exc}"
                raise TypeError(f"upstream {self.name!r}: {each.name} {what}.") from None

    @override
    def __repr__(self) -> str:
        """Return text without potential secrets: headers, variables, and targets."""
        return f"UpstreamConfig(name={self.name!r})"

    @property
    def connects(self) -> bool:
        """Whether each user connects their own account, on the connections page."""
        return isinstance(self.auth, PerUserOAuth)

    @property
    def names(self) -> Names:
        """Mapping between the upstream's names and the names on this server."""
        return Names(self.name if self.prefix is None else self.prefix)

    @property
    def address(self) -> str:
        """Text that identifies the target or document in all workers, or empty for an object in this process."""
        target: object = self.target if self.openapi is None else getattr(self.openapi, "document", self.openapi)
        if isinstance(target, str | Path | Sequence | Mapping):
            return repr(cast("object", target))
        return "" if hasattr(target, "running") or callable(target) else type(target).__name__

    def check(self) -> None:
        """Check the configuration.

        Raises:
            ValueError: The configuration is invalid. The message gives the reason.
        """
        if not self.name.strip():
            raise ValueError("An upstream requires a name.")
        prefix = self.names.prefix
        if PREFIX.fullmatch(prefix) is None:
            raise ValueError(
                f"upstream {self.name!r}: the prefix {prefix!r} produces names that some clients can't call: "
                f"{PREFIX_RULE}, or set another prefix."
            )
        if self.revision is not None and self.revision not in BY_DATE:
            raise ValueError(
                f"upstream {self.name!r}: unknown revision {self.revision}. Use one of {', '.join(BY_DATE)}."
            )
        if problem := self.find_ignored_option()[1]:
            raise ValueError(f"upstream {self.name!r}: {problem}")
        try:
            check_headers(self.headers)
        except TargetError as exc:
            raise ValueError(f"upstream {self.name!r}: {exc}") from None
        if self.openapi is not None:
            from millstream.gateway._openapi import check_api  # noqa: PLC0415  few upstreams are APIs

            check_api(self)
        elif library_of(self.target):
            upstream_of(self.target)
        else:
            try:
                find_server(self.target, env=self.env, cwd=self.cwd)
            except TargetError as exc:
                raise ValueError(f"upstream {self.name!r}: {exc}") from exc

    def find_ignored_option(self) -> tuple[str, str]:
        """Return an option that this kind of target ignores, and what it requires, or two empty strings."""
        kind = "openapi" if self.openapi is not None else "url" if "://" in str(self.target).partition(" ")[0] else ""
        options = {"env": self.env, "cwd": self.cwd, "isolation": self.openapi and self.isolation != "shared"}
        option = next((name for name, value in options.items() if value and kind), "")
        requires = "a connection" if option == "isolation" else "a command"
        return option, option and f"{option} requires {requires}, but this upstream has {kind}."


class UpstreamOptions(TypedDict, total=False):
    """Options of ``Server.upstream``. See `UpstreamConfig`."""

    prefix: str | None
    headers: Mapping[str, str]
    env: Mapping[str, str]
    cwd: str | None
    auth: Credentials | None
    forward_headers: Sequence[str]
    forward_client: bool
    isolation: Literal["shared", "per_principal", "per_session"]
    timeout: float
    connect_timeout: float
    start_timeout: float
    refresh_seconds: float
    max_processes: int
    spare_processes: int
    max_connections: int
    idle_seconds: float
    memory_limit: int | None
    max_catalog_bytes: int
    max_bytes: int
    policy: UpstreamPolicy | None
    trust: Literal["follow", "pin"]
    revision: str | None
    openapi: Any


reconnect_delay = partial(retry_delay, first=0.5, most=60.0)
"""Returns the seconds before the next attempt to reach an upstream, by the number of failures."""


def refresh_pause(seconds: float) -> float:
    """Return the seconds before the next announced refresh, after one that took some seconds.

    Each refresh can make every client list again, so even a fast one isn't repeated constantly.
    """
    return min(max(4 * seconds, 1.0), _MIN_REFRESH)


def _uri_matcher(uris: Collection[str], templates: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a URI is one of these, or matches a template."""
    patterns = [UpstreamPattern(each) for each in templates]
    return lambda uri: uri in uris or any(each.match(uri) is not None for each in patterns)


def _info_of(call: Call) -> bytes:
    """Return `clientInfo` as the client sent it. After `initialize`, only the name and version are known."""
    try:
        found = (
            decode_members(call.raw_params() or b"{}").get("clientInfo", b"") if call.method == "initialize" else b""
        )
    except MALFORMED:
        found = b""
    known = Implementation(call.client.name, call.client.version)
    return bytes(found) if 0 < len(found) <= _MAX_INFO else encode(known)


def lacks_handshake(error: Exception) -> bool:
    """Return whether an error of `initialize` means that there's no handshake, not that the client is rejected."""
    if not isinstance(error, ServerError):
        return True
    unsupported = error.code == INVALID_PARAMS and "supported" in members(error.data)
    return unsupported or error.code in (METHOD_NOT_FOUND, UNSUPPORTED_VERSION)


def _quarantine(uris: Iterable[str], templates: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a URI, in any spelling, is one of these, or matches a template."""
    hidden: dict[str, set[frozenset[str]]] = {"": {frozenset()}}  # encoded more times than `uri_forms` decodes
    for uri in uris:
        for path, parts in uri_forms(uri.partition("#")[0]).values():
            hidden.setdefault(path, set()).add(parts)
    matches = _uri_matcher((), [form for each in templates for form in (each, each.casefold())])

    def hides(uri: str) -> bool:
        forms = uri_forms(uri)
        if any(fewer <= parts for path, parts in forms.values() for fewer in hidden.get(path, ())):
            return True
        return any(map(matches, {uri, *forms, *(path for path, _ in forms.values())}))

    return hides


class _SharedServer(Struct, frozen=True):
    """A server object that outlives the connections to it."""

    running: "Callable[[], AbstractAsyncContextManager[Any]]"


class Gateway(Struct, frozen=True):
    """Shared state of a running gateway's upstreams."""

    id: str
    """See `_names`."""
    name: str
    host: PartHost
    pool: ProcessPool
    """Runs the processes of commands."""
    parked_calls: ParkedCalls
    """Calls waiting for answers."""
    has_several: bool
    """Whether there are several upstreams."""
    sessions: Share
    """Counts the dedicated sessions of all upstreams."""
    proxies: TrustedProxies
    arriving: ArrivingBytes
    """Counts the bytes of unfinished replies from all upstreams."""
    on_change: Callable[["Upstream", Collection[str]], None]
    """Called after an upstream's `catalog` was replaced, with the kinds of lists that it said have changed."""


class Upstream:
    """One upstream of a running gateway."""

    item_classes: ClassVar[Mapping[str, Callable[[Any, str, str, Description], Item]]]
    """Kind -> class of its items, created from the upstream, the item's name or URI on this server and at the upstream,
    and its description on this server without the name. Raises ValueError if clients would drop the item.
    """

    credentials: "UpstreamCredentials | None" = None
    """Credentials of its connections; set before `open`."""

    processes: UpstreamProcesses | None = None
    """Processes of a command."""
    lister: LinkKey = SHARED_KEY
    """Key of the connection that reads the lists."""
    _lister_left = False
    """Set when the user whose account reads the lists reconnects or disconnects."""
    state: State = "connecting"
    reason: str = ""
    """Reason of a degraded state, for the operator. It may contain the address, so it's never sent to clients."""
    last_error: Json | None = None
    """Time and reason of the last call without a usable response."""
    changed_at: float = 0.0
    """Unix time of the last change to its lists, or 0 before the first one."""
    tokens: int = 0
    """Tokens of the tools that are offered."""
    looping: int = 0
    """Number of items that aren't offered because they lead back to this gateway."""
    _is_plain: bool | None = None
    """Whether messages name their call, no call becomes a task, and callers have neither credentials nor processes of
    their own. None if this must be determined again from the capabilities.
    """
    relays = False
    """Whether the server forwards this upstream's messages instead of creating items from its lists."""
    serves_one = False
    """Whether it's a command that serves only this server's one client. It starts when that client connects."""
    _start_factor = 1
    """Multiple of the timeout that the shared process may take to start. Each start that takes longer doubles it."""
    _listed_offer = b""
    """The negotiated result of the connection that reads the lists, at the last read."""
    _listed_at = 0.0
    """Monotonic time of the last lists, or 0 before."""
    _lost_at = 0.0
    """Monotonic time of the last refresh after a loss, or 0 before."""
    _uses_http = False
    _is_websocket = False
    """Whether messages on a connection don't name their call, so that principals can't share one."""

    def __init__(self, config: UpstreamConfig, gateway: Gateway) -> None:
        """Create the upstream; `open` connects to it.

        Args:
            config: Configuration of the upstream.
            gateway: The gateway.
        """
        self.config: UpstreamConfig = config
        self.name: str = config.name
        self.gateway: Gateway = gateway
        self.address: Any = config.target
        """URL or target that credentials are sent to."""
        self.names: Names = config.names
        policy = config.policy or UpstreamPolicy()
        self.policy: Policy = Policy(policy, config.names)
        self.pins: Pins | None = Pins(config.name, policy, gateway.host.store.kv) if config.trust == "pin" else None
        """Pinned definitions, if any."""
        self._stored_catalog = StoredCatalog(gateway.host.store, gateway.name, config.name, config.address)
        self._created_at = monotonic()
        self.breaker: Breaker = Breaker()
        self.catalog: Catalog = Catalog()
        self._is_listed = _uri_matcher((), ())
        self._is_quarantined = _quarantine((), ())
        self.offered: dict[str, dict[str, tuple[str, Description]]] = {kind: {} for kind in METHODS}
        """Kind -> name on this server -> upstream's name, and the description that the item was created from."""
        self.quarantined: list[QuarantinedItem] = []
        """Items that aren't offered, because their definitions differ from the accepted ones."""
        self._era = Era()
        self._tasks = Tasks()
        self.plain_metas: Recent[tuple[bytes, str, bool], bytes] = Recent(_MAX_PLAIN_METAS)
        """`_meta` of requests, by the client's `_meta` and revision."""
        places = Pool(config.max_connections, several=gateway.pool.places.several)
        clock = gateway.host.services.clock
        self.links: Links = Links(self._make_link, gateway.sessions, places, config.idle_seconds, clock)
        self.watches: ResourceWatches = ResourceWatches(
            config.name,
            self._shared_conversation,
            lambda uri: gateway.host.services.changes.emit(ServerChange("updated", self.names.uri(uri))),
        )
        self.has_handshake: bool = config.revision is None
        """Whether a shared process can use the handshake. Assumed until a handshake fails."""
        self.gives_sessions: bool = config.revision is None or BY_DATE[config.revision].handshake
        """Whether clients can have dedicated sessions. Assumed until the upstream doesn't create one."""
        self.task_tools: set[str] = set()
        """Tools that were rejected in the handshake era, because they need tasks."""
        self.keeps_lists: asyncio.Event = asyncio.Event()
        """Set when the lists are needed here, even if no client requests them."""
        self.lists_ready: asyncio.Event = asyncio.Event()
        """Set once there are lists, fresh or stored."""
        self._target: Any = upstream_of(config.target) if library_of(config.target) else config.target
        self._stack = AsyncExitStack()
        self._refresh_event = asyncio.Event()
        """Set when the lists have to be fetched again."""
        self._announced_kinds: set[str] = set()
        """Kinds of lists that the upstream said have changed."""
        self._listed = asyncio.Event()
        """Set when the lists have been fetched."""
        self._warnings: Recent[str, None] = Recent(_MAX_WARNINGS)
        """Warnings that were already logged, because each refresh repeats them."""

    async def open(self) -> None:
        """Start connecting, in the background."""
        config, pool = self.config, self.gateway.pool
        match find_server(self._target, env=config.env, cwd=config.cwd):
            case Remote() as remote:
                self._uses_http = remote.url.scheme in ("http", "https")
                self._is_websocket = not self._uses_http
            case Command() as command:
                self.processes = pool.add(config, command)
                self.serves_one = self.relays and self.gateway.host.has_one_client
            case Program() as program:
                program.transport = "stdio" if self.gateway.host.has_one_client else "streamable-http"
                self._stack.push_async_callback(program.settle)
            case TransportFactory():
                pass
            case server:
                running = await self._stack.enter_async_context(server.running())
                self._target = _SharedServer(lambda: nullcontext(running))
        self.gateway.host.services.session_ends.append(self.links.end_session)
        self._stack.push_async_callback(self.links.close)
        self._stack.push_async_callback(self.watches.close)
        self._tasks.spawn(self._run())

    async def close(self) -> None:
        """Close all connections."""
        await self._tasks.close()
        await self._stack.aclose()

    @property
    def revision(self) -> Revision:
        """Protocol revision of the upstream. Until the first connection, the newest one."""
        return BY_DATE.get(self.catalog.revision, NEWEST)

    @property
    def has_replied(self) -> bool:
        """Whether the upstream has responded since the start. If it rejected the gateway, clients get the upstream's
        reason."""
        return self.serves_one or bool(self.catalog.revision) or (self.state == "degraded" and not self.breaker.is_open)

    def key(self, call: Call, abilities: bytes, name: str) -> LinkKey:
        """Return the key of the connection that a call needs.

        Args:
            call: The client's call.
            abilities: The questions that the client can answer (see `_relay.abilities_of`).
            name: Upstream's name of the tool or prompt, or URI of the resource.
        """
        program, principal = self._protected_program, ""
        if call.principal is not None:
            principal = call.principal.binding.hex() if program is None else caller_of(call.principal)
        if self._shares_processes:
            owner = principal if self.config.isolation == "per_principal" else ""
            return LinkKey(owner, handshake=self._in_sessions)
        session = "" if call.session is None else call.session.id
        credentials_key = "" if self.credentials is None else self.credentials.link_key(call)
        needs_task = call.method == "tools/call" and name in self.task_tools  # tasks exist only in the newer era
        if not needs_task and self.channel(call) is Channel.OWN:
            return LinkKey(principal, session, credentials=credentials_key, own=True)
        if self.processes is not None and not (self.serves_one and not self.revision.handshake):
            return LinkKey(principal, session, abilities)
        if not self.revision.handshake:  # each request is self-contained
            separate = credentials_key or program is not None or self._is_websocket
            return LinkKey(principal if separate else "", credentials=credentials_key)
        key = LinkKey(principal, session, abilities, credentials_key)
        # The connection for lists declares more than this caller has.
        return structs.replace(key, capabilities=b"{}") if key == self.lister else key

    @property
    def may_have_own(self) -> bool:
        """Whether client sessions can have dedicated sessions at this upstream."""
        return self.gives_sessions and not self._shares_processes and self.config.openapi is None

    def channel(self, call: Call) -> Channel:
        """Return how the client of a call reaches the upstream."""
        return choose_channel(
            call.revision,
            self.revision,
            has_session=call.session is not None,
            gives_sessions=self.gives_sessions,
            serves_several=self._shares_processes,
        )

    async def open_own(self, call: Call, key: LinkKey) -> Link | None:
        """Return the dedicated session of a call's session, opened on first use, or None if the upstream has none.

        Raises:
            SessionLost: It has ended before the session of its client.
            ServerError: The upstream rejects this client.
            ProtocolError: There are too many dedicated sessions.
            ClientError: The upstream can't be reached.
        """
        session, links = call.session, self.links
        assert session is not None  # noqa: S101  the channel requires one
        link = links.own.get(session.id)
        if (link is not None and link.key != key) or session.id in links.lost:
            links.lost.pop(session.id, None)
            links.end_session(session.id)
            raise SessionLost("The session was opened with different credentials.")
        info = _info_of(call) if self.config.forward_client else encode(Implementation(NAME, __version__))
        identity = ClientIdentity(call.revision.date, Raw(info), self._capabilities_for(call))
        peer = "" if call.origin is None else call.origin.peer
        exempt = call.principal is None and self.gateway.proxies.exempts(peer)
        try:
            link = await links.open(key, "" if exempt else call.owner, identity)
        except NO_HANDSHAKE as exc:
            if self.revision.handshake or not lacks_handshake(exc):
                raise
            why = str(exc)
        else:
            if link.conversation.transport.has_session:
                link.expires_at = session.expires_at
                return link
            links.end(link)
            why = "It doesn't issue session ids."
        logger.info("%s has no sessions for its clients: %s", self.name, why)
        self.gives_sessions = False
        return None

    def _capabilities_for(self, call: Call) -> Json:
        """Return a client's declared capabilities, without questions that the policy refuses, and
        extensions that don't pass a catalog.
        """
        declared, questions = dict(call.client.capabilities), self.policy.questions
        if not self.relays and declared.pop("extensions", None):
            passed = decode_object(self.abilities(call) or b"{}")
            declared |= {"extensions": passed["extensions"]} if "extensions" in passed else {}
        return {name: each for name, each in declared.items() if name not in QUESTIONS or name in questions}

    def abilities(self, call: Call) -> bytes:
        """Return the questions that the upstream can ask a call's client (see `_relay.abilities_of`)."""
        return limit_abilities(abilities_of(call), self.policy.questions)

    @property
    def sender(self) -> str:
        """Name that its questions show to the user, so that several servers can't be confused, or empty for a single
        one without a prefix.
        """
        return self.name if self.names.prefix or self.gateway.has_several else ""

    @property
    def has_tasks(self) -> bool:
        """Whether the upstream announces the tasks extension."""
        return TASKS in self.catalog.extensions

    @property
    def _in_sessions(self) -> bool:
        """Whether a shared process uses the handshake, although it also supports the newer era."""
        return self.catalog.asks_by_handshake and self.has_handshake

    def ask_by_handshake(self, link: Link) -> str:
        """Use the handshake from now on, because a shared process can't ask questions in the newer era.

        Returns:
            What the caller can do, or empty if it isn't a shared process or doesn't support the handshake.
        """
        newer = not link.conversation.negotiated.revision.handshake
        if not (newer and self._shares_processes and self.has_handshake):
            return ""
        if not can_ask(limit_abilities(ALL_ABILITIES, self.policy.questions)):
            return "The gateway's policy doesn't allow its questions."
        remedy = "It's restarting in the mode that allows questions. Call again."
        if self.catalog.asks_by_handshake:
            return remedy
        logger.warning(
            "%s can't ask questions in revision %s; restarting it with the handshake",
            self.name,
            self.catalog.revision,
        )
        self.catalog.asks_by_handshake = True
        self.refresh()
        return remedy

    def find_plain_link(self, call: Call) -> Link | None:
        """Return the open connection for a call that is one request and one result: the one that all share, or in a
        relay, the dedicated session of its client. Return None if the call needs more.
        """
        if self._is_plain is None and self.catalog.revision:
            separate = self.processes is not None or self.credentials is not None or self._protected_program is not None
            anonymous = self._is_websocket or self._era.name == "http+sse"
            self._is_plain = not (separate or anonymous or self.has_tasks)
        if not self._is_plain or self.breaker.is_open or call.token is not None:
            return None
        links, session = self.links, call.session
        if not call.revision.handshake:
            link = links.links.get(SHARED_KEY)
        elif session is None or (link := links.own.get(session.id)) is None:
            return None
        else:
            link.expires_at = session.expires_at
        if link is None or link.open_task is not None:
            return None
        revision = link.conversation.negotiated.revision
        return link if revision is call.revision or not (self.relays or revision.handshake) else None

    @property
    def _protected_program(self) -> Program | None:
        """The program, if it checks tokens, so that each caller needs separate connections."""
        target = self._target
        return target if isinstance(target, Program) and target.protected else None

    @property
    def _shares_processes(self) -> bool:
        """Whether one process of a command serves several callers."""
        return self.processes is not None and self.config.isolation != "per_session" and not self.serves_one

    def _make_link(self, key: LinkKey, owner: str, client: ClientIdentity | None = None) -> Link:
        # A process that serves several callers can't distinguish their capabilities. Servers list by capabilities, so
        # the lists are read with all that clients can have.
        config, everything = self.config, self._shares_processes or key == self.lister
        relays = Relays(
            config.name,
            limit_abilities(ALL_ABILITIES, self.policy.questions) if everything else key.capabilities,
            sender=self.sender,
            in_process=isinstance(self._target, _SharedServer),
            log=None if self.processes is None else self.processes.log.write,
            on_change=partial(self._take_change, key),
            own=None if client is None else self._own_session(key.affinity, client),
        )
        revision = config.revision or (client.revision if client else None)
        if key.handshake:
            revision = NEWEST_HANDSHAKE.date
        target, handshake = self._target, "\nhandshake" if key.handshake else ""
        if self.processes is not None:
            target = self.processes.target(f"{key.principal}\n{key.affinity}{handshake}", owner=owner)
        elif isinstance(target, Program):
            target = structs.replace(target, caller=key.principal)
        credentials = self.credentials
        auth = None if credentials is None else credentials.auth(key.credentials)
        forwarded = None if credentials is None else credentials.headers_for_link(key.credentials)
        conversation = relays.conversation = Conversation(
            target,
            relays,
            Options(
                name=NAME,
                connect_timeout=config.connect_timeout,
                max_bytes=config.max_bytes,
                cache=False,
                env=config.env,
                cwd=config.cwd,
                auth=auth,
                max_connections=MAX_HTTP_CALLS + MAX_STREAMS + _OTHER_CONNECTIONS,
            ),
            revision=revision,
            headers=config.headers if forwarded is None else {**config.headers, **forwarded},
            timeout=config.timeout * (self._start_factor if key == self.lister else 1),
            observer=relays.receive,
            about=client.info if client else None,
            reconnects=client is None,
        )
        conversation.requests.inflow = Inflow(self.gateway.arriving, config.name)
        if client is None:
            conversation.requests.era = self._era
        conversation.requests.incoming.watchers.add(self._take_interruption)
        places = Pool(MAX_HTTP_CALLS, several=self.links.places.several) if self._uses_http and not owner else None
        return Link(key, owner, conversation, relays, places)

    async def _shared_conversation(self) -> Conversation:
        return (await self.links.open(self.lister)).conversation

    # Lists

    async def _run(self) -> None:
        """Keep the lists fresh while the gateway runs."""
        failures = 0
        if self.serves_one:
            self.state = "ready"
            self.lists_ready.set()
            await self.keeps_lists.wait()
        while True:
            try:
                self.lister = await self._find_lister()
                link = await self.links.open(self.lister)
                link.calls += 1  # the connection is in use even while idle
                subscribed = asyncio.Event()
                watching = asyncio.create_task(self._watch(link.conversation, subscribed))
                try:
                    with contextlib.suppress(TimeoutError):  # before the lists, so that no change is missed
                        async with asyncio.timeout(_SUBSCRIBE_SECONDS):
                            await subscribed.wait()
                    await self._list(link.conversation)
                    failures = 0
                    link.conversation.requests.timeout = self.config.timeout
                    await self._keep_fresh(link.conversation)
                finally:
                    await cancel_all(watching)
                    link.calls -= 1
            except (ClientError, OSError) as exc:
                if isinstance(exc, RequestTimeout) and self.processes is not None:
                    self._start_factor = min(2 * self._start_factor, _MAX_START_FACTOR)
                if self._lister_left:
                    continue
                if self.lister.handshake and isinstance(exc, NO_HANDSHAKE):
                    self.has_handshake = False
                    continue
                credentials = self.credentials
                if isinstance(exc, AccessDenied | NoCredentials) and credentials is not None and credentials.personal:
                    # Only one user's account is affected: other calls continue, and another account reads the lists.
                    logger.warning("%s: a user's account can't read the lists: %s", self.name, exc)
                    credentials.avoid_lister(self.lister.credentials)
                elif isinstance(exc, InUse) or (isinstance(exc, RequestTimeout) and await self._find_fault() is None):
                    logger.warning("%s: the lists can't be read at the moment: %s", self.name, exc)
                else:
                    self._degrade(exc)
                failures += 1
            except Exception as exc:  # our own error; without this, the task would end
                logger.exception("The lists of %s can't be read", self.name)
                self._degrade(exc)
                failures += 1
            await asyncio.sleep(reconnect_delay(failures))

    async def _find_lister(self) -> LinkKey:
        """Return the key of the connection that reads the lists: a shared connection, or a connected user's."""
        credentials = self.credentials
        if credentials is None or not credentials.personal:
            return LinkKey(handshake=self._in_sessions)
        self.state = "ready" if self.catalog.revision else "connecting"
        person = credentials.lists_from or "a user"
        self.reason = f"is waiting for {person} to connect an account that can read the lists"
        if not self.catalog.revision:
            logger.info(
                "The upstream %s offers nothing until %s connects an account at /connections", self.name, person
            )
        self._end_start()
        lister = await credentials.lister()
        self._lister_left = False
        return LinkKey(credentials=lister)

    def end_links_of(self, owner: str) -> None:
        """Close the connections of a user who has reconnected or disconnected."""
        if self.lister.credentials.partition("\n")[0] == owner:
            self._lister_left = True
        self.links.end_links_of(owner)

    async def load(self) -> None:
        """Load the stored copy, so that no client waits for the upstream."""
        found = await self._stored_catalog.load()
        if found is not None:
            await self._offer(found)

    async def _list(self, conversation: Conversation) -> None:
        announced, self._announced_kinds = self._announced_kinds, set()
        offer = conversation.negotiated.offer
        known, self._listed_offer = self._listed_offer, offer
        try:
            found = await fetch(
                conversation,
                max_bytes=self.config.max_catalog_bytes if self.keeps_lists.is_set() else 0,
                offer=b"" if offer is known else offer,
                before=self.catalog,
                requires_one=not self.relays and not any(self.catalog.items()),  # without items, no call would work
                warn=self.warn,
            )
        except BaseException:
            self._announced_kinds |= announced
            raise
        if self.credentials is not None and self.credentials.personal and found.hints.get("resources", (0, True))[1]:
            found.resources = {}  # the lists may belong to the lister alone
        found.taken_at, found.asks_by_handshake = self._stored_catalog.time(), self._in_sessions
        renew = found.taken_at - self.catalog.taken_at > STORED_SECONDS / 4
        await self._offer(found, announced)
        self._recover()
        self._listed_at = monotonic()
        self._listed.set()
        await self._stored_catalog.save(found, renew=renew)

    async def _offer(self, found: Catalog, announced: Collection[str] = ()) -> None:
        """Offer new lists, without the items that aren't accepted."""
        if self.pins is not None:
            found, quarantined = await self.pins.split(found)
            if quarantined != self.quarantined:
                names = ", ".join(each.name for each in quarantined) or "nothing"
                logger.warning(
                    "%s: quarantined until the operator accepts their definitions (millstream gateway accept): %s",
                    self.name,
                    names,
                )
            self.quarantined = quarantined
            hidden = [[each.name for each in quarantined if each.kind == kind] for kind in ("resources", "templates")]
            self._is_quarantined = _quarantine(*hidden)
        found.asks_by_handshake |= self._in_sessions  # the file may have changed while the lists arrived
        before, self.catalog, self._is_plain = self.catalog, found, None
        self._is_listed = _uri_matcher(found.resources, found.templates)
        if not before.taken_at:
            counts = [(len(getattr(found, kind)), kind) for kind in METHODS]
            has = ", ".join(f"{count} {kind if count > 1 else kind[:-1]}" for count, kind in counts if count)
            # Empty if the lists are only relayed.
            logger.info("The upstream %s is ready%s", self.name, f": {has}" if has else "")
            known = [name for kind in METHODS for name in getattr(found, kind)]
            known += [each.name for each in self.quarantined]
            for name in self.policy.unknown_names(known):
                near = closest_name(name, known)
                hint = f" Did you mean {near!r}?" if near else ""
                self.warn(f"the policy has a rule for {name!r}, which isn't one of its tools or prompts.{hint}")
        elif any(getattr(found, kind) != getattr(before, kind) for kind in METHODS):
            self.changed_at = found.taken_at
        self.lists_ready.set()
        self.gateway.on_change(self, announced)

    def is_watchable(self) -> bool:
        """Return whether changes to its resources can be watched for all callers."""
        if self.credentials is not None and self.credentials.personal:  # another user's account would watch them
            return False
        return bool(members(self.catalog.capabilities.get("resources")).get("subscribe"))

    def is_quarantined(self, uri: str) -> bool:
        """Return whether a resource or its template is quarantined, in any spelling of the URI."""
        return bool(self.quarantined) and self._is_quarantined(uri)

    def link_uri(self, uri: str) -> str:
        """Translate a URI in an upstream's result for gateway clients.

        Web links that the upstream doesn't list are unchanged.
        """
        if uri.partition(":")[0].lower() in _WEB_SCHEMES and not self._is_listed(uri):
            return uri
        return self.names.uri(uri) if "resources" in self.catalog.capabilities else uri

    def warn(self, text: str) -> None:
        """Log a warning once."""
        if text not in self._warnings:
            self._warnings.keep(text, None)
            logger.warning("%s: %s", self.name, text)

    def refresh(self) -> None:
        """Read the lists again now."""
        self._refresh_event.set()

    def refresh_after_loss(self) -> None:
        """Read the lists again after a connection or session was lost, in case the upstream has restarted."""
        self._tasks.spawn_once(self._refresh_rarely)

    async def _refresh_rarely(self) -> None:
        await asyncio.sleep(self._lost_at + _MIN_REFRESH - monotonic())  # some upstreams lose every session
        self._lost_at = monotonic()
        self.refresh()

    def _take_interruption(self, change: Change, subscription: object) -> None:
        if change.kind == "again":
            self.refresh_after_loss()

    def _own_session(self, session: str, client: ClientIdentity) -> OwnSession:
        names_calls = self._uses_http or self.is_program
        return OwnSession(session, client.capabilities, self.relays, names_calls, self._pass_on, self._ask_session)

    def _pass_on(self, session: str, method: str, params: bytes) -> None:
        """Send a client's session the messages that its upstream session received outside of calls."""
        self._send_to_session(session, message_for_client(method, params))

    def _send_to_session(self, session: str, message: bytes) -> None:
        self.gateway.host.services.changes.emit(SessionChange("", session=session, message=message))

    async def _ask_session(self, session: str, method: str, params: Json) -> bytes:
        """Ask the client of a session outside its calls.

        Raises:
            ProtocolError: It can't be asked, declined, or didn't respond.
        """
        services = self.gateway.host.services
        if not services.changes.has_session(session):
            raise ProtocolError(METHOD_NOT_FOUND, "The client has no open stream that can carry a question.")

        async def send(message: bytes) -> None:
            self._send_to_session(session, message)

        with answer_errors():
            return await services.questions.ask(send, method, params, owner=session, scope=session)

    def _take_change(self, key: LinkKey, method: str, params: bytes) -> None:
        """Handle an announced change. Servers announce changes to their lists on whichever connection caused them."""
        if kind := CHANGES[method]:
            self._announced_kinds.add(kind)
            self._refresh_event.set()
        elif key.affinity:  # a subscription on another connection doesn't report it
            with contextlib.suppress(*MALFORMED):
                uri = self.names.uri(_decode_resource(params).uri)
                change = SessionChange("updated", uri, session=key.affinity)
                self.gateway.host.services.changes.emit(change)

    @property
    def is_program(self) -> bool:
        """Whether the target is another library's program in this process."""
        return isinstance(self._target, Program)

    @property
    def is_asked(self) -> bool:
        """Whether lists are read when a client requests them: for an only upstream, for a program in this process,
        where that's cheap, and for lists that are immediately stale.
        """
        return self.relays or self.is_program or 0 in (ttl_ms for ttl_ms, _ in self.catalog.hints.values())

    @property
    def is_stale(self) -> bool:
        """Whether a list should wait for `freshen`, at most once a second."""
        waits = self.state == "ready" and 0 < self._listed_at < monotonic() - _MIN_LISTED
        return waits and (self.is_asked or self._refresh_event.is_set())

    async def freshen(self) -> None:
        """Read the lists again and wait for them for a limited time."""
        self._refresh_event.set()
        self._listed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.start_timeout):
                await self._listed.wait()

    async def _keep_fresh(self, conversation: Conversation) -> None:
        """Refresh the lists when the upstream announces a change, and when they're stale."""
        while self.lister.handshake is self._in_sessions:
            seconds = max(self.catalog.fresh_seconds or self.config.refresh_seconds, _MIN_REFRESH)
            try:
                async with asyncio.timeout(seconds * random.uniform(1, 1.2)):  # noqa: S311  jitter
                    await self._refresh_event.wait()
            except TimeoutError:  # another worker may just have refreshed the stored copy
                found = await self._stored_catalog.load() if self._stored_catalog.shared else None
                if found is not None and self._stored_catalog.time() - found.taken_at <= seconds / 2:
                    await self._offer(found)
                    continue
            self._refresh_event.clear()
            if self.lister.handshake is not self._in_sessions:
                break
            began = monotonic()
            await self._list(conversation)
            # An upstream that changes constantly must not be listed constantly.
            await asyncio.sleep(refresh_pause(monotonic() - began))
        self.links.retire(handshake=self.lister.handshake)  # a shared process has changed its era

    async def _watch(self, conversation: Conversation, subscribed: asyncio.Event) -> None:
        if not self.keeps_lists.is_set():
            subscribed.set()
            await self.keeps_lists.wait()
            self._refresh_event.set()
        try:
            async with conversation.watch() as changes:
                subscribed.set()
                async for change in changes:  # others have arrived in `_take_change`
                    self._take_interruption(change, None)
        except ServerError as exc:
            logger.debug("%s doesn't report changes: %s", self.name, exc)
        except ClientError as exc:
            logger.debug("%s: the subscription ended: %s", self.name, exc)
            self._refresh_event.set()
        except Exception:  # our own error
            logger.exception("%s: changes to the lists can't be followed until its next connection", self.name)
            self._refresh_event.set()
        finally:
            subscribed.set()

    def _end_start(self) -> None:
        """Stop making clients wait for the upstream's first lists."""
        if not self.lists_ready.is_set():
            self.lists_ready.set()
            self.gateway.on_change(self, ())

    def _degrade(self, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        if self.state != "degraded" or self.reason != reason:
            what = "responds with an error" if isinstance(error, ServerError | InvalidResponse) else "can't be reached"
            logger.warning("The upstream %s %s: %s", self.name, what, reason)
        self.state, self.reason = "degraded", reason
        self._end_start()
        if isinstance(error, CONNECTION_FAILURES):
            self.breaker.open()
        if self.serves_one:
            self.keeps_lists.set()  # lists close the breaker

    def record_failure(self, error: ClientError, call: Call, method: str, name: str) -> None:
        """Record a call without a usable response. It counts against its caller. If it may affect all callers, the
        gateway checks the upstream itself.
        """
        self.last_error = {"at": time(), "text": str(error)}
        if isinstance(error, InUse | NoCredentials | TooMuchArriving | UnsendableRequest):
            return
        responded = 0 < error.status < HTTPStatus.INTERNAL_SERVER_ERROR or not isinstance(error, CONNECTION_FAILURES)
        # With separate processes, the failure of one doesn't affect the others.
        separate = self.processes is not None and self.config.isolation != "shared"
        if isinstance(error, ConnectFailed) and not isinstance(error.__cause__, TimeoutError) and not separate:
            self.breaker.failure_count += 1
            self._degrade(error)
        elif not self.breaker.fail(call, method, name, responded=responded) or separate:
            return
        self._tasks.spawn_once(self._check)

    async def _check(self) -> None:
        """Open the breaker if the upstream doesn't respond to the gateway either."""
        error = await self._find_fault()
        if error is not None:
            self._degrade(error)
        if self.breaker.is_open:
            self._refresh_event.set()  # reading the lists closes the breaker

    async def _find_fault(self) -> ClientError | None:
        """Return why the upstream doesn't respond to the gateway's own request, or None if it does."""
        try:
            async with asyncio.timeout(self.config.connect_timeout):
                if self.processes is None:  # callers may be using all other connections
                    key = LinkKey(affinity="#check", credentials=self.lister.credentials)
                    conversation = self._make_link(key, "").conversation
                    await conversation.start()
                else:
                    conversation = await self._shared_conversation()
                    method = "ping" if conversation.negotiated.revision.handshake else "server/discover"
                    await conversation.requests.ask(RawRequest(method=method, repeatable=True))
                    return None
        except InUse:
            return None
        except CONNECTION_FAILURES as exc:
            return exc
        except TimeoutError:
            return RequestTimeout(f"It didn't respond within {self.config.connect_timeout:g} seconds.")
        except (ClientError, OSError):
            return None  # the upstream has responded, or isn't to blame
        await conversation.close()
        return None

    def _recover(self) -> None:
        if self.state == "degraded":
            logger.warning("The upstream %s can be reached again", self.name)
        self.state, self.reason = "ready", ""
        self.breaker.is_open = False

    def report_state(self) -> tuple[State, str]:
        """Return the state and its reason. An upstream that takes too long to connect is degraded until it's
        connected."""
        late = monotonic() - self._created_at > self.config.connect_timeout
        if self.state == "connecting" and not self.reason and late:
            return "degraded", f"It hasn't responded within {self.config.connect_timeout:g} seconds."
        return self.state, self.reason

    def describe(self) -> Json:
        """Return state and statistics for operators. `reason` may contain addresses.

        `items` is the number of items offered here, and `listed` the number that the upstream lists.
        """
        found = self.catalog
        state, reason = self.report_state()
        processes = self.processes
        return {
            "name": self.name,
            "prefix": self.names.prefix,
            "state": state,
            "reason": reason,
            "revision": found.revision,
            "listed_at": found.taken_at,
            "changed_at": self.changed_at,
            "items": {kind: len(names) for kind, names in self.offered.items()},
            "listed": {kind: len(getattr(found, kind)) for kind in METHODS},
            "tokens": self.tokens,
            "quarantined": len(self.quarantined),
            "accounts": self.config.connects,
            "last_error": self.last_error,
            "links": len(self.links),
            "processes": None if processes is None else msgspec.to_builtins(processes.describe()),
            **self.breaker.describe(),
        }
