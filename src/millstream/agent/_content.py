"""Conversion of server content for models: text, with images and audio as message parts.

Tool messages can contain only text, so images and audio of a result are sent in a user message after it.
"""

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from millstream._protocol.content import (
    Audio,
    EmbeddedResource,
    Image,
    ResourceContents,
    ResourceLink,
    Text,
    ToolResultBlock,
    ToolUse,
)
from millstream.client._results import Result

Part = dict[str, Any]
_SOUNDS = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/wave": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3"}
"""Media type -> format name of the API. Others aren't supported."""
_PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})


class ShownContent(Struct):
    """Blocks, separated into text and parts."""

    text: str
    parts: list[Part]
    """Images and audio."""


def show_result(result: Result, limit: int) -> ShownContent:
    """Convert the result of a tool, using structured content if the text doesn't contain it."""
    shown = show_blocks(result.content, limit)
    if not shown.text and not shown.parts and result.structured_content is not UNSET:
        shown.text = cut(bytes(result.structured_content).decode("utf-8", "replace"), limit)
    if not shown.text:
        shown.text = "(see the next message)" if shown.parts else "(no content)"
    return shown


def show_blocks(blocks: Iterable[Any], limit: int) -> ShownContent:
    """Convert the content blocks of a tool result or prompt."""
    texts: list[str] = []
    parts: list[Part] = []
    for block in blocks:
        text, part = _show(block)
        if text:
            texts.append(text)
        if part is not None:
            parts.append(part)
    return ShownContent(cut("\n".join(texts), limit), parts)


def show_contents(source: str, contents: Sequence[ResourceContents], limit: int) -> list[Part]:
    """Convert an attached resource to message parts."""
    parts: list[Part] = []
    for each in contents:
        text, part = _show_resource(each)
        parts.append(text_part(cut(f"Content of {source}:\n{text}" if text else f"Content of {source}:", limit)))
        if part is not None:
            parts.append(part)
    return parts


def text_part(text: str) -> Part:
    """Return text as a message part."""
    return {"type": "text", "text": text}


def message_content(text: str, parts: Sequence[Part]) -> str | list[Part]:
    """Return the content of a message: plain text if possible, because some APIs only accept text."""
    if not parts:
        return text
    return ([text_part(text)] if text else []) + list(parts)


def cut(text: str, limit: int) -> str:
    """Truncate text to `limit` characters, and append a note about the rest."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[{len(text) - limit:,} more characters were left out]"


def _show(block: Any) -> tuple[str, Part | None]:
    if isinstance(block, Text):
        return block.text, None
    if isinstance(block, Image | Audio):
        return _show_bytes(block.data, block.mime_type)
    if isinstance(block, ResourceLink):
        about = f": {block.description}" if block.description else ""
        return f"[resource {block.uri} ({block.title or block.name}){about}]", None
    if isinstance(block, EmbeddedResource) and block.resource is not None:
        text, part = _show_resource(block.resource)
        return f"[resource {block.resource.uri}]\n{text}".rstrip(), part
    return _show_sampled(block)


def _show_sampled(block: Any) -> tuple[str, Part | None]:
    """Convert blocks that only occur in sampling. Other blocks become the name of their type."""
    if isinstance(block, ToolUse):
        return f"[called {block.name} with {msgspec.json.encode(block.input).decode()}]", None
    if isinstance(block, ToolResultBlock):
        return "\n".join(_show(each)[0] for each in block.content), None
    return f"[{type(block).__name__}]", None


def _show_resource(content: ResourceContents) -> tuple[str, Part | None]:
    if content.blob is None:
        return content.text or "", None
    return _show_bytes(content.blob, content.mime_type or "")


def _show_bytes(data: bytes, media: str) -> tuple[str, Part | None]:
    """Return an image or audio part if models support it, or else a description."""
    media = media.partition(";")[0].strip().lower()
    encoded = base64.b64encode(data).decode()
    if media in _PICTURES:
        return "", {"type": "image_url", "image_url": {"url": f"data:{media};base64,{encoded}"}}
    if media in _SOUNDS:
        return "", {"type": "input_audio", "input_audio": {"data": encoded, "format": _SOUNDS[media]}}
    if media.startswith("text/") or media.endswith(("json", "xml")):
        return data.decode("utf-8", "replace"), None
    return f"[{media or 'bytes'}, {len(data):,} bytes]", None
