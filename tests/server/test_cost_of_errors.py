"""Our rule: an error message takes up to ten times the calls of a valid value's check, or one call for each two bytes.

Calls of Python and C functions are counted, because the machine may be busy.
"""

import enum
import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
import pytest
from msgspec import Struct

from cases import for_each
from millstream import Client, Context, Field, Server
from millstream.client import ClientError
from millstream.items import ArgumentError, describe_problems
from patience import WAIT
from plans import plan, read_arguments

MOST_BYTES = 60_000
TIMES = 10
MOST_CALLS = MOST_BYTES // 2


@dataclass
class Node:
    value: str
    child: "Node | None" = None


@dataclass
class Tree:
    value: int
    children: "list[Tree]" = field(default_factory=list)


@dataclass
class Sum:
    value: Decimal
    child: "Sum | None" = None


class First(Struct, tag="first"):
    x: int


class Second(Struct, tag="second"):
    x: int


class Row(TypedDict):
    a: int
    b: "int | str | None"


class ModelNode(pydantic.BaseModel):
    value: str
    child: "ModelNode | None" = None


class ModelRow(pydantic.BaseModel):
    a: int
    b: int | str | None


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    name: str


Pet = Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
Color = enum.Enum("Color", {f"C{number}": f"value{number}" for number in range(1_000)})  # type: ignore[misc]
Word = Annotated[str, Field(pattern="^[a-z]+(-[a-z]+)*$")]
ModelWord = Annotated[str, pydantic.Field(pattern=r"^([a-z]+[.-]?)+@example\.com$")]


def nested(depth: int, inner: Any) -> Any:
    value: Any = {"value": inner}
    for _ in range(depth):
        value = {"value": "x", "child": value}
    return value


