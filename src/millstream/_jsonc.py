"""Editing of single members in the text of a JSON document.

Comments, trailing commas, order, indentation, and line endings are preserved, as editors allow them in settings
(https://code.visualstudio.com/docs/languages/json#_json-with-comments). This module doesn't access files.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from millstream._protocol.jsonrpc import exceeds_limits
from millstream.protocol import is_object


class JsonSyntaxError(Exception):
    """The text is malformed. The message gives the position. Such a file is left unchanged."""


_STRING = r'"(?:[^"\\\n]++|\\.)*+"?+'
"""A string. An unclosed one ends with its line, so that the search doesn't begin again at each of its quotes."""
_COMMENT = re.compile(rf"/\*.*?\*/|//[^\n]*+|\ufeff|({_STRING}|/\*.*+)", re.DOTALL)
"""A comment, or text to keep: a string, or everything after the start of an unclosed comment."""
_TRAILING_COMMA = re.compile(rf"({_STRING}|[\[{{]\s*+,)|,(?=\s*+[\]}}])")
_BLANK = re.compile(r"(?:[ \t\r\n\ufeff:]++|//[^\n]*+|/\*.*?\*/)*+", re.DOTALL)
_REST_OF_LINE = re.compile(r"(?:(?:[ \t]++|/\*[^\n]*?\*/)*+(?://[^\r\n]*+)?(?=[\r\n]))?")
_MAX_DEPTH = 200
_decode = json.JSONDecoder().raw_decode


class Node(Struct, gc=False):
    """A value and its position."""

    plain: str
    """The document, with spaces in place of comments and trailing commas."""
    value: Any
    start: int
    end: int
    name_start: int
    """Start of its name, if it's a member of an object."""

    @property
    def members(self) -> "dict[str, Node]":
        """Members of an object. The last of duplicate names wins."""
        found: dict[str, Node] = {}
        end = self.start
        while is_object(self.value) and (place := self.plain.find('"', end, self.end)) >= 0:
            name, end = _decode(self.plain, place)
            start = _skip(self.plain, end)
            value, end = _decode(self.plain, start)
            found.pop(name, None)
            found[name] = Node(self.plain, value, start, end, place)
        return found


def read(text: str) -> Node:
    """Parse a document.

    Raises:
        JsonSyntaxError: It isn't JSON, apart from comments and trailing commas.
    """
    plain = _TRAILING_COMMA.sub(_erase, _COMMENT.sub(_erase, text))
    if reason := exceeds_limits(plain.encode(), _MAX_DEPTH):
        raise JsonSyntaxError(f"line 1 begins a document that is too large: {reason}")
    try:
        value = json.loads(plain, parse_constant=_refuse)
    except json.JSONDecodeError as exc:
        what = (
            f"a mistake in column {exc.colno}: {exc.msg}"
            if plain[exc.pos :].strip()
            else "an unexpected end of the document"
        )
        raise JsonSyntaxError(f"line {exc.lineno} has {what}") from None
    except ValueError:
        raise JsonSyntaxError("an integer has too many digits") from None
    start = _skip(plain, 0)
    return Node(plain, value, start, len(plain.rstrip()), start)


def _erase(found: re.Match[str]) -> str:
    return found[1] or re.sub(r"[^\n]", " ", found[0])


def _refuse(name: str) -> None:
    raise JsonSyntaxError(f"{name} isn't a number in JSON")


def _skip(text: str, at: int) -> int:
    """Return the position after blanks, comments, and a colon."""
    return _BLANK.match(text, at).end()  # type: ignore[union-attr]  # always matches


def put(text: str, path: Sequence[str], value: Any) -> str:
    """Return the text with the member at the path set to the value, creating objects as needed.

    Raises:
        JsonSyntaxError: The text isn't JSON, or a part of the path isn't an object.
    """
    if not text.strip("\ufeff \t\r\n"):
        text += "{}\n"
    root = node = read(text)
    for depth, name in enumerate(path):
        if not is_object(node.value):
            raise JsonSyntaxError(f"{'.'.join(path[:depth]) or 'The document'} isn't an object")
        found = node.members.get(name)
        if found is None:
            for missing in reversed(path[depth + 1 :]):
                value = {missing: value}
            return _insert(text, root, node, name, value)
        node = found
    style = _Style(text, root)
    return text[: node.start] + style.render(value, style.margin(node.start)) + text[node.end :]


def take(text: str, path: Sequence[str]) -> str:
    """Return the text without the member at the path, or unchanged if it doesn't exist.

    Raises:
        JsonSyntaxError: The text isn't JSON.
    """
    node = read(text)
    for name in path:
        found = node.members.get(name)
        if found is None:
            return text
        node = found
    start, end = node.name_start, node.end
    line = text.rfind("\n", 0, start) + 1
    alone = not text[line:start].strip()
    before, after = len(node.plain[:start].rstrip()) - 1, _skip(text, end)
    if text[after] == ",":
        end = after + 1
    elif text[before] == ",":
        text = text[:before] + text[before + 1 :]
        start, end, line = start - 1, end - 1, line - 1
    if not alone:
        return text[:start] + text[end:].lstrip(" ")
    return text[:line] + re.sub(r"^[ \t]*(?:\r?\n)?", "", text[end:])


def _insert(text: str, root: Node, node: Node, name: str, value: Any) -> str:
    style = _Style(text, root)
    members = list(node.members.values())
    key = json.dumps(name, ensure_ascii=False)
    if "\n" not in text[node.start : node.end] and (members or not style.unit):
        spot = members[-1].end if members else node.start + 1
        gap = " " if style.unit else ""
        return f"{text[:spot]}{f',{gap}' if members else ''}{key}:{gap}{style.render(value, None)}{text[spot:]}"
    outer = style.margin(node.start)
    margin = style.margin(members[-1].name_start) if members else outer + style.unit
    line = f"{style.end}{margin}{key}: {style.render(value, margin)}"
    if not members:
        comments = text[node.start + 1 : node.end - 1].rstrip()
        return f"{text[: node.start + 1]}{comments}{line}{style.end}{outer}{text[node.end - 1 :]}"
    last = members[-1].end
    comma = _skip(text, last)
    trailing = text[comma] == ","
    spot = comma + 1 if trailing else last
    rest = _REST_OF_LINE.match(text, spot)
    after = spot + len(rest[0].rstrip()) if rest else spot
    if trailing:
        return f"{text[:after]}{line},{text[after:]}"
    return f"{text[:last]},{text[last:after]}{line}{text[after:]}"


class _Style:
    """The formatting style of a document."""

    unit = "  "

    def __init__(self, text: str, root: Node) -> None:
        self._text = text
        self.end = "\r\n" if "\r\n" in text else "\n"
        first = next(iter(root.members.values()), None)
        if first is not None:
            # Without line breaks, everything is on one line.
            self.unit = (self.margin(first.name_start) or "  ") if "\n" in text[root.start : root.end] else ""

    def margin(self, place: int) -> str:
        """Return the indentation of the line at a position."""
        line = self._text[self._text.rfind("\n", 0, place) + 1 : place]
        return line.removesuffix(line.lstrip(" \t"))

    def render(self, value: Any, margin: str | None) -> str:
        """Return the value in the document's style or, without a margin, on one line."""
        if margin is None or not self.unit:
            separators = (", ", ": ") if self.unit else (",", ":")
            return json.dumps(value, ensure_ascii=False, separators=separators)
        return json.dumps(value, ensure_ascii=False, indent=self.unit).replace("\n", f"{self.end}{margin}")
