"""What msgspec leaves out of a generated schema, or says in its own words: formats of moments, the order of choices.

Walks an annotation and its schema side by side. Where the two do not match, the schema stays as it is. `decimal_check`
walks a schema and a value: Python's `Decimal` reads and writes more texts than the schema has.
"""

import enum
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from msgspec import Meta, Struct
from msgspec.structs import fields

Schema = dict[str, Any]

Formats = Mapping[tuple[str, str], str]
FORMATS: Formats = {("datetime", "datetime"): "date-time", ("datetime", "time"): "time"}
"""Module and name of a class -> RFC 3339's name for its texts. Those without an offset are read, too."""
DECIMAL = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
r"""For some validators, other digits than ASCII's are ``\d``, too."""
_is_decimal = re.compile(DECIMAL[1:-1]).fullmatch
Find = Callable[[Any], str | None]
"""Where in a JSON value there is a text that its schema doesn't have, as in ``.prices[0]``; None for nowhere."""


def detail(node: Any, annotation: Any, definitions: Schema, formats: Formats, seen: set[str]) -> None:
    """Complete the schema of an annotation, in place.

    Args:
        node: the schema.
        annotation: what it was made of.
        definitions: where its references lead.
        formats: of moments: `FORMATS`, or none.
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


def _detail_union(node: Schema, parts: tuple[Any, ...], definitions: Schema, formats: Formats, seen: set[str]) -> None:
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
    node: Schema, origin: type, parts: tuple[Any, ...], definitions: Schema, formats: Formats, seen: set[str]
) -> None:
    if issubclass(origin, Mapping) and len(parts) == 2:
        detail(node.get("additionalProperties"), parts[1], definitions, formats, seen)
    elif origin is tuple and "prefixItems" in node:
        for item, part in zip(node["prefixItems"], parts, strict=False):
            detail(item, part, definitions, formats, seen)
    elif parts and issubclass(origin, Collection):
        detail(node.get("items"), parts[0], definitions, formats, seen)


def _detail_class(node: Schema, annotation: Any, definitions: Schema, formats: Formats, seen: set[str]) -> None:
    moment = formats.get((annotation.__module__, annotation.__name__))
    if moment is not None:
        node.setdefault("format", moment)
    elif issubclass(annotation, enum.Flag):
        node.pop("enum", None)  # several at once are another number
    elif issubclass(annotation, enum.Enum):
        _order(node, [member.value for member in annotation])
    elif any(key in node for key in ("properties", "prefixItems")) and not _is_foreign(annotation):
        names = {each.name: each.encode_name for each in fields(annotation)} if issubclass(annotation, Struct) else {}
        hints = get_type_hints(annotation, include_extras=True)
        members = node.get("properties") or dict(zip(hints, node.get("prefixItems", ()), strict=False))
        for name, hint in hints.items():
            detail(members.get(names.get(name, name)), hint, definitions, formats, seen)


def _is_foreign(annotation: Any) -> bool:
    """Whether msgspec asked somebody else for the schema of a class."""
    return not (is_dataclass(annotation) or issubclass(annotation, Struct | tuple) or hasattr(annotation, "__total__"))


def decimal_check(schema: Schema) -> Find | None:
    """What finds texts like ``NaN`` and ``1_000`` in the JSON of a value, where its schema has decimal numbers.

    None for a schema without any. Whatever else may be wrong with the value is passed over.
    """
    if repr(DECIMAL) not in repr(schema):
        return None
    return _Decimals(schema.get("$defs", {})).find(schema)


class _Decimals:
    """Makes the checks of one schema; those of recursive parts are made once."""

    __slots__ = ("_definitions", "_made")

    def __init__(self, definitions: Schema) -> None:
        self._definitions = definitions
        self._made: dict[str, Find | None] = {}

    def find(self, node: Any) -> Find | None:
        if not isinstance(node, dict):
            return None
        part = cast("Schema", node)
        if "$ref" in part:
            return self._referred(part["$ref"].rpartition("/")[2])
        if part.get("pattern") == DECIMAL:
            return lambda value: "" if isinstance(value, str) and _is_decimal(value) is None else None
        if "anyOf" in part:
            return self._alternatives(part["anyOf"])
        return self._members(part) or self._items(part)

    def _referred(self, name: str) -> Find | None:
        if name not in self._made:
            self._made[name] = None
            self._made[name] = self.find(self._definitions.get(name))
        return lambda value: None if (find := self._made[name]) is None else find(value)

    def _alternatives(self, options: list[Schema]) -> Find | None:
        found = [(option, self.find(option)) for option in options]
        if not any(find for _, find in found):
            return None

        def find(value: Any) -> str | None:
            places = [find and find(value) for option, find in found if self._may_be(option, value)]
            return None if None in places else next(iter(places), None)

        return find

    def _may_be(self, option: Schema, value: Any) -> bool:
        """Whether a value may be meant for an alternative: it's of its type, and has what tells it from others."""
        if "$ref" in option:
            option = self._definitions.get(option["$ref"].rpartition("/")[2], {})
        if value not in option.get("enum", [value]):
            return False
        if not isinstance(value, _CLASSES.get(option.get("type", ""), object)):
            return False
        if not isinstance(value, dict):
            return True
        members: Schema = option.get("properties", {})
        return all(name in value for name in option.get("required", ())) and all(
            each in members[name].get("enum", [each]) for name, each in cast("Schema", value).items() if name in members
        )

    def _members(self, node: Schema) -> Find | None:
        named = {name: find for name, each in node.get("properties", {}).items() if (find := self.find(each))}
        others = self.find(node.get("additionalProperties"))
        if not named and others is None:
            return None

        def places(value: Any) -> Iterator[str | None]:
            for name, each in cast("Schema", value).items():
                find = named.get(name)
                if find is not None:
                    yield _below(f".{name}", find(each))
                elif others is not None:
                    yield _below("[...]", others(each))

        return lambda value: _first(places(cast("Any", value))) if isinstance(value, dict) else None

    def _items(self, node: Schema) -> Find | None:
        first = [self.find(each) for each in node.get("prefixItems", ())]
        others = self.find(node.get("items"))
        if others is None and not any(first):
            return None

        def places(value: Any) -> Iterator[str | None]:
            for index, each in enumerate(cast("list[Any]", value)):
                find = first[index] if index < len(first) else others
                if find is not None:
                    yield _below(f"[{index}]", find(each))

        return lambda value: _first(places(cast("Any", value))) if isinstance(value, list) else None


_CLASSES: Mapping[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float),
    "null": NoneType,
}  # fmt: skip


def _below(step: str, place: str | None) -> str | None:
    return None if place is None else step + place


def _first(places: Iterator[str | None]) -> str | None:
    return next((place for place in places if place is not None), None)
