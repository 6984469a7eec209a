"""An upstream's lists: read again and again, stored, and offered whenever they have changed."""

import asyncio
import contextlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from millstream._gateway.catalog.catalog import (
    METHODS,
    Catalog,
    Description,
    Pins,
    QuarantinedItem,
    StoredCatalog,
    fetch,
)
from millstream._gateway.catalog.changes import ChangeLog
from millstream._gateway.errors import InUse, NoCredentials
from millstream._gateway.log import logger
from millstream._gateway.names import UpstreamPattern
from millstream._gateway.options.policy import find_unknown_names
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._gateway.processes.pool import UpstreamProcesses
from millstream._gateway.rules.patterns import key_forms, path_and_parts, uri_key
from millstream._gateway.rules.policy import Policy
from millstream._gateway.upstreams.breaker import Breaker, find_outage
from millstream._gateway.upstreams.links import SHARED_KEY, Link, LinkKey, Links
from millstream._override import override
from millstream._recent import Recent
from millstream._tasks import Tasks, cancel_all, retry_delay
from millstream._text import pluralize
from millstream._troubles import LogOnce
from millstream.client import (
    AccessDenied,
    ClientError,
    InvalidResponse,
    RequestTimeout,
    ServerError,
)
from millstream.client._recovery import NO_HANDSHAKE, UNREACHABLE
from millstream.client._server_messages import Change
from millstream.client.lowlevel import Conversation
from millstream.protocol import METHOD_NOT_FOUND, members

if TYPE_CHECKING:
    from millstream._gateway.credentials.source import UpstreamCredentials

State = Literal["connecting", "ready", "degraded"]
_MIN_LISTED = 1.0
"""Minimum seconds between two reads of the lists at a client's request."""
_MIN_REFRESH = 5.0
"""Minimum seconds between unannounced refreshes, even if the lists expire earlier."""
_RETURN_SECONDS = 4.0
"""Maximum seconds for which a call waits for an attempt to reach an upstream that couldn't be reached."""
_SUBSCRIBE_SECONDS = 1.0
"""Seconds to wait for the subscription to changes before the first lists are read."""
_MAX_WARNINGS = 1000
_MAX_START_FACTOR = 8

_MIN_PAUSE = 0.5
_MAX_START_PAUSE = 60.0
"""Maximum seconds between two starts of a process that fails."""
reconnect_delay = partial(retry_delay, first=_MIN_PAUSE, most=5.0)
"""Returns the seconds before the next attempt to reach an upstream, by the number of failures."""


def refresh_pause(seconds: float) -> float:
    """Return the seconds before the next announced refresh, after one that took some seconds.

    A refresh can make clients list again, so even a fast one isn't repeated constantly.
    """
    return min(max(4 * seconds, 1.0), _MIN_REFRESH)


