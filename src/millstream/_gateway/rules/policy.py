"""Policies for upstreams: items and their names, visibility, arguments, results, and limits.

The operator writes an `UpstreamPolicy`; `Policy` compiles it when items are registered. An item without rules gets no
extra frame.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Protocol, cast

from msgspec import Raw, Struct, structs

from millstream import Principal, ProtocolError, ToolError
from millstream._gateway.names import Names, with_safe_names
from millstream._gateway.options.policy import (
    EVERYONE,
    QUESTIONS,
    ApprovalPolicy,
    CommonRules,
    GroupPolicy,
    Redaction,
    Texts,
    ToolPolicy,
    ToolRules,
    UpstreamPolicy,
    patterns_in,
)
from millstream._gateway.rules.approval import with_approval
from millstream._gateway.rules.patterns import key_forms, matcher, uri_key
from millstream._gateway.rules.results import (
    CHARACTERS_PER_TOKEN,
    RESULT_SECONDS,
    Redactor,
    StoredResults,
    run_aside,
    shorten_result,
)
from millstream._protocol.errors import RESOURCE_NOT_FOUND
from millstream._protocol.uri import normalize_uri
from millstream._server.calls.call import Call, check_scopes
from millstream._server.calls.idempotency import KEY
from millstream._server.features import Run
from millstream._server.features.resources import Pattern, Template
from millstream._server.features.sources import Item, Visible, both, require_scopes
from millstream._server.features.tools import Tool
from millstream.protocol import (
    MALFORMED,
    Json,
    decode_object,
    encode,
    is_array,
    is_object,
    members,
    shorten,
)


def _has_claim(claim: Any, value: Any) -> bool:
    return any(type(each) is type(value) and each == value for each in (claim if is_array(claim) else (claim,)))


class ItemRules(Struct, frozen=True, kw_only=True):
    """The compiled rules of one item."""

    name: str = ""
    """Name of a tool or prompt, without the prefix."""
    scopes: frozenset[str] = frozenset()
    visible: Visible | None = None
    tags: frozenset[str] = frozenset()
    limit: str = ""
    cost: float = 1.0
    concurrency: int = 0
    timeout: float = 0.0
    title: str = ""
    description: str = ""
    annotations: Mapping[str, Any] = {}
    defaults: Mapping[str, Any] = {}
    hidden: Mapping[str, Any] = {}
    names: Mapping[str, str] = {}
    """Name of an argument as callers see it -> the tool's own, where these differ."""
    budget: int = 0
    """Maximum size of a result, in bytes, or 0 for no limit."""
    result_seconds: float = RESULT_SECONDS
    arguments: Redactor | None = None
    results: Redactor | None = None
    idempotency: bool | str = False
    approvals: tuple[ApprovalPolicy, ...] = ()
    """Which calls a person has to approve."""
    rules_of: "Callable[[str], ItemRules | None] | None" = None
    """For a template: returns the rules for a URI, as callers see it, or None if it isn't offered."""

    def describe(self, description: Mapping[str, Any]) -> Json:
        """Return a listed description as callers see it, under the upstream's name or URI."""
        texts = {"name": self.name, "title": self.title, "description": self.description}
        changed: Json = {**description, **{key: text for key, text in texts.items() if text}}
        if self.annotations:
            changed["annotations"] = {**members(changed.get("annotations")), **self.annotations}
        if self.defaults or self.hidden:
            if is_object(changed.get("inputSchema")):
                changed["inputSchema"] = self._schema(changed["inputSchema"])
            if is_array(changed.get("arguments")):
                changed["arguments"] = [
                    {**each, "required": False} if each.get("name") in self.defaults else each
                    for each in changed["arguments"]
                    if is_object(each) and each.get("name") not in self.hidden
                ]
        if self.names:
            changed["inputSchema"] = with_safe_names(changed["inputSchema"], self.names)
        if self.idempotency:
            changed["_meta"] = {**members(changed.get("_meta")), KEY: True}
        if self.budget:
            changed.pop("outputSchema", None)  # a preview wouldn't match the output schema
        return changed

    def _schema(self, schema: Json) -> Json:
        properties = {name: each for name, each in members(schema.get("properties")).items() if name not in self.hidden}
        for name, value in self.defaults.items():
            if is_object(properties.get(name)):
                properties[name] = {**properties[name], "default": value}
        changed = {**schema, "properties": properties}
        required = schema.get("required")
        if is_array(required):
            changed["required"] = [name for name in required if name not in self.hidden and name not in self.defaults]
        for keyword in ("dependentRequired", "dependentSchemas"):
            if is_object(schema.get(keyword)):
                changed[keyword] = {
                    name: [each for each in value if each not in self.hidden] if is_array(value) else value
                    for name, value in schema[keyword].items()
                    if name not in self.hidden
                }
        return changed

    @property
    def changes_arguments(self) -> bool:
        """Whether arguments have to be decoded."""
        return bool(self.defaults or self.hidden or self.names or self.arguments is not None)

    def fill(self, arguments: Any, parameters: Collection[str] = ()) -> Any:
        """Return the arguments for the upstream, as JSON or as a dict like the input.

        Args:
            arguments: The caller's arguments.
            parameters: Names of the arguments that callers may pass.

        Raises:
            ToolError: The arguments aren't an object.
        """
        given = arguments
        if not is_object(arguments):
            try:
                given = decode_object(arguments or b"{}")
            except MALFORMED as exc:
                raise ToolError("The arguments must be a JSON object.") from exc
        names = self.names
        values = {**self.defaults, **{names.get(name, name): value for name, value in given.items()}}
        if self.hidden:  # many programs ignore case in member names
            hidden = {name.casefold() for name in self.hidden}
            parameters = {names.get(name, name) for name in parameters}
            values = {
                name: value for name, value in values.items() if name.casefold() not in hidden or name in parameters
            }
        if self.arguments is not None:
            values = self.arguments.value(values, names=False)
        values |= self.hidden  # last, so a caller can't override them
        return values if given is arguments else Raw(encode(values))

    def apply(self, item: Item, stored: StoredResults) -> None:
        """Apply the rules to an upstream's new item before it's registered. Its results are JSON objects as bytes.

        Args:
            item: Item created from the result of `describe`.
            stored: Keeps oversized results.
        """
        item.scopes = self.scopes
        item.tags |= self.tags
        item.visible = self.visible
        if isinstance(item, Tool):
            item.limit = self.limit
            item.concurrency = self.concurrency
            item.limited = bool(self.limit or self.concurrency)
            item.cost = self.cost
            item.timeout = self.timeout or None
            item.idempotency = self.idempotency
            item.plain = item.plain and not (self.timeout or self.visible or self.approvals or self.idempotency)
            if approvals := [each for each in self.approvals if not each.tags or item.tags.intersection(each.tags)]:
                item.version = self._version(item)
                item.run = with_approval(item, approvals, self.hidden, self.names)
                if not all(each.by for each in approvals):
                    item.asks = item.asks_first = True
        else:
            item.fixed |= self.hidden.keys()
        if isinstance(item, Template) and self.rules_of is not None:
            item.template, item.find_rules = RestrictedPattern(item.template, self.rules_of), self.rules_of
            item.run = _with_uri_rules(item.run, self.rules_of)
        if self.changes_arguments or self.results is not None or self.budget:
            item.run = self._wrap(item.run, stored, item.parameters)
        item.run = require_scopes(item.run, self.scopes)

    def _version(self, item: Tool) -> str:
        """Return a digest of a tool's definition and its rules about approvals and arguments."""
        rules = [item.version, item.describe(), self.approvals, self.hidden, self.defaults]
        return sha256(encode(rules)).hexdigest()

    def narrow(self, item: Item) -> None:
        """Apply the rules of a set to its copy of an item, in addition to the item's own rules."""
        item.set_description(self.describe(item.describe()))
        item.tags |= self.tags
        item.scopes |= self.scopes
        item.run = require_scopes(item.run, self.scopes)
        item.visible = both(item.visible, self.visible)
        if self.defaults or self.hidden:
            read, parameters = item.read, tuple(each for each in item.parameters if each not in self.hidden)
            item.parameters = parameters
            item.fixed |= self.hidden.keys()
            item.read = lambda raw: read(self.fill(raw, parameters))
        if isinstance(item, Tool):
            item.version = item.version and self._version(item)
            item.timeout = self.timeout or item.timeout
            item.headers = tuple(each for each in item.headers if each.path[0] not in self.hidden)
            item.plain = item.plain and not (self.timeout or item.visible or self.defaults or self.hidden)
        if isinstance(item, Template) and self.rules_of is not None:
            item.template = RestrictedPattern(item.template, self.rules_of)
            item.find_rules = _each_of(item.find_rules, self.rules_of)
            run, ruled = item.run, _with_uri_rules(item.run, self.rules_of)
            # Other methods read templates of this server for its own functions, and don't name the URI.
            is_own = not item.origin
            item.run = lambda values, call: (run if is_own and call.method != "resources/read" else ruled)(values, call)

    def _wrap(self, run: Run, stored: StoredResults, parameters: Collection[str]) -> Run:
        async def run_by_rules(arguments: Any, call: Call) -> Any:
            if self.changes_arguments:
                arguments = await run_aside(call, call.weight, self.fill, arguments, parameters)
            work = run(arguments, call)
            result = await (work if self.results is None else self.results.redact(work, call))
            if not self.budget or len(result) <= self.budget:
                return result
            return await shorten_result(call, result, self.budget, stored, self.result_seconds)

        return run_by_rules


