"""JSON Schema 2020-12 as clients see it, and a bounded check of handwritten schemas.

This module inlines each `$ref`, because many models understand inlined schemas better, except for recursive types and
in very large schemas. Nothing is fetched: a `$ref` to another document is rejected (MCP 2026-07-28, basic).
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from math import inf, isfinite
from typing import (
    Any,
    TypeGuard,
    cast,
    get_args,
)
from urllib.parse import unquote

from msgspec import Struct

from millstream._protocol.jsonrpc import Json

Schema = Json

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAX_DEPTH = 64
MAX_SCHEMAS = 10_000
_INDEX = re.compile("0|[1-9][0-9]{0,9}")
"""Index of an array in a JSON pointer (RFC 6901 §4)."""

REF = "#/$defs/"
# Keywords that hold schemas (2020-12 core §10 and §11, and earlier drafts). All other keywords hold data.
SUBSCHEMAS = frozenset(
    ("additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not",
     "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties")
)  # fmt: skip
SUBSCHEMA_LISTS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
MAPS = frozenset(("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"))
LOOSE = frozenset(("date-time", "time", "duration", "path", "file-path", "directory-path"))
"""Formats that are left out of output schemas. Python's text doesn't always follow them: a time can lack an offset, and
a duration can be negative or have a fraction. JSON Schema doesn't define the formats for paths. Some clients validate
formats, and warn about unknown ones.
"""
DECIMAL = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"
r"""Some validators match non-ASCII digits with ``\d``."""
NO_NUMBER = "NaN and infinities can't be represented in JSON"
JSON_TYPES: dict[Any, str] = {str: "string", int: "integer", bool: "boolean"}


def type_text(annotation: Any) -> str:
    """Return a type's readable name, without modules, and with our `Field` in place of msgspec's class."""
    if isinstance(annotation, type) and not get_args(annotation):
        return drop_modules(annotation.__name__)
    functions_by_name = re.sub(r"<function (\S+) at 0x[0-9a-fA-F]+>", r"\1", repr(annotation))
    return re.sub(r"\bMeta\(", "Field(", drop_modules(functions_by_name))


def drop_modules(text: str) -> str:
    """Return text about types without their module names."""
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?:<locals>\.)?(?=[A-Za-z_])", "", text)


def is_object(value: Any) -> TypeGuard[Json]:
    """Return whether a JSON value is an object: ``value["unit"] if is_object(value) else None``.

    Args:
        value: Any decoded JSON value.
    """
    return isinstance(value, dict)


def is_array(value: Any) -> TypeGuard[list[Any]]:
    """Return whether a JSON value is an array: ``len(value) if is_array(value) else 0``.

    Args:
        value: Any decoded JSON value.
    """
    return isinstance(value, list)


def members(value: Any) -> Json:
    """Return the members of a JSON object, or an empty dict for any other value: ``members(tool.meta).get("unit")``.

    Args:
        value: Any decoded JSON value.
    """
    return value if is_object(value) else {}


def value_at(value: Any, path: Iterable[str]) -> Any:
    """Return the value at a path of member names, or None."""
    for name in path:
        if not isinstance(value, (dict, Mapping)):  # Checking for `dict` first is faster.
            return None
        value = cast("Mapping[str, Any]", value).get(name)
    return value


def value_at_pointer(document: Any, fragment: str) -> Any:
    """Return the value that a URI fragment points to (RFC 6901, section 6).

    Args:
        document: The decoded document.
        fragment: The fragment, which starts with #.

    Example:
        ``value_at_pointer(document, "#/paths/~1a/0")``

    Raises:
        LookupError: There's no such value.
    """
    if fragment != "#" and not fragment.startswith("#/"):
        raise LookupError(f"{fragment!r} isn't a pointer into the document")
    found: Any = document
    for token in unquote(fragment).split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        is_index = _INDEX.fullmatch(name) is not None
        if is_object(found) and name in found:
            found = found[name]
        elif is_array(found) and is_index and int(name) < len(found):
            found = found[int(name)]
        else:
            raise LookupError(f"{fragment!r} points to nothing")
    return found


def is_integral(value: Any) -> Any:
    """Return ``2.0`` as 2. JSON Schema counts both as integers, but msgspec's decoder accepts only 2."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def has_no_number(value: Any) -> bool:
    """Return whether a value contains a float that JSON can't represent, which would be encoded as null."""
    if isinstance(value, float):
        return not isfinite(value)
    inside: Iterable[Any] = value.values() if is_object(value) else value if is_array(value) else ()
    return any(map(has_no_number, inside))