def many(item: Any, *more: Any) -> list[Any]:
    """Return as many items as fit, and then others."""
    return [item] * (MOST_BYTES // (len(json.dumps(item)) + 1)) + list(more)


def named(item: Any, **more: Any) -> dict[str, Any]:
    return {f"k{number}": item for number in range(MOST_BYTES // (len(json.dumps(item)) + 9))} | more


SECRETS = {f"secret{number}": "x" * 100 for number in range(500)}
LONG = "x" * MOST_BYTES
CASES: list[tuple[Any, Any, Any]] = [
    (list[int], many(1), many("x")),
    (list[int], many(1), many(1, "x")),
    (list[Annotated[int, Field(ge=0, le=9)]], many(1), many(1, 10)),
    (list[int | str | None], many(1), many([])),
    (list[int | str | None], many(1), many(1, {})),
    (dict[str, int | list[int] | None], named([1]), named([1], z="z")),
    (dict[str, int | list[int] | None], named([1]), named(["x"])),
    (list[First | Second], many({"type": "first", "x": 1}), many({"type": "first", "x": 1}, {"type": "third"})),
    (list[First | Second], many({"type": "first", "x": 1}), many({"type": "second", "x": "1"})),
    (list[Color], many("value7"), many("value")),
    (list[Color], many("value7"), many("value7", "x")),
    (list[Row], many({"a": 1, "b": None}), many({"a": 1, "b": None}, {"a": 1, "b": []})),
    (list[Row], many({"a": 1, "b": None}), many({})),
    (list[tuple[int, str]], many([1, "x"]), many([1, 1])),
    (list[Decimal], many("1.5"), many("1_5")),
    (Decimal, "1" * MOST_BYTES, "1" * MOST_BYTES + "x"),
    (list[Word], many("a-b"), many("a-b-")),
    (Word, "a" * MOST_BYTES, "a" * MOST_BYTES + "!"),
    (set[str], [str(number) for number in range(9_000)], many([])),
    (Node, nested(30, LONG), nested(30, SECRETS)),
    (Node, nested(30, LONG), nested(30, [LONG])),
    (Node, nested(30, LONG), nested(12, {LONG: 1})),
    (Tree, {"value": 1, "children": many({"value": 1})}, {"value": 1, "children": many({"value": 1}, {"value": "x"})}),
    (Sum, nested(25, "1.5") | {"value": "1"}, json.loads(json.dumps(nested(25, "1_5")).replace('"x"', '"1"'))),
    (ModelNode, nested(30, LONG), nested(30, SECRETS)),
    (list[ModelRow], many({"a": 1, "b": None}), many({"a": 1, "b": []})),
    (list[ModelRow], many({"a": 1, "b": None}), many({"a": 1, "b": None}, {"a": 1, "b": []})),
    (list[Pet], many({"kind": "cat", "lives": 1}), many({"kind": "cow"})),
    (list[Pet], many({"kind": "cat", "lives": 1}), many({"kind": "cat", "lives": 1}, {"kind": "dog", "lives": 1})),
    (ModelWord, "ada@example.com", "a" * MOST_BYTES + "!"),
    (list[ModelWord], many("ada@example.com"), many("a" * 60 + "!")),
]


def attempt(run: Callable[[bytes], object], raw: bytes) -> None:
    with suppress(ArgumentError, msgspec.ValidationError):
        run(raw)


def count_calls(run: Callable[[], object]) -> int:
    """Return the number of functions that a run calls."""
    calls = 0

    def count(_frame: object, event: str, _function: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


def check_cost(usual: Callable[[], object], refusal: Callable[[], object]) -> None:
    """Fail if a refusal costs more than it may.

    Args:
        usual: Checks a valid value.
        refusal: Refuses another one.
    """
    assert count_calls(refusal) <= max(TIMES * count_calls(usual), MOST_CALLS)


@for_each(("annotation", "valid", "invalid"), CASES)
def test_error_message_takes_no_more_calls_than_a_few_checks(annotation: Any, valid: Any, invalid: Any) -> None:
    def tool(a: Any) -> None: ...

    tool.__annotations__["a"] = annotation
    made = plan(tool)
    right, wrong = (msgspec.json.encode({"a": each}) for each in (valid, invalid))
    if annotation is Sum:
        right = wrong.replace(b"1_5", b"1.5")
    read_arguments(made, right)
    with pytest.raises(ArgumentError):
        read_arguments(made, wrong)
    check_cost(lambda: read_arguments(made, right), lambda: attempt(partial(read_arguments, made), wrong))


def deep_schema(depth: int) -> dict[str, Any]:
    """Return a schema of which each level has three alternatives of the next one."""
    level: dict[str, Any] = {"type": "object", "properties": {"c": {"$ref": "#/$defs/level"}}, "required": ["c"]}
    union = {"anyOf": [level, {**level, "title": "b"}, {**level, "title": "c"}, {"type": "object", "maxProperties": 0}]}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/level"}}, "$defs": {"level": union}}


HANDWRITTEN: list[tuple[dict[str, Any], Any, Any]] = [
    (deep_schema(20), json.loads('{"c":' * 20 + "{}" + "}" * 20), json.loads('{"c":' * 20 + "1" + "}" * 20)),
    ({"properties": {"a": {"items": {"pattern": "^[a-z]+$"}}}}, many("abc"), many("ABC")),
    ({"properties": {"a": {"items": {"enum": list(range(1_000))}}}}, many(7), many(7, 1_000)),
    ({"properties": {"a": {"items": {"const": {"b": 1}}}}}, many({"b": 1}), many({"b": 1}, {"b": 2})),
    ({"properties": {"a": {"oneOf": [{"required": [f"x{n}"]} for n in range(200)]}}}, named(1, x1=1), named(1)),
]


@for_each(("schema", "valid", "invalid"), HANDWRITTEN)
def test_rejection_by_a_handwritten_schema_takes_no_more_calls_than_a_few_checks(
    schema: Any, valid: Any, invalid: Any
) -> None:
    made = plan(lambda a: None, name="tool", input_schema={"type": "object", **schema})
    right, wrong = (msgspec.json.encode({"a": each}) for each in (valid, invalid))
    read_arguments(made, right)
    with pytest.raises(ArgumentError):
        read_arguments(made, wrong)
    check_cost(lambda: read_arguments(made, right), lambda: attempt(partial(read_arguments, made), wrong))
    check_cost(lambda: describe_problems(schema, {"a": valid}), lambda: describe_problems(schema, {"a": invalid}))


def test_secrets_are_hidden_in_truncated_values() -> None:
    def tool(a: list[int]) -> None: ...

    made = plan(tool)

    def refuse(value: Any) -> str:
        with pytest.raises(ArgumentError) as refused:
            read_arguments(made, msgspec.json.encode({"a": value}))
        return str(refused.value)

    assert "hunter2" not in refuse([{"password": "hunter2"}])
    assert "hunter2" not in refuse([[{"deep": {"api_key": "hunter2"}}]])
    long = refuse([{"a": "x" * 500, "password": "hunter2"}])
    assert "hunter2" not in long
    assert 'got the object {"a":"xxx' in long
    assert len(long) < 250


Mail = Annotated[str, Field(pattern=r"^([a-z0-9]+[.-]?)+@example\.com$")]


class Coded(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(regex_engine="python-re")
    code: Annotated[str, pydantic.Field(pattern="^(a+)+$")] = "a"
    other: Annotated[str, pydantic.Field(pattern=re.compile("^(b+)+$", re.IGNORECASE))] = "b"


async def test_patterns_that_backtrack_are_matched_in_linear_time() -> None:
    mcp = Server("shop")

    @mcp.tool
    def order(email: Mail, coded: Coded | None = None) -> str:
        return "ok"

    async with Client(mcp, timeout=WAIT) as client:
        assert (await client.call("order", email="ada@example.com", coded={"code": "aa", "other": "Bb"})).text == "ok"
        refused = await client.call("order", email="a" * 5_000 + "!", raise_on_error=False)
        assert r"'email' must be a string matching regex '^([a-z0-9]+[.-]?)+@example\\.com$', got" in refused.text
        for name in ("code", "other"):
            coded = {name: name[0].replace("c", "a").replace("o", "b") * 5_000 + "!"}
            refused = await client.call("order", email="a@example.com", coded=coded, raise_on_error=False)
            assert re.search(f"'coded.{name}' .*(matching regex|match pattern)", refused.text)


def test_patterns_that_take_no_linear_time_are_rejected() -> None:
    class Inside(Struct):
        text: Annotated[str, Field(pattern="^a$")]

    class Model(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(regex_engine="python-re")
        text: Annotated[str, pydantic.Field(pattern="^(a+)+(?!b)$")]

    def in_struct(a: Inside) -> None: ...

    def beside(a: Inside, b: Coded | None = None) -> None: ...

    def in_model(a: Model) -> None: ...

    def looks_ahead(a: Annotated[str, Field(pattern="^(a+)+(?!b)$")]) -> None: ...

    for function in (in_struct, beside):
        with pytest.raises(TypeError, match=r"parameter 'a': msgspec matches the pattern '\^a\$' in a Struct"):
            plan(function)
    for function in (in_model, looks_ahead):
        with pytest.raises(TypeError, match=r"parameter 'a': .* pattern .*\^\(a.* can't be matched in linear time"):
            plan(function)


async def test_form_pattern_is_matched_in_linear_time() -> None:
    mcp = Server("shop")

    @mcp.tool
    async def ask(ctx: Context, pattern: str) -> str:
        form = {"type": "object", "properties": {"code": {"type": "string", "pattern": pattern}}}
        return str(await ctx.elicit("Which code?", form))

    async def person(question: Any) -> Any:
        return {"code": "a" * 5_000 + "!"}

    async with Client(mcp, timeout=WAIT, elicit=person) as client:
        for pattern, why in (("^(a+)+$", "must be a string matching regex"), ("^(a+)+(?!b)$", "Internal error")):
            with pytest.raises(ClientError, match=why):
                await client.call("ask", pattern=pattern)