def _match_uris(uris: Collection[str], templates: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a URI is one of these, or matches a template."""
    patterns = [UpstreamPattern(each) for each in templates]
    return lambda uri: uri in uris or any(each.match(uri) is not None for each in patterns)


def _quarantine(uris: Iterable[str], templates: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a URI, in any spelling, is one of these, or matches a template."""
    hidden: dict[str, set[frozenset[str]]] = {}
    for uri in uris:
        for each in key_forms(uri_key(uri.partition("#")[0], is_listed=True)):
            path, parts = path_and_parts(each)
            hidden.setdefault(path, set()).add(parts)
    matches = _match_uris((), patterns := [form for each in templates for form in (each, each.casefold())])

    def hides(uri: str) -> bool:
        if not hidden and not patterns:
            return False
        if not (key := uri_key(uri)):
            return True
        forms = {each: path_and_parts(each) for each in key_forms(key)}
        if any(fewer <= parts for path, parts in forms.values() for fewer in hidden.get(path, ())):
            return True
        return any(map(matches, {uri, *forms, *map(str.casefold, forms), *(path for path, _ in forms.values())}))

    return hides


class ListOwner(Protocol):
    """What a keeper needs from its upstream."""

    @property
    def config(self) -> UpstreamConfig: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def breaker(self) -> Breaker: ...
    @property
    def processes(self) -> UpstreamProcesses | None: ...

    def take_lists(self, found: Catalog, announced: Collection[str]) -> None: ...


U = TypeVar("U", bound=ListOwner)


class ListKeeper(ABC, Generic[U]):
    """Keeps the lists of one upstream. Subclasses know where they come from.

    It also knows whether the upstream can be reached, because reading them shows that.
    """

    _state: State = "connecting"
    reason: str = ""
    """Reason of a degraded state, for the operator. It may contain the address, so it's never sent to clients."""
    fault: Exception | None = None
    """The error behind `reason`."""
    failed_reads: int = 0
    """Number of attempts to read the lists that have failed since the last successful one."""
    changed_at: float = 0.0
    """Unix time of the last change, or 0 before the first one."""
    quarantined_at: float = 0.0
    """Unix time when items were quarantined, if some are."""
    always_asked: bool = False
    """Whether lists are read when a client requests them: for an only upstream, and for a program in this process,
    where that's cheap. Set before `run`.
    """
    needs_account: bool = False
    """Whether the lists can't be read until a user connects an account. Clients don't wait for that."""
    _awaited = "responded"
    """What the upstream hasn't done since `_asked_at`, or empty if nothing is expected."""
    _listed_at = 0.0
    """Monotonic time of the last lists, or 0 without a connection that reads them."""
    _lost_at = 0.0
    """Monotonic time of the last refresh after a loss, or 0 before."""

    def __init__(self, upstream: U, stored: StoredCatalog, pins: Pins | None) -> None:
        """Create the keeper; `run` keeps the lists.

        Args:
            upstream: The upstream.
            stored: Copy of the lists in the store.
            pins: Pinned definitions, if any.
        """
        self.config: UpstreamConfig = upstream.config
        self.catalog: Catalog = Catalog()
        """The last lists."""
        self.quarantined: list[QuarantinedItem] = []
        """Items that aren't offered, because their definitions differ from the accepted ones."""
        self.is_listed: Callable[[str], bool] = _match_uris((), ())
        """Tells whether a URI is listed."""
        self.wanted: asyncio.Event = asyncio.Event()
        """Set when the lists are needed here, even if no client requests them."""
        self.ready: asyncio.Event = asyncio.Event()
        """Set once there are lists, fresh or stored."""
        self.responded: asyncio.Event = asyncio.Event()
        """Set once the upstream has described itself, or can't be used."""
        self.tasks: Tasks = Tasks()
        self._stored = stored
        self.pins: Pins | None = pins
        self._upstream = upstream
        self.changes: ChangeLog = ChangeLog(self.config.name, stored, self._is_used)
        self._is_quarantined = _quarantine((), ())
        self._asked_at = monotonic()
        self.since: float = time()
        """Unix time of the last change of the state."""
        self._refresh = asyncio.Event()
        """Set when the lists have to be fetched again."""
        self._listed = asyncio.Event()
        """Set when the lists have been fetched, or can't be."""
        self._outages: dict[str, LogOnce] = {}
        """Kind of list, or empty for all -> its failures. `UpstreamState` describes them in `/health`."""
        self._warnings: Recent[str, None] = Recent(_MAX_WARNINGS)
        """Warnings that were already logged, because each refresh repeats them."""

    @abstractmethod
    async def run(self) -> None:
        """Keep the lists fresh while the gateway runs."""

    @abstractmethod
    async def find_fault(self) -> ClientError | None:
        """Return why the upstream doesn't respond to the gateway's own request, or None if it does."""

    async def load(self) -> None:
        """Load the stored copy, so that no client waits for the upstream."""
        found = await self._stored.load()
        if found is not None:
            await self.publish(found)

    async def publish(self, found: Catalog, announced: Collection[str] = ()) -> None:
        """Offer new lists, without the items that aren't accepted."""
        if self.pins is not None:
            found, quarantined = await self.pins.split(found)
            if quarantined and quarantined != self.quarantined:
                logger.warning(
                    "%s: quarantined until the operator accepts their definitions (millstream gateway accept): %s",
                    self.config.name,
                    ", ".join(each.name for each in quarantined),
                )
            elif self.quarantined and not quarantined:
                logger.warning("%s: no item is quarantined any more", self.config.name)
            if not self.quarantined:
                self.quarantined_at = time()
            self.quarantined = quarantined
            hidden = [[each.name for each in quarantined if each.kind == kind] for kind in ("resources", "templates")]
            self._is_quarantined = _quarantine(*hidden)
        before, self.catalog = self.catalog, found
        for what, old, new in (
            ("revision", before.revision, found.revision),
            ("transport", before.transport, found.transport),
        ):
            if old and new and old != new:
                logger.info("The upstream %s now uses the %s %s instead of %s", self.config.name, what, new, old)
        self.is_listed = _match_uris(found.resources, found.templates)
        if not before.taken_at:
            counts = [(len(getattr(found, kind)), kind) for kind in METHODS]
            has = ", ".join(f"{count} {kind if count > 1 else kind[:-1]}" for count, kind in counts if count)
            # Empty if the lists are only relayed.
            logger.info("The upstream %s is ready%s", self.config.name, f": {has}" if has else "")
            for name, hint in find_unknown_names(self._upstream.policy.own, [name for _, name in self.names()]):
                self.warn(f"the policy has a rule for {name!r}, which isn't one of its tools or prompts.{hint}")
        else:
            if any(getattr(found, kind) != getattr(before, kind) for kind in METHODS):
                self.changed_at = found.taken_at
            await self.changes.record(before, found)
        self.ready.set()
        self.responded.set()
        self._upstream.take_lists(found, announced)

    def _is_used(self, kind: str, name: str, definition: Description) -> bool:
        return self._upstream.policy.item(kind, name, members(definition.get("annotations"))) is not None

    @property
    def withheld(self) -> list[str]:
        """Names of the quarantined items that the policy would offer."""
        return [each.name for each in self.quarantined if self._is_used(each.kind, each.name, each.offered)]

    def names(self) -> Iterator[tuple[str, str]]:
        """Yield kind and upstream's name of each item, including quarantined ones."""
        for kind, name, _ in self.catalog.items():
            yield kind, name
        for each in self.quarantined:
            yield each.kind, each.name

    def is_quarantined(self, uri: str) -> bool:
        """Return whether a resource or its template is quarantined, in any spelling of the URI."""
        return bool(self.quarantined) and self._is_quarantined(uri)

    def warn(self, text: str) -> None:
        """Log a warning once."""
        if text not in self._warnings:
            self._warnings.keep(text, None)
            logger.warning("%s: %s", self.config.name, text)

    def refresh(self) -> None:
        """Read the lists again now."""
        self._refresh.set()

    def refresh_after_loss(self) -> None:
        """Read the lists again after a connection or session was lost, in case the upstream has restarted."""
        self.tasks.spawn_once(self._refresh_rarely)

    async def _refresh_rarely(self) -> None:
        await asyncio.sleep(self._lost_at + _MIN_REFRESH - monotonic())  # some upstreams lose every session
        self._lost_at = monotonic()
        self.refresh()

    @property
    def is_asked(self) -> bool:
        """Whether lists are read when a client requests them, also because they're immediately stale."""
        return self.always_asked or 0 in (ttl_ms for ttl_ms, _ in self.catalog.hints.values())

    @property
    def is_stale(self) -> bool:
        """Whether a list should wait for `freshen`, at most once a second."""
        waits = self.state == "ready" and 0 < self._listed_at < monotonic() - _MIN_LISTED
        return waits and (self.is_asked or self._refresh.is_set())

    async def freshen(self) -> None:
        """Read the lists again and wait for them for a limited time."""
        try:
            async with asyncio.timeout(self.config.start_timeout):
                await self._wait_for_lists()
        except TimeoutError:
            self.tasks.spawn_once(self.check)

    async def wait_for_return(self) -> None:
        """Try to reach an upstream again that couldn't be reached, and wait for a limited time.

        An attempt that began before may just have missed the return, so the next one counts.
        """
        last = self.failed_reads + 2
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_RETURN_SECONDS, self.config.start_timeout)):
                while self._upstream.breaker.is_open and self.failed_reads < last:
                    await self._wait_for_lists()

    async def _wait_for_lists(self) -> None:
        """Read the lists again. Wait until they have been fetched or can't be."""
        self._refresh.set()
        self._listed.clear()
        if self.needs_account:
            self._upstream.breaker.is_open = False  # only calls can find out whether the upstream is back
        else:
            await self._listed.wait()

    @property
    def state(self) -> State:
        """Whether the upstream can be used."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        if state != self._state:
            self._state, self.since = state, time()

    def end_start(self) -> None:
        """Stop making clients wait for the upstream's first lists."""
        self.responded.set()
        if not self.ready.is_set():
            self.ready.set()
            self._upstream.take_lists(self.catalog, ())

    def degrade(self, error: Exception) -> None:
        """Mark the upstream as unusable."""
        reason = str(error) or type(error).__name__
        responds = isinstance(error, ServerError | InvalidResponse) or getattr(error, "status", 0) != 0
        self._log_failure(error, "responds with an error" if responds else "can't be reached", reason)
        self.state, self.reason, self.fault, self._awaited = "degraded", reason, error, ""
        self.end_start()
        if isinstance(error, UNREACHABLE):
            self._upstream.breaker.open(find_outage(error, is_process=self._upstream.processes is not None))
        self._listed.set()

    def _log_failure(self, error: Exception, what: str, reason: str, *, kind: str = "") -> None:
        """Log the first failure of a kind of list, or of all lists, and others if something else doesn't work."""
        name = f"The upstream {self.config.name}"
        over = f"{name} {f'lists its {kind} again' if kind else 'can be reached again'}."
        outage = self._outages.get(kind)
        if outage is None:
            outage = self._outages[kind] = LogOnce(
                None,  # `/health` has the upstream's state
                "",
                over,
            )
        if outage.what != (text := f"{name} {what}"):
            outage.what, outage.logged_at = text, 0
        remedy = next((each.remedy for each in (error, error.__cause__) if isinstance(each, ClientError)), "")
        outage.fail(reason, remedy)

    async def check(self) -> None:
        """Open the breaker if the upstream doesn't respond to the gateway either."""
        error = await self.find_fault()
        if error is not None:
            self.degrade(error)
        if self._upstream.breaker.is_open:
            self._refresh.set()  # reading the lists closes the breaker

    def recover(self, failures: Mapping[str, ClientError] = {}) -> None:
        """Mark the upstream as usable, after its lists have been read.

        Args:
            failures: The kinds of lists that couldn't be read, and the reasons.
        """
        for kind, error in failures.items():
            self._log_failure(error, f"can't list its {kind}, so earlier ones stay", str(error), kind=kind)
        for kind in self._outages.keys() - failures:
            self._outages.pop(kind).end()
        lacking = [error for error in failures.values() if getattr(error, "code", 0) != METHOD_NOT_FOUND]
        self.failed_reads = self.failed_reads + 1 if lacking else 0
        self.reason = f"It can't list some of its items: {lacking[0]}" if lacking else ""
        self.state, self.fault, self._awaited = "ready", None, ""
        self._upstream.breaker.is_open = False
        self._listed.set()

    def report_state(self) -> tuple[State, str]:
        """Return the state and its reason. While an upstream that isn't ready takes too long to respond, that's the
        reason: the last failure may be over.
        """
        late = monotonic() - self._asked_at > self.config.connect_timeout
        if self.state != "ready" and self._awaited and late:
            return "degraded", f"It hasn't {self._awaited} within {pluralize(self.config.connect_timeout, 'second')}."
        return self.state, self.reason


