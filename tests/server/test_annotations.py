"""Annotations that programs may write, and the errors for values that aren't types."""

import datetime as dt
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import (  # noqa: UP035  what people write
    Annotated,
    Any,
    Dict,
    FrozenSet,
    List,
    Literal,
    NamedTuple,
    NotRequired,
    Required,
    Set,
    Tuple,
    TypedDict,
    Union,
    Unpack,
)

import jsonschema
import msgspec
import pytest
from pydantic import BaseModel, Discriminator, Field, JsonValue, PlainSerializer, Tag

from cases import for_each
from millstream import Client, Context, Server, Text, ToolResult
from millstream import Field as MillstreamField
from millstream._server.functions.description import describe
from millstream.client import ClientError, ServerError, ToolFailed
from millstream.protocol import Json
from millstream.testing import connect

Nested = Union[int, list["Nested"]]  # noqa: UP007  as Python 3.9 needs it
Document = Union[str, int, None, list["Document"], dict[str, "Document"]]  # noqa: UP007  as above


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Raw(BaseModel):
    data: bytes = b"\x89PNG\xff"


@dataclass
class Plain:
    path: Path = Path("/x")
    places: tuple["PlaceTuple", ...] = ()


class PlaceTuple(NamedTuple):
    path: Path = Path("/x")


class PlaceStruct(msgspec.Struct):
    place: PlaceTuple
    path: Path = Path("/y")


class Apple(BaseModel):
    fruit: Literal["apple"] = "apple"


class Pumpkin(BaseModel):
    filling: Literal["pumpkin"] = "pumpkin"


def _pie_of(value: Any) -> str:
    found = value if isinstance(value, dict) else vars(value)
    return "apple" if "fruit" in found else "pumpkin"


Pie = Annotated[Annotated[Apple, Tag("apple")] | Annotated[Pumpkin, Tag("pumpkin")], Discriminator(_pie_of)]
Grouped = Annotated[int, PlainSerializer(lambda value: f"{value:,}", return_type=str)]


class Planet(Enum):
    EARTH = (5.976e24, 6.37814e6)

    def __repr__(self) -> str:
        return str(self)


class Holiday(Enum):
    NEW_YEAR = dt.date(2024, 1, 1)
    __repr__ = Planet.__repr__


class Period(dt.timedelta, Enum):
    DAY = 1
    __repr__ = Planet.__repr__


class Trip(BaseModel):
    to: Planet


@dataclass
class Priced:
    price: Grouped


class Account(BaseModel):
    name: str


class StoredAccount(Account):
    password: str


class Row(BaseModel):
    """As a table of SQLModel, whose own `__init__` checks nothing."""

    name: str
    copies: int = 1

    def __init__(self, **values: Any) -> None:
        made = type(self).model_construct(**values)
        for each in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
            object.__setattr__(self, each, getattr(made, each))


Row.model_config["table"] = True  # type: ignore[typeddict-unknown-key]  # SQLModel's own key


class Shelf(BaseModel):
    rows: list[Row]


class Report(ToolResult):
    """A result of a program's own."""


def _function(annotation: Any, result: Any = str) -> Callable[..., Any]:
    def tool(a: Any) -> Any:
        return repr(a) if result is str else a

    tool.__annotations__ = {"a": annotation, "return": result}
    return tool


async def _call(function: Callable[..., Any], arguments: Json, *, progress: Any = None, **options: Any) -> Any:
    mcp = Server("annotations")
    mcp.add_tool(function, name="tool", **options)
    async with connect(mcp) as client:
        return await client.call("tool", arguments, progress=progress)


async def _tool(function: Callable[..., Any], **options: Any) -> Any:
    mcp = Server("annotations")
    mcp.add_tool(function, name="tool", **options)
    async with connect(mcp) as client:
        return (await client.request("tools/list"))["tools"][0]


