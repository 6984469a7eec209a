"""Editing of single members in the text of a JSON document.

Comments, trailing commas, order, indentation, and line ends are preserved, as editors allow them in settings
(https://code.visualstudio.com/docs/languages/json#_json-with-comments). This module doesn't access files.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from msgspec import Struct


class JsonSyntaxError(Exception):
    """The text is malformed; the message says where. Such a file is left unchanged."""


_BLANK = re.compile(r"(?:[ \t\r\n\ufeff]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_REST_OF_LINE = re.compile(r"(?:[ \t]+|/\*[^\n]*?\*/)*(?://[^\r\n]*)?")
_SCALAR = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null")
_MAX_DEPTH = 200


class Node(Struct, gc=False):
    """A value and its position."""

    start: int
    end: int
    value: Any
    members: dict[str, "JsonMember"] | None = None
    """Members of an object."""
    comma: int = -1
    """Position of a trailing comma of an object."""


class JsonMember(Struct, gc=False):
    """One member of an object."""

    start: int
    """Start of its name."""
    node: Node


def read(text: str) -> Node:
    """Parse a document.

    Raises:
        JsonSyntaxError: It isn't JSON, apart from comments and trailing commas.
    """
    return _Reader(text).document()


def put(text: str, path: Sequence[str], value: Any) -> str:
    """Return the text with the member at the path set to the value, creating objects as needed.

    Raises:
        JsonSyntaxError: The text isn't JSON, or a part of the path isn't an object.
    """
    if not text.strip("\ufeff \t\r\n"):
        text += "{}\n"
    root = node = read(text)
    for depth, name in enumerate(path):
        if node.members is None:
            raise JsonSyntaxError(f"{'.'.join(path[:depth]) or 'The document'} isn't an object")
        found = node.members.get(name)
        if found is None:
            for missing in reversed(path[depth + 1 :]):
                value = {missing: value}
            return _insert(text, root, node, name, value)
        node = found.node
    style = _Style(text, root)
    return text[: node.start] + style.render(value, style.margin(node.start)) + text[node.end :]


def take(text: str, path: Sequence[str]) -> str:
    """Return the text without the member at the path; unchanged if it doesn't exist.

    Raises:
        JsonSyntaxError: The text isn't JSON.
    """
    node = read(text)
    for name in path[:-1]:
        if node.members is None or name not in node.members:
            return text
        node = node.members[name].node
    if node.members is None or path[-1] not in node.members:
        return text
    names = list(node.members)
    place = names.index(path[-1])
    member = node.members[path[-1]]
    start, end = member.start, member.node.end
    line = text.rfind("\n", 0, start) + 1
    alone = not text[line:start].strip()
    if place + 1 < len(names) or node.comma >= 0:
        end = text.index(",", _BLANK.match(text, end).end()) + 1  # type: ignore[union-attr]  # always matches
    elif place:
        before = node.members[names[place - 1]].node.end
        comma = text.index(",", _BLANK.match(text, before).end())  # type: ignore[union-attr]  # always matches
        text = text[:comma] + text[comma + 1 :]
        start, end, line = start - 1, end - 1, line - 1
    if not alone:
        return text[:start] + text[end:].lstrip(" ")
    rest = re.compile(r"[ \t]*(?:\r?\n)?").match(text, end)
    return text[:line] + text[rest.end() if rest else end :]


def _insert(text: str, root: Node, node: Node, name: str, value: Any) -> str:
    style = _Style(text, root)
    members = list((node.members or {}).values())
    inside = text[node.start : node.end]
    if members and "\n" not in inside:
        spot = members[-1].node.end
        gap = " " if style.unit else ""
        return (
            f"{text[:spot]},{gap}{json.dumps(name, ensure_ascii=False)}:{gap}{style.render(value, None)}{text[spot:]}"
        )
    outer = style.margin(node.start)
    if not style.unit:
        return f"{text[: node.start + 1]}{json.dumps(name)}:{style.render(value, None)}{text[node.end - 1 :]}"
    margin = style.margin(members[-1].start) if members else outer + style.unit
    line = f"{style.end}{margin}{json.dumps(name, ensure_ascii=False)}: {style.render(value, margin)}"
    if not members:
        comments = text[node.start + 1 : node.end - 1].rstrip()
        return f"{text[: node.start + 1]}{comments}{line}{style.end}{outer}{text[node.end - 1 :]}"
    last = members[-1].node.end
    spot = node.comma + 1 if node.comma >= 0 else last
    rest = _REST_OF_LINE.match(text, spot)
    after = rest.end() if rest is not None and text[rest.end() : rest.end() + 1] in ("\r", "\n") else spot
    after = spot + len(text[spot:after].rstrip())
    if node.comma >= 0:
        return f"{text[:after]}{line},{text[after:]}"
    return f"{text[:last]},{text[last:after]}{line}{text[after:]}"


class _Style:
    """The formatting style of a document."""

    def __init__(self, text: str, root: Node) -> None:
        self._text = text
        self.end = "\r\n" if "\r\n" in text else "\n"
        first = next(iter((root.members or {}).values()), None)
        body = text[root.start : root.end]
        if first is not None and "\n" not in body:
            self.unit = ""  # everything is on one line
        else:
            self.unit = (self.margin(first.start) if first is not None else "") or "  "

    def margin(self, place: int) -> str:
        """Return the indentation of the line at a position."""
        line = self._text.rfind("\n", 0, place) + 1
        return re.compile(r"[ \t]*").match(self._text, line)[0]  # type: ignore[index]  # always matches

    def render(self, value: Any, margin: str | None) -> str:
        """Return the value in the document's style; without a margin, on one line."""
        if margin is None or not self.unit:
            separators = (", ", ": ") if self.unit else (",", ":")
            return json.dumps(value, ensure_ascii=False, separators=separators)
        lines = json.dumps(value, ensure_ascii=False, indent=self.unit).split("\n")
        return f"{self.end}{margin}".join(lines)


