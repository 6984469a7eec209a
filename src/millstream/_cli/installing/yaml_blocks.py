"""Changes one entry of a mapping in the text of a YAML document, and nothing else.

It reads lines, not YAML: a top-level key whose block holds entries of one indentation, which is how applications write
their files. Whatever else a document does with that key is refused. JSON values are YAML values (YAML 1.2 §1.3), so
that is how ours are written.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from millstream._cli.installing.broken import Broken

_TOP = re.compile(r"""^(?:---|\.\.\.|%.*|#.*|(?:[\w./-]+|"[^"]*"|'[^']*')[ \t]*:(?:[ \t].*)?|-(?:[ \t].*)?)$""")
_CHILD = re.compile(r"""^( +)([\w./-]+|"[^"]*"|'[^']*')[ \t]*:(?:[ \t].*)?$""")


def check(text: str) -> None:
    """Look at what a person breaks most easily.

    Raises:
        Broken: names the line.
    """
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if line[:1] == "\t" or re.match(r" +\t", line):
            raise Broken(f"line {number} has a tab for indentation")
        if line.strip() and line[0] != " " and not _TOP.match(line):
            raise Broken(f"line {number} is neither a key nor a part of one")


def put(text: str, path: Sequence[str], value: Mapping[str, Any] | str) -> str:
    """The text with the entry set; one that `entry` gave is put as it was.

    Raises:
        Broken: the document has the parent in a form that can't be changed safely.
    """
    check(text)
    end = "\r\n" if "\r\n" in text else "\n"
    if text and not text.endswith("\n"):
        text += end
    lines = text.splitlines(keepends=True)
    head, stop, indent = _block(lines, path[0])
    if head < 0:
        return "".join(lines) + f"{path[0]}:{end}" + _render(path[1], value, "  ", end)
    lines[head] = f"{path[0]}:{end}" if "{}" in lines[head] else lines[head]
    start, after = _entry(lines, head, stop, indent, path[1])
    return "".join(lines[:start]) + _render(path[1], value, indent, end) + "".join(lines[after:])


def take(text: str, path: Sequence[str]) -> str:
    """The text without the entry; unchanged if there's none.

    Raises:
        Broken: the document has the parent in a form that can't be changed safely.
    """
    check(text)
    lines = text.splitlines(keepends=True)
    head, stop, indent = _block(lines, path[0])
    if head < 0:
        return text
    start, after = _entry(lines, head, stop, indent, path[1])
    if (start, after) == (head + 1, stop) and start != after:
        lines[head] = lines[head].replace(":", ": {}", 1)  # a key without a value would be null
    return "".join(lines[:start]) + "".join(lines[after:])


def entry(text: str, path: Sequence[str]) -> str | None:
    """The lines of the entry as they stand; None if there's none.

    Raises:
        Broken: the document has the parent in a form that can't be changed safely.
    """
    check(text)
    lines = text.splitlines(keepends=True)
    head, stop, indent = _block(lines, path[0])
    start, after = _entry(lines, head, stop, indent, path[1]) if head >= 0 else (0, 0)
    return "".join(lines[start:after]) or None


def _block(lines: Sequence[str], key: str) -> tuple[int, int, str]:
    """The line of the key, the one behind its last entry, and the indentation of the entries; -1 without the key."""
    head = next((number for number, line in enumerate(lines) if re.match(rf"{re.escape(key)}[ \t]*:", line)), -1)
    if head < 0:
        return -1, -1, "  "
    if not re.match(rf"{re.escape(key)}[ \t]*:[ \t]*(?:\{{\}}[ \t]*)?(?:#.*)?\r?\n?$", lines[head]):
        raise Broken(f"line {head + 1} has {key} in a form that can't be changed safely")
    stop = head + 1
    indent = ""
    for number in range(head + 1, len(lines)):
        line = lines[number]
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] != " ":
            break
        found = _CHILD.match(line.rstrip("\r\n"))
        if not indent and found is None:
            raise Broken(f"line {number + 1} isn't an entry of {key}")
        indent = indent or (found[1] if found is not None else "")
        stop = number + 1
    return head, stop, indent or "  "


def _entry(lines: Sequence[str], head: int, stop: int, indent: str, name: str) -> tuple[int, int]:
    """Where the entry stands, or where a new one goes."""
    start = -1
    for number in range(head + 1, stop):
        found = _CHILD.match(lines[number].rstrip("\r\n"))
        if found is None or found[1] != indent:
            continue
        if start >= 0:
            return start, _behind(lines, start, number)
        if found[2].strip("\"'") == name:
            start = number
    return (start, _behind(lines, start, stop)) if start >= 0 else (stop, stop)


def _behind(lines: Sequence[str], start: int, end: int) -> int:
    """Comments and blank lines before the next entry belong to that one."""
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    return end


def _render(name: str, value: Mapping[str, Any] | str, indent: str, end: str) -> str:
    if isinstance(value, str):
        return value
    shown = name if re.fullmatch(r"[A-Za-z][\w-]*", name) else json.dumps(name)
    lines = [f"{indent}{shown}:"]
    lines += [f"{indent}  {key}: {json.dumps(each, ensure_ascii=False)}" for key, each in value.items()]
    return end.join(lines) + end
