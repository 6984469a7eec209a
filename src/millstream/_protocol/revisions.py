"""The five revisions, each written as the one before it plus changes, in the order of the specification's changelog.

This is the only module that knows dates. Everybody else holds a `Revision` and reads a field. Membership of a
method in `Revision.requests` *is* the version gate: what is not there is "method not found".
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace


class Revision(Struct, frozen=True, kw_only=True, eq=False):
    """One revision of the protocol: what it has, allows and asks for."""

    date: str
    handshake: bool = True
    """`initialize` and sessions; False: every request carries its own metadata."""
    requests: Mapping[str, str]
    """Client request -> the server capability it needs ("" for none)."""
    notifications: frozenset[str]
    """Notifications a client may send."""
    asks: frozenset[str]
    """Methods that a server may ask a client."""
    batches: bool = False
    content: frozenset[str]
    """Content block types; others are converted by `projection`."""
    structured: Literal["none", "object", "any"] = "none"
    """The values that `structuredContent` and `outputSchema` may have."""
    tool_annotations: bool = False
    progress_message: bool = False
    completions_capability: bool = False
    completion_context: bool = False
    named_titles: bool = False
    """`title` and `_meta` on named things."""
    icons: bool = False
    """`icons` everywhere; `description` and `websiteUrl` of an implementation."""
    header: bool = False
    """Clients send `MCP-Protocol-Version` after initialization."""
    routing_headers: bool = False
    """`Mcp-Method`, `Mcp-Name`, `Mcp-Param-*` must equal the body."""
    elicitation_modes: frozenset[str] = frozenset()
    rich_forms: bool = False
    """Titled and multi-select enums, defaults of every primitive."""
    elicitation_ids: bool = False
    sampling_tools: bool = False
    url_error: bool = False
    """A server that cannot ask may answer error -32042 with URLs."""
    argument_errors_in_result: bool = False
    """Arguments that violate the schema end in `isError`, not in a protocol error."""
    missing_resource_code: int = -32002
    event_ids: bool = False
    """Streams carry event ids and can be resumed."""
    priming: bool = False
    """Streams start with an empty event, may be closed early and polled."""
    result_type: bool = False
    """`resultType`, cache hints and server information on results."""
    log_level_per_request: bool = False
    method_not_found_status: int = 200


R2024_11_05 = Revision(
    date="2024-11-05",
    requests=MappingProxyType(
        {
            "initialize": "",
            "ping": "",
            "tools/list": "tools",
            "tools/call": "tools",
            "resources/list": "resources",
            "resources/templates/list": "resources",
            "resources/read": "resources",
            "resources/subscribe": "resources",
            "resources/unsubscribe": "resources",
            "prompts/list": "prompts",
            "prompts/get": "prompts",
            "completion/complete": "completions",
            "logging/setLevel": "logging",
        }
    ),
    notifications=frozenset(
        {
            "notifications/initialized",
            "notifications/cancelled",
            "notifications/progress",
            "notifications/roots/list_changed",
        }
    ),
    asks=frozenset({"ping", "roots/list", "sampling/createMessage"}),
    content=frozenset({"text", "image", "resource"}),
)

R2025_03_26 = replace(
    R2024_11_05,
    date="2025-03-26",
    event_ids=True,  # Streamable HTTP
    batches=True,
    tool_annotations=True,
    content=R2024_11_05.content | {"audio"},
    completions_capability=True,
    progress_message=True,
)

R2025_06_18 = replace(
    R2025_03_26,
    date="2025-06-18",
    batches=False,
    structured="object",
    content=R2025_03_26.content | {"resource_link"},
    asks=R2025_03_26.asks | {"elicitation/create"},
    elicitation_modes=frozenset({"form"}),
    header=True,
    named_titles=True,
    completion_context=True,
)

R2025_11_25 = replace(
    R2025_06_18,
    date="2025-11-25",
    icons=True,
    elicitation_modes=frozenset({"form", "url"}),
    elicitation_ids=True,
    url_error=True,
    rich_forms=True,
    sampling_tools=True,
    priming=True,
    argument_errors_in_result=True,
)

R2026_07_28 = replace(
    R2025_11_25,
    date="2026-07-28",
    handshake=False,
    requests=MappingProxyType(
        {
            "server/discover": "",
            **{
                method: capability
                for method, capability in R2025_11_25.requests.items()
                if method
                not in {"initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"}
            },
            "subscriptions/listen": "",
        }
    ),
    notifications=frozenset({"notifications/cancelled"}),
    asks=frozenset({"roots/list", "sampling/createMessage", "elicitation/create"}),
    structured="any",
    elicitation_ids=False,
    url_error=False,
    routing_headers=True,
    result_type=True,
    log_level_per_request=True,
    event_ids=False,
    priming=False,
    missing_resource_code=-32602,
    method_not_found_status=404,
)

ALL: tuple[Revision, ...] = (R2024_11_05, R2025_03_26, R2025_06_18, R2025_11_25, R2026_07_28)
BY_DATE: Mapping[str, Revision] = MappingProxyType({revision.date: revision for revision in ALL})
HANDSHAKE: Mapping[str, Revision] = MappingProxyType({r.date: r for r in ALL if r.handshake})
PER_REQUEST: Mapping[str, Revision] = MappingProxyType({r.date: r for r in ALL if not r.handshake})

NEWEST = ALL[-1]
NEWEST_HANDSHAKE = R2025_11_25
"""Answered to an `initialize` that asks for a version that has no handshake or is unknown."""
ASSUMED = R2025_03_26
"""A handshake-era HTTP request that says nothing about its version."""
FIRST = R2024_11_05
"""The revision of the HTTP+SSE transport."""


def names_per_request_era(version: str) -> bool:
    """Whether a version string, known or not, names a revision without a handshake (dates sort as text)."""
    return version >= NEWEST.date and version.replace("-", "").isdecimal() and version.isascii()


def negotiate(requested: str) -> Revision:
    """The revision that `initialize` answers: the one asked for, else the newest that has a handshake."""
    return HANDSHAKE.get(requested, NEWEST_HANDSHAKE)
