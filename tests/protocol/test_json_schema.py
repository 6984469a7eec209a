"""JSON Schema from types: inlined, concise, and valid 2020-12. Also the limits on handwritten schemas."""

import datetime as dt
import enum
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, Required, TypedDict, TypeVar

import msgspec
import pytest
from jsonschema import Draft202012Validator
from msgspec import Meta

from cases import for_each
from millstream._protocol.json_schema import (
    DIALECT,
    MAX_DEPTH,
    MAX_SCHEMAS,
    Schema,
    check_schema,
    drop_null,
    inline_references,
    is_integral,
    wrap_output,
)
from plans import schema_of


@dataclass
class Address:
    street: str
    city: Annotated[str, Meta(title="Town", description="Where.")] = "Ulm"


@dataclass
class Tree:
    value: int
    children: "list[Tree]" = dataclass_field(default_factory=list)


@dataclass
class Odd:
    even: "Even | None" = None


@dataclass
class Even:
    address: Address
    odd: Odd | None = None


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


class Movie(TypedDict, total=False):
    title: str


T = TypeVar("T")
K = TypeVar("K")
Moment = NewType("Moment", dt.datetime)


class Event(TypedDict, total=False):
    at: Required[dt.datetime]
    until: NotRequired[Moment]
    color: NotRequired[Color]
    colors: NotRequired[dict[Color, list]]  # type: ignore[type-arg]  # as people write it


@dataclass
class Box(Generic[T]):
    content: T
    others: Annotated[list[T], Meta(examples=[[]])]


class Entry(msgspec.Struct, Generic[K, T]):
    keys: dict[K, T]
    next: "Entry[K, T] | None" = None


@dataclass
class Dated(Box[int], Generic[T]):
    date: T


@dataclass
class Later(Dated[T], Generic[T, K]):
    pass


class Held(msgspec.Struct, Generic[T]):
    content: T


class Named(Held[int], Generic[T]):
    date: T


class Cell(NamedTuple, Generic[T]):
    content: T


class Documented(msgspec.Struct):
    """What it is."""

    a: int


class Empty(msgspec.Struct):
    pass


