import datetime as dt
import enum
from dataclasses import dataclass
from typing import Any, Literal

import pydantic

from cases import for_each
from millstream import Server, Settings, Text
from millstream.client import ServerError
from millstream.testing import connect


@dataclass
class Order:
    isbn: str
    copies: int = 1


class Model(pydantic.BaseModel):
    size: int


def register(mcp: Server, **options: Any) -> None:
    """Register a tool with one parameter of each kind."""

    @mcp.tool(**options)
    def order(  # noqa: PLR0917  one of each kind
        count: int, price: float = 0, gift: bool = False, isbns: list[int] | None = None, first: Order | None = None,
        model: Model | None = None, text: str = "", note: str | list[str] = "",
    ) -> str:  # fmt: skip
        return repr((count, price, gift, isbns, first, model, text, note))


LOOSE = {
    "count": "3", "price": "1.5", "gift": "true", "isbns": '["1", 2]', "first": ' {"isbn": "a", "copies": "2"}',
    "model": '{"size": "4"}', "text": '["as it is"]', "note": "[too]", "unknown": {"a": 1},
}  # fmt: skip
SEEN = repr((3, 1.5, True, [1, 2], Order("a", 2), Model(size=4), '["as it is"]', "[too]"))


@for_each("revision", ["2024-11-05", "2025-11-25", "2026-07-28"])
async def test_lenient_tools_accept_text_in_place_of_other_types(revision: str) -> None:
    by_option, by_setting = Server("one"), Server("all", settings=Settings(coerce_arguments=True))
    register(by_option, coerce=True)
    register(by_setting)
    for mcp in (by_option, by_setting):
        async with connect(mcp, revision=revision) as client:
            (tool,) = (await client.request("tools/list"))["tools"]
            assert tool["inputSchema"].get("additionalProperties") is not False
            assert (await client.call("order", **LOOSE)).text == SEEN
            assert (await client.call("order", count=4)).text.startswith("(4, ")


async def test_lenient_tools_accept_numbers_as_text_at_any_depth() -> None:
    mcp = Server("deep")

    @mcp.tool(coerce=True)
    def deep(words: list[str], by_name: dict[str, list[str]], orders: list[Order], pair: list[int | str]) -> str:
        """Return the arguments."""
        return repr((words, by_name, orders, pair))

    async with connect(mcp) as client:
        given = {
            "words": [1, "a"],
            "by_name": '{"x": [2.5]}',
            "orders": [{"isbn": 3, "copies": None}],
            "pair": [4, "b"],
        }
        found = await client.call("deep", given)
    assert found.text == repr((["1", "a"], {"x": ["2.5"]}, [Order("3")], [4, "b"]))


@for_each("beside", [None, Model])
@for_each("wrong", [{"count": True}, {"count": "1", "prices": [True]}, {"count": 1, "either": False}])
async def test_true_and_false_are_not_numbers_in_lenient_tools(beside: Any, wrong: dict[str, Any]) -> None:
    mcp = Server("one")

    def order(count: int, prices: list[float] | None = None, either: int | str = 0, model: Any = None) -> str:
        return repr((count, prices, either, model))

    order.__annotations__["model"] = beside
    mcp.add_tool(order, coerce=True)
    async with connect(mcp) as client:
        result = await client.call("order", **wrong, raise_on_error=False)
    assert result.is_error
    assert "must be a" in result.text


async def test_handwritten_schemas_can_be_lenient() -> None:
    properties = {
        "one": {"type": ["integer", "string"]},
        "two": {"type": ["array", "null"], "items": True},
        "three": True,
    }
    mcp = Server("one")

    @mcp.tool(input_schema={"type": "object", "properties": properties}, coerce=True)
    def order(one: int | str, two: list[Any] | None = None, three: int = 3, four: float = 0) -> str:
        """Return the arguments."""
        return repr((one, two, three, four))

    async with connect(mcp) as client:
        for given, seen in (
            ({"one": "[x"}, "('[x', None, 3, 0)"),
            ({"one": 1, "three": "4", "four": "5"}, "(1, None, 4, 5.0)"),
            ({"one": 1, "two": [True, 2, {"a": True}], "four": "1"}, "(1, [True, 2, {'a': True}], 3, 1.0)"),
        ):
            assert (await client.call("order", given)).text == seen
        refused = await client.call("order", {"one": True}, raise_on_error=False)
        assert "'one' must be an integer or a string, got true" in refused.text


async def test_errors_mention_only_what_lenient_tools_reject() -> None:
    mcp = Server("one")
    register(mcp, coerce=True)
    async with connect(mcp) as client:
        wrong = {"count": "three", "isbns": "[1]", "first": '{"isbn": 5}', "price": ""}
        found = await client.call("order", wrong, raise_on_error=False)
    assert "'count' must be an integer" in found.text
    assert not {"'isbns'", "'first'", "'first.isbn'", "'price'"} & {word.strip(";") for word in found.text.split()}


@for_each("wrong", [{"count": "three"}, {"count": 1, "isbns": "[1, "}, {}, {"count": "[3]"}])
async def test_lenient_tools_still_reject_invalid_arguments(wrong: dict[str, Any]) -> None:
    mcp = Server("one")
    register(mcp, coerce=True)
    async with connect(mcp) as client:
        result = await client.call("order", **wrong, raise_on_error=False)
    assert result.is_error
    assert "Invalid arguments for tool 'order'" in result.text


async def test_tools_are_strict_by_default() -> None:
    strict, told = Server("one"), Server("two", settings=Settings(coerce_arguments=True))
    register(strict)
    register(told, coerce=False)
    for mcp in (strict, told):
        async with connect(mcp) as client:
            for wrong in ({"count": "3"}, {"count": 3, "unknown": 1}):
                assert (await client.call("order", **wrong, raise_on_error=False)).is_error


class Level(enum.IntEnum):
    LOW = 1


TYPES: tuple[Any, ...] = (int, float, bool, int | None, bool | str, Literal[1, 2], Level, dt.datetime, int | float)
TEXTS = ("1", " 1", "01", "1_0", "1.0", "1.5", "1e3", "nan", "inf", "true", "yes", "on", "null", "1999", "")


async def test_texts_are_read_in_one_way_alone_and_beside_a_type_of_pydantic() -> None:
    def alone(value: Any) -> str:
        return repr(value)

    def beside(value: Any, other: pydantic.PositiveInt = 1) -> str:
        return repr(value)

    for annotation in TYPES:
        mcp = Server("one")
        for function in (alone, beside):
            function.__annotations__["value"] = annotation
            mcp.tool(function, coerce=True)
            mcp.prompt(function)
        async with connect(mcp) as client:
            for text in TEXTS:
                found: set[str] = set()
                for name in ("alone", "beside"):
                    result = await client.call(name, raise_on_error=False, value=text)
                    found.add("refused" if result.is_error else result.text)
                    try:
                        content = (await client.prompt(name, value=text)).messages[0].content
                        found.add(content.text if isinstance(content, Text) else "")
                    except ServerError:
                        found.add("refused")
                assert len(found) == 1, (annotation, text, found)
