"""Each type accepts the same JSON wherever it's written, whichever library reads it."""

import dataclasses
import datetime as dt
import enum
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pydantic
import pytest
from typing_extensions import TypedDict

from cases import for_each
from millstream import Field
from plans import (
    ArgumentError,
    LocalError,
    ProtocolError,
    decoder_of,
    encode_result,
    parse_answer,
    plan,
    read_arguments,
    read_texts,
    requested_schema,
)
from type_rows import ROWS, type_in


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Tone(enum.Enum):
    WARM = "warm"
    DRY = "dry"


class Point(NamedTuple):
    x: int
    y: int = 0


class Model(pydantic.BaseModel):
    z: int = 0


class Leveled(pydantic.BaseModel):
    level: Level = Level.LOW


@dataclasses.dataclass
class Step:
    level: Level
    after: "Step | None" = None


class Planned(pydantic.BaseModel):
    step: Step


class Written(pydantic.BaseModel, extra="forbid"):
    number: int = pydantic.Field(serialization_alias="no")


ID = "123e4567-e89b-42d3-a456-426614174000"
MORE: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "an int": (int, [2, 2.0], ["2", True, None, [2]]),
    "a float": (float, [1, 1.5], ["1", True, 2**1030]),
    "a bool": (bool, [True], ["yes", 1]),
    "a date": (dt.date, ["1999-12-31"], ["1999-12-31T00:00:00", "1999", 1]),
    "a time": (dt.time, ["12:00:00Z"], ["12:00", 1]),
    "a datetime": (dt.datetime, ["1999-12-31T12:00:00Z"], ["1999", "1999-12-31", "1.5", 1999]),
    "a duration": (dt.timedelta, ["PT90S", "-P1D"], ["90", "1 day", "12:00:00", 90]),
    "a UUID": (UUID, [ID], [f"urn:uuid:{ID}", f"{{{ID}}}"]),
    "a number as text": (Decimal, ["1.50", 1.5], ["NaN", "1_000", True]),
    "a number as text or null": (Decimal | None, ["1.50", 1.5, None], ["x"]),
    "a choice of numbers": (Literal[1, 2], [1], [True, "1", 3]),
    "a member with a number": (Level, [1], [True, "1", 3]),
    "a member": (Tone, ["warm"], ["WARM", ""]),
    "integer keys": (dict[int, str], [{"1": "a", "-2": "b"}], [{"01": "a"}, {" 1": "a"}, {"1_0": "a"}, {"1.0": "a"}]),
    "members combined": (Rights, [1, 3], ["1", 9, None]),
    "members combined as keys": (dict[Rights, int], [{"1": 1, "3": 2}], [{"01": 1}, {"READ": 1}, {"9": 1}]),
    "a tuple with names": (Point, [[1], [1, 2]], [[], [1, 2, 3], {"x": 1}, ["1"]]),
    "distinct items": (set[int], [[1, 2]], [[1, 1], ["a"]]),
    "distinct dates": (frozenset[dt.date], [["1999-12-31"]], [["1999-12-31", "1999-12-31"]]),
    "items in turn": (Iterable[int], [[1, 2]], [["a"], "ab", {"a": 1}]),
    "a page": (Annotated[int, Field(ge=1)] | Literal[-1], [-1, 5], [0]),
    "zero or a number": (Literal[0] | float, [0, 3, 0.5], ["0"]),
}  # fmt: skip
TYPES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    **MORE,
    **{
        name: (type_in(name), [json.loads(accepted)], [json.loads(each) for each in (refused,) if each])
        for name, _schema, accepted, refused in ROWS
    },
}
"""Type, and the values that it accepts and refuses."""

WAYS = ("", ", beside a model", ", as a client's type", ", as a result")
HELD = ("in a dataclass", "in a dataclass with a bound", "in a TypedDict", "in a model")
PLACES = ("alone", "in a list", "in a union", *HELD)
UNSUPPORTED = "registration"


def everywhere(place: str) -> list[str]:
    return [f"{place}{way}" for way in WAYS]


def cells(kinds: Iterable[str], places: Iterable[str], value: str, why: str) -> dict[tuple[str, str, str], str]:
    return dict.fromkeys(product(kinds, places, (value,)), why)


FIELDS = "a model needs pydantic.Field"
OURS = ("a page", "Annotated[int, Field(ge=1, le=9)]", 'Annotated[str, Field(pattern="^[a-z]+$")]')
KNOWN = {
    **cells(
        [*OURS, "list[Annotated[int, Field(ge=1)]]", "Book", "Book | Film", "Book | Review | None"],
        everywhere("in a model"),
        UNSUPPORTED,
        FIELDS,
    ),
    **cells(["Literal[Tone.WARM]"], everywhere("in a model"), '"warm"', "in a model, pydantic reads no such literal"),
    **cells(
        ["members combined as keys"],
        everywhere("in a model"),
        '{"1": 1, "3": 2}',
        "in a model, pydantic reads no such keys",
    ),
}
"""Type, place, value -> why the promise isn't kept there. If it is, the test fails, and the cell must go."""


