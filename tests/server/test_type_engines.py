import datetime as dt
import enum
import json
import subprocess
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, MutableSet, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import InitVar, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import annotated_types
import attrs
import msgspec
import pydantic
import pytest
from jsonschema import Draft202012Validator

from millstream import Field
from millstream._protocol.errors import LocalError
from millstream._server.functions.core_engine import CoreEngine
from millstream._server.functions.engine import decoder_of, encode_result
from millstream._server.functions.msgspec_engine import MsgspecEngine
from millstream._server.functions.plan import ArgumentError, Plan, plan, read_arguments
from patience import WAIT
from plans import schema_of_result

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: float
    y: float = 0.0


class Row(TypedDict, total=False):
    name: str


class Pair(NamedTuple):
    left: int
    right: int = 0


class Box(msgspec.Struct):
    size: int


class Item(pydantic.BaseModel):
    """Something that can be bought."""

    model_config = pydantic.ConfigDict(populate_by_name=True)

    number: int = pydantic.Field(ge=1, serialization_alias="no", title="Item number")
    price: float = 1.0
    secret: str = pydantic.Field("s", exclude=True)

    @pydantic.computed_field
    def label(self) -> str:
        return f"#{self.number}"


class Order(pydantic.BaseModel):
    items: list[Item]
    by: dict[str, Item] = {}
    at: dt.datetime | None = None


def tool_with(annotation: Any, returns: Any = None) -> Plan:
    def tool(x: Any) -> Any:
        return x

    tool.__annotations__.update({"x": annotation, "return": returns})
    return plan(tool)


def sent_value(annotation: Any, value: Any) -> Any:
    """Return a result as a client receives it."""
    output: Any = tool_with(int, annotation).output
    found = json.loads(b"{%b}" % encode_result(value, output))["structuredContent"]
    Draft202012Validator(output.schema).validate(found)
    return found


SIMPLE: tuple[Any, ...] = (
    *(int, str, float, bool, Any, list, dict, Box, int | None, list[str | None], dict[str, list[int]]),
    *(Annotated[int, Field(ge=1)], Annotated[str, "words"], list[Annotated[float, Field(le=1)]] | None),
)
OTHERS: tuple[Any, ...] = (
    *(bytes, dt.datetime, UUID, Decimal, Path, Color, Point, Row, Pair, Literal["a"], int | str, set[int]),
    *(list[Point], dict[int, str], Annotated[str, Field(pattern="a")], Item, list[Item], Point | Row, pydantic.HttpUrl),
    *(Annotated[int, annotated_types.Ge(1)], Annotated[int, pydantic.Field(ge=1)], list[int] | list[str]),
)


def test_msgspec_reads_simple_types_and_structs_only() -> None:
    for annotation in SIMPLE:
        assert type(tool_with(annotation, Item).engine) is MsgspecEngine, annotation
    for annotation in OTHERS:
        assert type(tool_with(annotation).engine) is CoreEngine, annotation


PROGRAM = """
import sys
from msgspec import Struct
from millstream import Field, Server
from typing import Annotated, Any
class Box(Struct): size: int
mcp = Server("shop")
@mcp.tool
def order(copies: Annotated[int, Field(ge=1)] = 1, more: dict[str, Any] | None = None, box: Box | None = None) -> int:
    return 1
sys.exit("pydantic" in sys.modules or "pydantic_core" in sys.modules)
"""


PLAIN_PROGRAM = """
import sys, enum, datetime, uuid, decimal, pathlib
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from millstream import Field, Server
class Tone(enum.Enum): WARM = "warm"
class Options(TypedDict, total=False): tone: Tone; limit: Annotated[int, Field(ge=1)]
class Point(NamedTuple): x: float; y: float = 0.0
@dataclass
class Book:
    title: Annotated[str, Field(pattern="^a")]
    on: datetime.date | None = None
    kind: Literal["new", "old"] = "new"
    inside: "list[Book]" = field(default_factory=list)
mcp = Server("shop")
@mcp.tool
def order(
    book: Book, at: Point, options: Options | None = None, id: uuid.UUID | int = 1, price: decimal.Decimal | str = '1',
    path: str | pathlib.Path = "a", raw: bytes = b"", names: set[str] = set(), by: dict[Tone, tuple[int, ...]] = {},
) -> list[Book]:
    return [book]
sys.exit("pydantic" in sys.modules or "pydantic_core" not in sys.modules)
"""


