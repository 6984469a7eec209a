"""Files with variables (``.env``): ``NAME=VALUE`` entries, as the dotenv readers of several languages agree on them.

- ``NAME=value  # why`` means ``value``: a ``#`` begins a comment only behind a blank.
- ``NAME='a # b'`` is what stands between the quotes, letter for letter.
- ``NAME="a\\nb"`` has a line's end in it. ``\\r`` and ``\\t`` are a return and a tab; a quote, a backslash and a ``$``
  behind a backslash stand for themselves.
- ``export NAME=value`` is the same as without ``export``.

Quoted values may have several lines, as keys do. Nothing is expanded: a ``$`` is a ``$``. The last entry of a name
counts.
"""

import re
from pathlib import Path

_BETWEEN = re.compile(r"(?:[ \t\n]+|#[^\n]*)*")
_NAME = re.compile(r"(?:export[ \t]+)?(?P<name>[A-Za-z_][\w.]*)[ \t]*=", re.ASCII)
_QUOTED = re.compile(r"""[ \t]*(?:'(?P<raw>[^']*)'|"(?P<escaped>(?:\\.|[^"\\])*)")(?P<rest>[^\n]*)""", re.DOTALL)
_COMMENT = re.compile(r"[ \t]#")
_ESCAPE = re.compile(r'\\([nrt"\\$])')
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


class EnvFileError(ValueError):
    """A file of variables can't be used; the text says why."""


def read_env_file(path: Path, shown: str = "") -> dict[str, str]:
    """The variables of a file, which messages call `shown`.

    Raises:
        EnvFileError: it can't be read, or something in it isn't NAME=VALUE.
    """
    shown = shown or str(path)
    try:
        return read_env(path.read_bytes().decode("utf-8-sig"), shown)
    except UnicodeDecodeError as exc:
        raise EnvFileError(f"{shown} can't be read: it isn't UTF-8 text.") from exc
    except OSError as exc:
        raise EnvFileError(f"{shown} can't be read: {exc.strerror}.") from exc


def read_env(text: str, shown: str = ".env") -> dict[str, str]:
    """The variables in a text.

    Raises:
        EnvFileError: something in it isn't NAME=VALUE.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        raise EnvFileError(f"{shown} has a zero byte, which no variable can hold.")
    found: dict[str, str] = {}
    at = _next(text, 0)
    while at < len(text):
        place = f"Line {text.count(chr(10), 0, at) + 1} of {shown}"
        name = _NAME.match(text, at)
        if name is None:
            raise EnvFileError(f"{place} isn't NAME=VALUE.")
        found[name["name"]], end = _value(text, name.end(), place)
        at = _next(text, end)
    return found


def _next(text: str, at: int) -> int:
    """Where the next entry begins."""
    between = _BETWEEN.match(text, at)
    return between.end() if between else at


def _value(text: str, at: int, place: str) -> tuple[str, int]:
    """A value, and where it ends."""
    quoted = _QUOTED.match(text, at)
    if quoted is not None:
        if quoted["rest"].strip() and not quoted["rest"].lstrip().startswith("#"):
            raise EnvFileError(f"{place} has something behind the closing quote.")
        raw = quoted["raw"]
        said = raw if raw is not None else _ESCAPE.sub(lambda each: _ESCAPES.get(each[1], each[1]), quoted["escaped"])
        return said, quoted.end()
    end = text.find("\n", at)
    end = len(text) if end < 0 else end
    plain = _COMMENT.split(text[at:end], maxsplit=1)[0].strip()
    if plain.startswith(("'", '"')):
        raise EnvFileError(f"{place} has a quote that isn't closed.")
    return plain, end
