"""What msgspec leaves out of a generated schema, or says in its own words: formats of moments, the order of choices.

Walks an annotation and its schema side by side. Where the two do not match, the schema stays as it is.
"""

import decimal
import enum
from collections.abc import Collection, Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from msgspec import Meta, Struct
from msgspec.structs import fields

Schema = dict[str, Any]

FORMATS: Mapping[tuple[str, str], str] = {("datetime", "datetime"): "date-time", ("datetime", "time"): "time"}
"""Module and name of a class -> RFC 3339's name for its texts. Those without an offset are read, too."""
DECIMAL = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def detail(node: Any, annotation: Any, definitions: Schema, seen: set[str]) -> None:
    """Complete the schema of an annotation, in place.

    Args:
        node: the schema.
        annotation: what it was made of.
        definitions: where its references lead.
        seen: the references that were followed.
    """
    if not isinstance(node, dict):
        return
    part = cast("Schema", node)
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        if name in definitions and name not in seen:
            detail(definitions[name], annotation, definitions, seen | {name})
        return
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if not any(isinstance(item, Meta) and item.tz is False for item in parts[1:]):
            detail(part, parts[0], definitions, seen)
    elif origin in (Union, UnionType):
        _detail_union(part, parts, definitions, seen)
    elif origin is Literal:
        _order(part, parts)
    elif isinstance(origin, type):
        _detail_items(part, origin, parts, definitions, seen)
    elif isinstance(annotation, type):
        _detail_class(part, annotation, definitions, seen)


def _detail_union(node: Schema, parts: tuple[Any, ...], definitions: Schema, seen: set[str]) -> None:
    members = [each for each in node.get("anyOf", ()) if each != {"type": "null"}]
    others = [each for each in parts if each is not NoneType]
    others.sort(key=lambda each: isinstance(each, type) and issubclass(each, Struct))  # msgspec lists them last
    if len(members) == len(others):
        for member, other in zip(members, others, strict=True):
            detail(member, other, definitions, seen)


def _order(node: Schema, choices: Collection[Any]) -> None:
    order = list(choices)
    if len(node.get("enum", ())) == len(order) and all(each in order for each in node["enum"]):
        node["enum"] = order


def _detail_items(node: Schema, origin: type, parts: tuple[Any, ...], definitions: Schema, seen: set[str]) -> None:
    if issubclass(origin, Mapping) and len(parts) == 2:
        detail(node.get("additionalProperties"), parts[1], definitions, seen)
    elif origin is tuple and "prefixItems" in node:
        for item, part in zip(node["prefixItems"], parts, strict=False):
            detail(item, part, definitions, seen)
    elif parts and issubclass(origin, Collection):
        detail(node.get("items"), parts[0], definitions, seen)


def _detail_class(node: Schema, annotation: Any, definitions: Schema, seen: set[str]) -> None:
    moment = FORMATS.get((annotation.__module__, annotation.__name__))
    if moment is not None:
        node.setdefault("format", moment)
    elif annotation is decimal.Decimal:
        node.pop("format", None)
        node["pattern"] = DECIMAL
    elif issubclass(annotation, enum.Enum):
        _order(node, [member.value for member in annotation])
    elif any(key in node for key in ("properties", "prefixItems")) and not _is_foreign(annotation):
        names = {each.name: each.encode_name for each in fields(annotation)} if issubclass(annotation, Struct) else {}
        hints = get_type_hints(annotation, include_extras=True)
        members = node.get("properties") or dict(zip(hints, node.get("prefixItems", ()), strict=False))
        for name, hint in hints.items():
            detail(members.get(names.get(name, name)), hint, definitions, seen)


def _is_foreign(annotation: Any) -> bool:
    """Whether msgspec asked somebody else for the schema of a class."""
    return not (is_dataclass(annotation) or issubclass(annotation, Struct | tuple) or hasattr(annotation, "__total__"))