FindRules = Callable[[str], ItemRules | None]
"""Returns the rules of a URI, or None if it isn't offered."""


def _each_of(first: FindRules | None, second: FindRules) -> FindRules:
    """Return a function that returns the conditions of two policies for a URI."""
    if first is None:
        return second

    def find(uri: str) -> ItemRules | None:
        one, two = first(uri), second(uri)
        if one is None or two is None:
            return None
        return ItemRules(visible=both(one.visible, two.visible), scopes=one.scopes | two.scopes)

    return find


_NO_RULES = ItemRules()


class RestrictedPattern(Struct, frozen=True):
    """The URIs of a template, except URIs that aren't offered."""

    pattern: Pattern
    offers: Callable[[str], object]
    """Returns a false value for a URI that isn't offered."""

    @property
    def variables(self) -> tuple[str, ...]:
        """Names in order of first appearance."""
        return self.pattern.variables

    def match(self, uri: str) -> Json | None:
        """Return the values of the variables in a URI, or None if the URI isn't offered."""
        found = self.pattern.match(uri)
        return found if found is not None and self.offers(uri) else None


def _with_uri_rules(run: Run, rules_of: Callable[[str], ItemRules | None]) -> Run:
    """Return a template's `run` that applies the rules of each URI, which may be stricter than the template's."""

    async def run_by_rules(arguments: Any, call: Call) -> Any:
        uri: str = getattr(arguments, "uri", "") or call.name
        rules = rules_of(uri)
        if rules is None or (rules.visible is not None and not rules.visible(call.principal)):
            raise ProtocolError(RESOURCE_NOT_FOUND, "Resource not found", {"uri": shorten(uri)})
        check_scopes(call, rules.scopes)
        work = run(arguments, call)
        return await (work if rules.results is None else rules.results.redact(work, call))

    return run_by_rules


