import datetime as dt
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given

from cases import for_each
from millstream._protocol.json_schema import Schema
from millstream._server.functions.plan import ArgumentError, plan, read_arguments, read_texts
from millstream._server.functions.problems import MAX_LISTED, explain, find_problems
from strategies import json_values, texts

OPEN: Schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def explain_problems(schema: Schema, value: Any) -> str:
    return explain(list(find_problems(schema, value)), schema)


def test_long_lists_of_names_are_truncated() -> None:
    names = {f"n{index}": {"type": "string"} for index in range(MAX_LISTED + 5)}
    text = explain_problems({"type": "object", "properties": names, "required": list(names)}, {})
    assert text.startswith("missing 'n0', ")
    assert " and 5 more. Expected: {" in text
    assert text.endswith(", …}")
    assert len(explain_problems({"type": "object", "additionalProperties": False}, {"x" * 5000: 1})) < 300


@for_each(
    ("schema", "expected"),
    [
        ({"type": "object"}, "an object"),
        ({"type": "object", "additionalProperties": False}, "no arguments"),
        ({"properties": {"a": True}, "required": ["a"]}, '{"a": any}'),
        ({"properties": {"a": {}}}, '{"a": any (optional)}'),
        ({"properties": {"a": {"type": "array", "items": {"enum": ["x"]}}}}, '{"a": array of "x" (optional)}'),
        ({"properties": {"a": {"type": "array", "items": False}}}, '{"a": array (optional)}'),
        ({"properties": {"a": {"type": ["string", "null"]}}}, '{"a": string | null (optional)}'),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, '{"a": object (optional)}'),
        ({"properties": {"a": {"anyOf": [{"type": "null"}, {}]}}}, '{"a": null | any (optional)}'),
    ],
)
def test_error_shows_the_expected_type_of_each_argument(schema: Schema, expected: str) -> None:
    assert explain_problems({"type": "object", **schema}, "x") == (
        f'the arguments must be an object, got the string "x". Expected: {expected}'
    )


def test_deeply_nested_arguments_get_an_explanation() -> None:
    def tool(a: int) -> None: ...

    with pytest.raises(ArgumentError, match=r'Expected: {"a": integer}'):
        read_arguments(plan(tool), b"[" * 60_000)


@given(texts, texts, json_values)
def test_any_invalid_value_gets_an_explanation(name: str, text: str, value: Any) -> None:
    def tool(a: int, b: list[str] | None = None) -> None: ...

    with pytest.raises(ArgumentError) as caught:
        read_arguments(plan(tool), msgspec.json.encode({name + "?": text, "b": value}))
    assert str(caught.value).endswith('. Expected: {"a": integer, "b": array of string | null (optional)}')


@for_each(
    ("raw", "text"),
    [
        ('{"a":"hello"}', """'a' must be a date and time such as 1999-12-31T12:00:00Z, got "hello\""""),
        ('{"b":["1999-12-31","x"]}', """'b[1]' must be a date such as 1999-12-31, got "x\""""),
        ('{"c":{"k":"x"}}', """'c.k' must be a UUID, got "x\""""),
        ('{"a":5,"b":[1]}', "'a' must be a date and time as text or null, got the integer 5; 'b[0]' must be a date as"),
    ],
)
def test_invalid_dates_are_shown_with_a_valid_example(raw: str, text: str) -> None:
    """Regression: the error was "Invalid RFC3339 encoded datetime" without the field."""

    def tool(a: dt.datetime | None = None, b: list[dt.date] = [], c: dict[str, uuid.UUID] = {}) -> None: ...  # noqa: B006

    with pytest.raises(ArgumentError) as refused:
        read_arguments(plan(tool), raw.encode())
    assert str(refused.value).startswith(f"Invalid arguments for tool 'tool': {text}")


def test_prompt_errors_show_the_invalid_value() -> None:
    def prompt(at: dt.date, copies: int, big: bool) -> None: ...

    with pytest.raises(ArgumentError) as refused:
        read_texts(plan(prompt, kind="prompt"), {"at": "soon", "copies": "3", "big": "maybe"})
    text = "'at' must be a date such as 1999-12-31, got \"soon\"; 'big' must be true or false, got \"maybe\". Expected"
    assert text in str(refused.value).replace("the string ", "")
