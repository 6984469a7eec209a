"""Decimal numbers: what their schema has is what is read and written, and nothing that only Python calls a number."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec
import pydantic
import pytest
from jsonschema import Draft202012Validator

from millstream import Server
from millstream._protocol.errors import LocalError, ProtocolError
from millstream._server.functions.plan import plan
from millstream._server.functions.reading import ArgumentError, read_arguments, read_texts
from millstream._server.functions.results import DecimalOutput, encode_result
from millstream._server.questions.forms import parse_answer
from wire import LATEST_HANDSHAKE, PER_REQUEST, enveloped, request, routing, wired

ODD = ["NaN", "sNaN1", "Infinity", "-inf", "1_000", "\uff11\uff12", " 1", "1\n"]


@dataclass
class Item:
    price: Decimal
    name: str = "NaN"


class Packed(msgspec.Struct, rename="camel"):
    unit_price: Decimal


class Row(NamedTuple):
    name: str
    price: Decimal


@dataclass
class Basket:
    items: list[Item] = field(default_factory=list)
    below: "Basket | None" = None


T = TypeVar("T")


@dataclass
class Boxed(Generic[T]):
    item: T


class Lot(msgspec.Struct, Generic[T]):
    item: T


class One(msgspec.Struct, tag="one"):
    v: Decimal


class Two(msgspec.Struct, tag="two"):
    v: str


class Model(pydantic.BaseModel):
    name: str


def tool_with(annotation: Any) -> Callable[..., Any]:
    """A tool whose parameter `x` has a type."""

    def tool(x: Any) -> Any:
        return x

    tool.__annotations__["x"] = annotation
    return tool


PLACES: list[tuple[Any, str, str]] = [
    (Decimal, "%s", "'x'"),
    (Decimal | None, "%s", "'x'"),
    (Decimal | int, "%s", "'x'"),
    (Decimal | Literal["auto"], "%s", "'x'"),
    (list[Decimal], '["1",%s]', "'x[1]'"),
    (tuple[str, Decimal], '["NaN",%s]', "'x[1]'"),
    (tuple[Decimal, ...], "[%s]", "'x[0]'"),
    (dict[str, Decimal], '{"NaN":%s}', "'x[...]'"),
    (dict[str, list[Decimal | None]], '{"a":[null,%s]}', "'x[...][1]'"),
    (Item, '{"price":%s}', "'x.price'"),
    (Packed, '{"unitPrice":%s}', "'x.unitPrice'"),
    (Row, '["NaN",%s]', "'x[1]'"),
    (Basket, '{"below":{"items":[{"price":%s}]}}', "'x.below.items[0].price'"),
    (Item | Model, '{"price":%s}', "'x.price'"),
    (list[Item] | dict[str, Item], '[{"price":%s}]', "'x[0].price'"),
    (Boxed[Decimal], '{"item":%s}', "'x.item'"),
    (Lot[Boxed[Decimal]], '{"item":{"item":%s}}', "'x.item.item'"),
    (One | Two | None, '{"type":"one","v":%s}', "'x.v'"),
    (list[One | Two | None], '[null,{"type":"two","v":"NaN"},{"type":"one","v":%s}]', "'x[2].v'"),
]


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize(("annotation", "raw", "place"), PLACES)
def test_a_text_that_only_python_reads_as_a_decimal_number_is_refused(
    annotation: Any, raw: str, place: str, text: str
) -> None:
    """A fixed defect: it was accepted, against the `pattern` that clients see; lenient or not."""
    given = b'{"x":%b}' % (raw % json.dumps(text)).encode()
    for lenient in (False, True):
        made = plan(tool_with(annotation), lenient=lenient)
        with pytest.raises(ArgumentError) as refused:
            read_arguments(made, given)
        assert f"{place} must be a decimal number as text, such as 1.50" in str(refused.value)


@pytest.mark.parametrize("text", ["1", "-1.50", "+.5", "1.", "1E+3", "0e-7"])
@pytest.mark.parametrize(("annotation", "raw", "place"), PLACES)
def test_a_text_that_the_schema_has_is_read(annotation: Any, raw: str, place: str, text: str) -> None:
    """Everywhere."""
    made = plan(tool_with(annotation))
    assert str(Decimal(text)) in str(read_arguments(made, b'{"x":%b}' % (raw % json.dumps(text)).encode()))


@pytest.mark.parametrize(
    ("annotation", "raw"),
    [(Decimal | Literal["NaN"], '"NaN"'), (Item | Model, '{"name":"NaN"}'), (Decimal, "1.5"), (Decimal | None, "null")],
)
def test_a_text_that_another_alternative_has_is_read(annotation: Any, raw: str) -> None:
    """Only where nothing but a decimal number is meant is it refused."""
    read_arguments(plan(tool_with(annotation)), b'{"x":%b}' % raw.encode())


def test_arguments_that_arrive_as_text_have_the_same_decimal_numbers() -> None:
    """Those of prompts and resources."""
    made = plan(tool_with(Decimal), kind="prompt")
    assert read_texts(made, {"x": "1.50"}).x == Decimal("1.50")
    with pytest.raises(ArgumentError, match="'x' must be a decimal number as text"):
        read_texts(made, {"x": "NaN"})


def test_a_form_has_the_same_decimal_numbers() -> None:
    """The wire doesn't know the pattern of a field, so the answer is checked."""
    assert parse_answer({"price": "1.50", "name": "NaN"}, Item).price == Decimal("1.50")
    for text in ODD:
        with pytest.raises(ProtocolError, match=r"does not fit what was asked: Invalid decimal string - at `\$.price`"):
            parse_answer({"price": text}, Item)


