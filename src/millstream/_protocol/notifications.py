"""Parameters and results of requests, and parameters of notifications, in both directions.

The names are those of the schema, https://modelcontextprotocol.io/specification/2026-07-28/schema, including members
that only older revisions have. A server reads the parameters of client requests and writes most results as prepared
bytes; a client decodes the results. A server sends its requests separately or in an `InputRequiredResult`.
`metadata.py` reads `_meta`, so parameters don't include it.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType, field

from millstream._protocol.content import (
    Annotations,
    Content,
    Icon,
    Message,
    ResourceContents,
    Role,
    SamplingContent,
    Text,
    ToolAnnotations,
    Wire,
)
from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.jsonrpc import MALFORMED, MAX_ID, Json, RequestId, decode_id, decoder
from millstream._protocol.metadata import Implementation, ProgressToken, decode_loose_params
from millstream._text import shorten

_META: Any = field(default_factory=Json, name="_meta")


class Params(Struct, rename="camel", omit_defaults=True, gc=False):
    """Parameters of a method that has none, and the base of the others."""


# Client requests


class InitializeRequestParams(Params, omit_defaults=False):
    """The parameters of `initialize`. The schema requires every member, but some clients omit the last two."""

    protocol_version: str
    capabilities: Raw = Raw(b"{}")
    client_info: Implementation = Implementation()


class PaginatedRequestParams(Params):
    """The parameters of all list methods."""

    cursor: str | None = None


class InputResponseRequestParams(Params):
    """The base for methods that can ask the client: answers, and the state of earlier rounds.

    Example:
        ``class Params(InputResponseRequestParams): isbn: str``
    """

    input_responses: Raw | UnsetType = UNSET
    request_state: Any = ""
    """Validated for the per-request era. In the handshake era it's an unknown member of any type."""


class CallToolRequestParams(InputResponseRequestParams):
    """The parameters of `tools/call`. A call without a name is handled like a call of an unknown tool."""

    name: str = ""
    arguments: Raw = Raw(b"")


class GetPromptRequestParams(InputResponseRequestParams, kw_only=True):
    """The parameters of `prompts/get`."""

    name: str
    arguments: dict[str, str] | None = None


class ReadResourceRequestParams(InputResponseRequestParams, kw_only=True):
    """The parameters of `resources/read`."""

    uri: str


class ResourceRequestParams(Params):
    """The parameters of `resources/subscribe` and `resources/unsubscribe`."""

    uri: str


