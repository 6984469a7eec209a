"""Texts for refused arguments, apart from the plan of a function (see test_signature.py for whole ones)."""

import datetime as dt
import uuid

import msgspec
import pytest
from hypothesis import given

from millstream._protocol.json_schema import Schema
from millstream._server.functions.argument_errors import MAX_LISTED, explain
from millstream._server.functions.plan import plan
from millstream._server.functions.reading import ArgumentError, read_arguments, read_texts
from strategies import texts

OPEN: Schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def test_long_lists_of_names_are_cut() -> None:
    """A peer's own text is repeated, but not without end."""
    names = {f"n{index}": {"type": "string"} for index in range(MAX_LISTED + 5)}
    schema: Schema = {"type": "object", "properties": names, "required": list(names)}
    text = explain(msgspec.ValidationError("Object missing required field `n0`"), schema, b"{}")
    assert text.startswith("missing 'n0', ")
    assert " and 5 more. Expected: {" in text
    assert text.endswith(", …}")
    unknown = b'{"%b":1}' % (b"x" * 5000)
    closed = {"type": "object", "additionalProperties": False}
    assert len(explain(msgspec.ValidationError("Object contains unknown field"), closed, unknown)) < 300


@pytest.mark.parametrize(
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
def test_what_was_expected_is_said_in_a_word_for_each_argument(schema: Schema, expected: str) -> None:
    """Generated and hand-written schemas read alike."""
    text = explain(msgspec.ValidationError("Expected `object`, got `str`"), schema, b'"x"')
    assert text == f'the arguments must be an object, got the string "x". Expected: {expected}'


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("count: Input should be 1 - at `$.a`", "'a': count: Input should be 1"),
        ("Invalid RFC3339 encoded datetime - at `$.a`", "'a' must be a date and time such as 1999-12-31T12:00:00Z"),
        ("Invalid enum value 'x' - at `$.a`", "'a' has no such choice, got 'x'"),
        ("Object contains unknown field `z` - at `$.a`", "unknown 'z' in 'a'"),
        ("Object contains unknown field `z`", "unknown 'z'"),
        ("Expected `str` of length >= 2 - at `$.a`", "'a' must be a string of length >= 2"),
        ("Expected `date`, got `int` - at `$.a`", "'a' must be a date as text, got an integer"),
    ],
)
def test_messages_of_the_decoder_are_put_into_the_words_of_json(message: str, text: str) -> None:
    """Models know JSON's types; without the arguments the first problem is named alone."""
    assert explain(msgspec.ValidationError(message), OPEN, b"") == f'{text}. Expected: {{"a": integer}}'


def test_arguments_nested_without_end_are_explained_too() -> None:
    """Depth is bounded before, but this must not depend on it."""
    text = explain(RecursionError("too deep"), OPEN, b"[" * 100_000)
    assert text == 'the arguments: too deep. Expected: {"a": integer}'


@given(texts, texts)
def test_any_text_of_a_peer_gives_an_explanation(name: str, value: str) -> None:
    """Names and values of a peer are in the decoder's messages; none breaks the reading of them."""
    raw = msgspec.json.encode({name: value})
    struct = msgspec.defstruct("Arguments", [("a", int)], forbid_unknown_fields=True)
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(raw, type=struct)
    assert explain(caught.value, OPEN, raw).endswith('. Expected: {"a": integer}')


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ('{"a":"hello"}', """'a' must be a date and time such as 1999-12-31T12:00:00Z, got "hello\""""),
        ('{"b":["1999-12-31","x"]}', """'b[1]' must be a date such as 1999-12-31, got "x\""""),
        ('{"c":{"k":"x"}}', """'c[...]' must be a UUID"""),
    ],
)
def test_a_text_that_is_no_date_is_shown_with_what_would_be_one(raw: str, text: str) -> None:
    """A fixed defect: it said "Invalid RFC3339 encoded datetime" and not of what."""

    def tool(a: dt.datetime | None = None, b: list[dt.date] = [], c: dict[str, uuid.UUID] = {}) -> None: ...  # noqa: B006

    with pytest.raises(ArgumentError) as refused:
        read_arguments(plan(tool), raw.encode())
    assert str(refused.value).startswith(f"Invalid arguments for tool 'tool': {text}. Expected: ")


def test_a_value_is_shown_for_prompts_too() -> None:
    """Their arguments are texts."""

    def prompt(at: dt.date) -> None: ...

    with pytest.raises(ArgumentError, match="'at' must be a date such as 1999-12-31, got \"soon\""):
        read_texts(plan(prompt, kind="prompt"), {"at": "soon"})
