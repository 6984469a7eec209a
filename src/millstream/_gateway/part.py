"""The gateway as a part of the server: connects to upstreams, and keeps their items in the registry."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from millstream._gateway.calls.failures import describe_fault
from millstream._gateway.calls.items import MCP_ITEMS, ExtensionForwarding
from millstream._gateway.catalog.catalog import METHODS, AcceptedFile, Catalog, Description, QuarantinedItem
from millstream._gateway.catalog.offer import Conflict, Mount, Offer, OfferedItem, find_claimant, make_offer, mount
from millstream._gateway.catalog.sets import SetsPart, reveals
from millstream._gateway.followers import FollowedResources
from millstream._gateway.loops import CAPABILITY, STARTING, Announcement, identity
from millstream._gateway.names import fit_name
from millstream._gateway.options.policy import find_unknown_names, impossible_rules
from millstream._gateway.options.sets import SetConfig
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._gateway.processes.pool import ProcessPool
from millstream._gateway.relay import Passthrough
from millstream._gateway.rules.policy import RestrictedPattern
from millstream._gateway.rules.requests import (
    ANSWER_APPROVAL,
    GET_APPROVED_RESULT,
    ApprovalRequests,
    is_any_approver,
)
from millstream._gateway.rules.results import CHARACTERS_PER_TOKEN, READ_RESOURCE
from millstream._gateway.upstreams.links import LEFT_SECONDS, MAX_OWN_SESSIONS, SESSIONS_PREFIX
from millstream._gateway.upstreams.mcp import McpUpstream
from millstream._gateway.upstreams.upstream import Gateway, Upstream
from millstream._http.client import ArrivingBytes
from millstream._http.hosts import TrustedProxies
from millstream._parts import PartHost
from millstream._protocol.errors import LocalError
from millstream._protocol.principal import Share
from millstream._protocol.revisions import BY_DATE
from millstream._server.calls.call import Call
from millstream._server.calls.services import ServerChange
from millstream._server.features import Hooks
from millstream._server.features.registry import Handler, RegisteredExtension, sees
from millstream._server.features.resources import Resource, Template
from millstream._server.features.sources import Item
from millstream._server.features.tools import Tool
from millstream._server.worker_queries import Answers, WorkerQuestion
from millstream._server.worker_queries import encode as encode_answer
from millstream._stores.health import FRESH_SECONDS
from millstream._troubles import Trouble, UpstreamState
from millstream.files import stamp_of
from millstream.protocol import Json, members
from millstream.stores import StoreFull, StoreUnavailable

if TYPE_CHECKING:
    from millstream._gateway.files.live import LiveConfig

logger = logging.getLogger("millstream.gateway")

MAX_SHOWN = 500
"""Maximum tools and quarantined items to show."""
_READERS = frozenset({"rest", "web"})
"""Parts that read the items of upstreams without a client's request."""


class GatewayDefinition(Protocol):
    """The part of the server's definition that the gateway uses."""

    name: str
    upstreams: list[UpstreamConfig]
    live: "LiveConfig | None"
    sets: list[SetConfig]
    hooks: Hooks | None
    instructions: str
    version: str
    store: str
    """URL of the store."""
    named: bool
    """Whether the operator chose the name."""
    parts: frozenset[str]
    """Names of the parts that it serves."""
    extensions: Collection[object]
    connected: bool
    """Whether a gateway has registered the upstreams' items."""

    @property
    def title(self) -> str: ...
    @property
    def pages(self) -> frozenset[str]: ...


