"""Error messages for models about invalid arguments: each problem with its location, and the expected value.

Problems are found by comparing the arguments with the schema that clients see. This runs only for refused arguments,
and for types for which Python accepts more strings than their schema.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Context, Decimal
from itertools import islice
from typing import Any, NamedTuple, cast
from uuid import UUID

import msgspec

from millstream._protocol.errors import shorten
from millstream._protocol.json_schema import DECIMAL, Schema, is_array, is_object, members, value_at, value_at_pointer

MAX_WALKED = 64 * 1024
"""Maximum bytes of JSON to examine value by value. Larger arguments get the decoder's message."""
MAX_LISTED = 20
MAX_SHOWN = 80
"""Maximum number of characters of a peer's text to repeat."""
MAX_PROBLEMS = 5
MAX_STEPS = 50_000
"""Maximum number of comparisons of a value's parts with a schema."""

WORDS = {
    "integer": "an integer",
    "string": "a string",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "array": "an array",
    "object": "an object",
}
KINDS: Mapping[type, str] = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}
FORMATS: Mapping[str, tuple[Any, str]] = {
    "date-time": (datetime, "a date and time such as 1999-12-31T12:00:00Z"),
    "date": (date, "a date such as 1999-12-31"),
    "time": (time, "a time such as 12:00:00Z"),
    "duration": (timedelta, "a duration such as PT90S"),
    "uuid": (UUID, "a UUID"),
    "base64": (bytes, "a base64 string"),
}
_SCALARS: Mapping[str, Any] = {"integer": int, "number": float, "boolean": bool, "null": None}
_EXACT = Context(prec=1000, traps=[])
"""Divides decimals such as 19.99 and 0.01 without a rest; floats can't."""
_NUMERIC: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": (">=", lambda value, bound: value >= bound),
    "exclusiveMinimum": (">", lambda value, bound: value > bound),
    "maximum": ("<=", lambda value, bound: value <= bound),
    "exclusiveMaximum": ("<", lambda value, bound: value < bound),
    "multipleOf": (
        "a multiple of",
        lambda value, bound: not _EXACT.remainder(Decimal(str(value)), Decimal(str(bound))),
    ),
}
_SIZES = {
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}
_is_decimal = re.compile(DECIMAL[1:-1]).fullmatch
SECRET = re.compile(r"passw|passphrase|secret|token|credential|authorization|api_?key", re.IGNORECASE)
"""Names of values that are never repeated, because the text can end up in a log."""

Path = tuple[str | int, ...]
Matches = Callable[[str, str], bool]
"""``matches(pattern, text)``."""


class Problem(NamedTuple):
    """One problem of a value."""

    path: Path
    text: str
    """The requirement, or the word `missing` or `unknown`."""


Problems = Iterator[Problem]


def engine_problem(error: Exception) -> Problem:
    """Return the decoder's message as a problem, for arguments without a schema."""
    return Problem((), f"don't fit: {shorten(str(error))}")


def place(path: Sequence[str | int]) -> str:
    """Return a path as text: ``a.b[0]``."""
    steps = (f"[{each}]" if isinstance(each, int) else f".{each[:MAX_SHOWN]}" for each in path)
    return "".join(steps).removeprefix(".")


def explain(problems: Sequence[Problem], schema: Schema) -> str:
    """Return what to fix: ``'a' must be an integer, got a string. Expected: {"a": integer}``."""
    return f"{problem_text(problems)}. {expected_text(schema)}"


def describe_problems(schema: Schema, arguments: Schema, *, strict: bool = False) -> str:
    """Return what a model has to fix, or an empty string: ``describe_problems(schema, {"copies": "two"})``.

    A string that contains a value of the required type is accepted, such as "2" for an integer. Patterns aren't
    checked, because a pattern from another server can take very long to match.

    Args:
        schema: The input schema of a tool.
        arguments: The arguments of a call.
        strict: Refuse a string that contains a value.
    """
    problems = find_problems(schema, arguments, lax=not strict, matches=lambda pattern, text: True)
    found = list(islice(problems, MAX_LISTED))
    return explain(found, schema) if found else ""


