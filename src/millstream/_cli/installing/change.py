"""One change of one file: prepared, shown, written whole, kept a copy of, and taken back.

The copy lies beside the file and is named after the server, after what was written, and after whether there was a file.
So undoing knows whether the file is still what we wrote: then the copy comes back byte for byte, or the file goes away.
Otherwise somebody has changed it since, and only the one entry becomes what it was.
"""

import difflib
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from millstream import _jsonc as jsonc
from millstream._app.serving.errors import CommandError
from millstream._cli.installing import documents
from millstream._jsonc import JsonSyntaxError
from millstream._protocol.json_schema import value_at

_ABSENT = "-absent"
"""What the name of a copy ends with where there was no file."""


class Change(Struct, frozen=True, kw_only=True):
    """What a file holds, and what it will hold."""

    path: Path
    before: str | None
    """None: there's no file."""
    after: str | None

    @property
    def nothing(self) -> bool:
        """The file is as it should be."""
        return self.before == self.after

    def diff(self) -> str:
        """The change as people read changes."""
        old, new = (_lines(each) for each in (self.before, self.after))
        return "".join(difflib.unified_diff(old, new, str(self.path), str(self.path), n=3))


def prepare(path: Path, kind: str, under: Sequence[str], merge: Callable[[Any], dict[str, Any]]) -> Change:
    """The change that sets one entry.

    Args:
        path: the file, which need not exist.
        kind: ``json``, ``toml`` or ``yaml``.
        under: where the entry stands.
        merge: the new entry, given the old one or None.

    Raises:
        CommandError: the file can't be read or changed safely; it's left as it is.
    """
    before = read(path)
    text = before or ""
    try:
        old = _READ[kind](text, under)
        new = merge(old)
        after = text if new == old else _PUT[kind](text, under, new)  # however the person has written it
    except JsonSyntaxError as exc:
        raise _refused(path, exc) from exc
    return Change(path=path, before=before, after=after)


def write(change: Change, name: str) -> Path | None:
    """Carry out a change, and keep a copy of what was there; its path, or None where nothing was.

    Raises:
        CommandError: the file has changed meanwhile, or it can't be written.
    """
    if read(change.path) != change.before:
        raise CommandError(
            f"{change.path} has changed while you decided.", fix="Nothing was written. Run the command again."
        )
    assert change.after is not None  # noqa: S101  only undoing takes a file away
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


def prepare_undo(path: Path, kind: str, under: Sequence[str]) -> tuple[Change, Path]:
    """The change that takes the last one back, and the copy that it's made from.

    Raises:
        CommandError: there's none to take back, or the file can't be changed safely.
    """
    name = under[-1]
    copies = _copies(path, name)
    if not copies:
        raise CommandError(
            f"There is no copy of {path} from before {name} was installed.",
            why="Undoing needs the copy that install keeps beside the file.",
            fix=f"Take {name} out of the file by hand.",
        )
    copy = max(copies, key=lambda each: each.stat().st_mtime_ns)
    now, old = read(path), read(copy) or ""
    if now is None:
        raise CommandError(f"There is no file {path} any more, so there's nothing to undo.")
    absent = copy.name.endswith(_ABSENT)
    if copy == _copy_path(path, name, now, absent=absent):
        return Change(path=path, before=now, after=None if absent else old), copy
    try:
        entry = _READ[kind](old, under)
        after = _TAKE[kind](now, under) if entry is None else _PUT[kind](now, under, entry)
    except JsonSyntaxError as exc:
        raise _refused(path, exc) from exc
    return Change(path=path, before=now, after=after), copy


def undo(change: Change, copy: Path) -> None:
    """Carry out what `prepare_undo` found.

    Raises:
        CommandError: the file can't be written.
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
    """The text of a file with its line ends as they are; None if there's none.

    Raises:
        CommandError: it isn't text, or can't be read. A FIFO or a device would never end.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CommandError(
                f"{path} isn't a regular file.",
                why="The configuration of an application is a file, or a link to one.",
                fix="Look at what's there, and move it away.",
            )
        return path.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as exc:
        raise CommandError(f"{path} isn't text in UTF-8.", fix="It's left as it is. Look at it in an editor.") from exc
    except OSError as exc:
        raise CommandError(f"{path} can't be read: {exc.strerror}.") from exc


def replace(path: Path, text: str, *, like: Path | None = None) -> None:
    """Write a file whole: whoever reads it meanwhile sees the old or the new one. Links and modes stay.

    Args:
        path: the file.
        text: its content, with its line ends.
        like: whose mode a new file gets; else only you may read it, since it may hold keys.

    Raises:
        OSError: it can't be written.
    """
    target = Path(os.path.realpath(path))
    model = target if target.exists() else like
    mode = model.stat().st_mode & 0o7777 if model is not None and model.exists() else 0o600
    descriptor, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        Path(draft).chmod(mode)
        Path(draft).replace(target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _lines(text: str | None) -> list[str]:
    return [f"{line}\n" for line in (text or "").splitlines()]


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


def _refused(path: Path, exc: JsonSyntaxError) -> CommandError:
    return CommandError(
        f"{path} can't be changed: {exc}.",
        why="It's left as it is, so that nothing in it gets lost.",
        fix="Correct it in an editor, or print the entry with --client json and put it there by hand.",
    )


def _in_json(text: str, path: Sequence[str]) -> Any:
    if not text.strip("\ufeff \t\r\n"):
        return None
    return value_at(jsonc.read(text).value, path)


_Put = Callable[[str, Sequence[str], Any], str]
_READ: dict[str, Callable[[str, Sequence[str]], Any]] = {
    "json": _in_json,
    "toml": documents.toml_entry,
    "yaml": documents.yaml_entry,
}
_PUT: dict[str, _Put] = {"json": jsonc.put, "toml": documents.put_toml, "yaml": documents.put_yaml}
_TAKE: dict[str, Callable[[str, Sequence[str]], str]] = {
    "json": jsonc.take,
    "toml": documents.remove_toml,
    "yaml": documents.remove_yaml,
}
