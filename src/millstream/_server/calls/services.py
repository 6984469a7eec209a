"""Services that the calls of a running server share: settings, records, open questions, changes, keys, and threads.

The composition root creates them for one event loop. Nothing here makes decisions about calls.

Code that forwards changes to a client (stand-alone streams, HTTP+SSE, stdio, `subscriptions/listen`) adds a `Watcher`
to the `ChangeFeed`. Changes are hints about state. Each kind is encoded once, and changes aren't stored.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from math import inf
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from millstream._confidential import Confidential
from millstream._config import Settings
from millstream._http.message import HttpRequest
from millstream._limits import StoreLimiter
from millstream._protocol.admission import Handshake
from millstream._protocol.errors import INSUFFICIENT_SCOPE, ProtocolError
from millstream._protocol.handlers import NotificationFilters
from millstream._protocol.jsonrpc import Json, notification_message
from millstream._protocol.metadata import ClientInfo
from millstream._protocol.principal import Principal, Share
from millstream._protocol.seal import NONCE_BYTES, KeyRing
from millstream._protocol.uri import normalize_uri
from millstream._recent import RecentBytes
from millstream._server.address import Address
from millstream._server.calls import Secrets, load_secrets
from millstream._server.calls.pending_questions import PendingQuestions
from millstream._server.calls.sessions import ClientMemoryQuota, Session, SessionRecords, spellings
from millstream._server.peers import LEEWAY, HolderChange, Peers
from millstream._server.pool import Threads
from millstream._stores.store import Store

if TYPE_CHECKING:  # few servers have a hub
    from millstream.hub import Event, HubStats, Member, MemberList, PublishResult

LIST_CHANGED = {
    "tools": "notifications/tools/list_changed",
    "prompts": "notifications/prompts/list_changed",
    "resources": "notifications/resources/list_changed",
}
UPDATED = "notifications/resources/updated"

_logger = logging.getLogger("millstream")
_LIST_MESSAGES = {kind: notification_message(method) for kind, method in LIST_CHANGED.items()}


class ServerChange(Struct, frozen=True, gc=False):
    """A changed list (`kind` is tools, prompts, or resources), a changed resource (`kind` is updated, with a URI), or
    `ANY_UPDATE`.

    Example:
        ``host.services.changes.emit(ServerChange("updated", "shop://opening-hours"))``
    """

    kind: str
    uri: str = ""
    address: str = ""
    """Name of the `Address` whose list has changed. A resource is the same at each address."""

    @property
    def method(self) -> str:
        return LIST_CHANGED.get(self.kind, UPDATED)


class Broadcast(ServerChange, frozen=True, gc=False):
    """An extension's notification, for all sessions with clients that declared it."""

    extension: str = ""
    """The extension's identifier."""
    message: bytes = b""

    def reaches(self, client: ClientInfo) -> bool:
        """Return whether a client declared the extension."""
        return self.extension in client.extensions


class SessionChange(ServerChange, frozen=True, gc=False):
    """A change that concerns only one session."""

    session: str = ""
    message: bytes = b""
    """The encoded notification, if it's passed on unchanged and without regard to subscriptions."""


ANY_UPDATE = ServerChange("updated")
"""Updates may have been lost. Watchers of resources must report all of them as changed."""


def affected_uris(change: ServerChange, watched: Mapping[str, str]) -> Iterable[str]:
    """Return the watched URIs that a change affects, in the client's spelling. See `watch_uris`."""
    if change is ANY_UPDATE:
        return sorted(spellings(watched))
    form = normalize_uri(change.uri)
    return (watched[form] or form,) if change.kind == "updated" and form in watched else ()


def session_messages(
    change: ServerChange,
    message: bytes,
    client: ClientInfo,
    subscribed: Mapping[str, str],
    reports: Callable[[str], bool],
) -> Iterator[bytes]:
    """Yield the notifications that a session gets about a change.

    Args:
        message: Its encoded notification.
        client: The client of the session.
        subscribed: The resources that it has subscribed to (see `watch_uris`).
        reports: Returns whether the caller may be notified of an update, which can change after the subscription.
    """
    if isinstance(change, SessionChange) and change.message:
        yield message
    elif change.kind == "updated":
        for uri in filter(reports, affected_uris(change, subscribed)):
            yield message if uri == change.uri else encode_change(ServerChange("updated", uri))
    elif not isinstance(change, Broadcast) or change.reaches(client):
        yield message