@pytest.mark.server
def test_programs_with_simple_types_do_not_import_pydantic() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=WAIT)


@pytest.mark.server
def test_programs_with_plain_classes_do_not_import_pydantic() -> None:
    subprocess.run([sys.executable, "-c", PLAIN_PROGRAM], check=True, timeout=WAIT)


def test_both_engines_read_plain_types_in_the_same_way() -> None:

    def one(n: int, at: dt.date, raw: bytes = b"", path: Path = Path(), items: list[int] = []) -> Any: ...  # noqa: B006

    def other(
        n: int, at: dt.date, raw: bytes = b"", path: Path = Path(), items: list[int] = [], item: Item | None = None  # noqa: B006
    ) -> Any: ...  # fmt: skip

    listed = [plan(each).input_schema["properties"] for each in (one, other)]
    assert listed[0] == {name: node for name, node in listed[1].items() if name != "item"}
    for function in (one, other):
        made = plan(function)
        found = read_arguments(made, b'{"n":2.0,"at":"2020-02-29","raw":"aGk=","path":"a/b","items":[1]}')
        assert (found.n, found.at, found.raw, found.path, found.items) == (
            2, dt.date(2020, 2, 29), b"hi", Path("a/b"), [1]
        )  # fmt: skip
        assert read_arguments(made, b'{"n":1,"at":"2020-01-01"}').items is not one.__defaults__
        for raw, text in (
            (b'{"n":"2","at":"2020-01-01"}', "'n' must be an integer, got the string \"2\""),
            (b'{"n":1,"at":"soon"}', "'at' must be a date such as 1999-12-31, got \"soon\""),
            (b'{"n":1,"at":"2020-01-01","items":[1,true]}', "'items[1]' must be an integer, got true"),
            (b'{"at":"2020-01-01","z":1}', "missing 'n'; unknown 'z'"),
        ):
            with pytest.raises(ArgumentError) as refused:
                read_arguments(made, raw)
            assert text in str(refused.value)


def test_models_are_serialized_by_pydantic() -> None:
    first = {"no": 1, "price": 1.0, "label": "#1"}
    assert sent_value(Item, Item(number=1)) == first
    assert sent_value(list[Item], [Item(number=1)]) == [first]
    assert sent_value(Order, Order(items=[Item(number=1)], by={"a": Item(number=1)})) == {
        "items": [first], "by": {"a": first}, "at": None
    }  # fmt: skip
    assert sent_value(dict[str, Item | None], {"a": None, "b": Item(number=1)}) == {"a": None, "b": first}


def test_builtins_returned_for_a_model_are_serialized_as_the_model() -> None:
    assert sent_value(Item, {"number": 1, "price": Decimal("1.5")}) == {"no": 1, "price": 1.5, "label": "#1"}
    for wrong, place in (({"number": 0}, "number"), ({}, "number"), ("text", "")):
        with pytest.raises(LocalError, match=f"doesn't match the output schema: .*{place}"):
            sent_value(Item, wrong)
    with pytest.raises(LocalError, match=r"\[0\].number"):
        sent_value(list[Item], [{"number": 0}])


@attrs.define
class Lid:
    size: int


class Priced(msgspec.Struct):
    price: Decimal = Decimal(1)
    names: set[str] = set()


@dataclass
class Shelf:
    box: Box | None = None
    lid: Lid | None = None
    price: Priced | None = None