def inline_references(
    root: Schema, definitions: Schema, *, max_nodes: float = inf, recursive: dict[int, bool] | None = None
) -> Schema:
    """Return a schema with references only to recursive types.

    Args:
        root: The schema, which is always expanded.
        definitions: The targets of its references.
        max_nodes: Maximum number of subschemas in the result. If there are more, it keeps all references.
        recursive: Whether each definition is recursive, by id, as known from earlier schemas.

    Example:
        ``inline_references(schema, schema.get("$defs", {}))``
    """
    try:
        return _Inliner(max_nodes, {} if recursive is None else recursive).document(root, definitions)
    except OverflowError:
        return _Inliner(inf, None).document(root, definitions)


def wrap_output(schema: Schema) -> Schema:
    """Return the output schema for revisions that allow only objects: the value becomes the member `result`."""
    outer = {key: schema[key] for key in ("$schema",) if key in schema}
    inner = {key: value for key, value in schema.items() if key not in outer}
    return {
        "type": "object",
        "properties": {"result": rebase_references(inner, "#/properties/result")},
        "required": ["result"],
        **outer,
    }


def drop_null(schema: Schema) -> Schema:
    """Return the schema of ``T | None`` as the schema of ``T``, for members that are omitted instead of null."""
    parts = [part for part in schema.get("anyOf", ()) if part != {"type": "null"}]
    if len(parts) != 1:
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf" and (key, value) != ("default", None)}
    return {**parts[0], **rest}


def check_schema(schema: Schema, *, object_root: bool = True) -> None:
    """Check a handwritten schema: dialect 2020-12, local references, bounded size, and an object at the root.

    Args:
        schema: The schema of a tool's arguments or result.
        object_root: Whether the root must be an object. Results can be any JSON value.

    Raises:
        ValueError: The schema breaks a rule. The message identifies the problem and its location.
    """
    if object_root and schema.get("type") != "object":
        raise ValueError('the root of the schema must have "type": "object"')
    count = 0
    pending: list[tuple[Any, str, int]] = [(schema, "#", 1)]
    while pending:
        node, where, depth = pending.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"the schema is nested deeper than {MAX_DEPTH} levels")
        if count > MAX_SCHEMAS:
            raise ValueError(f"the schema has more than {MAX_SCHEMAS} subschemas")
        if is_object(node):
            _check_identity(node, where)
            pending += [(child, "/".join(map(str, (where, *at))), depth + 1) for at, child in children(node)]


def _check_identity(node: Schema, where: str) -> None:
    dialect = node.get("$schema", DIALECT)
    if not isinstance(dialect, str) or dialect.rstrip("#") != DIALECT:
        raise ValueError(f"{where}: the dialect {dialect!r} isn't supported; use {DIALECT}")
    for keyword in ("$ref", "$dynamicRef"):
        target = node.get(keyword, "#")
        if not isinstance(target, str) or not target.startswith("#"):
            raise ValueError(
                f"{where}: {keyword} {target!r} points outside the document; references are never "
                "fetched, so use a local one"
            )


def children(node: Schema) -> Iterator[tuple[tuple[str, ...] | tuple[str, int], Any]]:
    """Iterate over the direct subschemas, each with its location: ``("items",)``, ``("properties", "a")``.

    Keywords of earlier drafts also have them: `items` can be an array, and members of `dependencies` can be names.
    """
    for keyword, value in node.items():
        if is_object(value) and keyword in MAPS:
            lists = keyword == "dependencies"
            yield from (((keyword, name), each) for name, each in value.items() if not (lists and is_array(each)))
        elif is_array(value) and (keyword in SUBSCHEMA_LISTS or keyword == "items"):
            yield from (((keyword, index), child) for index, child in enumerate(value))
        elif keyword in SUBSCHEMAS:
            yield (keyword,), value


def walk(schema: Any) -> Iterator[Schema]:
    """Yield a schema and all schemas inside it, except for booleans."""
    pending = [schema]
    while pending:
        node = pending.pop()
        if is_object(node):
            yield node
            pending += [child for _, child in children(node)][::-1]


def map_subschemas(node: Schema, change: Callable[[Any], Any]) -> Schema:
    """Return a copy of a schema in which `change` has replaced each direct subschema: ``map_subschemas(node, strip)``.

    Args:
        node: A schema object.
        change: Function that returns the replacement of a subschema.
    """
    made: Schema = {key: value.copy() if isinstance(value, list | dict) else value for key, value in node.items()}
    for (keyword, *at), child in children(node):
        if at:
            made[keyword][at[0]] = change(child)
        else:
            made[keyword] = change(child)
    return made


def drop_formats(schema: Schema, formats: Collection[str]) -> None:
    """Remove the given formats from a schema, at any depth."""
    for node in walk(schema):
        if node.get("format") in formats:
            del node["format"]


