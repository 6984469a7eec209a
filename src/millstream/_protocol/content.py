"""Content blocks, in the shape of the newest revision (MCP 2026-07-28, schema#contentblock).

Objects have the shape of the wire format: bytes become base64, names become camelCase, and default values are omitted.
The `type` field is a msgspec tag, by which the unions at the end of this module are decoded. `revisions.py` converts
blocks for older revisions.
"""

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypedDict, cast, get_args

from msgspec import UNSET, Meta, Struct, StructMeta, UnsetType, field
from msgspec.structs import force_setattr

from millstream._protocol.jsonrpc import Json
from millstream._protocol.uri import check_uri
from millstream._suggestions import SuggestionMeta

Role = Literal["user", "assistant"]


class Wire(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The base of most types in this module: frozen, camelCase on the wire, defaults omitted."""


if TYPE_CHECKING:
    _UriMeta = StructMeta
else:

    class _UriMeta(StructMeta):
        """Checks the `uri` that a program writes. Those that arrive from a peer are decoded without this check."""

        def __call__(cls, *positional: object, **given: object) -> object:  # noqa: N805  it's a metaclass
            made = super().__call__(*positional, **given)
            if made.uri:  # contents without one get that of their resource
                check_uri(cls.__name__, made.uri)
            return made


class Annotations(Wire, frozen=True, metaclass=SuggestionMeta):
    """Hints for the client: intended audience, importance, and time of the last change.

    See MCP 2025-11-25, server/resources#annotations.

    Example:
        ``Annotations(audience=["user"], priority=0.5)``
    """

    audience: list[Role] | None = None
    priority: Annotated[float, Meta(ge=0, le=1)] | None = None
    last_modified: str | None = None
    """An ISO 8601 date and time."""


class ToolAnnotationsDict(TypedDict, total=False):
    """`ToolAnnotations` as a dict, with wire names."""

    title: str
    readOnlyHint: bool
    destructiveHint: bool
    idempotentHint: bool
    openWorldHint: bool


class AnnotationsDict(TypedDict, total=False):
    """`Annotations` as a dict, with wire names."""

    audience: list[Role]
    priority: float
    lastModified: str


class ToolAnnotations(Wire, frozen=True, metaclass=SuggestionMeta):
    """Hints about a tool's behavior: ``ToolAnnotations(read_only_hint=True)``.

    Clients must not rely on the hints of a server that they don't trust (MCP 2025-11-25, server/tools).
    """

    title: str | None = None
    read_only_hint: bool | None = None
    destructive_hint: bool | None = None
    idempotent_hint: bool | None = None
    open_world_hint: bool | None = None


class Icon(Wire, frozen=True, metaclass=SuggestionMeta):
    """An icon of a tool, resource, prompt, or server: ``Icon("https://example.com/tea.png", "image/png")``.

    `src` is an https or data URI.
    """

    src: str
    mime_type: str | None = None
    sizes: list[str] | None = None
    """Sizes as ``WxH``, or ``any``."""
    theme: Literal["light", "dark"] | None = None


_META: Any = field(default=None, name="_meta")


class Block(Wire, frozen=True, kw_only=True, tag_field="type"):
    """The base of all content blocks."""

    annotations: Annotations | None = None
    meta: Json | None = _META


class Text(Block, frozen=True, tag="text"):
    """Plain text: ``Text("hello")``."""

    text: str


class Media(Block, frozen=True, metaclass=SuggestionMeta):
    """The base of the blocks with bytes of their own."""

    data: bytes
    mime_type: str


class Image(Media, frozen=True, tag="image"):
    """An image: ``Image(png, "image/png")``."""

    _USAGE: ClassVar = "Write Image(Path('x.png').read_bytes(), 'image/png')."


_IMAGE = re.compile(
    rb"(?P<png>\x89PNG\r\n\x1a\n)|(?P<jpeg>\xff\xd8\xff)|(?P<gif>GIF8)|(?P<webp>RIFF.{4}WEBP)", re.DOTALL
)
"""Matches the beginning of an image. The group has the name of the media subtype."""


def image_type(data: bytes) -> str:
    """Return the media type of a PNG, JPEG, GIF, or WebP image by its first bytes, or an empty string for other data.

    Args:
        data: At least the first 12 bytes.

    Example:
        ``Image(data, image_type(data))``
    """
    found = _IMAGE.match(data)
    return "" if found is None else f"image/{found.lastgroup}"


class Audio(Media, frozen=True, tag="audio"):
    """Audio: ``Audio(wav, "audio/wav")``."""

    _USAGE: ClassVar = "Write Audio(Path('x.wav').read_bytes(), 'audio/wav')."


class ResourceLink(Block, frozen=True, tag="resource_link", metaclass=_UriMeta):
    """A link to a resource that the client can read: ``ResourceLink("book://1", "The first book")``.

    Raises:
        ValueError: `uri` isn't a URI. Clients would reject the whole result.
    """

    uri: str
    name: str
    title: str | None = None
    description: str | None = None
    mime_type: str | None = None
    size: int | None = None
    icons: list[Icon] | None = None


class ResourceContents(Wire, frozen=True, metaclass=_UriMeta):
    """The contents of a resource, as `text` or `blob`: ``ResourceContents("book://1", "text/plain", "Call me …")``.

    Raises:
        ValueError: `uri` isn't a URI. Clients would reject the whole result.
    """

    uri: str
    mime_type: str | None = None
    text: str | None = None
    blob: bytes | None = None
    meta: Json | None = _META


class EmbeddedResource(Block, frozen=True, tag="resource"):
    """A resource inside a result: ``EmbeddedResource("book://1", text="…")``, or ``blob=`` with bytes.

    `uri`, `text`, `blob`, and `mime_type` go on the wire as `resource`.

    Raises:
        TypeError: Neither or both of `text` and `blob` are given.
        ValueError: `uri` isn't a URI. Clients would reject the whole result.
    """

    uri: str = ""
    text: str | None = None
    blob: bytes | None = None
    mime_type: str | None = None
    resource: ResourceContents | None = None

    def __post_init__(self) -> None:
        if self.resource is None:
            if not self.uri or (self.text is None) == (self.blob is None):
                raise TypeError("An embedded resource needs a uri, and either text or blob.")
            force_setattr(self, "resource", ResourceContents(self.uri, self.mime_type, self.text, self.blob))
        for name, empty in (("uri", ""), ("text", None), ("blob", None), ("mime_type", None)):
            force_setattr(self, name, empty)


Content = Text | Image | Audio | ResourceLink | EmbeddedResource
"""The content blocks of tool results and prompt messages."""


class ToolUse(Wire, frozen=True, tag="tool_use", tag_field="type"):
    """A tool call in a sampled model's response: ``ToolUse("1", "add", {"a": 2})``."""

    id: str
    name: str
    input: Json
    meta: Json | None = _META


class ToolResultBlock(Wire, frozen=True, tag="tool_result", tag_field="type"):
    """The result of a `ToolUse`, sent back to the sampled model: ``ToolResultBlock(use.id, [Text("5")])``."""

    tool_use_id: str
    content: list[Content]
    structured_content: Any | UnsetType = UNSET
    is_error: bool = False
    meta: Json | None = _META


SamplingContent = Text | Image | Audio | ToolUse | ToolResultBlock
"""The content blocks of messages to and from a sampled model."""

AnyContent = Content | ToolUse | ToolResultBlock
BLOCKS: tuple[type[Struct], ...] = get_args(Content)
"""The classes of `Content`, for use with ``isinstance``."""


class Message(Wire, frozen=True):
    """A message in a prompt or sampling request: ``Message("user", "hello")``.

    `content` is one block; a string becomes a `Text`. Only sampling messages can have a list of blocks.
    """

    role: Role
    content: AnyContent | list[AnyContent] | str

    def __post_init__(self) -> None:
        if isinstance(self.content, str):
            force_setattr(self, "content", Text(self.content))

    @property
    def blocks(self) -> list[AnyContent]:
        """Return the content as a list."""
        content = cast("AnyContent | list[AnyContent]", self.content)  # `__post_init__` has replaced strings
        return content if isinstance(content, list) else [content]

    def one_by_one(self) -> list["Message"]:
        """Return messages of one block each, for revisions that don't have lists of blocks."""
        return [Message(self.role, block) for block in self.blocks] if isinstance(self.content, list) else [self]