def test_results_that_msgspec_writes_are_checked_wherever_they_are() -> None:
    wrong: tuple[tuple[Any, Any, str], ...] = (
        (Shelf, Shelf(box=Box("x")), "'box.size' must be an integer, got the string"),  # type: ignore[arg-type]
        (Shelf, {"box": Box("x")}, "'box.size' must be an integer, got the string"),  # type: ignore[arg-type]
        (Shelf, Shelf(lid=Lid("x")), "'lid.size' must be an integer, got the string"),  # type: ignore[arg-type]
        (Shelf, Shelf(price=Priced(Decimal("NaN"))), "'price.price' must be a decimal number as text"),
        (Priced, Priced(Decimal("NaN")), "'price' must be a decimal number as text"),
        (tuple[Priced, ...], (Priced(names={1}),), r"'\[0\].names\[0\]' must be a string"),  # type: ignore[arg-type]
        (list[Box] | int, [Box("x")], r"'\[0\].size' must be an integer, got the string \"x\"$"),  # type: ignore[arg-type]
    )
    for annotation, value, text in wrong:
        with pytest.raises(LocalError, match=text):
            sent_value(annotation, value)
    shelf = {"box": {"size": 1}, "lid": None, "price": {"price": "1", "names": ["a"]}}
    assert sent_value(Shelf, Shelf(Box(1), None, Priced(names={"a"}))) == shelf


def test_bounds_apply_to_parameters_that_are_optional_by_their_default() -> None:
    nothing: Any = None

    def tool(
        n: Annotated[int, Field(ge=1, description="copies")] = nothing,
        words: Annotated[list[str], Field(max_length=1)] = nothing,
    ) -> Any: ...

    made = plan(tool)
    assert made.input_schema["properties"]["n"] == {
        "description": "copies", "default": None, "anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]
    }  # fmt: skip
    assert read_arguments(made, b'{"n":null}').n is None
    for wrong in (b'{"n":0}', b'{"words":["a","b"]}'):
        with pytest.raises(ArgumentError):
            read_arguments(made, wrong)


class Catalog(Mapping[str, int]):
    """A collection that isn't builtin."""

    def __getitem__(self, key: str) -> int:
        return 1

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return iter("a")


def test_abstract_collections_are_read_and_written_as_builtins() -> None:
    for annotation, raw, expected in (
        (Sequence[int], b"[1]", [1]),
        (AbstractSet[int], b"[1]", {1}),
        (Mapping[str, Collection[Point]], b'{"a":[{"x":1}]}', {"a": [Point(1)]}),
        (deque[MutableSet[int]], b"[[1]]", deque([{1}])),
        (deque[dt.date], b'["1999-12-31"]', deque([dt.date(1999, 12, 31)])),
        (defaultdict[str, Collection[int]], b'{"a":[1]}', {"a": [1]}),
        (defaultdict[str, set[int]], b'{"a":[1]}', {"a": {1}}),
        (OrderedDict[str, dt.date], b'{"a":"1999-12-31"}', {"a": dt.date(1999, 12, 31)}),
    ):
        assert read_arguments(tool_with(annotation), b'{"x":%b}' % raw).x == expected
    for annotation in (deque[int], defaultdict[str, int], OrderedDict[str, int]):
        with pytest.raises(ArgumentError, match=r"must be an (array|object)"):
            read_arguments(tool_with(annotation), b'{"x":"1"}')
    with pytest.raises(ArgumentError, match=r"'x\.a' must be an integer"):
        read_arguments(tool_with(defaultdict[str, int]), b'{"x":{"a":"1"}}')
    for annotation, value, written in (
        (Mapping[str, int], Catalog(), {"a": 1}),
        (dict[str, int], Catalog(), {"a": 1}),
        (Sequence[int], range(2), [0, 1]),
        (Collection[int], {1: 2}.keys(), [1]),
    ):
        assert sent_value(annotation, value) == written
    with pytest.raises(LocalError, match="must be an array"):
        sent_value(Sequence[str], "ab")


