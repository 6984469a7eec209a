"""Detection of changed files by polling, which works on every disk and needs no library."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

PAUSE = 0.3
"""Seconds between two scans."""
MAX_FILES = 5_000
"""Maximum files of a folder; a folder with more isn't a single program."""
_FOREIGN = frozenset({"__pycache__", "node_modules", "site-packages"})

Seen = dict[str, tuple[int, int]]


def changes(folder: Path) -> AsyncIterator[None]:
    """Yield when Python files below a folder have changed since now, and have stopped changing."""
    return _changes(folder, look(folder))


async def _changes(folder: Path, served: Seen) -> AsyncIterator[None]:
    before = served
    while True:
        await asyncio.sleep(PAUSE)
        now = await asyncio.to_thread(look, folder)
        if now == before != served:
            served = now
            yield
        before = now


def look(folder: Path) -> Seen:
    """Return time and size of each Python file, without installed packages."""
    seen: Seen = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if not _is_foreign(Path(place, each))]
        for name in files:
            if name.endswith(".py") and len(seen) < MAX_FILES:
                path = os.path.join(place, name)  # noqa: PTH118  a Path for each of so many takes time
                try:
                    info = os.stat(path)  # noqa: PTH116  as above
                except OSError:
                    continue  # deleted in the meantime
                seen[path] = (info.st_mtime_ns, info.st_size)
    return seen


def _is_foreign(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name in _FOREIGN or (folder / "pyvenv.cfg").exists()
