import json
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, TypeVar

import attrs
import msgspec
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from cases import for_each
from millstream import Field, Server
from millstream._protocol.errors import LocalError, ProtocolError
from millstream._server.calls.questions import parse_answer
from millstream._server.functions.engine import encode_result
from millstream._server.functions.plan import ArgumentError, plan, read_arguments, read_texts
from wire import LATEST_HANDSHAKE, PER_REQUEST, per_request, request, routing, run_wire

ODD = ["NaN", "sNaN1", "Infinity", "-inf", "1_000", "\uff11\uff12", " 1", "1\n"]


@dataclass
class Item:
    price: Decimal
    name: str = "NaN"


@dataclass
class Basket:
    items: list[Item] = field(default_factory=list)
    below: "Basket | None" = None


class Priced(BaseModel):
    price: Decimal


class One(msgspec.Struct, tag="one"):
    v: Decimal


class Two(msgspec.Struct, tag="two"):
    v: str


T = TypeVar("T")


class Box(msgspec.Struct, Generic[T]):
    content: list[T]


@attrs.define
class Label:
    price: Decimal


def tool_with(annotation: Any) -> Any:
    """Return a tool whose parameter `x` and result have a type."""

    def tool(x: Any) -> Any:
        return x

    tool.__annotations__.update({"x": annotation, "return": annotation})
    return tool


def bill(amount: Decimal, copies: int) -> str:
    return f"{amount} {copies}"


PLACES: list[tuple[Any, str, str]] = [
    (Decimal, "%s", "'x'"),
    (Decimal | None, "%s", "'x'"),
    (dict[str, list[Decimal | None]], '{"a":[null,%s]}', "'x.a[1]'"),
    (Basket, '{"below":{"items":[{"price":%s}]}}', "'x.below.items[0].price'"),
    (Priced, '{"price":%s}', "'x.price'"),
    (Box[Decimal], '{"content":[%s]}', "'x.content[0]'"),
    (Label, '{"price":%s}', "'x.price'"),
    (Box[Label], '{"content":[{"price":%s}]}', "'x.content[0].price'"),
    (list[One | Two | None], '[null,{"type":"two","v":"NaN"},{"type":"one","v":%s}]', "'x[2].v'"),
]


@for_each(("annotation", "raw", "place"), PLACES)
def test_decimals_accept_only_strings_that_match_the_schema(annotation: Any, raw: str, place: str) -> None:
    for coerce in (False, True):
        made = plan(tool_with(annotation), coerce=coerce)
        for text in ODD:
            with pytest.raises(ArgumentError) as refused:
                read_arguments(made, b'{"x":%b}' % (raw % json.dumps(text)).encode())
            assert f"{place} must be a decimal number as text, such as 1.50" in str(refused.value)
        for text in ("1", "-1.50", "+.5", "1.", "1E+3", "0e-7"):
            found = read_arguments(made, b'{"x":%b}' % (raw % json.dumps(text)).encode())
            assert str(Decimal(text)) in str(found)


def test_bounds_of_decimals_apply_to_numbers_and_strings() -> None:
    made = plan(tool_with(Annotated[Decimal, Field(ge=0, le=1)]))
    assert made.input_schema["properties"]["x"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}
    assert read_arguments(made, b'{"x":"0.5"}').x == read_arguments(made, b'{"x":0.5}').x == Decimal("0.5")
    for raw, got in ((b'"1.5"', 'got "1.5"'), (b'"NaN"', 'got "NaN"')):
        with pytest.raises(ArgumentError, match=got):
            read_arguments(made, b'{"x":%b}' % raw)


def test_decimals_accept_numbers_and_other_union_members() -> None:
    for annotation, raw in ((Decimal | Literal["NaN"], '"NaN"'), (Decimal, "1.5"), (Decimal | None, "null")):
        read_arguments(plan(tool_with(annotation)), b'{"x":%b}' % raw.encode())


def test_prompts_and_forms_accept_the_same_decimals_as_tools() -> None:
    made = plan(tool_with(Decimal), kind="prompt")
    assert read_texts(made, {"x": "1.50"}).x == Decimal("1.50")
    with pytest.raises(ArgumentError, match="'x' must be a decimal number as text"):
        read_texts(made, {"x": "NaN"})
    both = plan(bill, kind="prompt")
    assert read_texts(both, {"amount": "1.50", "copies": "3"}).copies == 3
    assert parse_answer({"price": "1.50", "name": "NaN"}, Item).price == Decimal("1.50")
    with pytest.raises(ProtocolError, match="doesn't match the form: 'price' must be a decimal number"):
        parse_answer({"price": "NaN"}, Item)


def test_results_with_nan_decimals_fail() -> None:
    for annotation, make in ((list[Decimal], lambda number: [Decimal(1), number]), (Item, Item)):
        output: Any = plan(tool_with(annotation)).output
        for number in ("NaN", "sNaN", "-NaN12", "Infinity", "-Infinity"):
            with pytest.raises(LocalError, match=r"(\[1\]|price).* (must be a decimal|should be a finite) number"):
                encode_result(make(Decimal(number)), output)
        for fine in ("1", "-1.50", "1E+400", "0E-10"):
            members = json.loads(b"{%b}" % encode_result(make(Decimal(fine)), output))
            Draft202012Validator(output.schema).validate(members["structuredContent"])


@for_each("revision", [LATEST_HANDSHAKE, PER_REQUEST])
@for_each("way", ["asgi", "lane"])
async def test_fast_path_rejects_invalid_decimals(way: str, revision: str) -> None:
    mcp = Server("shop")

    @mcp.tool
    def price(amount: Decimal = Decimal(2)) -> str:
        return str(amount * 2)

    assert mcp.registry.tools["price"].plain
    async with run_wire(mcp, way) as wire:
        headers = await wire.initialize() if revision == LATEST_HANDSHAKE else routing("tools/call", "price")
        for arguments, found in (({"amount": "1.5"}, "3.0"), ({}, "4"), ({"amount": "NaN"}, "'amount' must be a dec")):
            params = {"name": "price", "arguments": arguments}
            message = request("tools/call", params, 1)
            message = message if revision == LATEST_HANDSHAKE else per_request("tools/call", params)
            assert (await wire.post(message, headers)).message["result"]["content"][0]["text"].partition(found)[1]
        decode = mcp.registry.tools["price"].decode
        assert decode(b'{"amount":"1.5"}').amount == Decimal("1.5")
        with pytest.raises(msgspec.DecodeError):
            decode(b'{"amount":"1_000"}')
