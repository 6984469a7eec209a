"""Files that only their user can read, replaced atomically."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

PRIVATE = 0o600
Stamp = tuple[int, int, int]
"""What changes with a file: the time of its last change, its size, and its inode."""


def stamp_of(path: Path) -> Stamp | None:
    """Return the current stamp of a file; None if it's missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def write_private(path: Path, content: bytes, *, overwrite: bool = True, mode: int = PRIVATE) -> None:
    """Write a whole file or none of it. Create its folder if necessary.

    Args:
        path: The file.
        content: Its content.
        overwrite: Whether to replace an existing file. Otherwise, the file of the first writer stays.
        mode: Access to the file. By default, only you can read it.

    Raises:
        OSError: The file can't be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if mode != PRIVATE:
            draft.chmod(mode)
        if overwrite:
            draft.replace(path)
        else:
            with suppress(FileExistsError):
                os.link(draft, path)  # unlike a rename, a link doesn't replace a file
    finally:
        draft.unlink(missing_ok=True)