def output_of(annotation: Any) -> Any:
    def tool() -> Any: ...

    tool.__annotations__["return"] = annotation
    return plan(tool).output


RESULTS: list[tuple[Any, Callable[[Decimal], Any], str]] = [
    (list[Decimal], lambda number: [Decimal(1), number], "$[1]"),
    (dict[str, Decimal], lambda number: {"NaN": number}, "$[...]"),
    (Item, Item, "$.price"),
    (Packed, Packed, "$.unitPrice"),
    (Basket, lambda number: Basket([Item(Decimal(1)), Item(number)]), "$.items[1].price"),
    (Item | None, Item, "$.price"),
    (Boxed[Decimal], Boxed, "$.item"),
    (Lot[Decimal], Lot, "$.item"),
    (list[One | Two | None], lambda number: [Two("NaN"), One(number)], "$[1].v"),
]


@pytest.mark.parametrize("number", ["NaN", "sNaN", "-NaN12", "Infinity", "-Infinity"])
@pytest.mark.parametrize(("annotation", "make", "place"), RESULTS)
def test_a_result_with_a_decimal_that_is_no_number_fails_as_one_with_a_float_does(
    annotation: Any, make: Callable[[Decimal], Any], place: str, number: str
) -> None:
    """A fixed defect: it was sent against the output schema, and strict clients refused it."""
    with pytest.raises(LocalError) as failed:
        encode_result(make(Decimal(number)), output_of(annotation))
    assert "does not fit the output schema: got a Decimal that is NaN or an infinity" in str(failed.value)
    assert f"at `{place}`" in str(failed.value)
    for fine in ("1", "-1.50", "1E+400", "0E-10"):
        members = json.loads(b"{%b}" % encode_result(make(Decimal(fine)), output_of(annotation)))
        Draft202012Validator(output_of(annotation).schema).validate(members["structuredContent"])


def test_only_types_with_decimal_numbers_are_looked_at() -> None:
    """Others have no check at all, and none of theirs reads the JSON a second time for it."""

    def tool(x: list[str], y: Model, z: dict[str, float]) -> dict[str, Any]: ...

    assert plan(tool).decimals is None
    assert plan(tool_with(Basket)).decimals is not None
    assert type(plan(tool).output) is not DecimalOutput
    assert type(output_of(list[Decimal])) is DecimalOutput


@pytest.mark.parametrize("revision", [LATEST_HANDSHAKE, PER_REQUEST])
@pytest.mark.parametrize("way", ["asgi", "lane"])
async def test_the_short_cut_of_a_tool_refuses_them_too(way: str, revision: str) -> None:
    """Both eras; and what fits still takes the short cut."""
    mcp = Server("shop")

    @mcp.tool
    def price(amount: Decimal = Decimal(2)) -> str:
        return str(amount * 2)

    assert mcp.registry.tools["price"].plain
    async with wired(mcp, way) as wire:
        headers = await wire.initialize() if revision == LATEST_HANDSHAKE else routing("tools/call", "price")
        for arguments, found in (({"amount": "1.5"}, "3.0"), ({}, "4"), ({"amount": "NaN"}, "'amount' must be a dec")):
            params = {"name": "price", "arguments": arguments}
            message = request("tools/call", params, 1)
            message = message if revision == LATEST_HANDSHAKE else enveloped("tools/call", params)
            assert (await wire.post(message, headers)).message["result"]["content"][0]["text"].partition(found)[1]
        prepared = mcp.registry.fast[b"price"]
        body = json.dumps(enveloped("tools/call", {"name": "price", "arguments": {"amount": "1.5"}})).encode()
        assert prepared.decode(body).params.arguments.amount == Decimal("1.5")
        for odd in ('"1_000"', '"' + "1" * 70_000 + '"'):
            with pytest.raises(msgspec.DecodeError):
                prepared.decode(body.replace(b'"1.5"', odd.encode()))
