"""JSON Schema 2020-12 for annotations, and a bounded check of schemas written by hand.

msgspec generates; this module inlines its `$ref`s (many models read inlined schemas better), keeps them only where a
type is recursive, drops the titles that merely repeat a class name, and adds what msgspec leaves out: formats of
moments, and the order of choices. Types that msgspec does not know are asked of a hook.
Nothing is ever fetched: a `$ref` that leaves the document is refused (MCP 2026-07-28, basic).
"""

import enum
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from math import isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, cast, get_args, get_origin, get_type_hints

from msgspec import Meta, Struct
from msgspec.json import schema_components
from msgspec.structs import fields

Schema = dict[str, Any]
SchemaHook = Callable[[type], Schema]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAX_DEPTH = 64
MAX_SCHEMAS = 10_000

REF = "#/$defs/"
# Keywords by what they hold (2020-12 core §10 and §11); every other keyword is data and is not walked.
SINGLE = frozenset(
    ("additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then",
     "unevaluatedItems", "unevaluatedProperties")
)  # fmt: skip
LISTS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
MAPS = frozenset(("$defs", "definitions", "dependentSchemas", "patternProperties", "properties"))
LOOSE = frozenset(("date-time", "time", "duration"))
"""Formats that Python's texts don't always have: a moment may have no offset, and a duration may be negative or have a
fraction. The validators of some clients refuse these.
"""
MOMENTS: Mapping[tuple[str, str], str] = {("datetime", "datetime"): "date-time", ("datetime", "time"): "time"}
"""Module and name of a class -> RFC 3339's name for its texts. Those without an offset are read, too."""
DECIMAL = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
r"""For some validators, other digits than ASCII's are ``\d``, too."""
NO_NUMBER = "got NaN or an infinity, and JSON has no number for these"
JSON_TYPES: dict[Any, str] = {str: "string", int: "integer", bool: "boolean"}


def type_text(annotation: Any) -> str:
    """A type as people write it: without the modules that its parts come from, and our `Field` by its name."""
    if isinstance(annotation, type) and not get_args(annotation):
        return drop_modules(annotation.__name__)
    functions_by_name = re.sub(r"<function (\S+) at 0x[0-9a-fA-F]+>", r"\1", repr(annotation))
    return re.sub(r"\bMeta\(", "Field(", drop_modules(functions_by_name))


def drop_modules(text: str) -> str:
    """A text about types without the modules that they come from."""
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?:<locals>\.)?(?=[A-Za-z_])", "", text)


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON value is an object."""
    return isinstance(value, dict)


def is_array(value: Any) -> TypeGuard[list[Any]]:
    """Whether a JSON value is an array."""
    return isinstance(value, list)


def members(value: Any) -> dict[str, Any]:
    """The members of a JSON object; none of any other value."""
    return value if is_object(value) else {}


def value_at(value: Any, path: Iterable[str]) -> Any:
    """The value at a path of members; None where there is none."""
    for name in path:
        if not isinstance(value, (dict, Mapping)):  # nearly always a dict, and that is known at once
            return None
        value = cast("Mapping[str, Any]", value).get(name)
    return value


def is_integral(value: Any) -> Any:
    """``2.0`` as 2: JSON Schema counts both as integers, msgspec's decoder only the second."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def has_no_number(value: Any) -> bool:
    """Whether a value holds a float that JSON cannot write: what is encoded instead is null."""
    if isinstance(value, float):
        return not isfinite(value)
    inside: Iterable[Any] = value.values() if is_object(value) else value if is_array(value) else ()
    return any(map(has_no_number, inside))


