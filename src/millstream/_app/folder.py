"""A folder of files as resources: a list of them, and a template for each of them (``mcp.files``).

The paths come from clients. A file is read only if it lies in the folder once every link is followed.
"""

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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
LONG_WALK = 0.01
"""Seconds of processor time from which on a walk is remembered."""


class Folder:
    """The files below a place.

    A walk through many files is remembered for ten times as long as it took, so that clients who ask again and again
    take a tenth of a core at most. A small folder is walked each time.
    """

    __slots__ = ("_clock", "_lock", "_root", "_until", "_walked")

    def __init__(self, folder: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ValueError when there is no such folder."""
        if not Path(folder).is_dir():
            raise ValueError(f"There is no folder {folder!r}, seen from {Path.cwd()}")
        self._root = Path(folder).resolve()
        self._clock = clock
        self._lock = threading.Lock()
        """Held during a walk: those who ask in the meantime get its result."""
        self._walked: list[tuple[str, Path]] = []
        self._until = -math.inf

    def files(self) -> list[tuple[str, Path]]:
        """Return the first `MAX_FILES` files, each with its path below the folder, with slashes."""
        with self._lock:
            if self._clock() >= self._until:
                began = time.thread_time()
                self._walked = list(islice(self._walk(self._root), MAX_FILES))
                took = time.thread_time() - began
                self._until = self._clock() + 10 * took if took >= LONG_WALK else -math.inf
            return self._walked

    def matching(self, start: str) -> Iterator[str]:
        """Yield the paths that begin with a text. Only folders that can have such paths are looked at."""
        folder, _, name = start.rpartition("/")
        place = self._root / folder
        try:
            inside = place.resolve() == place and place.is_relative_to(self._root)
        except (OSError, ValueError, RuntimeError):
            inside = False  # a loop of links, or no name for a file
        if inside and not any(each.startswith(".") for each in start.split("/")):
            yield from (path for path, _ in self._walk(place, name))

    def _walk(self, folder: Path, start: str = "") -> Iterator[tuple[str, Path]]:
        """Yield the files below a folder; of what is in the folder itself, only names that begin with `start`."""
        for place, folders, names in os.walk(folder):
            kept = [each for each in folders if not each.startswith(".") and each.startswith(start)]
            folders[:] = sorted(kept)
            for name in sorted(each for each in names if each.startswith(start)):
                path = Path(place, name).relative_to(self._root).as_posix()
                if (found := self.find(path)) is not None:
                    yield path, found
            start = ""

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
        listed: list[dict[str, Any]] = []
        for path, place in self._files.files():
            with suppress(OSError):  # it was deleted since the walk
                listed.append({"uri": self._uri + quote(path), "path": path, "size": place.stat().st_size})
        return listed

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
        return await asyncio.to_thread(lambda: list(islice(self._files.matching(value), MAX_COMPLETED)))


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