class Reference(Params):
    """The prompt or resource template whose argument is completed: `ref/prompt` with a name, or `ref/resource` with a
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
    """The parameters of `completion/complete`.

    Example:
        ``CompleteRequestParams(Reference("ref/prompt", name="pitch"), CompletionArgument("tone", "fr"))``
    """

    ref: Reference
    argument: CompletionArgument
    context: CompletionContext | None = None


class SetLevelRequestParams(Params):
    """The parameters of `logging/setLevel`."""

    level: str


class SubscriptionFilter(Params):
    """The kinds of changes that a client subscribes to, or that the server accepted.

    Example:
        ``SubscriptionFilter(tools_list_changed=True)``
    """

    tools_list_changed: bool = False
    prompts_list_changed: bool = False
    resources_list_changed: bool = False
    resource_subscriptions: list[str] = []


class SubscriptionsListenRequestParams(Params):
    """The parameters of `subscriptions/listen`."""

    notifications: SubscriptionFilter


# Results of client requests


class EmptyResult(Wire, frozen=True, kw_only=True):
    """A result without members, and the base of all others.

    Before 2026-07-28, all results are complete (MCP 2026-07-28, schema#result).

    Example:
        ``EmptyResult()``
    """

    result_type: str = "complete"
    meta: Json = _META


class InputRequest(Wire, frozen=True):
    """One question in an `InputRequiredResult`.

    Example:
        ``InputRequest("elicitation/create", params)``
    """

    method: str
    params: Raw = Raw(b"{}")


class InputRequiredResult(EmptyResult, frozen=True, kw_only=True):
    """A result that asks the client for input. The client repeats the request with the state and the answers.

    Example:
        ``decoder(InputRequiredResult)(body).input_requests``
    """

    input_requests: dict[str, InputRequest] = field(default_factory=dict[str, InputRequest])
    request_state: str | None = None


class CacheableResult(EmptyResult, frozen=True, kw_only=True):
    """A result that clients can cache. Without a hint it's stale immediately."""

    ttl_ms: int = 0
    cache_scope: Literal["public", "private"] = "private"


class InitializeResult(EmptyResult, frozen=True, kw_only=True):
    """The result of `initialize`."""

    protocol_version: str
    capabilities: Json
    server_info: Implementation
    instructions: str = ""


class DiscoverResult(CacheableResult, frozen=True, kw_only=True):
    """The result of `server/discover`: ``decoder(DiscoverResult)(body).supported_versions``."""

    supported_versions: list[str]
    capabilities: Json
    instructions: str = ""


class Description(Wire, frozen=True, kw_only=True):
    """The base of descriptions of tools, resources, templates, and prompts."""

    name: str
    title: str | None = None
    description: str | None = None
    icons: tuple[Icon, ...] = ()
    meta: Json = _META


class ToolDescription(Description, frozen=True, kw_only=True):
    """One tool of `tools/list`: ``for tool in await client.tools(): print(tool.name)``."""

    input_schema: Json
    output_schema: Json | None = None
    annotations: ToolAnnotations | None = None


class ResourceDescription(Description, frozen=True, kw_only=True):
    """One resource of `resources/list`: ``for each in await client.resources(): print(each.uri)``."""

    uri: str
    mime_type: str | None = None
    size: int | None = None
    annotations: Annotations | None = None


class TemplateDescription(Description, frozen=True, kw_only=True):
    """One template of `resources/templates/list`: ``[each.uri_template for each in await client.templates()]``."""

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
    """One prompt of `prompts/list`: ``for each in await client.prompts(): print(each.name)``."""

    arguments: tuple[PromptArgument, ...] = ()


class PaginatedResult(CacheableResult, frozen=True, kw_only=True):
    """One page of a list. The last page has no cursor."""

    next_cursor: str | None = None


class ListToolsResult(PaginatedResult, frozen=True, kw_only=True):
    """The result of `tools/list`."""

    tools: list[ToolDescription]


class ListResourcesResult(PaginatedResult, frozen=True, kw_only=True):
    """The result of `resources/list`."""

    resources: list[ResourceDescription]


class ListResourceTemplatesResult(PaginatedResult, frozen=True, kw_only=True):
    """The result of `resources/templates/list`."""

    resource_templates: list[TemplateDescription]


class ListPromptsResult(PaginatedResult, frozen=True, kw_only=True):
    """The result of `prompts/list`."""

    prompts: list[PromptDescription]


class CallToolResult(EmptyResult, frozen=True, kw_only=True):
    """The result of `tools/call`: ``CallToolResult(content=[Text("done")])``."""

    content: list[Content]
    structured_content: Raw | UnsetType = UNSET
    """Raw JSON, because only the caller knows the type, and null is a valid value."""
    is_error: bool = False


class ReadResourceResult(CacheableResult, frozen=True, kw_only=True):
    """The result of `resources/read`: ``ReadResourceResult(contents=[ResourceContents(uri, text="A note")])``."""

    contents: list[ResourceContents]


class GetPromptResult(EmptyResult, frozen=True, kw_only=True):
    """The result of `prompts/get`: ``GetPromptResult(messages=[Message("user", "Hello")])``."""

    messages: list[Message]
    description: str | None = None

    @property
    def text(self) -> str:
        """Return the text blocks of all messages, joined."""
        return "\n".join(block.text for each in self.messages for block in each.blocks if isinstance(block, Text))


class Completion(Wire, frozen=True):
    """At most 100 completion values, and the total number of matches: ``(await client.complete(…)).values``."""

    values: list[str]
    total: int | None = None
    has_more: bool | None = None


class CompleteResult(EmptyResult, frozen=True, kw_only=True):
    """The result of `completion/complete`."""

    completion: Completion


class CancelledNotificationParams(Params):
    """The parameters of `notifications/cancelled`."""

    request_id: RequestId | UnsetType = UNSET
    reason: Any = None
    """A reason for the log. Nothing depends on it, so any type is accepted."""


class NotificationParams(Params):
    """Parameters of a notification without members. `_meta` can name a subscription."""

    meta: Json = _META


class ProgressNotificationParams(Params):
    """The parameters of `notifications/progress`."""

    progress_token: ProgressToken
    progress: float
    total: float | None = None
    message: str | None = None
    meta: Any = field(name="_meta", default=None)
    """Of any type, so that odd servers' progress counts, too."""


KEEP_ALIVE = "millstream.server/keep-alive"
"""Member of `_meta` that marks progress of a silent call, which only shows that the call is alive."""


class LoggingMessageNotificationParams(Params):
    """The parameters of `notifications/message`."""

    level: str
    data: Any
    logger: str | None = None


class ResourceUpdatedNotificationParams(Params):
    """The parameters of `notifications/resources/updated`."""

    uri: str
    meta: Json = _META


class SubscriptionsAcknowledgedNotificationParams(Params):
    """The parameters of `notifications/subscriptions/acknowledged`: the changes that the server will report."""

    notifications: SubscriptionFilter
    meta: Json = _META


NOTIFICATIONS: Mapping[str, type[Struct]] = MappingProxyType(
    {
        "notifications/initialized": NotificationParams,
        "notifications/cancelled": CancelledNotificationParams,
        "notifications/progress": ProgressNotificationParams,
        "notifications/message": LoggingMessageNotificationParams,
        "notifications/tools/list_changed": NotificationParams,
        "notifications/prompts/list_changed": NotificationParams,
        "notifications/resources/list_changed": NotificationParams,
        "notifications/resources/updated": ResourceUpdatedNotificationParams,
        "notifications/roots/list_changed": NotificationParams,
        "notifications/subscriptions/acknowledged": SubscriptionsAcknowledgedNotificationParams,
    }
)
"""Notification method, of either side -> its parameters."""


_decode_cancelled = decoder(CancelledNotificationParams)


def progress_token(params: bytes) -> ProgressToken | None:
    """Return the progress token of a request, or None if it's missing or has the wrong type.

    Raises:
        ProtocolError: INVALID_PARAMS, for a token that is too long.
    """
    if b'"progressToken"' not in params:
        return None
    try:
        meta = decode_loose_params(params).meta
        token = None if meta.token is UNSET else decode_id(meta.token)
    except MALFORMED:
        return None
    if isinstance(token, str) and len(token) > MAX_ID:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: a progress token must have at most {MAX_ID} characters")
    return token


_MAX_REASON = 1_000
"""Maximum length of a cancellation's reason, in characters."""


def read_cancellation(params: bytes) -> tuple[RequestId | None, str]:
    """Return the request id and the reason in `notifications/cancelled`. The id is None if it's malformed."""
    try:
        found = _decode_cancelled(params or b"{}")
    except MALFORMED:
        return None, ""
    request_id: Any = found.request_id
    text = shorten(found.reason, _MAX_REASON) if isinstance(found.reason, str) else ""
    return None if request_id is UNSET else request_id, text


class ElicitRequestParams(Params, kw_only=True):
    """The parameters of `elicitation/create`: a form (no mode, or the mode `form`) or a URL (the mode `url`)."""

    mode: str | None = None
    message: str
    requested_schema: Json | None = None
    url: str | None = None
    elicitation_id: str | None = None
    """For URLs in 2025-11-25."""


class ElicitResult(Params):
    """The user's action, with the values of a form.

    Example:
        ``ElicitResult("accept", {"city": "Oslo"})``
    """

    action: str
    content: Raw = Raw(b"")


class CreateMessageRequestParams(Params):
    """A server's request to the client's model: ``async def sample(params: CreateMessageRequestParams) -> str``."""

    messages: list[Message]
    max_tokens: int
    system_prompt: str | None = None
    temperature: float | None = None
    stop_sequences: Sequence[str] | None = None
    model_preferences: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: Mapping[str, Any] | None = None


class SampleResult(Wire, frozen=True):
    """The answer from the client's model: ``(await ctx.sample("Say hello")).text``."""

    role: Role
    content: SamplingContent | list[SamplingContent]
    model: str
    stop_reason: str | None = None

    @property
    def text(self) -> str:
        """Return the text blocks, joined."""
        content = self.content if isinstance(self.content, list) else [self.content]
        return "\n".join(block.text for block in content if isinstance(block, Text))


class Root(Wire, frozen=True):
    """A folder or file that the client works on."""

    uri: str
    name: str | None = None


class ListRootsResult(Wire, frozen=True):
    """The result of `roots/list`: ``ListRootsResult([Root("file:///home/ada")])``."""

    roots: list[Root]