ADDRESS: Schema = {
    "type": "object",
    "properties": {
        "street": {"type": "string"},
        "city": {"type": "string", "title": "Town", "description": "Where.", "default": "Ulm"},
    },
    "required": ["street"],
}
CASES: list[tuple[Any, Schema]] = [
    (int, {"type": "integer"}),
    (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
    (Any, {}),
    (dict[str, Address], {"type": "object", "additionalProperties": ADDRESS}),
    (Address, ADDRESS),
    (Address | None, {"anyOf": [ADDRESS, {"type": "null"}]}),
    (tuple[int, Address], {"type": "array", "prefixItems": [{"type": "integer"}, ADDRESS],
                           "items": {"anyOf": [{"type": "integer"}, ADDRESS]},
                           "minItems": 2, "maxItems": 2}),
    (Color, {"type": "string", "enum": ["red", "blue"]}),
    (Level, {"type": "integer", "enum": [1, 2]}),
    (Literal["a", 1], {"enum": ["a", 1]}),
    (Literal["a"] | None, {"anyOf": [{"type": "string", "const": "a"}, {"type": "null"}]}),
    (Movie, {"type": "object", "properties": {"title": {"type": "string"}}}),
    (Documented, {"type": "object", "description": "What it is.", "properties": {"a": {"type": "integer"}},
                  "required": ["a"]}),
    (Annotated[Address, Meta(title="Home", description="Yours.")],
     ADDRESS | {"title": "Home", "description": "Yours."}),
]  # fmt: skip


@for_each(("annotation", "expected"), CASES)
def test_types_become_inlined_schemas_without_class_names_as_titles(annotation: Any, expected: Schema) -> None:
    schema = schema_of(annotation)
    assert schema == expected
    Draft202012Validator.check_schema(schema)


COLOR: Schema = {"type": "string", "enum": ["red", "blue"]}
MOMENT: Schema = {"type": "string", "format": "date-time"}


def test_members_of_typed_dicts_are_described_completely() -> None:
    assert schema_of(Event)["properties"] == {
        "at": MOMENT,
        "until": MOMENT,
        "color": COLOR,
        "colors": {"type": "object", "additionalProperties": {"type": "array", "items": {}}, "propertyNames": COLOR},
    }


def test_inherited_members_keep_the_types_that_a_generic_class_gives_its_base() -> None:
    for inherited in (Dated[dt.datetime], Later[dt.datetime, int], list[Named[dt.datetime]]):
        made = schema_of(inherited)
        members = made.get("items", made)["properties"]
        assert members["content"] == {"type": "integer"}
        assert members["date"] == {"type": "string", "format": "date-time"}


def test_own_schema_for_the_names_of_a_mapping_is_kept() -> None:
    own = Meta(extra_json_schema={"propertyNames": {"maxLength": 3}})
    assert schema_of(Annotated[dict[int, int], own])["propertyNames"] == {"maxLength": 3}


def test_members_of_generic_types_are_described_completely() -> None:
    others = {"type": "array", "items": COLOR, "examples": [[]]}
    box = {"type": "object", "properties": {"content": COLOR, "others": others}, "required": ["content", "others"]}
    assert schema_of(Box[Color]) == box
    assert schema_of(list[Box[Color]])["items"] == box
    assert schema_of(Cell[dt.datetime])["prefixItems"] == [MOMENT]
    entry = schema_of(Entry[Color, dt.datetime])
    keys = {"type": "object", "additionalProperties": MOMENT, "propertyNames": COLOR}
    assert entry["properties"]["keys"] == keys
    [definition] = entry["$defs"].values()
    assert definition["properties"]["keys"] == keys


def test_only_recursive_types_keep_references_and_the_root_shows_its_own_type() -> None:
    schema = schema_of(Tree)
    body = {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
        "required": ["value"],
    }
    assert schema == {**body, "$defs": {"Tree": body}}
    validator = Draft202012Validator(schema)
    assert validator.is_valid({"value": 1, "children": [{"value": 2}]})
    assert not validator.is_valid({"value": 1, "children": [{"value": "2"}]})


def test_mutually_recursive_types_keep_references() -> None:
    schema = schema_of(list[Odd | None])
    [even, _] = schema["$defs"]["Odd"]["properties"]["even"]["anyOf"]
    assert even["properties"]["address"] == ADDRESS
    Draft202012Validator.check_schema(schema)
    assert not Draft202012Validator(schema).is_valid([{"even": {"odd": {}}}])
    assert Draft202012Validator(schema).is_valid([{"even": {"address": {"street": "s"}, "odd": {}}}])


class Bought(msgspec.Struct, tag=True):
    at: dt.datetime
    color: Color


class Sold(msgspec.Struct, tag=True, array_like=True):
    at: dt.datetime
    color: Color


class Lost(msgspec.Struct, tag=True):
    color: Literal["red", "blue"]


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


def test_tagged_structs_beside_other_types_are_described_completely() -> None:
    assert schema_of(Sold)["prefixItems"][1:] == [MOMENT, COLOR]
    [structs, number, null] = schema_of(Bought | Lost | int | None)["anyOf"]
    assert (number, null) == ({"type": "integer"}, {"type": "null"})
    assert structs["anyOf"][0]["properties"].items() >= {"at": MOMENT, "color": COLOR}.items()
    assert structs["anyOf"][1]["properties"]["color"] == COLOR


def test_alternatives_of_a_list_are_not_those_of_its_items() -> None:
    """Only in a union does msgspec merge them."""
    assert schema_of(Sold)["prefixItems"][1:] == [MOMENT, COLOR]


def test_combined_flags_are_allowed() -> None:
    schema = schema_of(dict[Rights, list[Rights]])
    assert schema["additionalProperties"]["items"] == {"type": "integer"}
    assert Draft202012Validator(schema).is_valid({"3": [3]})


NODE: Schema = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}, "leaf": {"$ref": "#/$defs/Leaf"}}}
FOREIGN: Schema = {"$ref": "#/$defs/Node", "$defs": {"Node": NODE, "Leaf": {"type": "integer"}}}
OTHER: Schema = {
    "type": "object",
    "properties": {"nodes": {"$ref": "#/$defs/Node"}},
    "$defs": {"Node": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
}
"""Two schemas whose definitions have the same name."""


def test_parts_can_have_definitions_of_their_own_with_the_same_names() -> None:
    pair = {"type": "object", "properties": {"one": FOREIGN, "two": {"type": "array", "items": OTHER}}}
    schema = inline_references(pair, {})
    Draft202012Validator.check_schema(schema)
    assert set(schema["$defs"]) == {"Node", "Node_"}
    validator = Draft202012Validator(schema)
    assert validator.is_valid({"one": {"next": {"leaf": 1}}, "two": [{"nodes": [[], [[]]]}]})
    assert not validator.is_valid({"one": {"next": {"leaf": "1"}}, "two": []})
    assert not validator.is_valid({"one": {}, "two": [{"nodes": [1]}]})


@dataclass
class Twice:
    one: Address
    two: Address
    pair: tuple[int, str]


def test_types_used_twice_without_recursion_are_inlined_twice() -> None:
    schema = schema_of(list[Twice])
    assert schema["items"]["properties"]["one"] == schema["items"]["properties"]["two"] == ADDRESS
    assert "$defs" not in schema


@dataclass
class Broken:
    part: "Nowhere"  # type: ignore[name-defined]  # noqa: F821 - the subject


def test_unresolvable_annotations_raise_type_error() -> None:
    with pytest.raises(TypeError, match=r"Broken can't be resolved.*Nowhere"):
        schema_of(Broken)


def test_references_at_the_root_are_expanded() -> None:
    schema = inline_references(FOREIGN, {})
    assert schema["type"] == "object"
    assert Draft202012Validator(schema).is_valid({"next": {"next": {"leaf": 3}}})
    assert not Draft202012Validator(schema).is_valid({"next": {"next": {"leaf": ""}}})


def test_unknown_types_raise_type_error() -> None:
    for unknown in (complex, msgspec.defstruct("Holder", [("value", complex)])):
        with pytest.raises(TypeError, match="complex isn't supported"):
            schema_of(unknown)


def test_structs_always_have_properties() -> None:
    assert schema_of(Empty) == {"type": "object", "properties": {}}


def test_wrapped_outputs_keep_definitions_at_the_root() -> None:
    """MCP 2025-11-25, server/tools."""
    schema = wrap_output({"$schema": DIALECT, **schema_of(list[Tree])})
    assert schema["$schema"] == DIALECT
    assert schema["required"] == ["result"]
    assert Draft202012Validator(schema).is_valid({"result": [{"value": 1}]})
    assert not Draft202012Validator(schema).is_valid({"result": [{"value": ""}]})
    assert wrap_output({"type": "integer"}) == {
        "type": "object", "properties": {"result": {"type": "integer"}}, "required": ["result"]
    }  # fmt: skip


@for_each(
    "schema",
    [
        {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"$ref": "#"}]}},
        {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"$ref": "#/prefixItems/0"}},
        {"type": "array", "items": {"$ref": "#/definitions/n"}, "definitions": {"n": {"type": "integer"}}},
        {"type": "array", "items": {"$ref": "#n"}, "$defs": {"n": {"$anchor": "n", "type": "integer"}}},
        {"$id": "https://x/y", "type": "array", "items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "integer"}}},
    ],
)
def test_references_inside_wrapped_schemas_still_resolve(schema: Schema) -> None:
    wrapped = Draft202012Validator(wrap_output(schema))
    assert wrapped.is_valid({"result": [1, 2]})
    assert not wrapped.is_valid({"result": [1, "2"]})
    assert not wrapped.is_valid({"result": {}})


