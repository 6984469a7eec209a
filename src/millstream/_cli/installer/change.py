"""A change of a configuration file, with an atomic write, a backup, and undo.

The backup is beside the file. Its name contains the server, a digest of the new content, and whether the file existed.
If the file is unchanged since, undo restores the backup or deletes the file. Otherwise, undo reverts only the entry.
"""

import difflib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from millstream import _jsonc as jsonc
from millstream._app.server_process.errors import CommandError
from millstream._files import PRIVATE, write_private
from millstream._jsonc import JsonSyntaxError
from millstream._protocol.json_schema import value_at

_ABSENT = "-absent"
"""Suffix of a backup if the file didn't exist."""


class FileChange(Struct, frozen=True, kw_only=True):
    """The old and new content of a file that differs in one entry."""

    path: Path
    under: Sequence[str]
    """Path of the entry."""
    before: str | None
    """Old content; None if the file doesn't exist."""
    after: str | None

    @property
    def nothing(self) -> bool:
        """Whether nothing changes."""
        return self.before == self.after

    def diff(self) -> str:
        """Return the change of the entry as a diff, without the rest of the file, which may contain others' keys."""
        old, new = (self._entry(each or "") for each in (self.before, self.after))
        return "".join(difflib.unified_diff(old, new, str(self.path), str(self.path), n=3))

    def _entry(self, text: str) -> list[str]:
        """Return the lines of a file that has only the entry."""
        entry = _entry_in(text, self.under)
        alone = "" if entry is None else jsonc.put("", self.under, entry)
        return [f"{line}\n" for line in alone.splitlines()]


def prepare(path: Path, under: Sequence[str], merge: Callable[[Any], dict[str, Any]]) -> FileChange:
    """Return the change that sets one entry.

    Args:
        path: The file, which may not exist yet.
        under: Path of the entry.
        merge: Returns the new entry, given the old one or None.

    Raises:
        CommandError: The file can't be read or changed safely; it's left unchanged.
    """
    before = read(path)
    text = before or ""
    try:
        old = _entry_in(text, under)
        new = merge(old)
        after = text if new == old else jsonc.put(text, under, new)  # if equal, keep the user's formatting
    except JsonSyntaxError as exc:
        raise _refusal(path, exc) from exc
    return FileChange(path=path, under=under, before=before, after=after)


def write(change: FileChange, name: str) -> Path | None:
    """Write a change, and keep a backup of the file. Return its path, or None if the file didn't exist.

    Raises:
        CommandError: The file was changed since, or can't be written.
    """
    if read(change.path) != change.before:
        raise CommandError(
            f"{change.path} was changed by another program.", fix="Nothing was written. Run the command again."
        )
    assert change.after is not None  # noqa: S101  only undo deletes files
    try:
        change.path.parent.mkdir(parents=True, exist_ok=True)
        for old in _copies(change.path, name):
            old.unlink()
        copy = _copy_path(change.path, name, change.after, absent=change.before is None)
        replace(copy, change.before or "", like=change.path)
        replace(change.path, change.after)
    except OSError as exc:
        raise CommandError(f"{exc.filename or change.path} can't be written: {exc.strerror}.") from exc
    return copy if change.before is not None else None


def prepare_undo(path: Path, under: Sequence[str]) -> tuple[FileChange, Path]:
    """Return the change that reverts the last one, and the backup that it uses.

    Raises:
        CommandError: There's no backup, or the file can't be changed safely.
    """
    name = under[-1]
    copies = _copies(path, name)
    if not copies:
        raise CommandError(
            f"There is no backup of {path} from before {name} was installed.",
            why="--undo requires the backup that install keeps beside the file.",
            fix=f"Remove {name} from the file manually.",
        )
    copy = max(copies, key=lambda each: each.stat().st_mtime_ns)
    now, old = read(path), read(copy) or ""
    if now is None:
        raise CommandError(f"The file {path} no longer exists, so there's nothing to undo.")
    absent = copy.name.endswith(_ABSENT)
    if copy == _copy_path(path, name, now, absent=absent):
        return FileChange(path=path, under=under, before=now, after=None if absent else old), copy
    try:
        entry = _entry_in(old, under)
        after = jsonc.take(now, under) if entry is None else jsonc.put(now, under, entry)
    except JsonSyntaxError as exc:
        raise _refusal(path, exc) from exc
    return FileChange(path=path, under=under, before=now, after=after), copy


def undo(change: FileChange, copy: Path) -> None:
    """Write the change of `prepare_undo`.

    Raises:
        CommandError: The file can't be written.
    """
    try:
        if change.after is None:
            change.path.unlink()
        else:
            replace(change.path, change.after)
        copy.unlink()
    except OSError as exc:
        raise CommandError(f"{exc.filename or change.path} can't be written: {exc.strerror}.") from exc


def read(path: Path) -> str | None:
    """Return the text of a file with its original line ends, or None if it doesn't exist.

    Raises:
        CommandError: The file isn't text, can't be read, or isn't a regular file, which could block.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CommandError(
                f"{path} isn't a regular file.",
                why="An application's configuration is a file, or a link to one.",
                fix="Check it, and move it elsewhere.",
            )
        return path.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as exc:
        raise CommandError(f"{path} isn't UTF-8 text.", fix="It was left unchanged. Check it in an editor.") from exc
    except OSError as exc:
        raise CommandError(f"{path} can't be read: {exc.strerror}.") from exc


def replace(path: Path, text: str, *, like: Path | None = None) -> None:
    """Write a file atomically, preserving links and modes.

    Args:
        path: The file.
        text: Its content, with line ends.
        like: File whose mode a new file gets. By default, only you can read it, because it may contain keys.

    Raises:
        OSError: The file can't be written.
    """
    target = Path(os.path.realpath(path))
    model = target if target.exists() else like
    mode = model.stat().st_mode & 0o7777 if model is not None and model.exists() else PRIVATE
    write_private(target, text.encode(), mode=mode)


def _mark(name: str) -> str:
    plain = re.sub(r"[^\w-]", "_", name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _copy_path(path: Path, name: str, written: str, *, absent: bool) -> Path:
    digest = hashlib.sha256(written.encode()).hexdigest()[:16]
    return path.with_name(f"{path.name}.before-{_mark(name)}.{digest}{_ABSENT if absent else ''}")


def _copies(path: Path, name: str) -> list[Path]:
    start = f"{path.name}.before-{_mark(name)}."
    if not path.parent.is_dir():
        return []
    return [
        each for each in path.parent.iterdir() if each.name.startswith(start) and "." not in each.name[len(start) :]
    ]


def _refusal(path: Path, exc: JsonSyntaxError) -> CommandError:
    return CommandError(
        f"{path} can't be changed: {exc}.",
        why="The file was left unchanged.",
        fix="Correct it in an editor, or print the entry with --client json and add it manually.",
    )


def _entry_in(text: str, path: Sequence[str]) -> Any:
    if not text.strip("\ufeff \t\r\n"):
        return None
    return value_at(jsonc.read(text).value, path)
