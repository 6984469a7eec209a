"""Changes one table in the text of a TOML document, and nothing else (https://toml.io/en/v1.0.0#table).

The tables of an entry are found by their headers. The result is read again and compared, so a document that writes
them in another way is refused rather than damaged.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from millstream._cli.installing.broken import Broken

_HEADER = re.compile(r"^[ \t]*\[(?!\[)([^\n]+?)\][ \t]*(?:#.*)?\r?$")


def read(text: str) -> dict[str, Any]:
    """The document.

    Raises:
        Broken: it isn't TOML.
    """
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as exc:
        raise Broken(str(exc)) from exc


def put(text: str, path: Sequence[str], value: Mapping[str, Any]) -> str:
    """The text with the table at the path set to the value.

    Raises:
        Broken: it isn't TOML, or has the table in a form that can't be changed safely.
    """
    wanted = read(text)
    _set(wanted, path, dict(value))
    end = "\r\n" if "\r\n" in text else "\n"
    rendered = end.join(_render(path, value))
    lines = text.splitlines(keepends=True)
    spans = _spans(lines, path)
    if spans:
        first = spans[0][0]
        kept = _without(lines[first:], [(a - first, b - first) for a, b in spans])
        changed = "".join(lines[:first]) + rendered + end + (end if kept.strip() else "") + kept
    else:
        before = text if not text or text.endswith("\n") else text + end
        changed = before + (end if before.strip("\ufeff \r\n") else "") + rendered + end
    return _checked(changed, wanted, path)


def take(text: str, path: Sequence[str]) -> str:
    """The text without the table; unchanged if there's none.

    Raises:
        Broken: it isn't TOML, or has the table in a form that can't be changed safely.
    """
    wanted = read(text)
    parent: Any = wanted
    for name in path[:-1]:
        parent = parent.get(name, {})
    if path[-1] not in parent:
        return text
    del parent[path[-1]]
    lines = text.splitlines(keepends=True)
    changed = _without(lines, _spans(lines, path)).rstrip("\r\n")
    changed += "\r\n" if "\r\n" in text else "\n"
    return _checked(changed, wanted, path)


def _checked(text: str, wanted: dict[str, Any], path: Sequence[str]) -> str:
    try:
        found = tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError:
        found = {}
    if _without_empty(found) != _without_empty(wanted):
        raise Broken(f"{'.'.join(path)} is written in a form that can't be changed safely")
    return text


def _without_empty(document: dict[str, Any]) -> dict[str, Any]:
    """A parent table without a header of its own is there only as long as it has children."""
    return {name: value for name, value in document.items() if value != {}}


def _set(document: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        found = document.setdefault(name, {})
        if not isinstance(found, dict):
            raise Broken(f"{name} isn't a table there")
        document = cast("dict[str, Any]", found)
    document[path[-1]] = value


def _spans(lines: Sequence[str], path: Sequence[str]) -> list[tuple[int, int]]:
    """Where the table and those below it stand: from a header to the last line before the next that says anything."""
    spans: list[tuple[int, int]] = []
    start = -1
    for number, line in enumerate([*lines, "[end]"]):
        if not line.lstrip().startswith("["):
            continue
        keys = _keys(line) if number < len(lines) else ["", ""]
        if keys is None and not line.lstrip().startswith("[["):
            continue
        if start >= 0:
            end = number
            while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
                end -= 1
            spans.append((start, end))
        start = number if keys is not None and keys[: len(path)] == list(path) else -1
    return spans


def _keys(line: str) -> list[str] | None:
    """The keys of a header; None for what isn't one."""
    if _HEADER.match(line.rstrip("\n")) is None:
        return None
    try:
        table: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    keys: list[str] = []
    while isinstance(table, dict) and table:
        name, table = next(iter(cast("dict[str, Any]", table).items()))
        keys.append(name)
    return keys


def _without(lines: Sequence[str], spans: Sequence[tuple[int, int]]) -> str:
    out = {number for start, end in spans for number in range(start, end)}
    kept = [line for number, line in enumerate(lines) if number not in out]
    if spans and spans[0][0] == 0:
        while kept and not kept[0].strip():
            kept.pop(0)
    return "".join(kept)


def _render(path: Sequence[str], value: Mapping[str, Any]) -> list[str]:
    lines = [f"[{'.'.join(map(_key, path))}]"]
    return lines + [f"{_key(name)} = {_value(each)}" for name, each in value.items()]


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return "{ " + ", ".join(f"{_key(name)} = {_value(each)}" for name, each in items) + " }" if items else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, cast('list[object]', value)))}]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    # A JSON string is a TOML string, but for DEL and what lies outside the basic plane.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