_OWN_NAMES = Names("")


class Lists(Protocol):
    """The lists of an upstream, as policies need them."""

    @property
    def taken_at(self) -> float:
        """When they were read, or 0."""
        ...

    def items(self) -> Iterator[tuple[str, str, Any]]:
        """Yield kind, upstream's name, and description of each item."""
        ...


class Policy:
    """The compiled policy of one upstream.

    Args:
        policy: The operator's policy.
        names: Mapping to the names that callers see, for shared policies.

    Raises:
        ValueError: A regular expression is invalid.
        ImportError: There are regular expressions, but the extra `redact` isn't installed.
    """

    def __init__(self, policy: UpstreamPolicy, names: Names = _OWN_NAMES) -> None:
        layers = [policy]
        while (parent := layers[0].shared) is not None:
            if len(layers) > _MAX_SHARED:
                raise ValueError("The shared= policies form a loop, or are nested too deeply. Remove one of them.")
            layers.insert(0, parent)
        self._layers = [_Layer(each, _OWN_NAMES if each is policy else names) for each in layers]
        self.own: UpstreamPolicy = policy
        """The upstream's own rules."""
        self.shared: Sequence[UpstreamPolicy] = layers[:-1]
        """Rules that it shares with others, for names with the prefix."""
        self.is_empty: bool = policy == UpstreamPolicy()
        """Whether there are no rules."""
        self._names = names
        self.questions: frozenset[str] = frozenset[str](QUESTIONS).intersection(*(each.questions for each in layers))
        """Kinds of questions that the upstream may ask."""
        every = [
            rules
            for layer in layers
            for rules in (layer, *layer.tools.values(), *layer.prompts.values(), *layer.resources.values())
        ]
        merged = _merge(every)
        self.has_budgets: bool = _budget(merged) > 0
        """Whether any tool has a budget for its results."""
        about_uris = [each for one in layers for each in (*patterns_in(one), *one.resources)]
        self._has_uris = bool(about_uris)
        """Whether some URIs have different rules than their template."""
        self._names_templates = any("{" in each for each in about_uris)
        self.trusts_hints: bool = any(each.trust_hints for each in layers)
        """Whether the upstream's own hints count."""
        for rules in every:
            _redactor(getattr(rules, "redact_arguments", None))
        self._all_results = _redactor(merged.get("redact_results"))
        self.rule_for_all: str = self._find_rule_for_all(layers, merged)
        """What it changes about every item, or about the upstream's other messages, or empty."""
        self._change_of = lru_cache(1024)(self._find_change)
        self._remembered_rules = lru_cache(1024)(self._find_rules)
        self._changed: tuple[Lists | None, frozenset[str]] = (None, frozenset())
        """The lists of the last `changed_kinds`, and its result."""
        self.redactor: Callable[[str, str], Redactor | None] = lru_cache(1024)(self._find_redactor)
        """Returns the redactor for the messages of a request, by its method and the upstream's name of the item."""

    def item(
        self, kind: str, name: str, hints: Mapping[str, Any] = {}, *, is_listed: bool = True, other_name: str = ""
    ) -> ItemRules | None:
        """Return the rules of an item, or None if it isn't offered. The order of the rules, and which of them win, is
        decided here, as docs/guides/gateway-policies.md shows it.

        Args:
            kind: Tools, prompts, resources, or templates.
            name: Upstream's name or URI.
            hints: Annotations of a tool, except those that are only its upstream's word.
            is_listed: Whether the upstream lists it. Of another URI, each spelling has to be allowed.
            other_name: Another name that patterns can match.
        """
        if self.is_empty:
            return _NO_RULES
        names = allowed = [name, other_name] if other_name else [name]
        keys = strict = list[str]()
        if kind in ("resources", "templates") and self._has_uris:
            # Rules may be written in any spelling, and an upstream may list any.
            if not (key := uri_key(name, is_listed=is_listed)):
                return None
            keys, strict = key_forms(key), [key, key.rstrip("/")]
            allowed = [name, normalize_uri(name)]
        found = [rules for layer in self._layers for rules in layer.rules(kind, names, keys)]
        merged, is_tool = _merge(found), kind == "tools"
        hints = {**hints, **merged.get("annotations", {})}
        is_read_only = not is_tool or hints.get("readOnlyHint") is True
        may_destroy = not is_read_only and hints.get("destructiveHint") is not False

        def permits(layer: _Layer, rules: UpstreamPolicy | GroupPolicy) -> bool:
            if layer.matches(rules.deny, kind, names, keys):
                return False
            allow = rules.allow or _ANY
            if is_listed:
                return layer.matches(allow, kind, allowed)
            return layer.matches(allow, kind, names) and all(layer.matches(allow, kind, (), (each,)) for each in strict)

        if not all(permits(layer, layer.policy) for layer in self._layers):
            return None
        groups = [rules.groups for rules in found if rules.groups and not is_object(rules.groups)]
        groups += [
            tuple(
                group
                for group, rules in tables.items()
                if (is_read_only or not rules.read_only) and permits(layer, rules)
            )
            for layer in self._layers
            if is_object(tables := layer.policy.groups)
        ]
        if () in groups:
            return None
        asked = [rules.approve for rules in found if isinstance(rules, ToolRules) and is_tool]
        approvals = [each if isinstance(each, ApprovalPolicy) else ApprovalPolicy() for each in asked if each]
        return ItemRules(
            name="" if kind in ("resources", "templates") else merged.get("name", name),
            scopes=frozenset(merged.get("scopes", ())),
            visible=_visibility(groups, found),
            tags=frozenset(merged.get("tags", ())),
            rules_of=self.rules_of if kind == "templates" and self._has_uris else None,
            budget=_budget(merged) if is_tool else 0,
            arguments=_redactor(merged.get("redact_arguments")) if is_tool else None,
            results=_redactor(merged.get("redact_results")),
            approvals=tuple(
                each
                for each in approvals
                if not each.hint or (may_destroy if each.hint == "destructive" else not is_read_only)
            ),
            **{name: merged[name] for name in _COPIED & merged.keys()},
        )

    def find_key(self, kind: str, name: str) -> str:
        """Return the text that rules compare for an item that the upstream lists, or an empty string if programs read
        its URI differently, so that rules about URIs leave it out.
        """
        is_uri = kind in ("resources", "templates") and self._has_uris
        return uri_key(name, is_listed=True) if is_uri else name

    def changed_kinds(self, catalog: Lists) -> frozenset[str]:
        """Return the kinds of lists that have an item that it changes.

        Args:
            catalog: The upstream's lists.
        """
        if self._changed[0] is not catalog:
            found = frozenset(kind for kind, name, _ in catalog.items() if self.changes(kind, name))
            self._changed = catalog, found
        return self._changed[1]

    def passes_extensions(self, catalog: Lists) -> bool:
        """Return whether methods that MCP doesn't define pass. They may be about any item, so it mustn't change one.

        Args:
            catalog: The upstream's lists.
        """
        if self.is_empty:
            return True
        limited = self.rule_for_all or any(layer.policy.allow for layer in self._layers)
        return bool(catalog.taken_at) and not limited and not self.changed_kinds(catalog)

    def _find_rule_for_all(self, layers: Sequence[UpstreamPolicy], merged: Json) -> str:
        if "redact_results" in merged or "redact_arguments" in merged:
            return "redacts text"
        if len(self.questions) < len(QUESTIONS):
            return "limits questions"
        plain = ToolRules()
        direct = any(getattr(each, name) != getattr(plain, name) for each in layers for name in plain.__struct_fields__)
        return "has rules for every item" if direct else ""

    def changes(self, kind: str, name: str) -> bool:
        """Return whether it hides or changes an item, listed or not. Names that are too long for an item count as
        changed, because callers choose them, and the results for the last thousand are kept.

        Args:
            kind: Tools, prompts, resources, or templates.
            name: Upstream's name or URI.
        """
        return not self.is_empty and (len(name) > _MAX_NAME or self._change_of(kind, name))

    def _find_change(self, kind: str, name: str) -> bool:
        if kind in ("resources", "templates"):
            if self._names_templates:
                return True  # which of an upstream's templates an unlisted URI belongs to is only a guess
            rules = self.item(kind, name) if kind == "templates" else self.rules_of(name)
        else:
            rules = self.item(kind, name)
        own_name = "" if kind in ("resources", "templates") else name
        return rules is None or structs.replace(rules, rules_of=None) != ItemRules(name=own_name)

    def _find_redactor(self, method: str, name: str) -> Redactor | None:
        kind = {"tools/call": "tools", "prompts/get": "prompts"}.get(method)
        if kind is None:  # several rules may apply
            return self._all_results
        rules = self.item(kind, name)
        return None if rules is None else rules.results

    def rules_of(self, uri: str) -> ItemRules | None:
        """Return the rules of an unlisted URI, as callers see it, or None if it isn't offered.

        Considers every spelling that an upstream may treat as the same resource. The results for the last thousand URIs
        are kept, because each follower of a resource asks.
        """
        if self.is_empty:
            return _NO_RULES
        return self._remembered_rules(uri) if len(uri) <= _MAX_REMEMBERED else self._find_rules(uri)

    def _find_rules(self, uri: str) -> ItemRules | None:
        original = self._names.original_uri(uri)
        return None if original is None else self.item("resources", original, is_listed=False)


