"""Translation of SQLite and system errors to errors with cause and advice."""

from pathlib import Path
from typing import Final

from millstream._protocol.errors import LocalError
from millstream._stores.base import StoreFull, StoreUnavailable

_AWAY = "Restore a backup, or move the file away (with its -wal file) to start with an empty store"
_TEXTS: Final[dict[str, str]] = {
    "SQLITE_FULL": (
        "can't grow: the disk is full, or the file has reached its maximum size. Nothing was changed. Free some space."
    ),
    "SQLITE_BUSY": """is in use by another process, or another event loop of this one. One owns a SQLite store. To
        serve with several processes, start one with --workers N; for several machines or programs, use redis://. If a
        program looks into the file, end it.""",
    "SQLITE_NOTADB": """isn't a SQLite database, or its beginning is damaged. Nothing in it was changed. Name another
        file, or put back a copy of this one.""",
    "SQLITE_CORRUPT": f"""is damaged. Nothing in it was changed. {_AWAY}; `sqlite3 FILE .recover` may save what is in
        it.""",
    "ValueError": f"is damaged. Nothing in it was changed. {_AWAY}.",
    "SQLITE_READONLY": """can't be written. Let the user of this process write to the file and to its folder, where
        SQLite keeps a second file.""",
    "SQLITE_IOERR_LOCK": """can't be locked. Let the user of this process write to the file. Some network file systems
        have no locks: use a local disk, or redis://.""",
    "SQLITE_CANTOPEN": """can't be opened. The folder must exist, and the user of this process must be allowed to write
        to it, because SQLite keeps a second file there.""",
    "SQLITE_PERM": "can't be opened: the user of this process has no permission.",
    "PermissionError": "can't be created: the user of this process has no permission to write to the folder.",
    "FileNotFoundError": "can't be created: the folder doesn't exist. Create it first.",
    "NotADirectoryError": "can't be created: a part of the path is a file.",
    "IsADirectoryError": "is a folder. Use the path of a file.",
}
"""Text after the path, by prefix of the error name."""


class FileVanished(StoreUnavailable):
    """The file is missing from its path. New data would be lost, so nothing was changed."""


def translate_error(path: Path, exc: Exception) -> LocalError:
    """Return the error to show for a failed operation on a file."""
    code = getattr(exc, "sqlite_errorname", "") or type(exc).__name__
    for prefix, text in _TEXTS.items():
        if code.startswith(prefix):
            kind = StoreFull if prefix == "SQLITE_FULL" else LocalError
            return kind(f"{path} {' '.join(text.split())} ({code})")
    return StoreUnavailable(
        f"{path} can't be read or written: {exc} ({code}). Check the disk. Acknowledged data is kept, and "
        "operations that fail now are retried only when they are repeated."
    )
