"""One server behind the gateway: how it's configured, and how it is while the gateway runs."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

import msgspec
from msgspec import Struct

from millstream._protocol.messages import SubscriptionFilter
from millstream._protocol.revisions import BY_DATE, NEWEST_HANDSHAKE, Revision
from millstream._protocol.suggestions import Suggesting
from millstream._stores.base import Store
from millstream.client._conversation import Conversation
from millstream.client._errors import AccessDenied, ClientError, Failure, TargetError
from millstream.client._options import Options
from millstream.client._targets import find
from millstream.client._transports.stdio import Command
from millstream.gateway import catalog
from millstream.gateway.breaker import Breaker
from millstream.gateway.catalog import Catalog, StoredCatalog
from millstream.gateway.credentials.options import Credentials, PerUserOAuth
from millstream.gateway.cycles import announced_ids
from millstream.gateway.links import SHARED, Link, LinkKey, Links, NoCredentials
from millstream.gateway.names import PREFIX_RULE, Names, is_prefix
from millstream.gateway.parked import ParkedCalls
from millstream.gateway.pins import Pins, Quarantined
from millstream.gateway.policy import ItemRules, Policy, UpstreamPolicy
from millstream.gateway.processes import ProcessPool, UpstreamProcesses
from millstream.gateway.programs.classes import library_of
from millstream.gateway.programs.libraries import upstream_of
from millstream.gateway.programs.program import Program
from millstream.gateway.questions import ANYTHING, can_ask
from millstream.gateway.relay import Relays
from millstream.gateway.watches import ResourceWatches

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from millstream._server.calls.call import Call
    from millstream.client._transports.embedded import Embedded, Running
    from millstream.gateway.credentials.source import UpstreamCredentials

logger = logging.getLogger("millstream.gateway")

Target = str | Path | Sequence[str] | Mapping[str, Any] | object
"""A URL, a command as text or list, a file, an entry of `mcpServers`, or a server object of this process."""
State = Literal["connecting", "ready", "degraded", "disabled"]

_LISTS = frozenset({"tools", "resources", "prompts"})
_SHORTEST_REFRESH = 5.0
"""Seconds between two lists that the upstream didn't announce, however soon it says they're stale."""
_PAUSE = 4.0
"""Times as long as a list took, until the next one that the upstream announces."""
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 60.0
_MAX_DOUBLED = 8


class UpstreamConfig(Struct, frozen=True, kw_only=True, metaclass=Suggesting):
    """A server behind the gateway. ``UpstreamConfig(name="files", target=["uvx", "mcp-server-files", "."])``"""

    name: str
    """For the operator: logs, metrics, and pages."""
    target: Any
    """A URL, a command as text or list, a file, an entry of `mcpServers`, or a server object of this process."""
    prefix: str | None = None
    """In front of names; by default `name`. Empty for the upstream's own names."""
    headers: Mapping[str, str] = {}
    """Sent with each HTTP request to the upstream."""
    env: Mapping[str, str] = {}
    """Variables for a command, beside the few that every program needs."""
    cwd: str | None = None
    """Where a command runs."""
    auth: Credentials | None = None
    """Where credentials come from that aren't fixed headers: `bearer`, `per_user_oauth`, and others."""
    forward_headers: Sequence[str] = ()
    """Names of the caller's HTTP headers to pass on."""
    scale: Literal["shared", "per_principal", "per_session"] = "shared"
    """How many processes a command gets: one, one for each principal, or one for each session."""
    timeout: float = 60.0
    """Seconds until an answer; progress starts them again."""
    connect_timeout: float = 10.0
    """Seconds until a connection must stand, or a process must run."""
    start_timeout: float = 5.0
    """Seconds that the start of the gateway waits for the first lists; with a stored copy it doesn't wait."""
    refresh_seconds: float = 300.0
    """Seconds until lists are asked for again, where the upstream doesn't say how long they're fresh."""
    max_processes: int = 8
    """Processes of a command that may run at once in each worker. Above it, the idle one that was used longest ago is
    ended."""
    spare_processes: int = 0
    """Processes of a command to keep started for the next principals or sessions."""
    max_links: int = 1000
    """Connections that may be open at once."""
    idle_seconds: float = 300.0
    """Seconds after which a connection or process without calls is closed."""
    memory_limit: int | None = None
    """Bytes of memory that each process of a command may allocate. Only Linux limits them."""
    max_catalog_bytes: int = 8 * 1024 * 1024
    """The most that the lists of the upstream may take together."""
    max_bytes: int = 64 * 1024 * 1024
    """The most that one message of the upstream may take."""
    policy: UpstreamPolicy | None = None
    """What of it callers get: see `UpstreamPolicy`."""
    trust: Literal["follow", "pin"] = "follow"
    """``pin`` hides a tool whose definition has changed until the operator accepts it."""
    revision: str | None = None
    """The date of the only revision to speak with the upstream; by default the newest that both sides know."""
    openapi: Any = None
    """Instead of a target: the URL or file of an OpenAPI document, the document itself, a FastAPI application, or
    `OpenApi` with what of it to offer."""

    def __repr__(self) -> str:
        """Leave out what may be secret: headers, variables, and targets that have them."""
        return f"UpstreamConfig(name={self.name!r})"

    @property
    def connects(self) -> bool:
        """Whether each person connects an account of their own, on the page of connections."""
        return isinstance(self.auth, PerUserOAuth)

    @property
    def names(self) -> Names:
        """The names of its items here."""
        return Names(self.name if self.prefix is None else self.prefix)

    def check(self) -> None:
        """Make sure that it can work.

        Raises:
            ValueError: it can't; the text says why.
        """
        if not self.name.strip():
            raise ValueError("An upstream needs a name")
        prefix = self.names.prefix
        if not is_prefix(prefix):
            raise ValueError(
                f"upstream {self.name!r}: the prefix {prefix!r} makes names that not every client can call: "
                f"{PREFIX_RULE}, or give another prefix="
            )
        if self.revision is not None and self.revision not in BY_DATE:
            raise ValueError(f"upstream {self.name!r}: there is no revision {self.revision}: use {', '.join(BY_DATE)}")
        policy = cast("object", self.policy)
        if policy is not None and not isinstance(policy, UpstreamPolicy):
            raise ValueError(f"upstream {self.name!r}: policy= takes an UpstreamPolicy, not {policy!r:.60}")
        if self.openapi is not None:
            from millstream.gateway.openapi import check_api  # noqa: PLC0415  few upstreams are APIs

            check_api(self)
        elif library_of(self.target):
            upstream_of(self.target)
        elif not hasattr(self.target, "running"):
            try:
                find(self.target, env=self.env, cwd=self.cwd)
            except TargetError as exc:
                raise ValueError(f"upstream {self.name!r}: {exc}") from exc


