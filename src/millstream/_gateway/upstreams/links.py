"""Connections to one upstream.

There's one client `Conversation` per key, opened on first use. A key identifies the owner of a connection. A session at
a URL belongs to one principal and one client session. Callers of one process share its session (see `isolation`).
Clients never see an upstream's session id.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from hashlib import sha256
from secrets import token_bytes
from time import monotonic

from msgspec import Raw, Struct, field

from millstream import ProtocolError
from millstream._gateway.errors import EndedHere, EndedThere, InUse
from millstream._gateway.log import logger
from millstream._gateway.messages.router import MessageRouter
from millstream._protocol.principal import Share
from millstream._recent import Recent, RecentBytes
from millstream._server.calls.vault import Vault
from millstream._server.pool import Pool
from millstream._stores.rates import MARK_BYTES
from millstream._tasks import Tasks, has_failed
from millstream.client import ClientError, ConnectionLost, SessionLost
from millstream.client._errors import SERVER
from millstream.client.lowlevel import Conversation, OpenSession, RawRequest
from millstream.protocol import OVERLOADED, Json, encode
from millstream.stores import StoreFull, StoreUnavailable, share_for


class ClientIdentity(Struct, frozen=True):
    """The client information that a dedicated session sends to an upstream."""

    revision: str
    """The revision as a date."""
    info: Raw
    """`clientInfo` as the client sent it."""
    capabilities: Json


class LinkKey(Struct, frozen=True, gc=False):
    """The owner of a connection."""

    principal: str = ""
    """The caller's `Principal.binding` in hexadecimal, or the digest of a token for a program, or empty for anonymous
    callers, and for shared connections.
    """
    affinity: str = ""
    """Id of the caller's handshake session, or empty without one."""
    capabilities: bytes = b""
    """Client capabilities that the connection declares, as canonical JSON, or empty for none."""
    credentials: str = ""
    """The credentials of the connection: see `UpstreamCredentials.link_key`."""
    handshake: bool = False
    """Whether a shared process uses the handshake although it also supports the per-request era."""
    own: bool = False
    """Whether it's the dedicated session for a client's session (see `CallRoute.own`)."""
    call: int = 0
    """Number of the only call that uses it (see `CallRoute.once`), or 0."""

    @property
    def session(self) -> str:
        """Identifies the caller's session at the upstream in `Links.lost`."""
        return self.affinity or f"{self.principal}\n{self.credentials}\n{self.capabilities.decode()}"


MAX_OWN_SESSIONS = 4096
"""Maximum dedicated sessions of all upstreams in one process, half of them per caller."""
MAX_STREAMS = 200
"""Maximum subscriptions of clients that one upstream serves, half of them per caller. Each may need a connection."""
UNSUBSCRIBE, SET_LEVEL = "resources/unsubscribe", "logging/setLevel"
_MAX_LASTING = 16 * 1024
"""Maximum size of a session's requests that are kept, in bytes."""
_REPEAT_SECONDS = 10.0
"""Maximum seconds to wait until these requests are repeated."""
_ATTEMPTS = 3
"""Maximum connections that a call tries if each is closed while it opens, because the user is reconnecting."""
SHARED_KEY = LinkKey()
"""Key of the connection that reads the upstream's lists."""


class Link(Struct, eq=False):
    """One connection."""

    key: LinkKey
    owner: str
    """The caller whose share of connections it counts against, or empty if callers share it."""
    conversation: Conversation
    router: MessageRouter
    """Clients of the calls on this connection."""
    places: Pool | None = None
    """Slots for calls, if several callers share the HTTP connections."""
    open_task: asyncio.Task[None] | None = None
    """Task that connects; None when it has succeeded."""
    calls: int = 0
    """Number of calls on this connection."""
    last_used: float = field(default_factory=monotonic)
    expires_at: float = math.inf
    """For a dedicated session: when the client's session expires, in Unix time."""
    ended: bool = False
    """Whether it's being closed."""
    remembered: bool = False
    """Whether it's a caller's session, so the caller learns of its loss. See `UpstreamSessions`."""
    failures: int = 0
    """Number of calls without a result since the last result, or since the session responded to a check."""
    checked: bool = False
    """Whether its session is being checked now."""
    reported: bool = False
    """Whether its caller has learned of the loss."""
    mark: bytes = b""
    """Its value in `UpstreamSessions`."""
    notifying: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a client's notification is passed on, so that they keep their order."""

    @property
    def has_caller(self) -> bool:
        """Whether its session is one caller's, who learns of its loss."""
        return self.key.own or self.remembered

    @property
    def is_lost(self) -> bool:
        """Whether the process, connection, or session has ended."""
        return self.ended or self.conversation.transport.lost

    @property
    def is_idle(self) -> bool:
        """Whether it's an open connection for calls without any now. Dedicated sessions hold state, so they're never
        idle."""
        return not self.calls and self.open_task is None and self.key != SHARED_KEY and not self.key.own