GOOD: list[Schema] = [
    {"type": "object"},
    {"$schema": DIALECT, "type": "object"},
    {"$schema": DIALECT + "#", "type": "object"},
    {"type": "object", "additionalProperties": False},
    {"type": "object", "properties": {"$ref": {"type": "string"}, "a": {"$ref": "#/$defs/x"}}, "$defs": {"x": True}},
    {"type": "object", "properties": {"a": {"const": {"$ref": "https://x"}, "default": {"$schema": 1}}}},
    {"type": "object", "allOf": [{"anyOf": [{"required": ["a"]}]}], "if": {"not": {}}, "then": {}, "else": False},
]


@for_each("schema", GOOD)
def test_hand_written_schemas_in_the_supported_dialect_pass(schema: Schema) -> None:
    """MCP 2025-11-25, basic."""
    check_schema(schema)


BAD: list[tuple[Schema, str]] = [
    ({}, "root"),
    ({"type": "array"}, "root"),
    ({"type": ["object", "null"]}, "root"),
    ({"type": "object", "$schema": "http://json-schema.org/draft-07/schema#"}, "dialect"),
    ({"type": "object", "$schema": 7}, "dialect"),
    ({"type": "object", "properties": {"a": {"$ref": "https://example.com/a"}}}, "#/properties/a: .* never fetched"),
    ({"type": "object", "properties": {"a": {"$ref": "other.json#/a"}}}, "never fetched"),
    ({"type": "object", "items": {"$dynamicRef": "file:///etc/passwd"}}, "never fetched"),
    ({"type": "object", "$defs": {"a": {"oneOf": [{"$ref": 7}]}}}, "never fetched"),
]


