"""Files that only you can read, replaced atomically, and the variables in ``.env`` files.

python-dotenv parses variables without expansion: a ``$`` is literal.

Example:
    >>> write_private(Path.home() / ".shop" / "token", token.encode())
"""

import io
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

__all__ = [
    "EnvFileError",
    "find_file",
    "read_env_file",
    "write_private",
]

PRIVATE = 0o600
"""The mode of a file that only its user can read and write."""
Stamp = tuple[int, int, int]
"""A file's modification time, size, and inode, which change with the file."""


def find_file(folder: Path, path: Path) -> Path | None:
    """Return a file in a folder: ``find_file(root, root / "a.txt")``. Return None if it's missing, hidden, or outside.

    Args:
        folder: The folder, without links in its path.
        path: The path of the file. The result has no links in its path.
    """
    try:
        found = path.resolve()
        hidden = any(each.startswith(".") for each in found.relative_to(folder).parts)
        return None if hidden or not found.is_file() else found
    except (OSError, ValueError, RuntimeError):
        return None  # outside, a loop of links, or an invalid file name


def stamp_of(path: Path) -> Stamp | None:
    """Return the current stamp of a file, or None if it's missing: ``if stamp_of(path) != last: …``.

    Args:
        path: The file.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def write_private(path: Path, content: bytes, *, overwrite: bool = True, mode: int = PRIVATE) -> None:
    """Write a whole file or none of it: ``write_private(path, b"secret")``. Create its folder if necessary.

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


def open_lock(path: Path, *, wait: bool = True) -> int | None:
    """Lock a file against other processes, and return the descriptor to close. On Windows, nothing is locked.

    Args:
        path: The file. The lock is a separate file next to it.
        wait: Whether to wait for the lock. If not, return None if another process holds it.

    Raises:
        OSError: The lock can't be created.
    """
    handle = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, PRIVATE)
    try:
        import fcntl  # noqa: PLC0415  not on Windows

        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle


_LONG_GAP = re.compile(r"(?<![^\S\r\n])[^\S\r\n]{1001}")
"""More than 1,000 spaces in a row, for which python-dotenv needs quadratic time."""


class EnvFileError(ValueError):
    """An environment file is invalid: ``except EnvFileError as error: print(error)``."""


def read_env_file(path: Path, label: str = "") -> dict[str, str]:
    """Return the variables of a file: ``read_env_file(Path(".env"))["SHOP_KEY"]``.

    Args:
        path: The file.
        label: Name of the file in error messages. Defaults to its path.

    Raises:
        EnvFileError: The file can't be read, or a line isn't NAME=VALUE.
    """
    label = label or str(path)
    try:
        return read_env(path.read_bytes().decode("utf-8-sig"), label)
    except UnicodeDecodeError as exc:
        raise EnvFileError(f"{label} can't be read: it isn't UTF-8 text.") from exc
    except OSError as exc:
        raise EnvFileError(f"{label} can't be read: {exc.strerror}.") from exc


def read_env(text: str, label: str = ".env") -> dict[str, str]:
    """Return the variables in the text of a file: ``read_env("SHOP_KEY=1")``. The last of repeated names wins.

    Args:
        text: The text.
        label: Name of the file in error messages.

    Raises:
        EnvFileError: A line isn't NAME=VALUE.
    """
    from dotenv.parser import parse_stream  # noqa: PLC0415  most commands read no such file

    if "\0" in text:
        raise EnvFileError(f"{label} contains a null byte, which variables can't contain.")
    if gap := _LONG_GAP.search(text):
        number = text.count("\n", 0, gap.start()) + 1
        raise EnvFileError(f"Line {number} of {label} has more than 1,000 spaces in a row.")
    found: dict[str, str] = {}
    for each in parse_stream(io.StringIO(text)):
        if each.error or (each.key is not None and each.value is None):
            blank = each.original.string[: -len(each.original.string.lstrip()) or None]
            # The text may contain a secret, so the message contains only its line number.
            raise EnvFileError(f"Line {each.original.line + blank.count(chr(10))} of {label} isn't NAME=VALUE.")
        if each.key is not None:
            found[each.key] = each.value or ""
    return found