def reader_of(annotation: Any, *, beside: bool = False) -> Callable[[Any], Any]:
    def tool(value: Any) -> None: ...

    def tool_beside(value: Any, model: Any = None) -> None: ...

    made: Any = tool_beside if beside else tool
    made.__annotations__.update({"value": annotation, **({"model": Model | None} if beside else {})})
    planned = plan(made)
    return lambda value: read_arguments(planned, json.dumps({"value": value}).encode()).value


def reader_for_clients(annotation: Any) -> Callable[[Any], Any]:
    decode = decoder_of(annotation)
    return lambda value: decode(json.dumps(value).encode())


def writer_of(annotation: Any) -> Callable[[Any], Any]:
    """Return a function that reads a value and returns it as a result."""
    read = reader_of(annotation)

    def tool() -> None: ...

    tool.__annotations__["return"] = annotation
    output = plan(tool).output
    return lambda value: encode_result(read(value), output)


def reader_of_forms(annotation: Any) -> Callable[[Any], Any]:
    requested_schema(annotation)
    return lambda value: parse_answer(value, annotation)


READERS: dict[str, Callable[[Any], Callable[[Any], Any]]] = dict(
    zip(WAYS, (reader_of, partial(reader_of, beside=True), reader_for_clients, writer_of), strict=True)
)


def places_of(kind: Any) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
    """Yield places: a name, the annotation with the type in this place, and a function that puts a value there."""
    bounded = [("held", kind), ("other", Annotated[int, Field(ge=1)], 1)]
    yield "alone", kind, lambda value: value
    yield "in a list", list[kind], lambda value: [value]
    yield "in a union", list[kind] | bool, lambda value: [value]
    holders: list[Callable[[], Any]] = [
        lambda: dataclasses.make_dataclass("Holder", bounded[:1]),
        lambda: dataclasses.make_dataclass("Bounded", bounded),
        lambda: TypedDict("Typed", {"held": kind}),  # type: ignore[misc]
        lambda: pydantic.create_model("Held", held=kind),
    ]
    for place, make in zip(HELD, holders, strict=True):
        with suppress(pydantic.PydanticUserError):  # pydantic can't make the model
            yield place, make(), lambda value: {"held": value}


