"""Parameters and results of a client's requests: a server reads the first, a client decodes the second.

The names are those of the schema, https://modelcontextprotocol.io/specification/2026-07-28/schema, with members that
only an older revision has beside them. A server writes most results as bytes that it prepared. `_meta` of requests is
read before their parameters (`metadata.py`), so no parameters hold it. What a server asks stands in `questions.py`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType, field

from millstream._protocol.content import (
    Annotations,
    Content,
    Icon,
    Message,
    ResourceContents,
    Text,
    ToolAnnotations,
    Wire,
)
from millstream._protocol.metadata import Implementation

Json = dict[str, Any]


class Params(Struct, rename="camel", omit_defaults=True, gc=False):
    """Parameters of a method that has none of its own, and the base of all others."""


# What a client asks


class InitializeRequestParams(Params, omit_defaults=False):
    """`initialize`. Every member is required, but clients are known to leave the last two out."""

    protocol_version: str
    capabilities: Raw = Raw(b"{}")
    client_info: Implementation = Implementation()


class PaginatedRequestParams(Params):
    """Every list method."""

    cursor: str | None = None


class InputResponseRequestParams(Params):
    """The base for methods that may ask back: answers, and the state of earlier rounds."""

    input_responses: Raw | UnsetType = UNSET
    request_state: Any = ""
    """Checked where the era has it; in another it is an unknown member of any type."""


class CallToolRequestParams(InputResponseRequestParams):
    """`tools/call`. A call without a name is one of an unknown tool."""

    name: str = ""
    arguments: Raw = Raw(b"")


class GetPromptRequestParams(InputResponseRequestParams, kw_only=True):
    """`prompts/get`."""

    name: str
    arguments: dict[str, str] | None = None


class ReadResourceRequestParams(InputResponseRequestParams, kw_only=True):
    """`resources/read`."""

    uri: str


class ResourceRequestParams(Params):
    """`resources/subscribe` and `resources/unsubscribe`."""

    uri: str


class Reference(Params):
    """The owner of an argument to complete: `ref/prompt` with a name, or `ref/resource` with the URI of a template."""

    type: str
    name: str = ""
    uri: str = ""


class CompletionArgument(Params):
    """The argument to complete, and what the person has typed."""

    name: str
    value: str


class CompletionContext(Params):
    """Arguments that have a value already."""

    arguments: dict[str, str] = {}


class CompleteRequestParams(Params):
    """`completion/complete`."""

    ref: Reference
    argument: CompletionArgument
    context: CompletionContext | None = None


class SetLevelRequestParams(Params):
    """`logging/setLevel`."""

    level: str


class SubscriptionFilter(Params):
    """The changes that a subscription asks for, or that a server agrees to tell."""

    tools_list_changed: bool = False
    prompts_list_changed: bool = False
    resources_list_changed: bool = False
    resource_subscriptions: list[str] = []


class SubscriptionsListenRequestParams(Params):
    """`subscriptions/listen`."""

    notifications: SubscriptionFilter


# What a server answers


class Result(Wire, frozen=True, kw_only=True):
    """A result without members of its own, and the base of all others. Older revisions know only complete ones."""

    result_type: str = "complete"
    meta: Json = field(default_factory=dict[str, Any], name="_meta")


class InputRequest(Wire, frozen=True):
    """One question inside a result."""

    method: str
    params: Raw = Raw(b"{}")


class InputRequiredResult(Result, frozen=True, kw_only=True):
    """The server asks before it answers: send the request again, with answers by the same keys and the same state."""

    input_requests: dict[str, InputRequest] = field(default_factory=dict[str, InputRequest])
    request_state: str | None = None


class CacheableResult(Result, frozen=True, kw_only=True):
    """A result that may be kept for a while; without a hint it is stale at once."""

    ttl_ms: int = 0
    cache_scope: Literal["public", "private"] = "private"


class InitializeResult(Result, frozen=True, kw_only=True):
    """`initialize`."""

    protocol_version: str
    capabilities: Json
    server_info: Implementation
    instructions: str = ""


class DiscoverResult(CacheableResult, frozen=True, kw_only=True):
    """`server/discover`."""

    supported_versions: list[str]
    capabilities: Json
    instructions: str = ""


class Description(Wire, frozen=True, kw_only=True):
    """The base of the descriptions of tools, resources, templates and prompts."""

    name: str
    title: str | None = None
    description: str | None = None
    icons: tuple[Icon, ...] = ()
    meta: Json = field(default_factory=dict[str, Any], name="_meta")


class ToolDescription(Description, frozen=True, kw_only=True):
    """One tool of `tools/list`."""

    input_schema: Json
    output_schema: Json | None = None
    annotations: ToolAnnotations | None = None


class ResourceDescription(Description, frozen=True, kw_only=True):
    """One resource of `resources/list`."""

    uri: str
    mime_type: str | None = None
    size: int | None = None
    annotations: Annotations | None = None


class TemplateDescription(Description, frozen=True, kw_only=True):
    """One template of `resources/templates/list`."""

    uri_template: str
    mime_type: str | None = None
    annotations: Annotations | None = None


class PromptArgument(Wire, frozen=True):
    """One argument of a prompt."""

    name: str
    title: str | None = None
    description: str | None = None
    required: bool = False


class PromptDescription(Description, frozen=True, kw_only=True):
    """One prompt of `prompts/list`."""

    arguments: tuple[PromptArgument, ...] = ()


class PaginatedResult(CacheableResult, frozen=True, kw_only=True):
    """One page of a list; the last has no cursor."""

    next_cursor: str | None = None


class ListToolsResult(PaginatedResult, frozen=True, kw_only=True):
    """`tools/list`."""

    tools: list[ToolDescription]


class ListResourcesResult(PaginatedResult, frozen=True, kw_only=True):
    """`resources/list`."""

    resources: list[ResourceDescription]


class ListResourceTemplatesResult(PaginatedResult, frozen=True, kw_only=True):
    """`resources/templates/list`."""

    resource_templates: list[TemplateDescription]


class ListPromptsResult(PaginatedResult, frozen=True, kw_only=True):
    """`prompts/list`."""

    prompts: list[PromptDescription]


class CallToolResult(Result, frozen=True, kw_only=True):
    """`tools/call`."""

    content: list[Content]
    structured_content: Raw | UnsetType = UNSET
    """Unread: its type is the caller's business, and null is a value."""
    is_error: bool = False


