"""Repair of other servers' JSON Schemas, so that known clients don't reject them.

The official TypeScript SDK compiles output schemas when it reads a list, and rejects the whole list if one of them has
a dangling reference or a pattern that isn't ECMA-262. A keyword without a usable value is left out, so the schema
accepts more. Where it would accept less, such as below ``not``, the outer keyword is left out. References are JSON
pointers: names of schemas are left out, as are references to them.
"""

import re
from collections.abc import Callable
from typing import Any, cast

from millstream._protocol.json_schema import (
    DIALECT,
    MAPS,
    SUBSCHEMA_LISTS,
    SUBSCHEMAS,
    is_array,
    is_object,
    members,
    value_at_pointer,
    walk,
)
from millstream._protocol.jsonrpc import Json, encode

_TYPES = frozenset(("array", "boolean", "integer", "null", "number", "object", "string"))
_NAMES = frozenset(("$anchor", "$dynamicAnchor", "$id"))
_DATA = frozenset(("const", "default"))
"""Keywords whose value can be anything."""
_REFERENCES = frozenset(("$ref", "$dynamicRef", "$recursiveRef"))
_REFUSED = frozenset(
    ("$async", "formatExclusiveMaximum", "formatExclusiveMinimum", "formatMaximum", "formatMinimum", "id")
)
"""Keywords that validators reject or read differently, and that JSON Schema 2020-12 doesn't define."""
_INVERTED = frozenset(("contains", "if", "not", "oneOf"))
"""Keywords that accept less if their subschemas accept more."""
_MAX_SHOWN = 60
_MAX_PASSES = 8
_MAX_HOPS = 16
"""Maximum references in a row. A longer chain is considered dangling, because following it takes too long."""
_FROM_DRAFT_4 = ("exclusiveMaximum", "maximum"), ("exclusiveMinimum", "minimum")
_ANNOTATIONS = frozenset(("$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "title"))
_DRAFTS = tuple(f"https://json-schema.org/draft{each}/schema" for each in ("-06", "-07", "/2019-09"))
"""Dialects before 2020-12 that clients support."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_list_of_names(value: Any) -> bool:
    return is_array(value) and all(isinstance(each, str) for each in value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(MAPS | {"$vocabulary"}, is_object),
    **dict.fromkeys(SUBSCHEMAS, lambda value: is_object(value) or isinstance(value, bool)),
    **dict.fromkeys(SUBSCHEMA_LISTS | {"enum"}, lambda value: is_array(value) and bool(value)),
    **dict.fromkeys(
        _REFERENCES | {"$comment", "$schema", "contentEncoding", "contentMediaType", "description", "format", "title"},
        _is_text,
    ),
    **dict.fromkeys(
        {f"{end}{each}" for end in ("max", "min") for each in ("Contains", "Items", "Length", "Properties")}, _is_count
    ),
    **dict.fromkeys(("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum"), _is_number),
    **dict.fromkeys(("$recursiveAnchor", "deprecated", "nullable", "readOnly", "uniqueItems", "writeOnly"), _is_flag),
    "examples": is_array,
    "multipleOf": lambda value: _is_number(value) and value > 0,
}
"""Keyword -> check of a value's type. Subschemas in the value aren't checked."""


_REPAIRED = frozenset(("dependentRequired", "pattern", "required", "type"))
KEYWORDS = frozenset((*_CHECKS, *_DATA, *_NAMES, *_REPAIRED))
"""Keywords of JSON Schema, 2020-12 and earlier, and of OpenAPI."""


def fits_keyword(keyword: str, value: Any) -> bool:
    """Return whether a schema keyword can have a value: ``fits_keyword("type", "text")`` is False.

    Clients reject schemas with other values. Keywords that JSON Schema doesn't define fit any value.

    Args:
        value: Its value. Subschemas in it aren't checked.
    """
    check = _CHECKS.get(keyword)
    return _repair_value(keyword, value) == value if keyword in _REPAIRED else check is None or check(value)


def repair_schema(schema: Any, warn: Callable[[str], object] | None = None) -> Any:  # what was passed: JSON or None
    """Return a JSON Schema without unusable keywords, such as ``"required": null``, or None for no schema.

    Use it for schemas of other servers before you pass them on: ``repair_schema(tool.input_schema)``.

    ``true`` and ``false`` as the schema of a property become objects, because some clients accept only these.

    Args:
        schema: The schema as the other server sent it, of any type.
        warn: Called with each keyword that is left out although it has a value.
    """
    if isinstance(schema, bool):
        return _as_object(schema)
    for _ in range(_MAX_PASSES):
        if not is_object(schema):
            return None
        repair = _Repair(schema)
        made = repair.schema(schema)
        if warn is not None:
            for each in repair.dropped:
                warn(each)
        if made == schema:
            return made
        schema = made  # a reference can lead to a part that is now missing
    return {}


def _as_object(schema: bool) -> Json:
    return {} if schema else {"not": {}}


class _Repair:
    """One pass over a document."""

    def __init__(self, document: Json) -> None:
        dialect = str(document.get("$schema", DIALECT)).rstrip("#").replace("http://", "https://")
        self._is_newest = dialect not in _DRAFTS
        self.dropped: list[str] = []
        """Keywords that were left out although they have a value."""
        self._document = document
        self._schemas = {id(each) for each in walk(document)}
        self._is_divided = any("$id" in each for each in walk(document) if each is not document)
        """Whether pointers can start at another schema than the document."""

    def schema(self, node: Json) -> Json:
        """Return a schema without the parts that no reader can use."""
        start, made = len(self.dropped), Json()
        for key, value in node.items():
            if key in _NAMES:
                continue
            before = len(self.dropped)
            fixed = value if key in _DATA else self._value(node, key, value)
            if fixed is None and value is not None and not (isinstance(value, bool) and key.startswith("exclusive")):
                self.dropped.append(f"{key} {value!r:.{_MAX_SHOWN}}")
            if key in _INVERTED and len(self.dropped) > before:
                if key == "oneOf" and fixed and "anyOf" not in node:
                    made["anyOf"] = fixed
            elif fixed is not None or key in _DATA:
                made[key] = fixed
        if len(self.dropped) > start:  # these accept less without the missing part
            made.pop("unevaluatedItems", None)
            made.pop("unevaluatedProperties", None)
            if len(made.get("patternProperties", ())) < len(members(node.get("patternProperties"))):
                made.pop("additionalProperties", None)
        return self._modernize(node, made)

    def _modernize(self, node: Json, made: Json) -> Json:
        """Rewrite the forms of earlier drafts and of OpenAPI as 2020-12."""
        for exclusive, limit in _FROM_DRAFT_4:
            if node.get(exclusive) is True and limit in made:
                made[exclusive] = made.pop(limit)
        if self._is_newest and is_array(made.get("items")):
            items, others = made.pop("items"), made.pop("additionalItems", None)
            made.setdefault("prefixItems", items)
            if others is False:
                made["maxItems"] = min(len(items), made.get("maxItems", len(items)))
        return _convert_nullable(made) if "nullable" in made else made

    def _value(self, node: Json, key: str, value: Any) -> Any:  # noqa: PLR0911  one branch a keyword
        """Return the value of a keyword that clients can read, or None."""
        if is_object(value) and key in MAPS:
            found = {name: self._member(key, name, each) for name, each in value.items()}
            return {name: each for name, each in found.items() if each is not None}
        if is_array(value) and (key in SUBSCHEMA_LISTS or key == "items"):
            schemas = (self._member(key, "", each) for each in value if each is not None)
            return [each for each in schemas if each is not None] or None
        if is_object(value) and key in SUBSCHEMAS:
            return self.schema(value)
        if key in _REPAIRED:
            return _repair_value(key, value)
        if key in _REFUSED or not fits_keyword(key, value):
            return None
        if key in _REFERENCES:
            return value if self._leads_somewhere(node, cast("str", value)) else None
        if key == "$schema":
            return (
                value if cast("str", value).rstrip("#").replace("http://", "https://") in (DIALECT, *_DRAFTS) else None
            )
        if key not in _CHECKS and is_object(value) and _HAS_NAMES.search(encode(value)):
            return None  # validators also look for names there
        return value

    def _member(self, key: str, name: str, value: Any) -> Any:
        """Return a schema in a map or a list, or None to leave it out."""
        if key == "patternProperties" and not is_portable(name):
            self.dropped.append(f"{key} {name!r:.{_MAX_SHOWN}}")
            return None
        if key == "dependencies" and _is_list_of_names(value):
            return value
        if isinstance(value, bool):
            return _as_object(value)
        if is_object(value):
            return self.schema(value)
        if value is not None:
            self.dropped.append(f"{key} {value!r:.{_MAX_SHOWN}}")
        return {} if name else None

    def _leads_somewhere(self, node: Json, reference: str) -> bool:
        """Return whether a reference leads to a schema of this document, not only back to itself."""
        seen = {id(node)}
        while not self._is_divided and not _BAD_ESCAPE.search(reference):
            try:
                target = value_at_pointer(self._document, reference)
            except LookupError:
                return False
            if not is_object(target):
                return isinstance(target, bool)
            if id(target) not in self._schemas or id(target) in seen or len(seen) > _MAX_HOPS:
                return False
            if not isinstance(target.get("$ref"), str):
                return True
            seen.add(id(target))
            reference = target["$ref"]
        return False


_HAS_NAMES = re.compile(rb'"\$(?:id|anchor|dynamicAnchor)":')
_BAD_ESCAPE = re.compile(r"%(?:2[Ff]|(?![0-9A-Fa-f]{2}))")
"""Part of a reference that validators decode differently, or not at all."""


def _repair_value(key: str, value: Any) -> Any:
    if key == "pattern":
        return value if isinstance(value, str) and is_portable(value) else None
    if key == "dependentRequired":
        return {name: each for name, each in members(value).items() if _is_list_of_names(each)} or None
    if key == "required":
        return list(dict.fromkeys(each for each in value if isinstance(each, str))) if is_array(value) else None
    names = [each.lower() if isinstance(each, str) else "" for each in (value if is_array(value) else [value])]
    if not names or not _TYPES.issuperset(names):
        return None
    return list(dict.fromkeys(names)) if is_array(value) else names[0]


def _convert_nullable(made: Json) -> Json:
    """Rewrite ``nullable`` as a type of its own if there is no ``type`` beside it, or if the two contradict."""
    kinds = made.get("type")
    if kinds is not None and (made["nullable"] or "null" not in kinds):
        return made
    rest = {key: value for key, value in made.items() if key != "nullable"}
    if not made["nullable"] or rest.keys() <= _ANNOTATIONS:
        return rest
    outside = {key: value for key, value in rest.items() if key in _ANNOTATIONS}
    inside = {key: value for key, value in rest.items() if key not in _ANNOTATIONS}
    return {**outside, "anyOf": [inside, {"type": "null"}]}


# Patterns

_SET = r"\\[dDsSwW]"
_CHARACTER = r"\\(?:[fnrtv^$\\.*+?()\[\]{}|/]|0(?![0-9])|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})"
_TOKEN = re.compile(
    rf"""(?P<open>\((?:\?(?:(?P<look><?[=!])|:))?)
    |(?P<close>\))
    |(?P<repeat>(?:[*+?]|\{{(?P<least>[0-9]{{1,9}})(?:,(?P<most>[0-9]{{0,9}}))?\}})\??)
    |(?P<edge>[\^$|]|\\[bB])
    |\[\^?(?P<class>(?:[^\\\]]|\\.)++)\]
    |{_CHARACTER}|{_SET}|[^\\^$*+?()\[\]{{}}|]""",
    re.VERBOSE | re.DOTALL,
)
_IN_CLASS = rf"{_CHARACTER}|\\[b-]|[^\\]"
_CLASS_PART = re.compile(rf"({_IN_CLASS})-(?:({_IN_CLASS})|{_SET})|{_IN_CLASS}|{_SET}(?!-.)", re.DOTALL)
_LETTERS = {"f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "b": 8, "0": 0}


def is_portable(pattern: str) -> bool:
    """Return whether a regular expression is one of ECMA-262 with the ``u`` flag, which clients compile.

    Named groups, backreferences, and Unicode properties aren't: dialects differ in them.
    """
    stack: list[bool] = []
    position, repeatable = 0, False
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None or (token["class"] and not _is_portable_class(token["class"])):
            return False
        position = token.end()
        if token["open"]:
            stack.append(not token["look"])
            repeatable = False
        elif token["close"]:
            if not stack:
                return False
            repeatable = stack.pop()
        elif token["repeat"]:
            if not repeatable or (token["most"] and int(token["most"]) < int(token["least"])):
                return False
            repeatable = False
        else:
            repeatable = not token["edge"]
    return not stack


def _is_portable_class(text: str) -> bool:
    """Return whether the inside of a character class has only known characters, and ranges in order."""
    position = 0
    for part in _CLASS_PART.finditer(text):
        low, high = part.groups()
        if part.start() != position or (low and (high is None or _code(low) > _code(high))):
            return False
        position = part.end()
    return position == len(text)


def _code(text: str) -> int:
    """Return the code point of a character in a class."""
    if text[0] != "\\":
        return ord(text)
    if text[1] in "xu":
        return int(text[2:], 16)  # noqa: FURB166  a backslash begins it, not a zero
    return _LETTERS.get(text[1], ord(text[1]))
