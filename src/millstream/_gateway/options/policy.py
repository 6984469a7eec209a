"""Policies as an operator writes them: items and their names, visibility, arguments, results, and limits."""

import re
from collections.abc import Collection, Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import fields, force_setattr

from millstream._config import Cap, DurationText, RateText, Seconds
from millstream._suggestions import closest_name
from millstream.protocol import (
    Json,
    SuggestionMeta,
    is_object,
)

Approver = Annotated[str, Meta(pattern=r"^(group|user):(?!(group|user):)(?=.*\w)[^\s*]+( +[^\s*]+)*$(?!\n)")]
Approvers = Annotated[
    Annotated[tuple[Approver, ...], Meta(min_length=1)] | None,
    Meta(description="a list of group:NAME and user:SUBJECT, without patterns"),
]


class ApprovalPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=SuggestionMeta):
    """Which calls of a tool a person has to approve: those that meet each of the conditions.

    Example:
        ``ToolPolicy(approve=ApprovalPolicy(arguments={"environment": "prod*"}))``
    """

    hint: Literal["", "writes", "destructive"] = ""
    """``writes`` for tools that aren't known to be read-only, or ``destructive`` for those that may also destroy."""
    tags: tuple[str, ...] = ()
    """Tags of tools, one of which must be present."""
    arguments: dict[str, str] = {}
    """Argument -> pattern of its value. An argument that's missing counts as matching, because of defaults."""
    by: Approvers = None
    """People who approve instead of the person at the client: ``group:NAME``, or ``user:SUBJECT``."""
    issuer: str = ""
    """Issuer at which these people sign in, or empty for any, and for keys."""
    within: DurationText = "8h"
    """How long a request for their approval is valid, such as ``30m``, ``8h``, or ``3d``."""

    def __post_init__(self) -> None:
        """Check the types. See `CommonRules`.

        Raises:
            ValueError: A value has the wrong type or is out of range.
        """
        convert_fields(self)
        if self.issuer and not self.by:
            raise ValueError("issuer has no meaning without by. List the people who approve.")


class Redaction(Struct, frozen=True, forbid_unknown_fields=True, metaclass=SuggestionMeta):
    """A regular expression in RE2's syntax, and the text that replaces each match.

    Example:
        ``Redaction(r"[\\w.]+@[\\w.]+", replacement="[email]")``
    """

    pattern: str
    replacement: str = "[redacted]"


Weight = Annotated[float, Meta(gt=0, le=1_000_000, description="a number above 0")]


Texts = tuple[str, ...]


Question = Literal["elicitation", "sampling", "roots"]


QUESTIONS: tuple[Question, ...] = ("elicitation", "sampling", "roots")


class CommonRules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=SuggestionMeta):
    """Rules for all kinds of items."""

    scopes: Texts = ()
    """Scopes that a caller needs. All are required. The item is hidden from other callers."""
    groups: Texts = ()
    """Values of the claim `groups`. A caller needs at least one. The item is hidden from other callers."""
    claims: dict[str, str | int | bool] = field(default_factory=dict[str, str | int | bool])
    """Claims that a caller needs, each with this value or as a list that contains it. Hidden from other callers."""
    tags: Texts = ()
    """Tags for `Server.disable` and tool search."""
    redact_results: tuple[str | Redaction, ...] = ()
    """Regular expressions for text to replace with `[redacted]` for callers."""

    def __post_init__(self) -> None:
        """Check the types, because a string instead of a list would become one pattern per character.

        Raises:
            ValueError: A value has the wrong type or is out of range.
        """
        convert_fields(self)


def convert_fields(options: Struct) -> None:
    """Check the types of a new Struct's values, and convert lists.

    Args:
        options: The Struct, which is otherwise frozen.

    Raises:
        ValueError: A value has the wrong type or is out of range.
    """
    for each in fields(type(options)):
        value = getattr(options, each.name)
        try:
            converted = msgspec.convert(value, each.type)
        except msgspec.ValidationError as exc:
            words = [f"It must be {meta.description}." for meta in getattr(each.type, "__metadata__", ())]
            raise ValueError(f"{each.name} can't be {value!r}. {words[0] if words else f'{exc}.'}") from None
        if converted is not value:
            force_setattr(options, each.name, converted)


class ToolRules(CommonRules, frozen=True, kw_only=True):
    """Rules for one tool or all tools of an upstream."""

    limit: RateText = ""
    """Rate limit per caller and tool, such as ``10/minute``."""
    cost: Weight | None = None
    """Number of calls that one call counts as in the caller's limits."""
    concurrency: Cap = 0
    """Maximum concurrent calls of all callers together, or 0 for no limit."""
    timeout: Seconds = 0.0
    """Timeout of a call in seconds, or 0 for the upstream's own timeout."""
    result_bytes: Cap = 0
    """Maximum size of a result, in bytes, or 0 for no limit. Of a larger one, callers get the beginning and a URI."""
    result_tokens: Cap = 0
    """The same limit in tokens of four characters. The smaller one applies."""
    result_seconds: Seconds = 0.0
    """Seconds that the URI works, or 0 for an hour."""
    redact_arguments: tuple[str | Redaction, ...] = ()
    """Regular expressions for text to redact before arguments reach the upstream."""
    idempotency: bool | DurationText = False
    """Whether calls with the same key run once, or a time such as ``10m``, in which calls with the same arguments count
    as one, too.
    """
    approve: bool | ApprovalPolicy = False
    """Whether a person at the client approves each call, or the calls that do so. Other clients can't call it."""


class GroupPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=SuggestionMeta):
    """What the members of one group see."""

    allow: Texts = ()
    """Patterns of names and URIs. If there are any, only matching items."""
    deny: Texts = ()
    """Patterns of names and URIs that they don't see as members of this group, even if `allow` matches."""
    read_only: bool = False
    """Of the tools, only those that are known to be read-only."""


class ToolPolicy(ToolRules, frozen=True, kw_only=True):
    """Rules for tools with names that match a pattern."""

    name: str = ""
    """New name. The prefix is still added to it."""
    title: str = ""
    description: str = ""
    defaults: Json = field(default_factory=Json)
    """Default values of arguments, shown in the schema."""
    hidden: Json = field(default_factory=Json)
    """Fixed values of arguments. They aren't listed, and callers can't change them."""
    annotations: dict[str, bool | str] = field(default_factory=dict[str, bool | str])
    """Hints for clients, such as ``readOnlyHint``, which override the upstream's."""


class PromptPolicy(CommonRules, frozen=True, kw_only=True):
    """Rules for prompts with names that match a pattern."""

    name: str = ""
    """New name. The prefix is still added to it."""
    title: str = ""
    description: str = ""
    defaults: dict[str, str] = field(default_factory=dict[str, str])
    """Default values of arguments."""
    hidden: dict[str, str] = field(default_factory=dict[str, str])
    """Fixed values of arguments. They aren't listed, and callers can't change them."""


class ResourcePolicy(CommonRules, frozen=True, kw_only=True):
    """Rules for resources and templates with URIs that match a pattern."""

    title: str = ""
    description: str = ""


class UpstreamPolicy(ToolRules, frozen=True, kw_only=True):
    """Policy for an upstream.

    Patterns match the upstream's names and URIs, without the prefix. Rules given directly apply to all items; `tools`,
    `prompts`, and `resources` add rules for some. If several rules match, the last value wins, while scopes, groups,
    claims, tags, and redactions accumulate.

    Example:
        ``UpstreamPolicy(deny=("delete_*",), tools={"search": ToolPolicy(limit="10/minute")})``
    """

    allow: Texts = ()
    """Patterns of names and URIs. If there are any, only matching items are offered."""
    deny: Texts = ()
    """Patterns of names and URIs that aren't offered, even if `allow` matches."""
    groups: Texts | dict[str, GroupPolicy] = ()  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleVariableOverride]
    """Groups of which a caller needs one. In a table, each has its own rules, and ``*`` is everyone who signs in."""
    trust_hints: bool = False
    """Whether the upstream's own hints count, such as ``readOnlyHint``, if the operator hasn't accepted them."""
    questions: tuple[Question, ...] = QUESTIONS
    """Kinds of questions that the upstream may ask its callers: ``elicitation``, ``sampling``, and ``roots``."""
    new_items: Literal["accept", "quarantine"] = "accept"
    """With ``trust = "pin"``, what happens to a definition that was never accepted."""
    pins: str = ""
    """With ``trust = "pin"``, the file of accepted definitions that ``millstream gateway accept`` writes."""
    tools: dict[str, ToolPolicy] = field(default_factory=dict[str, ToolPolicy])
    """Pattern -> rules of the tools that match it."""
    prompts: dict[str, PromptPolicy] = field(default_factory=dict[str, PromptPolicy])
    """Pattern -> rules of the prompts that match it."""
    resources: dict[str, ResourcePolicy] = field(default_factory=dict[str, ResourcePolicy])
    """Pattern -> rules for the resources and templates with a matching URI."""
    shared: "UpstreamPolicy | None" = None
    """A shared policy for several upstreams. Its patterns match names as callers see them, with the prefix."""


EVERYONE = "*"
"""The group of everyone who signs in."""


def impossible_rules(policy: UpstreamPolicy, scopes: frozenset[str], groups: frozenset[str]) -> list[str]:
    """Describe the rules of a policy that hide items from every caller.

    Args:
        scopes: Scopes that callers can have; ``*`` for any.
        groups: Groups that callers can have.
    """
    named = {"": policy, **policy.tools, **policy.prompts, **policy.resources}
    found: list[str] = []
    for pattern, rules in named.items():
        what = f"{pattern!r}" if pattern else "every item"
        lacking = [each for each in rules.scopes if "*" not in scopes and each not in scopes]
        if lacking:
            found.append(f"{what} requires the scope {lacking[0]!r}")
        if rules.groups and groups.isdisjoint(rules.groups) and EVERYONE not in rules.groups:
            found.append(f"{what} requires the group {' or '.join(map(repr, rules.groups))}")
    return found


def find_approvals_by_others(policy: UpstreamPolicy) -> list[ApprovalPolicy]:
    """Return the rules by which another person than the caller approves calls."""
    every = [rules.approve for rules in (policy, *policy.tools.values())]
    found = [each for each in every if isinstance(each, ApprovalPolicy) and each.by]
    return found + ([] if policy.shared is None else find_approvals_by_others(policy.shared))


def find_unknown_names(policy: UpstreamPolicy, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each name in a policy's rules that isn't `known`, and a hint.

    Patterns can match an item that's added later, and a URI can belong to a template.
    """
    for name in dict.fromkeys((*patterns_in(policy), *policy.tools, *policy.prompts, *policy.resources)):
        if name not in known and not re.search("[*?]|://", name):
            near = closest_name(name, known)
            yield name, f" Did you mean {near!r}?" if near else ""


def patterns_in(policy: UpstreamPolicy) -> list[str]:
    """Return the patterns of its lists of names, in groups as well."""
    tables = policy.groups.values() if is_object(policy.groups) else ()
    return [pattern for each in (policy, *tables) for pattern in (*each.allow, *each.deny)]
