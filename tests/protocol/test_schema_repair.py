import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from cases import for_each
from cpu import check_linear
from millstream._protocol.schema_repair import is_portable, repair_schema
from processes import NODE

STRING: dict[str, Any] = {"type": "string"}
MISSING: dict[str, Any] = {"$ref": "#/$defs/missing"}


def test_valid_schemas_stay_unchanged() -> None:
    for schema in (
        {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"next": {"$ref": "#/$defs/a"}}}}},
        {"$ref": "#/definitions/a~1b%20c", "definitions": {"a/b c": STRING}},
        {"$schema": "http://json-schema.org/draft-07/schema#", "items": [STRING], "additionalItems": False},
        {"pattern": "^([0-9]{4})-\\w(?<=a)$", "patternProperties": {"^x-": STRING}},
        {"type": ["string", "null"], "enum": ["a", None], "default": None, "const": None, "nullable": True},
        {"x-vendor": {"a": [1]}, "format": "unheard-of", "properties": {"$ref": STRING, "id": STRING}},
    ):
        assert repair_schema(schema) == schema


@pytest.mark.parametrize(
    ("schema", "repaired"),
    [
        ({"allOf": [MISSING, STRING]}, {"allOf": [{}, STRING]}),
        ({"oneOf": [MISSING, STRING]}, {"anyOf": [{}, STRING]}),
        ({"not": {"properties": {"a": MISSING}}, **STRING}, STRING),
        ({"if": {"pattern": "(?i)a"}, "then": STRING}, {"then": STRING}),
        ({"patternProperties": {"(?i)a": STRING}, "additionalProperties": False}, {"patternProperties": {}}),
        ({"allOf": [MISSING], "unevaluatedProperties": False}, {"allOf": [{}]}),
        ({"items": [STRING], "additionalItems": False}, {"prefixItems": [STRING], "maxItems": 1}),
        ({"minimum": 1, "exclusiveMinimum": True}, {"exclusiveMinimum": 1}),
        ({"minimum": 1, "exclusiveMinimum": False}, {"minimum": 1}),
        ({"nullable": True, "enum": ["a"], "title": "A"}, {"title": "A", "anyOf": [{"enum": ["a"]}, {"type": "null"}]}),
        ({"$ref": "#name", "$defs": {"a": {"$anchor": "name", **STRING}}}, {"$defs": {"a": STRING}}),
        ({"$dynamicRef": "#node", "$defs": {"a": {"$dynamicAnchor": "node"}}}, {"$defs": {"a": {}}}),
        ({"$id": "http://a/b", "not": {"$id": "http://a/c"}, "$ref": "#/not", **STRING}, {"not": {}, **STRING}),
        ({"$ref": "#/x", "x": STRING}, {"x": STRING}),
        ({"$ref": "#/properties", "properties": {"type": STRING}}, {"properties": {"type": STRING}}),
        ({"type": "String"}, STRING),
        ({"type": ["string", "date"]}, {}),
        ({"required": ["a", "a", 5]}, {"required": ["a"]}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#"}}}, {"$defs": {"a": {}}}),
        ({"$ref": "#/not/a", "not": {"a": MISSING, "pattern": "("}}, {}),
    ],
)
def test_repaired_schemas_accept_at_least_what_the_original_accepts(schema: Any, repaired: Any) -> None:
    assert repair_schema(schema) == repaired


def _chain(size: int) -> Any:
    return {f"d{number}": {"$ref": f"#/$defs/d{(number + 1) % size}"} for number in range(size)}


_LARGE: dict[str, Callable[[int], Any]] = {
    "circle of references": lambda size: {"$defs": _chain(size)},
    "chain of references": lambda size: {"$defs": {**_chain(size), f"d{size - 1}": {}}},
    "references to nothing": lambda size: {"$defs": _chain(size) | {"d0": {"$ref": "#/$defs/none"}}},
    "chain outside of schemas": lambda size: {
        "$ref": "#/x/0", "x": [{"$ref": f"#/x/{number + 1}"} for number in range(size)],
    },
    "long URI": lambda size: {
        "$id": f"http://h/{'a' * size}/", "$defs": {f"d{number}": {"$id": f"b{number}"} for number in range(size)},
    },
    "long path": lambda size: {
        "$id": "a/" * size, "$defs": {f"d{number}": {"$ref": f"b{number}"} for number in range(size)},
    },
    "many patterns": lambda size: {"properties": {f"p{number}": {"pattern": "^[a-z]+$"} for number in range(size)}},
}  # fmt: skip


@for_each("kind", _LARGE)
def test_repairing_a_schema_takes_linear_time(kind: str) -> None:
    check_linear(lambda size: repair_schema(_LARGE[kind](size)), 500)


def test_chained_references_are_kept() -> None:
    schema = {"$defs": {**{f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(8)}, "d8": STRING}}
    assert repair_schema(schema) == schema


@pytest.mark.server
def test_patterns_that_are_kept_compile_in_ecma_262() -> None:
    patterns = [
        "^[^\\s@]+@[^\\s@]+\\.[^\\s@]+$", "(?!a)b|", "\\u1F60{2,3}?", "[\\w\\-.]", "a{2}", "[\\b]", "[\\t-\\x20-\\d]",
        "^(?!\\.)(?!.*\\.\\.)([A-Za-z0-9_'+\\-\\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\\-]*\\.)+[A-Za-z]{2,}$",
    ]  # fmt: skip
    assert [each for each in patterns if not is_portable(each)] == []
    script = "process.argv.slice(1).forEach((each) => new RegExp(each, 'u'))"
    subprocess.run([NODE, "-e", script, *patterns], check=True, timeout=60)


def test_patterns_from_other_dialects_are_rejected() -> None:
    for pattern in (
        "(?i)a", "(?P<a>b)", "(?>a)", "a++", "a*+", "\\Aa", "a\\Z", "a\\z", "\\Qa\\E", "\\p{Foo}", "\\h", "[[:alpha:]]",
        "[a&&[^b]]", "(", ")", "[", "]", "{", "}", "a{2,1}", "a{,3}", "*", "(?=a)*", "\\2(a)", "\\k<a>", "[b-a]",
        "[\\d-a]",
        "(?<a>b)(?<a>c)", "\\u{110000}", "\\", "\\x4", "(?#a)", "\\00",
        "[a-\\d]", "\\@", "(?=(a))?", "[\\x30-\\x20]", "[\\q]", "\\-",
    ):  # fmt: skip
        assert not is_portable(pattern), pattern
