"""Sets: choices of a server's items, each served at an address of its own.

A set is a pure function of its configuration and of all items at the main address: `choose_items`. So it has a choice
of what the main address has, with its rules, and shares its connections. URIs are the same at each address.
"""

import logging
import re
from asyncio import get_running_loop
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct, structs

from millstream._gateway.catalog.catalog import METHODS
from millstream._gateway.names import Names
from millstream._gateway.options.policy import UpstreamPolicy, find_unknown_names
from millstream._gateway.options.sets import SetConfig
from millstream._gateway.rules.patterns import key_forms, matcher, uri_key
from millstream._gateway.rules.policy import ItemRules, Policy, RestrictedPattern
from millstream._parts import PartHost
from millstream._server.address import Address
from millstream._server.calls.services import ServerChange
from millstream._server.dispatch import Dispatcher, Instruction
from millstream._server.features.registry import Registry
from millstream._server.features.resources import Resource, Template
from millstream._server.features.sources import Item
from millstream._server.features.tools import Tool
from millstream.protocol import Json, members

logger = logging.getLogger("millstream.gateway")

Items = Mapping[str, Mapping[str, Any]]
"""Kind -> name -> item."""


def find_address(config: SetConfig, main: Address) -> Address:
    """Return the address of a set.

    Args:
        config: The set.
        main: The server's main address. A set with its path is served at all of its paths.
    """
    path = config.path or f"{main.path.rstrip('/')}/{config.name}"
    paths = Address(
        "", path, f"{path}/sse", f"{path}/messages/", f"{path}/ws", f"{path}/tools/", f"{path}/openapi.json"
    )
    return structs.replace(
        main if path == main.path else paths,
        name=config.name,
        scopes=frozenset(config.scopes),
        groups=config.groups,
        limit=config.limit,
    )


def find_addresses(configs: Iterable[SetConfig], main: Address) -> list[Address]:
    """Return the main address, or that of the set that's served there instead, then the addresses of other sets.

    Raises:
        ValueError: Two of them have the same path.
    """
    sets = [find_address(each, main) for each in configs]
    front = next((each for each in sets if each.path == main.path), main)
    found = [front, *(each for each in sets if each is not front)]
    keys = set[str]()
    for address in found:
        if taken := sorted(address.keys & keys):
            raise ValueError(f"The set {address.name!r} can't use {taken[0]}, because the server serves it already.")
        keys |= address.keys
    return found


def _compile(config: SetConfig) -> Policy:
    """Return the choice by name and the rules."""
    return Policy(
        UpstreamPolicy(
            allow=config.allow,
            deny=config.deny,
            tools=config.tools,
            prompts=config.prompts,
            resources=config.resources,
        )
    )


def _admits(config: SetConfig, item: Item) -> bool:
    """Return whether the selectors other than those by name choose an item."""
    hints = members(item.describe().get("annotations")) if isinstance(item, Tool) else config.with_hints
    groups = {group for each in getattr(item.visible, "groups", ()) for group in each}
    return (
        (not config.upstreams or (item.origin != "" and _names(config, item.origin)))
        and (not config.with_tags or not item.tags.isdisjoint(config.with_tags))
        and all(hints.get(name) is value for name, value in config.with_hints.items())
        and (not config.with_scopes or not item.scopes.isdisjoint(config.with_scopes))
        and (not config.with_groups or not groups.isdisjoint(config.with_groups))
    )


def reveals(config: SetConfig, upstream: str) -> bool:
    """Return whether a set's callers may learn of an upstream without having any of its items."""
    if config.upstreams:
        return _names(config, upstream)
    return not (config.allow or config.with_tags or config.with_hints or config.with_scopes or config.with_groups)


def _names(config: SetConfig, upstream: str) -> bool:
    return matcher(tuple(config.upstreams))(upstream) is not None


class _Chosen(Struct, frozen=True):
    """An item of a set."""

    source: Any
    """The item at the main address."""
    rules: ItemRules
    name: str