_TOGETHER_SECONDS = 0.1
"""Seconds in which the calls arrive that a client sends together. All of them fail if their session is lost."""
_REMEMBERED_SECONDS = 7 * 86400.0
"""Seconds for which a caller's session at an upstream is remembered."""
LEFT_SECONDS = 3600.0
"""Seconds after which a session that was left open is ended if no caller has continued it."""
_KIND = b"upstream session"
SESSIONS_PREFIX = "upstream-session:"
_MAX_LEFT = 64 * 1024
"""Maximum size of a session that's left open, in bytes. Most of it is the upstream's result of `initialize`."""


class LeftSession(Struct, frozen=True):
    """A caller's session at a URL that this gateway left open when it stopped, to continue it when it runs again."""

    key: LinkKey
    owner: str
    session: OpenSession
    left_at: float


class UpstreamSessions(Struct, frozen=True):
    """The principals and the clients' sessions that have a session at one upstream. They're in the store, so that a
    caller also learns from another worker that a session is lost, and after a restart, if the store outlives it.

    A value is the mark of the connection that uses the session, or a `LeftSession`.
    """

    vault: Vault
    address: Sequence[str]
    """Identifies the upstream: names of the gateway and the upstream, and the target."""

    async def claim(self, link: Link) -> LeftSession | bool:
        """Return the session that a connection can continue, which no other one gets, or whether its caller had one."""
        name, kv = self._name(link.key), self.vault.kv
        with contextlib.suppress(StoreUnavailable):
            found = await kv.get(name)
            if found is None or len(found) <= MARK_BYTES:
                link.mark = found or b""
                return found is not None
            link.mark = token_bytes(MARK_BYTES)
            if await kv.compare_and_set(name, found, link.mark, _REMEMBERED_SECONDS):
                return self._open(name, found) or True
            return True
        return False

    async def add(self, link: Link) -> None:
        """Remember that a caller has a session."""
        link.mark = token_bytes(MARK_BYTES)
        try:
            await self.vault.kv.put(self._name(link.key), link.mark, _REMEMBERED_SECONDS)
        except (StoreFull, StoreUnavailable) as exc:
            logger.warning("%s: a caller won't learn if its session is lost: %s", self.address[1], exc)

    async def renew(self, link: Link) -> bool:
        """Replace the session that a connection has found. Return whether no other one has done so. The record stays
        until the caller has another session, or has learned of the loss.
        """
        mark, link.mark = link.mark, token_bytes(MARK_BYTES)
        with contextlib.suppress(StoreUnavailable):
            return await self.vault.kv.compare_and_set(self._name(link.key), mark, link.mark, _REMEMBERED_SECONDS)
        return False

    async def forget(self, link: Link) -> None:
        """Forget the session that a connection has added or found, unless another one has replaced it."""
        with contextlib.suppress(StoreUnavailable):
            await self.vault.kv.compare_and_set(self._name(link.key), link.mark, None, 1.0)

    async def leave(self, link: Link, session: OpenSession) -> bool:
        """Store a session to continue, unless another worker serves the caller by now. Return whether it's stored."""
        name = self._name(link.key)
        left = LeftSession(link.key, link.owner, session, self.vault.clock())
        sealed = self.vault.seal(_KIND, left, name.encode()).encode()
        with contextlib.suppress(StoreFull, StoreUnavailable):
            if len(sealed) <= _MAX_LEFT:
                return await self.vault.kv.compare_and_set(name, link.mark, sealed, _REMEMBERED_SECONDS)
        return False

    async def take_unused(self, names: Collection[str]) -> AsyncIterator[LeftSession]:
        """Yield the sessions that were left open too long ago. Their callers learn that they're lost."""
        kv = self.vault.kv
        for name in [each for each in names if f".{self._place}" in each]:
            found = await kv.get(name)
            left = None if found is None else self._open(name, found)
            if left is None or left.left_at + LEFT_SECONDS > self.vault.clock():
                continue
            if await kv.compare_and_set(name, found, token_bytes(MARK_BYTES), _REMEMBERED_SECONDS):
                yield left

    def _open(self, name: str, sealed: bytes) -> LeftSession | None:
        return self.vault.open(_KIND, sealed, LeftSession, name.encode())

    @property
    def _place(self) -> str:
        return sha256(encode(self.address)).hexdigest()[:16]

    def _name(self, key: LinkKey) -> str:
        owner = key.principal, key.capabilities.decode(), key.credentials, key.affinity
        digest = sha256(encode(owner)).hexdigest()[:32]
        return f"{SESSIONS_PREFIX}{share_for(key.principal)}.{self._place}.{digest}"