Watcher = Callable[[ServerChange, bytes], None]
"""Called in the event loop with the change and its encoded notification. It must not block or raise."""


def encode_change(change: ServerChange) -> bytes:
    """Return the encoded notification of a change, without subscription data."""
    if isinstance(change, Broadcast | SessionChange) and change.message:
        return change.message
    prepared = _LIST_MESSAGES.get(change.kind)
    return prepared if prepared is not None else notification_message(UPDATED, {"uri": change.uri})


class ChangeSource(Protocol):
    """A source of resource changes outside this server, such as an upstream."""

    entry_bytes: int = 0
    """Bytes that the source keeps for each resource that a stream or connection follows."""

    def check_room(self, owner: str, uris: Collection[str]) -> None:
        """Check that a caller can follow more resources.

        Raises:
            ProtocolError: The caller's share is used up, or the maximum for all callers.
        """
        return

    def follow(self, follower: object, owner: str, uris: Mapping[str, str]) -> None:
        """Replace the resources that a stream or connection of a caller follows (see `watch_uris`). Pass none when it
        ends.
        """
        return

    async def wait_until_followed(self, uris: Collection[str]) -> None:
        """Wait, for a limited time, until the subscriptions are granted or rejected."""
        return


_MAX_EARLY_SESSIONS, _MAX_EARLY_BYTES = 1000, 1024 * 1024
"""Maximum sessions with messages that wait for a watcher, and maximum size of these messages, a sixteenth of it for one
session.
"""
_EARLY_BYTES = 250
"""Memory that such a message takes in addition to its text."""


class _NoSource(ChangeSource):
    """The source of a server without outside changes."""


class ChangeFeed:
    """The watchers of changes on one server."""

    source: ChangeSource = _NoSource()
    """The outside source of changes."""

    def __init__(self) -> None:
        self._watchers: dict[object, tuple[Watcher, str]] = {}
        """Watchers, each with the name of its `Address`."""
        self._sessions: dict[str, tuple[object, Session]] = {}
        """Id of a session -> its newest watcher, and the session."""
        self._arrival = asyncio.Event()
        """Set when a session has a new watcher."""
        self._early = RecentBytes[str, tuple[SessionChange, ...]](
            _MAX_EARLY_SESSIONS, max_bytes=_MAX_EARLY_BYTES, size_of=lambda kept: sum(map(_size_of, kept))
        )
        """Id of a session -> messages that wait for its watcher, because its client isn't listening yet."""

    def watch(self, watcher: Watcher, address: str, session: Session | None = None) -> Callable[[], None]:
        """Add a watcher. Return a function that removes it.

        Args:
            address: Name of the `Address` whose lists it watches.
            session: The session whose `SessionChange` changes it receives.
        """
        token = object()
        self._watchers[token] = watcher, address
        if session is not None:
            self._sessions[session.id] = token, session
            self._arrival.set()
            if session.id in self._early:
                early = self._early[session.id]
                del self._early[session.id]
                for change in early:
                    watcher(change, change.message)

        def stop() -> None:
            self._watchers.pop(token, None)
            if session is not None and self._token_of(session.id) is token:
                del self._sessions[session.id]

        return stop

    def _token_of(self, session: str) -> object:
        return self._sessions.get(session, (None, None))[0]

    def find_session(self, session: str = "") -> Session | None:
        """Return a session if it has a watcher, which receives its `SessionChange`.

        Args:
            session: Id of the session, or empty for the only one.
        """
        if session:
            return self._sessions.get(session, (None, None))[1]
        return next(iter(self._sessions.values()))[1] if len(self._sessions) == 1 else None

    async def wait_for_session(self, session: str = "") -> Session:
        """Return the session of `find_session` once it has a watcher."""
        while (found := self.find_session(session)) is None:
            self._arrival.clear()
            await self._arrival.wait()
        return found

    def emit(self, change: ServerChange, *, but: Collection[str] = ()) -> None:
        """Notify the watchers that a change concerns: of its session, of its address for a list, or else all.

        Args:
            but: Sessions that are notified in another way.
        """
        watchers = self._watchers
        if but:
            others = {self._token_of(session) for session in but}
            watchers = {token: watcher for token, watcher in watchers.items() if token not in others}
        if isinstance(change, SessionChange):
            token = self._token_of(change.session)
            if token is None:
                self._keep(change)
                return
            watchers = {token: watchers[token]}
        if not watchers:
            return
        message = encode_change(change)
        is_list = change.kind in LIST_CHANGED
        for watcher, address in list(watchers.values()):
            if is_list and address != change.address:
                continue
            try:
                watcher(change, message)
            except Exception:  # for example an error of a `visible` function, which must not affect other callers
                _logger.exception("A change can't be reported to a client.")

    def _keep(self, change: SessionChange) -> None:
        """Keep a message until its session has a watcher, if there's room."""
        kept = self._early.get(change.session, ())
        if change.message and sum(map(_size_of, kept)) + _size_of(change) <= _MAX_EARLY_BYTES // 16:
            self._early.keep(change.session, (*kept, change))