class _Reader:
    """A single-pass parser."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def document(self) -> Node:
        self._skip()
        node = self._value(0)
        self._skip()
        if self._at < len(self._text):
            raise self._error("text after the end of the document")
        return node

    def _skip(self) -> None:
        self._at = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]  # always matches

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _error(self, what: str) -> JsonSyntaxError:
        return JsonSyntaxError(f"line {self._text.count(chr(10), 0, self._at) + 1} has {what}")

    def _value(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise self._error("too many nested levels")
        start, first = self._at, self._peek()
        if first == "{":
            return self._object(depth)
        if first == "[":
            return self._array(depth)
        if first == '"':
            value = self._string()
            return Node(start, self._at, value)
        found = _SCALAR.match(self._text, start)
        if found is None:
            raise self._error("no value where one is expected" if first else "an unexpected end of the document")
        self._at = found.end()
        return Node(start, self._at, json.loads(found[0]))

    def _string(self) -> str:
        try:
            value, self._at = json.JSONDecoder().raw_decode(self._text, self._at)
        except ValueError:
            raise self._error("an invalid string") from None
        return str(value)

    def _object(self, depth: int) -> Node:
        start, members, comma = self._at, dict[str, JsonMember](), -1
        self._at += 1
        while True:
            self._skip()
            if self._peek() == "}":
                break
            if self._peek() != '"' or (members and comma < 0):
                raise self._error("no name or comma where one is expected")
            place = self._at
            name = self._string()
            self._skip()
            if self._peek() != ":":
                raise self._error("a name without a colon")
            self._at += 1
            self._skip()
            members.pop(name, None)  # the last of duplicate names wins
            members[name] = JsonMember(place, self._value(depth + 1))
            comma = self._comma()
        self._at += 1
        values = {name: member.node.value for name, member in members.items()}
        return Node(start, self._at, values, members, comma)

    def _array(self, depth: int) -> Node:
        start, values, comma = self._at, list[Any](), 0
        self._at += 1
        while True:
            self._skip()
            if self._peek() == "]":
                break
            if comma < 0:
                raise self._error("no comma where one is expected")
            values.append(self._value(depth + 1).value)
            comma = self._comma()
        self._at += 1
        return Node(start, self._at, values)

    def _comma(self) -> int:
        self._skip()
        if self._peek() != ",":
            return -1
        self._at += 1
        return self._at - 1