def problem_text(problems: Sequence[Problem], *, whole: str = "the arguments", most: int = MAX_PROBLEMS) -> str:
    """Return problems as a sentence.

    Args:
        problems: At least one problem.
        whole: The name of the value as a whole.
        most: The number of problems to list, besides missing or unknown names.
    """
    parts: list[str] = []
    for word in ("missing", "unknown"):
        names = list(dict.fromkeys(each.path for each in problems if each.text == word))
        inner = {path[:-1] for path in names}
        for where in sorted(inner, key=lambda path: (len(path), str(path))):
            here = [str(path[-1]) for path in names if path[:-1] == where]
            parts.append(f"{word} {list_names(here)}" + (f" in '{place(where)}'" if where else ""))
    others = [each for each in problems if each.text not in ("missing", "unknown")]
    parts += [f"{subject(each.path, whole)}{each.text}" for each in others[:most]]
    if len(others) > most:
        parts.append(f"and {len(others) - most} more")
    return "; ".join(parts)


def subject(path: Path, whole: str = "the arguments") -> str:
    """Return the subject of a sentence about a path."""
    return f"'{place(path)}' " if path else f"{whole} "


def find_problems(
    schema: Schema, value: Any, *, lax: bool = False, matches: Matches | None = None, steps: float = MAX_STEPS
) -> Problems:
    """Yield the problems of a JSON value.

    Supports the keywords that types have, and those of most handwritten schemas. A value that can't be judged counts as
    valid.

    Args:
        schema: The expected schema.
        value: The value.
        lax: Accept ``"3"`` as 3.
        matches: Tries a pattern of a handwritten schema in bounded time. Formats are only annotations there.
        steps: Maximum number of comparisons.
    """
    return _Comparison(schema, lax=lax, matches=matches, steps=steps).problems(schema, value, ())