def choose_items(config: SetConfig, policy: Policy, items: Items) -> dict[str, list[_Chosen]]:
    """Return the items of a set by kind, in the order of the list.

    Args:
        config: The set.
        policy: Its choice by name and its rules.
        items: All items of the main address.
    """
    chosen = dict[str, dict[str, _Chosen]]()
    views = set[tuple[str, Any]]()
    policy_of_views = _compile(structs.replace(config, allow=()))
    for kind in ("tools", "prompts", "templates", "resources"):
        chosen[kind] = {}
        for name, item in items[kind].items():
            # An upstream names its tools' views, so it must not name another kind of item, or one of another upstream.
            is_view = (
                kind == "resources"
                and name.startswith("ui://")
                and not views.isdisjoint(((item.origin, name), ("", name)))
            )
            rules = (policy_of_views if is_view else policy).item(kind, name, other_name=item.long_name)
            if rules is not None and (is_view or (item.companion_of is None and _admits(config, item))):
                chosen[kind][name] = _Chosen(item, structs.replace(rules, name=""), rules.name or name)
                views |= {(item.origin, uri) for uri in _views_of(item)} if kind == "tools" else set()
    origins = {each.source.origin for some in chosen.values() for each in some.values()}
    companions = [
        (kind, name, item)
        for kind, some in items.items()
        for name, item in some.items()
        if item.companion_of is not None and not (item.companion_of and origins.isdisjoint(item.companion_of))
    ]
    for kind, name, item in companions:
        if not item.companion_of:
            chosen[kind][name] = _Chosen(item, ItemRules(), name)
    if config.short_names:
        for kind in ("tools", "prompts"):
            chosen[kind] = _shorten(chosen[kind])
    for kind, name, item in companions:
        is_taken = any(each.name == name for each in chosen[kind].values())
        is_denied = kind == "tools" and policy_of_views.item(kind, name) is None
        if item.companion_of and not is_taken and not is_denied:
            chosen[kind][name] = _Chosen(item, ItemRules(), name)
    return {kind: [some[name] for name in items[kind] if name in some] for kind, some in chosen.items()}


def _views_of(tool: Item) -> set[Any]:
    """Return the URIs of the views that show a tool's results, which have to be readable where the tool is."""
    meta = members(tool.describe().get("_meta"))
    return {meta.get("ui/resourceUri"), members(meta.get("ui")).get("resourceUri")}


def _shorten(chosen: Mapping[str, _Chosen]) -> dict[str, _Chosen]:
    """Return items without their upstreams' prefixes, unless another one has the short name, or could fall back to
    it.
    """
    short = {name: each.source.short_name if each.name == name else "" for name, each in chosen.items()}
    counts = Counter(short[name] or each.name for name, each in chosen.items())
    return {
        name: structs.replace(each, name=short[name])
        if short[name] and counts[short[name]] == 1 and (short[name] not in chosen)
        else each
        for name, each in chosen.items()
    }


class SetDefinition(Protocol):
    """The part of the server's definition that sets use."""

    sets: list[SetConfig]
    instructions: str

    def make_registry(self) -> Registry: ...