_ANY = ("*",)
_MAX_SHARED = 8
_MAX_REMEMBERED = 1024
"""Maximum characters of a URI whose rules are kept."""
_MAX_NAME = 4096
"""Maximum characters of a name or URI that a policy leaves unchanged."""
_COPIED = {*ItemRules.__struct_fields__} & {*ToolPolicy.__struct_fields__} - {"name", "scopes", "tags"}
"""Options whose merged value is the item's own."""


class _Layer(Struct, frozen=True):
    """One policy. Its patterns match names as `names` returns them."""

    policy: UpstreamPolicy
    names: Names

    def rules(self, kind: str, names: Collection[str], keys: Collection[str]) -> list[CommonRules]:
        """Return the rules of an item, the most general ones first."""
        some: Mapping[str, CommonRules] = getattr(self.policy, "resources" if kind == "templates" else kind)
        return [self.policy, *(rules for pattern, rules in some.items() if self.matches((pattern,), kind, names, keys))]

    def matches(self, patterns: Texts, kind: str, names: Collection[str], keys: Collection[str] = ()) -> bool:
        """Return whether one of the patterns matches a name, a URI, or one of a URI's keys."""
        if not patterns:
            return False
        match = matcher(patterns)
        if any(match(self.names.qualify(kind, each)) for each in names):
            return True
        match = matcher(patterns, of_keys=True) if keys else match
        return any(match(self.names.qualify(kind, each)) for each in keys)