def schema_of(annotation: Any, *, hook: SchemaHook | None = None, written: bool = False) -> Schema:
    """The schema of a type, with references only to recursive types.

    Args:
        annotation: anything msgspec can decode, or that `hook` knows.
        hook: gives the schema of a class that msgspec does not know; raises NotImplementedError for others.
        written: of what is written, and not read: it promises no format that only some values have, see `LOOSE`.

    Raises:
        TypeError: when neither knows the type.
    """

    try:
        (root,), components = schema_components((annotation,), schema_hook=hook, ref_template=REF + "{name}")
    except NameError as error:
        raise TypeError(f"an annotation inside {type_text(annotation)} cannot be resolved: {error}") from error
    _write_decimals(root)
    for component in components.values():
        _write_decimals(component)
        component.pop("title", None)  # the name of the class; titles that users give stand beside the `$ref`
    document = inline_references(root, components)
    detail(document, annotation, document.get("$defs", {}), {} if written else MOMENTS, set())
    return drop_formats(document, {"duration"}) if written else document


def inline_references(root: Schema, definitions: Schema) -> Schema:
    """Return a schema with references only to recursive types.

    Args:
        root: the schema, which is always expanded.
        definitions: where its references lead.
    """
    return _Inliner().document(root, definitions)


def _write_decimals(node: Any) -> None:
    """Give decimal numbers their pattern, instead of a format of msgspec's own."""
    if not is_object(node):
        return
    if node.get("type") == "string" and node.get("format") == "decimal":
        del node["format"]
        node["pattern"] = DECIMAL
    for _, child in children(node):
        _write_decimals(child)


def object_schema(annotation: Any, *, hook: SchemaHook | None = None) -> Schema:
    """`schema_of` for what must be an object at the root; it always has `properties`, which some clients require.

    Raises:
        TypeError: when the type is not an object, or unknown.
    """
    schema = schema_of(annotation, hook=hook)
    if schema.get("type") != "object":
        raise TypeError(
            f"{type_text(annotation)} is not an object type: use a dataclass, Struct, TypedDict or pydantic model"
        )
    schema.setdefault("properties", {})
    if not schema.get("required", True):
        del schema["required"]
    return schema


def wrap_output(schema: Schema) -> Schema:
    """The schema for revisions that know only objects as output: the value is their `result`."""
    outer = {key: schema[key] for key in ("$schema",) if key in schema}
    inner = {key: value for key, value in schema.items() if key not in outer}
    return {
        "type": "object",
        "properties": {"result": rebase_references(inner, "#/properties/result")},
        "required": ["result"],
        **outer,
    }


def drop_null(schema: Schema) -> Schema:
    """The schema of ``T | None`` as that of ``T``: for places that leave a value out instead of sending null."""
    parts = [part for part in schema.get("anyOf", ()) if part != {"type": "null"}]
    if len(parts) != 1:
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf" and (key, value) != ("default", None)}
    return {**parts[0], **rest}


