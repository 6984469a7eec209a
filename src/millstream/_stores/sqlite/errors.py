"""Translation of SQLite and system errors to errors with cause and advice."""

from pathlib import Path
from typing import Final

from millstream._protocol.errors import LocalError
from millstream._stores.base import StoreFull, StoreUnavailable

_AWAY: Final = "Put back a copy, or move the file away (with the -wal file beside it) to begin with an empty store"
_TEXTS: Final[dict[str, str]] = {
    "SQLITE_FULL": "can't grow: the disk is full, or the file has its largest size. Nothing was changed. Make room.",
    "SQLITE_BUSY": """is in use by another process, or another event loop of this one. One owns a SQLite store. To
        serve with several processes, start one with --workers N; for several machines or programs, use redis://. If a
        program looks into the file, end it.""",
    "SQLITE_NOTADB": """isn't a SQLite database, or its beginning is damaged. Nothing in it was changed. Name another
        file, or put back a copy of this one.""",
    "SQLITE_CORRUPT": f"""is damaged. Nothing in it was changed. {_AWAY}; `sqlite3 FILE .recover` may save what is in
        it.""",
    "ValueError": f"is damaged: what is in it doesn't fit together. Nothing in it was changed. {_AWAY}.",
    "SQLITE_READONLY": """can't be written. Let the user of this process write to the file and to its folder, where
        SQLite keeps a second file.""",
    "SQLITE_IOERR_LOCK": """can't be locked. Let the user of this process write to the file. Some network file systems
        have no locks: use a local disk, or redis://.""",
    "SQLITE_CANTOPEN": """can't be opened. The folder must exist, and the user of this process must be allowed to write
        to it, because SQLite keeps a second file there.""",
    "SQLITE_PERM": "can't be opened: the user of this process isn't allowed to.",
    "PermissionError": "can't be made: the user of this process isn't allowed to write to the folder.",
    "FileNotFoundError": "can't be made: the folder doesn't exist. Make it first.",
    "NotADirectoryError": "can't be made: a part of the path is a file.",
    "IsADirectoryError": "is a folder. Name a file.",
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
        f"{path} can't be read or written: {exc} ({code}). Look at the disk. What was acknowledged is kept; what fails "
        "now wasn't acknowledged. The store tries again when it's asked."
    )
