"""Connections to one upstream, the subscriptions that they carry, and the breaker in front of them.

There's one client `Conversation` per key, opened on first use. A key identifies the owner of a connection. A session at
a URL belongs to one principal and one client session. Callers of one process share its session (see `isolation`).
Clients never see an upstream's session id.
"""

import asyncio
import contextlib
import math
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from enum import Enum
from time import monotonic

from msgspec import Raw, Struct, field

from millstream import ProtocolError
from millstream._protocol.principal import Share
from millstream._recent import Recent
from millstream._server.calls.call import Call
from millstream._server.pool import Pool
from millstream._tasks import Tasks, cancel_all, has_failed, retry_delay
from millstream.client import ClientError, ConnectFailed, ConnectionLost
from millstream.client.lowlevel import Conversation
from millstream.gateway._relay import Relays, logger
from millstream.protocol import INVALID_REQUEST, OVERLOADED, Json, Revision


class Channel(Enum):
    """How a client session or request reaches an upstream."""

    OWN = "own"
    """Through an upstream session that serves only this client session, with its revision and name."""
    SHARED = "shared"
    """Through a connection in the client's era that other clients may also use."""
    ASK_BACK = "ask_back"
    """From a session to an upstream without sessions: questions in results become requests to the client."""
    PARK = "park"
    """From requests without a session to an upstream with sessions: calls wait there for the client's next request."""


def choose_channel(
    client: Revision, upstream: Revision, *, has_session: bool, gives_sessions: bool, serves_several: bool
) -> Channel:
    """Return how a client reaches an upstream. Nothing else decides which era a connection uses.

    Args:
        client: The client's revision.
        upstream: The newest revision that the upstream and the gateway have in common.
        has_session: Whether the client has a session here.
        gives_sessions: Whether the upstream creates sessions, as far as known.
        serves_several: Whether one process of the upstream serves several clients.
    """
    if not client.handshake:
        return Channel.PARK if upstream.handshake else Channel.SHARED
    if has_session and gives_sessions and not serves_several:
        return Channel.OWN
    return Channel.SHARED if upstream.handshake else Channel.ASK_BACK


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
    """Whether it's the dedicated session for a client's session (see `Channel.OWN`)."""


MAX_OWN_SESSIONS = 4096
"""Maximum dedicated sessions of all upstreams in one process, half of them per caller."""
MAX_STREAMS = 200
"""Maximum subscriptions of clients that one upstream serves, half of them per caller. Each may need a connection."""
MAX_HTTP_CALLS = 100
"""Maximum concurrent calls that several callers send to one upstream over HTTP. Each needs a connection."""
_ATTEMPTS = 3
"""Maximum connections that a call tries if each is closed while it opens, because the user is reconnecting."""
SHARED_KEY = LinkKey()
"""Key of the connection that reads the upstream's lists."""


class InUse(ConnectFailed):
    """The caller's share of processes or connections is in use. This isn't a failure of the upstream."""

    def __init__(self, places: Pool, owner: str, what: str = "its {} connections", *, remedy: str = "") -> None:
        holding = f"{places.count(owner)} of {what.format(places.maximum)}"
        super().__init__(f"The upstream is busy: the caller is using {holding}.", remedy=remedy)
        self.holding: str = holding
        """The caller's current number and the maximum, as text."""


class NoCredentials(ClientError):
    """A request has no credentials at the moment. This isn't a failure of the upstream."""


class Link(Struct, eq=False):
    """One connection."""

    key: LinkKey
    owner: str
    """The caller whose share of connections it counts against, or empty if callers share it."""
    conversation: Conversation
    relays: Relays
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
    notifying: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a client's notification is passed on, so that they keep their order."""

    @property
    def is_idle(self) -> bool:
        """Whether it's an open connection for calls without any now. Dedicated sessions hold state, so they're never
        idle."""
        return not self.calls and self.open_task is None and self.key != SHARED_KEY and not self.key.own