def rebase_references(node: Any, place: str) -> Any:
    """Return a schema to embed in another document at `place`, with references to its root pointing there."""
    if not is_object(node) or "$id" in node:
        return node  # References inside a subschema with an `$id` are relative to it.
    made = map_subschemas(node, lambda child: rebase_references(child, place))
    for keyword in ("$ref", "$dynamicRef"):
        reference = made.get(keyword, "")
        if reference == "#" or reference.startswith("#/"):
            made[keyword] = place + reference[1:]
    return made


class _Inliner(Struct, eq=False):
    """Rewrites one schema document. A scope is the `$defs` that references are resolved in."""

    nodes_left: float
    recursive: dict[int, bool] | None
    """Id of a definition -> whether it refers to itself, directly or through others. None to expand none."""
    hoisted: Schema = {}
    """Definitions of the recursive types, under their final names."""
    names: dict[int, str] = {}
    """Id of a recursive definition -> its final name. Two scopes can use one name for different types."""
    sources: dict[str, tuple[Schema, Schema]] = {}
    """Final name -> the definition and its scope. Equal ones share a name."""

    def document(self, root: Schema, scope: Schema) -> Schema:
        """Return the expanded root. It's expanded even when it's recursive, because its `type` must be visible."""
        result: Schema = self.expand(root, scope, is_root=True)
        return result | {"$defs": self.hoisted} if self.hoisted else result

    def expand(self, node: Any, scope: Schema, *, is_root: bool = False) -> Any:
        if not is_object(node):
            return node
        self.nodes_left -= not is_root
        if self.nodes_left < 0:
            raise OverflowError
        if "$defs" in node:
            scope = node["$defs"]
        rest = self.members({key: value for key, value in node.items() if key not in ("$ref", "$defs")}, scope)
        if "$ref" not in node:
            return rest
        name = node["$ref"].removeprefix(REF)
        target = scope[name]
        if not is_root and self.keeps(target, scope):
            return {"$ref": REF + self.hoist(name, target, scope), **rest}
        return self.members(target, scope) | rest

    def keeps(self, target: Schema, scope: Schema) -> bool:
        if self.recursive is None:
            return True
        if id(target) not in self.recursive:
            _find_recursive(target, scope, self.recursive)
        return self.recursive[id(target)]

    def hoist(self, name: str, target: Schema, scope: Schema) -> str:
        if id(target) not in self.names:
            while self.sources.setdefault(name, (target, scope)) != (target, scope):
                name += "_"
            self.names[id(target)] = name
            if name not in self.hoisted:
                self.hoisted[name] = {}
                self.hoisted[name] = self.members(target, scope)
        return self.names[id(target)]

    def members(self, node: Schema, scope: Schema) -> Schema:
        return _with_type(_for_clients(map_subschemas(node, lambda child: self.expand(child, scope))))


def _for_clients(node: Schema) -> Schema:
    """Return an equivalent schema object that current clients understand.

    Some reject arrays without `items`, or with a boolean there (VS Code). Some follow the mapping of a discriminator,
    an OpenAPI keyword, to definitions that have been inlined. Python needs the member to choose the type. Gemini's API
    and Cursor reject several types in one schema, null among choices, and alternatives without a type.
    """
    kind = node.get("type")
    if (kind == "array" or (is_array(kind) and "array" in kind)) and not is_object(node.get("items")):
        first: list[Any] = node.get("prefixItems", [])
        if node.get("items") is False:
            node.setdefault("maxItems", len(first))
        node["items"] = _items(first)
    if is_object(discriminator := node.get("discriminator")) and isinstance(
        tag := discriminator.get("propertyName"), str
    ):
        node["discriminator"] = {"propertyName": tag}
        for keyword in SUBSCHEMA_LISTS & node.keys():
            node[keyword] = [_require(tag, each) for each in node[keyword]]
    if node.get("required") == []:
        del node["required"]
    if "default" in node and node["default"] is None and kind == "number":
        del node["default"]  # NaN or infinity
    if {} in node.get("anyOf", ()):
        del node["anyOf"]  # anything is allowed
    if "enum" in node:
        node["enum"] = [*{repr(each): each for each in node["enum"]}.values()]
    several = is_array(kind) or None in node.get("enum", ())
    return _by_type(node) if several and _WHOLE.isdisjoint(node) else node


def _items(first: list[Any]) -> Schema:
    """Return a schema of any item of a tuple."""
    kinds = [*{repr(each): each for each in first}.values()]
    return {"anyOf": kinds} if len(kinds) > 1 else {**kinds[0]} if kinds and is_object(kinds[0]) else {}


_WHOLE = frozenset(("const", "not", "allOf", "anyOf", "oneOf", "if", "$ref"))
"""Keywords that, together with `type`, determine whether null is allowed."""


