"""Models that are written otherwise than they're read: what a tool promises, and what it sends."""

import datetime as dt
import json
import math
import re
from dataclasses import dataclass
from typing import Any

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
