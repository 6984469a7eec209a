"""Variables of ``.env`` files, parsed by python-dotenv without expansion: a ``$`` is literal."""

import io
from pathlib import Path


class EnvFileError(ValueError):
    """An environment file is invalid; the message says why."""


def read_env_file(path: Path, label: str = "") -> dict[str, str]:
    """Return the variables of a file. Error messages call it `label`.

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
    """Return the variables in the text of a file. If a name is repeated, the last value wins.

    Raises:
        EnvFileError: A line isn't NAME=VALUE.
    """
    from dotenv.parser import parse_stream  # noqa: PLC0415  most commands read no such file

    if "\0" in text:
        raise EnvFileError(f"{label} contains a null byte, which variables can't contain.")
    found: dict[str, str] = {}
    for each in parse_stream(io.StringIO(text)):
        if each.error or (each.key is not None and each.value is None):
            blank = each.original.string[: -len(each.original.string.lstrip()) or None]
            # The text may contain a secret, so the message names only its line.
            raise EnvFileError(f"Line {each.original.line + blank.count(chr(10))} of {label} isn't NAME=VALUE.")
        if each.key is not None:
            found[each.key] = each.value or ""
    return found