def _by_type(node: Schema) -> Schema:
    """Return a schema with several types, or with null among the choices, as alternatives."""
    about = {key: node.pop(key) for key in [*node] if key in _ABOUT or key.startswith(("x-", "$"))}
    kind, choices = node.pop("type", None), node.pop("enum", None)
    kinds: list[Any] = kind if is_array(kind) else [kind]
    others = [each for each in kinds if each != "null"]
    if choices is None:  # don't copy inner schemas, because copies of copies would grow with each level
        parts = [
            {"type": each} | {key: value for key, value in node.items() if _OWNERS.get(key, each) == each}
            for each in others
        ]
    else:
        node["enum"] = [each for each in choices if each is not None]
        parts = [_with_type(node | {"type": others[0]} if len(others) == 1 and others[0] else node)]
        parts = parts if node["enum"] else []
    if ("null" in kinds or kind is None) and (choices is None or None in choices):
        parts.append({"type": "null"})
    if len(parts) == 1:
        return about | parts[0]
    return {**about, "anyOf": parts} if parts else {**about, "not": {}}


_ABOUT = frozenset((
    "default", "definitions", "deprecated", "description", "else", "examples", "readOnly", "then", "title", "writeOnly",
))  # fmt: skip
"""Keywords about a value as a whole, or without an effect beside `type`."""
_OWNERS = {
    **dict.fromkeys(
        ("additionalProperties", "dependencies", "dependentRequired", "dependentSchemas", "maxProperties",
         "minProperties", "patternProperties", "properties", "propertyNames", "required", "unevaluatedProperties"),
        "object",
    ),
    **dict.fromkeys(
        ("additionalItems", "contains", "items", "maxContains", "maxItems", "minContains", "minItems", "prefixItems",
         "unevaluatedItems", "uniqueItems"),
        "array",
    ),
    "contentSchema": "string",
}  # fmt: skip
"""Keyword -> the only type that it applies to. Other keywords with schemas are in `_ABOUT` or `_WHOLE`."""


def _with_type(node: Schema) -> Schema:
    """Return a schema with the type that all choices share, if there is one."""
    kinds = {JSON_TYPES.get(type(value)) for value in node.get("enum", ())}
    return {"type": kinds.pop(), **node} if "type" not in node and len(kinds) == 1 and None not in kinds else node


def _require(name: str, node: Any) -> Any:
    if not is_object(node) or not ("$ref" in node or name in members(node.get("properties"))):
        return node
    required: list[str] = node.get("required", [])
    return node if name in required else {**node, "required": [*required, name]}


def key_schema(schema: Schema) -> Schema | None:
    """Return the schema for an object's member names, from the schema of the values that Python converts them to.

    None if every name is allowed, or if the names can't be described.
    """
    kind, choices = schema.get("type"), schema.get("enum", [schema["const"]] if "const" in schema else None)
    if choices is not None:
        return {"type": "string", "enum": [each if isinstance(each, str) else str(each) for each in choices]}
    if kind == "string":
        about = ("type", "title", "description", "default", "examples")
        return {key: value for key, value in schema.items() if key not in about} or None
    return {"pattern": _KEY_PATTERNS[kind]} if kind in _KEY_PATTERNS else None


INTEGER_KEY = "^(0|-?[1-9][0-9]*)$"
_KEY_PATTERNS = {
    "integer": INTEGER_KEY,
    "number": r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$",
}
OUR_PATTERNS = frozenset((DECIMAL, *_KEY_PATTERNS.values()))
"""Patterns that no program wrote."""


def _find_recursive(definition: Schema, scope: Schema, found: dict[int, bool]) -> None:
    """Find whether a definition, and each one reachable from it, refers to itself. Each is visited twice (Kosaraju)."""
    targets: dict[int, list[int]] = {}
    sources = defaultdict[int, list[int]](list)
    ended: list[int] = []
    pending = [(definition, False)]
    while pending:
        node, is_end = pending.pop()
        key = id(node)
        if is_end:
            ended.append(key)
        elif key not in targets and key not in found:
            references = [*_references(node, scope)]
            targets[key] = [*map(id, references)]
            for each in targets[key]:
                sources[each].append(key)
            pending += [(node, True), *((each, False) for each in references)]
    for key in reversed(ended):
        circle, before = set[int](), [key]
        while before:
            each = before.pop()
            if each not in found and each not in circle:
                circle.add(each)
                before += sources[each]
        found.update(dict.fromkeys(circle, len(circle) > 1 or key in targets[key]))


def _references(definition: Schema, scope: Schema) -> Iterator[Schema]:
    """Yield the definitions that a schema refers to."""
    pending: list[Any] = [definition]
    while pending:
        part = pending.pop()
        if not is_object(part) or "$defs" in part:
            continue  # A part with its own definitions has no references to others.
        if "$ref" in part:
            yield scope[part["$ref"].removeprefix(REF)]
        pending += [child for _, child in children(part)]