class SetsPart:
    """Fills the addresses of the sets with their items."""

    name: str = "sets"
    needs: Collection[str] = ("lifespan",)

    def __init__(self, definition: SetDefinition) -> None:
        self._definition = definition

    async def open(self, host: PartHost) -> None:
        """Fill the addresses, now and after each change of the items at the main address.

        Raises:
            ValueError: A set requires a sign-in that the server doesn't have.
        """
        self._host, self._loop = host, get_running_loop()
        self._sets = list[_ServedSet]()
        self._check_sign_in(self._definition.sets)
        for config in self._definition.sets:
            dispatcher = host.dispatcher.find_address(config.name)
            assert dispatcher is not None  # noqa: S101  each set has one
            self._sets.append(_ServedSet(config, dispatcher, host.registry))
        host.on_change(self._update)
        host.report("sets", self.describe)
        host.sets = self
        self._update("")

    async def close(self) -> None:
        """Do nothing, because the addresses end with the server."""

    @staticmethod
    def rules_by_name(config: SetConfig, names: Names, own_name: str, called: str) -> ItemRules | None:
        """Return a set's rules for a tool that isn't offered, or None if the set wouldn't offer it by this name.

        Args:
            config: A set that reveals the upstream.
            names: Names of the upstream's items.
            own_name: Upstream's name of the tool.
            called: Name that a caller of the set uses.
        """
        if config.with_tags or config.with_hints or config.with_scopes or config.with_groups:
            return None
        name = names.qualify("tools", own_name)
        rules = _compile(config).item("tools", name)
        shown = {own_name, name} if config.short_names else {name}
        return rules if rules is not None and called in ({rules.name} if rules.name else shown) else None

    def _check_sign_in(self, configs: Sequence[SetConfig]) -> None:
        for config in configs:
            if (config.scopes or config.groups) and self._host.guard is None:
                raise ValueError(
                    f"The set {config.name!r} requires scopes or groups, which no caller has without sign-in. Add "
                    "auth=, or leave them out."
                )

    def check(self, configs: Sequence[SetConfig]) -> None:
        """See `ServedSets`."""
        self._check_sign_in(configs)
        host, main = self._host, Address.main(self._host.settings)
        before, after = host.services.addresses, find_addresses(configs, main)
        if before[0] != after[0]:
            name = after[0].name or before[0].name
            raise ValueError(
                f"the set {name!r} is at the main path, so while the server runs, it can't be added, removed, or get "
                "other scopes or groups. Restart the server."
            )
        routes = {**host.routes.exact, **host.routes.prefixes}
        others = {path for path, route in routes.items() if not route.set_name}  # `find_addresses` compares the sets
        for each in after[1:]:
            if taken := sorted(each.keys & others):
                raise ValueError(f"The set {each.name!r} can't use {taken[0]}, because the server serves it already.")

    def use(self, configs: Sequence[SetConfig]) -> None:
        """See `ServedSets`."""
        host, main = self._host, Address.main(self._host.settings)
        self._definition.sets[:] = configs
        named = {each.name: each for each in configs}
        kept = dict[str, _ServedSet]()
        for each in self._sets:
            before = each.dispatcher.address
            config = named.get(each.config.name)
            address = before if config is None else find_address(config, main)
            if config is None or address.path != before.path:
                host.remove_address(each.dispatcher)
                continue
            if address != before:
                host.change_address(each.dispatcher, address)
            each.choose(config)
            kept[config.name] = each
        self._sets = [kept.get(each.name) or self._add(each) for each in configs]
        self._update("")

    def _add(self, config: SetConfig) -> "_ServedSet":
        address = find_address(config, Address.main(self._host.settings))
        return _ServedSet(
            config, self._host.add_address(self._definition.make_registry(), address), self._host.registry
        )

    def describe(self) -> list[Json]:
        """Return the address of each set, how many items it has, and what it requires."""
        return [
            {
                "name": each.config.name,
                "path": each.dispatcher.address.path,
                "items": {kind: len(each.dispatcher.registry.items[kind]) for kind in METHODS},
                "scopes": each.config.scopes,
                "groups": each.config.groups,
                **({"unused": unused} if (unused := [*self._find_unused(each)]) else {}),
            }
            for each in self._sets
        ]

    def instruct(self) -> None:
        """See `ServedSets`."""
        theirs = [each for each in self._host.dispatcher.announcement.instructions if each.upstream]
        for each in self._sets:
            config, items = each.config, each.dispatcher.registry.items
            origins = {item.origin for kind in METHODS for item in items[kind].values() if item.companion_of is None}
            own = Instruction(config.instructions or self._definition.instructions)
            rest = [
                structs.replace(part, text=part.short_text) if config.short_names else part
                for part in theirs
                if part.upstream in origins and not config.instructions
            ]
            each.dispatcher.instruct((own, *rest))
            for text in self._find_unused(each):
                if text not in each.warned:
                    each.warned.add(text)
                    logger.warning("The set %s %s", config.name, text)

    def _find_unused(self, served: "_ServedSet") -> Iterator[str]:
        """Yield what a set's configuration names and the server doesn't have, once all upstreams have lists."""
        gateway, config, whole = self._host.gateway, served.config, self._host.registry
        if gateway is not None and not gateway.has_all_lists:
            return
        items = [each for some in (whole.items, whole.disabled) for kind in METHODS for each in some[kind].items()]
        known = {name: "" for key, item in items for name in (key, item.long_name) if name}
        origins = {item.origin for _, item in items}
        for pattern in config.upstreams:
            if not any(map(matcher((pattern,)), origins)):
                yield f"has no item of an upstream that matches {pattern!r}."
        for name, hint in find_unknown_names(served.rules, known):
            yield f"has a rule for {name!r}, which no tool or prompt has.{hint}"
        for pattern in config.allow:
            if re.search("[*?]", pattern) and "://" not in pattern and not any(map(matcher((pattern,)), known)):
                yield f"allows {pattern!r}, which matches nothing."

    def _update(self, kind: str) -> None:
        for each in self._sets:
            for change in each.update():
                if not self._loop.is_closed():  # items can change in any thread
                    emit = self._host.services.changes.emit
                    self._loop.call_soon_threadsafe(emit, ServerChange(change, address=each.config.name))
        self.instruct()