def check_schema(schema: Schema, *, object_root: bool = True) -> None:
    """Check a schema written by hand: an object at the root, 2020-12, local references, bounded size.

    Args:
        schema: of the arguments or the result of a tool.
        object_root: false for results, which may be any JSON value.

    Raises:
        ValueError: saying what is wrong and where.
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
            raise ValueError(f"the schema has more than {MAX_SCHEMAS} sub-schemas")
        if isinstance(node, bool):
            continue
        if not is_object(node):
            raise ValueError(f"{where}: a schema is an object or a boolean")
        _check_identity(node, where)
        try:
            pending += [(child, "/".join(map(str, (where, *at))), depth + 1) for at, child in children(node)]
        except ValueError as error:
            raise ValueError(f"{where}/{error}") from None


def _check_identity(node: Schema, where: str) -> None:
    dialect = node.get("$schema", DIALECT)
    if not isinstance(dialect, str) or dialect.rstrip("#") != DIALECT:
        raise ValueError(f"{where}: the dialect {dialect!r} is not supported; only {DIALECT} is")
    for keyword in ("$ref", "$dynamicRef"):
        target = node.get(keyword, "#")
        if not isinstance(target, str) or not target.startswith("#"):
            raise ValueError(f"{where}: {keyword} {target!r} leaves the document; references are never fetched")


def children(node: Schema) -> Iterator[tuple[tuple[str, ...] | tuple[str, int], Any]]:
    """The schemas directly inside one, each with where it stands: ``("items",)``, ``("properties", "a")``.

    Raises:
        ValueError: a keyword does not hold what it should, naming it.
    """
    for keyword, value in node.items():
        if keyword in SINGLE:
            yield (keyword,), value
        elif keyword in LISTS:
            if not is_array(value):
                raise ValueError(f"{keyword}: must be an array of schemas")
            yield from (((keyword, index), child) for index, child in enumerate(value))
        elif keyword in MAPS:
            if not is_object(value):
                raise ValueError(f"{keyword}: must be an object of schemas")
            yield from (((keyword, name), child) for name, child in value.items())


def rebuild(node: Schema, change: Callable[[Any], Any]) -> Schema:
    """A copy of a schema, each schema directly inside it replaced by what `change` makes of it."""
    made = {key: value.copy() if key in LISTS or key in MAPS else value for key, value in node.items()}
    for (keyword, *at), child in children(node):
        if at:
            made[keyword][at[0]] = change(child)
        else:
            made[keyword] = change(child)
    return made


def drop_formats(node: Any, formats: Collection[str]) -> Any:
    """A copy of a schema without some formats, wherever they stand in it."""
    if not is_object(node):
        return node
    made = rebuild(node, lambda child: drop_formats(child, formats))
    if made.get("format") in formats:
        del made["format"]
    return made


def rebase_references(node: Any, place: str) -> Any:
    """A schema that is to stand at `place` of another document: references to its own root point there instead."""
    if not is_object(node) or "$id" in node:
        return node  # references inside a document with a name of its own count from there
    made = rebuild(node, lambda child: rebase_references(child, place))
    for keyword in ("$ref", "$dynamicRef"):
        reference = made.get(keyword, "")
        if reference == "#" or reference.startswith("#/"):
            made[keyword] = place + reference[1:]
    return made


class _Inliner:
    """Rewrites one schema document. A scope is the `$defs` that references of a part point into."""

    __slots__ = ("hoisted", "names")

    def __init__(self) -> None:
        self.hoisted: Schema = {}
        """Definitions of the recursive types, under their final names."""
        self.names: dict[int, str] = {}
        """Identity of a recursive definition → its final name: two scopes may use one name for different types."""

    def document(self, root: Schema, scope: Schema) -> Schema:
        """The root is always expanded, even when it is recursive: it needs its `type` in plain sight."""
        if "$defs" in root:
            scope = root["$defs"]
        target, siblings = self.target(root, scope)
        result = self.members(target, scope) | self.members(siblings, scope)
        return result | {"$defs": self.hoisted} if self.hoisted else result

    def target(self, node: Schema, scope: Schema) -> tuple[Schema, Schema]:
        """The schema that a node refers to (an empty one for none), and the keywords beside the reference."""
        siblings = {key: value for key, value in node.items() if key not in ("$ref", "$defs")}
        return scope[node["$ref"].removeprefix(REF)] if "$ref" in node else {}, siblings

    def expand(self, node: Any, scope: Schema) -> Any:
        if not is_object(node):
            return node
        if "$defs" in node:
            scope = node["$defs"]
        target, siblings = self.target(node, scope)
        rest = self.members(siblings, scope)
        if "$ref" not in node:
            return rest
        if _reaches(target, target, scope):
            return {"$ref": REF + self.hoist(node["$ref"].removeprefix(REF), target, scope), **rest}
        return self.members(target, scope) | rest

    def hoist(self, name: str, target: Schema, scope: Schema) -> str:
        if id(target) not in self.names:
            while name in self.hoisted:
                name += "_"
            self.names[id(target)] = name
            self.hoisted[name] = {}
            self.hoisted[name] = self.members(target, scope)
        return self.names[id(target)]

    def members(self, node: Schema, scope: Schema) -> Schema:
        result = rebuild(node, lambda child: self.expand(child, scope))
        if "enum" in result and "type" not in result:
            values: list[Any] = result["enum"]
            kinds = {JSON_TYPES.get(type(value)) for value in values}
            if len(kinds) == 1 and None not in kinds:
                result = {"type": kinds.pop(), **result}
        return result


def _reaches(node: Schema, goal: Schema, scope: Schema) -> bool:
    """Whether a definition refers to `goal`, directly or through others."""
    seen: set[int] = set()
    pending: list[Any] = [node]
    while pending:
        part = pending.pop()
        if not is_object(part) or "$defs" in part:
            continue  # a part with definitions of its own comes from the hook and knows nothing of ours
        if "$ref" in part:
            target = scope[part["$ref"].removeprefix(REF)]
            if target is goal:
                return True
            if id(target) not in seen:
                seen.add(id(target))
                pending.append(target)
        pending += [child for _, child in children(part)]
    return False


def detail(
    node: Any, annotation: Any, definitions: Schema, formats: Mapping[tuple[str, str], str], seen: set[str]
) -> None:
    """Complete the schema of an annotation, in place.

    Args:
        node: the schema.
        annotation: what it was made of.
        definitions: where its references lead.
        formats: of moments: `MOMENTS`, or none.
        seen: the references that were followed.
    """
    if not isinstance(node, dict):
        return
    part = cast("Schema", node)
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        if name in definitions and name not in seen:
            detail(definitions[name], annotation, definitions, formats, seen | {name})
        return
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if not any(isinstance(item, Meta) and item.tz is False for item in parts[1:]):
            detail(part, parts[0], definitions, formats, seen)
    elif origin in (Union, UnionType):
        _detail_union(part, parts, definitions, formats, seen)
    elif origin is Literal:
        _order(part, parts)
    elif isinstance(origin, type):
        _detail_items(part, origin, parts, definitions, formats, seen)
    elif isinstance(annotation, type):
        _detail_class(part, annotation, definitions, formats, seen)


def _detail_union(
    node: Schema, parts: tuple[Any, ...], definitions: Schema, formats: Mapping[tuple[str, str], str], seen: set[str]
) -> None:
    members = [each for each in node.get("anyOf", ()) if each != {"type": "null"}]
    others = [each for each in parts if each is not NoneType]
    others.sort(key=lambda each: isinstance(each, type) and issubclass(each, Struct))  # msgspec lists them last
    if len(members) == len(others):
        for member, other in zip(members, others, strict=True):
            detail(member, other, definitions, formats, seen)


def _order(node: Schema, choices: Collection[Any]) -> None:
    order = list(choices)
    if len(node.get("enum", ())) == len(order) and all(each in order for each in node["enum"]):
        node["enum"] = order


def _detail_items(
    node: Schema,
    origin: type,
    parts: tuple[Any, ...],
    definitions: Schema,
    formats: Mapping[tuple[str, str], str],
    seen: set[str],
) -> None:
    if issubclass(origin, Mapping) and len(parts) == 2:
        detail(node.get("additionalProperties"), parts[1], definitions, formats, seen)
    elif origin is tuple and "prefixItems" in node:
        for item, part in zip(node["prefixItems"], parts, strict=False):
            detail(item, part, definitions, formats, seen)
    elif parts and issubclass(origin, Collection):
        detail(node.get("items"), parts[0], definitions, formats, seen)


def _detail_class(
    node: Schema, annotation: Any, definitions: Schema, formats: Mapping[tuple[str, str], str], seen: set[str]
) -> None:
    moment = formats.get((annotation.__module__, annotation.__name__))
    if moment is not None:
        node.setdefault("format", moment)
    elif issubclass(annotation, enum.Flag):
        node.pop("enum", None)  # several at once are another number
    elif issubclass(annotation, enum.Enum):
        _order(node, [member.value for member in annotation])
    elif any(key in node for key in ("properties", "prefixItems")):
        names = {each.name: each.encode_name for each in fields(annotation)} if issubclass(annotation, Struct) else {}
        hints = get_type_hints(annotation, include_extras=True)
        members = node.get("properties") or dict(zip(hints, node.get("prefixItems", ()), strict=False))
        for name, hint in hints.items():
            detail(members.get(names.get(name, name)), hint, definitions, formats, seen)
