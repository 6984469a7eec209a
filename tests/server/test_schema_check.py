import sys
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import for_each
from millstream._protocol.json_schema import Schema
from millstream._server.functions.engine import SchemaCheck

SHOP: Schema = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 0},
        "kind": {"enum": ["book", "map"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "uniqueItems": True},
        "pair": {"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "null"}},
        "to": {"$ref": "#/$defs/a~1b%20c"},
        "size": {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 5}]},
        "a/b": {"const": 1},
        "never": False,
        "no": {"not": {"type": "string"}},
        "free": {"type": "object", "additionalProperties": {"type": "boolean"}},
        "named": {"type": "object", "patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False},
    },
    "required": ["age"],
    "additionalProperties": False,
    "allOf": [{"anyOf": [{"required": ["kind"]}, {"required": ["tags"]}]}],
    "if": {"properties": {"kind": {"const": "map"}}, "required": ["kind"]},
    "then": {"required": ["size"]},
    "$defs": {"a/b c": {"type": "object", "properties": {"street": {"type": "string"}}, "required": ["street"]}},
}
GOOD = {"age": 3, "kind": "book"}
NODE: Schema = {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}, "v": {"type": "integer"}}}
BRANCHING: Schema = {
    "type": "object",
    "properties": {"n": {"$ref": "#/$defs/n"}},
    "$defs": {"n": {"anyOf": [{**NODE, "minProperties": 1}, {**NODE, "maxProperties": 9}]}},
}
"""Two ways down at every level: a value 60 levels deep is reached on 2⁶⁰ ways."""


def reasons(schema: Schema, value: Any) -> str:
    """Return the problems of an invalid value."""
    check = SchemaCheck(schema, whole="the arguments")
    assert not check.fits(value)
    return check.reasons(value, len(msgspec.json.encode(value)))


REASONS: list[tuple[dict[str, Any], str]] = [
    ({"age": "x"}, "'age' must be an integer, got the string \"x\""),
    ({"age": -1}, "'age' must be an integer >= 0, got -1"),
    ({"kind": "pen"}, '\'kind\' must be one of "book", "map", got "pen"'),
    ({"tags": ["abcd"]}, "'tags[0]' must be a string of length <= 3, got \"abcd\""),
    ({"tags": True}, "'tags' must be an array, got true"),
    ({"pair": ["a", None, 1]}, "'pair[2]' must be null, got the integer 1"),
    ({"pair": [1]}, "'pair[0]' must be a string, got the integer 1"),
    ({"to": {}}, "missing 'street' in 'to'"),
    ({"to": {"street": None}}, "'to.street' must be a string, got null"),
    ({"size": 7}, "'size' must match exactly one alternative of oneOf, but matches 2"),
    ({"size": 1.5}, "'size' must be a number >= 5, got 1.5"),
    ({"a/b": 2}, "'a/b' must be one of 1, got 2"),
    ({"never": 1}, "unknown 'never'"),
    ({"free": {"x": 1}}, "'free.x' must be true or false, got the integer 1"),
    ({"kind": "map"}, "missing 'size'"),
    ({"one": 1, "two": 2}, "unknown 'one', 'two'"),
    # What only the library judges.
    ({"tags": ["a", "a"]}, "the arguments must match the schema"),
    ({"no": "x"}, "the arguments must match the schema"),
    ({"named": {"y": 1}}, "the arguments must match the schema"),
]


@for_each(("change", "text"), REASONS)
def test_schema_errors_show_path_expectation_and_value(change: dict[str, Any], text: str) -> None:
    assert reasons(SHOP, GOOD | change) == text


def test_schema_errors_list_a_few_reasons() -> None:
    text = reasons(SHOP, {"kind": 1, "tags": 2, "to": 3, "free": 4})
    assert text.startswith("missing 'age'; 'kind' must be one of \"book\", \"map\", got 1; 'tags' must be an array")
    assert text.endswith("; and 1 more")
    assert reasons(SHOP, {"age": 1}) == (
        "the arguments must match an alternative of anyOf: (missing 'kind') or (missing 'tags')"
    )
    assert reasons(SHOP, [1]).startswith("the arguments must be an object, got the array [1]")


