"""The parameters and results of every message, by method."""

from collections.abc import Mapping

from msgspec import Struct

from millstream._protocol.notifications import (
    CallToolRequestParams,
    CallToolResult,
    CompleteRequestParams,
    CompleteResult,
    CreateMessageRequestParams,
    DiscoverResult,
    ElicitRequestParams,
    ElicitResult,
    EmptyResult,
    GetPromptRequestParams,
    GetPromptResult,
    InitializeRequestParams,
    InitializeResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListRootsResult,
    ListToolsResult,
    PaginatedRequestParams,
    Params,
    ReadResourceRequestParams,
    ReadResourceResult,
    ResourceRequestParams,
    SampleResult,
    SetLevelRequestParams,
    SubscriptionsListenRequestParams,
)

REQUESTS: Mapping[str, tuple[type[Struct], type[Struct]]] = {
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
"""Client method -> its parameters and result, for every revision that has it."""

QUESTIONS: Mapping[str, tuple[type[Struct], type[Struct]]] = {
    "ping": (Params, EmptyResult),
    "roots/list": (Params, ListRootsResult),
    "sampling/createMessage": (CreateMessageRequestParams, SampleResult),
    "elicitation/create": (ElicitRequestParams, ElicitResult),
}
"""Server method -> its parameters and result."""