@pytest.mark.parametrize(
    ("annotation", "value", "arrives"),
    [
        (List, [1], "[1]"),  # noqa: UP006
        (Dict, {"a": 1}, "{'a': 1}"),  # noqa: UP006
        (Set, [1], "{1}"),  # noqa: UP006
        (FrozenSet, [1], "frozenset({1})"),  # noqa: UP006
        (Tuple, [1, 2], "(1, 2)"),  # noqa: UP006
        (tuple[()], [], "()"),
        (Iterable[int], [1, 2], "[1, 2]"),
        (JsonValue, {"x": [1, None]}, "{'x': [1, None]}"),
        (list[JsonValue], [{"x": 1}], "[{'x': 1}]"),
        (Nested, [1, [2, [3]]], "[1, [2, [3]]]"),
        (Nested | None, None, "None"),
        (Document, {"x": [[1, {"y": None}]]}, "{'x': [[1, {'y': None}]]}"),
        (dict[str, Nested], {"x": [[1]]}, "{'x': [[1]]}"),
        (Raw, {"data": "aGVsbG8="}, "Raw(data=b'hello')"),
        (PlaceTuple, [], f"PlaceTuple(path={Path('/x')!r})"),
        (list[PlaceStruct], [{"place": []}], f"[{PlaceStruct(PlaceTuple())!r}]"),
        (Plain, {}, repr(Plain())),
        (Pie, {"filling": "pumpkin"}, "Pumpkin(filling='pumpkin')"),
        (Row, {"name": "a"}, "Row(name='a', copies=1)"),
        (Planet, [5.976e24, 6378140.0], "Planet.EARTH"),
        (Holiday | None, "2024-01-01", "Holiday.NEW_YEAR"),
        (list[Period], ["P1D"], "[Period.DAY]"),
        (Literal[Planet.EARTH], [5.976e24, 6378140.0], "Planet.EARTH"),
        (Trip, {"to": [5.976e24, 6378140.0]}, "Trip(to=Planet.EARTH)"),
        (Row | None, {"name": "a", "copies": "2"}, "Row(name='a', copies=2)"),
    ],
)
async def test_annotations_arrive_as_written(annotation: Any, value: Any, arrives: str) -> None:
    assert (await _call(_function(annotation), {"a": value})).text == arrives


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (Nested, [1, ["x"]], "integer"),
        (Document, {"x": [1.5]}, "'a"),
        (Iterable[int], ["x"], "'a[0]' must be an integer"),
        (Annotated[Cat | Dog, Field(discriminator="kind")], {"lives": 3}, "kind"),
        (Raw, {"data": "no base64!"}, "base64"),
        (dict[Literal["red"], int], {"blue": 1}, "'a.blue' must be"),
        (Row, {}, "missing 'name' in 'a'"),
        (Planet, [1, 2], "'a' must be one of [5.976e24,6378140.0], got [1,2]"),
        (Shelf, {"rows": [{"name": "a"}, {"name": 5}]}, "'a.rows[1].name' must be a string, got the integer 5"),
    ],
)
async def test_values_with_the_wrong_type_are_rejected_before_the_function_runs(
    annotation: Any, value: Any, says: str
) -> None:
    with pytest.raises(ToolFailed, match="Invalid arguments") as failed:
        await _call(_function(annotation), {"a": value})
    assert says in str(failed.value)


async def test_alternatives_that_a_function_tells_apart_may_overlap_in_the_schema() -> None:
    schema = (await _tool(_function(Pie)))["inputSchema"]
    for value in ({"fruit": "apple"}, {"filling": "pumpkin"}):
        jsonschema.validate({"a": value}, schema)


@pytest.mark.parametrize("annotation", [Grouped, Grouped | None, Annotated[Grouped, Field(ge=0)]])
async def test_results_are_text_where_their_annotation_writes_text(annotation: Any) -> None:
    def tool(number: int) -> Any:
        return number

    async def tool_async(number: int) -> Any:
        return number

    for function in (tool, tool_async):
        function.__annotations__["return"] = annotation
        assert (await _call(function, {"number": 12345})).text == "12,345"


@pytest.mark.parametrize(
    ("annotation", "value", "written"),
    [
        (Grouped, 12345, "12,345"),
        (Grouped | None, 12345, "12,345"),
        (list[Grouped], [12345], '["12,345"]'),
        (Priced, Priced(12345), '{"price":"12,345"}'),
    ],
)
async def test_yielded_values_are_written_like_returned_ones(annotation: Any, value: Any, written: str) -> None:
    def generate() -> Any:
        yield value
        yield value

    async def generate_async() -> Any:
        yield value
        yield value

    generate.__annotations__["return"] = Iterator[annotation]
    generate_async.__annotations__["return"] = AsyncIterator[annotation]
    for function, options in ((generate, {}), (generate, {"thread": False}), (generate_async, {})):
        messages: list[str | None] = []
        result = await _call(function, {}, progress=lambda *report, to=messages: to.append(report[-1]), **options)
        assert [*messages, result.text] == [written] * 3


