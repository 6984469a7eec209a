"""Bounds, types and defaults that pydantic alone understands, on the parameters of functions."""

import datetime as dt
import re
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import annotated_types
import pydantic
import pytest

from millstream import Field
from millstream._protocol.json_schema import Schema
from millstream._server.functions.plan import Plan, plan
from millstream._server.functions.reading import ArgumentError, read_arguments


def taking(annotation: Any) -> Plan:
    """The plan of a function with one parameter, `x`."""

    def tool(x: Any) -> Any:
        return x

    tool.__annotations__["x"] = annotation
    return plan(tool)


BOUNDED: list[tuple[Any, bytes, bytes]] = [
    (Annotated[Decimal, pydantic.Field(ge=1)], b'"1.5"', b'"0.5"'),
    (Annotated[Decimal, pydantic.Field(gt=Decimal(0))], b"1", b'"0"'),
    (Annotated[Decimal, annotated_types.Gt(0)], b'"1"', b'"0"'),
    (Annotated[Decimal, Field(ge=1)], b'"1"', b'"0"'),
    (Annotated[Decimal | None, pydantic.Field(ge=1)], b"null", b'"0"'),
    (Annotated[Decimal | int, pydantic.Field(ge=1)], b"1", b'"0"'),
    (list[Annotated[Decimal | None, pydantic.Field(ge=1)]], b'[null,"1"]', b'["0"]'),
    (Annotated[dt.date, pydantic.Field(ge=dt.date(2020, 1, 1))], b'"2020-01-01"', b'"2019-12-31"'),
    (Annotated[dt.timedelta, annotated_types.Gt(dt.timedelta(0))], b'"PT1S"', b'"-PT1S"'),
    (list[pydantic.condate(gt=dt.date(2020, 1, 1))], b'["2021-01-01"]', b'["2019-12-31"]'),  # type: ignore[misc]  # made here
    (Annotated[str, pydantic.Field(pattern=re.compile("^a"))], b'"ab"', b'"b"'),
    (dict[str, pydantic.JsonValue], b'{"a":[1,{"b":null}]}', b"[1]"),
]


@pytest.mark.parametrize(("annotation", "fits", "fails"), BOUNDED)
def test_what_only_pydantic_can_check_is_given_to_it(annotation: Any, fits: bytes, fails: bytes) -> None:
    """A fixed defect: these were refused at registration, with words about numeric types."""
    made = taking(annotation)
    read_arguments(made, b'{"x":%b}' % fits)
    with pytest.raises(ArgumentError):
        read_arguments(made, b'{"x":%b}' % fails)


def test_a_bound_as_the_default_value_of_a_parameter_may_be_a_date() -> None:
    """The habit of pydantic's users."""

    def tool(x: dt.date = pydantic.Field(gt=dt.date(2020, 1, 1))) -> Any:  # noqa: B008
        return x

    assert read_arguments(plan(tool), b'{"x":"2020-01-02"}').x == dt.date(2020, 1, 2)
    with pytest.raises(ArgumentError):
        read_arguments(plan(tool), b'{"x":"2020-01-01"}')


@pytest.mark.parametrize(
    "annotation", [Annotated[Decimal, pydantic.Field(min_length=1)], Annotated[Decimal, Field(pattern="1")]]
)
def test_a_bound_of_texts_on_a_decimal_is_refused_at_registration(annotation: Any) -> None:
    """pydantic would only say so in each call."""
    with pytest.raises(TypeError, match="parameter 'x'"):
        taking(annotation)


def test_a_text_beside_a_validator_still_describes_the_parameter() -> None:
    """A fixed defect: it got lost."""
    made = taking(Annotated[str, "What to say", pydantic.AfterValidator(str.strip)])
    assert made.input_schema["properties"]["x"] == {"description": "What to say", "type": "string"}


def test_a_default_factory_makes_a_default_for_each_call() -> None:
    """A fixed defect: it ran once, at registration, and every call got the same id and the same time."""

    def tool(
        a: Annotated[uuid.UUID, pydantic.Field(default_factory=uuid.uuid4)],
        b: dt.datetime = pydantic.Field(default_factory=dt.datetime.now),  # noqa: B008
        c: str = pydantic.Field(default_factory=lambda: uuid.uuid4().hex, max_length=32),
        d: list[int] = pydantic.Field(default_factory=lambda: [1]),  # noqa: B008
        e: Annotated[str, pydantic.Field(default_factory=lambda: "unused")] = "said",
    ) -> Any:
        return a, b, c, d, e

    made = plan(tool)
    first, second = (made.call(read_arguments(made, b"{}"), None) for _ in range(2))
    assert all(one != other for one, other in zip(first[:3], second[:3], strict=True))
    assert first[3:] == second[3:] == ([1], "said")
    assert first[3] is not second[3]
    properties: Schema = made.input_schema["properties"]
    assert {name: node["default"] for name, node in properties.items() if "default" in node} == {"d": [1], "e": "said"}


@dataclass
class Row:
    number: int


@dataclass
class Column:
    letter: str


@pytest.mark.parametrize(
    ("annotation", "raw", "value"),
    [(list[int] | list[str], b"[2.0]", [2]), (Row | Column | None, b'{"number":2.0}', Row(2))],
)
def test_a_whole_number_with_a_point_is_an_integer_inside_a_union_read_by_shape(
    annotation: Any, raw: bytes, value: Any
) -> None:
    """A fixed defect: it was refused there, and is an integer for JSON Schema."""
    assert read_arguments(taking(annotation), b'{"x":%b}' % raw).x == value