@lru_cache(256)
def _redactor(patterns: tuple[str | Redaction, ...] | None) -> Redactor | None:
    return Redactor(patterns) if patterns else None


def _merge(found: Sequence[CommonRules]) -> Json:
    """Return the fields that any of the rules sets: the last value of each, and all entries of lists and tables."""
    merged: Json = {}
    for rules in found:
        for name, value in structs.asdict(rules).items():
            if not value or name in _SEPARATE:
                continue
            if isinstance(value, tuple):
                more = cast("tuple[object, ...]", value)
                merged[name] = tuple(dict.fromkeys((*merged.get(name, ()), *more)))
            elif is_object(value):
                merged[name] = merged.get(name, {}) | value
            else:
                merged[name] = value
    return merged


_SEPARATE = ("groups", "claims", "approve")
"""Fields of which each rule's value applies."""


def _budget(rules: Mapping[str, Any]) -> int:
    """Return the smaller of the two budgets, in bytes, or 0 without one."""
    sizes = rules.get("result_bytes", 0), rules.get("result_tokens", 0) * CHARACTERS_PER_TOKEN
    return min((size for size in sizes if size), default=0)


class Visibility(Struct, frozen=True):
    """Who sees an item: callers with all claims, and one group of each rule."""

    groups: tuple[Texts, ...]
    claims: tuple[tuple[str, str | int | bool], ...]

    def __call__(self, principal: Principal | None) -> bool:
        """Return whether a caller sees it."""
        if principal is None:
            return False
        return all(EVERYONE in each or principal.in_group(each) for each in self.groups) and all(
            _has_claim(principal.claims.get(name), value) for name, value in self.claims
        )


def _visibility(groups: Collection[Texts], found: Sequence[CommonRules]) -> Visibility | None:
    required = tuple(dict.fromkeys(claim for rules in found for claim in rules.claims.items()))
    return Visibility(tuple(groups), required) if groups or required else None