async def test_progress_may_have_another_type_than_the_result() -> None:
    async def generate() -> AsyncIterator[Priced]:
        yield "Looking …"  # type: ignore[misc]
        yield Priced(12345)

    messages: list[str | None] = []
    await _call(generate, {}, progress=lambda *report: messages.append(report[-1]))
    assert messages == ["Looking …", '{"price":"12,345"}']


async def test_progress_has_only_the_fields_of_the_annotated_type() -> None:
    async def generate() -> AsyncIterator[Account]:
        yield StoredAccount(name="Ada", password="secret")
        yield Account(name="Bob")

    messages: list[str | None] = []
    await _call(generate, {}, progress=lambda *report: messages.append(report[-1]))
    assert messages == ['{"name":"Ada"}', '{"name":"Bob"}']


async def test_tables_from_a_program_are_results_as_they_are() -> None:
    def tool(a: Row, more: list[Row] = [Row(name="default")]) -> list[Row]:  # noqa: B006, B008
        return [a, *more, Row(name="b")]

    result = await _call(tool, {"a": {"name": "a"}})
    assert [each["name"] for each in result.data] == ["a", "default", "b"]


async def test_recursive_alias_is_described_as_one_definition() -> None:
    tool = await _tool(_function(Nested, Nested))
    node = tool["inputSchema"]["properties"]["a"]
    assert node["anyOf"][1]["items"] == {"$ref": "#/$defs/Nested"}
    assert tool["outputSchema"]["$defs"]["Nested"]["anyOf"][0] == {"type": "integer"}
    assert (await _call(_function(Nested, Nested), {"a": [1, [2]]})).data == [1, [2]]


async def test_default_factories_next_to_a_path_are_described_by_their_value() -> None:
    class Folder(msgspec.Struct, rename="camel"):
        base_path: Path = Path("/x")
        counts: dict[str, int] = msgspec.field(default_factory=dict)

    properties = (await _tool(_function(Folder)))["inputSchema"]["properties"]["a"]["properties"]
    assert (properties["basePath"]["default"], properties["counts"]["default"]) == ("/x", {})


async def test_bytes_in_models_are_base64_in_arguments_and_results() -> None:
    def picture() -> Raw:
        return Raw()

    def unannotated() -> Any:
        return {"picture": Raw()}

    assert (await _call(picture, {})).data == {"data": "iVBOR/8="}
    assert (await _call(unannotated, {})).data == {"picture": {"data": "iVBOR/8="}}
    tool = await _tool(picture)
    assert tool["outputSchema"]["properties"]["data"]["contentEncoding"] == "base64"


async def test_partial_with_updated_attributes_keeps_its_filled_arguments() -> None:
    def base(x: int, y: int) -> str:
        return f"{x} {y}"

    seven = functools.update_wrapper(functools.partial(base, 7), base)
    assert (await _call(seven, {"y": 1})).text == "7 1"


async def test_a_callable_object_is_described_by_its_class_docstring() -> None:
    class Api:
        """Class text."""

        def __call__(self, n: int) -> str:
            return str(n)

    assert (await _tool(Api()))["description"] == "Class text."


