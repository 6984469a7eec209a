"""Formats of moments and the order of choices, wherever in a type they stand."""

import datetime as dt
import decimal
import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pytest
from jsonschema import Draft202012Validator
from msgspec import Meta

from millstream._protocol.json_schema import Schema, schema_of
from millstream._protocol.schema_details import DECIMAL, decimal_check


class Size(enum.Enum):
    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


SIZE: Schema = {"type": "string", "enum": ["small", "medium", "large"]}
MOMENT: Schema = {"type": "string", "format": "date-time"}


@dataclass
class Event:
    at: dt.datetime
    size: Size = Size.SMALL
    children: "list[Event]" = field(default_factory=list)


class Renamed(msgspec.Struct, rename="camel"):
    starts_at: dt.time
    how_large: Size | None = None


class Loose(TypedDict, total=False):
    at: Annotated[dt.datetime, Meta(description="When.")]


class Pair(NamedTuple):
    at: dt.datetime
    size: Size


class Cat(msgspec.Struct, tag=True):
    born: dt.datetime


class Dog(msgspec.Struct, tag=True):
    size: Size


CASES: list[tuple[Any, Schema]] = [
    (dt.datetime, MOMENT),
    (dt.time, {"type": "string", "format": "time"}),
    (dt.date, {"type": "string", "format": "date"}),
    (Annotated[dt.datetime, Meta(tz=False)], {"type": "string"}),
    (Annotated[dt.datetime, Meta(tz=True)], MOMENT),
    (Annotated[dt.datetime, Meta(title="T")], {**MOMENT, "title": "T"}),
    (dt.datetime | None, {"anyOf": [MOMENT, {"type": "null"}]}),
    (int | dt.datetime, {"anyOf": [{"type": "integer"}, MOMENT]}),
    (list[dt.datetime], {"type": "array", "items": MOMENT}),
    (Sequence[Size], {"type": "array", "items": SIZE}),
    (dict[str, dt.datetime], {"type": "object", "additionalProperties": MOMENT}),
    (Size, SIZE),
    (Literal["z", "a", "m"], {"type": "string", "enum": ["z", "a", "m"]}),
    (Literal["z", "a"] | None, {"anyOf": [{"type": "string", "enum": ["z", "a"]}, {"type": "null"}]}),
    (Renamed, {
        "type": "object", "required": ["startsAt"], "properties": {
            "startsAt": {"type": "string", "format": "time"},
            "howLarge": {"anyOf": [SIZE, {"type": "null"}], "default": None},
        },
    }),
    (Loose, {"type": "object", "properties": {"at": {**MOMENT, "description": "When."}}, "required": []}),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "expected"), CASES)
def test_moments_have_a_format_and_choices_their_order(annotation: Any, expected: Schema) -> None:
    """A fixed defect: a panel proposed "hello" for a datetime, and choices were listed by the alphabet."""
    schema = schema_of(annotation)
    assert schema == expected


def test_what_is_inside_recursive_and_fixed_types_is_complete_too() -> None:
    """References are followed once."""
    event = schema_of(Event)
    assert event["properties"]["at"] == MOMENT
    assert event["properties"]["size"]["enum"] == SIZE["enum"]
    below = event["$defs"]["Event"]["properties"]
    assert (below["at"], below["size"]["enum"]) == (MOMENT, SIZE["enum"])
    assert schema_of(Pair)["prefixItems"] == [MOMENT, SIZE]
    assert schema_of(tuple[dt.datetime, Size])["prefixItems"] == [MOMENT, SIZE]
    assert schema_of(tuple[dt.datetime, ...])["items"] == MOMENT
    cat, dog = schema_of(Cat | Dog)["anyOf"]
    assert (cat["properties"]["born"], dog["properties"]["size"]) == (MOMENT, SIZE)


def test_a_decimal_is_a_text_with_a_pattern_and_not_a_format_that_nobody_knows() -> None:
    """A fixed defect: strict validators refuse schemas with unknown formats."""
    schema = schema_of(decimal.Decimal)
    assert schema.keys() == {"type", "pattern"}
    validator = Draft202012Validator(schema)
    for text in ("1", "-1.50", "+.5", "1.", "1E+3"):
        assert validator.is_valid(text)
        assert msgspec.convert(text, decimal.Decimal) == decimal.Decimal(text)
    for text in ("", ".", "one", "1,5", "\uff11", "\u0661e5"):  # digits that aren't ASCII's
        assert not validator.is_valid(text)


class Asked:
    """A class that msgspec asks the hook about."""


