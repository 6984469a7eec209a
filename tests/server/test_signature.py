import datetime as dt
import functools
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

import msgspec
import pytest
from jsonschema import Draft202012Validator

from cases import for_each
from millstream._protocol.content import Image, Text
from millstream._protocol.json_schema import Schema
from millstream._server.functions.engine import ToolResult
from millstream._server.functions.plan import ArgumentError, Plan, plan, read_texts
from plans import schema_of_result
from signature_types import CONTEXT, CONTEXTS, Address, Color, Context, Model, Movie, Node, Point, SyncContext, run

# What functions promise.


def returning(annotation: Any) -> Plan:
    def tool() -> Any: ...

    tool.__annotations__["return"] = annotation
    return plan(tool)


@for_each(
    ("annotation", "expected"),
    [
        (int, {"type": "integer"}),
        (bool | None, {"anyOf": [{"type": "boolean"}, {"type": "null"}]}),
        (list[str], {"type": "array", "items": {"type": "string"}}),
        (dict[str, Any], {"type": "object"}),
        (Point, {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number", "default": 0.0}},
                 "required": ["x"]}),
        (Model, {"type": "object", "properties": {"count": {"minimum": 1, "type": "integer"},
                 "names": {"default": [], "items": {"type": "string"}, "type": "array"}}, "required": ["count"]}),
    ],
)  # fmt: skip
def test_structured_return_annotations_become_output_schemas(annotation: Any, expected: Schema) -> None:
    """MCP 2025-11-25, server/tools."""
    made = returning(annotation)
    assert schema_of_result(made) == expected
    Draft202012Validator.check_schema(schema_of_result(made))


@for_each(
    "annotation",
    [
        str, bytes, None, Any, object, str | None, int | str, Literal["a"], Color, dt.date, Image,
        list[Image | str], Image | None, ToolResult,
    ],
)  # fmt: skip
def test_text_and_content_annotations_have_no_output_schema(annotation: Any) -> None:
    assert schema_of_result(returning(annotation)) is None


@for_each("annotation", [range, "Missing", [int], 5, AsyncIterator[int], dict[str, range]])
def test_undescribable_return_annotations_warn(annotation: Any) -> None:
    with pytest.warns(UserWarning, match="tool: the tool has no output schema, because its return type") as caught:
        assert schema_of_result(returning(annotation)) is None
    assert caught[0].filename == __file__


def test_generators_have_the_output_schema_of_their_items() -> None:
    async def counting() -> AsyncIterator[int]:
        yield 1

    def talking() -> Iterator[str]:
        yield "x"

    def bare():  # type: ignore[no-untyped-def]  # the subject
        yield 1

    def listing() -> Any:
        return iter(())

    made = plan(counting)
    assert (made.is_async, made.is_generator, schema_of_result(made)) == (True, True, {"type": "integer"})
    made = plan(talking)
    assert (made.is_async, made.is_generator, schema_of_result(made)) == (False, True, None)
    assert plan(bare).is_generator
    assert not plan(listing).is_generator


def test_text_blocks_stay_content_despite_any_annotation() -> None:
    assert schema_of_result(returning(Text | dict[str, int])) is None


# How the function is called.


def test_context_may_be_any_parameter() -> None:

    def only(ctx: Context) -> Any:
        return (ctx,)

    def first(ctx: Context, a: int, b: int) -> Any:
        return ctx, a, b

    def middle(a: int, ctx: "Context | None", b: int) -> Any:
        return a, ctx, b

    def last(a: int, b: int, ctx: Context | None = None) -> Any:
        return a, b, ctx

    def keyword(a: int, *, ctx: Annotated[Context, "text"], b: int = 2) -> Any:
        return a, b, ctx

    def mixed(ctx: SyncContext, a: int, *, b: int) -> Any:
        return ctx, a, b

    both = {"a": 1, "b": 2}
    assert run(only) == (CONTEXT,)
    assert run(first, both) == (CONTEXT, 1, 2)
    assert run(middle, both) == (1, CONTEXT, 2)
    assert run(last, both) == (1, 2, CONTEXT)
    assert run(keyword, {"a": 1}) == (1, 2, CONTEXT)
    assert run(mixed, both) == (CONTEXT, 1, 2)
    assert plan(mixed, contexts=CONTEXTS).context_type is SyncContext
    assert plan(middle, contexts=CONTEXTS).context_type is Context
    assert plan(middle, contexts=CONTEXTS).context_parameter == "ctx"


def test_two_contexts_are_rejected() -> None:
    def tool(a: Context, b: SyncContext) -> None: ...

    with pytest.raises(TypeError, match="a and b"):
        plan(tool, contexts=CONTEXTS)


def test_context_imported_under_type_checking_is_found() -> None:
    def tool(a: int, ctx: "nowhere.Context | None") -> Any:  # type: ignore[name-defined]  # noqa: F821
        return a, ctx

    assert run(tool, {"a": 1}) == (1, CONTEXT)