async def test_result_subclasses_have_no_output_schema() -> None:
    def report() -> Report:
        return Report("hello", structured={"a": 1})

    assert "outputSchema" not in await _tool(report)
    assert (await _call(report, {})).text == "hello"


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (["a", "b"], r"it isn't a type. For one of these values, write Literal\['a', 'b'\]"),
        ({"a": int}, "it isn't a type. Write a dataclass, TypedDict"),
        ([int], r"it isn't a type. For a list, write list\[int\]"),
        (3, r"it isn't a type. Write int, or Literal\[3\]"),
        (object(), "it isn't a type. Write a type"),
        (type[Cat], "clients can't send a class"),
        (Callable[[], int], "clients can't send a function"),
        (any, "'a': any is a function, not a type. Write Any, imported from typing."),
        (list[any], "Write Any, imported from typing"),  # type: ignore[valid-type]  # pyright: ignore[reportInvalidTypeForm]
        (dict[str, any], "Write Any, imported from typing"),  # type: ignore[valid-type]  # pyright: ignore[reportInvalidTypeForm]
        (
            "any | None",
            r"'any \| None' isn't a type: any is a function, not a type. Write Any, imported from typing\.$",
        ),
        ("list[int] | callable", "callable is a function, not a type. Write a type, such as str"),
        (callable, "callable is a function, not a type. Write a type, such as str"),
    ],
)
def test_errors_for_values_that_are_not_types_suggest_a_type(annotation: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        Server("x").add_tool(_function(annotation), name="tool")


@pytest.mark.parametrize(
    ("answer", "choice", "received"),
    [
        (["low", "high"], "low", "low"),
        ([["a", "b"]], ["a"], ["a"]),
        ({"low": {"title": "Low"}, "high": {"title": "High"}}, "high", "high"),
        ([{"a": {"title": "A"}}], ["a"], ["a"]),
    ],
)
async def test_choices_are_offered_as_in_fastmcp(answer: Any, choice: Any, received: Any) -> None:
    mcp = Server("choices")

    @mcp.tool
    async def ask(ctx: Context) -> dict[str, Any]:
        return {"chosen": await ctx.elicit("Which?", answer)}

    for revision in ("2025-11-25", "2026-07-28"):
        async with connect(mcp, revision=revision, elicit=lambda question: {"value": choice}) as client:
            assert (await client.call("ask")).data == {"chosen": received}


@pytest.mark.parametrize(
    ("answer", "says"), [(None, "write bool"), ({"a": int}, "Write a dataclass"), (3, "Write int")]
)
async def test_error_for_a_form_without_a_type_suggests_a_type(answer: Any, says: str) -> None:
    mcp = Server("choices")

    @mcp.tool
    async def ask(ctx: Context) -> str:
        with pytest.raises(TypeError, match=says):
            await ctx.elicit("Which?", answer)
        return "refused"

    async with connect(mcp, elicit=lambda question: {}) as client:
        assert (await client.call("ask")).text == "refused"


async def test_errors_identify_call_arguments_that_are_not_json() -> None:
    async with Client(Server("x")) as client:
        with pytest.raises(TypeError, match=r"The argument 'into' of 'add' .* write result_type=int"):
            await client.call("add", into=int)
        with pytest.raises(TypeError, match="The argument 'x' of 'add' can't be sent as JSON, because it's a object"):
            await client.call("add", x=object())


def _lenient(n: int = 5, when: dt.date | None = None, text: str = "", filter: Raw | None = None) -> str:
    return f"{n} {when} {text!r}"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"n": None}, "5 None ''"),
        ({"when": "", "n": ""}, "5 None ''"),
        ({"text": 7}, "5 None '7'"),
        ({"text": 7, "n": None}, "5 None '7'"),
        ({"filter": {"data": None}}, "5 None ''"),
    ],
)
async def test_coerce_treats_null_and_empty_text_as_omitted(arguments: Json, text: str) -> None:
    assert (await _call(_lenient, arguments, coerce=True)).text == text
    with pytest.raises(ToolFailed, match="Invalid arguments"):
        await _call(_lenient, arguments)


async def test_empty_text_counts_as_omitted_in_prompts_and_resources_if_the_type_does_not_allow_it() -> None:
    mcp = Server("forms")

    @mcp.prompt
    def plan(day: dt.date, days: int = 2, until: dt.date | None = None, note: str = "none") -> str:
        return f"{day} {days} {until} {note!r}"

    @mcp.resource("days://{day}{?days,hot}")
    def forecast(day: str, days: int = 2, hot: bool = False) -> str:
        return f"{day} {days} {hot}"

    async with connect(mcp) as client:
        made = await client.prompt("plan", {"day": "2026-01-01", "days": "", "until": "", "note": ""})
        assert made.messages[0].content == Text("2026-01-01 2 None ''")
        assert (await client.read("days://monday?days=&hot="))[0].text == "monday 2 False"
        with pytest.raises(ServerError, match="'day' must be a date"):
            await client.prompt("plan", {"day": "", "days": ""})


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_coroutine_function_can_simulate_the_model(revision: str) -> None:
    mcp = Server("sampling")

    @mcp.tool
    async def ask(ctx: Context) -> str:
        return (await ctx.sample("hi")).text

    async def answer(request: Json) -> str:
        return "text"

    async with connect(mcp, sample=answer, revision=revision) as client:
        assert (await client.call("ask")).text == "text"


