"""What callers of one address see: a pure function from the upstreams' lists and the rules to one value.

Workers with the same lists offer the same items. Of two items with one name, the one whose upstream comes first in the
configuration is offered, whichever list arrives first.
"""

from collections.abc import Callable, Collection, Iterator, Mapping

from msgspec import Struct, field, structs

from millstream import Principal
from millstream._gateway.catalog.catalog import METHODS, Catalog, Description
from millstream._gateway.loops import STARTING, Announcement, find_loops, leads_back, read_announcement
from millstream._gateway.names import Names, fit_name, safe_names, with_origin
from millstream._gateway.rules.policy import ItemRules, Policy
from millstream._server.dispatch import Instruction
from millstream._server.features.registry import normal_form
from millstream._text import pluralize, shorten
from millstream.protocol import members

MAX_INSTRUCTIONS = 8 * 1024
"""Maximum characters per upstream's instructions."""
_NO_CACHE = dict.fromkeys((*METHODS, "discover"), (0, False))


class OfferedItem(Struct, frozen=True):
    """An item as callers see it. An equal one needn't be registered again."""

    upstream: str
    own_name: str
    """Upstream's name or URI."""
    description: Description
    """Description for callers, without the name."""
    rules: ItemRules
    form: str
    """Normal form of the name or URI, which other upstreams' items mustn't have."""
    whole_name: str
    """Name or URI on this server before `fit_name`."""


class Conflict(Struct, frozen=True):
    """An item that isn't offered because its name is taken."""

    kind: str
    name: str
    upstream: str
    other: str
    """The upstream that has the name, or empty if this server itself has it."""


class Mount(Struct, frozen=True):
    """An upstream as callers of one address see it."""

    upstream: str
    names: Names
    catalog: Catalog
    items: Mapping[str, Mapping[str, OfferedItem]]
    """Kind -> name for callers -> item."""
    announcement: Announcement
    """The gateways behind it."""
    looping: int = 0
    """Number of items that aren't offered, because they lead back to this gateway."""
    is_asked: bool = False
    """Whether its lists are read when a client requests them."""
    warnings: list[str] = field(default_factory=list[str])
    unlisted: ItemRules | None = None
    """The rules of a prompt that isn't listed, or None if it isn't offered."""


class Offer(Struct, frozen=True):
    """What callers of one address see."""

    items: Mapping[str, Mapping[str, OfferedItem]]
    """Kind -> name -> item, in the order of the configuration."""
    hints: Mapping[str, tuple[int, bool]]
    """Kind -> maximum cache time in milliseconds, and whether only the caller can cache it."""
    instructions: tuple[Instruction, ...]
    """The server's own, and those of each upstream for the callers who see one of its items."""
    announcement: Announcement
    """See `names`."""
    conflicts: list[Conflict]
    warnings: list[tuple[str, str]]
    """Upstream, and why one of its items isn't offered."""


def mount(
    upstream: str,
    names: Names,
    policy: Policy,
    catalog: Catalog,
    gateway_id: str,
    *,
    is_relayed: bool = False,
    is_asked: bool = False,
    accepted: Collection[str] = (),
) -> Mount:
    """Return an upstream as callers of one address see it.

    Args:
        upstream: Its name.
        names: Mapping to the names that callers see.
        policy: Its policy there.
        catalog: Its lists.
        gateway_id: Id of this gateway.
        is_relayed: Whether the server relays it, so that its items aren't marked with their origin.
        is_asked: See `Mount.is_asked`.
        accepted: Tools whose definitions the operator has accepted, so that rules can trust their hints.
    """
    announcement = read_announcement(catalog.capabilities, gateway_id)
    items: dict[str, dict[str, OfferedItem]] = {kind: {} for kind in METHODS}
    warnings, looping, loops = list[str](), 0, find_loops(announcement, gateway_id)
    listed = left_out = 0
    for kind, own_name, each in catalog.items():
        listed += 1
        is_trusted = kind == "tools" and (policy.trusts_hints or own_name in accepted)
        rules = policy.item(kind, own_name, members(each.get("annotations")) if is_trusted else {})
        if rules is None:
            left_out += 1
            if own_name and not policy.find_key(kind, own_name):
                warnings.append(f"skipped {shorten(own_name)!r}, because programs read this URI differently")
            continue
        if leads_back(loops, kind, own_name):
            looping += 1
            continue
        if kind == "tools" and (safe := safe_names(each.get("inputSchema"), rules.hidden)):
            rules = structs.replace(rules, names=safe)
        description = rules.describe(each)
        name = whole = names.qualify(kind, description[METHODS[kind][2]])
        if kind == "tools" and not is_relayed and (name := fit_name(whole)) != whole:
            title = description.get("title")
            description = {**description, "title": f"{title} ({whole})" if title else whole}
        if name in items[kind]:
            warnings.append(f"skipped {own_name!r}, because another item has the name {name!r}")
            continue
        if not is_relayed:  # programs list resources by their names, too
            label, meta = names.qualify("tools", description["name"]), description.get("_meta")
            description = {**description, "name": label, "_meta": with_origin(meta, upstream)}
        items[kind][name] = OfferedItem(upstream, own_name, description, rules, normal_form(kind, name), whole)
    if listed and left_out == listed:
        warnings.append(f"the policy leaves out all that it lists ({pluralize(listed, 'item')}). Check its patterns.")
    return Mount(upstream, names, catalog, items, announcement, looping, is_asked, warnings, policy.item("prompts", ""))