@for_each(("schema", "text"), BAD)
def test_unsupported_hand_written_schemas_are_rejected_with_their_path(schema: Schema, text: str) -> None:
    """MCP 2025-11-25, basic."""
    with pytest.raises(ValueError, match=text):
        check_schema(schema)


def test_hand_written_schemas_are_bounded_in_depth_and_size() -> None:
    """MCP 2025-11-25, basic."""

    def nested(depth: int) -> Schema:
        schema: Schema = {}
        for _ in range(depth - 2):
            schema = {"items": schema}
        return {"type": "object", "properties": {"a": schema}}

    check_schema(nested(MAX_DEPTH))
    with pytest.raises(ValueError, match="deeper"):
        check_schema(nested(MAX_DEPTH + 1))

    def wide(count: int) -> Schema:
        return {"type": "object", "properties": {str(index): True for index in range(count - 1)}}

    check_schema(wide(MAX_SCHEMAS))
    with pytest.raises(ValueError, match="more than"):
        check_schema(wide(MAX_SCHEMAS + 1))


def test_removing_null_from_a_schema_gives_the_inner_type() -> None:
    text = {"type": "string"}
    nullable = {"anyOf": [text, {"type": "null"}], "title": "T", "default": None}
    assert drop_null(nullable) == {"type": "string", "title": "T"}
    assert drop_null({**nullable, "default": "d"})["default"] == "d"
    for other in (text, {"anyOf": [text, {"type": "integer"}]}):
        assert drop_null(other) is other


def test_whole_floats_of_any_size_are_integers() -> None:
    """JSON Schema 2020-12 core §4.2.3: 1.0 is an integer, and so is every number without a fraction."""
    values = [is_integral(value) for value in (1.0, 1.5, "1.0", True, 2.0**70)]
    assert values == [1, 1.5, "1.0", True, 2**70]
    assert [type(value) for value in values] == [int, float, str, bool, int]