class GatewayPart:
    """Connects to the upstreams of a server and offers their items."""

    name: str = "gateway"
    needs: Collection[str] = ("lifespan",)
    _mode = ""
    """Whether it relays its only upstream, and if not, the reason."""
    _name_conflict = ""
    """Error message about an upstream's item that conflicts with this server's own."""
    _answers: Answers[list[Json]] = Answers([], 0)
    """The last reports of all workers."""
    _answered_at = -FRESH_SECONDS
    """Monotonic time of these reports."""

    def __init__(self, definition: GatewayDefinition) -> None:
        self.definition: GatewayDefinition = definition
        self.upstreams: dict[str, Upstream] = {}

        self._announcement: Announcement = {"id": "", "upstreams": {}, STARTING: 0}
        """See `names`."""

        self._mounts: dict[str, Mount] = {}
        """The upstreams as callers see them."""
        self.offer: Offer = make_offer({}, gateway_id="", starting=0, instructions="", has_own=lambda kind, name: False)
        """What callers see now."""

        self._opened: list[Upstream] = []
        """Upstreams to close: those in use, those that a new configuration will use, and earlier ones with calls."""
        self._results_offered: dict[str, Callable[[], None]] = {}
        """Upstream -> function that removes its template of stored results."""
        self._companions: dict[str, Tool] = {}
        """Tools that are offered beside upstreams: `read_resource`, `get_approved_result`, and `answer_approval`."""

        self._watchable: dict[str, tuple[bool, list[QuarantinedItem]]] = {}
        """Upstream -> whether its resources can be watched, and its quarantined items, at the last change."""

    def _warn_about_rules(self, host: PartHost, configs: Iterable[UpstreamConfig]) -> None:
        """Warn about rules that hide items from every caller, because none can have a scope or group."""
        found = [each.rights() for each in host.guard.methods] if host.guard is not None else []
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return
        scopes = frozenset[str]().union(*(each.scopes for each in known))
        groups = frozenset[str]().union(*(each.groups for each in known))
        for config in configs:
            policies = [each for each in (config.policy, config.policy and config.policy.shared) if each]
            for text in [text for each in policies for text in impossible_rules(each, scopes, groups)]:
                logger.warning(
                    "The policy of upstream %s hides items from everyone: %s, which no caller has. Add it to a key or "
                    "user: millstream keys add NAME --scope SCOPE --group GROUP",
                    config.name,
                    text,
                )

    async def open(self, host: PartHost) -> None:
        """Connect in the background and wait a limited time for the first lists.

        Raises:
            ValueError: An upstream is invalid, or two have the same name or prefix.
        """
        self._host = host
        self._info = dict(host.dispatcher.info)
        if self.definition.connected:
            raise ValueError(
                "This server already runs in another event loop. With upstreams, it can run in only one at a time."
            )
        check(self.definition.upstreams)
        pool = ProcessPool(limit=host.settings.max_processes)
        self._warn_about_rules(host, self.definition.upstreams)
        pool.places.several = pool.starts.several = host.guard is not None and host.guard.has_several()
        host.stack.push_async_callback(pool.close)
        host.every_second(pool.sweep)
        host.report("parked_calls", lambda: len(host.services.parked), limit=host.settings.max_pending_inputs)
        largest = max((each.max_bytes for each in self.definition.upstreams), default=0)
        self._announce(host)
        self._extensions = ExtensionForwarding(host, self._hides)
        self._followed = FollowedResources(host.registry, self.upstreams, self._hides)
        self._gateway = Gateway(
            id=self._announcement["id"],
            name=self.definition.name,
            host=host,
            store_outlives=not self.definition.store.startswith("memory:"),
            pool=pool,
            sessions=Share(MAX_OWN_SESSIONS),
            proxies=TrustedProxies.from_environment(),
            upstreams=self.upstreams,
            arriving=ArrivingBytes(host.settings.max_incoming_bytes, largest),
            on_change=self._register,
        )
        host.stack.push_async_callback(self._close_upstreams)
        for config in self.definition.upstreams:
            self.upstreams[config.name] = self._add_upstream(config)
            self._offer_results(self.upstreams[config.name])
        host.on_close(self._unregister_all)
        host.services.changes.source = self._followed
        host.services.explain_missing = self._explain_missing
        host.find_resources(self._find_unlisted)
        self.definition.connected = True
        host.at_each_address(lambda each: each.wrap([method for method, *_ in METHODS.values()], self._list))
        host.on_http(self._serve)
        host.check_ready(self._degraded_reason)
        host.gateway = self
        host.store.troubles.sources.append(self._find_withdrawn)
        host.queries.answer(_REPORTS, self._answer)
        self._choose_mode(host)
        self._mounts.update((name, self._mount(each)) for name, each in self.upstreams.items())
        await asyncio.gather(*(upstream.lists.load() for upstream in self.upstreams.values()))
        for upstream in self.upstreams.values():
            await self._open_upstream(upstream)
        self._register_metrics(host)
        host.run(self._end_unused_sessions())
        host.services.handovers.append(self._hand_over)
        host.services.lose = self._lose
        await self._wait_for_lists(self.upstreams.values())
        self._apply()
        upstreams, live = self.upstreams.values(), self.definition.live
        if live is not None or host.services.binds_sessions:
            host.services.holds_state = True
        host.services.keeps_callers = lambda: any(each.keeps_callers for each in upstreams)
        host.report("sharing", lambda: [text for each in upstreams if (text := each.sharing)] or None)
        if self._name_conflict:
            raise ValueError(self._name_conflict)

    async def _end_unused_sessions(self) -> None:
        """End the sessions that earlier processes left open at upstreams, and that no caller has continued since."""
        while True:
            await asyncio.sleep(LEFT_SECONDS)
            with contextlib.suppress(StoreFull, StoreUnavailable):
                names = await self._host.store.kv.keys(SESSIONS_PREFIX)
                for upstream in self._mcp_upstreams:
                    await upstream.links.end_unused(names)

    def _find_withdrawn(self) -> Iterator[Trouble]:
        """Yield a trouble for each upstream with quarantined items that the policy would offer."""
        for upstream in self.upstreams.values():
            if names := upstream.lists.withheld:
                yield Trouble(
                    f"Items of the upstream {upstream.name} are quarantined, so calls to them fail",
                    upstream.lists.quarantined_at,
                    0,
                    ", ".join(names[:MAX_SHOWN]),
                    f"Look at the changes, and accept them: millstream gateway accept FILE {upstream.name}",
                )

    def _hand_over(self, owner: str) -> list[str]:
        return [each.name for each in self._mcp_upstreams if each.links.hand_over(owner)]

    def _lose(self, owner: str, names: Sequence[str]) -> None:
        for upstream in self._mcp_upstreams:
            if upstream.name in names:
                upstream.links.lose_elsewhere(owner)

    async def _open_upstream(self, upstream: Upstream) -> None:
        await upstream.open()
        if not upstream.waits_for_clients or not self.definition.parts.isdisjoint(_READERS):
            upstream.lists.wanted.set()

    def _add_upstream(self, config: UpstreamConfig) -> Upstream:
        """Return an upstream that isn't open yet.

        Raises:
            LocalError: Options of its credentials are invalid, or need callers who sign in.
        """
        if config.needs_sign_in and self._host.guard is None:
            raise LocalError(
                f"The upstream {config.name!r} has {config.needs_sign_in}, but this server has no auth=… and can't "
                "identify its callers. Require a sign-in, for example with Server(auth=auth.oidc(…)), or a table such "
                "as [auth.issuer] in gateway.toml."
            )
        upstream: Upstream
        if config.openapi is None:
            upstream = McpUpstream(config, self._gateway, MCP_ITEMS)
        else:
            from millstream._gateway.apis.upstream import ApiUpstream  # noqa: PLC0415  few are APIs

            upstream = ApiUpstream(config, self._gateway)
        self._opened.append(upstream)
        self._set_up_pins(upstream)
        if config.auth is not None or config.forward_headers:
            from millstream._gateway.credentials.setup import create_credentials  # noqa: PLC0415  few have some

            upstream.credentials = credentials = create_credentials(
                config, upstream.address, self._host, upstream.stack
            )
            credentials.on_change = upstream.end_links_of
        return upstream

    async def _close_upstreams(self) -> None:
        await asyncio.gather(*(each.close() for each in self._opened))

    def _choose_mode(self, host: PartHost) -> None:
        """Relay a single upstream, unless something prevents it."""
        upstreams, definition = list(self.upstreams.values()), self.definition
        self._has_items = any(host.registry.has_any(kind) for kind in METHODS)
        obstacle = self._find_obstacle(upstreams, has_sets=bool(definition.sets))
        catalog = f"merges its upstreams' lists into its own, because {obstacle}"
        rest = "" if upstreams[0].policy.is_empty else ", except for what its policy changes"
        self._mode = catalog if obstacle else f"relays {upstreams[0].name}{rest}"
        logger.debug("%s %s", definition.name, self._mode)
        host.report("gateway", lambda: self._mode)
        if not obstacle and isinstance(upstream := upstreams[0], McpUpstream):
            upstream.is_relayed = True
            Passthrough(host, upstream)

    def _find_obstacle(self, upstreams: Sequence[Upstream], *, has_sets: bool) -> str:
        """Return why the server creates items from its upstreams' lists instead of relaying one, or an empty string if
        it relays.
        """
        host, definition, first = self._host, self.definition, upstreams[0]
        rule = first.policy.rule_for_all
        obstacles = {
            "there are several upstreams": len(upstreams) > 1,
            "the upstream is an OpenAPI document": not isinstance(first, McpUpstream),
            "the upstream has a prefix": bool(first.config.names.prefix),
            f"the upstream's policy {rule}": bool(rule),
            "the upstream's definitions are pinned": first.config.trust == "pin",
            "the upstream's revision is fixed": first.config.revision is not None,
            "this server has items of its own": self._has_items,
            "this server has sets": has_sets,
            "this server has middleware": definition.hooks is not None or host.dispatcher.around is not None,
            "this server has tool search": bool(host.registry.list_selectors),
            "this server has extensions": bool(definition.extensions) or host.registry.completes is not None,
        }
        return next((why for why, applies in obstacles.items() if applies), "")

    @property
    def _mcp_upstreams(self) -> list[McpUpstream]:
        return [each for each in self.upstreams.values() if isinstance(each, McpUpstream)]

    async def close(self) -> None:
        """Do nothing, because the host's exit stack closes the upstreams."""

    def _announce(self, host: PartHost) -> None:
        """Announce this gateway to other gateways, unless all upstreams are in this process."""
        live = self.definition.live
        targets = (live and live.version.targets) or [(each.name, each.address) for each in self.definition.upstreams]
        self._announcement["id"] = identity(host.services.secrets.values[0], self.definition.name, targets)
        if any(target for _, target in targets):
            announced = {CAPABILITY: self._announcement}
            host.extend(RegisteredExtension("experimental", announced, {}, frozenset(BY_DATE)))

    def _offer_results(self, upstream: Upstream) -> None:
        """Offer the template of stored results, only if the policy stores some."""
        if upstream.policy.has_budgets == (upstream.name in self._results_offered):
            return
        if not upstream.policy.has_budgets:
            self._results_offered.pop(upstream.name)()
        else:
            registry, template = self._host.registry, upstream.results.template()
            found = registry.templates.get(template.name)
            if found is not None and found.companion_of and "" in found.companion_of:
                # It's that of the server's own tools, which reads the same results, since there's no prefix.
                found.companion_of = (*found.companion_of, upstream.name)
                self._results_offered[upstream.name] = partial(_leave_companion, found, upstream.name)
                return
            template.origin, template.companion_of = upstream.name, (upstream.name,)
            registry.exchange("templates", (), {template.name: template})
            registry.announce("resources")
            self._results_offered[upstream.name] = partial(registry.exchange, "templates", (template.name,), {})

    def _set_up_pins(self, upstream: Upstream) -> None:
        if (pins := upstream.lists.pins) is not None:
            if pins.file is not None:
                upstream.stack.callback(self._host.every_second(_refresh_on_change(upstream, pins.file)))
            if pins.is_volatile:
                logger.warning(
                    "%s: a restart forgets which definitions are pinned, because the store is memory:// and "
                    "there's no lock file. Run `millstream gateway accept`, or use a persistent store such as "
                    "sqlite:///gateway.db.",
                    upstream.name,
                )

    def _serve(self) -> None:
        if "/connections" not in self.definition.pages:
            return
        from millstream._gateway.credentials.accounts import (  # noqa: PLC0415  it loads Jinja2
            ConnectionsPage,
            PersonalCredentials,
        )

        def find_connections() -> dict[str, PersonalCredentials]:
            return {
                name: each.credentials
                for name, each in self.upstreams.items()
                if isinstance(each.credentials, PersonalCredentials)
            }

        def describe_offer(name: str) -> str:
            counts = ((kind, len(items)) for kind, items in self.upstreams[name].offered.items())
            return ", ".join(f"{count} {kind[:-1] if count == 1 else kind}" for kind, count in counts if count)

        ConnectionsPage(self._host, find_connections, describe_offer, server=self.definition.title)

    async def _wait_for_lists(self, upstreams: Iterable[Upstream]) -> None:
        """Wait for the first lists, up to each upstream's `start_timeout`."""
        started = asyncio.get_running_loop().time()
        for upstream in upstreams:
            try:
                async with asyncio.timeout_at(started + upstream.config.start_timeout):
                    await upstream.lists.ready.wait()
            except TimeoutError:
                logger.warning("The upstream %s hasn't returned any lists yet", upstream.name)

    def describe(self) -> list[Json]:
        """Return state and statistics of each upstream on this worker."""
        return [{**upstream.describe(), "mode": self._mode} for upstream in self.upstreams.values()]

    async def _answer(self, question: WorkerQuestion) -> bytes:
        return encode_answer(self.describe())

    async def ask_workers(self) -> None:
        """See `UpstreamReports`. The other workers are asked at most once a second."""
        if monotonic() - self._answered_at >= FRESH_SECONDS:
            self._answers = await self._host.queries.ask(WorkerQuestion(_REPORTS), list[Json])
            self._answered_at = monotonic()

    def describe_all(self) -> list[Json]:
        """See `UpstreamReports`."""
        return merge_reports([self.describe(), *self._answers.found[1:]], silent=self._answers.silent)

    def describe_states(self) -> list[Json]:
        """See `UpstreamReports`."""
        return [{name: report[name] for name in UpstreamState.__struct_fields__} for report in self.describe_all()]

    async def count_approvals(self) -> int | None:
        """See `UpstreamReports`."""
        if not any(each.config.asks_others for each in self.upstreams.values()):
            return None
        try:
            return await ApprovalRequests(self._host.services).count_pending()
        except StoreUnavailable:
            return None

    def items(self, name: str) -> Json | None:
        """Return the tools of an upstream, largest first, and its quarantined items, or None if it's unknown."""
        upstream = self.upstreams.get(name)
        if upstream is None:
            return None
        tools: list[Json] = [
            {
                "name": tool,
                "description": item.description.get("description") or item.description.get("title") or "",
                "tokens": _tokens(tool, item.description),
            }
            for tool, item in upstream.offered["tools"].items()
        ]
        tools.sort(key=lambda tool: (-tool["tokens"], tool["name"]))
        return {
            "tools": tools[:MAX_SHOWN],
            "quarantined": [msgspec.to_builtins(each) for each in upstream.lists.quarantined[:MAX_SHOWN]],
        }

    @property
    def has_all_lists(self) -> bool:
        """See `UpstreamReports`."""
        return all(each.catalog.taken_at for each in self.upstreams.values())

    def _explain_missing(self, call: Call, name: str) -> str:
        """See `Services.explain_missing`: name the upstreams that can't be used and have no lists from before, or whose
        tool is quarantined.
        """
        down, sets = list[Upstream](), {each.name: each for each in self.definition.sets}
        for upstream in self.upstreams.values():
            own_name = upstream.names.original("tools", name) if name else ""
            if (chosen := sets.get(call.dispatcher.address.name)) and not reveals(chosen, upstream.name):
                continue
            waits = ""
            for each in (each.name for each in upstream.lists.quarantined if each.kind == "tools"):
                if chosen is None:
                    is_meant = each == own_name
                else:
                    found = SetsPart.rules_by_name(chosen, upstream.names, each, name)
                    is_meant = found is not None and sees(call, found)
                waits = each if is_meant else waits
            if own_name is None and not waits:
                continue
            is_down = not upstream.catalog.taken_at and upstream.lists.report_state()[0] == "degraded"
            rules = upstream.policy.item("tools", waits or own_name or "") if waits or is_down else None
            if rules is None or not sees(call, rules):
                continue
            if waits:
                return f"The server {upstream.name!r} has changed this tool, so an operator has to accept it first."
            down.append(upstream)
        if not down:
            return ""
        names = ", ".join(repr(each.name) for each in down)
        servers, their = ("server", "its") if len(down) == 1 else ("servers", "their")
        reasons = "".join(f" The server {each.name!r} {text}" for each in down if (text := describe_fault(each)))
        return f"The {servers} {names} can't be used at the moment, so {their} tools are missing.{reasons}"

    def _degraded_reason(self) -> str:
        down = [report["name"] for report in self.describe_all() if report["state"] == "degraded"]
        return f"upstreams that can't be used: {', '.join(down)}" if down else ""

    def _register_metrics(self, host: PartHost) -> None:
        host.report("upstreams", lambda: {report["name"]: report["state"] for report in self.describe_all()})
        host.report("upstream_states", self.describe_states)
        if host.metrics is None:
            return

        def figures(figure: str) -> dict[tuple[str, ...], float]:
            return {(name,): upstream.breaker.describe().get(figure, 0) for name, upstream in self.upstreams.items()}

        read, label = host.metrics.read, ("upstream",)
        read(
            "gauge",
            "gateway_up",
            "Whether an upstream can be reached.",
            lambda: {(name,): float(upstream.lists.state == "ready") for name, upstream in self.upstreams.items()},
            label,
            merge="min",
        )
        for name, text in (
            ("calls", "Calls sent to an upstream."),
            ("unanswered", "Calls sent to an upstream that got no usable response."),
            ("refused", "Calls not sent, because earlier ones have failed."),
        ):
            read("counter", f"gateway_{name}_total", text, partial(figures, name), label)
        read(
            "counter",
            "gateway_changes_total",
            "Definitions that an upstream has changed or added.",
            lambda: {(name,): upstream.lists.changes.count for name, upstream in self.upstreams.items()},
            label,
        )
        read(
            "gauge",
            "gateway_links",
            "Open connections.",
            lambda: {(name,): upstream.link_count for name, upstream in self.upstreams.items()},
            label,
        )
        for share in ("p50_ms", "p99_ms"):
            text = f"{share[:3]} of the response times of recent calls."
            read("gauge", f"gateway_{share}", text, partial(figures, share), label, merge="max")

    # Items

    def _register(self, upstream: Upstream, announced: Collection[str]) -> None:
        """Offer the items that an upstream lists now and remove items that it no longer lists.

        Args:
            upstream: Upstream with a new catalog.
            announced: Kinds of lists that the upstream said have changed.
        """
        if upstream.name not in self._mounts or self.upstreams.get(upstream.name) is not upstream:  # it isn't in use
            return
        self._mounts[upstream.name] = self._mount(upstream)
        changed = self._apply() | set(announced)
        self._announce_changes(changed, but=upstream.relayed_sessions)
        watchable = upstream.is_watchable(), upstream.lists.quarantined
        if "resources" in changed or watchable != self._watchable.get(upstream.name):
            self._watchable[upstream.name] = watchable
            self._host.run(self._followed.follow_again())

    def _announce_changes(self, changed: Collection[str], *, but: Collection[str] = ()) -> None:
        for change in changed:  # other workers have their own copies of the lists, and do the same
            for listener in self._host.changes:
                listener(change)
            self._host.services.changes.emit(ServerChange(change), but=but)

    def _mount(self, upstream: Upstream) -> Mount:
        found, lists = upstream.catalog, upstream.lists
        before = self._mounts.get(upstream.name)
        new = mount(
            upstream.name,
            upstream.names,
            upstream.policy,
            found,
            self._announcement["id"],
            is_relayed=upstream.is_relayed,
            is_asked=lists.is_asked,
            accepted=() if lists.pins is None else lists.pins.find_accepted(found),
        )
        if new.looping != (0 if before is None else before.looping):
            logger.warning("%s: skipped %d items that lead back to this gateway", upstream.name, new.looping)
        return new

    def _apply(self) -> set[str]:
        """Offer what the upstreams list now, in one step. Return the kinds of lists that have changed."""
        host, upstreams = self._host, self.upstreams
        off = self._companions.keys() & host.registry.disabled["tools"].keys()
        companions = self._remove_companions()  # an upstream's tool can have the name
        offer = make_offer(
            self._mounts,
            gateway_id=self._announcement["id"],
            starting=sum(not each.lists.ready.is_set() for each in upstreams.values()),
            instructions=self.definition.instructions,
            has_own=self._has_own,
        )
        for name, text in (*offer.warnings, *_check_shared_names(upstreams.values())):
            upstreams[name].lists.warn(text)
        for conflict in offer.conflicts:
            self._report_conflict(conflict)
        changed = {
            METHODS[kind][0].partition("/")[0] for kind in METHODS if self._replace_items(kind, offer.items[kind])
        }
        host.services.binds_sessions = any(each.may_have_own or each.keeps_callers for each in upstreams.values())
        for upstream in upstreams.values():
            offered = upstream.offered["tools"].items()
            upstream.tokens = sum(_tokens(tool, item.description) for tool, item in offered)
            self._announce_capabilities(upstream.catalog)  # clients may connect before the lists arrive
        if host.registry.set_hints(offer.hints) or offer.announcement != self._announcement:
            self._announcement.update(offer.announcement)
            host.dispatcher.announcement.forget()
        if self._offer_companions(companions):
            changed.add("tools")
        for name in off & self._companions.keys():
            host.registry.disable("tools", name)
        self._extensions.update(self._mcp_upstreams)
        host.dispatcher.instruct(offer.instructions)
        if host.sets is not None:
            host.sets.instruct()
        if (info := self._introduction()) != host.dispatcher.info:
            host.dispatcher.introduce(info)
        return changed

    def _offer_companions(self, before: Mapping[str, Tool]) -> bool:
        """Offer tools beside the upstreams that need them, unless an item has the name. Return whether that changed.

        Args:
            before: The tools that were offered before.
        """
        asking = tuple(name for name, each in self.upstreams.items() if each.config.asks_others)
        shortening = tuple(self._results_offered)
        for name, upstreams in (
            (READ_RESOURCE, shortening), (GET_APPROVED_RESULT, asking), (ANSWER_APPROVAL, asking)
        ):  # fmt: skip
            tool = before.get(name)
            if (own := self._host.registry.tools.get(name)) is not None and "" in (own.companion_of or ()):
                own.companion_of = ("", *upstreams)
            if upstreams and not self._host.registry.has("tools", name):
                if tool is None or tool.companion_of != upstreams:
                    from millstream._gateway.catalog.resource_tools import make_companion  # noqa: PLC0415  loads SQLite

                    tool = make_companion(name)
                    tool.companion_of = upstreams
                    if name == ANSWER_APPROVAL:
                        tool.visible = partial(is_any_approver, upstreams=self.definition.upstreams)
                self._companions[name] = tool
        self._host.registry.exchange("tools", (), self._companions, group=len(self.upstreams) + 1)
        return self._companions != before

    def _remove_companions(self) -> Mapping[str, Tool]:
        before, self._companions = self._companions, {}
        self._host.registry.exchange("tools", before, {})
        return before

    def _has_own(self, kind: str, name: str) -> bool:
        registry = self._host.registry
        taken = registry.find_equivalent(kind, name)
        return registry.has(kind, taken) and not any(taken in each.offered[kind] for each in self.upstreams.values())

    def _announce_capabilities(self, catalog: Catalog) -> None:
        registry, theirs = self._host.registry, catalog.announced
        for capability in theirs:
            registry.announce(capability)
        if members(theirs.get("resources")).get("subscribe"):
            registry.announce("subscribe")

    async def _list(self, handler: Handler, call: Call) -> bytes:
        """Return a page of a list, after reading the lists that it needs."""
        if stale := [each.lists.freshen() for each in self.upstreams.values() if each.lists.is_stale]:
            await asyncio.gather(*stale)
        return await handler(call)

    def _introduction(self) -> Json:
        """Return the server's information. Members that the operator left out come from a single upstream."""
        definition, given = self.definition, dict(self._info)
        if len(self.upstreams) > 1:
            return given
        (upstream,) = self.upstreams.values()
        theirs = dict(upstream.catalog.server)
        if theirs:
            theirs.setdefault("version", "")
        if definition.named:
            theirs.pop("name", None)
            theirs.pop("title", None)
        else:
            del given["name"]
        if not definition.version:
            del given["version"]
        return {**self._info, **theirs, **given}

    def _replace_items(self, kind: str, wanted: Mapping[str, OfferedItem]) -> bool:
        """Replace the upstreams' items of a kind in the registry. Return whether anything has changed."""
        registry = self._host.registry
        added: dict[str, Json] = {name: {} for name in self.upstreams}
        for name, item in wanted.items():
            upstream = self.upstreams[item.upstream]
            if upstream.offered[kind].get(name) != item:
                try:
                    added[item.upstream][name] = self._make_item(kind, upstream, name, item)
                except ValueError as exc:
                    upstream.lists.warn(f"skipped {name!r}: {exc}")
        changed, replaced = False, dict[str, list[str]]()
        for upstream in self.upstreams.values():
            offered = upstream.offered[kind]
            removed = [name for name, item in offered.items() if wanted.get(name) != item]
            replaced[upstream.name] = [name for name in removed if name in added[upstream.name]]
            if gone := [name for name in removed if name not in added[upstream.name]]:
                registry.exchange(kind, gone, {})
            for name in removed:
                del offered[name]
            changed = changed or bool(removed)
        for group, upstream in enumerate(self.upstreams.values(), 1):  # keep the order of the configuration
            if made := added[upstream.name]:
                registry.exchange(kind, replaced[upstream.name], made, group=group)
                upstream.offered[kind].update((name, wanted[name]) for name in made)
                changed = True
        return changed

    def _make_item(self, kind: str, upstream: Upstream, name: str, offered: OfferedItem) -> Any:
        """Return an item with the policy of its upstream inside the server's middleware."""
        item = upstream.item_classes[kind](upstream, name, offered.own_name, offered.description)
        if isinstance(item, Template) and (not upstream.names.prefix or upstream.lists.pins is not None):
            item.template = RestrictedPattern(item.template, lambda uri: not self._hides(upstream, uri))
        offered.rules.apply(item, upstream.results)
        whole, short = offered.whole_name, upstream.names.original(kind, offered.whole_name) or name
        item.origin, item.short_name = upstream.name, fit_name(short) if kind == "tools" else short
        item.long_name = whole if whole != name else ""
        return item if self.definition.hooks is None else item.within(self.definition.hooks)

    def _report_conflict(self, conflict: Conflict) -> None:
        """Log an item with a name that's already taken."""
        noun, own, other = conflict.kind[:-1], conflict.upstream, conflict.other
        noun = noun.replace("template", "resource template")
        if not other:
            text = (
                f"This server and the upstream {own!r} both have a {noun} {conflict.name!r}: give the upstream another "
                f"prefix=, or rename the {noun}"
            )
            self._name_conflict = self._name_conflict or text
        else:
            text = (
                f"The upstreams {other!r} and {own!r} both have a {noun} {conflict.name!r}: only the first one's is "
                "offered. Give one of them another prefix="
            )
        logger.error("%s", text)

    def _hides(self, upstream: Upstream, uri: str) -> bool:
        """Return whether a URI belongs to another upstream, or is quarantined."""
        original = upstream.names.original_uri(uri)
        return (
            original is None
            or upstream.name not in self._mounts
            or find_claimant(self._mounts, upstream.name, "resources", uri) != ""
            or upstream.lists.is_quarantined(original)
        )

    def _find_unlisted(self, uri: str) -> Resource | None:
        """Return a resource for an unlisted URI that a result may have linked to, or None if no upstream has it."""
        for upstream in self.upstreams.values():
            own_uri = upstream.names.original_uri(uri)
            has_resources = upstream.is_relayed or "resources" in upstream.catalog.capabilities
            if own_uri is None or not has_resources or self._hides(upstream, uri):
                continue
            rules = upstream.policy.rules_of(uri)
            if rules is not None:
                description = {"uri": own_uri, "name": own_uri}
                item = OfferedItem(upstream.name, own_uri, description, rules, uri, uri)
                found: Resource = self._make_item("resources", upstream, uri, item)
                return found
        return None

    def _remove_items(self, upstream: Upstream) -> None:
        for kind, names in upstream.offered.items():
            self._host.registry.exchange(kind, names, {})
            names.clear()

    def _unregister_all(self) -> None:
        self._mounts.clear()  # lists that arrive from now on aren't offered
        for upstream in self.upstreams.values():
            self._remove_items(upstream)
        for remove in self._results_offered.values():
            remove()
        self._remove_companions()
        self.definition.connected = False
        del self._host.services.changes.source
        self._host.registry.set_hints({})


