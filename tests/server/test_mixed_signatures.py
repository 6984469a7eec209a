"""Types that msgspec reads, in a signature with a pydantic model."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Generic, NotRequired, Required, TypedDict, TypeVar

import msgspec
import pytest
from attrs import define
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from typing_extensions import TypeAliasType

from millstream import Server
from millstream.client import ToolFailed
from millstream.protocol import Json
from millstream.testing import connect

T = TypeVar("T")


class Item(BaseModel):
    name: str = "tea"


class Link(msgspec.Struct):
    number: int
    next: Link | None = None


@define
class Chain:
    number: int
    next: Chain | None = None


class Node(TypedDict):
    name: str
    children: list[Node]
    at: NotRequired[dt.datetime]
    where: NotRequired[Path]


class Movie(TypedDict, total=False):
    title: Required[str]
    price: Decimal


class Get(msgspec.Struct, tag=True):
    key: str


class Put(msgspec.Struct, tag=True):
    key: str
    values: dict[int, str]


class Box(msgspec.Struct, Generic[T]):
    content: T


Tree = TypeAliasType("Tree", "dict[str, Tree] | int")  # as pydantic's documentation writes it


class Forest(BaseModel):
    tree: Tree


Nested = dict[str, "Nested"] | list["Nested"] | str


async def _call(annotation: Any, value: Any) -> Any:
    """Return a value that a tool has received beside a model, and returned beside one."""

    def tool(a: Any, item: Item = Item()) -> Any:  # noqa: B008  as people write it
        return a, item

    both = f"tuple[{annotation}, Item]" if isinstance(annotation, str) else tuple[annotation, Item]
    tool.__annotations__ |= {"a": annotation, "return": both}
    mcp = Server("mixed")
    mcp.add_tool(tool)
    async with connect(mcp) as client:
        [listed] = await client.tools()
        allowed = Draft202012Validator(listed.input_schema).is_valid({"a": value})
        result = await client.call("tool", {"a": value}, raise_on_error=False)
        assert result.is_error is not allowed
        result.check()
        Draft202012Validator(listed.output_schema or {}).validate(result.data)
        return result.data[0]


LINK: Json = {"number": 1, "next": {"number": 2, "next": None}}
CASES: list[tuple[Any, Any]] = [
    (Link, LINK),
    (list[Link], [LINK]),
    (dict[str, Link], {"a": LINK}),
    (Link | None, LINK),
    (Chain, LINK),
    (Node, {"name": "a", "children": [{"name": "b", "children": []}]}),
    ("Nested", {"a": ["b", {}]}),
    (Tree, {"a": {"b": 1}}),
    (list[Tree], [{"a": {"b": 1}}]),
    (Forest, {"tree": {"a": 1}}),
    (Box[int], {"content": 1}),
]


@pytest.mark.parametrize(("annotation", "value"), CASES, ids=str)
async def test_recursive_and_generic_types_can_be_combined_with_a_model(annotation: Any, value: Any) -> None:
    assert await _call(annotation, value) == value


async def test_types_with_the_name_of_a_model_keep_their_own_schema() -> None:
    class Model(BaseModel):
        text: str
        next: Model | None = None

    Model.__name__ = Model.__qualname__ = "Link"

    def tool(one: Any, other: Any) -> str:
        return f"{one.text} {other.number}"

    tool.__annotations__ |= {"one": Model, "other": Link}
    mcp = Server("mixed")
    mcp.add_tool(tool)
    async with connect(mcp) as client:
        [listed] = await client.tools()
        value: Json = {"one": {"text": "a", "next": {"text": "b"}}, "other": {"number": 1, "next": {"number": 2}}}
        Draft202012Validator(listed.input_schema).validate(value)
        wrong: Json = {**value, "other": {"number": 1, "next": {"text": "b"}}}
        assert not Draft202012Validator(listed.input_schema).is_valid(wrong)
        assert (await client.call("tool", value)).text == "a 1"


async def test_tagged_structs_are_distinguished_by_their_tag() -> None:
    value = {"type": "Put", "key": "a", "values": {"1": "b"}}
    assert await _call(Get | Put | None, value) == value
    with pytest.raises(ToolFailed, match=r"'a.type' must be one of \"Get\", \"Put\""):
        await _call(Get | Put | None, {"key": "a"})


async def test_required_members_are_required_with_postponed_annotations() -> None:
    assert await _call(Movie, {"title": "a"}) == {"title": "a"}
    with pytest.raises(ToolFailed, match=r"missing 'title' in 'a'"):
        await _call(Movie, {"price": "1.50"})


@pytest.mark.parametrize("number", ["NaN", "1_000"])
async def test_only_decimal_numbers_that_json_parsers_read_are_accepted(number: str) -> None:
    with pytest.raises(ToolFailed, match="must be a decimal number as text"):
        await _call(Movie, {"title": "a", "price": number})


@pytest.mark.parametrize("path", ["", "a\0b"])
async def test_invalid_paths_are_rejected_in_a_signature_with_a_model(path: str) -> None:
    def tool(where: Path, item: Item = Item()) -> str:  # noqa: B008  as people write it
        return f"{where} {item}"

    mcp = Server("paths")
    mcp.add_tool(tool)
    async with connect(mcp) as client:
        with pytest.raises(ToolFailed, match="'where' must be a path as text"):
            await client.call("tool", where=path)


async def test_final_arguments_can_be_combined_with_a_model() -> None:
    def tool(number: Any = 1, item: Item = Item()) -> str:  # noqa: B008  as people write it
        return f"{number} {item.name}"

    tool.__annotations__["number"] = Final[int]
    mcp = Server("final")
    mcp.add_tool(tool)
    async with connect(mcp) as client:
        assert (await client.call("tool", number=2)).text == "2 tea"


async def test_dicts_returned_for_a_typed_dict_may_contain_values_other_than_json() -> None:
    def tool(item: Item = Item()) -> tuple[Node, Item]:  # noqa: B008  as people write it
        return {"name": "a", "children": [], "at": dt.datetime(2026, 1, 1), "where": Path("b")}, item  # noqa: DTZ001

    mcp = Server("mixed")
    mcp.add_tool(tool)
    async with connect(mcp) as client:
        node = (await client.call("tool")).data[0]
    assert node == {"name": "a", "children": [], "at": "2026-01-01T00:00:00", "where": "b"}


async def test_numeric_keys_can_be_combined_with_whole_floats() -> None:
    def tool(names: dict[int, str], count: int) -> str:
        return f"{names} {count}"

    mcp = Server("keys")
    mcp.add_tool(tool)
    async with connect(mcp) as client:
        assert (await client.call("tool", names={"1": "a"}, count=2.0)).text == "{1: 'a'} 2"