class ListSource(ListOwner, Protocol):
    """What a keeper needs from an upstream that speaks MCP."""

    @property
    def serves_one(self) -> bool: ...
    @property
    def is_relayed(self) -> bool: ...
    @property
    def credentials(self) -> "UpstreamCredentials | None": ...
    @property
    def links(self) -> Links: ...
    @property
    def in_sessions(self) -> bool: ...

    def lose_handshake(self) -> None: ...

    def declare_less(self, exc: ServerError) -> bool: ...

    def forget_facts(self) -> None: ...

    async def probe(self) -> ClientError | None: ...

    def suspect(self, link: Link | None, error: ClientError | OSError) -> None: ...


class McpLists(ListKeeper[ListSource]):
    """Reads the lists from a server that speaks MCP, on a connection of their own."""

    lister: LinkKey = SHARED_KEY
    """Key of the connection that reads the lists."""
    start_factor: int = 1
    """Multiple of the timeout that the shared process may take to start. Each start that takes longer doubles it."""
    _lister_left = False
    """Set when the user whose account reads the lists reconnects or disconnects."""
    _listed_result = b""
    """The negotiated result of the connection that reads the lists, at the last read."""
    _announced: frozenset[str] = frozenset()
    """Kinds of lists that the upstream said have changed."""

    def note(self, kind: str) -> None:
        """Handle an announced change. Servers announce changes to their lists on whichever connection caused them."""
        self._announced |= {kind}
        self._refresh.set()

    def leave(self, owner: str) -> None:
        """Handle that a user has reconnected or disconnected."""
        if self.lister.credentials.partition("\n")[0] == owner:
            self._lister_left = True

    @override
    async def find_fault(self) -> ClientError | None:
        """See `ListKeeper`."""
        return await self._upstream.probe()

    @override
    def degrade(self, error: Exception) -> None:
        """See `ListKeeper`."""
        super().degrade(error)
        if self._upstream.serves_one:
            self.wanted.set()  # lists close the breaker

    @override
    async def publish(self, found: Catalog, announced: Collection[str] = ()) -> None:
        """See `ListKeeper`."""
        found.asks_by_handshake |= self._upstream.in_sessions  # the file may have changed while the lists arrived
        await super().publish(found, announced)

    @override
    async def run(self) -> None:
        """See `ListKeeper`."""
        if self._upstream.serves_one:
            self.state = "ready"
            self.ready.set()
            await self.wanted.wait()
        while True:
            link: Link | None = None
            try:
                self.lister = await self._find_lister()
                self._awaited, self._asked_at = "responded", monotonic()
                link = await self._upstream.links.open(self.lister)
                await self.describe(link.conversation)
                link.calls += 1  # the connection is in use even while idle
                subscribed = asyncio.Event()
                watching = asyncio.create_task(self._watch(link.conversation, subscribed))
                try:
                    with contextlib.suppress(TimeoutError):  # before the lists, so that no change is missed
                        async with asyncio.timeout(_SUBSCRIBE_SECONDS):
                            await subscribed.wait()
                    self._awaited, self._asked_at = "returned its lists", monotonic()
                    await self._list(link.conversation)
                    link.failures = 0
                    link.conversation.requests.timeout = self.config.timeout
                    await self._keep_fresh(link.conversation)
                finally:
                    if self._listed_at:  # until the next connection, lists don't wait
                        self._listed_at = 0.0
                        self._listed.set()
                    await cancel_all(watching)
                    link.calls -= 1
            except (ClientError, OSError) as exc:
                self._awaited = ""
                self._upstream.suspect(link, exc)
                if await self._take_failure(exc):
                    continue
                self.failed_reads += 1
            except Exception as exc:  # our own error; without this, the task would end
                logger.exception("The lists of %s can't be read", self.config.name)
                self.degrade(exc)
                self.failed_reads += 1
            await self._wait_to_reconnect(self.failed_reads)

    async def _take_failure(self, exc: ClientError | OSError) -> bool:
        """Update the state after the lists couldn't be read. Return whether to connect again immediately."""
        upstream = self._upstream
        if isinstance(exc, RequestTimeout) and upstream.processes is not None:
            self.start_factor = min(2 * self.start_factor, _MAX_START_FACTOR)
        if self._lister_left:
            return True
        if isinstance(exc, ServerError) and not self._listed_result and upstream.declare_less(exc):
            return True
        if self.lister.handshake and isinstance(exc, NO_HANDSHAKE):
            upstream.lose_handshake()
            return True
        credentials = upstream.credentials
        if isinstance(exc, AccessDenied | NoCredentials) and credentials is not None and credentials.personal:
            # Only one user's account is affected: other calls continue, and another account reads the lists.
            self.warn(f"a user's account can't read the lists: {exc}")
            self.state, self.reason = "degraded", f"A user's account can't read the lists: {exc}"
            credentials.avoid_lister(self.lister.credentials)
        elif isinstance(exc, InUse) or (isinstance(exc, RequestTimeout) and await self.find_fault() is None):
            self._log_failure(exc, "doesn't return its lists at the moment", str(exc))
        else:
            self.degrade(exc)
            if isinstance(exc, UNREACHABLE) or not isinstance(exc, ClientError):
                return False
        self._upstream.breaker.is_open = False  # the upstream responds, or only calls can find out
        self._listed.set()
        return False

    async def _wait_to_reconnect(self, failures: int) -> None:
        """Wait before the next attempt. A refused call ends the wait, unless each attempt starts a process."""
        if self._upstream.processes is not None:
            await asyncio.sleep(retry_delay(failures, _MIN_PAUSE, _MAX_START_PAUSE))
            return
        self._refresh.clear()
        await asyncio.sleep(_MIN_PAUSE)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(reconnect_delay(failures)):
                await self._refresh.wait()

    async def _find_lister(self) -> LinkKey:
        """Return the key of the connection that reads the lists: a shared connection, or a connected user's."""
        credentials = self._upstream.credentials
        if credentials is None or not credentials.personal:
            return LinkKey(handshake=self._upstream.in_sessions)
        self._awaited, person = "", credentials.lists_from or "a user"
        has_lister = await credentials.has_lister()
        if not has_lister or self.state != "degraded":
            self.state = "ready" if self.catalog.revision else "connecting"
            self.reason = f"Waiting for {person} to connect an account that can read the lists"
        if credentials.ended_count and not has_lister:
            self.state = "degraded"
            self.reason += f", because {credentials.ended_count} of them ended"
        if not self.catalog.revision:
            logger.info(
                "The upstream %s offers nothing until %s connects an account at /connections", self.config.name, person
            )
        self.end_start()
        self.needs_account = True
        self._listed.set()
        lister = await credentials.lister()
        self.needs_account = False
        self._lister_left = False
        return LinkKey(credentials=lister)

    async def describe(self, conversation: Conversation) -> None:
        """Offer what the upstream says about itself, if it's relayed and its lists haven't arrived yet. They can take
        long, or aren't needed at all.
        """
        if self._upstream.is_relayed and not self.catalog.revision:
            found = await fetch(
                conversation, max_bytes=0, discovered=conversation.negotiated.discovered, failures={}, warn=self.warn
            )
            self.catalog = found
            self.responded.set()
            self._upstream.take_lists(found, ())

    async def _list(self, conversation: Conversation) -> None:
        announced, self._announced = self._announced, frozenset()
        discovered = conversation.negotiated.discovered
        known, self._listed_result = self._listed_result, discovered
        if known and discovered is not known:
            self._upstream.forget_facts()
        failures: dict[str, ClientError] = {}
        try:
            found = await fetch(
                conversation,
                max_bytes=self.config.max_catalog_bytes if self.wanted.is_set() else 0,
                discovered=b"" if discovered is known else discovered,
                before=self.catalog,
                announced=announced,
                requires_one=not self._upstream.is_relayed
                and not any(self.catalog.items()),  # without items, no call would work
                failures=failures,
                warn=self.warn,
            )
        except BaseException:
            self._announced |= announced
            raise
        if (
            self._upstream.credentials is not None
            and self._upstream.credentials.personal
            and found.hints.get("resources", (0, True))[1]
        ):
            found.resources = {}  # the lists may belong to the lister alone
        found.taken_at, found.asks_by_handshake = self._stored.time(), self._upstream.in_sessions
        last_at = self.catalog.taken_at
        await self.publish(found, announced)
        self.recover(failures)
        self._listed_at = monotonic()
        await self._stored.save(found, last_at=last_at)

    async def _keep_fresh(self, conversation: Conversation) -> None:
        """Refresh the lists when the upstream announces a change, and when they're stale."""
        while self.lister.handshake is self._upstream.in_sessions:
            seconds = max(self.catalog.fresh_seconds or self.config.refresh_seconds, _MIN_REFRESH)
            try:
                async with asyncio.timeout(seconds * random.uniform(1, 1.2)):  # noqa: S311  jitter
                    await self._refresh.wait()
            except TimeoutError:  # another worker may just have refreshed the stored copy
                found = await self._stored.load() if self._stored.shared else None
                if found is not None and self._stored.time() - found.taken_at <= seconds / 2:
                    await self.publish(found)
                    continue
            self._refresh.clear()
            if self.lister.handshake is not self._upstream.in_sessions:
                break
            began = monotonic()
            await self._list(conversation)
            # An upstream that changes constantly must not be listed constantly.
            await asyncio.sleep(refresh_pause(monotonic() - began))
        self._upstream.links.retire(handshake=self.lister.handshake)  # a shared process has changed its era

    async def _watch(self, conversation: Conversation, subscribed: asyncio.Event) -> None:
        if not self.wanted.is_set():
            subscribed.set()
            await self.wanted.wait()
            self._refresh.set()
        try:
            async with conversation.watch() as changes:
                subscribed.set()
                async for change in changes:  # others have arrived in `_take_change`
                    self.take_interruption(change, None)
        except ServerError as exc:
            logger.debug("%s doesn't report changes: %s", self.config.name, exc)
        except ClientError as exc:
            logger.debug("%s: the subscription ended: %s", self.config.name, exc)
            self._refresh.set()
        except Exception:  # our own error
            logger.exception("%s: changes to the lists can't be followed until its next connection", self.config.name)
            self._refresh.set()
        finally:
            subscribed.set()

    def take_interruption(self, change: Change, subscription: object) -> None:
        """Read the lists again after the upstream may have restarted."""
        if change.kind == "again":
            self.refresh_after_loss()