def test_pydantics_marks_apply_to_classes_that_it_does_not_read() -> None:
    for kind in (Point, Pair, Box, Color):
        plain = tool_with(kind).input_schema["properties"]["x"]
        assert tool_with(pydantic.InstanceOf[kind]).input_schema["properties"]["x"] == plain  # type: ignore[valid-type]  # a value
    assert read_arguments(tool_with(pydantic.InstanceOf[Point]), b'{"x":{"x":1}}').x == Point(1)
    assert sent_value(list[pydantic.InstanceOf[Point]], [Point(1)]) == [{"x": 1, "y": 0}]
    with pytest.raises(LocalError, match="should be an instance of Point"):
        sent_value(list[pydantic.InstanceOf[Point]], [{"x": 1}])
    in_text = tool_with(pydantic.Json[Point])
    assert in_text.input_schema["properties"]["x"]["type"] == "string"
    assert read_arguments(in_text, b'{"x":"{\\"x\\":1}"}').x == Point(1)
    with pytest.raises(TypeError, match=r"parameter 'x'.*isn't supported"):
        tool_with(Annotated[Point, pydantic.Strict()])


def test_schemas_describe_what_serializers_write_for_classes_that_pydantic_does_not_read() -> None:
    def write(value: Any) -> int:
        return 7

    for kind, value in ((Point, Point(1)), (Box, Box(1)), (Color, Color.RED)):
        assert sent_value(list[Annotated[kind, pydantic.PlainSerializer(write)]], [value]) == [7]  # type: ignore[valid-type]  # a value
        plain = schema_of_result(tool_with(int, list[kind]))  # type: ignore[valid-type]  # a value
        wrapped = Annotated[kind, pydantic.WrapSerializer(lambda each, write: write(each))]
        assert schema_of_result(tool_with(int, list[wrapped])) == plain  # type: ignore[valid-type]  # a value


def test_models_cannot_contain_nan_or_infinity() -> None:
    with pytest.raises(LocalError, match="can't be represented in JSON"):
        sent_value(Item, Item(number=1, price=float("nan")))


def test_schemas_contain_only_explicit_titles() -> None:
    node = tool_with(Order).input_schema["properties"]["x"]
    assert "title" not in node
    item = node["properties"]["items"]["items"]
    assert item["description"] == "Something that can be bought."
    assert item["properties"]["number"] == {"type": "integer", "minimum": 1, "title": "Item number"}
    assert "title" not in item["properties"]["price"]


def test_default_factories_run_for_each_call() -> None:
    def tool(tags: Annotated[list[str], pydantic.Field(default_factory=list)], n: int = pydantic.Field(3)) -> Any: ...

    made = plan(tool)
    first, second = read_arguments(made, b"{}"), read_arguments(made, b"{}")
    assert (first.tags, first.n) == ([], 3)
    assert first.tags is not second.tags
    assert "required" not in made.input_schema


def test_parameters_may_have_names_reserved_by_pydantic() -> None:
    def tool(schema: Item, copy: int, json: str, model_config: int = 1, _hidden: int = 2) -> Any: ...

    found = read_arguments(plan(tool), b'{"schema":{"number":1},"copy":2,"json":"x"}')
    assert (found.copy, found.json, found.model_config, found._hidden) == (2, "x", 1, 2)


class Reserved(pydantic.BaseModel, regex_engine="python-re"):
    ref: str
    schema_ref: "Reserved | None" = None
    fields: dict[str, "Reserved"] = {}
    choices: list[bytes] = []
    type: str = "a"
    config: str = pydantic.Field("", pattern="^a*$")


def test_members_may_have_the_names_of_keys_in_core_schemas() -> None:
    made = tool_with(Reserved, Reserved)
    sent = b'{"x":{"ref":"a","schema_ref":{"ref":"b"},"fields":{"ref":{"ref":"c"}},"choices":["YQ=="],"config":"aa"}}'
    item = read_arguments(made, sent).x
    assert (item.schema_ref.ref, item.fields["ref"].ref, item.choices) == ("b", "c", [b"a"])
    assert b'"choices":["YQ=="]' in encode_result(item, made.output)

    class Looking(pydantic.BaseModel, regex_engine="python-re"):
        config: str = pydantic.Field(pattern="(?=a)b")

    with pytest.raises(TypeError, match="can't be matched in linear time"):
        tool_with(Looking)