class _Comparison:
    """A comparison of one value with a schema."""

    def __init__(self, schema: Schema, *, lax: bool, matches: Matches | None, steps: float) -> None:
        self._schema = schema
        self._lax = lax
        self._matches = matches
        self._steps = steps

    def problems(self, node: Any, value: Any, path: Path) -> Problems:
        self._steps -= 1
        if node is False:
            yield Problem(path, "unknown")
        if not is_object(node) or self._steps < 0:
            return
        if "$ref" in node:
            yield from self.problems(self._target(node), value, path)
        for keyword in ("anyOf", "oneOf"):
            if keyword in node:
                yield from self._of_union(node, keyword, value, path)
        for each in node.get("allOf", ()):
            yield from self.problems(each, value, path)
        if "if" in node:
            branch = "then" if self._fits(node["if"], value) else "else"
            yield from self.problems(node.get(branch, True), value, path)
        yield from self._own(node, value, path)

    def _own(self, node: Schema, value: Any, path: Path) -> Problems:
        """Yield the problems of a schema's own keywords, without combinators."""
        kind = node.get("type", "")
        if self._lax and isinstance(value, str) and isinstance(kind, str) and kind in _SCALARS:
            with suppress(msgspec.ValidationError):
                value = msgspec.convert(value, _SCALARS[kind], strict=False)
        choices = _choices(node)
        alike = (value == each and isinstance(value, bool) == isinstance(each, bool) for each in choices)
        if choices and not any(alike):
            listed_choices = ", ".join(map(_json, choices[:MAX_LISTED])) + (", …" if len(choices) > MAX_LISTED else "")
            yield Problem(path, f"must be one of {listed_choices}{got_text(value, path, node)}")
        elif choices or (node.get("pattern") == DECIMAL and _is_of(value, "number")):
            return
        elif kind and not _is_of(value, kind):
            yield Problem(path, f"must be {_what(node)}{got_text(value, path, node, typed=True)}")
        elif (
            text := self._misfit(node, value, kind if isinstance(kind, str) and kind else _kind_of(value))
        ) is not None:
            yield Problem(path, f"must be {text}{got_text(value, path, node)}")
        elif is_object(value):
            yield from self._of_object(node, value, path)
        elif is_array(value):
            yield from self._of_array(node, value, path)

    def _fits(self, node: Any, value: Any) -> bool:
        return next(self.problems(node, value, ()), None) is None

    def _target(self, node: Schema) -> Schema:
        """Return the schema that a reference leads to, or an empty one for an anchor."""
        reference: str = node.get("$ref", "")
        if not reference:
            return node
        try:
            return members(value_at_pointer(self._schema, reference))
        except LookupError:  # it counts from an `$id` inside the document
            return {}

    def _of_union(self, node: Schema, keyword: str, value: Any, path: Path) -> Problems:
        options: list[Schema] = []
        tag = value_at(node, ("discriminator", "propertyName"))
        for each in map(self._target, filter(is_object, node[keyword])):
            options += map(self._target, each.get("anyOf", [each]))
            tag = tag or value_at(each, ("discriminator", "propertyName"))
        fitting = sum(self._fits(each, value) for each in options)
        if fitting:
            if keyword == "oneOf" and fitting > 1 and not self._lax:
                yield Problem(path, f"must match one alternative of oneOf, but matches {fitting}")
            return
        alike = [each for each in options if _is_of(value, each.get("type", ""))]
        if tag is not None and is_object(value):
            named = {tags[0]: each for each in alike if (tags := value_at(each, ("properties", tag, "enum")))}
            alike = [each for name, each in named.items() if name == value.get(tag)]
            if not alike:
                found = f"{got_text(value[tag], (*path, tag), {})}" if tag in value else ""
                yield Problem((*path, tag), f"must be one of {', '.join(map(_json, named))}{found}")
                return
        if len(alike) == 1:
            yield from self.problems(alike[0], value, path)
        elif any("type" in each or _choices(each) for each in options):
            kinds = " or ".join(dict.fromkeys(map(_what, options)))
            yield Problem(path, f"must be {kinds}{got_text(value, path, node, typed=not alike)}")
        else:
            why = (problem_text(list(islice(self.problems(each, value, path), 1))) for each in options[:MAX_PROBLEMS])
            yield Problem(path, f"must match an alternative of {keyword}: {' or '.join(f'({each})' for each in why)}")

    def _of_object(self, node: Schema, value: Any, path: Path) -> Problems:
        properties, others, names = (
            node.get("properties", {}),
            node.get("additionalProperties"),
            node.get("propertyNames"),
        )
        yield from (Problem((*path, name), "missing") for name in node.get("required", ()) if name not in value)
        for name, each in value.items():
            if names is not None:
                yield from self.problems(names, name, (*path, name))
            if name in properties:
                yield from self.problems(properties[name], each, (*path, name))
            elif "patternProperties" not in node:
                yield from self.problems(others, each, (*path, name))

    def _of_array(self, node: Schema, value: Any, path: Path) -> Problems:
        first: list[Any] = node.get("prefixItems", [])
        unique = node.get("uniqueItems", False) and self._matches is None
        for index, each in enumerate(value):
            if unique and isinstance(each, dict | list):
                yield Problem((*path, index), "is an array or object, but the items of this array must be unique")
            else:
                inner = first[index] if index < len(first) else node.get("items")
                yield from self.problems(inner, each, (*path, index))

    def _misfit(self, node: Schema, value: Any, kind: str) -> str | None:
        """Return the unmet requirement for a value of the right type, or None."""
        if kind in ("integer", "number"):
            for keyword, (sign, fits) in _NUMERIC.items():
                if keyword in node and not fits(value, node[keyword]):
                    return f"{words(kind)} {sign} {node[keyword]}"
            return None
        if kind in _SIZES and "contentEncoding" not in node:
            low, high = _SIZES[kind]
            if len(value) < node.get(low, 0):
                return f"{words(kind)} of length >= {node[low]}"
            if len(value) > node.get(high, len(value)):
                return f"{words(kind)} of length <= {node[high]}"
        if not isinstance(value, str):
            return None
        if self._matches is None:
            return _unreadable(node, value)
        pattern = node.get("pattern")
        return f"a string matching regex {pattern!r}" if pattern and not self._matches(pattern, value) else None


def _kind_of(value: Any) -> str:
    return KINDS.get(cast("type[object]", type(value)), "")


def _is_of(value: Any, kinds: str | list[str]) -> bool:
    kind = _kind_of(value)
    if kind in kinds if is_array(kinds) else kind == kinds:
        return True
    if kind == "integer":
        return "number" in kinds
    return "integer" in kinds and isinstance(value, float) and value.is_integer()


