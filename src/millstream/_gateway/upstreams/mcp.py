"""An upstream that speaks MCP."""

import asyncio
import contextlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from itertools import count
from typing import Any

from msgspec import Raw, Struct, structs

from millstream import ProtocolError, __version__
from millstream._gateway.catalog.catalog import (
    Catalog,
    Pins,
    StoredCatalog,
)
from millstream._gateway.errors import EndedHere, InUse
from millstream._gateway.log import logger
from millstream._gateway.messages.route import CallRoute, UpstreamFacts, Way, choose_way, plan_route
from millstream._gateway.messages.router import CHANGES, MessageRouter, OwnSession, SessionRecipient, message_for_client
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._gateway.programs.libraries import library_of
from millstream._gateway.programs.program import Program, caller_of, upstream_of
from millstream._gateway.questions.abilities import (
    ALL_ABILITIES,
    PLAIN_ABILITIES,
    abilities_of,
    can_ask,
    capabilities_of,
    limit_abilities,
)
from millstream._gateway.upstreams.links import (
    MAX_STREAMS,
    SHARED_KEY,
    ClientIdentity,
    Link,
    LinkKey,
    Links,
    UpstreamSessions,
)
from millstream._gateway.upstreams.lists import ListKeeper, McpLists
from millstream._gateway.upstreams.resource_watches import ResourceWatches
from millstream._gateway.upstreams.upstream import NAME, Gateway, ItemClasses, Upstream
from millstream._http.client import Inflow
from millstream._override import override
from millstream._protocol.jsonrpc import decode_members
from millstream._protocol.metadata import Implementation
from millstream._protocol.notifications import ResourceUpdatedNotificationParams
from millstream._recent import Recent
from millstream._server.calls.call import Call
from millstream._server.calls.services import ServerChange, Services, SessionChange
from millstream._server.calls.sessions import Session
from millstream._server.calls.vault import Vault
from millstream._server.peers import HolderChange
from millstream._server.pool import Pool
from millstream._text import pluralize
from millstream.client import (
    ClientError,
    ConnectionLost,
    InvalidResponse,
    Options,
    RequestTimeout,
    ServerError,
    TransportFactory,
)
from millstream.client._recovery import NO_HANDSHAKE, ONLY_SESSION, UNREACHABLE, has_only_session, lacks_handshake
from millstream.client._requests import Era
from millstream.client._targets import Remote, find_server
from millstream.client.lowlevel import Command, Conversation, RawRequest
from millstream.protocol import (
    BY_DATE,
    INVALID_REQUEST,
    MALFORMED,
    METHOD_NOT_FOUND,
    NEWEST,
    NEWEST_HANDSHAKE,
    SUBSCRIPTION_KEY,
    TASKS,
    Json,
    Revision,
    decoder,
    encode,
    members,
)

_decode_resource = decoder(ResourceUpdatedNotificationParams)

_OTHER_CONNECTIONS = 28
"""HTTP connections for lists, subscriptions, and polls of tasks, in addition to connections for calls."""
_MAX_FAILURES = 3
"""Consecutive failures of calls in a session after which it's checked, whatever the reason."""
_MAX_INFO = 16 * 1024
"""Maximum size of a client's self-description to pass on, in bytes."""
_MAX_PLAIN_METAS = 256
_MAX_NEWER_CALLS = 1000
_MEMBER = re.compile(r"\b(?:capabilit\w*|context|elicitation|form|sampling|tools|url)\b", re.IGNORECASE)
"""Members of capabilities that strict servers name when they refuse `initialize`."""


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


class _SharedServer(Struct, frozen=True):
    """A server object that outlives the connections to it."""

    running: "Callable[[], AbstractAsyncContextManager[Any]]"


