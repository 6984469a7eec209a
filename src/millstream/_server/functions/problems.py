"""Error messages for models about invalid arguments: each problem with its location, and the expected value.

Problems are found by comparing the arguments with the schema that clients see. This runs for rejected arguments, for
types for which Python accepts more strings than their schema, and to decide about values of handwritten schemas.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Context, Decimal
from functools import partial
from math import inf
from typing import Any, NamedTuple, cast
from uuid import UUID

import msgspec
from msgspec import Struct

from millstream._protocol.json_schema import DECIMAL, Schema, is_array, is_object, members, value_at, value_at_pointer
from millstream._text import shorten

MAX_WALKED = 64 * 1024
"""Maximum bytes of JSON to examine value by value. Larger arguments get the decoder's message."""
MAX_LISTED = 20
MAX_SHOWN = 80
"""Maximum characters to repeat from a peer's text."""
MAX_PROBLEMS = 5
MAX_FOUND = 30
"""Maximum number of problems to find."""
MAX_STEPS = 250
"""Maximum number of comparisons of a value's parts with a schema, which take about a millisecond. For large values, the
decoder's own message identifies the first problem.
"""
MAX_SLOW_STEPS = 500
"""The same for engines whose own check takes longer and identifies the first problem less well."""
MAX_DECIDING_STEPS = 50_000
"""The same, if the comparison determines whether a value is valid."""
_MAX_NAME = 256
"""Maximum characters of a name to search for words that indicate a secret."""
_MAX_NESTED = 3
"""Maximum depth to describe a type in a word or two."""

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
SCALARS: Mapping[str, Any] = {"integer": int, "number": float, "boolean": bool, "null": None}
"""JSON types that a text can contain."""
_EXACT = Context(prec=1000, traps=[])
"""Context that divides decimals such as 19.99 and 0.01 exactly, unlike floats."""
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
_PLACE = re.compile(r"(.*) - at `(?:key` in `)?\$\.([^`]*+)`", re.DOTALL)
"""Matches a msgspec error and its location."""
_is_decimal = re.compile(r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?").fullmatch
_TYPES: Mapping[str, tuple[type, ...]] = {
    name: (int, float) if kind is float else (kind,) for kind, name in KINDS.items()
}
"""JSON type -> the corresponding Python types."""
_PLAIN = frozenset(("title", "description", "default", "examples", "deprecated", "x-mcp-header"))
"""Keywords that don't restrict values."""
_COMBINED = _PLAIN | {"$ref", "anyOf", "oneOf", "allOf", "if", "then", "else", "discriminator"}
"""Keywords that restrict values only through subschemas."""
_ANYTHING: Schema = {}
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


def engine_problem(error: Exception) -> Problem:
    """Return the decoder's message as a problem, for arguments without a schema."""
    if (found := _PLACE.fullmatch(str(error))) is not None:
        return Problem((found[2],), f"is invalid: {shorten(found[1])}")
    return Problem((), f"don't fit: {shorten(str(error))}")


def place(path: Sequence[str | int]) -> str:
    """Return a path as text: ``a.b[0]``."""
    steps = (f"[{each}]" if isinstance(each, int) else f".{each[:MAX_SHOWN]}" for each in path)
    return "".join(steps).removeprefix(".")


def explain(problems: Sequence[Problem], schema: Schema) -> str:
    """Explain the problem: ``'a' must be an integer, got a string. Expected: {"a": integer}``."""
    text = f"{problem_text(problems)}. {expected_text(schema)}"
    nested = Problem(("arguments",), "unknown") in problems
    return f"{text}. Send the values themselves, not inside 'arguments'." if nested else text


def describe_problems(schema: Schema, arguments: Schema) -> str:
    """Describe problems for a model to fix: ``describe_problems(schema, {"copies": "two"})``. Empty without any.

    A string that contains a value of the required type is accepted, such as "2" for an integer. Patterns aren't
    checked, because a pattern from another server can take very long to match.

    Args:
        schema: The input schema of a tool.
        arguments: The arguments of a call.
    """
    found = find_problems(schema, arguments, lax=True, formats=False, steps=MAX_DECIDING_STEPS)
    return explain(found, schema) if found else ""


def problem_text(problems: Sequence[Problem], *, whole: str = "the arguments", most: int = MAX_PROBLEMS) -> str:
    """Return problems as a sentence.

    Args:
        problems: At least one problem.
        whole: The name of the value as a whole.
        most: The number of problems to list, in addition to missing or unknown names.
    """
    parts: list[str] = []
    for word in ("missing", "unknown"):
        names: dict[Path, dict[str, None]] = {}
        for path in (each.path for each in problems if each.text == word):
            names.setdefault(path[:-1], {})[str(path[-1])] = None
        ordered = sorted(names.items(), key=lambda item: (len(item[0]), str(item[0])))
        parts += [f"{word} {list_names([*here])}" + (f" in '{place(at)}'" if at else "") for at, here in ordered]
    others = [each for each in problems if each.text not in ("missing", "unknown")]
    parts += [f"{subject(each.path, whole)}{each.text}" for each in others[:most]]
    if len(others) > most:
        parts.append("and more" if len(problems) >= MAX_FOUND else f"and {len(others) - most} more")
    return "; ".join(parts)


def subject(path: Path, whole: str = "the arguments") -> str:
    """Return the subject of a sentence about a path."""
    return f"'{place(path)}' " if path else f"{whole} "


def find_problems(
    schema: Schema,
    value: Any,
    *,
    lax: bool = False,
    one_of: bool = True,
    matches: Matches | None = None,
    formats: bool = True,
    steps: float = MAX_STEPS,
    first: bool = False,
) -> list[Problem]:
    """Return the problems of a JSON value, at most `MAX_FOUND`.

    Supports the keywords in types and in most handwritten schemas. A value that can't be judged is treated as valid,
    and so is the rest of a value after `steps`.

    Args:
        schema: The expected schema.
        lax: Accept ``"3"`` as 3, and several fitting alternatives of ``oneOf``.
        one_of: Reject several fitting alternatives of ``oneOf``, unless `lax`.
        matches: Tries a pattern in linear or bounded time. Without it, patterns aren't tried.
        formats: Whether strings must have their format, and items that must be unique can't be arrays or objects, as
            in types. In handwritten schemas, formats are only annotations.
        steps: Maximum number of comparisons.
        first: Look only for the first problem.
    """
    comparison = _Comparison(schema, lax, one_of and not lax, matches, formats, steps)
    try:
        found = comparison.judge(schema, value, first=first)
    except RecursionError:
        if steps == inf:
            raise
        return []
    return [each.problem() for each in found]


Text = Callable[[Path], str]


class _Fault(NamedTuple):
    """A problem, with a path that is relative to the value. Its text is written for the few that are listed, because it
    depends on the whole path.
    """

    text: Text
    path: Path = ()

    def problem(self, before: Path = ()) -> Problem:
        """Return the problem of a value at a path."""
        path = before + self.path
        return Problem(path, self.text(path))

    def inside(self, step: str | int) -> "_Fault":
        """Return the problem of the object or array that has the value at a step."""
        return _Fault(self.text, (step, *self.path))


def _plain_fault(text: str) -> _Fault:
    def text_of(_path: Path) -> str:
        return text

    return _Fault(text_of)


_MISSING = _plain_fault("missing")
_UNKNOWN = _plain_fault("unknown")
_NOT_UNIQUE = _plain_fault("is an array or object, but the items of this array must be unique")


class _Union(NamedTuple):
    """The alternatives of a union."""

    options: list[Schema]
    tag: Any
    """The member that tells alternatives apart, or None."""
    named: Mapping[Any, Schema]
    """Value of that member -> the alternative."""
    others: list[Schema]
    """Alternatives without such a value."""


class _Comparison(Struct, eq=False):
    """Compares one value with a schema. Each part of the value is checked once against each part of the schema."""

    schema: Schema
    lax: bool
    one_of: bool
    matches: Matches | None
    formats: bool
    steps: float
    texts: int = MAX_FOUND
    """Alternatives whose problems may still be listed, because they can be nested."""
    judged: dict[tuple[int, int, bool], list[_Fault]] = {}
    types: dict[int, frozenset[type]] = {}
    choices: dict[int, frozenset[Any]] = {}
    unions: dict[tuple[int, str], _Union] = {}

    def judge(self, node: Any, value: Any, *, first: bool) -> list[_Fault]:
        """Return a value's problems, or only one if `first` is set."""
        if not is_object(node):
            return [_UNKNOWN] if node is False else []
        self.steps -= 1
        if self.steps < 0:
            return []
        key = id(node), id(value), first
        found = self.judged.get(key)
        if found is None:
            self.judged[key] = []  # for a schema that refers only to itself
            found = self.judged[key] = self._examine(node, value, first=first)[: 1 if first else MAX_FOUND]
        return found

    def _examine(self, node: Schema, value: Any, *, first: bool) -> list[_Fault]:
        found: list[_Fault] = []
        if "$ref" in node:
            found += self.judge(self._target(node), value, first=first)
        for keyword in ("anyOf", "oneOf"):
            if keyword in node and True not in node[keyword]:
                found += self._of_union(node, keyword, value, first=first)
        for each in node.get("allOf", ()):
            found += self.judge(each, value, first=first)
        if "if" in node:
            branch = "else" if self.judge(node["if"], value, first=True) else "then"
            found += self.judge(node.get(branch, True), value, first=first)
        done = (first and found) or node.keys() <= _COMBINED
        return found if done else found + self._own(node, value, first=first)

    def _own(self, node: Schema, value: Any, *, first: bool) -> list[_Fault]:
        """Return the problems of a schema's own keywords, without combinators."""
        kind = node.get("type", "")
        if self.lax and isinstance(value, str) and isinstance(kind, str) and kind in SCALARS:
            with suppress(msgspec.ValidationError):
                value = msgspec.convert(value, SCALARS[kind], strict=False)
        if choices := choices_of(node):
            if self._is_choice(node, choices, value):
                return []
            return [self._fault(lambda: f"one of {_list_choices(choices)}", value, node)]
        if node.get("pattern") == DECIMAL and _is_of(value, "number"):
            return []
        if kind and not _is_of(value, kind):
            return [self._fault(lambda: _what(node), value, node, typed=True)]
        text = self._misfit(node, value, kind if isinstance(kind, str) and kind else kind_of(value))
        if text is not None:
            return [self._fault(lambda: text, value, node)]
        if is_object(value):
            return self._of_object(node, value, first=first)
        return self._of_array(node, value, first=first) if is_array(value) else []

    @staticmethod
    def _fault(required: Callable[[], str], value: Any, node: Schema, *, typed: bool = False) -> _Fault:
        def text_of(path: Path) -> str:
            return f"must be {required()}{got_text(value, path, node, typed=typed)}"

        return _Fault(text_of)

    def _is_choice(self, node: Schema, choices: list[Any], value: Any) -> bool:
        known = self.choices.get(id(node))
        if known is None:
            self.steps -= len(choices) / 32
            known = frozenset([(type(each) is bool, each) for each in choices if type(each) not in (dict, list)])
            self.choices[id(node)] = known
        if not isinstance(value, dict | list):
            return (type(value) is bool, value) in known
        return len(known) < len(choices) and value in choices

    def _target(self, node: Schema) -> Schema:
        """Return the schema that a reference leads to, or an empty one for an anchor."""
        reference: str = node.get("$ref", "")
        if not reference:
            return node
        try:
            target = value_at_pointer(self.schema, reference)
        except LookupError:  # the reference is relative to an `$id` inside the document
            return _ANYTHING
        return target if is_object(target) else _ANYTHING

    def _union(self, node: Schema, keyword: str) -> _Union:
        key = id(node), keyword
        if key not in self.unions:
            options: list[Schema] = []
            tag = value_at(node, ("discriminator", "propertyName"))
            for each in map(self._target, filter(is_object, node[keyword])):
                options += map(self._target, filter(is_object, each.get("anyOf", [each])))
                tag = tag or value_at(each, ("discriminator", "propertyName"))
            named: dict[Any, Schema] = {}
            others: list[Schema] = []
            for each in options:
                names = [] if tag is None else choices_of(members(value_at(each, ("properties", tag))))
                named.update((name, each) for name in names if isinstance(name, str | int))
                if not names:
                    others.append(each)
            self.steps -= len(options) / 2
            self.unions[key] = _Union(options, tag, named, others)
        return self.unions[key]

    def _of_union(self, node: Schema, keyword: str, value: Any, *, first: bool) -> list[_Fault]:
        options, tag, named, others = self._union(node, keyword)
        possible = options
        name = None
        if named and is_object(value) and tag in value:  # the other alternatives can't match
            name = value[tag] if isinstance(value[tag], str | int) else None
            possible = [named[name], *others] if name in named else others
        self.steps -= len(possible) / 8
        if not isinstance(value, str):  # the text could be read as another type
            possible = [each for each in possible if _is_of(value, each.get("type") or kind_of(value))]
            if keyword == "anyOf" and len(possible) == 1 and "type" in possible[0]:
                return self.judge(possible[0], value, first=first)
        fits = (not self.judge(each, value, first=True) for each in possible)
        counted = keyword == "oneOf" and self.one_of
        fitting = sum(fits) if counted else int(any(fits))
        if fitting > 1 and self.steps >= 0:
            return [_plain_fault(f"must match exactly one alternative of oneOf, but matches {fitting}")]
        if fitting or self.steps < 0:
            return []
        if named and is_object(value):
            if tag in value and name in named:
                return self.judge(named[name], value, first=first)
            text = f"one of {_list_choices([*named])}"
            found = _plain_fault(f"must be {text}")
            found = self._fault(partial(str, text), value[tag], _ANYTHING) if tag in value else found
            return [found.inside(tag)]
        alike = [each for each in options if _is_of(value, each.get("type", ""))]
        if len(alike) == 1:
            return self.judge(alike[0], value, first=first)
        if any("type" in each or choices_of(each) for each in options):
            return [self._fault(partial(_list_kinds, options), value, node, typed=not alike)]
        return self._of_alternatives(keyword, options, value)

    def _of_alternatives(self, keyword: str, options: list[Schema], value: Any) -> list[_Fault]:
        """Combine the first problem of each of a few alternatives."""
        reasons = [self.judge(each, value, first=True) for each in options[:MAX_PROBLEMS]]

        def text_of(path: Path) -> str:
            self.texts -= 1
            if self.texts < 0:
                return f"must match an alternative of {keyword}"
            why = (problem_text([each.problem(path)]) for found in reasons for each in found)
            return f"must match an alternative of {keyword}: {' or '.join(f'({each})' for each in why)}"

        return [_Fault(text_of)]

    def _plain_types(self, node: Any) -> frozenset[type]:
        """Return the types whose values are all valid, so they don't have to be checked one by one."""
        found = self.types.get(id(node))
        if found is None:
            found = frozenset[type]()
            if is_object(node):
                if node.keys() <= _PLAIN | {"type"}:
                    found = found.union(*(_TYPES.get(each, ()) for each in _as_list(node.get("type", []))))
                elif node.keys() <= _PLAIN | {"anyOf"}:
                    found = found.union(*map(self._plain_types, node["anyOf"]))
            self.types[id(node)] = found
        return found

    def _of_object(self, node: Schema, value: Any, *, first: bool) -> list[_Fault]:
        properties, others = node.get("properties", {}), node.get("additionalProperties")
        found = [_MISSING.inside(name) for name in node.get("required", ()) if name not in value]
        if "patternProperties" in node:
            others = None
        names = node.get("propertyNames")
        if not properties and names is None and others is not False and not is_object(others):
            return found
        self.steps -= len(value) / 64
        for name, each in value.items():
            if names is not None:
                found += (below.inside(name) for below in self.judge(names, name, first=first))
            inner = properties.get(name, others)
            if inner is False or (is_object(inner) and type(each) not in self._plain_types(inner)):
                found += (below.inside(name) for below in self.judge(inner, each, first=first))
                if len(found) >= (1 if first else MAX_FOUND) or self.steps < 0:
                    break
        return found

    def _of_array(self, node: Schema, value: Any, *, first: bool) -> list[_Fault]:
        found: list[_Fault] = []
        before: list[Any] = node.get("prefixItems", [])
        items, unique = node.get("items"), node.get("uniqueItems", False) and self.formats
        plain = self._plain_types(items)
        self.steps -= len(value) / 128
        wrong: Iterable[int] = range(len(value))
        if not (before or unique):
            wrong = (index for index, kind in enumerate(map(type, value)) if kind not in plain)
        for index in wrong:
            each = value[index]
            if unique and isinstance(each, dict | list):
                found.append(_NOT_UNIQUE.inside(index))
            elif index < len(before) or type(each) not in plain:
                inner = before[index] if index < len(before) else items
                found += (below.inside(index) for below in self.judge(inner, each, first=first))
            if len(found) >= (1 if first else MAX_FOUND) or self.steps < 0:
                break
        return found

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
        pattern = node.get("pattern")
        if self.formats and pattern == DECIMAL:
            return None if _is_decimal(value) else "a decimal number as text, such as 1.50"
        if pattern and self.matches is not None and not self.matches(pattern, value):
            return f"a string matching regex {pattern!r}"
        return _unreadable(node, value) if self.formats else None


def kind_of(value: Any) -> str:
    """Return the type of a JSON value: ``"integer"``."""
    return KINDS.get(cast("type[object]", type(value)), "")


def _is_of(value: Any, kinds: str | list[str]) -> bool:
    kind = kind_of(value)
    if kind in kinds if is_array(kinds) else kind == kinds:
        return True
    if kind == "integer":
        return "number" in kinds
    return "integer" in kinds and isinstance(value, float) and value.is_integer()


def choices_of(node: Schema) -> list[Any]:
    """Return the values of an `enum` or `const`."""
    choices: list[Any] = node.get("enum", [node["const"]] if "const" in node else [])
    return choices


def _list_kinds(options: list[Schema]) -> str:
    return " or ".join(dict.fromkeys(map(_what, options[:MAX_LISTED])))


def _what(node: Schema) -> str:
    """Return the type that a schema requires, in JSON terms."""
    known = FORMATS.get(node.get("contentEncoding") or node.get("format", ""))
    if known is not None:
        return f"{known[1].partition(' such as')[0]}{'' if 'contentEncoding' in node else ' as text'}"
    if node.get("pattern") == DECIMAL:
        return "a decimal number as text"
    if choices := choices_of(node):
        return " or ".join(map(_json, choices[:MAX_LISTED]))
    kind = node.get("type", "object" if "$ref" in node else "any value")
    return words(kind)


def _unreadable(node: Schema, text: str) -> str | None:
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
    """Return ``, got the string "hello"``, with long values truncated and secrets omitted.

    Args:
        path: Its location.
        node: Its schema.
        typed: Also include its type.
    """
    kind = words(kind_of(value)) if typed else ""
    text = shorten(_json(value[: MAX_SHOWN + 1] if isinstance(value, str) else value), MAX_SHOWN)
    names = [each[:_MAX_NAME] for each in path if isinstance(each, str)]
    options: list[Any] = [node, *node.get("anyOf", ())]
    hidden = any(map(SECRET.search, names)) or any(
        is_object(each) and (each.get("writeOnly") or each.get("format") == "password") for each in options
    )
    if hidden or (text[0] in "[{" and SECRET.search(text)):
        return f", got {kind}" if kind else ""
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


def _kind(node: Any, depth: int = 0) -> str:
    """Return a property's type in a word or two."""
    if not is_object(node):
        return "any"
    if choices := choices_of(node):
        return _list_choices(choices, " | ")
    if (parts := node.get("anyOf") or node.get("oneOf")) and depth < _MAX_NESTED:
        more = " | …" if len(parts) > MAX_LISTED else ""
        return " | ".join(dict.fromkeys(_kind(each, depth + 1) for each in parts[:MAX_LISTED])) + more
    kind = node.get("type", "object" if "$ref" in node else "any")
    if kind == "array" and is_object(node.get("items")) and depth < _MAX_NESTED:
        return f"array of {_kind(node['items'], depth + 1)}"
    return " | ".join(_as_list(kind))


def _list_choices(choices: list[Any], between: str = ", ") -> str:
    return between.join(map(_json, choices[:MAX_LISTED])) + (f"{between}…" if len(choices) > MAX_LISTED else "")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