@pytest.mark.parametrize("name", ["$filter", "filter[name]", "my field"])
def test_argument_names_that_model_apis_reject_cause_a_warning(name: str) -> None:
    with pytest.warns(UserWarning, match="doesn't work with every model"):
        Server("x").add_tool(_function(Annotated[int, Field(alias=name)]), name="tool")


def test_combinators_that_model_apis_reject_cause_a_warning() -> None:
    schema = {"type": "object", "properties": {"a": {}}, "oneOf": [{"required": ["a"]}]}
    with pytest.warns(UserWarning, match="rejects schemas with 'oneOf' at their root"):
        Server("x").add_tool(_function(Any), name="tool", input_schema=schema)


class Details(TypedDict, total=False):
    title: Required[str]
    year: Annotated[int, MillstreamField(ge=1)]
    tags: NotRequired[list[str]]


@pytest.mark.parametrize("more", [int, Cat])
async def test_unpacked_keywords_are_arguments(more: Any) -> None:
    def add(a: int, m: Any = None, **details: Unpack[Details]) -> str:
        return f"{a} {details}"

    add.__annotations__["m"] = more | None
    tool = await _tool(add)
    schema = tool["inputSchema"]
    assert [*schema["properties"]] == ["a", "m", "title", "year", "tags"]
    assert schema["required"] == ["a", "title"]
    assert schema["properties"]["year"] == {"type": "integer", "minimum": 1}
    assert (await _call(add, {"a": 1, "title": "x"})).text == "1 {'title': 'x'}"
    assert (await _call(add, {"a": 1, "title": "x", "tags": ["y"]})).text == "1 {'title': 'x', 'tags': ['y']}"
    for arguments, says in (({"a": 1}, "missing 'title'"), ({"a": 1, "title": "x", "year": 0}, "'year' must be")):
        with pytest.raises(ToolFailed, match=says):
            await _call(add, arguments)


def documented(text: str | None) -> Callable[..., Any]:
    def function() -> None: ...

    function.__doc__ = text
    return function


CASES: list[tuple[str | None, str, dict[str, str]]] = [
    (None, "", {}),
    ("One line.", "One line.", {}),
    (
        """Add.

        More about it.

        Args:
            a: first
                of two
            b (int, optional): second: and last

            *rest: others

        Returns:
            The sum.
        """,
        "Add.\n\nMore about it.",
        {"a": "first\nof two", "b": "second: and last", "rest": "others"},
    ),
    (
        """Add.

        Parameters
        ----------
        a : int
            first

            - of two
        b
            second

        Returns
        -------
        int
            The sum.
        """,
        "Add.",
        {"a": "first\n\n- of two", "b": "second"},
    ),
    (
        """Add.

        :param a: first
            of two
        :param int b: second: and last
        :type a: int
        :param rest:
        :returns: the sum
        """,
        "Add.",
        {"a": "first\nof two", "b": "second: and last"},
    ),
    ("Add.\n\nArgs:\n    a: first\nThe end.", "Add.", {"a": "first"}),
    ("Add.\n\nArgs:\n    no colon here", "Add.\n\nArgs:\n    no colon here", {}),
    ("Add.\n\nArgs:\n    a:", "Add.", {}),
    ("Add.\n\nReturns:\n    The sum.\n\nArgs:\n    a: late", "Add.", {"a": "late"}),
    ("Notes on adding.\n\nExample\n\nParameters of it.", "Notes on adding.\n\nExample\n\nParameters of it.", {}),
]


@for_each(("text", "description", "parameters"), CASES)
def test_google_numpy_and_sphinx_sections_describe_parameters(
    text: str | None, description: str, parameters: dict[str, str]
) -> None:
    assert describe(documented(text)) == (description, parameters)


async def test_arguments_that_json_cannot_contain_are_client_errors() -> None:
    def tool(a: str) -> str:
        return a

    deep: list[Any] = []
    deep.append(deep)  # how deep Python looks depends on its version
    mcp = Server("shop")
    mcp.tool(name="ask")(tool)
    mcp.prompt(name="ask")(tool)
    async with connect(mcp) as client:
        for send, value, why in (
            (client.call, "\ud800", "surrogate"),
            (client.prompt, "\ud800", "surrogate"),
            (client.call, deep, "nested too deeply"),
            (client.prompt, deep, "nested too deeply"),
        ):
            with pytest.raises(ClientError, match=f"can't be sent as JSON, because they .*{why}"):
                await send("ask", a=value)