class McpUpstream(Upstream):
    """An upstream that speaks MCP: its facts, the routes that follow from them, and its connections."""

    lists: McpLists  # pyright: ignore[reportIncompatibleVariableOverride]  set once
    _shared_abilities = ALL_ABILITIES
    """Abilities that connections of several callers declare."""
    serves_one = False
    """Whether it's a command that serves only this server's one client. It starts when that client connects."""
    keeps_sessions: bool | None = None
    """Whether its connections are sessions of the handshake era. None until the first one is open."""
    _only_principal: str | None = None
    """Principal that uses the process that reads the lists. None until a principal has called, and then empty without
    one.
    """
    _logged_keeping: bool | None = None
    """Value of `keeps_sessions` when the log last described what callers share."""
    _uses_http = False
    _is_websocket = False
    """Whether messages on a connection don't name their call, so that principals can't share one."""

    def __init__(self, config: UpstreamConfig, gateway: Gateway, item_classes: ItemClasses) -> None:
        """See `Upstream`."""
        super().__init__(config, gateway, item_classes)
        self._era = Era()
        self._routes: dict[tuple[str, bool, bool, bool], CallRoute] = {}
        """Client's revision, whether it has a session, whether the caller is known, and whether the newer era is needed
        -> route. Emptied by each new fact.
        """
        self._calls = count(1)
        self._open_questions = Counter[tuple[str, bytes]]()
        """See `MessageRouter`."""
        self.plain_metas: Recent[tuple[bytes, str, bool], bytes] = Recent(_MAX_PLAIN_METAS)
        """`_meta` of requests, by the client's `_meta` and revision."""
        places = Pool(config.max_connections, several=gateway.pool.places.several)
        clock = gateway.host.services.clock
        host, outlives = gateway.host, gateway.store_outlives
        records = UpstreamSessions(Vault(host.services), (gateway.name, config.name, config.address))
        self.links: Links = Links(
            self._make_link, self._take_link, gateway.sessions, places, config.idle_seconds, clock, records,
            lambda: outlives and host.dispatcher.stopping, config.keeps_state,
            lambda session: gateway.host.services.peers.broadcast(HolderChange(session)),
        )  # fmt: skip
        self.watches: ResourceWatches = ResourceWatches(
            config.name,
            self._shared_conversation,
            lambda uri: gateway.host.services.changes.emit(ServerChange("updated", self.names.uri(uri))),
        )
        self.has_handshake: bool = config.revision is None
        """Whether a shared process can use the handshake. Assumed until a handshake fails."""
        self.forget_facts()
        self._target: Any = upstream_of(config.target) if library_of(config.target) else config.target

    @override
    def _make_lists(self, stored: StoredCatalog, pins: Pins | None) -> ListKeeper[Any]:
        return McpLists(self, stored, pins)

    @override
    async def open(self) -> None:
        """Start connecting, in the background."""
        config, pool = self.config, self.gateway.pool
        match find_server(self._target, env=config.env, cwd=config.cwd):
            case Remote() as remote:
                self._uses_http = remote.url.scheme in ("http", "https")
                self._is_websocket = not self._uses_http
            case Command() as command:
                self.processes = pool.add(config, command)
                self.stack.push_async_callback(pool.remove, self.processes)
                self.processes.on_hang = self._take_hang
                self.serves_one = self.is_relayed and self.gateway.host.has_one_client
            case Program() as program:
                program.transport = "stdio" if self.gateway.host.has_one_client else "streamable-http"
                self.stack.push_async_callback(program.settle)
            case TransportFactory():
                pass
            case server:
                running = await self.stack.enter_async_context(server.running())
                self._target = _SharedServer(lambda: nullcontext(running))
        host = self.gateway.host
        host.services.session_ends.append(self.links.end_session)
        self.stack.callback(host.services.session_ends.remove, self.links.end_session)
        self.stack.callback(host.every_second(self.links.end_idle))
        self.stack.push_async_callback(self.links.close)
        self.stack.push_async_callback(self.watches.close)
        self.lists.always_asked = self.is_relayed or self.is_program
        self.lists.tasks.spawn(self.lists.run())

    @override
    def become(self, config: UpstreamConfig) -> None:
        """See `Upstream`."""
        super().become(config)
        self.links.idle_seconds = config.idle_seconds
        self.links.places.resize(config.max_connections)
        for link in self.links.links.values():
            link.conversation.requests.timeout = config.timeout
            link.conversation.requests.resize(config.max_connections + MAX_STREAMS + _OTHER_CONNECTIONS)
            if link.places is not None:
                link.places.resize(config.max_connections)
        if self.processes is not None:
            self.processes.become(config)

    def _take_hang(self, error: ConnectionLost) -> None:
        """Handle that a hung process was killed. Reading the lists starts its successor."""
        if not self.has_separate_processes:
            self.lists.degrade(error)
            self.lists.refresh()
        else:
            logger.warning("%s: %s", self.name, error)

    @property
    def has_replied(self) -> bool:
        """Whether the upstream has responded since the start. If it rejected the gateway, clients get the upstream's
        reason."""
        return (
            self.serves_one
            or bool(self.catalog.revision)
            or (self.lists.state == "degraded" and not self.breaker.is_open)
        )

    def key(self, call: Call, abilities: bytes, name: str) -> LinkKey:
        """Return the key of the connection that a call needs.

        Args:
            call: The client's call.
            abilities: The questions that the client can answer (see `abilities_of`).
            name: Upstream's name of the tool or prompt, or URI of the resource.
        """
        needs_newer = bool(self.newer_calls) and (call.method, name) in self.newer_calls
        route, principal, credentials = self.route(call, needs_newer=needs_newer), "", ""
        if route.takes_credentials and self.credentials is not None:
            credentials = self.credentials.link_key(call)
        if call.principal is not None and (route.by_principal or credentials):
            protected, binding = self._protected_program is not None, call.principal.binding.hex()
            principal = caller_of(call.principal) if protected else "" if self._lists_for(binding) else binding
        key = LinkKey(
            principal,
            call.session.id if route.by_session and call.session is not None else "",
            abilities if route.by_abilities else b"",
            credentials,
            route.handshake,
            route.own,
            next(self._calls) if route.once else 0,
        )
        # The connection for lists declares more than this caller has.
        return structs.replace(key, capabilities=b"{}") if key == self.lister and route.by_abilities else key

    def _lists_for(self, binding: str) -> bool:
        """Return whether a principal uses the process that reads the lists, because it was the only one that could sign
        in when the first one called. It keeps the process, and its state, when others can, or take its place.
        """
        if self._only_principal is None:
            self._only_principal = "" if self._has_several_principals or self.config.isolation else binding
        return self._serves_several and binding == self._only_principal

    @property
    def lister(self) -> LinkKey:
        """Key of the connection that reads the lists."""
        return self.lists.lister

    @property
    @override
    def may_have_own(self) -> bool:
        """See `Upstream`."""
        return self.gives_sessions(NEWEST_HANDSHAKE) and not self._shares_processes

    @property
    @override
    def waits_for_clients(self) -> bool:
        """See `Upstream`."""
        return self.is_relayed and (self.is_program or self.serves_one)

    @property
    @override
    def relayed_sessions(self) -> Collection[str]:
        """See `Upstream`."""
        own = self.links.own.items() if self.is_relayed else ()
        return {id for id, link in own if link.open_task is None and link.conversation.transport.has_session}

    @property
    @override
    def link_count(self) -> int:
        """See `Upstream`."""
        return len(self.links)

    @override
    def take_lists(self, found: Catalog, announced: Collection[str]) -> None:
        """See `Upstream`."""
        before = self.revision
        self.forget_routes()
        super().take_lists(found, announced)
        if self.revision.handshake is not before.handshake:
            self.watches.start(handshake=self.revision.handshake)
        if self.keeps_sessions is not self._logged_keeping:
            self._logged_keeping = self.keeps_sessions
            if text := self.sharing:
                logger.log(logging.INFO if self._facts().is_by_principal else logging.WARNING, "Isolation: %s", text)

    def forget_facts(self) -> None:
        """Assume nothing about the upstream, because another server may have taken its place."""
        self._sessionless: set[Revision] = set()
        """Clients' revisions in which it created no session. It may create sessions in others."""
        self._answered: set[Revision] = set()
        """Those of them in which it nevertheless answers `initialize`, and serves clients."""
        self.newer_calls: Recent[tuple[str, str], None] = Recent(_MAX_NEWER_CALLS)
        """Methods and names that failed in the handshake era, because they need tasks, or a session to ask in."""
        self.has_one_session = False
        """Whether it has refused another session beside the one that reads the lists."""
        self.forget_routes()

    def gives_sessions(self, revision: Revision) -> bool:
        """Return whether clients of a revision can have dedicated sessions. It's assumed until the upstream doesn't
        create one.
        """
        pinned = self.config.revision
        has_handshake = pinned is None or BY_DATE[pinned].handshake
        return has_handshake and self.config.keeps_state and revision not in self._sessionless

    def declare_less(self, exc: ServerError) -> bool:
        """Declare capabilities in their oldest form, after `initialize` was refused with an error that names a member.
        Return False if that can't be the reason.
        """
        if self._shared_abilities == PLAIN_ABILITIES or _MEMBER.search(f"{exc.message} {exc.data}") is None:
            return False
        logger.info("%s doesn't understand its client's capabilities; declaring less: %s", self.name, exc)
        self._shared_abilities = PLAIN_ABILITIES
        return True

    def lose_handshake(self) -> None:
        """Stop using the handshake for a shared process, because it has failed."""
        self.has_handshake = False
        self.forget_routes()

    def route(self, call: Call, *, needs_newer: bool = False) -> CallRoute:
        """Return how a call reaches the upstream."""
        key = call.revision.date, call.session is not None, call.principal is not None, needs_newer
        route = self._routes.get(key)
        if route is None:
            route = plan_route(
                call.revision,
                self._facts(call.revision),
                has_session=key[1],
                is_known=key[2] or self.gateway.host.has_one_client,
                needs_newer=needs_newer,
            )
            if self.catalog.revision:
                self._routes[key] = route
        return route

    def _facts(self, client: Revision = NEWEST_HANDSHAKE) -> UpstreamFacts:
        protected = self._protected_program is not None
        return UpstreamFacts(
            revision=self.revision,
            is_relayed=self.is_relayed,
            gives_sessions=self.gives_sessions(client),
            answers_handshake=client in self._answered,
            has_processes=self.processes is not None and not (self.serves_one and not self.revision.handshake),
            serves_several=self._serves_several,
            isolation=self.config.isolation,
            is_remote=self._uses_http or self._is_websocket,
            keeps_state=(keeps_state := self.config.keeps_state),
            keeps_sessions=keeps_state and (self.in_sessions or self.keeps_sessions is not False),
            has_principals=self.gateway.host.guard is not None,
            separates_principals=protected or self._is_websocket,
            has_credentials=self.credentials is not None,
            in_sessions=self.in_sessions,
            names_calls=not (self._is_websocket or self._era.name == "http+sse" or self.has_tasks),
        )

    @property
    @override
    def may_ask(self) -> bool:
        """See `Upstream`."""
        return self.revision.handshake or self.in_sessions or super().may_ask

    @property
    def _has_several_principals(self) -> bool:
        guard = self.gateway.host.guard
        return guard is not None and not guard.has_one()

    @property
    @override
    def keeps_callers(self) -> bool:
        """See `Upstream`."""
        facts = self._facts()
        return facts.keeps_sessions and (facts.is_by_principal or not facts.serves_several)

    @property
    @override
    def has_separate_processes(self) -> bool:
        """See `Upstream`."""
        has_several = self.config.isolation is not None or self._has_several_principals
        separates = not self._shares_processes or (has_several and self._facts().is_by_principal)
        return self.processes is not None and separates

    @property
    @override
    def sharing(self) -> str:
        """See `Upstream`."""
        return _describe_sharing(self, self._facts())

    def _take_link(self, link: Link) -> None:
        """Learn from an open connection."""
        if link.key.own:  # in the client's era
            return
        conversation = link.conversation
        keeps_sessions = conversation.negotiated.revision.handshake and conversation.transport.has_session
        if keeps_sessions is not self.keeps_sessions:
            self.keeps_sessions = keeps_sessions
            self.forget_routes()

    def forget_routes(self) -> None:
        """Plan the routes again, because a fact has changed."""
        self._routes.clear()

    async def open_own(self, call: Call, key: LinkKey) -> Link | None:
        """Return the dedicated connection of a call's session, opened on first use, or None if the upstream creates no
        sessions and doesn't serve the client's era without.

        Raises:
            ServerError: The upstream rejects this client.
            ProtocolError: There are too many dedicated sessions.
            ClientError: The upstream can't be reached.
        """
        session, links = call.session, self.links
        assert session is not None  # noqa: S101  the channel requires one
        link = links.own.get(session.id)
        was_here = session.id in links.known or session.current  # else, the store has forgotten whether there was one
        if not was_here if link is None else link.key != key:  # it was opened with different credentials
            links.lost.keep(session.id, EndedHere)
            links.end_session(session.id)
        info = _info_of(call) if self.config.forward_client else encode(Implementation(NAME, __version__))
        declared = capabilities_of(call, self.policy.questions, is_relayed=self.is_relayed)
        identity = ClientIdentity(call.revision.date, Raw(info), declared)
        peer = "" if call.origin is None else call.origin.peer
        exempt = call.principal is None and self.gateway.proxies.exempts(peer)
        try:
            link = await links.open(key, "" if exempt else call.owner, identity)
        except NO_HANDSHAKE as exc:
            if has_only_session(exc):
                self.share_session(call, exc)
                return None
            # Without an error of the protocol, an upstream of the handshake era has only failed.
            if not lacks_handshake(exc) or (self.revision.handshake and not isinstance(exc, ServerError)):
                raise
            if self.revision.handshake:
                self.lists.refresh_after_loss()  # a server without a handshake has taken its place
            link, why = None, str(exc)
            self._answered.discard(call.revision)
            self.forget_routes()
        else:
            link.expires_at = session.expires_at
            if link.conversation.transport.has_session:
                return link
            why = "It doesn't issue session ids."
            if self._uses_http and not self.revision.handshake:
                self._answered.add(call.revision)
            else:
                links.end(link)
                link = None
        if self.gives_sessions(call.revision):
            logger.info("%s has no sessions for clients of %s: %s", self.name, call.revision.date, why)
            self._sessionless.add(call.revision)
            self.forget_routes()
        return link

    def share_session(self, call: Call, refusal: Exception) -> LinkKey:
        """Return the key of the upstream's only session, after it has refused another one.

        Raises:
            ServerError: This caller can't share it, or it isn't the gateway's.
        """
        if self.lists.state != "ready" or getattr(refusal, "code", 0) != INVALID_REQUEST:
            self.lists.refresh()
            raise ServerError(INVALID_REQUEST, f"The server {self.name!r} refuses another session. {ONLY_SESSION}")
        if not self.has_one_session:
            self.has_one_session = True
            self.forget_routes()
            logger.warning("Isolation: %s", self.sharing)
        key = self.key(call, b"", "")
        if key != self.lister:
            raise ServerError(INVALID_REQUEST, _describe_refusal(self, key))
        return key

    def abilities(self, call: Call) -> bytes:
        """Return the questions that the upstream can ask a call's client (see `abilities_of`)."""
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
    def in_sessions(self) -> bool:
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
        self._routes.clear()
        self.lists.refresh()
        return remedy

    def find_plain_link(self, call: Call, way: Way) -> Link | None:
        """Return the open connection for a call that is one request and one result: the one that all share, or in a
        relay, the dedicated session of its client. Return None if the call needs more.
        """
        route = self.route(call)
        if (
            not route.is_plain
            or self.breaker.is_open
            or call.token is not None
            or (
                way is Way.PASS
                and (
                    call.revision.handshake
                    or call.tee is not None
                    or call.log_level
                    or call.rounds is not None
                    or call.responses
                    or (call.services.forwarded_extensions and call.client.extensions)
                )
            )
        ):
            return None
        links, session = self.links, call.session
        if not route.own:
            link = links.links.get(SHARED_KEY)
        elif session is None or session.id in links.lost or (link := links.own.get(session.id)) is None:
            return None
        else:
            link.expires_at = session.expires_at
        if link is None or link.open_task is not None or 0 < call.started <= links.told_at(link.key):
            return None
        source = link.conversation.negotiated.revision
        return link if choose_way(call.revision, source, is_relayed=self.is_relayed) is way else None

    @property
    def _protected_program(self) -> Program | None:
        """The program, if it checks tokens, so that each caller needs separate connections."""
        target = self._target
        return target if isinstance(target, Program) and target.protected else None

    @property
    def _shares_processes(self) -> bool:
        """Whether one process of a command serves several callers."""
        return self.processes is not None and self.config.isolation != "per_session" and not self.serves_one

    @property
    def _serves_several(self) -> bool:
        """Whether one process of a command, or the only session at a URL, serves several callers."""
        return self._shares_processes or (self.has_one_session and self.config.isolation != "per_session")

    def _make_link(self, key: LinkKey, owner: str, client: ClientIdentity | None = None) -> Link:
        # A process that serves several callers can't distinguish their capabilities. Servers list by capabilities, so
        # the lists are read with all that clients can have.
        lists = self.lists
        config, everything = self.config, self._shares_processes or key == lists.lister
        own = (
            None
            if client is None
            else OwnSession(
                key.affinity, client.capabilities, self.is_relayed, self._uses_http or self.is_program, self._hides
            )
        )
        router = MessageRouter(
            config.name,
            limit_abilities(self._shared_abilities, self.policy.questions) if everything else key.capabilities,
            sender=lambda: self.sender,
            in_process=isinstance(self._target, _SharedServer),
            log=None if self.processes is None else self.processes.log.write,
            on_change=partial(self._take_change, key),
            own=own,
            send=self._pass_on,
            find_client=partial(_find_client, self, owner)
            if client is not None or self.gateway.host.has_one_client
            else None,
            open_questions=self._open_questions,
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
        conversation = router.conversation = Conversation(
            target,
            router,
            Options(
                name=NAME,
                connect_timeout=config.connect_timeout,
                max_bytes=config.max_bytes,
                cache=False,
                env=config.env,
                cwd=config.cwd,
                auth=auth,
                max_connections=config.max_connections + MAX_STREAMS + _OTHER_CONNECTIONS,
            ),
            revision=revision,
            headers=config.headers if forwarded is None else {**config.headers, **forwarded},
            timeout=config.timeout * (lists.start_factor if key == lists.lister else 1),
            observer=router.receive,
            about=client.info if client else None,
            reconnects=client is None,
        )
        conversation.requests.inflow = Inflow(self.gateway.arriving, config.name)
        if client is None:
            conversation.requests.era = self._era
        conversation.requests.incoming.watchers.add(lists.take_interruption)
        places = (
            Pool(config.max_connections, several=self.links.places.several) if self._uses_http and not owner else None
        )
        return Link(key, owner, conversation, router, places)

    async def _shared_conversation(self) -> Conversation:
        return (await self.links.open(self.lister)).conversation

    @override
    def end_links_of(self, owner: str) -> None:
        """Close the connections of a user who has reconnected or disconnected."""
        self.lists.leave(owner)
        self.links.end_links_of(owner)

    @override
    def is_watchable(self) -> bool:
        """See `Upstream`."""
        if self.credentials is not None and self.credentials.personal:  # another user's account would watch them
            return False
        return self._has_subscriptions

    @property
    def _has_subscriptions(self) -> bool:
        return bool(members(self.catalog.capabilities.get("resources")).get("subscribe"))

    @property
    def refuses_subscriptions(self) -> bool:
        """Whether nobody hears of updates, because the upstream has no subscriptions, and no sessions of its clients
        either."""
        return self._shares_processes and bool(self.catalog.revision) and not self._has_subscriptions

    def _hides(self, params: bytes) -> bool:
        """Return whether the policy has rules for the resource of an update. Those who may read it subscribe here."""
        if self.policy.is_empty:
            return False
        try:
            return self.policy.changes("resources", _decode_resource(params).uri)
        except MALFORMED:
            return True

    def _pass_on(self, session: str, method: str, params: bytes) -> None:
        """Send a client's session a notification that arrived outside of its calls."""
        _send_to_session(self.gateway.host.services, session, message_for_client(method, params))

    def _take_change(self, key: LinkKey, method: str, params: bytes) -> None:
        """Handle an announced change."""
        if kind := CHANGES[method]:
            self.lists.note(kind)
            return
        with contextlib.suppress(*MALFORMED):
            update = _decode_resource(params)
            if key == self.lister:
                if self.revision.handshake or SUBSCRIPTION_KEY in update.meta:
                    self.watches.note(update.uri)
            elif key.affinity and not self.watches.reports(update.uri):
                change = SessionChange("updated", self.names.uri(update.uri), session=key.affinity)
                self.gateway.host.services.changes.emit(change)

    @property
    def is_program(self) -> bool:
        """Whether the target is another library's program in this process."""
        return isinstance(self._target, Program)

    async def probe(self) -> ClientError | None:
        """Return why the upstream doesn't respond to the gateway's own request, or None if it does."""
        try:
            async with asyncio.timeout(self.config.connect_timeout):
                if self.processes is None and not self.has_one_session:  # callers may be using all other connections
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
        except UNREACHABLE as exc:
            return exc
        except TimeoutError:
            return RequestTimeout(f"It didn't respond within {pluralize(self.config.connect_timeout, 'second')}.")
        except (ClientError, OSError):
            return None  # the upstream has responded, or isn't to blame
        await conversation.close()
        return None

    def suspect(self, link: Link | None, error: ClientError | OSError) -> None:
        """Check the session of a request that failed. If it's gone, the next call opens another one.

        Upstreams say in different ways that they don't know a session, so what counts is whether it still works.
        """
        by_url = self.processes is None and not self.is_program and not self.has_one_session
        if link is None or link.ended or not by_url or not link.conversation.transport.has_session:
            return
        link.failures += 1
        if isinstance(error, ServerError):
            may_be_gone = "session" in error.message.lower()
        else:
            status = getattr(error, "status", 0)
            lost = not status and isinstance(error, ConnectionLost | InvalidResponse)
            may_be_gone = lost or 400 <= status < 500
        if may_be_gone or link.failures >= _MAX_FAILURES:
            self.lists.tasks.spawn(self._check_session(link))

    async def _check_session(self, link: Link) -> None:
        if link.checked or link.is_lost or not link.conversation.negotiated.revision.handshake:
            return
        may_be_busy, link.checked = link.failures < _MAX_FAILURES, True
        other = self._make_link(LinkKey(affinity="#check", credentials=link.key.credentials), "")
        try:
            if await self._responds(link, may_be_busy=may_be_busy):
                link.failures = 0
                return
            async with asyncio.timeout(self.config.connect_timeout):
                await other.conversation.start()
            if not await self._responds(other):
                return
            # The upstream may have just come back.
            if not await self._responds(link, may_be_busy=may_be_busy):
                logger.info("%s: a session that doesn't work any more is replaced", self.name)
                link.conversation.requests.end_session()
                self.lists.refresh()
        except (ClientError, OSError, TimeoutError) as exc:
            logger.debug("%s: a session can't be compared with a new one: %s", self.name, exc)
        finally:
            link.checked = False
            await other.conversation.close()

    async def _responds(self, link: Link, *, may_be_busy: bool = False) -> bool:
        """Return whether a session responds to a ping, is busy with a call that sends messages meanwhile, or may be
        busy without a response.
        """
        ask = RawRequest(method="ping", timeout=self.config.connect_timeout, repeatable=True)
        link.router.heard = False
        try:
            await link.conversation.requests.ask(ask)
        except RequestTimeout:
            return may_be_busy or link.router.heard
        except (ClientError, OSError):
            return False
        return True


def _describe_sharing(upstream: McpUpstream, facts: UpstreamFacts) -> str:
    """Return which callers share state, and how to change that, or an empty string."""
    name, has_one = upstream.name, upstream.gateway.host.has_one_client
    if upstream.has_one_session:
        if not facts.serves_several:
            return f'{name} allows one session, so isolation = "{facts.isolation}" refuses calls. {_SHARE}'
        if facts.is_by_principal:
            return f"{name} allows one session, which several signed-in callers can't share. {_SHARE}"
        who = f"all callers of {name}" if upstream.credentials is None else f"callers of {name} with equal credentials"
        return f"{who} share the only session that it allows, and what it remembers"
    if facts.serves_several and not has_one:
        memory = upstream.processes.largest_memory() if upstream.processes else 0
        size = f" Each takes about {-(-memory // 2**20)} MiB." if memory else ""
        if facts.is_by_principal:
            return (
                f"each signed-in caller of {name} has a process, at most {upstream.config.max_processes} per worker, "
                f'because it may keep state.{size} To share one process: isolation = "shared"'
            )
        if facts.keeps_sessions:
            return f"all callers of {name} share one process, and what it remembers.{size}"
    if (
        upstream.keeps_sessions
        and facts.keeps_state
        and not facts.serves_several
        and upstream.gateway.host.guard is None
        and not has_one
    ):
        if facts.isolation == "shared" or upstream.is_program:
            return f"callers of {name} that have no session here share one session there, and what it remembers"
        how = "have to use an earlier one" if upstream.is_relayed else "get a session for each call"
        who = f"clients of revision {NEWEST.date}, which has none,"
        return f'{name} keeps sessions, so {who} {how}. To let them share one: isolation = "shared"'
    return ""


def _describe_refusal(upstream: McpUpstream, key: LinkKey) -> str:
    """Return why a caller can't share the only session of an upstream, and what to do."""
    if key.credentials:
        why = "and callers with credentials of their own there can't share it."
    elif upstream.config.isolation is not None:
        why = f'and isolation = "{upstream.config.isolation}" keeps callers apart. {_SHARE}'
    else:
        why = f"and signed-in callers don't share one by default. {_SHARE}"
    return f"The server {upstream.name!r} allows one session, {why}"


_SHARE = 'Let the server allow several, or to let callers share it: isolation = "shared"'


def _send_to_session(services: Services, session: str, message: bytes) -> None:
    services.changes.emit(SessionChange("", session=session, message=message))


async def _find_client(upstream: McpUpstream, owner: str, session: str, waits: bool) -> SessionRecipient | None:
    """Return the client of a session, or the only one, if it can be asked outside its calls. Servers ask as soon as the
    handshake ends, which the client may not know yet, so wait for it if needed.

    Args:
        upstream: The upstream that asks.
        owner: The caller whose share of open questions it uses, in all its sessions together, or empty for a client
            without a share.
        session: Id of the session, or empty for the only one.
        waits: Whether to wait.

    Raises:
        ProtocolError: It can't be asked.
    """
    services, policy = upstream.gateway.host.services, upstream.policy
    found = services.changes.find_session(session)
    if found is None:
        if not waits:
            return None
        found = await _wait_for_session(services, session, upstream.config.start_timeout)

    async def send(message: bytes) -> None:
        _send_to_session(services, found.id, message)

    async def ask(method: str, params: Json) -> bytes:
        return await services.questions.ask(send, method, params, owner=owner or found.id, scope=found.id)

    return SessionRecipient(found, policy.questions, policy.redactor("", ""), ask)


async def _wait_for_session(services: Services, session: str, seconds: float) -> Session:
    """Return a session, or the only one, once its client can be asked outside its calls.

    Raises:
        ProtocolError: That takes too long.
    """
    try:
        async with asyncio.timeout(seconds):
            return await services.changes.wait_for_session(session)
    except TimeoutError:
        text = "The client has no open stream that can carry a question."
        raise ProtocolError(METHOD_NOT_FOUND, text) from None