@for_each(
    ("schema", "text"),
    [
        ({"type": "array"}, "root"),
        ({"type": "object", "properties": []}, "#/properties: .*object"),
        ({"type": "object", "allOf": {}}, "#/allOf: .*array"),
        ({"type": "object", "not": []}, "#/not: .*object"),
        ({"type": "object", "properties": {"a": 1}}, "#/properties/a: .*object"),
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "#/properties/a/type"),
        ({"type": "object", "properties": {"a": {"pattern": "("}}}, "regex"),
        ({"type": "object", "$ref": "#/$defs/none"}, "does not exist"),
        ({"type": "object", "$ref": "https://127.0.0.1/x"}, "never fetched"),
        ({"type": "object", "$id": "http://127.0.0.1/", "properties": {"a": {"$ref": "x"}}}, "never fetched"),
    ],
)
def test_unsupported_schemas_are_rejected(schema: Schema, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SchemaCheck(schema, whole="the arguments")


def test_anchor_and_recursive_references_are_followed() -> None:
    anchored: Schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#here"}, "b": {"$dynamicRef": "#here"}},
        "$defs": {"x": {"$anchor": "here", "type": "integer"}},
    }
    assert reasons(anchored, {"a": "x"}) == "the arguments must match the schema"
    assert SchemaCheck(anchored, whole="").fits({"a": 1, "b": 2.0})
    root: Schema = {"type": "object", "properties": {"in": {"$ref": "#"}}, "additionalProperties": False}
    assert reasons(root, {"in": {"in": {"x": 1}}}) == "unknown 'x' in 'in.in'"
    inner: Schema = {
        "type": "object",
        "properties": {"a": {"$id": "urn:inner", "$ref": "#/$defs/i", "$defs": {"i": {"type": "integer"}}}},
    }
    assert reasons(inner, {"a": "x"})


def test_keywords_from_older_dialects_are_ignored() -> None:
    old: Schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "dependencies": {"a": {"$ref": "#/$defs/x"}},
        "$defs": {"x": {"required": ["b"]}},
    }
    assert reasons(old, {"a": "x", "b": 1}) == "'a' must be an integer, got the string \"x\""


def test_ambiguous_schemas_still_validate_and_explain() -> None:
    value: Any = {"v": "x"}
    for _ in range(60):
        value = {"c": value}
    assert reasons(BRANCHING, {"n": value})


def test_matching_gives_up_on_backtracking_patterns() -> None:
    schema: Schema = {"type": "object", "properties": {"a": {"pattern": r"^(\w+\s?)*(?!x)$"}}}
    assert reasons(schema, {"a": "a" * 5000 + "!"}).startswith("'a' must be a string matching regex")
    assert SchemaCheck(schema, whole="").fits({"a": "one two"})


def test_item_pattern_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Schema] = []
    compile_schema = jsonschema_rs.Draft202012Validator
    monkeypatch.setattr(
        jsonschema_rs,
        "Draft202012Validator",
        lambda schema, **options: compiled.append(schema) or compile_schema(schema, **options),
    )
    check = SchemaCheck({"type": "object", "properties": {"a": {"items": {"pattern": "^[a-z]+$"}}}}, whole="it")
    assert check.reasons({"a": [*["good"] * 200, "BAD"]}, 2_000).startswith("'a[200]' must be a string matching")
    assert check.reasons({"a": ["BAD"]}, 20)
    assert len(compiled) == 2


def test_large_values_are_not_inspected_for_errors() -> None:
    value = {f"x{number}": number for number in range(100_000)}
    assert reasons({"type": "object", "required": ["k"]}, value) == "the arguments must match the schema"


def test_errors_quote_values_briefly() -> None:
    schema: Schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "additionalProperties": {"type": "null"}}
    assert len(reasons(schema, {"a": "x" * 10_000, "y" * 10_000: 1})) < 400
    assert len(reasons({"type": "object", "properties": {"a": {"enum": list(range(1000))}}}, {"a": None})) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SHOP["properties"], "z"]), inner),
)


@given(JSON)
def test_every_invalid_value_has_a_reason(value: Any) -> None:
    check = SchemaCheck(SHOP, whole="the arguments")
    assert check.fits(value) == jsonschema_rs.is_valid(SHOP, value)
    if not check.fits(value):
        assert check.reasons(value, 100)


def test_error_suggests_the_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    with pytest.raises(ImportError, match=r"pip install 'millstream\[schema\]'"):
        SchemaCheck({"type": "object"}, whole="")
