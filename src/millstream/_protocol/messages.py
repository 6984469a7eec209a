"""Parameters and results of client requests.

The names are those of the schema, https://modelcontextprotocol.io/specification/2026-07-28/schema, including members
that only older revisions have. A server reads the parameters and writes most results as prepared bytes; a client
decodes the results. `metadata.py` reads `_meta`, so parameters don't include it. Requests from the server are in
`questions.py`.
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
    """Parameters of a method that has none, and the base of all others."""


# Client requests


class InitializeRequestParams(Params, omit_defaults=False):
    """`initialize`. The schema requires every member, but some clients omit the last two."""

    protocol_version: str
    capabilities: Raw = Raw(b"{}")
    client_info: Implementation = Implementation()


class PaginatedRequestParams(Params):
    """All list methods."""

    cursor: str | None = None


class InputResponseRequestParams(Params):
    """The base for methods that can ask the client: answers, and the state of earlier rounds."""

    input_responses: Raw | UnsetType = UNSET
    request_state: Any = ""
    """Validated for the per-request era. In the handshake era it's an unknown member of any type."""


class CallToolRequestParams(InputResponseRequestParams):
    """`tools/call`. A call without a name is handled like a call of an unknown tool."""

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
    """The prompt or resource template of the argument to complete: `ref/prompt` with a name, or `ref/resource` with a
    URI."""

    type: str
    name: str = ""
    uri: str = ""


class CompletionArgument(Params):
    """The argument to complete, and the text typed so far."""

    name: str
    value: str


class CompletionContext(Params):
    """The values of other arguments."""

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
    """The kinds of changes that a client subscribes to, or that the server accepted."""

    tools_list_changed: bool = False
    prompts_list_changed: bool = False
    resources_list_changed: bool = False
    resource_subscriptions: list[str] = []


class SubscriptionsListenRequestParams(Params):
    """`subscriptions/listen`."""

    notifications: SubscriptionFilter


# Results of client requests


class EmptyResult(Wire, frozen=True, kw_only=True):
    """A result without members, and the base of all others. Older revisions have only complete results."""

    result_type: str = "complete"
    meta: Json = field(default_factory=dict[str, Any], name="_meta")


class InputRequest(Wire, frozen=True):
    """One question in an `InputRequiredResult`."""

    method: str
    params: Raw = Raw(b"{}")


class InputRequiredResult(EmptyResult, frozen=True, kw_only=True):
    """A result that asks the client for input. The client repeats the request with the state and the answers."""

    input_requests: dict[str, InputRequest] = field(default_factory=dict[str, InputRequest])
    request_state: str | None = None


class CacheableResult(EmptyResult, frozen=True, kw_only=True):
    """A result that clients can cache. Without a hint it's stale immediately."""

    ttl_ms: int = 0
    cache_scope: Literal["public", "private"] = "private"


class InitializeResult(EmptyResult, frozen=True, kw_only=True):
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
    """The base of descriptions of tools, resources, templates, and prompts."""

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
    """One page of a list. The last page has no cursor."""

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


class CallToolResult(EmptyResult, frozen=True, kw_only=True):
    """`tools/call`."""

    content: list[Content]
    structured_content: Raw | UnsetType = UNSET
    """Raw JSON, because only the caller knows its type, and null is a valid value."""
    is_error: bool = False


class ReadResourceResult(CacheableResult, frozen=True, kw_only=True):
    """`resources/read`."""

    contents: list[ResourceContents]


class GetPromptResult(EmptyResult, frozen=True, kw_only=True):
    """`prompts/get`."""

    messages: list[Message]
    description: str | None = None

    @property
    def text(self) -> str:
        """Return the text blocks of all messages, joined."""
        return "\n".join(block.text for each in self.messages for block in each.blocks if isinstance(block, Text))


class Completion(Wire, frozen=True):
    """At most 100 completion values, and the total number of matches."""

    values: list[str]
    total: int | None = None
    has_more: bool | None = None


class CompleteResult(EmptyResult, frozen=True, kw_only=True):
    """`completion/complete`."""

    completion: Completion


REQUESTS: Mapping[str, tuple[type[Struct], type[Struct]]] = MappingProxyType(
    {
        "initialize": (InitializeRequestParams, InitializeResult),
        "ping": (Params, EmptyResult),
        "server/discover": (Params, DiscoverResult),
        "tools/list": (PaginatedRequestParams, ListToolsResult),
        "tools/call": (CallToolRequestParams, CallToolResult),
        "resources/list": (PaginatedRequestParams, ListResourcesResult),
        "resources/templates/list": (PaginatedRequestParams, ListResourceTemplatesResult),
        "resources/read": (ReadResourceRequestParams, ReadResourceResult),
        "resources/subscribe": (ResourceRequestParams, EmptyResult),
        "resources/unsubscribe": (ResourceRequestParams, EmptyResult),
        "prompts/list": (PaginatedRequestParams, ListPromptsResult),
        "prompts/get": (GetPromptRequestParams, GetPromptResult),
        "completion/complete": (CompleteRequestParams, CompleteResult),
        "logging/setLevel": (SetLevelRequestParams, EmptyResult),
        "subscriptions/listen": (SubscriptionsListenRequestParams, EmptyResult),
    }
)
"""Client method -> its parameters and result, for every revision that has it."""