def _leave_companion(item: Item, name: str) -> None:
    item.companion_of = tuple(each for each in item.companion_of or () if each != name)


def _refresh_on_change(upstream: Upstream, file: AcceptedFile) -> Callable[[float], None]:
    """Return a function that refreshes an upstream when the file of accepted definitions has changed."""
    last = stamp_of(file.path)

    def check(now: float) -> None:
        nonlocal last
        if (stamp := stamp_of(file.path)) != last:
            last = stamp
            upstream.lists.refresh()

    return check


def _check_shared_names(upstreams: Iterable[Upstream]) -> Iterator[tuple[str, str]]:
    """Yield the name of an upstream and a warning for each name in its shared policy that no item has, once all
    upstreams with this policy have lists.
    """
    layers = [(policy, upstream) for upstream in upstreams for policy in upstream.policy.shared]
    while layers:
        shared = layers[0][0]
        users = [upstream for policy, upstream in layers if policy == shared]
        layers = [each for each in layers if each[0] != shared]
        if all(each.catalog.taken_at for each in users):
            known = [each.names.qualify(kind, name) for each in users for kind, name in each.lists.names()]
            for name, hint in find_unknown_names(shared, known):
                yield users[0].name, f"the shared policy has a rule for {name!r}, which no tool or prompt has.{hint}"


