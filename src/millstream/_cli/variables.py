"""Environment variables as people give them: ``NAME=VALUE`` words, and files with one a line (``.env``)."""

import os
import re
from pathlib import Path

from millstream._app.serving.errors import CommandError

_LINE = re.compile(
    r"""^\s*(?:export\s+)?(?P<name>[A-Za-z_][\w.]*)\s*=\s*(?:'(?P<raw>[^']*)'|"(?P<quoted>(?:\\.|[^"\\])*)"|(?P<plain>[^\n]*?))"""
    r"""\s*(?:(?<=\s)\#.*)?$"""
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def read_file(path: Path) -> dict[str, str]:
    """The variables of a file: ``NAME=VALUE`` a line, quotes and ``export`` allowed, ``#`` begins a comment.

    Raises:
        CommandError: it can't be read, or a line is none of that.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise CommandError(f"{path} isn't text in UTF-8.") from exc
    except OSError as exc:
        raise CommandError(f"{path} can't be read: {exc.strerror}.", fix="Check the path of the file.") from exc
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise CommandError(f"Line {number} of {path} is not NAME=VALUE.", fix="Correct it, or make it a # comment.")
        found[match["name"]] = _value(match)
    return found


def _value(match: "re.Match[str]") -> str:
    if match["raw"] is not None:
        return match["raw"]
    if match["quoted"] is not None:
        return re.sub(r"\\(.)", lambda each: _ESCAPES.get(each[1], each[1]), match["quoted"])
    return match["plain"]


def use_file(path: Path | None) -> None:
    """Set the variables of a file for this program; those that are set already stay.

    Raises:
        CommandError: the file can't be read.
    """
    if path is not None:
        for name, value in read_file(path).items():
            os.environ.setdefault(name, value)
