import json
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from cases import for_each
from millstream import Field
from millstream.items import ArgumentError
from plans import Plan, plan, read_arguments
from property_settings import examples
from signature_types import Address, Color, Movie, Node, Point
from strategies import json_values, texts


def add(a: int, b: Annotated[int, Field(le=5)] = 1, tone: Literal["dry", "warm"] = "dry", to: Address | None = None,
        at: list[Point] = []) -> int:  # fmt: skip  # noqa: B006
    return a + b


EXPECTED = 'Expected: {"a": integer, "b": integer (optional), "tone": "dry" | "warm" (optional), '
ERRORS = [
    ('{"a":"x"}', "'a' must be an integer, got the string \"x\""),
    ("{}", "missing 'a'"),
    ('{"z":1,"y":2}', "missing 'a'; unknown 'z', 'y'"),
    ('{"a":true,"z":1}', "unknown 'z'; 'a' must be an integer, got true"),
    ("[]", "the arguments must be an object, got the array []"),
    ('{"a":1,"b":6}', "'b' must be an integer <= 5, got 6"),
    ('{"a":1,"tone":"loud"}', '\'tone\' must be one of "dry", "warm", got "loud"'),
    ('{"a":1,"to":{}}', "missing 'street' in 'to'"),
    ('{"a":1,"to":[]}', "'to' must be an object or null, got the array []"),
    ('{"a":1,"at":[{"x":"1"}]}', "'at[0].x' must be a number, got the string \"1\""),
]


@for_each(("raw", "text"), ERRORS)
def test_errors_for_rejected_arguments_help_the_model(raw: str, text: str) -> None:
    """MCP 2025-11-25, server/tools."""
    made = plan(add)
    with pytest.raises(ArgumentError) as caught:
        read_arguments(made, raw.encode())
    assert str(caught.value).startswith(f"Invalid arguments for tool 'add': {text}. {EXPECTED}")


def test_whole_floats_are_accepted_as_integers() -> None:
    made = plan(add)
    raw = b'{"a":1.0,"at":[{"x":2.5}]}'
    with pytest.raises(msgspec.ValidationError):
        made.decode(raw)
    arguments = read_arguments(made, raw)
    assert (arguments.a, type(arguments.a), arguments.at) == (1, int, [Point(2.5)])
    for bad in (b'{"a":1.5}', b'{"a":1.0,"b":1e999}', b"[" * 100_000):
        with pytest.raises(ArgumentError):
            read_arguments(made, bad)


# The schema and the decoder agree.

integers = st.integers(-(2**53), 2**53)
numbers = integers | st.floats(allow_nan=False, allow_infinity=False)
short = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
PARAMETERS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, integers),
    (float, numbers),
    (bool, st.booleans()),
    (str, texts),
    (int | None, st.none() | integers),
    (int | str, integers | short),
    (Annotated[int, Field(ge=0, lt=10)], st.integers(-2, 11)),
    (Annotated[float, Field(gt=0, le=1)], st.sampled_from([0, 0.5, 1, 1.5])),
    (Annotated[str, Field(min_length=1, max_length=3)], short),
    (Annotated[str, Field(pattern="^a+$")], st.sampled_from(["a", "aa", "b", ""])),
    (Annotated[list[int], Field(max_length=2)], st.lists(integers, max_size=3)),
    (Literal["a", "b"], st.sampled_from(["a", "b", "c"])),
    (Color, st.sampled_from(["red", "blue", "green"])),
    (list[str], st.lists(short, max_size=3)),
    (dict[str, int], st.dictionaries(short, integers, max_size=3)),
    (tuple[int, str], st.tuples(integers, short).map(list)),
    (Address, st.fixed_dictionaries({"street": short}, optional={"number": integers, "other": short})),
    (Movie, st.fixed_dictionaries({}, optional={"title": short, "year": integers})),
    (Point | None, st.none() | st.fixed_dictionaries({"x": numbers})),
    (Node, st.recursive(st.fixed_dictionaries({"value": integers}),
                        lambda inner: st.fixed_dictionaries({"value": integers, "next": inner}), max_leaves=3)),
    (Any, json_values),
]  # fmt: skip


@st.composite
def calls(draw: st.DrawFn) -> tuple[Plan, dict[str, Any]]:
    """Draw a function of up to four parameters, and arguments that nearly match."""
    chosen = draw(st.lists(st.sampled_from(PARAMETERS), max_size=4))
    names = [f"p{index}" for index in range(len(chosen))]

    required = draw(st.integers(0, len(chosen)))
    signature = ", ".join(name if index < required else f"{name}=None" for index, name in enumerate(names))
    scope: dict[str, Any] = {}
    exec(f"def function({signature}): ...", scope)  # noqa: S102 - our own text
    function = scope["function"]
    function.__annotations__ = {name: annotation for name, (annotation, _) in zip(names, chosen, strict=True)}
    arguments = {
        name: draw(values if draw(st.integers(0, 9)) else json_values)
        for name, (_, values) in zip(names, chosen, strict=True)
        if draw(st.integers(0, 9))
    }
    if not draw(st.integers(0, 9)):
        arguments["other"] = 1
    return plan(function), arguments


@settings(max_examples=examples(20))
@given(calls())
def test_the_schema_accepts_exactly_what_the_decoder_accepts(call: tuple[Plan, dict[str, Any]]) -> None:
    made, arguments = call
    Draft202012Validator.check_schema(made.input_schema)
    raw = json.dumps(arguments).encode()
    text = None
    try:
        read_arguments(made, raw)
    except ArgumentError as error:
        text = str(error)
    assert (text is None) == Draft202012Validator(made.input_schema).is_valid(arguments)
    assert text is None or text.startswith("Invalid arguments for tool 'function': ")
