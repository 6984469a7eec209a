"""Repair of other servers' JSON Schemas, so that no client rejects them.

The official TypeScript SDK compiles output schemas when it reads a list, and rejects the whole list if one of them has
a dangling reference or a pattern that isn't ECMA-262. A keyword without a usable value is left out, so the schema
accepts more. Where it would accept less, such as below ``not``, the outer keyword is left out.
"""

import re
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote, urljoin

from millstream._protocol.json_schema import (
    DIALECT,
    MAPS,
    SUBSCHEMA_LISTS,
    SUBSCHEMAS,
    children,
    is_array,
    is_object,
    members,
    value_at_pointer,
    walk,
)
from millstream._protocol.jsonrpc import Json, encode

_TYPES = frozenset(("array", "boolean", "integer", "null", "number", "object", "string"))
_LOCATORS = frozenset(("$anchor", "$dynamicAnchor", "$id"))
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
_MAX_URI = 1024
"""Maximum length of a URI that is resolved. A longer one would be copied for each schema below it."""
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


def _is_anchor(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z_][-A-Za-z0-9._]*", value) is not None


def _is_list_of_names(value: Any) -> bool:
    return is_array(value) and all(isinstance(each, str) for each in value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(MAPS | {"$vocabulary"}, is_object),
    **dict.fromkeys(SUBSCHEMAS, lambda value: is_object(value) or isinstance(value, bool)),
    **dict.fromkeys(SUBSCHEMA_LISTS | {"enum"}, lambda value: is_array(value) and bool(value)),
    **dict.fromkeys(
        _REFERENCES
        | {"$comment", "$id", "$schema", "contentEncoding", "contentMediaType", "description", "format", "title"},
        _is_text,
    ),
    **dict.fromkeys(("$anchor", "$dynamicAnchor"), _is_anchor),
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
KEYWORDS = frozenset((*_CHECKS, *_DATA, *_REPAIRED))
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
    """Return a JSON Schema without keywords that no reader can use, such as ``"required": null``, or None for no
    schema.

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


def has_uris(schema: Any) -> bool:
    """Return whether a schema or a part of it has its own URI, which another tool's schema could also have."""
    return any("$id" in each for each in walk(schema))


def _as_object(schema: bool) -> Json:
    return {} if schema else {"not": {}}


def _join(base: str, reference: str) -> str:
    try:
        return urljoin(base, reference) if len(base) + len(reference) <= _MAX_URI else reference
    except ValueError:
        return reference


class _Repair:
    """One pass over a document."""

    def __init__(self, document: Json) -> None:
        dialect = str(document.get("$schema", DIALECT)).rstrip("#").replace("http://", "https://")
        self._is_newest = dialect not in _DRAFTS
        self.dropped: list[str] = []
        """Keywords that were left out although they have a value."""
        self._places: dict[int, tuple[Json, str]] = {}
        """Id of a schema -> the nearest schema around it that has a URI, and the URI."""
        self._targets: dict[tuple[str, str], Json] = {}
        """URI, and an anchor or nothing -> the schema."""
        self._doubled: set[int] = set()
        """Ids of schemas that share a URI or anchor with another one."""
        self._usable: dict[int, bool] = {}
        """Id of an object that is a schema only by reference -> whether it's a valid one."""
        self._depth = 0
        """Nesting depth of the objects in `_usable` being repaired."""
        self._name("", "", document)
        self._index(document, document, "")

    def _index(self, node: Any, root: Json, base: str, parent: Json | None = None, *, has_anchors: bool = True) -> None:
        """Record the location and the name of each schema. Ajv finds no anchors at the root or below
        ``prefixItems``.
        """
        if not is_object(node) or id(node) in self._places:
            return
        name = node.get("$id")
        if isinstance(name, str) and name:
            if name[0] != "#":
                root, base = node, _join(base, name).rstrip("#")
                self._name(base, "", node)
            elif not self._is_newest:
                self._name(base, name[1:], node)
        self._places[id(node)] = root, base
        for anchor in (node.get("$anchor"), node.get("$dynamicAnchor")):
            if isinstance(anchor, str) and has_anchors and parent is not None:
                self._name(base, anchor, node)
        for (keyword, *_), each in children(node):
            self._index(each, root, base, node, has_anchors=has_anchors and keyword != "prefixItems")

    def _name(self, base: str, name: str, node: Json) -> None:
        if self._targets.setdefault((base, name), node) is not node:
            self._doubled.add(id(node))

    def schema(self, node: Json) -> Json:
        """Return a schema without the parts that no reader can use."""
        start, made = len(self.dropped), Json()
        for key, value in node.items():
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
        if key in _LOCATORS:
            taken = id(node) in self._doubled or (key == "$anchor" and value == node.get("$dynamicAnchor"))
            return None if taken or "://json-schema.org/" in value else value
        if key == "$schema":
            return (
                value if cast("str", value).rstrip("#").replace("http://", "https://") in (DIALECT, *_DRAFTS) else None
            )
        if key not in _CHECKS and is_object(value) and _HAS_LOCATORS.search(encode(value)):
            return None  # validators also look for names there
        return value

    def _member(self, key: str, name: str, value: Any) -> Any:
        """Return a schema in a map or a list, or None to leave it out."""
        if key == "patternProperties" and portable_pattern(name) != name:
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
        """Return whether a reference leads to a schema, not only back to itself."""
        seen = {id(node)}
        target = self._find(node, reference)
        found = target is not None
        while is_object(target) and isinstance(target.get("$ref"), str):
            if id(target) in seen or len(seen) > _MAX_HOPS:
                return False
            seen.add(id(target))
            target = self._find(target, target["$ref"])
        return found and id(target) not in seen

    def _find(self, node: Json, reference: str) -> Any:
        """Return the target of a reference, or None if there's none in this document that all validators find."""
        nearest, base = self._places[id(node)]
        uri, _, fragment = reference.partition("#")
        try:
            name = unquote(fragment, errors="strict")
        except UnicodeDecodeError:
            return None
        if _BAD_ESCAPE.search(fragment):
            return None
        if uri:
            base = _join(base, uri)
        if name and name[0] != "/":
            return self._targets.get((base, name))
        root = self._targets.get((base, "")) if uri else nearest
        if root is None:
            return None
        try:
            target = value_at_pointer(root, f"#{fragment}")
        except LookupError:
            return None
        if not is_object(target):
            return target if isinstance(target, bool) else None
        if id(target) not in self._places:
            if self._depth == _MAX_HOPS:
                return None
            self._index(target, root, base, root)
            before = len(self.dropped)
            self._depth += 1
            self._usable[id(target)] = self.schema(target) == target
            self._depth -= 1
            del self.dropped[before:]
        return target if self._usable.get(id(target), True) else None


_HAS_LOCATORS = re.compile(rb'"\$(?:id|anchor|dynamicAnchor)":')
_BAD_ESCAPE = re.compile(r"%(?:2[Ff]|(?![0-9A-Fa-f]{2}))")
"""Part of a fragment that validators decode differently, or not at all."""


def _repair_value(key: str, value: Any) -> Any:
    if key == "pattern":
        return portable_pattern(value) if isinstance(value, str) else None
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

_CATEGORIES = "C[cfnos]?|L[CClmotu]?|M[cen]?|N[dlo]?|P[cdefios]?|S[ckmo]?|Z[lps]?"
_PROPERTY = (
    rf"(?:(?:gc|General_Category)=)?(?:{_CATEGORIES}|Letter|Lowercase_Letter|Mark|Number|Other|Punctuation|Separator"
    r"|Symbol|Uppercase_Letter)|(?:sc|scx|Script|Script_Extensions)=(?:Arab|Arabic|Cyrillic|Cyrl|Deva|Devanagari|Greek"
    r"|Grek|Han|Hang|Hangul|Hani|Hebr|Hebrew|Hira|Hiragana|Kana|Katakana|Latin|Latn|Thai)|ASCII|Alpha|Alphabetic|Any"
    r"|Emoji|ID_Continue|ID_Start|Ideographic|Lowercase|Uppercase|White_Space"
)
_CHARACTER = (
    r"\\(?:[fnrtv]|c[A-Za-z]|0(?![0-9])|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|u\{0*(?:10|[0-9A-Fa-f])?[0-9A-Fa-f]{1,4}\}"
    r"|[\^$\\.*+?()\[\]{}|/])"
)
_SET = rf"\\(?:[dDsSwW]|[pP]\{{(?:{_PROPERTY})\}})"
_NEEDLESS = r"""\\[ !"#%&',:;<=>@_`~-]"""
_TOKEN = re.compile(
    rf"""(?P<open>\((?:\?(?:(?P<look>[=!]|<[=!])|:|<(?P<name>[A-Za-z_$][A-Za-z0-9_$]*)>))?)
    |(?P<close>\))
    |(?P<repeat>(?:[*+?]|\{{(?P<least>[0-9]{{1,9}})(?:,(?P<most>[0-9]{{0,9}}))?\}})\??)
    |(?P<edge>[\^$]|\\[bB])|(?P<or>\|)
    |(?P<class>\[\^?(?:[^\\\]]|\\.)++\])
    |\\(?:(?P<group>[1-9][0-9]{{0,4}})|k<(?P<label>[^>]+)>)
    |(?P<needless>{_NEEDLESS})
    |{_CHARACTER}|{_SET}|[^\\^$*+?()\[\]{{}}|]""",
    re.VERBOSE | re.DOTALL,
)
_CLASS_PART = re.compile(rf"(?P<set>{_SET})|(?P<one>{_CHARACTER}|\\[b-]|(?P<needless>{_NEEDLESS})|[^\\])", re.DOTALL)
_LETTERS = {"f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "b": 8, "0": 0}


def portable_pattern(pattern: str) -> str | None:  # noqa: C901, PLR0912  one branch a token
    """Return a regular expression in the form that ECMA-262 allows with the ``u`` flag, which clients compile, or None
    if there's no such form.

    Backslashes without a meaning are left out: ``portable_pattern("a\\-b")`` is ``"a-b"``.
    """
    parts: list[str] = []
    stack: list[bool] = []
    names: set[str] = set()
    groups = highest = position = 0
    labels: set[str] = set()
    repeatable = False
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None:
            return None
        position, text = token.end(), token[0]
        if token["open"]:
            stack.append(not token["look"])
            if token["name"] in names:
                return None
            groups += text == "(" or token["name"] is not None
            names |= {token["name"]} - {None}
            repeatable = False
        elif token["close"]:
            if not stack:
                return None
            repeatable = stack.pop()
        elif token["repeat"]:
            most = token["most"]
            if not repeatable or (most and int(most) < int(token["least"])):
                return None
            repeatable = False
        elif token["edge"] or token["or"]:
            repeatable = False
        else:
            repeatable = True
            if token["class"]:
                text = _portable_class(text)
                if not text:
                    return None
            elif token["needless"]:
                text = text[1:]
            elif token["group"]:
                highest = max(highest, int(token["group"]))
            elif token["label"]:
                labels.add(token["label"])
        parts.append(text)
    return "".join(parts) if not stack and highest <= groups and labels <= names else None


def _portable_class(text: str) -> str:
    """Return a character class, or an empty text if it isn't one."""
    start = 2 if text[1] == "^" else 1
    if "[:" in text:  # POSIX
        return ""
    found = list(_CLASS_PART.finditer(text, start, len(text) - 1))
    if sum(len(each[0]) for each in found) != len(text) - 1 - start:
        return ""
    parts = [each[0][1:] if each["needless"] else each[0] for each in found]
    at = 0
    while at + 2 < len(found):
        if found[at + 1][0] != "-":
            at += 1
            continue
        low, high = found[at], found[at + 2]
        if low["set"] or high["set"] or _code(low[0]) > _code(high[0]):
            return ""
        at += 3
    return text[:start] + "".join(parts) + "]"


def _code(text: str) -> int:
    """Return the code point of a character in a class."""
    if text[0] != "\\":
        return ord(text)
    if text[1] in "xu" and len(text) > 2:
        return int(text[2:].strip("{}"), 16)
    if text[1] == "c" and len(text) > 2:
        return ord(text[2]) % 32
    return _LETTERS.get(text[1], ord(text[1]))