def test_a_decimal_of_the_hook_stays_as_it_is_said_there() -> None:
    """Whatever else it's made of is in msgspec's schema, and none of its nodes is left with a mark."""
    told: Schema = {"type": "object", "properties": {"n": {"type": "string", "format": "decimal"}}}
    schema = schema_of(tuple[Asked, decimal.Decimal, Asked | None], hook=lambda _: told)
    number: Schema = {"type": "string", "pattern": DECIMAL}
    assert schema["prefixItems"] == [told, number, {"anyOf": [told, {"type": "null"}]}]


def test_texts_that_only_python_counts_as_decimal_numbers_are_found_by_their_place() -> None:
    """A walk over schema and value; what has no decimal number has no walk."""
    number: Schema = {"type": "string", "pattern": DECIMAL}
    assert decimal_check({"type": "object", "properties": {"a": {"type": "string"}}}) is None
    assert decimal_check({"type": "object", "default": number}) is None
    item: Schema = {"type": "object", "properties": {"n": number, "s": {}}, "required": ["n"]}
    cases: list[tuple[Schema, Any, str | None]] = [
        (number, "NaN", ""), (number, "1.5", None), (number, 5, None),
        (item, {"s": "NaN", "n": "NaN"}, ".n"), (item, {"n": "1"}, None), (item, "NaN", None), (item, {"o": 1}, None),
        ({"type": "array", "items": number}, ["1", "x"], "[1]"), ({"items": number}, {"a": "x"}, None),
        ({"prefixItems": [{}, number], "items": False}, ["x", "1_0", "x"], "[1]"),
        ({"properties": {"a": {}}, "additionalProperties": item}, {"a": "x", "b": {"n": "x"}}, "[...].n"),
        ({"anyOf": [number, {"type": "null"}]}, None, None), ({"anyOf": [number, {"type": "null"}]}, "x", ""),
        ({"anyOf": [number, {"enum": ["x"]}]}, "x", None), ({"anyOf": [number, {"type": "integer"}]}, [], None),
        ({"anyOf": [item, {"type": "object", "required": ["m"]}]}, {"n": "x"}, ".n"),
        ({"anyOf": [item, {"type": "object", "required": ["m"]}]}, {"n": "x", "m": 1}, None),
        ({"anyOf": [item, {"properties": {"s": {"enum": ["b"]}}}]}, {"n": "x", "s": "a"}, ".n"),
        ({"items": {"anyOf": [{"type": "null"}, {}]}, "properties": {"a": number}}, {"a": "x"}, ".a"),
    ]  # fmt: skip
    for schema, value, place in cases:
        find = decimal_check(schema)
        assert find is not None
        assert find(value) == place, (schema, value)


def test_decimal_numbers_in_recursive_types_are_found_too() -> None:
    """References are followed as deep as the value goes, and those to types without any lead nowhere."""
    number: Schema = {"type": "string", "pattern": DECIMAL}
    tree: Schema = {"properties": {"n": number, "below": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}}}
    other: Schema = {"properties": {"other": {"anyOf": [{"$ref": "#/$defs/Other"}, {"type": "null"}]}}}
    find = decimal_check(
        {
            "properties": {"tree": {"$ref": "#/$defs/Tree"}, "other": {"$ref": "#/$defs/Other"}},
            "$defs": {"Tree": tree, "Other": other},
        }
    )
    assert find is not None
    assert (
        find({"tree": {"n": "1", "below": [{"below": []}, {"below": [{"n": "NaN"}]}]}}) == ".tree.below[1].below[0].n"
    )
    assert find({"other": {"other": {"other": None}}, "tree": {}}) is None
    nothing: Schema = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    mixed = decimal_check({"properties": {"n": number, "none": nothing}})
    assert mixed is not None
    assert mixed({"none": "NaN"}) is None
    find = decimal_check({"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}], "$defs": {"Tree": tree}})
    assert find is not None
    assert (find({"n": "x"}), find(None)) == (".n", None)


class Trip(msgspec.Struct):
    starts: dt.datetime
    lands: Annotated[dt.datetime, Meta(tz=True)]
    takes: dt.timedelta
    calls: dict[str, dt.time]
    day: dt.date


def test_what_is_written_promises_no_format_that_only_some_texts_have() -> None:
    """Fixed: results with a moment without an offset, or a negative duration, failed at clients that know formats."""
    text: Schema = {"type": "string"}
    assert schema_of(Trip, written=True)["properties"] == {
        "starts": text, "lands": MOMENT, "takes": text, "calls": {"type": "object", "additionalProperties": text},
        "day": {"type": "string", "format": "date"},
    }  # fmt: skip
    assert schema_of(Trip)["properties"]["takes"] == {"type": "string", "format": "duration"}