def _keys_of(key: str) -> list[str]:
    """Return a key without what many programs ignore."""
    return [each.casefold() for each in key_forms(key)]


class _ServedSet:
    """The items of one set at its address."""

    def __init__(self, config: SetConfig, dispatcher: Dispatcher, whole: Registry) -> None:
        self.dispatcher = dispatcher
        self._registry, self._whole = dispatcher.registry, whole
        self.choose(config)
        self._made: dict[str, dict[str, tuple[_Chosen, Any]]] = {kind: {} for kind in METHODS}
        """Kind -> name -> what the registered item was created from, and the item."""
        self._outside: dict[str, list[str]] = {}
        """Resources that aren't in the set, and their keys."""
        self._outside_keys: set[str] = set()
        self._registry.whole = whole
        self._registry.resource_finders.append(self._find_unlisted)

    def choose(self, config: SetConfig) -> None:
        """Use a configuration from the next update on."""
        self.config: SetConfig = config
        self._policy = _compile(config)
        self.rules: UpstreamPolicy = self._policy.own
        self.warned: set[str] = set()
        """Logged warnings."""

    def update(self) -> set[str]:
        """Offer the items that are chosen now. Return the kinds of lists that have changed."""
        changed, names = set[str](), dict[tuple[str, str], str]()
        found = choose_items(self.config, self._policy, {kind: dict(self._whole.items[kind]) for kind in METHODS})
        for kind, chosen in found.items():
            before, made = self._made[kind], dict[str, tuple[_Chosen, Any]]()
            for each in chosen:
                if each.name in made:
                    logger.warning("The set %s has two %s named %r. Rename one.", self.config.name, kind, each.name)
                    continue
                known = before.get(each.name)
                same = known is not None and known[0].source is each.source and known[0].rules == each.rules
                made[each.name] = known if known is not None and same else (each, self._make(each))
                names[kind, each.source.name] = each.name
            self._made[kind] = made
            if self._registry.mirror(self._whole, kind, {name: item for name, (_, item) in made.items()}):
                changed.add(METHODS[kind][0].partition("/")[0])
        others = self._whole.items["resources"].keys() | self._whole.disabled["resources"]
        others -= {name for kind, name in names if kind == "resources"}
        self._outside = {each: self._outside.get(each) or _keys_of(uri_key(each, is_listed=True)) for each in others}
        self._outside_keys = {key for keys in self._outside.values() for key in keys}
        self._registry.completers = {
            (names[kind, reference], argument): completer
            for (reference, argument), completer in self._whole.completers.items()
            for kind in ("prompts", "templates")
            if (kind, reference) in names
        }
        return changed

    def _make(self, chosen: _Chosen) -> Any:
        item = chosen.source.with_name(chosen.name)
        item.main_name = chosen.source.main_name or chosen.source.name
        if isinstance(item, Template):
            item.template = RestrictedPattern(item.template, self._has)
        chosen.rules.narrow(item)
        return item

    def _has(self, uri: str) -> bool:
        """Return whether a URI isn't that of a resource outside the set."""
        if not self._outside or self._registry.find_equivalent("resources", uri) in self._registry.resources:
            return True
        key = uri_key(uri)
        return key != "" and self._outside_keys.isdisjoint(_keys_of(key))

    def _find_unlisted(self, uri: str) -> Resource | None:
        """Return a resource that isn't listed, if the set would have it."""
        found = next((match for find in self._whole.resource_finders if (match := find(uri))), None)
        rules = self._policy.rules_of(uri)
        if found is None or rules is None or not self._has(uri) or not _admits(self.config, found):
            return None
        made: Resource = self._make(_Chosen(found, rules, found.name))
        return made