def _size_of(change: SessionChange) -> int:
    return len(change.message) + _EARLY_BYTES


SESSION_OVER = "$session over"
"""The method name passed to `ObserveMessage` when a session ends."""
APPROVAL = "approval"
"""The method name passed to `ObserveMessage` when a person has approved a tool call, or hasn't."""


class ObserveMessage(Protocol):
    """An observer of messages that aren't calls: handshakes, notifications, answers, refusals, and hub messages. The
    dispatcher's observer receives calls.
    """

    def __call__(
        self,
        method: str,
        transport: str,
        session: Session | None = None,
        status: str = "",
        *,
        target: str = "",
        principal: Principal | None = None,
        address: str = "",
        opening: Handshake | None = None,
    ) -> None:
        """Record one message.

        Args:
            method: The method, ``response`` for an answer, or a name such as ``hub/publish``. Empty if it couldn't be
                read.
            session: The session, with client and revision.
            status: Empty for success, otherwise the JSON-RPC code, HTTP status, or problem type. It's a label, so the
                number of values is small.
            target: The tool or channel.
            principal: The sender.
            address: The sender's address, of a publication.
            opening: The result of `initialize`.
        """


def ignore_message(*_: object, **__: object) -> None:
    """Ignore a message. Used as `ObserveMessage` by a server without observers."""


def principal_id(principal: Any) -> str:
    """Return the owner whose share of the server's capacity is used, or an empty string for an anonymous caller."""
    return principal.id if principal is not None else ""


def expiry_of(principal: Principal | None) -> float:
    """Return the time when a caller's streams end, in seconds since 1970: the credential's expiry."""
    return inf if principal is None else principal.expires_at


def sign_in_required(needed: frozenset[str]) -> ProtocolError:
    """Return the error for missing scopes on a server without sign-in."""
    wanted = " ".join(sorted(needed))
    text = f"This needs the scope {wanted}, which the caller doesn't have. Only servers with auth= grant scopes."
    data = {"error": "insufficient_scope", "scope": wanted}
    return ProtocolError(INSUFFICIENT_SCOPE, text, data, status=403, head=b"cache-control: no-store\r\n")


class Publisher(Protocol):
    """The hub's interface for tools (``ctx.hub``)."""

    async def publish(
        self,
        channel: str,
        data: Any,
        *,
        event: str | None = None,
        id: str | None = None,
        publisher: Principal | None = None,
    ) -> "PublishResult":
        """Publish to a channel (see `Hub.publish`)."""
        ...

    async def send(
        self,
        client_id: str,
        data: Any,
        *,
        event: str | None = None,
        id: str | None = None,
        principal: Principal | None = None,
        publisher: Principal | None = None,
    ) -> "PublishResult":
        """Publish to one client (see `Hub.send`)."""
        ...

    async def presence(self, channel: str) -> "list[Member]":
        """Return the clients on a channel (see `Hub.presence`)."""
        ...

    async def members(self, channel: str) -> "MemberList":
        """Return the clients on a channel as clients get them (see `Hub.members`)."""
        ...

    async def history(self, channel: str, count: int = 50) -> "list[Event]":
        """Return the newest events of a channel, oldest first (see `Hub.history`)."""
        ...

    def stats(self) -> "HubStats":
        """Return statistics for operators."""
        ...