def _choices(node: Schema) -> list[Any]:
    choices: list[Any] = node.get("enum", [node["const"]] if "const" in node else [])
    return choices


def _what(node: Schema) -> str:
    """Return the type that a schema asks for, in JSON terms."""
    known = FORMATS.get(node.get("contentEncoding") or node.get("format", ""))
    if known is not None:
        return f"{known[1].partition(' such as')[0]}{'' if 'contentEncoding' in node else ' as text'}"
    if node.get("pattern") == DECIMAL:
        return "a decimal number as text"
    if choices := _choices(node):
        return " or ".join(map(_json, choices[:MAX_LISTED]))
    kind = node.get("type", "object" if "$ref" in node else "any value")
    return words(kind)


def _unreadable(node: Schema, text: str) -> str | None:
    if node.get("pattern") == DECIMAL:
        return None if _is_decimal(text) else "a decimal number as text, such as 1.50"
    if "pattern" in node and re.search(node["pattern"], text) is None:
        return f"a string matching regex {node['pattern']!r}"
    if node.get("format") == "path" and (not text or "\0" in text):
        return "a path as text"
    known = FORMATS.get(node.get("contentEncoding") or node.get("format", ""))
    if known is not None:
        try:
            msgspec.convert(text, known[0])
        except msgspec.ValidationError:
            return known[1]
    return None


def got_text(value: Any, path: Path, node: Schema, *, typed: bool = False) -> str:
    """Return ``, got the string "hello"``, with long values cut and secrets left out.

    Args:
        value: The value.
        path: Its location.
        node: Its schema.
        typed: Also include its type.
    """
    kind = words(_kind_of(value)) if typed else ""
    text = _json(value)
    names = [each for each in path if isinstance(each, str)]
    options: list[Any] = [node, *node.get("anyOf", ())]
    hidden = any(map(SECRET.search, names)) or any(
        is_object(each) and (each.get("writeOnly") or each.get("format") == "password") for each in options
    )
    if hidden or (text[0] in "[{" and SECRET.search(text)):
        return f", got {kind}" if kind else ""
    text = shorten(text, MAX_SHOWN)
    return f", got {'the ' + kind.partition(' ')[2] + ' ' if kind.startswith(('a ', 'an ')) else ''}{text}"


def words(kinds: str | Sequence[str]) -> str:
    """Return a type name, or several, as words."""
    return " or ".join(WORDS.get(each, each) for each in _as_list(kinds))


def _as_list(kinds: str | Sequence[str]) -> Sequence[str]:
    return [kinds] if isinstance(kinds, str) else kinds


def list_names(names: list[str]) -> str:
    """Return quoted names, with bounds on their number and length."""
    quoted = ", ".join(f"'{name[:MAX_SHOWN]}'" for name in names[:MAX_LISTED])
    return quoted if len(names) <= MAX_LISTED else f"{quoted} and {len(names) - MAX_LISTED} more"


def expected_text(schema: Schema) -> str:
    """Return the properties of a schema in one line."""
    properties: dict[str, Any] = schema.get("properties", {})
    if not properties:
        return "Expected: no arguments" if schema.get("additionalProperties") is False else "Expected: an object"
    required = schema.get("required", [])
    parts = [
        f"{_json(name)}: {_kind(node)}{'' if name in required else ' (optional)'}"
        for name, node in list(properties.items())[:MAX_LISTED]
    ]
    more = ", …" if len(properties) > MAX_LISTED else ""
    return f"Expected: {{{', '.join(parts)}{more}}}"


def _kind(node: Any) -> str:
    """Return a property's type in a word or two."""
    if not is_object(node):
        return "any"
    if choices := _choices(node):
        return " | ".join(map(_json, choices))
    if parts := node.get("anyOf") or node.get("oneOf"):
        return " | ".join(map(_kind, parts))
    kind = node.get("type", "object" if "$ref" in node else "any")
    if kind == "array" and is_object(node.get("items")):
        return f"array of {_kind(node['items'])}"
    return " | ".join(_as_list(kind))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
