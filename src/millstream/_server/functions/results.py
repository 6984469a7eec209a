"""Return values of functions, encoded as members of the newest result.

Each function returns JSON members without braces (``"content":[…]``), so a handler can add ``resultType`` and ``_meta``
without encoding again.

A tool's return value: `str` is one text; a content block, or a list with at least one, is content; `bytes` is an image
if it begins like PNG, JPEG, GIF, or WebP, otherwise an embedded resource; `None` is empty content. Everything else
(dataclass, Struct, pydantic model, dict, list, number, bool) is structured, with the same JSON as text for clients
without structured content.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from millstream._protocol.content import BLOCKS, Content, EmbeddedResource, Image, Message, ResourceContents, Text
from millstream._protocol.errors import LocalError
from millstream._protocol.json_schema import Schema
from millstream._server.functions.engine import SchemaCheck
from millstream._server.functions.msgspec_engine import NotJson, Output, encode, output_error

PICTURES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))
CONTENT: tuple[type, ...] = (*BLOCKS, bytes)
"""Classes of values that are content by themselves."""
BYTES_URI = "resource://result"
"""The URI of bytes that a tool returns, because an embedded resource requires one."""


class ToolResult(Struct, frozen=True):
    """An explicit result: ``ToolResult(content=["done", image], structured={"n": 1})``.

    Without `content`, the text repeats `structured`. `encode_result` doesn't include `meta`; the handler merges it with
    its own.
    """

    content: str | Content | list[str | Content] = []
    structured: Any | UnsetType = UNSET
    is_error: bool = False
    meta: dict[str, Any] | None = None


def output_from_schema(schema: Schema) -> Output:
    """Return the output of a handwritten schema.

    Raises:
        ValueError: The schema is invalid.
        ImportError: The extra for schema checks isn't installed.
    """
    check = SchemaCheck(schema, whole="the result", object_root=False)

    def encode_checked(value: Any) -> bytes:
        data = encode(value)
        if not check.fits(written := msgspec.json.decode(data)):
            raise output_error(check.reasons(written, len(data)))
        return data

    return Output(schema, encode_checked)


def encode_result(value: Any, output: Output | None = None) -> bytes:
    """Return the members of a tool result.

    Raises:
        LocalError: The value doesn't match `output`.
        TypeError: The value isn't JSON-serializable.
    """
    if output is None:
        if type(value) is str:
            return b'"content":[{"type":"text","text":%b}]' % encode(value)
        blocks = _blocks(value)
        if blocks is not None:
            return b'"content":%b' % encode(blocks)
    if isinstance(value, ToolResult):
        return _explicit(value, output)
    return _encode_structured(value, output)


def encode_value(value: Any, output: Output | None) -> bytes:
    """Return the JSON of a structured value. Raises the errors of `encode_result`."""
    try:
        return encode(value) if output is None else output.encode(value)
    except RecursionError:
        raise NotJson("the result contains itself, or is nested too deeply for JSON") from None


def _encode_structured(value: Any, output: Output | None) -> bytes:
    data = encode_value(value, output)
    return b'"content":[{"type":"text","text":%b}],"structuredContent":%b' % (encode(data.decode()), data)


def _explicit(result: ToolResult, output: Output | None) -> bytes:
    if output is not None and not result.is_error:
        if result.structured is UNSET:
            raise output_error("it has no structured value")
        result = msgspec.structs.replace(result, structured=Raw(output.encode(result.structured)))
    items = result.content if isinstance(result.content, list) else [result.content]
    if result.structured is not UNSET and not items:
        members = _encode_structured(result.structured, None)
    else:
        members = b'"content":%b' % encode([_block(item) for item in items])
        if result.structured is not UNSET:
            members += b',"structuredContent":%b' % encode(result.structured)
    return members + b',"isError":true' if result.is_error else members


def _blocks(value: Any) -> list[Content] | None:
    """Return the content blocks of a value, or `None` if it's structured."""
    if value is None:
        return []
    if isinstance(value, CONTENT):
        return [_block(value)]
    if _is_several(value) and any(isinstance(item, BLOCKS) for item in value):
        return [_block(item) for item in value]
    return None


def _is_several(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _block(item: Any) -> Content:
    if isinstance(item, BLOCKS):
        return item  # type: ignore[return-value]  # BLOCKS are the members of Content
    if isinstance(item, bytes):
        for start, mime_type in PICTURES:
            if item.startswith(start):
                return Image(item, mime_type)
        if item[:4] == b"RIFF" and item[8:12] == b"WEBP":
            return Image(item, "image/webp")
        return EmbeddedResource(BYTES_URI, blob=item, mime_type="application/octet-stream")
    return Text(as_text(item))


def as_text(value: Any) -> str:
    """Return a value as text: itself, the text of a `Text`, or JSON. Streaming tools report their progress with it."""
    if isinstance(value, str):
        return value
    return value.text if isinstance(value, Text) else encode(value).decode()


def encode_messages(value: Any) -> bytes:
    """Return the members of a prompt: a string, content block, or `Message`, or a list of them.

    Strings and blocks have the role user. A dict with a role and content is a message, as in other packages.
    """
    items = value if _is_several(value) else [value]
    several = [_message(item) for item in items]
    messages = [each for message in several for each in message.one_by_one()]
    for message in messages:
        if not isinstance(message.content, BLOCKS):
            raise LocalError(
                f"a prompt contains a {type(message.content).__name__}, which is allowed only in sampling messages"
            )
    return b'"messages":%b' % encode(messages)


def _message(item: Any) -> Message:
    if isinstance(item, Message):
        return item
    if isinstance(item, dict) and item.keys() == {"role", "content"}:
        return msgspec.convert(item, Message)
    return Message("user", _block(item))


def encode_contents(value: Any, uri: str, mime_type: str | None = None, meta: Mapping[str, Any] | None = None) -> bytes:
    """Return the members of a resource: text, bytes, or any other value as JSON.

    `EmbeddedResource`, or a list of them, sets several contents with their own URIs. Each content has `meta`, which the
    `meta` of an `EmbeddedResource` overrides.

    Raises:
        LocalError: The value is `None`, which isn't content.
    """
    items = value if _is_several(value) else [value]
    if items and all(isinstance(item, EmbeddedResource) for item in items):
        return b'"contents":%b' % encode([_contents(item, uri, meta) for item in items])
    if value is None:
        raise LocalError(f"the resource {uri} returned nothing")
    text: str | None = None
    blob: bytes | None = None
    if isinstance(value, str):
        usual, text = "text/plain", value
    elif isinstance(value, bytes):
        usual, blob = "application/octet-stream", value
    else:
        usual, text = "application/json", encode(value).decode()
    contents = ResourceContents(uri, mime_type or usual, text, blob, dict(meta) if meta else None)
    return b'"contents":[%b]' % encode(contents)


def _contents(item: EmbeddedResource, uri: str, meta: Mapping[str, Any] | None) -> ResourceContents:
    contents = item.resource
    assert contents is not None  # noqa: S101  `EmbeddedResource` makes one of its other fields
    if not contents.uri:
        contents = msgspec.structs.replace(contents, uri=uri)
    about = {**(meta or {}), **(item.meta or {}), **(contents.meta or {})}
    return msgspec.structs.replace(contents, meta=about) if about else contents
