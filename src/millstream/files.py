"""Files that only you can read, replaced atomically, and the variables in ``.env`` files.

python-dotenv parses variables without expansion: a ``$`` is literal.

Example:
    >>> write_private(Path.home() / ".shop" / "token", token.encode())
"""

import errno
import io
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

__all__ = [
    "EnvFileError",
    "find_file",
    "open_file",
    "read_env_file",
    "write_private",
]

T = TypeVar("T")
PRIVATE = 0o600
"""The mode of a file that only its user can read and write."""
Stamp = tuple[int, int, int]
"""A file's modification time, size, and inode, which change with the file."""


_ATTEMPTS = 3
"""Attempts to open a file, because a folder may be replaced between two steps of one."""
_READ = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"))
_REPLACED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def find_file(folder: Path, path: Path) -> Path | None:
    """Return a file in a folder: ``find_file(root, root / "a.txt")``. Return None if it's missing, hidden, or outside.

    Another process may replace the file afterward, so use `open_file` to read it.

    Args:
        folder: The folder, without links in its path.
        path: The path of the file. The result has no links in its path.
    """
    found = resolve_inside(folder, path)
    with suppress(OSError):  # a name that is too long
        return found if found is not None and found.is_file() else None
    return None


def resolve_inside(folder: Path, path: Path) -> Path | None:
    """Return the real path of a file or folder: ``resolve_inside(root, root / "a")``. Return None if it's hidden or
    outside.

    Args:
        folder: The folder, without links in its path.
    """
    try:
        found = path.resolve()
    except (OSError, ValueError, RuntimeError):  # a loop of links, or an invalid file name
        return None
    return found if _is_visible(folder, found) else None


def open_file(folder: Path, path: Path) -> BufferedReader | None:
    """Open a regular file in a folder: ``open_file(root, root / "a.txt")``. Return None if it's missing, hidden, or
    outside.

    The real path of the open file decides, so replacing the file or a folder by a link in the meantime doesn't show
    other files. On a system that doesn't report it, such as Windows, the path is resolved again, and must lead to
    the open file, by device and inode. Hard links can't be recognized.

    Args:
        folder: The folder, which may be a link.
        path: The path of the file, which may contain links to files in the folder.

    Raises:
        OSError: The file can't be read.
    """
    for _ in range(_ATTEMPTS):
        found = find_file(folder.resolve(), path)
        try:
            descriptor = -1 if found is None else os.open(found, _READ)
        except OSError as exc:
            if exc.errno not in _REPLACED:
                raise
            continue
        if found is not None:
            file = os.fdopen(descriptor, "rb")
            with suppress(OSError):  # it was replaced again
                if _is_inside(descriptor, folder, path):
                    return file
            file.close()
    return None


def walk_files(folder: Path, start: str = "") -> Iterator[Path]:
    """Yield the paths below a folder that aren't hidden and aren't folders: ``list(walk_files(root))``.

    Links to folders aren't followed, except links in `folder` itself to a folder in a hidden one whose name begins with
    two dots, as Kubernetes creates them for ConfigMaps. Check each path with `find_file`.

    Args:
        folder: The folder, without links in its path.
        start: Beginning of the names in the folder itself.
    """
    for number, (place, folders, names) in enumerate(os.walk(folder)):
        folders[:] = sorted(each for each in folders if not each.startswith(".") and each.startswith(start))
        yield from (Path(place, each) for each in sorted(names) if not each.startswith(".") and each.startswith(start))
        for each in folders if number == 0 else ():
            target = resolve_inside(folder, link) if (link := folder / each).is_symlink() else None
            if target is not None and target.relative_to(folder).parts[0].startswith(".."):
                yield from (link / path.relative_to(target) for path in walk_files(target))
        start = ""


def read_at_once(folder: Path, read: Callable[[], T]) -> T:
    """Return ``read()``, the result of reading several files. Repeat it if Kubernetes has replaced the files of a
    ConfigMap in the meantime: ``read_at_once(root, lambda: list(walk_files(root)))``.

    Args:
        read: Reads the files.
    """
    for _ in range(_ATTEMPTS - 1):
        before = os.path.realpath(folder / "..data")
        result = read()
        if os.path.realpath(folder / "..data") == before:
            return result
    return read()


def _is_visible(folder: Path, found: Path) -> bool:
    """Return whether a real path is inside a folder and has no hidden part.

    ConfigMaps of Kubernetes are folders whose names begin with two dots, and links to the files in them.
    """
    if not found.is_relative_to(folder):
        return False
    first, *rest = found.relative_to(folder).parts or ("",)
    is_configuration = first.startswith("..") and rest
    return not any(each.startswith(".") for each in (rest if is_configuration else (first, *rest)))


def _is_inside(descriptor: int, folder: Path, path: Path) -> bool:
    """Return whether an open file is regular, inside a folder, and not hidden."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return False
    real = _path_of(descriptor)
    if real is None:
        found = find_file(folder.resolve(), path)
        return found is not None and os.path.samestat(status, found.stat())
    parent = os.open(folder, getattr(os, "O_PATH", os.O_RDONLY))
    try:
        # Both paths come from the system, because macOS ignores case.
        return _is_visible(_path_of(parent) or folder, real)
    finally:
        os.close(parent)


def _path_of(descriptor: int) -> Path | None:
    """Return the real path of an open file, or None if the system doesn't report it."""
    try:
        if sys.platform == "darwin":
            import fcntl  # noqa: PLC0415  not on Windows

            return Path(os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115  the target may not exist
    except OSError:
        return None


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


@contextmanager
def lock_folder(folder: Path) -> Generator[None]:
    """Lock a folder against other processes in the block: ``with lock_folder(path.parent):``. Unlike `open_lock`, it
    leaves no file. On Windows, nothing is locked.

    Raises:
        OSError: The folder can't be opened.
    """
    try:
        import fcntl  # noqa: PLC0415  not on Windows
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