class ReadResourceResult(CacheableResult, frozen=True, kw_only=True):
    """`resources/read`."""

    contents: list[ResourceContents]


class GetPromptResult(Result, frozen=True, kw_only=True):
    """`prompts/get`."""

    messages: list[Message]
    description: str | None = None

    @property
    def text(self) -> str:
        """The text blocks of all messages, joined."""
        return "\n".join(block.text for each in self.messages for block in each.blocks if isinstance(block, Text))


class Completion(Wire, frozen=True):
    """The values of a completion, at most 100, and how many there are."""

    values: list[str]
    total: int | None = None
    has_more: bool | None = None


class CompleteResult(Result, frozen=True, kw_only=True):
    """`completion/complete`."""

    completion: Completion


REQUESTS: Mapping[str, tuple[type[Struct], type[Struct]]] = MappingProxyType(
    {
        "initialize": (InitializeRequestParams, InitializeResult),
        "ping": (Params, Result),
        "server/discover": (Params, DiscoverResult),
        "tools/list": (PaginatedRequestParams, ListToolsResult),
        "tools/call": (CallToolRequestParams, CallToolResult),
        "resources/list": (PaginatedRequestParams, ListResourcesResult),
        "resources/templates/list": (PaginatedRequestParams, ListResourceTemplatesResult),
        "resources/read": (ReadResourceRequestParams, ReadResourceResult),
        "resources/subscribe": (ResourceRequestParams, Result),
        "resources/unsubscribe": (ResourceRequestParams, Result),
        "prompts/list": (PaginatedRequestParams, ListPromptsResult),
        "prompts/get": (GetPromptRequestParams, GetPromptResult),
        "completion/complete": (CompleteRequestParams, CompleteResult),
        "logging/setLevel": (SetLevelRequestParams, Result),
        "subscriptions/listen": (SubscriptionsListenRequestParams, Result),
    }
)
"""Method of a client -> its parameters and result, in every revision that has it."""