BeginTask = Callable[[Any, Any, Callable[[Any, Any], Awaitable[bytes]]], Awaitable[bytes] | None]
"""``begin(call, tool, run)`` turns a call into a task if its tool allows that, or returns None if it stays a call.
``run(call, tool)`` runs it as a call.
"""


class RequestLimits:
    """Rate limits for everything but calls. The dispatcher charges calls. This class has no limits."""

    async def admit(self, request: HttpRequest) -> None:
        """Charge a request before it's handled.

        Args:
            request: A request, or the opening handshake of a WebSocket for a message.

        Raises:
            ProtocolError: RATE_LIMITED, HTTP 429, with the time to wait.
        """

    def charge(self, principal: Principal | None, peer: str) -> ProtocolError | None:
        """Charge a message that has been read and isn't a call.

        Args:
            principal: The sender, or None for an anonymous one.
            peer: Address of the sender.

        Returns:
            The error for a message that gets a response, if the caller is over a limit. Notifications, responses, and
            the end of a session aren't rejected here, so that a caller over its limit can still cancel and answer.
        """
        return None


UNLIMITED = RequestLimits()


def _know_no_reason(call: object, name: str) -> str:
    return ""


class ProviderToken(Confidential, Struct, frozen=True):
    """An access token of a user at the provider: ``{"Authorization": f"Bearer {token.access_token}"}``"""

    access_token: str
    scopes: tuple[str, ...] = ()
    """Granted scopes. A user may have granted fewer than the operator requests."""
    expires_at: float = 0.0
    """Unix time, or 0 if the provider doesn't specify it."""


class ProviderTokens(Protocol):
    """The kept tokens of a running server's users."""

    async def keep(self, principal: str, login: str, response: Json) -> None:
        """Store the tokens in a provider's response, for the principal with an id."""
        ...

    async def find(self, principal: Principal) -> ProviderToken:
        """Return a token that's still valid.

        Raises:
            ToolError: There's none. The text says what its user has to do.
        """
        ...