class Links(Struct):
    """The connections to one upstream; `open` makes them."""

    connect: Callable[[LinkKey, str, ClientIdentity | None], Link]
    """Creates a connection of an owner that isn't started yet."""
    sessions: Share
    """Counts dedicated sessions, which stay open as long as the sessions of their clients."""
    places: Pool
    """Slots for open connections. If an owner may not take another, an idle connection is closed: its own, or one of an
    owner that holds more.
    """
    idle_seconds: float
    """Seconds after which an idle connection is closed."""
    clock: Callable[[], float]
    """The clock of sessions, in Unix time."""
    links: dict[LinkKey, Link] = {}
    own: dict[str, Link] = {}
    """Client session -> its dedicated session at the upstream."""
    lost: Recent[str, None] = field(default_factory=lambda: Recent(MAX_OWN_SESSIONS))
    """Client sessions that lost their dedicated session, but haven't been notified yet."""
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
            if link is None:
                if not (key.principal or key.affinity):
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
            opening = link.open_task
            if opening is None:
                return link
            await asyncio.wait([opening])
            if not opening.cancelled():
                opening.result()
            if self.links.get(key) is link:  # another caller may have closed it
                return link
        raise ConnectionLost("The connection was closed while it was being opened.")

    async def _start(self, link: Link) -> None:
        try:
            await link.conversation.start()
            link.open_task = None
        except BaseException:
            if self.links.get(link.key) is link:
                self._remove(link)
            raise

    def _remove(self, link: Link) -> None:
        if self.links.get(link.key) is link:
            del self.links[link.key]
        if not link.key.own:
            self.places.leave(link.owner)
            return
        self.sessions.leave(link.owner)
        if self.own.get(link.key.affinity) is link:
            del self.own[link.key.affinity]

    def end_session(self, session_id: str) -> None:
        """Close the dedicated session of a client's session that has ended."""
        if (link := self.own.get(session_id)) is not None:
            self.end(link)

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
                self.lost.keep(key.affinity, None)
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

    def end_idle(self, now: float) -> None:
        """Close connections that have been idle for too long or are marked for closing. Call it once a second.

        Args:
            now: Current time of `time.monotonic`.
        """
        for link in [each for each in self.retired if not each.calls]:
            self.retired.discard(link)
            self.end(link)
        for link in list(self.links.values()):
            if link.is_idle and now - link.last_used > self.idle_seconds:
                self.end(link)
        for link in [each for each in self.own.values() if each.expires_at < self.clock()]:
            self.end(link)

    async def close(self) -> None:
        """Close all connections."""
        for link in [*self.links.values(), *self.retired]:
            self.end(link)
        self.retired.clear()
        while self.close_tasks:
            await self.close_tasks.settle(None)


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


MAX_WATCHED = 1000
"""Maximum watched resources per upstream, half of them per caller. Callers can watch the same ones."""
_MIN_SIZE = 131
"""A shorter URI counts as this many characters, so that the joint subscription has at most 128 KiB."""
_MAX_SIZE = MAX_WATCHED * _MIN_SIZE
_RETRY = 15.0
"""Seconds before a failed subscription is retried."""


