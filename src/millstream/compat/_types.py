"""The protocol's values under the names of the official SDK's ``mcp.types``, as pydantic models.

Members can be written and read in both spellings: ``mimeType`` as in SDK 1.x, ``mime_type`` as in 2.x. A program that
has the SDK installed may go on using its ``mcp.types``: the door takes those values as well.
"""

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from millstream.compat._pydantic_parts import BaseModel, BeforeValidator, ConfigDict, Field, to_camel

Role = Literal["user", "assistant"]
LoggingLevel = Literal["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]
Url = Annotated[str, BeforeValidator(str)]
"""A URL as text; pydantic's URLs are taken, too."""
_HUMP = re.compile(r"(?<=[a-z0-9])([A-Z])")


class Wire(BaseModel):
    """The base of all models here."""

    model_config: ClassVar[ConfigDict] = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A member in its other spelling."""
            field = _HUMP.sub(r"_\1", name).lower()
            if field != name and field in type(self).model_fields:
                return getattr(self, field)
            return super().__getattr__(name)


class _WithMeta(Wire):
    meta: dict[str, Any] | None = Field(default=None, alias="_meta")


class Annotations(Wire):
    """Hints for the client about a value."""

    audience: list[Role] | None = None
    priority: Annotated[float, Field(ge=0, le=1)] | None = None
    last_modified: str | None = None


class ToolAnnotations(Wire):
    """Hints about a tool."""

    title: str | None = None
    read_only_hint: bool | None = None
    destructive_hint: bool | None = None
    idempotent_hint: bool | None = None
    open_world_hint: bool | None = None


class Icon(Wire):
    """A picture for a tool, resource, prompt or server."""

    src: str
    mime_type: str | None = None
    sizes: list[str] | None = None
    theme: Literal["light", "dark"] | None = None


class _Block(_WithMeta):
    annotations: Annotations | None = None


class TextContent(_Block):
    """Plain text."""

    type: Literal["text"] = "text"
    text: str


class ImageContent(_Block):
    """A picture, as base64."""

    type: Literal["image"] = "image"
    data: str
    mime_type: str


class AudioContent(_Block):
    """A sound, as base64."""

    type: Literal["audio"] = "audio"
    data: str
    mime_type: str


class ResourceLink(_Block):
    """A pointer to a resource."""

    type: Literal["resource_link"] = "resource_link"
    uri: Url
    name: str
    title: str | None = None
    description: str | None = None
    mime_type: str | None = None
    size: int | None = None
    icons: list[Icon] | None = None


class TextResourceContents(_WithMeta):
    """Text of a resource."""

    uri: Url
    mime_type: str | None = None
    text: str


class BlobResourceContents(_WithMeta):
    """Bytes of a resource, as base64."""

    uri: Url
    mime_type: str | None = None
    blob: str


class EmbeddedResource(_Block):
    """A resource inside a result."""

    type: Literal["resource"] = "resource"
    resource: TextResourceContents | BlobResourceContents


ContentBlock = Union[TextContent, ImageContent, AudioContent, ResourceLink, EmbeddedResource]  # noqa: UP007  `isinstance` and pydantic read it


class PromptMessage(Wire):
    """One message of a prompt."""

    role: Role
    content: ContentBlock


class SamplingMessage(_WithMeta):
    """One message of a conversation with the client's model."""

    role: Role
    content: Any


class CallToolResult(_WithMeta):
    """What a tool gives back, spelled out."""

    content: list[ContentBlock] = Field(default_factory=list[ContentBlock])
    structured_content: dict[str, Any] | None = None
    is_error: bool = False


class GetPromptResult(_WithMeta):
    """The messages of a prompt."""

    description: str | None = None
    messages: list[PromptMessage] = Field(default_factory=list[PromptMessage])


class CreateMessageResult(_WithMeta):
    """What the client's model said."""

    role: Role = "assistant"
    content: Any
    model: str = ""
    stop_reason: str | None = None


class ElicitResult(_WithMeta):
    """What a person answered."""

    action: Literal["accept", "decline", "cancel"]
    content: dict[str, Any] | None = None


class Root(_WithMeta):
    """A folder that the person opened in the client."""

    uri: Url
    name: str | None = None


class ListRootsResult(_WithMeta):
    """All such folders."""

    roots: list[Root] = Field(default_factory=list[Root])


class Implementation(Wire):
    """Name and version of a program."""

    name: str
    version: str = ""
    title: str | None = None


class PromptArgument(Wire):
    """An argument of a prompt."""

    name: str
    description: str | None = None
    required: bool | None = None


class _Listed(_WithMeta):
    name: str
    title: str | None = None
    description: str | None = None
    icons: list[Icon] | None = None


class Tool(_Listed):
    """A tool as clients see it."""

    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None = None
    annotations: ToolAnnotations | None = None


class Resource(_Listed):
    """A resource as clients see it."""

    uri: Url
    mime_type: str | None = None
    size: int | None = None
    annotations: Annotations | None = None


class ResourceTemplate(_Listed):
    """A resource template as clients see it."""

    uri_template: str
    mime_type: str | None = None
    annotations: Annotations | None = None


class Prompt(_Listed):
    """A prompt as clients see it."""

    arguments: list[PromptArgument] | None = None


class PromptReference(Wire):
    """The prompt whose argument is completed."""

    type: Literal["ref/prompt"] = "ref/prompt"
    name: str


class ResourceTemplateReference(Wire):
    """The template whose variable is completed."""

    type: Literal["ref/resource"] = "ref/resource"
    uri: str


class CompletionArgument(Wire):
    """What the person has typed of an argument."""

    name: str
    value: str


class CompletionContext(Wire):
    """The arguments that have values already."""

    arguments: dict[str, str] | None = None


class Completion(Wire):
    """Values for an argument."""

    values: list[str]
    total: int | None = None
    has_more: bool | None = None


class ModelHint(Wire):
    """A model that would do."""

    name: str | None = None


class ModelPreferences(Wire):
    """Which model the client should take."""

    hints: list[ModelHint] | None = None
    cost_priority: float | None = None
    speed_priority: float | None = None
    intelligence_priority: float | None = None


class ErrorData(Wire):
    """An error of the protocol."""

    code: int
    message: str
    data: Any = None


# What clients ask for, and what they can do


class CallToolRequestParams(_WithMeta):
    """What a middleware sees of a call."""

    name: str
    arguments: dict[str, Any] | None = None


class GetPromptRequestParams(_WithMeta):
    """What a middleware sees of a prompt that is asked for."""

    name: str
    arguments: dict[str, str] | None = None


class ReadResourceRequestParams(_WithMeta):
    """What a middleware sees of a resource that is read."""

    uri: Url


class ListToolsRequest(Wire):
    """For annotations of a middleware."""


class ListResourcesRequest(Wire):
    """For annotations of a middleware."""


class ListResourceTemplatesRequest(Wire):
    """For annotations of a middleware."""


class ListPromptsRequest(Wire):
    """For annotations of a middleware."""


class RootsCapability(Wire):
    """The client has roots."""

    list_changed: bool | None = None


class SamplingCapability(Wire):
    """The client has a model."""

    context: dict[str, Any] | None = None
    tools: dict[str, Any] | None = None


class ElicitationCapability(Wire):
    """The client can ask a person."""

    form: dict[str, Any] | None = None
    url: dict[str, Any] | None = None


class ClientCapabilities(Wire):
    """For `ServerSession.check_client_capability`."""

    experimental: dict[str, dict[str, Any]] | None = None
    roots: RootsCapability | None = None
    sampling: SamplingCapability | None = None
    elicitation: ElicitationCapability | None = None


class ToolListChangedNotification(Wire):
    """For `Context.send_notification`."""

    method: str = "notifications/tools/list_changed"


class PromptListChangedNotification(Wire):
    """For `Context.send_notification`."""

    method: str = "notifications/prompts/list_changed"


class ResourceListChangedNotification(Wire):
    """For `Context.send_notification`."""

    method: str = "notifications/resources/list_changed"
