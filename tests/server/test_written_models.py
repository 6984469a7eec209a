"""Models that are written otherwise than they're read: what a tool promises, and what it sends."""

import datetime as dt
import enum
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import msgspec
import pydantic
import pytest
from jsonschema import Draft202012Validator

from millstream._protocol.errors import LocalError
from millstream._protocol.json_schema import schema_of
from millstream._server.functions.results import ToolResult, encode_result, output_of


class Computed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    a: int = 1

    @pydantic.computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def b(self) -> int:
        return 2


class WrittenAs(pydantic.BaseModel):
    x: int = pydantic.Field(serialization_alias="outX")


class ReadAs(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(populate_by_name=True)
    x: int = pydantic.Field(validation_alias="inX")


class Excluding(pydantic.BaseModel):
    a: int
    b: int = pydantic.Field(exclude=True)


class Price(pydantic.BaseModel):
    cents: int

    @pydantic.field_serializer("cents")
    def whole(self, cents: int) -> str:
        return f"{cents / 100:.2f}"


class Measured(pydantic.BaseModel):
    x: float
    note: str | None = None


VALUES: list[tuple[Any, Any]] = [
    (Computed(), {"a": 1, "b": 2}),
    (WrittenAs(x=1), {"outX": 1}),
    (ReadAs(x=1), {"x": 1}),
    (Excluding(a=1, b=2), {"a": 1}),
    (Price(cents=150), {"cents": "1.50"}),
]


@pytest.mark.parametrize(("value", "sent"), VALUES)
def test_what_is_sent_of_a_model_fits_the_output_schema(value: Any, sent: Any) -> None:
    """A fixed defect: the schema was that of reading, so clients refused results; inside lists each call failed."""
    kind = type(value)
    cases: list[tuple[Any, Any, Any]] = [
        (kind, value, sent),
        (list[kind], [value], [sent]),  # type: ignore[valid-type]  # a type made here
        (dict[str, kind], {"k": value}, {"k": sent}),  # type: ignore[valid-type]  # as above
        (kind, ToolResult(structured=value), sent),
    ]
    for annotation, given, expected in cases:
        output = output_of(annotation)
        assert output is not None
        result = json.loads(b"{%b}" % encode_result(given, output))
        assert result["structuredContent"] == expected
        assert json.loads(result["content"][0]["text"]) == expected
        Draft202012Validator(output.schema).validate(expected)


def test_builtins_instead_of_such_a_model_are_sent_as_it_would_be() -> None:
    """Rows of a database, for example."""
    result = encode_result([{"cents": 150}], output_of(list[Price]))
    assert json.loads(b"{%b}" % result)["structuredContent"] == [{"cents": "1.50"}]


@pytest.mark.parametrize("value", [[WrittenAs(x=1)], [{"cents": "much"}], [Price.model_construct(cents="no")], 3])
def test_a_value_that_is_no_such_model_breaks_the_promise(value: Any) -> None:
    """Also one that was made without a check."""
    with pytest.raises(LocalError, match="the result does not fit the output schema"):
        encode_result(value, output_of(list[Price]))


def test_a_number_of_a_model_that_json_lacks_is_said_and_not_sent_as_null() -> None:
    """A fixed defect: the schema says number, and clients refused the null."""
    output = output_of(Measured)
    with pytest.raises(LocalError, match="NaN or an infinity"):
        encode_result(Measured(x=math.nan), output)
    assert json.loads(b"{%b}" % encode_result(Measured(x=1), output))["structuredContent"] == {"x": 1.0, "note": None}


class Appointment(pydantic.BaseModel):
    at: dt.datetime
    takes: dt.timedelta
    day: dt.date


@dataclass
class Meeting:
    at: dt.datetime
    takes: dt.timedelta
    day: dt.date


@pytest.mark.parametrize("kind", [Appointment, Meeting, list[Appointment], list[Meeting], dict[str, Appointment]])
def test_the_schema_of_a_result_has_no_format_that_its_moments_may_lack(kind: Any) -> None:
    """Fixed: `datetime.now()` has no offset, which RFC 3339 wants, and the official TypeScript client refused it."""
    output = output_of(kind)
    assert output is not None
    formats = re.findall(r"'format': '([^']+)'", repr(output.schema))
    assert formats == ["date"]
    assert len(re.findall("'format'", repr(schema_of(Meeting)))) == 3


@dataclass
class Report:
    model: Computed
    data: bytes = b""
    price: Decimal = Decimal(1)
    part: float = 0.0
    extra: Any = None


class Packed(msgspec.Struct):
    model: Computed
    number: float = 0.0


class Derived(Computed):
    secret: int = 3


class Ratio(pydantic.BaseModel):
    a: int

    @pydantic.computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def ratio(self) -> float:
        return math.inf if self.a == 0 else 1 / self.a


def sent(annotation: Any, value: Any) -> Any:
    """What a client reads of a result, which fits the schema."""
    output = output_of(annotation)
    assert output is not None
    structured = json.loads(b"{%b}" % encode_result(value, output))["structuredContent"]
    Draft202012Validator(output.schema).validate(structured)
    return structured


@pytest.mark.parametrize(
    ("value", "there"),
    [
        (Report(Computed(), b"ab"), {"data": "YWI="}),
        (Report(Computed(), b"\xff"), {"data": "/w=="}),
        ({"model": {}, "data": "YWI=", "price": "1", "part": 0, "extra": None}, {"data": "YWI="}),
        (Report(Computed(), extra={"k": b"\xff"}), {"extra": {"k": "/w=="}}),
        (Report(Computed(), extra=Packed(Computed())), {"extra": {"model": {"a": 1, "b": 2}, "number": 0.0}}),
        (Report(Computed(), extra=[WrittenAs(x=1), math.nan]), {"extra": [{"outX": 1}, None]}),
        (Report(Derived()), {}),
    ],
)
def test_what_is_around_such_a_model_is_written_as_elsewhere(value: Any, there: dict[str, Any]) -> None:
    """Fixed: pydantic wrote the whole, so bytes weren't base64, and other bytes and Structs were internal errors."""
    expected = {"model": {"a": 1, "b": 2}, "data": "", "price": "1", "part": 0.0, "extra": None, **there}
    assert sent(Report, value) == expected
    assert sent(list[Report], [value, value]) == [expected, expected]


def test_such_a_model_in_a_struct_is_sent_though_pydantic_knows_no_structs() -> None:
    """A fixed defect: a model that forbids other fields was refused for its computed ones."""
    assert sent(Packed, Packed(Computed())) == {"model": {"a": 1, "b": 2}, "number": 0.0}
    assert sent(Packed, {"model": {}}) == {"model": {"a": 1, "b": 2}, "number": 0.0}
    with pytest.raises(LocalError, match=r"aren't what Computed is written as: return the model - at `\$.model`"):
        sent(Packed, Packed({"a": 1}))  # type: ignore[arg-type]  # that's the point


def test_a_dataclass_that_checks_itself_is_made_once_around_such_a_model() -> None:
    """Reading it back would make it again; one inside another is read, with the model that it had."""
    made: list[int] = []

    @dataclass
    class Checked:
        model: Computed

        def __post_init__(self) -> None:
            made.append(self.model.a)

    value = Checked(Computed(a=5))
    assert sent(Checked, value) == {"model": {"a": 5, "b": 2}}
    assert made == [5]
    assert sent(list[Checked], [value]) == [{"model": {"a": 5, "b": 2}}]
    assert made == [5, 5]


@pytest.mark.parametrize(
    ("annotation", "value", "why"),
    [
        (Report, Report(Computed(), price=Decimal("NaN")), r"a Decimal that is NaN or an infinity.* at `\$.price`"),
        (list[Report], [Report(Computed(), price=Decimal("inf"))], r"a Decimal that is NaN.* at `\$\[0\].price`"),
        (Report, Report(Computed(), part=math.nan), r"got NaN or an infinity.* at `\$.part`"),
        (Packed, Packed(Computed(), number=math.inf), r"got NaN or an infinity.* at `\$.number`"),
        (Ratio, Ratio(a=0), "got NaN or an infinity"),
        (Sequence[Ratio], [Ratio(a=0)], "got NaN or an infinity"),
        (Report, Report(Computed(), part="much"), r"got `str` - at `\$.part`"),  # type: ignore[arg-type]
    ],
)
def test_what_is_around_such_a_model_or_in_it_breaks_the_promise_as_elsewhere(
    annotation: Any, value: Any, why: str
) -> None:
    """A fixed defect: what is no number was sent, as a text or as null, where models are written otherwise."""
    with pytest.raises(LocalError, match="does not fit the output schema: .*" + why):
        sent(annotation, value)


class Stamped(pydantic.BaseModel):
    when: dt.datetime
    size: Annotated[str, pydantic.PlainSerializer(len)]

    @pydantic.field_serializer("when")
    def seconds(self, when: dt.datetime):  # type: ignore[no-untyped-def]
        return int(when.timestamp())


class Whole(pydantic.BaseModel):
    x: int

    @pydantic.model_serializer
    def pair(self):  # type: ignore[no-untyped-def]
        return [self.x]


def test_what_a_serializer_without_a_return_annotation_writes_may_be_anything() -> None:
    """A fixed defect: the schema said what is read, a text, and a number was sent."""
    value = Stamped(when=dt.datetime(1970, 1, 1, tzinfo=dt.UTC), size="abc")
    assert sent(Stamped, value) == {"when": 0, "size": 3}
    assert sent(list[Stamped], [value]) == [{"when": 0, "size": 3}]
    assert sent(list[Whole], [Whole(x=1)]) == [[1]]
    assert output_of(Whole) is None


class Product(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(populate_by_name=True)
    unit_price: float = pydantic.Field(alias="unitPrice")
    tags: list[str] = []


class Sold(pydantic.BaseModel):
    at: dt.date
    product: Product


ROW = {"unit_price": Decimal("1.5"), "tags": ["x"]}
SENT = {"unitPrice": 1.5, "tags": ["x"]}
ROWS: list[tuple[Any, Any, Any]] = [
    (Product, ROW, SENT),
    (Product, {"unitPrice": "1.5"}, {"unitPrice": 1.5, "tags": []}),
    (list[Product], [ROW, Product(unitPrice=2)], [SENT, {"unitPrice": 2.0, "tags": []}]),
    (tuple[Product, ...], (ROW,), [SENT]),
    (dict[str, Product], {"a": ROW}, {"a": SENT}),
    (Annotated[Product | None, "text"], ROW, SENT),
    (list[Product] | None, [ROW], [SENT]),
    (list[Sold], [{"at": dt.date(2020, 1, 2), "product": ROW}], [{"at": "2020-01-02", "product": SENT}]),
    (Product, ToolResult(structured=ROW), SENT),
    (Product, {"unitPrice": 1.5}, {"unitPrice": 1.5}),
    (list[Product], [{"unitPrice": 1, "more": True}], [{"unitPrice": 1, "more": True}]),
]


@pytest.mark.parametrize(("annotation", "value", "sent"), ROWS)
def test_builtins_that_only_pydantic_reads_as_a_model_are_sent_as_the_model(
    annotation: Any, value: Any, sent: Any
) -> None:
    """A fixed defect: a Decimal went out as a text where the schema has a number. What fits is sent as it is."""
    output = output_of(annotation)
    assert output is not None
    result = json.loads(b"{%b}" % encode_result(value, output))
    assert result["structuredContent"] == json.loads(result["content"][0]["text"]) == sent
    Draft202012Validator(output.schema).validate(sent)


def test_builtins_that_are_no_model_are_refused_with_the_field() -> None:
    """As before."""
    with pytest.raises(LocalError, match=r"unitPrice: Input should be a valid number"):
        encode_result([{"unitPrice": "much"}], output_of(list[Product]))


class Right(enum.IntFlag):
    READ = 1
    WRITE = 2


def test_several_flags_at_once_fit_the_schema() -> None:
    """A fixed defect: clients refused such a result, for the schema had each flag alone."""
    output = output_of(list[Right])
    assert output is not None
    sent = json.loads(b"{%b}" % encode_result([Right.READ | Right.WRITE], output))["structuredContent"]
    assert sent == [3]
    Draft202012Validator(output.schema).validate(sent)
    assert schema_of(Right) == {"type": "integer"}
