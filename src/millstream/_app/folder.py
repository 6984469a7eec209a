"""A folder of files as resources: a list, and a template for the files (``mcp.files``).

Paths come from clients. `open_file` compares the file that it has opened with the folder.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from io import BufferedReader
from itertools import islice
from mimetypes import guess_type
from pathlib import Path
from urllib.parse import quote

from millstream._app.definition import Definition
from millstream._protocol.content import EmbeddedResource, ResourceContents
from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.jsonrpc import Json
from millstream._server.features.resources import ResourceLabels, resource_of
from millstream._server.features.sources import completer_of
from millstream.files import find_file, open_file, read_at_once, resolve_inside, walk_files

MAX_BYTES = 10 * 1024 * 1024
"""Maximum size of a file, in bytes."""
MAX_FILES = 10_000
"""Maximum number of entries in the list."""
MAX_COMPLETED = 100
LONG_WALK = 0.01
"""CPU time above which a scan is cached, in seconds."""


class Folder:
    """The files in a folder. A slow scan is cached for ten times as long as it took, so repeated requests use at most a
    tenth of a core. A small folder is scanned each time.
    """

    def __init__(self, folder: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raise ValueError if the folder doesn't exist."""
        if not Path(folder).is_dir():
            raise ValueError(f"There is no folder {folder!r} in {Path.cwd()}.")
        self._root = Path(folder).absolute()
        self._clock = clock
        self._lock = threading.Lock()
        """Held during a scan, so concurrent callers share the result."""
        self._walked: list[tuple[str, Path]] = []
        self._until = -math.inf

    def files(self) -> list[tuple[str, Path]]:
        """Return the first `MAX_FILES` files, each with its path in the folder, with slashes."""
        with self._lock:
            if self._clock() >= self._until:
                began = time.thread_time()
                self._walked = read_at_once(self._root, lambda: list(islice(self._walk(), MAX_FILES)))
                took = time.thread_time() - began
                self._until = self._clock() + 10 * took if took >= LONG_WALK else -math.inf
            return self._walked

    def _walk(self) -> Iterator[tuple[str, Path]]:
        root = self._root.resolve()
        return _walk(root, root)

    def matching_paths(self, start: str) -> Iterator[str]:
        """Yield the paths that begin with a string, scanning only folders that can contain them."""
        if _has_hidden(start.split("/")):
            return
        folder, _, name = start.rpartition("/")
        root = self._root.resolve()
        place = resolve_inside(root, root / folder)
        if place is not None:
            yield from (f"{folder}/{path}".lstrip("/") for path, _ in _walk(root, place, name))

    def open(self, path: str) -> BufferedReader | None:
        """Open the file at a path. Return None if it doesn't exist or may not be read.

        Raises:
            OSError: The file can't be read.
        """
        if _has_hidden(path.replace("\\", "/").split("/")):
            return None
        return open_file(self._root, self._root / path)


def _walk(root: Path, folder: Path, start: str = "") -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder of the root, with their paths in the folder. In the folder itself, only names that
    begin with `start`.
    """
    for path in walk_files(folder, start):
        found = find_file(root, path)
        if found is not None:
            yield path.relative_to(folder).as_posix(), found


def _has_hidden(names: Iterable[str]) -> bool:
    return any(each.startswith(".") for each in names)


def add_folder(definition: Definition, uri: str, folder: str, options: ResourceLabels) -> None:
    """Register the list and the files.

    Raises:
        ValueError: The folder doesn't exist, or the URI is invalid.
    """
    if not uri.endswith("/") or "{" in uri:
        raise ValueError(f"files({uri!r}): the URI must end with a slash, as in 'docs://', and have no variables.")
    files = Folder(folder)

    def list_files() -> list[Json]:
        """Return the files, with their sizes in bytes."""
        listed: list[Json] = []
        for path, place in files.files():
            with suppress(OSError):  # it was deleted since the scan
                listed.append({"uri": uri + quote(path), "path": path, "size": place.stat().st_size})
        return listed

    def read_file(path: str) -> EmbeddedResource | None:
        """Return a file in the folder, or None if it doesn't exist."""
        file = files.open(path)
        if file is None:
            return None
        with file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ProtocolError(INVALID_PARAMS, f"The file {path} has more than {MAX_BYTES:,} bytes.")
        kind = guess_type(path)[0]
        try:
            contents = ResourceContents("", kind or "text/plain", text=data.decode())
        except UnicodeDecodeError:
            contents = ResourceContents("", kind or "application/octet-stream", blob=data)
        return EmbeddedResource(resource=contents)

    async def complete(value: str, arguments: dict[str, str]) -> list[str]:
        """Return paths that begin with `value`."""
        return await asyncio.to_thread(lambda: list(islice(files.matching_paths(value), MAX_COMPLETED)))

    name, template = Path(folder).resolve().name or "files", f"{uri}{{path*}}"
    definition.add("resources", uri, resource_of(uri, list_files, home=definition, name=name, **options))
    definition.add("templates", template, resource_of(template, read_file, home=definition, name=name, **options))
    definition.complete(template, "path", completer_of(complete, home=definition))
