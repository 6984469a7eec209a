"""`Image` and `Audio`, and the conversion of values that functions return to content blocks.

Blocks are recognized by class name, so blocks of an installed ``mcp.types`` work, too.
"""

import base64
from pathlib import Path
from typing import Any, cast

import msgspec
from pydantic import BaseModel
from pydantic_core import to_json

from millstream.compat import types

BLOCK_NAMES = frozenset(("TextContent", "ImageContent", "AudioContent", "ResourceLink", "EmbeddedResource"))
_SUFFIXES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".flac": "audio/flac",
    ".aac": "audio/aac",
    ".m4a": "audio/mp4",
}


class _Media:
    """A file or bytes, with a media type.

    Args:
        path: the file, read for each result.
        data: the content, instead of `path`.
        format: the media subtype, such as ``png``; by default from the suffix of `path`.

    Raises:
        ValueError: neither `path` nor `data` is given.
    """

    kind = ""
    default = ""

    def __init__(self, path: str | Path | None = None, data: bytes | None = None, format: str | None = None) -> None:
        if path is None and data is None:
            raise ValueError("Either path or data must be provided")
        self.path: Path | None = None if path is None else Path(path)
        self.data = data
        self._format = format

    @property
    def _mime_type(self) -> str:
        if self._format:
            return f"{self.kind}/{self._format.lower()}"
        if self.path is None:
            return self.default
        return _SUFFIXES.get(self.path.suffix.lower(), "application/octet-stream")

    def _base64(self) -> str:
        data = self.path.read_bytes() if self.path is not None else self.data or b""
        return base64.b64encode(data).decode()


class Image(_Media):
    """An image: ``Image(path="chart.png")`` or ``Image(data=png, format="png")``."""

    kind = "image"
    default = "image/png"

    def to_image_content(self) -> types.ImageContent:
        """Return the image as a content block."""
        return types.ImageContent(data=self._base64(), mimeType=self._mime_type)


class Audio(_Media):
    """An audio clip: ``Audio(path="ping.wav")`` or ``Audio(data=wav, format="wav")``."""

    kind = "audio"
    default = "audio/wav"

    def to_audio_content(self) -> types.AudioContent:
        """Return the audio clip as a content block."""
        return types.AudioContent(data=self._base64(), mimeType=self._mime_type)


def is_result(value: Any) -> bool:
    """Return whether a value is the protocol's `CallToolResult`."""
    return isinstance(value, BaseModel) and type(value).__name__ == "CallToolResult"


def is_content(value: Any) -> bool:
    """Return whether a value is a content block, or converts to one."""
    return isinstance(value, Image | Audio) or (isinstance(value, BaseModel) and type(value).__name__ in BLOCK_NAMES)


def to_wire(value: Any) -> Any:
    """Convert a protocol object to JSON data."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    return value


def to_blocks(value: Any) -> list[Any]:
    """Convert a function's return value to content blocks, one for each item of a list."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [block for item in cast("list[Any]", value) for block in to_blocks(item)]
    if isinstance(value, Image):
        return [value.to_image_content()]
    if isinstance(value, Audio):
        return [value.to_audio_content()]
    return [value if is_content(value) else types.TextContent(text=to_text(value))]


def to_text(value: Any) -> str:
    """Convert a value to text: a `str` unchanged, anything else as indented JSON."""
    return value if isinstance(value, str) else to_json(value, fallback=str, indent=2).decode()


__all__ = ["Audio", "Image"]