class Services:
    """The shared services of one running server: ``call.services.settings.name``"""

    pool: StoreLimiter | None = None
    """Limiter shared between workers; None with a single worker."""
    on_failed_sign_in: Callable[[str], None] | None = None
    """Called with the caller's address after each failed sign-in."""
    failed_sign_ins: int = 0
    """Number of rejected keys, tokens, passwords, and client authentications."""
    holds_state: bool = False
    """Whether this process can hold state of sessions and callers, because upstreams can keep it."""
    finds_holders: bool = False
    """Whether requests are forwarded to the process with their state, or it's taken over, before they're read."""
    binds_sessions: bool = False
    """Whether this process holds the sessions that begin now, because upstreams can keep state for them."""
    keeps_callers: Callable[[], bool] | None = None
    """Returns whether this process keeps state for principals, so that each has to reach the same process."""
    lose: Callable[[str, Sequence[str]], None] | None = None
    """Lets an owner's next call say that its state at the named upstreams is lost, because another process has given it
    up. See `hand_over`.
    """

    provider_tokens: ProviderTokens | None = None
    """The users' tokens at the providers where they signed in, if the server keeps them."""
    explain_missing: Callable[[Any, str], str] = staticmethod(_know_no_reason)
    """Returns why a tool, or any tool if the name is empty, may be missing for a call, or an empty string."""

    parked: Any
    """The `ParkedCalls` of this worker. The dispatcher sets them."""
    idempotent: Any
    """The `IdempotentCalls` of this worker. The dispatcher sets them."""
    server_name: str = ""
    """The name that session ids are bound to."""

    def __init__(self, settings: Settings, store: Store, changes: ChangeFeed, secrets: Secrets | None = None) -> None:
        """Create the services. Messages of other workers arrive after `open`.

        Args:
            settings: The server's settings.
            store: The open store of this event loop.
            changes: The change feed of this event loop.
            secrets: The secrets that the workers agreed on, if they share a store.
        """
        self.settings: Settings = settings
        self.store: Store = store
        self.hub: Publisher | None = None
        self.addresses: list[Address] = [Address.main(settings)]
        """The main address, then those of sets."""
        self.note: ObserveMessage = ignore_message
        """Observer of messages that don't become calls."""
        self.request_limits: RequestLimits = UNLIMITED
        self.task_hooks: list[BeginTask] = []
        """Called before a tool with ``task=``, until one returns the task."""
        self.notification_filters: NotificationFilters = NotificationFilters(_logger.error)
        """Extensions' filters of notifications in both directions."""
        self.attach_stream: Callable[[Any], None] | None = None
        """Attaches the hub client's stream to a call, if the hub is enabled."""
        self.clock: Callable[[], float] = store.time if store.shared else time.time
        """Unix time. From the store if other workers compare times with it."""
        self.leeway: float = LEEWAY if store.shared else 0.0
        """Seconds that sealed data still opens after its expiry."""
        self.secrets: Secrets = secrets or load_secrets(settings.secret_key)
        """The secrets, loaded at start, so a bad key stops the start instead of the first request."""
        self.ring: KeyRing = KeyRing(self.secrets.values)
        """The keys for session ids and sealed state."""
        self.scope_error: Callable[[frozenset[str]], ProtocolError] = sign_in_required
        """Returns the error for missing scopes."""
        # Shared state
        self.peers: Peers = Peers(store, self.secrets.values)
        """The other workers."""
        self.client_memory: ClientMemoryQuota = ClientMemoryQuota()
        """The memory that clients use while they're connected."""
        self.records: SessionRecords = SessionRecords(
            store, settings.session_ttl, self.peers, self.clock, self.client_memory.resize
        )
        self.questions: PendingQuestions = PendingQuestions(
            max_open=settings.max_pending_inputs,
            timeout=settings.input_timeout,
            workers=store.workers,
        )
        self.bodies: Share = Share(settings.max_call_bytes)
        self.bodies.fit(settings.max_body)
        """The budget for arguments of large calls while they run."""
        self.changes: ChangeFeed = changes
        self.threads: Threads = Threads(settings.max_threads)
        self.forwarded_extensions: frozenset[str] = frozenset()
        """Extensions of an upstream, which clients declare to it through this server."""
        self.streams: Share = Share(settings.max_streams)
        """All open streams and subscriptions, but not the streams of short calls."""
        self.handovers: list[Callable[[str], Iterable[str] | None]] = []
        """See `hand_over`."""
        self.session_ends: list[Callable[[str], None]] = []
        """Called with the id of each session that ends."""
        self.endings: set[Callable[[], None]] = set()
        """Called when the server stops, so open subscriptions end with their result."""
        self.lifespan_of: Callable[[Any], Any] = lambda home: None
        """Returns the user's lifespan value for a server, which can be a mounted one."""

        self.overrides_of: Callable[[Any], Mapping[Callable[..., Any], Callable[..., Any]]] = lambda home: {}
        """Returns the dependency overrides of a server, set by tests."""

    @property
    def session_holder(self) -> str:
        """Identifies this process in the ids of sessions that it holds. Empty if it can't hold any."""
        return self.store.workers.me if self.holds_state else ""

    def hand_over(self, owner: str) -> list[str]:
        """Give up the state of a session or caller, because another process serves it now, or has done so since. Return
        the names of the upstreams where it had state.

        Args:
            owner: A session's id, or a principal's binding in hexadecimal.
        """
        return [name for each in self.handovers for name in each(owner) or ()]

    def end_session(self, session_id: str) -> None:
        """Release the resources of a session that has ended."""
        for end in self.session_ends:
            end(session_id)

    def report_failed_sign_in(self, address: str) -> None:
        """Count a failed sign-in.

        Args:
            address: The caller's address.
        """
        self.failed_sign_ins += 1
        if self.on_failed_sign_in is not None:
            self.on_failed_sign_in(address)

    def open(self) -> None:
        """Start receiving messages from other workers."""
        self.peers.on(HolderChange, lambda message, _: self.hand_over(message.owner))
        self.peers.open()
        self.records.open()

    async def close(self) -> None:
        """Stop receiving messages and end the threads."""
        await self.idempotent.close()
        await self.parked.close()
        self.threads.close()
        await self.records.close()
        await self.peers.close()

    def use(self, secrets: Secrets) -> None:
        """Use other secrets for sealing and opening.

        Args:
            secrets: The secrets, the one that seals first.
        """
        self.secrets = secrets
        self.ring = KeyRing(secrets.values)
        self.peers.use(secrets.values)

    @staticmethod
    def nonce() -> bytes:
        """Return random bytes for one seal."""
        return token_bytes(NONCE_BYTES)