def find_claimant(mounts: Mapping[str, Mount], upstream: str, kind: str, name: str) -> str:
    """Return another upstream with a longer prefix that matches a name or URI, or empty, so that no upstream receives
    calls that are meant for another one.
    """
    least = len(mounts[upstream].names.prefix)
    for each in mounts.values():
        if len(each.names.prefix) > least and each.names.original(kind, name) is not None:
            return each.upstream
    return ""


def make_offer(
    mounts: Mapping[str, Mount],
    *,
    gateway_id: str,
    starting: int,
    instructions: str,
    has_own: Callable[[str, str], bool],
) -> Offer:
    """Return what callers see.

    Args:
        mounts: The upstreams by name, in the order of the configuration.
        gateway_id: Id of this gateway.
        starting: Number of upstreams without a first list.
        instructions: The server's own instructions.
        has_own: ``has_own(kind, name)`` returns whether the server has an item of its own with this name or URI, in any
            spelling.
    """
    items: dict[str, dict[str, OfferedItem]] = {kind: {} for kind in METHODS}
    owners: dict[tuple[str, str], str] = {}
    conflicts = list[Conflict]()
    warnings = [(each.upstream, text) for each in mounts.values() for text in each.warnings]
    for kind, name, item in _items_of(mounts):
        claims = (find_claimant(mounts, item.upstream, kind, each) for each in (item.whole_name, name))
        if other := next(filter(None, claims), ""):
            warnings.append((item.upstream, f"skipped {name!r}, because its prefix belongs to the upstream {other}"))
        elif (owner := owners.setdefault((kind, item.form), item.upstream)) != item.upstream:
            conflicts.append(Conflict(kind, name, item.upstream, owner))
        elif has_own(kind, name):
            conflicts.append(Conflict(kind, name, item.upstream, ""))
        else:
            items[kind][name] = item
    found = {each.names.prefix: each.announcement for each in mounts.values() if each.announcement}
    announcement = {"id": gateway_id, "upstreams": found, STARTING: starting}
    return Offer(
        items, _merge_hints(mounts), _merge_instructions(mounts, instructions), announcement, conflicts, warnings
    )


def _items_of(mounts: Mapping[str, Mount]) -> Iterator[tuple[str, str, OfferedItem]]:
    for each in mounts.values():
        for kind, items in each.items.items():
            for name, item in items.items():
                yield kind, name, item


def _merge_hints(mounts: Mapping[str, Mount]) -> dict[str, tuple[int, bool]]:
    """Combine the cache hints: the shortest lifetime, and private if any upstream's list is.

    Nothing can be cached while an upstream has no lists yet, or if one that's asked each time gives no hint.
    """
    merged: dict[str, tuple[int, bool]] = {}
    for each in mounts.values():
        listed = bool(each.catalog.taken_at)
        hints = each.catalog.hints if listed else {}
        if each.is_asked or not listed:
            hints = _NO_CACHE | hints
        for kind, (ttl_ms, private) in hints.items():
            before = merged.get(kind, (ttl_ms, False))
            merged[kind] = min(before[0], ttl_ms), before[1] or private
    return merged


def _merge_instructions(mounts: Mapping[str, Mount], own: str) -> tuple[Instruction, ...]:
    """Return the server's instructions, followed by each upstream's under its name."""
    parts = [Instruction(own)]
    for each in mounts.values():
        # In a loop of gateways, instructions would contain each other.
        text = "" if each.looping else each.catalog.instructions[:MAX_INSTRUCTIONS]
        prefix = each.names.prefix
        if text:
            short = f"{each.upstream}:\n{text}"
            text = f"{each.upstream} (names begin with {prefix}_):\n{text}" if prefix else text
            parts.append(Instruction(text, _readers_of(each), each.upstream, short))
    return tuple(parts)


def _readers_of(mount: Mount) -> Callable[[Principal | None, frozenset[str] | None], bool] | None:
    """Return who reads an upstream's instructions: callers who see one of its items, or None for every caller. Without
    items, the rules for all of its items decide.
    """
    offered = [each.rules for items in mount.items.values() for each in items.values()]
    if not offered and mount.unlisted is not None:
        offered = [mount.unlisted]
    conditions = {(each.visible, each.scopes) for each in offered}
    if (None, frozenset()) in conditions:
        return None

    def reads(principal: Principal | None, granted: frozenset[str] | None) -> bool:
        return any(
            (visible is None or visible(principal)) and (granted is None or scopes <= granted)
            for visible, scopes in conditions
        )

    return reads
