"""Files that one program writes and others read: replaced atomically, under a lock, and protected from other users.

Changes are written to a temporary file that replaces the original under a lock, so readers never see half a file and
concurrent commands never undo each other.
"""

import contextlib
import os
import secrets
from collections.abc import Generator
from pathlib import Path

from millstream._protocol.errors import LocalError

Stamp = tuple[int, int, int]
"""Modification time, size, and inode. A different stamp means that the file was written."""


def read_file(path: Path, kind: str, remedy: str) -> tuple[bytes, Stamp]:
    """Return a file's content and stamp.

    Args:
        path: path of the file.
        kind: what the file is, for error messages, such as ``key file``.
        remedy: command that creates one.

    Raises:
        LocalError: the file is missing, or other users may write to it.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            raw = file.read()
    except OSError as exc:
        raise LocalError(
            f"The {kind} {path} can't be read: {exc.strerror}. Create one: {remedy} --file {path}"
        ) from exc
    if os.name == "posix" and status.st_mode & 0o022:
        raise LocalError(f"Other users may write to the {kind} {path}. Run: chmod 600 {path}")
    return raw, (status.st_mtime_ns, status.st_size, status.st_ino)


def stamp_of(path: Path) -> Stamp | None:
    """Return the current stamp of a file; None if it's missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


@contextlib.contextmanager
def lock(path: Path) -> Generator[None, None, None]:
    """Hold an exclusive lock on a file; without effect on Windows."""
    try:
        import fcntl  # noqa: PLC0415  not on Windows
    except ImportError:
        yield
        return
    lock = path.with_name(path.name + ".lock")
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise LocalError(f"{path.parent} can't be written to: {exc.strerror}.") from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def replace_file(path: Path, body: bytes) -> None:
    """Replace a file atomically."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
