"""Sets as an operator writes them: addresses with items of their own."""

import re
from collections.abc import Collection, Mapping
from typing import TypedDict

from msgspec import Struct, field, structs

from millstream._config import RateText
from millstream._gateway.options.policy import PromptPolicy, ResourcePolicy, Texts, ToolPolicy, convert_fields
from millstream.protocol import SuggestionMeta

_NAME = re.compile("[A-Za-z0-9_-]{1,64}")


_PATH = re.compile("(/[A-Za-z0-9_.~-]+)+")


_RULES = frozenset((
    "name", "title", "description", "defaults", "hidden", "annotations", "scopes", "groups", "claims", "tags",
    "timeout",
))  # fmt: skip
"""Rules that a set can have for its items. The others apply at each address."""


class SetOptions(TypedDict, total=False):
    """Options of `Server.add_set`. See `SetConfig`."""

    name: str
    instructions: str
    upstreams: Collection[str]
    allow: Collection[str]
    deny: Collection[str]
    with_tags: Collection[str]
    with_hints: Mapping[str, bool]
    with_scopes: Collection[str]
    with_groups: Collection[str]
    short_names: bool
    scopes: Collection[str]
    groups: Collection[str]
    limit: str
    tools: Mapping[str, ToolPolicy]
    prompts: Mapping[str, PromptPolicy]
    resources: Mapping[str, ResourcePolicy]


class SetConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=SuggestionMeta):
    """A set of a server's items, with an address of its own: ``SetConfig(name="interns", allow=("files_read*",))``

    An item is in the set if each selector that's given chooses it: `upstreams`, `allow`, `deny`, and those that begin
    with ``with_``. Names and patterns are those of the main address.
    """

    name: str = ""
    """Name for logs and pages. By default, the last part of `path`."""
    path: str = ""
    """Path of MCP, by default the main path, followed by the name. With the main path, clients can use only the set
    there, and items that no set has can't be reached.
    """
    instructions: str = ""
    """Instructions for the client's model. By default, the server's own, and those of the upstreams with items here."""
    upstreams: Texts = ()
    """Patterns of upstreams' names. If there are any, the set has only items of these upstreams."""
    allow: Texts = ()
    """Patterns of names and URIs."""
    deny: Texts = ()
    """Patterns of names and URIs that aren't in the set, even if `allow` matches."""
    with_tags: Texts = ()
    """Tags of which an item needs one."""
    with_hints: dict[str, bool] = field(default_factory=dict[str, bool])
    """Annotations that a tool needs, such as ``readOnlyHint``. They choose only among tools."""
    with_scopes: Texts = ()
    """Chooses items that require one of these scopes."""
    with_groups: Texts = ()
    """Chooses upstreams' items that require one of these groups."""
    short_names: bool = False
    """Whether tools and prompts are named without their upstream's prefix, except where two would have one name."""
    scopes: Texts = ()
    """Scopes that a caller needs to use the set. All are required."""
    groups: Texts = ()
    """Values of the claim `groups`. A caller needs one of them to use the set."""
    limit: RateText = ""
    """Maximum rate of tool calls per caller at this address, such as ``60/minute``."""
    tools: dict[str, ToolPolicy] = field(default_factory=dict[str, ToolPolicy])
    """Pattern -> rules of the set's tools, in addition to those of the main address."""
    prompts: dict[str, PromptPolicy] = field(default_factory=dict[str, PromptPolicy])
    """Pattern -> rules of the set's prompts."""
    resources: dict[str, ResourcePolicy] = field(default_factory=dict[str, ResourcePolicy])
    """Pattern -> rules of the set's resources and templates."""

    def __post_init__(self) -> None:
        """Check the values, and convert lists.

        Raises:
            ValueError: A value has the wrong type, or can't be set for a set.
        """
        convert_fields(self)
        if not self.name:
            structs.force_setattr(self, "name", self.path.rpartition("/")[2])
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"The set's name can't be {self.name!r}. Use letters, digits, underscores, and hyphens.")
        if self.path and not _PATH.fullmatch(self.path):
            raise ValueError(f"path can't be {self.path!r}. Write a path such as /mcp/{self.name}.")
        for pattern, rules in {**self.tools, **self.prompts, **self.resources}.items():
            default = type(rules)()
            for rule in structs.fields(rules):
                if rule.name not in _RULES and getattr(rules, rule.name) != getattr(default, rule.name):
                    raise ValueError(
                        f"{pattern!r}: {rule.name} can't differ between addresses. Set it on the tool, or in the "
                        "policy of its upstream."
                    )