class UpstreamOptions(TypedDict, total=False):
    """Options of ``Server.upstream``; see `UpstreamConfig`."""

    prefix: str | None
    headers: Mapping[str, str]
    env: Mapping[str, str]
    cwd: str | None
    auth: Credentials | None
    forward_headers: Sequence[str]
    scale: Literal["shared", "per_principal", "per_session"]
    timeout: float
    connect_timeout: float
    start_timeout: float
    refresh_seconds: float
    max_processes: int
    spare_processes: int
    max_links: int
    idle_seconds: float
    memory_limit: int | None
    max_catalog_bytes: int
    max_bytes: int
    policy: UpstreamPolicy | None
    trust: Literal["follow", "pin"]
    revision: str | None
    openapi: Any


_NO_RULES = ItemRules()


class _SharedProgram:
    """A server object that outlives the connections to it."""

    __slots__ = ("_running",)

    def __init__(self, running: "Running") -> None:
        self._running = running

    @asynccontextmanager
    async def running(self) -> "AsyncGenerator[Running]":
        """Give what runs; leaving the block doesn't stop it."""
        yield self._running


class Upstream:
    """One upstream of a running gateway."""

    def __init__(
        self,
        config: UpstreamConfig,
        *,
        changed: Callable[["Upstream", Collection[str]], None],
        updated: Callable[[str], None],
        parked: ParkedCalls,
        store: Store,
        server: str,
    ) -> None:
        """Nothing connects before `open`.

        Args:
            config: of the upstream.
            changed: called when `catalog` is a new one, with the kinds of lists that the upstream said have changed.
            updated: called with the URI, as it is here, of a resource that changed.
            parked: the calls that wait for answers.
            store: keeps copies of the lists.
            server: the name of the gateway.
        """
        # Configuration
        self.config: UpstreamConfig = config
        self.names: Names = config.names
        self.credentials: UpstreamCredentials | None = None
        """What its connections carry; set before `open`."""
        self.lister: LinkKey = SHARED
        """The key of the connection that lists what it offers."""
        self.policy: Policy | None = None if config.policy is None else Policy(config.policy, config.names)
        self.pins: Pins | None = None
        """What may be offered, where definitions are pinned; set before `open`."""
        self._has_left = False
        """The person whose account lists what it offers has connected another one, or none."""
        self._changed = changed
        self._stored = StoredCatalog(store, server, config.name, config.target)
        self.parked: ParkedCalls = parked
        # Process
        self._reached = asyncio.Event()
        """Set when the breaker closes: no time to wait for the next attempt."""
        self.breaker: Breaker = Breaker(self._reached.set)
        self.refused: int = 0
        """Calls that weren't sent, because the breaker was open."""
        self.state: State = "connecting"
        self.reason: str = ""
        """Why it's degraded, for the operator. It may contain the address, so it's never sent to clients."""
        self.catalog: Catalog = Catalog()
        self.changed_at: float = 0.0
        """Unix time of the last change to its lists; 0 before the first one."""
        self._revision_known: Catalog | None = None
        self._is_plain = False
        """Whether one connection serves all, by the lists in `_revision_known`."""
        self.quarantined: list[Quarantined] = []
        """What isn't offered, because its definition isn't the accepted one."""
        self.links: Links = Links(self._connect, max_links=config.max_links)
        self.watches: ResourceWatches = ResourceWatches(
            self._shared_conversation, lambda uri: updated(self.names.uri(uri))
        )
        self.has_handshake: bool = config.revision is None
        """As far as is known, the upstream speaks a revision with a handshake, too, and may."""
        self.gateway: str = ""
        """The id of the gateway, see `cycles`; set before `open`."""
        self._in_cycle = False
        self.listed: asyncio.Event = asyncio.Event()
        """Set once there are lists, fresh or stored."""
        self.processes: UpstreamProcesses | None = None
        """Those of a command."""
        self._target: Any = upstream_of(config.target) if library_of(config.target) else config.target
        self._stack = AsyncExitStack()
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        """Set while something has changed that isn't listed yet."""
        self._announced: set[str] = set()
        """Kinds of lists that the upstream said have changed."""

    async def open(self, pool: ProcessPool) -> None:
        """Begin to connect, in the background.

        Args:
            pool: runs the processes of a command.
        """
        self.processes = self._add_processes(pool)
        if hasattr(self._target, "running"):
            program = cast("Embedded", self._target)
            running: AbstractAsyncContextManager[Running] = program.running()
            self._target = _SharedProgram(await self._stack.enter_async_context(running))
        elif isinstance(self._target, Program):
            self._stack.push_async_callback(self._target.settle)
        self._stack.push_async_callback(self.links.close)
        self._stack.push_async_callback(self.watches.close)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Close all connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._stack.aclose()

    @property
    def address(self) -> Any:
        """Where credentials are sent to, if that's a URL."""
        return self.config.target

    @property
    def is_application(self) -> bool:
        """It's an application of this process that isn't reached through MCP."""
        return False

    @property
    def revision(self) -> Revision:
        """What the upstream speaks, as far as is known."""
        return BY_DATE[self.catalog.revision]

    def key(self, call: "Call", abilities: bytes) -> LinkKey:
        """Return whose connection a call needs.

        Args:
            call: of the client.
            abilities: what the client can be asked, see `questions.abilities_of`.
        """
        principal = call.principal.id if call.principal is not None else ""
        program = self._protected
        if program is not None and call.principal is not None:
            principal = program.caller_of(call.principal)
        revision = BY_DATE.get(self.catalog.revision)
        per_request = revision is not None and not revision.handshake
        # Many servers that speak both eras can ask questions in one of them only: each client gets its own era.
        handshake = per_request and call.revision.handshake and self.has_handshake and can_ask(abilities)
        if self._serves_many:
            own_process = self.config.scale == "per_principal"
            return LinkKey(principal if own_process else "", handshake=handshake)
        session = "" if call.session is None else call.session.id
        if self.processes is not None:
            return LinkKey(principal, session, abilities, handshake=handshake)
        own = "" if self.credentials is None else self.credentials.link_key(call)
        if per_request and not handshake:  # each request says all there is to know
            return LinkKey(principal, credentials=own) if own or program is not None else SHARED
        return LinkKey(principal, session, abilities, own, handshake)

    @property
    def plain_link(self) -> Link | None:
        """The connection that all calls share, where it stands and each request says all there is to know."""
        if self._revision_known is not self.catalog:
            self._revision_known = self.catalog
            revision = BY_DATE.get(self.catalog.revision)
            program = isinstance(self._target, Program) and self._target.protected
            self._is_plain = revision is not None and not revision.handshake and self.processes is None and not program
        if not self._is_plain or self.breaker.is_open:
            return None
        return self.links.ready(SHARED)

    @property
    def _protected(self) -> Program | None:
        """A program that checks the tokens of its callers: each of them has connections of their own."""
        target = self._target
        return target if isinstance(target, Program) and target.protected else None

    @property
    def has_process_for_each(self) -> bool:
        """Callers have processes of their own, so the failure of one says nothing about another's."""
        return self.processes is not None and self.config.scale != "shared"

    @property
    def _serves_many(self) -> bool:
        """One process of a command serves several callers."""
        return self.processes is not None and self.config.scale != "per_session"

    def _add_processes(self, pool: ProcessPool) -> UpstreamProcesses | None:
        """Return the processes of a command; None for an upstream of another kind."""
        config = self.config
        target = self._target
        place = None if hasattr(target, "running") else find(target, env=config.env, cwd=config.cwd)
        if not isinstance(place, Command):
            return None
        return pool.add(
            config.name,
            place,
            limit=config.max_processes,
            idle_seconds=config.idle_seconds,
            memory_limit=config.memory_limit,
            spares=config.spare_processes,
            timeout=config.timeout,
            max_bytes=config.max_bytes,
        )

    def _connect(self, key: LinkKey) -> Link:
        # A process that serves several callers can't know which of them has what.
        shared = self._serves_many
        relays = Relays(self.config.name, ANYTHING if shared else key.capabilities, shared=shared)
        target, handshake = self._target, "\nhandshake" if key.handshake else ""
        if self.processes is not None:
            target = self.processes.target(f"{key.principal}\n{key.affinity}{handshake}")
        elif isinstance(target, Program):
            target = target.of(key.principal)
        conversation = relays.conversation = self._conversation(key, target, relays)
        conversation.incoming.observer = relays.receive
        return Link(key, conversation, relays)

    def _conversation(self, key: LinkKey, target: Any, relays: Relays) -> Conversation:
        config = self.config
        options = Options(
            name="millstream-gateway",
            connect_timeout=config.connect_timeout,
            max_bytes=config.max_bytes,
            cache=False,
            env=config.env,
            cwd=config.cwd,
            auth=None if self.credentials is None else self.credentials.auth(key.credentials),
        )
        return Conversation(
            target,
            relays,
            options,
            revision=NEWEST_HANDSHAKE.date if key.handshake else config.revision,
            headers=config.headers,
            timeout=config.timeout,
            on_log=None,
            on_change=None,
        )

    async def _shared_conversation(self) -> Conversation:
        return (await self.links.open(self.lister)).conversation

    # Lists

    async def _run(self) -> None:
        """Keep the lists fresh for as long as the gateway runs."""
        failures = 0
        while True:
            try:
                self.lister = await self._find_lister()
                link = await self.links.open(self.lister)
                link.calls += 1  # it's in use, however quiet it is
                try:
                    await self._list(link.conversation)
                    failures = 0
                    await self._keep_fresh(link.conversation)
                finally:
                    link.calls -= 1
            except (ClientError, OSError) as exc:
                if self._has_left:
                    continue
                if isinstance(exc, AccessDenied | NoCredentials) and self._is_personal:
                    # It's about one person's account: calls of others go on, and another one reads the lists next.
                    logger.warning("%s: a person's account can't list it: %s", self.config.name, exc)
                    self._pass_over(self.lister.credentials)
                else:
                    self._degrade(str(exc) or type(exc).__name__)
                failures += 1
            wait = min(_FIRST_WAIT * 2.0 ** min(failures, _MAX_DOUBLED), _LONGEST_WAIT)
            self._reached.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait * random.uniform(0.75, 1)):  # noqa: S311  it's no secret
                    await self._reached.wait()

    @property
    def _is_personal(self) -> bool:
        """Nothing can be asked of it without a person."""
        return self.credentials is not None and self.credentials.personal

    def _pass_over(self, lister: str) -> None:
        if self.credentials is not None:
            self.credentials.pass_over(lister)

    async def _find_lister(self) -> LinkKey:
        """Return whose connection reads the lists: one that all share, or that of a person who has connected."""
        credentials = self.credentials
        if credentials is None or not credentials.personal:
            return SHARED
        self.state = "ready" if self.catalog.revision else "connecting"
        self.reason = "waits for a person to connect, with whose account it can be listed"
        self.listed.set()
        lister = await credentials.lister()
        self._has_left = False
        return LinkKey(credentials=lister)

    def end_links_of(self, owner: str) -> None:
        """Close the connections of a person who has connected another account, or none."""
        if self.lister.credentials.partition("\n")[0] == owner:
            self._has_left = True
        self.links.end_of(owner)

    async def load(self) -> None:
        """Take the copy that the store has, so that no client waits for the upstream."""
        found = await self._stored.load()
        if found is not None and found.revision in BY_DATE:
            await self._offer(found)

    async def _list(self, conversation: Conversation) -> None:
        announced, self._announced = self._announced, set()
        try:
            found = await catalog.fetch(conversation, max_bytes=self.config.max_catalog_bytes)
        except BaseException:
            self._announced |= announced
            raise
        if self.gateway in announced_ids(found.capabilities):
            self._note_cycle()
            return
        self._in_cycle = False
        if self._is_personal and found.hints.get("resources", (0, True))[1]:
            found.resources = {}  # they may be the lister's own, and others would see them
        found.taken = self._stored.time()
        renew = found.taken - self.catalog.taken > catalog.STORED_SECONDS / 4
        await self._offer(found, announced)
        self._recover()
        await self._stored.save(found, renew=renew)

    async def _offer(self, found: Catalog, announced: Collection[str] = ()) -> None:
        """Offer new lists, without what isn't accepted."""
        if self.pins is not None:
            found, quarantined = await self.pins.sort(found)
            if quarantined != self.quarantined:
                names = ", ".join(each.name for each in quarantined) or "nothing"
                logger.warning(
                    "%s: left out until the operator accepts their definitions (millstream gateway accept): %s",
                    self.config.name,
                    names,
                )
            self.quarantined = quarantined
        before, self.catalog = self.catalog, found
        if before.taken and any(getattr(found, kind) != getattr(before, kind) for kind in catalog.METHODS):
            self.changed_at = found.taken
        self._changed(self, announced)
        self.listed.set()

    def is_quarantined(self, uri: str) -> bool:
        """Return whether the definition of a resource isn't the accepted one."""
        return any(each.kind == "resources" and each.name == uri for each in self.quarantined)

    def refresh(self) -> None:
        """Read the lists again now."""
        self._news.set()

    def rules(self, kind: str, own_name: str) -> ItemRules | None:
        """Return the rules of an item; None if the policy leaves it out."""
        return _NO_RULES if self.policy is None else self.policy.item(kind, own_name)

    async def _keep_fresh(self, conversation: Conversation) -> None:
        """List again when the upstream says that something changed, and when the lists are no longer fresh."""
        watching = asyncio.get_running_loop().create_task(self._watch(conversation))
        try:
            while True:
                seconds = max(self.catalog.fresh_seconds or self.config.refresh_seconds, _SHORTEST_REFRESH)
                try:
                    async with asyncio.timeout(seconds * random.uniform(1, 1.2)):  # noqa: S311  it's no secret
                        await self._news.wait()
                except TimeoutError:
                    if await self._adopt(seconds):
                        continue
                self._news.clear()
                began = monotonic()
                await self._list(conversation)
                # An upstream that changes all the time doesn't get all the time.
                await asyncio.sleep(min(_PAUSE * (monotonic() - began), _SHORTEST_REFRESH))
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _adopt(self, seconds: float) -> bool:
        """Use the stored copy if another worker has just made it. Return whether it's fresh."""
        found = await self._stored.load() if self._stored.shared else None
        if found is None or found.revision not in BY_DATE or self._stored.time() - found.taken > seconds / 2:
            return False
        await self._offer(found)
        return True

    async def _watch(self, conversation: Conversation) -> None:
        wanted = SubscriptionFilter(True, True, True, [])
        try:
            async with conversation.watch(wanted) as changes:
                async for change in changes:
                    if change.kind in _LISTS:
                        self._announced.add(change.kind)
                    self._news.set()
        except Failure as exc:
            logger.debug("%s tells no changes: %s", self.config.name, exc)
        except ClientError as exc:
            logger.debug("%s: the subscription ended: %s", self.config.name, exc)
            self._news.set()

    # State

    def _degrade(self, reason: str) -> None:
        if self.state != "degraded" or self.reason != reason:
            logger.warning("The upstream %s can't be reached: %s", self.config.name, reason)
        self.state, self.reason = "degraded", reason
        self.listed.set()  # waiting for it longer would only keep the others waiting
        self.breaker.trip()

    def _note_cycle(self) -> None:
        """Take note that the upstream leads back to this gateway, so nothing of it is offered any more."""
        if not self._in_cycle:
            self._in_cycle = True
            self.catalog = Catalog(revision=self.catalog.revision)
            self._changed(self, ())
        self.listed.set()
        self._degrade("it leads back to this gateway: take one of the two out of the other's upstreams")

    def _recover(self) -> None:
        if self.state == "degraded":
            logger.warning("The upstream %s can be reached again", self.config.name)
        self.state, self.reason = "ready", ""
        self.breaker.reset()

    def describe(self) -> dict[str, Any]:
        """Return state and figures for operators. `reason` may name addresses: it's for those who may see them."""
        found = self.catalog
        processes = self.processes
        return {
            "name": self.config.name,
            "prefix": self.names.prefix,
            "state": self.state,
            "reason": self.reason,
            "breaker": "open" if self.breaker.is_open else "closed",
            "revision": found.revision,
            "listed_at": found.taken,
            "changed_at": self.changed_at,
            "items": {kind: len(getattr(found, kind)) for kind in catalog.METHODS},
            "links": len(self.links),
            "processes": None if processes is None else msgspec.to_builtins(processes.describe()),
            "refused": self.refused,
            **self.breaker.describe(),
        }