class Links(Struct):
    """The connections to one upstream; `open` makes them."""

    connect: Callable[[LinkKey, str, ClientIdentity | None], Link]
    """Creates a connection of an owner that isn't started yet."""
    on_open: Callable[[Link], None]
    """Called with each connection that has opened."""
    sessions: Share
    """Counts dedicated sessions, which stay open as long as the sessions of their clients."""
    places: Pool
    """Slots for open connections. If an owner may not take another, an idle connection is closed: its own, or one of an
    owner that holds more.
    """
    idle_seconds: float
    """Seconds after which an idle connection is closed, or 0 for never."""
    clock: Callable[[], float]
    """The clock of sessions, in Unix time."""
    records: UpstreamSessions
    """Callers with a session at the upstream."""
    stops: Callable[[], bool]
    """Returns whether this gateway stops, with a store that outlives it."""
    keeps_state: bool
    """See `UpstreamConfig.keeps_state`."""
    announce: Callable[[str], Awaitable[object]]
    """Tells the other workers that this one serves a client's session now. They call `hand_over`."""
    links: dict[LinkKey, Link] = {}
    own: dict[str, Link] = {}
    """Client session -> its dedicated session at the upstream."""
    lost: Recent[str, type[EndedHere]] = field(default_factory=lambda: Recent(MAX_OWN_SESSIONS))
    """Sessions that have ended, but whose callers haven't been notified yet. See `LinkKey.session`."""
    told: Recent[LinkKey, tuple[float, type[EndedHere]]] = field(default_factory=lambda: Recent(MAX_OWN_SESSIONS))
    """Key -> the time at which the first call failed because the session was lost. Calls that began earlier fail, too,
    as they would run without the state that their client expects.
    """
    known: Recent[str, None] = field(default_factory=lambda: Recent(MAX_OWN_SESSIONS))
    """Client sessions that have had a dedicated session in this process."""
    lasting: Recent[str, RecentBytes[bytes, tuple[str, bytes]]] = field(
        default_factory=lambda: Recent(MAX_OWN_SESSIONS)
    )
    """Client session -> requests that changed its dedicated session, to repeat in a later one: method and parameters by
    what they change.
    """
    streams: Share = field(default_factory=lambda: Share(MAX_STREAMS))
    """Counts subscriptions of clients that the upstream serves."""
    retired: set[Link] = set()
    """Connections to close when their last call ends, because their user has reconnected or disconnected."""
    close_tasks: Tasks = field(default_factory=Tasks)

    def __len__(self) -> int:
        return len(self.links)

    async def open(self, key: LinkKey, owner: str = "", client: ClientIdentity | None = None) -> Link:
        """Return the connection of a key, opening it if necessary.

        Args:
            key: Identifies the connection.
            owner: The caller (see `Call.owner`), or empty for the gateway itself.
            client: The client of a dedicated session.

        Raises:
            InUse: All connections are in use.
            ClientError: The upstream can't be reached.
            ProtocolError: There are too many dedicated sessions.
        """
        for _ in range(_ATTEMPTS):
            link = self.links.get(key)
            if link is not None and link.remembered and link.is_lost:
                self.lose(link)
                link = None
            link = link or self._add(key, owner, client)
            opening = link.open_task
            if opening is None:
                return link
            await asyncio.wait([opening])
            if not opening.cancelled():
                opening.result()
            if self.links.get(key) is link:  # another caller may have closed it
                return link
        raise ConnectionLost("The connection was closed while it was being opened.")

    def _add(self, key: LinkKey, owner: str, client: ClientIdentity | None) -> Link:
        """Create a connection and start opening it."""
        if not (key.principal or key.affinity or key.call):
            owner = ""  # several callers share this connection
        if not key.own:
            self._take_place(owner)
        elif not self.sessions.take(owner):
            raise _too_many_sessions(self.sessions, owner)
        link = self.links[key] = self.connect(key, owner, client)
        if key.own:
            self.own[key.affinity] = link
        link.open_task = asyncio.create_task(self._start(link))
        link.open_task.add_done_callback(has_failed)
        return link

    async def _start(self, link: Link) -> None:
        key, conversation = link.key, link.conversation
        SERVER.set(self.records.address[1])
        is_callers = self.keeps_state and bool(key.principal) and not key.affinity
        try:
            resumed = False
            if is_callers or key.own:
                resumed = await self._begin(link)
            else:
                await conversation.start()
            has_session = conversation.negotiated.revision.handshake and conversation.transport.has_session
            if has_session and is_callers:
                link.remembered, conversation.requests.reconnects = True, False
            if has_session and (is_callers or key.own) and not resumed:
                await self.records.add(link)
            if key.own:
                self.known.keep(key.affinity, None)
            self.on_open(link)
            if key.own and not resumed:
                await self._repeat(link)
            link.open_task = None
        except BaseException:
            if self.links.get(link.key) is link:
                self._remove(link)
            raise

    def note(self, session_id: str, method: str, params: bytes) -> None:
        """Note a request that succeeded in a dedicated session and changed it."""
        if session_id not in self.own or len(params) > _MAX_LASTING:
            return
        made = RecentBytes[bytes, tuple[str, bytes]](MAX_STREAMS, max_bytes=_MAX_LASTING, size_of=lambda it: len(it[1]))
        kept = self.lasting.get(session_id) or made
        self.lasting.keep(session_id, kept)
        if method == UNSUBSCRIBE and params in kept:
            del kept[params]
        elif method != UNSUBSCRIBE:
            kept.keep(method.encode() if method == SET_LEVEL else params, (method, params))

    async def _repeat(self, link: Link) -> None:
        kept, ask = self.lasting.get(link.key.affinity), link.conversation.requests.ask
        asked = [] if kept is None else [RawRequest(method=each, params=it, rounds=False) for each, it in kept.values()]
        failed = len(asked)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REPEAT_SECONDS):
                results = await asyncio.gather(*map(ask, asked), return_exceptions=True)
                failed = sum(isinstance(each, BaseException) for each in results)
        if failed:
            text = "%s: in a client's new session, %d of %d subscriptions and log levels couldn't be set again"
            logger.warning(text, self.records.address[1], failed, len(asked))

    async def _begin(self, link: Link) -> bool:
        """Open a caller's connection. Return whether it continues a session that was left open."""
        key, had = link.key, await self.records.claim(link)
        if isinstance(had, LeftSession):
            return await self._resume(link, had)
        if had and (key.own or await self.records.renew(link)):
            if key.session not in self.lost:
                self.lost.keep(key.session, EndedHere)
            if key.own:
                await self.announce(key.affinity)
        await link.conversation.start()
        return False

    async def _resume(self, link: Link, left: LeftSession) -> bool:
        key, conversation, is_open = link.key, link.conversation, False
        try:
            with contextlib.suppress(SessionLost):
                await conversation.start(left.session)
                is_open = True
                return True
            await conversation.start()  # if this fails, the upstream only can't be used at the moment
            is_open = True
        finally:
            if not is_open:
                await self.records.leave(link, left.session)
        self.lost.keep(key.session, EndedThere)
        return False

    async def end_unused(self, names: Collection[str]) -> None:
        """End the sessions that were left open and that no caller has continued.

        Args:
            names: The names of all values of `UpstreamSessions`.
        """
        async for left in self.records.take_unused(names):
            conversation = self.connect(left.key, left.owner, None).conversation
            with contextlib.suppress(ClientError, OSError):
                await conversation.start(left.session)
                await conversation.close()

    def _remove(self, link: Link) -> None:
        if self.links.get(link.key) is link:
            del self.links[link.key]
        if not link.key.own:
            self.places.leave(link.owner)
            return
        self.sessions.leave(link.owner)
        if self.own.get(link.key.affinity) is link:
            del self.own[link.key.affinity]

    async def open_once(self, key: LinkKey, owner: str) -> Link:
        """Return a connection for one call. Pass it to `leave` afterwards.

        Raises:
            ClientError: See `open`.
        """
        try:
            return await self.open(key, owner)
        except BaseException:  # also if the caller is canceled
            if (link := self.links.get(key)) is not None:
                self._end_once_open(link)
            raise

    def leave(self, link: Link) -> None:
        """Close a connection for one call, now or when the call that waits there for answers has ended."""
        if not link.key.call:
            return
        if link.calls:
            self.retired.add(link)
        else:
            self.end(link)

    def end_session(self, session_id: str) -> None:
        """Close the dedicated session of a client's session that has ended."""
        self.lasting.pop(session_id, None)
        if (link := self.own.get(session_id)) is not None:
            self._end_once_open(link)
            self.close_tasks.spawn(self.records.forget(link))

    def hand_over(self, owner: str) -> bool:
        """Close the sessions of a client's session or a principal, which another worker serves now, when their calls
        have finished. If the client comes back, their state is from before that, so the client learns of the loss.
        Return whether there were any.
        """
        found = self._sessions_of(owner)
        for link in found:
            del self.links[link.key]
            self.own.pop(link.key.affinity, None)
            self.retired.add(link)
        return bool(found)

    def lose_elsewhere(self, owner: str) -> None:
        """Let the next call in each session of a client's session or a principal say that state is lost, because
        another worker has closed its own.
        """
        for link in self._sessions_of(owner):
            self.lost.keep(link.key.session, EndedHere)

    def _sessions_of(self, owner: str) -> list[Link]:
        links = [each for each in self.links.values() if each.open_task is None]
        return [
            each
            for each in links
            if (each.key.affinity == owner if each.key.own else each.remembered and each.key.principal == owner)
        ]

    def _end_once_open(self, link: Link) -> None:
        """Close a connection that its caller has given up. If it's being opened, the upstream may already have created
        a session, whose id arrives with the response: without it, the session can't be ended.
        """

        def end(opening: asyncio.Task[None]) -> None:
            if self.links.get(link.key) is link:
                self.end(link)

        if link.open_task is None:
            self.end(link)
        else:
            link.open_task.add_done_callback(end)

    def _take_place(self, owner: str) -> None:
        """Take a slot for a connection, closing idle ones of the largest owner if needed."""
        count = self.places.count
        while not self.places.take(owner):
            idle = [
                link
                for link in self.links.values()
                if link.is_idle and (link.owner in ("", owner) or count(link.owner) > count(owner))
            ]
            if not idle:
                raise InUse(self.places, owner, remedy="Raise max_connections.")
            self.end(min(idle, key=lambda link: (-count(link.owner), link.last_used)))

    async def tell(self, key: LinkKey, ended: type[EndedHere]) -> None:
        """Note that calls with a key fail now because their session is lost. Wait first for those sent together."""
        began = monotonic()
        await asyncio.sleep(_TOGETHER_SECONDS)
        if self.told_at(key) < began:  # else, one of those calls has already failed
            self.lost.pop(key.session, None)
            self.told.keep(key, (monotonic(), ended))

    def told_at(self, key: LinkKey) -> float:
        """Return when calls with a key last failed because their session was lost, or 0."""
        return self.told[key][0] if key in self.told else 0.0

    async def check(self, link: Link, began: float) -> None:
        """Check that a call that began at some time of `time.monotonic` can use its connection.

        Raises:
            EndedHere: The caller's earlier session was lost, and this call has to say so, or another one has said it
                since then.
        """
        key = link.key
        if self.lost and key.session in self.lost:
            if link.conversation.transport.has_session:
                await self.tell(key, self.lost[key.session])
            else:
                del self.lost[key.session]
        if began <= self.told_at(key):
            raise self.told[key][1]("The earlier session has ended.")

    async def forget(self, link: Link) -> None:
        """Close a connection, and note that its caller has learned of the lost session."""
        is_news = self.links.get(link.key, link) is link or link.key.session in self.lost
        if is_news and not link.reported and link.has_caller:
            await self.records.forget(link)
            await self.tell(link.key, EndedHere)
            link.reported = True
        self.end(link)

    def lose(self, link: Link) -> None:
        """Close a session that was lost. Its caller's next call says so."""
        if not link.reported:
            self.lost.keep(link.key.session, EndedThere)
        self.end(link)

    def end(self, link: Link) -> None:
        """Close a connection in the background. The next call with its key opens another one."""
        if link.ended:
            return
        link.ended = True
        self._remove(link)
        self.close_tasks.spawn(_close(link))

    def end_links_of(self, owner: str) -> None:
        """Close the connections with one user's credentials when their calls have finished."""
        for key, link in list(self.links.items()):
            if key.credentials.partition("\n")[0] != owner:
                continue
            if key.own:
                if link.open_task is None:  # else, the client has no session there yet
                    self.lost.keep(key.session, EndedHere)
                self.end(link)
            elif link.calls and key.principal:  # without a principal, it's the connection for lists
                del self.links[key]
                self.retired.add(link)
            else:
                self.end(link)

    def retire(self, *, handshake: bool) -> None:
        """Close the connections with or without `LinkKey.handshake` when their calls have finished."""
        for key, link in list(self.links.items()):
            if key.handshake is handshake:
                del self.links[key]
                self.retired.add(link)
                for stream in list(link.router.streams.values()):
                    stream.end()

    def end_idle(self, now: float) -> None:
        """Close connections that have been idle for too long or are marked for closing. Call it once a second.

        Args:
            now: Current time of `time.monotonic`.
        """
        for link in [each for each in self.retired if not each.calls]:
            self.retired.discard(link)
            self.end(link)
        for link in list(self.links.values()):
            if link.is_idle and 0 < self.idle_seconds < now - link.last_used:
                self.end(link)
        for link in [each for each in self.own.values() if each.expires_at < self.clock()]:
            self.end_session(link.key.affinity)

    async def close(self) -> None:
        """Close all connections. When this gateway stops, sessions stay open if it can continue them when it's back."""
        if self.stops():
            await asyncio.gather(*map(self._leave, self.links.values()))
        for link in [*self.links.values(), *self.retired]:
            self.end(link)
        self.retired.clear()
        while self.close_tasks:
            await self.close_tasks.settle(None)

    async def _leave(self, link: Link) -> None:
        if link.key.session in self.lost:
            return  # its caller has to learn of the loss first
        is_open = link.has_caller and link.open_task is None and not link.is_lost
        session = link.conversation.requests.describe_session() if is_open else None
        if session is not None and await self.records.leave(link, session):
            link.conversation.requests.leave_session()


def _too_many_sessions(sessions: Share, owner: str) -> ProtocolError:
    whose = f"{sessions.count(owner)} of them yours" if owner else "all of them in use"
    text = f"Too many sessions are open here, {whose}. End sessions that you don't need, or try again later."
    return ProtocolError(OVERLOADED, text, status=503, head=b"retry-after: 60\r\n")


async def _close(link: Link) -> None:
    opening = link.open_task
    if opening is not None:
        opening.cancel()
        await asyncio.wait([opening])
        if has_failed(opening):
            return  # `Conversation.start` has closed it
    await link.conversation.close()