def check(configs: Sequence[UpstreamConfig]) -> None:
    """Check the configuration of all upstreams.

    Raises:
        ValueError: One is invalid, or two have the same name or prefix.
    """
    hosts: dict[str, str] = {}
    for config in configs:
        config.check()
        if config.name in hosts.values():
            raise ValueError(f"Two upstreams are named {config.name!r}. Rename one.")
        first = hosts.setdefault(config.names.host, config.name)
        if first != config.name:
            raise ValueError(
                f"The upstreams {first!r} and {config.name!r} have the same prefix {config.names.prefix!r}: "
                "give one of them another prefix."
            )


def _tokens(name: str, description: Description) -> int:
    """Return approximately how many tokens a tool takes in a model's context."""
    shown = {
        "name": name,
        "description": description.get("description", ""),
        "input_schema": description.get("inputSchema", {}),
    }
    return -(-len(msgspec.json.encode(shown).decode()) // CHARACTERS_PER_TOKEN)


def merge_reports(workers: Iterable[list[Json]], *, silent: int = 0) -> list[Json]:
    """Merge the reports of several workers into one per upstream, starting with this worker's.

    Counts are added, times and quantiles are the largest, and the state is the worst. `workers` in the result has the
    number of workers by the state that they see.

    Args:
        workers: The reports of each worker.
        silent: Number of workers that didn't respond.
    """
    found: dict[str, Json] = {}
    for reports in workers:
        for report in reports:
            name, new = report["name"], {**report, "workers": {report["state"]: 1}}
            found[name] = _merge(found[name], new) if name in found else new
    for report in found.values() if silent else ():
        report["workers"]["silent"] = silent
    return list(found.values())


_REPORTS = "upstreams"
"""Subject of the question for the reports of a worker."""


def _merge(one: Json, other: Json) -> Json:
    urgency = ("degraded", "connecting", "ready").index
    worse = min(one, other, key=lambda report: (urgency(report["state"]), report["since"]))
    workers = Counter[str](one["workers"])
    workers.update(other["workers"])
    merged: Json = {
        **one,
        **{name: worse[name] for name in ("state", "reason", "since", "failed_reads", "needs_account")},
        "workers": dict(workers),
    }
    newest = max(one, other, key=lambda report: report["listed_at"] or 0)
    merged |= {name: newest[name] for name in ("revision", "transport")}
    merged["quarantined"] = max(one["quarantined"], other["quarantined"])
    for name in ("items", "listed"):
        merged[name] = {kind: max(one[name][kind], other[name][kind]) for kind in METHODS}
    for name in ("links", "refused", "calls", "unanswered", "changes"):
        merged[name] += other[name]
    for name in ("p50_ms", "p99_ms", "listed_at", "changed_at"):
        merged[name] = max(one.get(name) or 0, other.get(name) or 0) or None
    for name in ("last_error", "last_change"):
        found = [last for each in (one, other) if (last := each.get(name))]
        merged[name] = max(found, key=lambda last: last["at"], default=None)
    first, second = one["processes"], other["processes"]
    if first and second:  # the counts are integers, unlike the longest delay
        sums = {name: value + second[name] for name, value in first.items() if isinstance(value, int)}
        merged["processes"] = {**first, **sums, "last_error": first["last_error"] or second["last_error"]}
    return merged
