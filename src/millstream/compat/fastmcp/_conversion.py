"""Values that functions return as content blocks, and content blocks as JSON.

Blocks are recognized by the names of their classes: those of `millstream.compat.types`, of an installed SDK, and our
own are taken alike.
"""

import base64
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

import msgspec

from millstream._protocol.content import BLOCKS
from millstream.compat import _types as types
from millstream.compat._pydantic_parts import BaseModel, to_json
from millstream.compat.fastmcp._media import Audio, File, Image
from millstream.compat.fastmcp._ways import Ways

BLOCK_NAMES = frozenset(("TextContent", "ImageContent", "AudioContent", "ResourceLink", "EmbeddedResource"))


def is_block(value: Any) -> bool:
    """Whether a value is a content block, whoever's."""
    return isinstance(value, BLOCKS) or (isinstance(value, BaseModel) and type(value).__name__ in BLOCK_NAMES)


def is_content(value: Any) -> bool:
    """Whether a value is a content block, or stands for one."""
    return isinstance(value, Image | Audio | File) or is_block(value)


def is_result(value: Any) -> bool:
    """Whether a value is the protocol's `CallToolResult`."""
    return isinstance(value, BaseModel) and type(value).__name__ == "CallToolResult"


def as_wire(value: Any) -> Any:
    """A value of the protocol as JSON has it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    return value


def blocks_of(value: Any, ways: Ways) -> list[Any]:
    """The content that a function's value stands for."""
    if value is None:
        return []
    if not _is_several(value):
        return [block_of(value, ways)]
    if ways.one_text:
        if value and not any(is_content(item) for item in value):
            return [types.TextContent(text=_text(value, ways))]
        return [block_of(item, ways) for item in value]
    return [block for item in value for block in blocks_of(item, ways)]


def _is_several(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def block_of(value: Any, ways: Ways) -> Any:
    """One block for a value that isn't a list."""
    if isinstance(value, Image | Audio | File):
        return value.to_content()
    if is_block(value):
        return value
    return types.TextContent(text=_text(value, ways))


def _text(value: Any, ways: Ways) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes) and ways.one_text:
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return to_json(value, fallback=str, indent=ways.indent).decode()


def wire_blocks(blocks: Iterable[Any]) -> list[Any]:
    """Content blocks as JSON has them."""
    return [as_wire(each) for each in blocks]
