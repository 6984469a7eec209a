"""Content blocks, in the shape of the newest revision (MCP 2026-07-28, schema#contentblock).

What users construct is what goes on the wire: bytes are given as bytes and become base64, names are camelCase, and
fields left alone are omitted. The `type` field is a msgspec tag, so the unions at the end decode by it. What older
revisions lack is converted by `projection.py`, not here.
"""

from typing import Annotated, Any, Literal, TypedDict, cast

from msgspec import UNSET, Meta, Struct, UnsetType, field
from msgspec.structs import force_setattr

from millstream._protocol.suggestions import SuggestionMeta

Role = Literal["user", "assistant"]


class Wire(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The base of every value of this module: frozen, camelCase, defaults omitted."""


class Annotations(Wire, frozen=True, metaclass=SuggestionMeta):
    """Hints for the client: who should see something, how important it is, when it changed.

    Example:
        ``Annotations(audience=["user"], priority=0.5)``
    """

    audience: list[Role] | None = None
    priority: Annotated[float, Meta(ge=0, le=1)] | None = None
    last_modified: str | None = None
    """A moment as ISO 8601 writes it."""


class ToolAnnotationsDict(TypedDict, total=False):
    """`ToolAnnotations` as a dict, with the names that go on the wire."""

    title: str
    readOnlyHint: bool
    destructiveHint: bool
    idempotentHint: bool
    openWorldHint: bool


class AnnotationsDict(TypedDict, total=False):
    """`Annotations` as a dict, with the names that go on the wire."""

    audience: list[Role]
    priority: float
    lastModified: str


class ToolAnnotations(Wire, frozen=True, metaclass=SuggestionMeta):
    """Hints about a tool for clients, never a promise: ``ToolAnnotations(read_only_hint=True)``."""

    title: str | None = None
    read_only_hint: bool | None = None
    destructive_hint: bool | None = None
    idempotent_hint: bool | None = None
    open_world_hint: bool | None = None


class Icon(Wire, frozen=True, metaclass=SuggestionMeta):
    """A picture for a tool, resource, prompt or server: ``Icon("https://example.com/tea.png", "image/png")``.

    `src` is an https or data URI.
    """

    src: str
    mime_type: str | None = None
    sizes: list[str] | None = None
    """``WxH`` each, or ``any``."""
    theme: Literal["light", "dark"] | None = None


class Block(Wire, frozen=True, kw_only=True, tag_field="type"):
    """The base of every content block."""

    annotations: Annotations | None = None
    meta: dict[str, Any] | None = field(default=None, name="_meta")


class Text(Block, frozen=True, tag="text"):
    """Plain text: ``Text("hello")``."""

    text: str


class Image(Block, frozen=True, tag="image"):
    """A picture: ``Image(png, "image/png")``."""

    data: bytes
    mime_type: str


class Audio(Block, frozen=True, tag="audio"):
    """A sound: ``Audio(wav, "audio/wav")``."""

    data: bytes
    mime_type: str


class ResourceLink(Block, frozen=True, tag="resource_link"):
    """A pointer to a resource that the client may read: ``ResourceLink("book://1", "The first book")``."""

    uri: str
    name: str
    title: str | None = None
    description: str | None = None
    mime_type: str | None = None
    size: int | None = None
    icons: list[Icon] | None = None


class ResourceContents(Wire, frozen=True):
    """One content of a resource, with `text` or `blob`: ``ResourceContents("book://1", "text/plain", "Call me …")``."""

    uri: str
    mime_type: str | None = None
    text: str | None = None
    blob: bytes | None = None
    meta: dict[str, Any] | None = field(default=None, name="_meta")


class EmbeddedResource(Block, frozen=True, tag="resource"):
    """A resource inside a result: ``EmbeddedResource("book://1", text="…")``, or ``blob=`` with bytes.

    The arguments are folded into `resource`, the only one of these fields that exists on the wire.

    Raises:
        TypeError: without exactly one of `text` and `blob`.
    """

    uri: str = ""
    text: str | None = None
    blob: bytes | None = None
    mime_type: str | None = None
    resource: ResourceContents | None = None

    def __post_init__(self) -> None:
        if self.resource is None:
            if not self.uri or (self.text is None) == (self.blob is None):
                raise TypeError("an embedded resource needs a uri, and either text or blob")
            force_setattr(self, "resource", ResourceContents(self.uri, self.mime_type, self.text, self.blob))
        for name, empty in (("uri", ""), ("text", None), ("blob", None), ("mime_type", None)):
            force_setattr(self, name, empty)


Content = Text | Image | Audio | ResourceLink | EmbeddedResource
"""The blocks of tool results and prompt messages."""


class ToolUse(Wire, frozen=True, tag="tool_use", tag_field="type"):
    """A sampled model wants to call a tool: ``ToolUse("1", "add", {"a": 2})`` in the content of its answer."""

    id: str
    name: str
    input: dict[str, Any]
    meta: dict[str, Any] | None = field(default=None, name="_meta")


class ToolResultBlock(Wire, frozen=True, tag="tool_result", tag_field="type"):
    """The answer to a `ToolUse`, for the sampled model: ``ToolResultBlock(use.id, [Text("5")])``."""

    tool_use_id: str
    content: list[Content]
    structured_content: Any | UnsetType = UNSET
    is_error: bool = False
    meta: dict[str, Any] | None = field(default=None, name="_meta")


SamplingContent = Text | Image | Audio | ToolUse | ToolResultBlock
"""The blocks of messages to and from a sampled model."""

AnyContent = Content | ToolUse | ToolResultBlock
BLOCKS: tuple[type[Struct], ...] = (Text, Image, Audio, ResourceLink, EmbeddedResource)
"""The classes of `Content`, for ``isinstance``."""


class Message(Wire, frozen=True):
    """One message of a prompt or of a sampling request: ``Message("user", "hello")``.

    `content` is one block; a string becomes a `Text`. A list of blocks is for sampling only.
    """

    role: Role
    content: AnyContent | list[AnyContent] | str

    def __post_init__(self) -> None:
        if isinstance(self.content, str):
            force_setattr(self, "content", Text(self.content))

    @property
    def blocks(self) -> list[AnyContent]:
        """The content as a list."""
        content = cast("AnyContent | list[AnyContent]", self.content)  # `__post_init__` has replaced strings
        return content if isinstance(content, list) else [content]

    def one_by_one(self) -> list["Message"]:
        """The same as messages of one block each, for readers that know no lists."""
        return [Message(self.role, block) for block in self.blocks] if isinstance(self.content, list) else [self]