def test_type_decoder_errors_show_the_path() -> None:
    decode: Callable[[bytes], Any] = decoder_of(list[Item])
    assert decode(b'[{"number":1}]') == [Item(number=1)]
    with pytest.raises(ValueError, match=r"\[0\].number must be an integer >= 1, got 0"):
        decode(b'[{"number":0}]')
    with pytest.raises(msgspec.DecodeError):
        decode(b'[],"other":1')


def test_unions_in_another_order_keep_their_order() -> None:
    for returns, first in ((list[int | str], "integer"), (list[str | int], "string")):
        schema = schema_of_result(tool_with(int, returns))
        assert schema is not None
        assert schema["items"]["anyOf"][0]["type"] == first


def test_invalid_base64_in_a_model_is_named() -> None:
    class Note(pydantic.BaseModel):
        scan: bytes

    decode: Callable[[bytes], Any] = decoder_of(Note)
    assert decode(b'{"scan": "aGk="}').scan == b"hi"
    with pytest.raises(Exception, match="must be a base64 string"):
        decode(b'{"scan": "?"}')


@dataclass
class Node:
    size: Annotated[int, Field(ge=1)]
    inside: "list[Node]" = field(default_factory=list)


@dataclass
class Holder(Generic[T]):
    held: T
    size: Annotated[int, Field(ge=1)] = 1


@dataclass
class Scaled:
    size: Annotated[int, Field(ge=1)]
    factor: InitVar[int]

    def __post_init__(self, factor: int) -> None:
        self.size *= factor


def test_bounds_apply_in_recursive_and_generic_dataclasses() -> None:
    for annotation, sent, expected, wrong in (
        (Node, b'{"size":1,"inside":[{"size":2}]}', Node(1, [Node(2)]), b'{"size":1,"inside":[{"size":0}]}'),
        (Holder[int], b'{"held":1}', Holder(1), b'{"held":"1"}'),
        (Scaled, b'{"size":1,"factor":3}', Scaled(1, 3), b'{"size":0,"factor":3}'),
    ):
        made = tool_with(annotation, annotation)
        found = read_arguments(made, b'{"x":%b}' % sent).x
        assert found == expected
        encode_result(found, made.output)
        with pytest.raises(ArgumentError):
            read_arguments(made, b'{"x":%b}' % wrong)


class Circle(msgspec.Struct):
    page: Annotated[int, Field(ge=1)] | Literal[-1] = 1
    next: "Circle | None" = None


@dataclass
class Around:
    """A class that msgspec reads only in the Struct in it."""

    page: Annotated[int, Field(ge=1)] | Literal[-1] = 1
    inside: "Inside | None" = None


class Inside(msgspec.Struct):
    around: Around


def test_structs_with_alternatives_that_msgspec_merges_are_refused_with_the_reason() -> None:
    positive = Annotated[int, Field(ge=1)]
    for annotation in (
        positive | Literal[-1],
        Literal[0] | float,
        Annotated[str, Field(min_length=3)] | Literal[""],
        list[positive | Literal[-1]] | None,
    ):
        kind = msgspec.defstruct("Merged", [("x", annotation)])
        for place in (kind, list[kind], kind | int | str, Holder[kind]):  # type: ignore[valid-type]  # made here
            with pytest.raises(TypeError, match="reads alternatives of a union in a Struct as one"):
                tool_with(place)
    for around in (Around, Circle):
        with pytest.raises(TypeError, match="reads alternatives of a union in a Struct as one"):
            tool_with(around)
    for annotation in (positive | None, int | str, tuple[dt.date, str], Literal[1, 2] | None, Color | int, int | float):
        tool_with(msgspec.defstruct("Apart", [("x", annotation)]))