def test_model_values_reach_the_function_as_objects() -> None:

    def tool(a: Address, p: Point, m: Movie, q: list[Model], n: Node, c: Color) -> Any:
        return a, p, m, q, n, c

    arguments = {
        "a": {"street": "s"},
        "p": {"x": 1},
        "m": {"title": "t"},
        "q": [{"count": 2}],
        "n": {"value": 1, "next": {"value": 2}},
        "c": "blue",
    }
    assert run(tool, arguments) == (
        Address("s"), Point(1.0), {"title": "t"}, [Model(count=2)], Node(1, Node(2)), Color.BLUE
    )  # fmt: skip
    Draft202012Validator.check_schema(plan(tool).input_schema)
    assert set(plan(tool).input_schema["$defs"]) == {"Node"}


def test_every_kind_of_callable_can_be_registered() -> None:

    class Counter:
        """A counter."""

        def add(self, by: int) -> int:
            """Add."""
            return by + 1

        async def __call__(self, by: int) -> int:
            return by

    def add(a: int, b: int) -> int:
        return a + b

    @functools.wraps(add)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return add(*args, **kwargs)

    assert run(Counter().add, {"by": 1}) == 2
    assert plan(Counter().add).name == "add"
    called = plan(Counter())
    assert (called.name, called.is_async, tuple(called.input_schema["properties"])) == ("Counter", True, ("by",))
    partial = functools.partial(add, b=3)
    assert run(partial, {"a": 1}) == 4
    assert plan(partial).name == "add"
    wrapped = plan(wrapper)
    assert (wrapped.name, wrapped.is_async, tuple(wrapped.input_schema["properties"])) == ("add", True, ("a", "b"))


# Schemas written by hand.

BY_HAND: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "allOf": [{"anyOf": [{"required": ["name"]}, {"required": ["age"]}]}],
}


def test_hand_written_schemas_are_listed_unchanged() -> None:
    def tool(name: str = "x") -> str:
        return name

    made = plan(tool, input_schema=BY_HAND)
    assert made.input_schema is BY_HAND
    assert run(tool, {"name": "n", "age": 3}, input_schema=BY_HAND) == "n"
    with pytest.raises(msgspec.ValidationError):
        made.decode(b'{"name":1}')


def test_closed_hand_written_schemas_reject_unknown_arguments() -> None:
    def both(name: str = "", age: int = 0) -> None: ...

    def one(name: str = "") -> None: ...

    closed = BY_HAND | {"additionalProperties": False}
    with pytest.raises(msgspec.ValidationError, match="unknown"):
        plan(both, input_schema=closed).decode(b'{"other":1}')
    plan(one, input_schema=closed).decode(b'{"age":1}')


def test_parameter_named_arguments_receives_all_arguments() -> None:
    def tool(arguments: dict[str, Any]) -> Any:
        return arguments

    def with_context(ctx: Context, arguments: dict[str, Any]) -> Any:
        return ctx, arguments

    assert run(tool, {"age": 1}, input_schema=BY_HAND) == {"age": 1}
    assert run(with_context, {"age": 1}, input_schema=BY_HAND) == (CONTEXT, {"age": 1})
    schema = {"type": "object", "properties": {"arguments": {"type": "object"}}}
    assert run(tool, {"arguments": {"a": 1}}, input_schema=schema) == {"a": 1}


def test_hand_written_schemas_replace_the_annotation() -> None:
    """MCP 2025-11-25, basic."""

    def tool() -> int:
        return 1

    with pytest.raises(ValueError, match="root"):
        plan(tool, input_schema={"type": "array"})
    assert schema_of_result(plan(tool, output_schema={"type": "number"})) == {"type": "number"}


# Prompts and resources.


def test_prompt_and_resource_arguments_are_parsed_from_text() -> None:
    """MCP 2025-11-25, server/prompts."""

    def prompt(n: int, when: dt.date, tone: Literal["dry", "warm"] = "warm", free="x") -> Any:  # type: ignore[no-untyped-def]  # the subject
        return n, when, tone, free

    made = plan(prompt, kind="prompt")
    bound = read_texts(made, {"n": "3", "when": "2020-02-29", "free": "7"})
    assert made.call(bound, None) == (3, dt.date(2020, 2, 29), "warm", "7")
    assert made.output is None
    with pytest.raises(ArgumentError, match="tone"):
        read_texts(made, {"n": "3", "when": "2020-02-29", "tone": "loud"})
    read_texts(made, {"n": "3", "when": "2020-02-29", "unknown": "is tolerated"})

    def resource(path: list[str]) -> Any: ...

    assert read_texts(plan(resource, kind="resource"), {"path": ["a", "b"]}).path == ["a", "b"]


def test_prompts_and_resources_reject_types_without_a_text_form() -> None:
    def tool(where: Address) -> None: ...

    def lists(names: list[str]) -> None: ...

    for kind in ("prompt", "resource"):
        with pytest.raises(TypeError, match=rf"'where' of a {kind} arrives as text"):
            plan(tool, kind=kind)
    with pytest.raises(TypeError, match="'names' of a prompt"):
        plan(lists, kind="prompt")
