"""A folder of files as resources: a list of them, and a template for each of them (``mcp.files``).

The paths come from clients. A file is read only if it lies in the folder once every link is followed.
"""

import asyncio
import os
from collections.abc import Iterator
from itertools import islice
from mimetypes import guess_type
from pathlib import Path
from typing import Any
from urllib.parse import quote

from millstream._app.definition import Definition
from millstream._protocol.content import EmbeddedResource, ResourceContents
from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._server.features.completers import completer_of
from millstream._server.features.resources import ResourceLabels, resource_of

MAX_BYTES = 10 * 1024 * 1024
"""Of one file."""
MAX_FILES = 10_000
"""That the list has."""
MAX_COMPLETED = 100


class Folder:
    """The files below a place. What is asked is asked of the disk each time."""

    __slots__ = ("_root",)

    def __init__(self, folder: str) -> None:
        """Raises ValueError when there is no such folder."""
        if not Path(folder).is_dir():
            raise ValueError(f"There is no folder {folder!r}, seen from {Path.cwd()}")
        self._root = Path(folder).resolve()

    def paths(self) -> Iterator[str]:
        """Every file by its path, with slashes."""
        for place, folders, names in os.walk(self._root):
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            for name in sorted(names):
                path = Path(place, name).relative_to(self._root).as_posix()
                if self.find(path) is not None:
                    yield path

    def find(self, path: str) -> Path | None:
        """The file of a path; None when there is none that may be read."""
        if any(each.startswith(".") for each in path.replace("\\", "/").split("/")):
            return None
        try:
            found = (self._root / path).resolve()
            inside = found.is_relative_to(self._root) and not any(
                each.startswith(".") for each in found.relative_to(self._root).parts
            )
            return found if inside and found.is_file() else None
        except (OSError, ValueError, RuntimeError):
            return None  # a loop of links, or no name for a file


class OfferedFolder:
    """The functions of a folder's list, files and completion."""

    def __init__(self, files: Folder, uri: str) -> None:
        self._files = files
        self._uri = uri

    def list_files(self) -> list[dict[str, Any]]:
        """The files, with their sizes in bytes."""
        found = ((path, self._files.find(path)) for path in self._files.paths())
        return [
            {"uri": self._uri + quote(path), "path": path, "size": place.stat().st_size}
            for path, place in islice(found, MAX_FILES)
            if place is not None
        ]

    def read_file(self, path: str) -> EmbeddedResource | None:
        """One of the files."""
        place = self._files.find(path)
        if place is None:
            return None
        with place.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ProtocolError(INVALID_PARAMS, f"The file has more than {MAX_BYTES} bytes: {path}")
        kind = guess_type(place.name)[0]
        try:
            contents = ResourceContents("", kind or "text/plain", text=data.decode())
        except UnicodeDecodeError:
            contents = ResourceContents("", kind or "application/octet-stream", blob=data)
        return EmbeddedResource(resource=contents)

    async def complete(self, value: str, arguments: dict[str, str]) -> list[str]:
        """Paths that begin so."""
        found = (path for path in self._files.paths() if path.startswith(value))
        return await asyncio.to_thread(lambda: list(islice(found, MAX_COMPLETED)))


def offer(definition: Definition, uri: str, folder: str, options: ResourceLabels) -> None:
    """Register the list and the files.

    Raises:
        ValueError: there is no such folder, or the URI can't be one.
    """
    if not uri.endswith("/") or "{" in uri:
        raise ValueError(f"files({uri!r}): the URI ends with a slash, as in 'docs://', and has no variables")
    offered = OfferedFolder(Folder(folder), uri)
    name, template = Path(folder).resolve().name or "files", f"{uri}{{path*}}"
    definition.add("resources", uri, resource_of(uri, offered.list_files, home=definition, name=name, **options))
    definition.add(
        "templates", template, resource_of(template, offered.read_file, home=definition, name=name, **options)
    )
    definition.complete(template, "path", completer_of(offered.complete, home=definition))
