"""`Image`, `Audio` and `File`: what functions return instead of content blocks."""

import base64
import mimetypes
from pathlib import Path
from typing import Any

from millstream.compat import _types as types

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
_UNKNOWN = "application/octet-stream"


class _Media:
    """A file or bytes, with a media type."""

    kind = ""
    default = _UNKNOWN

    def __init__(
        self,
        path: str | Path | None = None,
        data: bytes | None = None,
        format: str | None = None,
        annotations: Any = None,
    ) -> None:
        if path is None and data is None:
            raise ValueError("Either path or data must be provided")
        if path is not None and data is not None:
            raise ValueError("Only one of path or data can be provided")
        self.path: Path | None = None if path is None else Path(path).expanduser()
        self.data = data
        self.annotations = annotations
        self._format = format
        self._mime_type = self._type_of(self.path)

    def _type_of(self, path: Path | None) -> str:
        if self._format:
            return f"{self.kind}/{self._format.lower()}"
        return self.default if path is None else _SUFFIXES.get(path.suffix.lower(), _UNKNOWN)

    def _base64(self) -> str:
        data = self.path.read_bytes() if self.path is not None else self.data or b""
        return base64.b64encode(data).decode()


class Image(_Media):
    """A picture: ``Image(path="chart.png")`` or ``Image(data=png, format="png")``."""

    kind = "image"
    default = "image/png"

    def to_image_content(self, mime_type: str | None = None, annotations: Any = None) -> types.ImageContent:
        """The picture as a content block."""
        return types.ImageContent(
            data=self._base64(), mime_type=mime_type or self._mime_type, annotations=annotations or self.annotations
        )

    to_content = to_image_content

    def to_data_uri(self, mime_type: str | None = None) -> str:
        """The picture as a ``data:`` URI."""
        return f"data:{mime_type or self._mime_type};base64,{self._base64()}"


class Audio(_Media):
    """A sound: ``Audio(path="ping.wav")`` or ``Audio(data=wav, format="wav")``."""

    kind = "audio"
    default = "audio/wav"

    def to_audio_content(self, mime_type: str | None = None, annotations: Any = None) -> types.AudioContent:
        """The sound as a content block."""
        return types.AudioContent(
            data=self._base64(), mime_type=mime_type or self._mime_type, annotations=annotations or self.annotations
        )

    to_content = to_audio_content


class File(_Media):
    """Any file, sent as an embedded resource: ``File(path="report.pdf")``."""

    kind = "application"

    def __init__(
        self,
        path: str | Path | None = None,
        data: bytes | None = None,
        format: str | None = None,
        name: str | None = None,
        annotations: Any = None,
    ) -> None:
        super().__init__(path, data, format, annotations)
        self._name = name

    def _type_of(self, path: Path | None) -> str:
        if self._format:
            kind = "text" if self._format.lower() in ("plain", "txt", "text") else "application"
            return f"{kind}/{'plain' if kind == 'text' else self._format.lower()}"
        return (None if path is None else mimetypes.guess_type(path)[0]) or _UNKNOWN

    def to_resource_content(self, mime_type: str | None = None, annotations: Any = None) -> types.EmbeddedResource:
        """The file as a content block."""
        kind = mime_type or self._mime_type
        if self.path is not None:
            uri = self.path.resolve().as_uri()
        else:
            name = self._name or (f"resource.{kind.partition('/')[2]}")
            uri = f"file:///{name}"
        data = self.path.read_bytes() if self.path is not None else self.data or b""
        contents: types.TextResourceContents | types.BlobResourceContents
        if kind.startswith("text/"):
            try:
                contents = types.TextResourceContents(uri=uri, mime_type=kind, text=data.decode())
            except UnicodeDecodeError:
                contents = types.BlobResourceContents(uri=uri, mime_type=kind, blob=base64.b64encode(data).decode())
        else:
            contents = types.BlobResourceContents(uri=uri, mime_type=kind, blob=base64.b64encode(data).decode())
        return types.EmbeddedResource(resource=contents, annotations=annotations or self.annotations)

    to_content = to_resource_content