def misfits(name: str, place: str, read: Callable[[Any], Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the cells of values that are accepted or refused by mistake."""
    _, accepted, refused = TYPES[name]
    rows = [(each, True) for each in accepted]
    rows += [(each, False) for each in refused if not place.startswith("in a model")]  # there, the model decides
    for value, fits in rows:
        try:
            read(value)
        except (ArgumentError, ValueError, LocalError, ProtocolError):
            kept = not fits
        else:
            kept = fits
        if not kept:
            yield name, place, json.dumps(value)


def all_misfits(name: str) -> Iterator[tuple[str, str, str]]:
    for place, annotation, put in places_of(TYPES[name][0]):
        for way, make in READERS.items():
            try:
                read = make(annotation)
            except TypeError:
                yield name, f"{place}{way}", UNSUPPORTED
            else:
                yield from misfits(name, f"{place}{way}", lambda value, read=read, put=put: read(put(value)))
        if place == "in a dataclass":
            with suppress(TypeError):  # forms have only plain fields
                fill = reader_of_forms(annotation)
                yield from misfits(name, "in a form", lambda value, put=put, fill=fill: fill(put(value)))


@for_each("name", list(TYPES))
def test_types_accept_the_same_values_in_every_place(name: str) -> None:
    assert {*all_misfits(name)} == {cell for cell in KNOWN if cell[0] == name}


def test_known_cells_are_places_of_the_table() -> None:
    places = {*product(PLACES, WAYS)}
    assert {cell[1] for cell in KNOWN} <= {"in a form", *(f"{place}{way}" for place, way in places)}


def test_text_becomes_the_first_alternative_that_reads_it() -> None:
    for annotation, value, expected in (
        (str | bytes, "test", "test"),
        (str | Path, "a/b", "a/b"),
        (str | UUID, ID, ID),
        (str | Decimal, "1.5", "1.5"),
        (str | Fraction, "1/2", "1/2"),
        (Path | str, "a/b", Path("a/b")),
        (dt.date | str, "1999-12-31", dt.date(1999, 12, 31)),
        (dt.date | str, "soon", "soon"),
        (int | str | bytes | None, "test", "test"),
        (int | str | bytes | None, 3, 3),
    ):
        assert reader_of(annotation)(value) == expected, annotation
        assert reader_of(list[annotation])([value]) == [expected], annotation


def test_a_class_in_a_model_and_beside_it_is_read_by_the_rules_of_each() -> None:
    def tool(model: Leveled, level: Level = Level.LOW) -> None: ...

    def alone(model: Leveled) -> None: ...

    for function in (tool, alone):
        found = read_arguments(plan(function), b'{"model":{"level":true}}')
        assert found.model == Leveled(level=Level.LOW)
    with pytest.raises(ArgumentError, match="'level' must be one of 1, 2"):
        read_arguments(plan(tool), b'{"model":{},"level":true}')


def test_a_recursive_class_in_a_model_and_beside_it_is_read_by_the_rules_of_each() -> None:
    def tool(planned: Planned, step: Step | None = None) -> None: ...

    made = plan(tool)
    assert read_arguments(made, b'{"planned":{"step":{"level":1,"after":{"level":true}}}}').planned.step.after
    with pytest.raises(ArgumentError, match=r"'step\.after\.level' must be one of 1, 2"):
        read_arguments(made, b'{"planned":{"step":{"level":1}},"step":{"level":1,"after":{"level":true}}}')


def test_dates_from_text_are_not_seconds() -> None:
    def once(when: dt.datetime) -> None: ...

    def beside(when: dt.datetime, model: Model | None = None) -> None: ...

    for function in (once, beside):
        made = plan(function, coerce=True)
        assert read_arguments(made, b'{"when":"1999-12-31T12:00:00Z"}').when.year == 1999
        for sent in (b'"1999"', b"1999", b'"1.5"'):
            with pytest.raises(ArgumentError, match="must be a date and time"):
                read_arguments(made, b'{"when":%b}' % sent)
    with pytest.raises(ArgumentError, match="must be a date and time"):
        read_texts(plan(once, kind="prompt"), {"when": "1999"})


def test_results_are_checked_but_not_changed() -> None:
    cents = Annotated[int, pydantic.AfterValidator(lambda euros: euros * 100)]

    def written(annotation: Any, value: Any) -> Any:
        def tool() -> None: ...

        tool.__annotations__["return"] = annotation
        return json.loads(b"{%b}" % encode_result(value, plan(tool).output))["structuredContent"]

    assert written(list[cents], [1, 2]) == [1, 2]
    assert written(cents | None, 1) == 1
    assert written(pydantic.Json[list[int]], [1]) == [1]
    for annotation, value in (
        (list[cents], ["1"]),
        (int | None, float("nan")),
        (float | None, float("inf")),
        (dict[str, float | None], {"a": float("nan")}),
        (dict[str, list[float | None] | Model], {"a": [float("nan")]}),
        (dict[str, int | Model], {"a": "3"}),
        (dict[str, bool | Model], {"a": 1}),
        (list[Literal[1]], [True]),
        (list[Level], [True]),
    ):
        with pytest.raises(LocalError, match="doesn't match the output schema"):
            written(annotation, value)
    assert written(dict[str, float | None], {"a": None}) == {"a": None}
    for numbers in (Literal[0, 1] | bool, bool | Literal[0, 1], Level | bool):
        assert repr(written(list[numbers], [True, 1])) == "[True, 1]"  # type: ignore[valid-type]  # a value here

    one = Literal[1]
    for numbers in (one | Step, Level | Step, one | tuple[list[int]]):  # results needn't be hashable
        assert written(dict[str, numbers], {"a": 1}) == {"a": 1}  # type: ignore[valid-type]  # a value here
    assert written(list[one | Step], [Step(Level.LOW)]) == [{"level": 1, "after": None}]
    assert written(list[one | tuple[list[int]]], [([2],)]) == [[[2]]]


def test_defaults_must_match_their_type_beside_a_model() -> None:
    def described(model: Model, n: int = "x") -> None: ...  # type: ignore[assignment]

    def bounded(n: Annotated[int, pydantic.Field(ge=5)] = 1) -> None: ...

    def chosen(model: Model, tone: Literal["a"] = "c") -> None: ...  # type: ignore[assignment]

    for function in (described, bounded, chosen):
        with pytest.raises(TypeError, match=r"its default .* doesn't fit its type"):
            plan(function)

    def sentinel(model: Leveled = Leveled(), n: int = ...) -> None: ...  # type: ignore[assignment]  # noqa: B008

    written = Written(number=1)

    def other(tone: Tone = Tone.DRY, model: Written = written, day: dt.date = dt.date(1999, 1, 1)) -> None: ...

    plan(sentinel)
    assert read_arguments(plan(other), b"{}").model.number == 1
