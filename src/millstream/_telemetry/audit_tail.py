"""The newest lines of a machine's audit logs: the server's file and the numbered files of its other workers. This
module doesn't verify them. See `audit.verify`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from millstream._protocol.json_schema import is_object

TAIL_BYTES = 512 * 1024
"""Maximum bytes to read from the end of each file."""
MAX_FILES = 64
MAX_LINES = 500
_FIELDS = ("method", "target", "subject", "issuer", "client", "address", "transport", "outcome")
"""Fields that a filter searches."""


def newest(path: Path, *, words: str = "", failed: bool = False, limit: int = 100) -> list[dict[str, Any]]:
    """Return the newest lines without their hashes, newest first.

    Args:
        path: The file configured for the server.
        words: Return only lines that contain all of these words, ignoring case.
        failed: Return only failed calls.
        limit: Maximum number of lines, up to `MAX_LINES`.
    """
    wanted = words.lower().split()
    found = [
        line
        for each in _files(path)
        for line in _tail(each)
        if not (failed and line.get("outcome", "ok") == "ok") and _has(line, wanted)
    ]
    found.sort(key=lambda line: (str(line.get("at", "")), str(line.get("seq", "")).zfill(12)), reverse=True)
    return [
        {name: value for name, value in line.items() if name not in ("hash", "prev")}
        for line in found[: max(0, min(limit, MAX_LINES))]
    ]


def _files(path: Path) -> list[Path]:
    """Return the file and the numbered files beside it that other processes write."""
    name = re.compile(re.escape(path.name) + r"(\.\d{1,3})?")
    try:
        found = [each for each in path.parent.iterdir() if name.fullmatch(each.name) and each.is_file()]
    except OSError:
        return []
    return sorted(found)[:MAX_FILES]


def _tail(path: Path) -> Iterator[dict[str, Any]]:
    """Return the last lines of a file, without a first line that may be incomplete."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return
    for line in lines[1 if size > TAIL_BYTES else 0 :]:
        try:
            found: Any = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue
        if is_object(found):
            yield found


def _has(line: dict[str, Any], wanted: list[str]) -> bool:
    text = " ".join(str(line.get(name, "")) for name in _FIELDS).lower()
    return all(word in text for word in wanted)
