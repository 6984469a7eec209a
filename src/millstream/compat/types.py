# ruff: noqa: N815  the SDK's names
"""The protocol's types as pydantic models, with the names of the official SDK's ``mcp.types``.

Experimental: a minor version can change it. See Stability in the documentation.

Objects of an installed ``mcp.types`` also work.
"""

from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from millstream._protocol import errors
from millstream.protocol import Json

INTERNAL_ERROR: int = errors.INTERNAL_ERROR
INVALID_PARAMS: int = errors.INVALID_PARAMS
INVALID_REQUEST: int = errors.INVALID_REQUEST
METHOD_NOT_FOUND: int = errors.METHOD_NOT_FOUND
PARSE_ERROR: int = errors.PARSE_ERROR
Role = Literal["user", "assistant"]
LoggingLevel = Literal["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]
JSONRPCMessage = Json
Url = Annotated[str, BeforeValidator(str)]
"""A URL as a string. Pydantic's URL objects are converted."""


class Wire(BaseModel):
    """Base class of all models here. Undeclared members are kept."""

    model_config: ClassVar[ConfigDict] = ConfigDict(populate_by_name=True, extra="allow")


class _WithMeta(Wire):
    meta: Json | None = Field(default=None, alias="_meta")


class Annotations(Wire):
    """Hints for clients about a value."""

    audience: list[Role] | None = None
    priority: Annotated[float, Field(ge=0, le=1)] | None = None
    lastModified: str | None = None


class ToolAnnotations(Wire):
    """Hints about a tool."""

    title: str | None = None
    readOnlyHint: bool | None = None
    destructiveHint: bool | None = None
    idempotentHint: bool | None = None
    openWorldHint: bool | None = None


class Icon(Wire):
    """An icon of a tool, resource, prompt, or server."""

    src: str
    mimeType: str | None = None
    sizes: list[str] | None = None
    theme: Literal["light", "dark"] | None = None


class _Block(_WithMeta):
    annotations: Annotations | None = None


class TextContent(_Block):
    """Plain text."""

    type: Literal["text"] = "text"
    text: str


class ImageContent(_Block):
    """An image, as base64."""

    type: Literal["image"] = "image"
    data: str
    mimeType: str


class AudioContent(_Block):
    """Audio, as base64."""

    type: Literal["audio"] = "audio"
    data: str
    mimeType: str


class _ListItem(_WithMeta):
    name: str
    title: str | None = None
    description: str | None = None
    icons: list[Icon] | None = None


class Resource(_ListItem):
    """A resource as clients see it."""

    uri: Url
    mimeType: str | None = None
    size: int | None = None
    annotations: Annotations | None = None


class ResourceLink(Resource):
    """A link to a resource."""

    type: Literal["resource_link"] = "resource_link"


class _Contents(_WithMeta):
    uri: Url
    mimeType: str | None = None


class TextResourceContents(_Contents):
    """The text of a resource."""

    text: str


class BlobResourceContents(_Contents):
    """The bytes of a resource, as base64."""

    blob: str


class EmbeddedResource(_Block):
    """A resource embedded in a result."""

    type: Literal["resource"] = "resource"
    resource: TextResourceContents | BlobResourceContents


ContentBlock = Union[TextContent, ImageContent, AudioContent, ResourceLink, EmbeddedResource]  # noqa: UP007  for `isinstance` and pydantic


class PromptMessage(Wire):
    """One message of a prompt."""

    role: Role
    content: ContentBlock


class SamplingMessage(_WithMeta):
    """One message of a sampling request."""

    role: Role
    content: Any


class CallToolResult(_WithMeta):
    """The complete result of a tool call."""

    content: list[ContentBlock] = Field(default_factory=list[ContentBlock])
    structuredContent: Json | None = None
    isError: bool = False


class GetPromptResult(_WithMeta):
    """The messages of a prompt."""

    description: str | None = None
    messages: list[PromptMessage] = Field(default_factory=list[PromptMessage])


class CreateMessageResult(_WithMeta):
    """The reply from the client's model."""

    role: Role = "assistant"
    content: Any
    model: str = ""
    stopReason: str | None = None


class ElicitResult(_WithMeta):
    """The user's answer to an elicitation."""

    action: Literal["accept", "decline", "cancel"]
    content: Json | None = None


class Root(_WithMeta):
    """A folder that the user opened in the client."""

    uri: Url
    name: str | None = None


class ListRootsResult(_WithMeta):
    """The folders that the user opened."""

    roots: list[Root] = Field(default_factory=list[Root])


class Implementation(Wire):
    """The name and version of a client or server."""

    name: str
    version: str = ""
    title: str | None = None


class PromptArgument(Wire):
    """An argument of a prompt."""

    name: str
    description: str | None = None
    required: bool | None = None


class Tool(_ListItem):
    """A tool as clients see it."""

    inputSchema: Json
    outputSchema: Json | None = None
    annotations: ToolAnnotations | None = None


class ResourceTemplate(_ListItem):
    """A resource template as clients see it."""

    uriTemplate: str
    mimeType: str | None = None
    annotations: Annotations | None = None


class Prompt(_ListItem):
    """A prompt as clients see it."""

    arguments: list[PromptArgument] | None = None


class PromptReference(Wire):
    """A reference to the prompt whose argument is completed."""

    type: Literal["ref/prompt"] = "ref/prompt"
    name: str


class ResourceTemplateReference(Wire):
    """A reference to the template of the variable to complete."""

    type: Literal["ref/resource"] = "ref/resource"
    uri: str


class CompletionArgument(Wire):
    """The text typed so far for an argument."""

    name: str
    value: str


class CompletionContext(Wire):
    """Arguments that already have values."""

    arguments: dict[str, str] | None = None


class Completion(Wire):
    """Suggested values for an argument."""

    values: list[str]
    total: int | None = None
    hasMore: bool | None = None


class ModelHint(Wire):
    """A hint for selecting a model."""

    name: str | None = None


class ModelPreferences(Wire):
    """Preferences for the model that the client selects."""

    hints: list[ModelHint] | None = None
    costPriority: float | None = None
    speedPriority: float | None = None
    intelligencePriority: float | None = None


class EmptyResult(_WithMeta):
    """A result without members."""


class ListToolsResult(_WithMeta):
    """A page of the tools."""

    tools: list[Tool]
    nextCursor: str | None = None


class ListResourcesResult(_WithMeta):
    """A page of the resources."""

    resources: list[Resource]
    nextCursor: str | None = None


class ListResourceTemplatesResult(_WithMeta):
    """A page of the resource templates."""

    resourceTemplates: list[ResourceTemplate]
    nextCursor: str | None = None


class ListPromptsResult(_WithMeta):
    """A page of the prompts."""

    prompts: list[Prompt]
    nextCursor: str | None = None


class ReadResourceResult(_WithMeta):
    """The contents of a resource."""

    contents: list[TextResourceContents | BlobResourceContents]


class ErrorData(Wire):
    """A protocol error."""

    code: int
    message: str
    data: Any = None


class RootsCapability(Wire):
    """The client supports roots."""

    listChanged: bool | None = None


class SamplingCapability(Wire):
    """The client supports sampling."""

    context: Json | None = None
    tools: Json | None = None


class ElicitationCapability(Wire):
    """The client supports elicitation."""

    form: Json | None = None
    url: Json | None = None


class ClientCapabilities(Wire):
    """Capabilities of a client, for `ServerSession.check_client_capability`."""

    experimental: dict[str, Json] | None = None
    roots: RootsCapability | None = None
    sampling: SamplingCapability | None = None
    elicitation: ElicitationCapability | None = None


class ElicitRequestFormParams(_WithMeta):
    """A form for the user."""

    mode: Literal["form"] = "form"
    message: str
    requestedSchema: Json


class ElicitRequestURLParams(_WithMeta):
    """A URL for the user to open."""

    mode: Literal["url"] = "url"
    message: str
    url: str
    elicitationId: str


ElicitRequestParams = ElicitRequestURLParams | ElicitRequestFormParams