class _JointWatch(Struct, eq=False):
    """A subscription to some resources of an upstream."""

    uris: set[str]
    replaced: Sequence["_JointWatch"] = ()
    """Subscriptions that end when this one is granted."""
    task: asyncio.Task[None] | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the upstream has granted or rejected it."""
    is_granted: bool = False
    ended: bool = False

    def end(self) -> None:
        """Unsubscribe."""
        self.ended = True
        if self.task is not None:
            self.task.cancel()


class ResourceWatches(Struct):
    """Watches resources of one upstream. `start` subscribes to resources that clients already follow."""

    name: str
    """Name of the upstream."""
    connect: Callable[[], Awaitable[Conversation]]
    """Returns the conversation to watch on."""
    on_update: Callable[[str], None]
    """Called with the upstream's own URI of a resource that has or may have changed."""
    share: Share = field(default_factory=lambda: Share(100 * _MAX_SIZE, each=_MAX_SIZE // 2))
    """Counts the characters of each caller's URIs."""
    watched: dict[str, Counter[str]] = {}
    """Upstream's URI -> caller -> number of its streams and connections that follow it."""
    size: int = 0
    """Characters of the watched URIs."""
    decisions: dict[str, asyncio.Event] = {}
    """Upstream's URI -> set when the upstream has granted or rejected its subscription."""
    tasks: dict[str, asyncio.Task[None]] = {}
    """In the handshake era: upstream's URI -> task. In the per-request era, one task watches all of them."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when that task should watch other resources."""

    def check_room(self, owner: str, uris: Collection[str]) -> None:
        """Check that a caller can watch more resources.

        Raises:
            ProtocolError: The caller's share is used up, or the maximum for all callers.
        """
        new = [uri for uri in uris if owner not in self.watched.get(uri, ())]
        if not self.share.has_room(owner, sum(map(_size_of, new))):
            held = sum(owner in callers for callers in self.watched.values())
            raise ProtocolError(
                INVALID_REQUEST,
                f"You're watching {held} resources on {self.name!r}. The maximum is {MAX_WATCHED // 2}, or fewer if "
                "their URIs are long. Unsubscribe from some.",
            )
        if self.size + sum(_size_of(uri) for uri in new if uri not in self.watched) > _MAX_SIZE:
            text = f"Other callers are watching too many resources on {self.name!r}. Try again later."
            raise ProtocolError(OVERLOADED, text, status=503)

    def take(self, owner: str, uri: str) -> bool:
        """Watch a resource for one more stream or connection of a caller. Return False if the share is used up."""
        callers = self.watched.get(uri, Counter())
        if owner not in callers:
            growth = 0 if callers else _size_of(uri)
            if self.size + growth > _MAX_SIZE or not self.share.take(owner, _size_of(uri)):
                return False
            self.size += growth
            self.watched[uri] = callers
            if not callers:
                self.decisions[uri] = asyncio.Event()
                self.changed.set()
        callers[owner] += 1
        return True

    def leave(self, owner: str, uri: str) -> None:
        """Release a count from `take`."""
        callers = self.watched[uri]
        callers[owner] -= 1
        if not callers[owner]:
            del callers[owner]
            self.share.leave(owner, _size_of(uri))
        if not callers:
            del self.watched[uri], self.decisions[uri]
            self.size -= _size_of(uri)
            self.changed.set()

    def start(self, *, handshake: bool) -> None:
        """Watch only the resources that were taken.

        Args:
            handshake: Whether the upstream uses the handshake era.
        """
        wanted = set(self.watched) if handshake or not self.watched else {""}
        for key in self.tasks.keys() - wanted:
            self.tasks.pop(key).cancel()
        for key in wanted - self.tasks.keys():
            work = self._watch(_JointWatch({key})) if key else self._watch_jointly()
            self.tasks[key] = asyncio.create_task(work)

    async def wait_until_settled(self, uris: Collection[str], seconds: float) -> None:
        """Wait until the upstream has granted or rejected the subscriptions, for at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for uri in uris:
                    if (event := self.decisions.get(uri)) is not None:
                        await event.wait()

    async def _watch_jointly(self) -> None:
        """Watch all resources with few subscriptions, because each one has to list all its resources. New resources get
        a new subscription, which replaces smaller ones, so each subscription has more resources than the next. Once the
        upstream grants a subscription, those that it replaces end.
        """
        open: list[_JointWatch] = []
        self.changed.set()
        try:
            while await self.changed.wait():
                self.changed.clear()
                kept: list[_JointWatch] = []
                new = set(self.watched)
                open = [each for each in open if not each.ended]
                for each in open:  # the largest first
                    useful = self.watched.keys() & each.uris
                    if each.is_granted and 2 * len(useful) > len(each.uris):
                        kept.append(each)
                        new -= useful
                        self._settle(each)
                while new and kept and len(kept[-1].uris) <= len(new):
                    new |= self.watched.keys() & kept.pop().uris
                replaced = [each for each in open if each not in kept]
                for each in replaced:
                    if not (each.is_granted and new):
                        each.end()
                if new:
                    watch = _JointWatch(new, replaced)
                    watch.task = asyncio.create_task(self._watch(watch))
                    open = [*kept, *replaced, watch]
                    await watch.settled.wait()
        finally:
            for each in open:
                each.end()

    async def _watch(self, watch: "_JointWatch") -> None:
        uris = sorted(watch.uris)
        while True:
            try:
                conversation = await self.connect()
                async with conversation.watch(*uris) as changes:
                    watch.is_granted = True
                    for each in watch.replaced:
                        each.end()
                    watch.replaced = ()
                    self._settle(watch)
                    async for change in changes:
                        if change.kind == "resource":
                            self.on_update(change.uri)
                        elif change.kind == "again":
                            for uri in uris:
                                self.on_update(uri)
            except ClientError as exc:
                logger.debug("The subscription to %d resources ended: %s", len(uris), exc)
                self._settle(watch)
            except Exception:  # our own error; without this, later subscriptions would wait for this one
                logger.exception("The subscription to %d resources failed; retrying", len(uris))
                self._settle(watch)
            await asyncio.sleep(_RETRY * random.uniform(0.75, 1))  # noqa: S311  jitter

    def _settle(self, watch: "_JointWatch") -> None:
        watch.settled.set()
        for uri in watch.uris:
            if (event := self.decisions.get(uri)) is not None:
                event.set()

    async def close(self) -> None:
        """Cancel the tasks that watch resources."""
        tasks = list(self.tasks.values())
        self.tasks.clear()
        await cancel_all(*tasks)


def _size_of(uri: str) -> int:
    return max(_MIN_SIZE, len(uri))


FAILURES = 5
"""Consecutive failures of a caller's calls to a tool, or consecutive timeouts of all calls, before the breaker
reacts."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_MAX_DURATIONS = 512
"""Maximum recent response times kept for the quantiles."""
_MAX_RECORDS = 1000
"""Maximum callers and tools with failures, half of them for one caller."""
_MAX_AGE = 600.0
"""Seconds after which the failures of a caller may be forgotten."""
_MAX_NAME = 200
"""Maximum characters of a name to remember."""


class CallerFailures(Struct):
    """Consecutive failures of one caller's calls to one tool."""

    count: int = 0
    failed_at: float = 0.0
    retry_at: float = 0.0
    """When the caller can call the tool again."""


class Breaker:
    """Refuses calls that would probably get no response, so that callers fail fast.

    Failures count against the caller and tool: after `FAILURES` failures, its calls to the tool are rejected for a
    while, which doubles each time. Several callers may be one person, so their timeouts never block a tool for others.
    Only failures of the gateway's own requests open the breaker for all callers.
    """

    is_open: bool = False
    """Whether all calls are rejected."""
    response_count: int = 0
    """Number of calls with a response."""
    failure_count: int = 0
    """Number of calls without a usable response."""
    refused_count: int = 0
    """Number of calls that weren't sent."""
    _failures = 0
    """Consecutive timeouts and lost connections of all callers."""

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.records: dict[tuple[str, str], dict[tuple[str, str], CallerFailures]] = {}
        """Method and name -> owner and session -> failures. Empty as long as all calls succeed."""
        self._share = Share(_MAX_RECORDS)
        self._durations: deque[float] = deque(maxlen=_MAX_DURATIONS)

    def refusal(self, call: Call, method: str, name: str) -> str:
        """Return the reason for not sending a call, as the end of a sentence, or an empty string to send it."""
        text, callers = "", self.records.get((method, name[:_MAX_NAME]))
        if self.is_open:
            text = "isn't responding, so the call wasn't sent. Try again in a minute."
        elif callers:
            now, own = self._clock(), callers.get(_caller(call))
            if own is not None and own.retry_at > now:
                text = (
                    f"failed your last {own.count} calls to {call.name!r:.200}, so this one wasn't sent. Try again in "
                    f"{math.ceil(own.retry_at - now)} seconds."
                )
        self.refused_count += text != ""
        return text

    def succeed(self, seconds: float, call: Call, method: str, name: str) -> None:
        """Record a call with a response, including errors."""
        self._durations.append(seconds)
        self.response_count += 1
        self._failures = 0
        if self.records:
            self._clear(_caller(call), (method, name[:_MAX_NAME]))

    def _clear(self, caller: tuple[str, str], key: tuple[str, str]) -> None:
        callers = self.records.get(key, {})
        if callers.pop(caller, None) is not None:
            self._share.leave(caller[0])
        if not callers:
            self.records.pop(key, None)

    def fail(self, call: Call, method: str, name: str, *, responded: bool) -> bool:
        """Record a call without a usable response. Return whether to check that the upstream responds.

        Args:
            call: The client's call.
            method: Method of the request.
            name: Upstream's name of the item.
            responded: Whether there was a response, for example an invalid one.
        """
        self.failure_count += 1
        self._blame(_caller(call), (method, name[:_MAX_NAME]))
        self._failures = 0 if responded else self._failures % FAILURES + 1
        return self._failures == FAILURES

    def _blame(self, caller: tuple[str, str], key: tuple[str, str]) -> None:
        now = self._clock()
        found = self.records.get(key, {}).get(caller)
        if found is None:
            if not self._share.take(caller[0]):
                self._forget(now - _MAX_AGE)
                if not self._share.take(caller[0]):
                    return
            found = self.records.setdefault(key, {})[caller] = CallerFailures()
        found.failed_at = now
        if found.retry_at > now:  # the call was sent before
            return
        found.count += 1
        if found.count >= FAILURES:
            found.retry_at = now + retry_delay(found.count - FAILURES, _FIRST_PAUSE, _LONGEST_PAUSE)

    def _forget(self, before: float) -> None:
        """Forget the failures before a time."""
        for key, callers in list(self.records.items()):
            for caller, each in list(callers.items()):
                if each.failed_at < before:
                    self._clear(caller, key)

    def open(self) -> None:
        """Reject all calls, and forget callers' failures, which the upstream caused."""
        self.is_open = True
        self.records.clear()
        self._share = Share(_MAX_RECORDS)

    def describe(self) -> Json:
        """Return call counts, and quantiles of the last `_MAX_DURATIONS` response times in milliseconds."""
        figures: Json = {
            "breaker": "open" if self.is_open else "closed",
            "calls": self.response_count + self.failure_count,
            "unanswered": self.failure_count,
            "refused": self.refused_count,
        }
        if self._durations:
            ordered = sorted(self._durations)
            for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
                figures[name] = round(ordered[int(len(ordered) * share)] * 1000, 3)
        return figures


def _caller(call: Call) -> tuple[str, str]:
    """Return the owner of a call, and its session if callers don't sign in, because they may share an address."""
    return call.owner, "" if call.principal is not None or call.session is None else call.session.id
