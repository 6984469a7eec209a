import asyncio
from collections import deque
from collections.abc import Callable, Collection, Mapping, MutableSequence, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import annotated_types
import msgspec
import pydantic
import pytest
from pydantic import AfterValidator, BeforeValidator, PlainValidator, StringConstraints, WrapValidator
from typing_extensions import TypedDict

from cases import for_each
from millstream import Field, Server, Settings
from millstream.items import ArgumentError
from patience import WAIT
from plans import plan, read_arguments
from signature_types import run
from wire import LATEST_HANDSHAKE, POST, per_request, request, routing, run_wire


def inside(path: str) -> str:
    if ".." in path:
        raise ValueError("leaves the folder")
    return path


def stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def doubled(value: Any, handler: Callable[[Any], int]) -> int:
    return 2 * handler(value)


def passed_on(value: Any, handler: Callable[[Any], Any]) -> Any:
    return handler(value)


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Line:
    ends: tuple[int, ...]
    at: Point


@dataclass
class Target:
    path: Annotated[str, AfterValidator(inside)]
    depth: Annotated[int, annotated_types.Ge(1)] = 1


@dataclass
class Tree:
    path: Annotated[str, AfterValidator(inside)]
    below: "list[Tree]" = field(default_factory=list)


@pydantic.dataclasses.dataclass
class Strict:
    path: str

    @pydantic.field_validator("path")
    @classmethod
    def check(cls, path: str) -> str:
        return inside(path)


T = TypeVar("T")


@dataclass
class Box(Generic[T]):
    content: T
    path: Annotated[str, AfterValidator(inside)] = "a"


@dataclass
class Page(Generic[T]):
    items: list[T]
    size: Annotated[int, pydantic.Field(ge=1, le=100)] = 10


@dataclass
class Pair(Generic[T]):
    one: T


class Row(TypedDict, Generic[T]):
    content: T
    path: Annotated[str, AfterValidator(inside)]


@pydantic.dataclasses.dataclass
class StrictBox(Generic[T]):
    content: T
    path: str

    @pydantic.field_validator("path")
    @classmethod
    def check(cls, path: str) -> str:
        return inside(path)


@pydantic.with_config(pydantic.ConfigDict(str_max_length=5, extra="forbid"))
class Short(TypedDict):
    path: str


@dataclass
class Configured:
    __pydantic_config__: ClassVar[Any] = pydantic.ConfigDict(str_max_length=5)
    path: str


@dataclass
class Decorated:
    path: str

    @pydantic.field_validator("path")
    @classmethod
    def check(cls, path: str) -> str:
        return inside(path)


@dataclass
class Nested:
    inner: Box[int]


AtLeast3 = Annotated[int, pydantic.Field(ge=3)]

REFUSED: list[tuple[Any, Any]] = [
    (Annotated[str, AfterValidator(inside)], "../../etc/passwd"),
    (Annotated[str, AfterValidator(inside), Field(max_length=3)], "long"),
    (Annotated[str, Field(max_length=3), AfterValidator(inside)], "long"),
    (list[Annotated[str, AfterValidator(inside)]], ["a", ".."]),
    (dict[str, Annotated[str, AfterValidator(inside)]], {"a": ".."}),
    (Annotated[str, AfterValidator(inside)] | None, ".."),
    (list[Annotated[str, AfterValidator(inside), Field(max_length=3)]], ["long"]),
    (Annotated[str, StringConstraints(max_length=3)], "long"),
    (Annotated[str, StringConstraints(pattern="^a")], "b"),
    (pydantic.constr(min_length=2), "a"),
    (pydantic.conint(ge=1, strict=True), 0),
    (pydantic.PositiveInt, 0),
    (pydantic.UUID4, "12345678-1234-1234-1234-123456789abc"),
    (Annotated[str, pydantic.Field(pattern="^a")], "b"),
    (Annotated[str, pydantic.Field(min_length=2)], "a"),
    (Annotated[int, pydantic.Field(strict=True)], "1"),
    (Annotated[float, pydantic.Field(allow_inf_nan=False, ge=1)], 0.5),
    (Annotated[str, annotated_types.Predicate(str.islower)], "A"),
    (Target, {"path": ".."}),
    (Target, {"path": "a", "depth": 0}),
    (list[Target], [{"path": ".."}]),
    (Tree, {"path": "a", "below": [{"path": ".."}]}),
    (Strict, {"path": ".."}),
    (pydantic.AnyUrl, "no url"),
    (Box[int], {"content": 1, "path": ".."}),
    (list[Box[int]], [{"content": 1, "path": ".."}]),
    (Box[int] | None, {"content": 1, "path": ".."}),
    (Nested, {"inner": {"content": 1, "path": ".."}}),
    (Row[int], {"content": 1, "path": ".."}),
    (StrictBox[int], {"content": 1, "path": ".."}),
    (Page[str], {"items": [], "size": 101}),
    (Pair[AtLeast3], {"one": 1}),
    (Pair[Annotated[str, AfterValidator(inside)]], {"one": ".."}),
    (Sequence[AtLeast3], [1]),
    (MutableSequence[AtLeast3], [1]),
    (Collection[AtLeast3], [1]),
    (AbstractSet[AtLeast3], [1]),
    (Mapping[str, AtLeast3], {"a": 1}),
    (dict[str, Sequence[AtLeast3]], {"a": [1]}),
    (Short, {"path": "longer"}),
    (Short, {"path": "a", "more": 1}),
    (Configured, {"path": "longer"}),
    (Decorated, {"path": ".."}),
]


def tool_with(annotation: Any) -> Callable[..., Any]:
    def tool(x: Any) -> Any:
        return x

    tool.__annotations__["x"] = annotation
    return tool


@for_each(("annotation", "value"), REFUSED)
def test_values_rejected_by_pydantic_are_rejected(annotation: Any, value: Any) -> None:
    with pytest.raises(ArgumentError, match="'x"):
        read_arguments(plan(tool_with(annotation)), msgspec.json.encode({"x": value}))


@for_each(
    ("annotation", "value", "found"),
    [
        (Annotated[str, BeforeValidator(stripped)], " a ", "a"),
        (Annotated[int, WrapValidator(doubled)], 4, 8),
        (Annotated[int, PlainValidator(len)], "abc", 3),
        (Annotated[str, StringConstraints(strip_whitespace=True, to_upper=True)], " a ", "A"),
        (Annotated[str, AfterValidator(inside)] | None, None, None),
        (Strict, {"path": "a"}, Strict("a")),
        (Path, "a/b", Path("a/b")),
        (Annotated[tuple[int, int], BeforeValidator(stripped)], [1, 2], (1, 2)),
        (Annotated[deque[int], WrapValidator(passed_on)], [1], deque([1])),
        (Annotated[Point, BeforeValidator(stripped)], [1, 2], Point(1, 2)),
        (Annotated[Line, WrapValidator(passed_on)], {"ends": [1, 2], "at": [3, 4]}, Line((1, 2), Point(3, 4))),
    ],
)
def test_functions_receive_values_converted_by_pydantic(annotation: Any, value: Any, found: Any) -> None:
    assert run(tool_with(annotation), {"x": value}) == found


def test_constraints_of_validated_parameters_appear_in_the_schema() -> None:

    def tool(
        a: Annotated[str, StringConstraints(max_length=3)],
        b: Annotated[int, AfterValidator(abs), Field(ge=-3, description="B.", title="Bee")] = 1,
        c: str = pydantic.Field("x", pattern="^x", description="C."),
        d: Annotated[str, AfterValidator(inside)] = "d",
    ) -> None:
        """Do it.

        Args:
            d: from the docstring
        """

    properties = plan(tool).input_schema["properties"]
    assert properties["a"] == {"type": "string", "maxLength": 3}
    assert properties["b"] == {"type": "integer", "minimum": -3, "description": "B.", "title": "Bee", "default": 1}
    assert properties["c"] == {"type": "string", "pattern": "^x", "description": "C.", "default": "x"}
    assert properties["d"] == {"type": "string", "description": "from the docstring", "default": "d"}


def test_aliases_are_wire_names() -> None:

    def tool(
        user_id: Annotated[int, pydantic.Field(alias="userId")], at: str = pydantic.Field("x", alias="from")
    ) -> Any:
        return user_id, at

    made = plan(tool)
    assert tuple(made.input_schema["properties"]) == ("userId", "from")
    assert list(made.input_schema["properties"]) == ["userId", "from"]
    assert run(tool, {"userId": 1, "from": "y"}) == (1, "y")
    with pytest.raises(ArgumentError, match="missing 'userId'; unknown 'user_id'"):
        read_arguments(made, b'{"user_id":1}')


def test_invalid_aliases_are_rejected() -> None:
    def tool(a: Annotated[int, pydantic.Field(validation_alias=pydantic.AliasChoices("a", "b"))]) -> None: ...

    with pytest.raises(TypeError, match="tool: parameter 'a': an alias must be one name"):
        plan(tool)


def test_bounds_in_collections_appear_in_the_schema() -> None:
    schema = plan(tool_with(Sequence[Annotated[int, pydantic.Field(ge=3, description="d")]])).input_schema
    assert schema["properties"]["x"]["items"] == {"type": "integer", "minimum": 3, "description": "d"}


class Held(msgspec.Struct):
    path: Annotated[str, AfterValidator(inside)]


def test_validators_in_structs_are_rejected() -> None:
    with pytest.raises(TypeError, match=r"parameter 'x': pydantic can't read the Struct Held.*Make Held a dataclass"):
        plan(tool_with(Held))


# Unions.


@dataclass
class Cat:
    name: str
    lives: int = 9


@dataclass
class Dog:
    name: str
    tricks: list[str] = field(default_factory=list)


class Card(pydantic.BaseModel):
    kind: Literal["card"]
    number: str


class Cash(pydantic.BaseModel):
    kind: Literal["cash"]


@dataclass
class Owner:
    pet: Cat | Dog


@for_each(
    ("annotation", "value", "found"),
    [
        (Cat | Dog, {"name": "a"}, Cat("a")),
        (Cat | Dog, {"name": "a", "tricks": ["sit"]}, Dog("a", ["sit"])),
        (Cat | Dog | None, None, None),
        (list[Cat | Dog], [{"name": "a", "lives": 1}, {"name": "b", "tricks": []}], [Cat("a", 1), Dog("b")]),
        (Card | Cash, {"kind": "cash"}, Cash(kind="cash")),
        (Card | Cash, {"kind": "card", "number": "1"}, Card(kind="card", number="1")),
        (Card | Cat, {"name": "a"}, Cat("a")),
        (Card | int, 3, 3),
        (list[int] | list[str], ["a"], ["a"]),
        (Owner, {"pet": {"name": "a", "tricks": ["sit"]}}, Owner(Dog("a", ["sit"]))),
    ],
)
def test_unions_decode_to_the_matching_member(annotation: Any, value: Any, found: Any) -> None:
    made = run(tool_with(annotation), {"x": value})
    assert (type(made), made) == (type(found), found)


def test_values_that_match_no_union_member_are_explained() -> None:
    with pytest.raises(ArgumentError) as refused:
        read_arguments(plan(tool_with(Cat | Dog)), b'{"x":{"lives":1}}')
    assert "missing 'name' in 'x'" in str(refused.value)


def test_unions_list_their_members_in_both_schemas() -> None:
    def tool(pet: Cat | Dog) -> Cat | Dog:
        return pet

    made = plan(tool)
    names = [part["properties"].keys() for part in made.input_schema["properties"]["pet"]["anyOf"]]
    assert list(map(list, names)) == [["name", "lives"], ["name", "tricks"]]
    assert made.output is not None
    assert len(made.output.schema["anyOf"]) == 2


class Opaque:
    """A class that no engine supports."""


def test_errors_show_types_without_their_module() -> None:
    with pytest.raises(TypeError) as refused:
        plan(tool_with(list[Opaque]))
    assert "Opaque" in str(refused.value)
    assert "test_validators" not in str(refused.value)


class Bounded(pydantic.BaseModel):
    copies: Annotated[int, Field(ge=1)]


@dataclass
class Plain:
    copies: Annotated[int, Field(ge=1)] = 1


class Holder(pydantic.BaseModel):
    lines: list[Plain]


@pydantic.dataclasses.dataclass
class HoldingDataclass:
    line: Plain


@dataclass
class Checked:
    line: Plain
    name: str = ""

    @pydantic.field_validator("name")
    @classmethod
    def tidy(cls, name: str) -> str:
        return name.strip()


@for_each("kind", [Bounded, Holder, HoldingDataclass, Checked, list[Holder] | None])
def test_millstream_field_in_what_pydantic_reads_is_rejected(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"Write pydantic.Field\(ge=1\) there"):
        plan(tool_with(kind))


@for_each(("kind", "default"), [(BeforeValidator(int), "3"), (WrapValidator(doubled), "x"), (PlainValidator(int), "3")])
def test_default_of_a_type_with_a_validator_may_be_what_only_the_validator_accepts(kind: Any, default: str) -> None:
    def tool(x: Any = default) -> Any:
        return x

    tool.__annotations__["x"] = Annotated[int, kind]
    assert read_arguments(plan(tool), b"{}").x == default


def test_millstream_field_in_a_class_beside_a_validator_is_checked() -> None:
    kind = Annotated[list[Plain], AfterValidator(list)]
    with pytest.raises(ArgumentError, match=">= 1, got 0"):
        read_arguments(plan(tool_with(kind)), b'{"x": [{"copies": 0}]}')


class Tagged(msgspec.Struct, tag="tagged"):
    size: Annotated[int, Field(ge=1)]


@dataclass
class Numbered:
    number: Annotated[int, Field(le=9)]
    names: list[str] = field(default_factory=list)


class Options(TypedDict, total=False):
    limit: Annotated[int, Field(le=5)]


def test_millstream_field_and_structs_work_beside_pydantic_models() -> None:

    def tool(
        card: Card, tagged: Tagged, numbered: Numbered, options: Options, n: Annotated[int, Field(ge=2, title="N")] = 2
    ) -> Any:
        return card, tagged, numbered, options, n

    properties = plan(tool).input_schema["properties"]
    assert properties["n"] == {"type": "integer", "minimum": 2, "title": "N", "default": 2}
    assert properties["tagged"]["properties"]["size"] == {"type": "integer", "minimum": 1}
    assert properties["numbered"]["properties"]["number"] == {"type": "integer", "maximum": 9}
    fitting: dict[str, Any] = {
        "card": {"kind": "card", "number": "1"},
        "tagged": {"type": "tagged", "size": 1},
        "numbered": {"number": 9, "more": 1},
        "options": {"limit": 5},
    }
    found = run(tool, fitting)
    assert found == (Card(kind="card", number="1"), Tagged(1), Numbered(9), {"limit": 5}, 2)
    with pytest.raises(ArgumentError, match=r"'tagged\.size' must be an integer >= 1, got 0"):
        read_arguments(plan(tool), msgspec.json.encode({**fitting, "tagged": {"type": "tagged", "size": 0}}))
    for wrong in ({"tagged": {"type": "tagged", "size": 0}}, {"numbered": {"number": 10}}, {"options": {"limit": 6}}):
        with pytest.raises(ArgumentError, match=f"'{next(iter(wrong))}"):
            read_arguments(plan(tool), msgspec.json.encode({**fitting, **wrong}))


class Named(pydantic.BaseModel):
    name: Any

    @pydantic.field_validator("name")
    @classmethod
    def tidy(cls, name: Any) -> Any:
        return name.strip()  # a number has none


def greet(who: Named) -> str:
    return who.name


def count(words: set[Any]) -> int:
    return len(words)


@for_each("way", ["asgi", "lane"])
@for_each("era", ["handshake", "per request"])
async def test_validators_that_raise_any_error_produce_a_protocol_response(way: str, era: str) -> None:
    mcp = Server("shop", settings=Settings(secret_key="k" * 40, sessions=False))
    mcp.tool(greet)
    params = {"name": "greet", "arguments": {"who": {"name": 5}}}
    async with run_wire(mcp, way) as wire, asyncio.timeout(WAIT):
        if era == "handshake":
            reply = await wire.post(request("tools/call", params), {**POST, "mcp-protocol-version": LATEST_HANDSHAKE})
        else:
            reply = await wire.post(per_request("tools/call", params), routing("tools/call", "greet"))
    assert (reply.status, reply.message["result"]["isError"]) == (200, True)
    assert "incident" in reply.message["result"]["content"][0]["text"]


@for_each("raw", [b'{"words":[[1]]}', b'{"words":[1,{"a":1}]}'])
def test_unhashable_set_members_are_explained(raw: bytes) -> None:
    made = plan(count)
    with pytest.raises(
        ArgumentError, match=r"'words\[\d\]' is an array or object, but the items of this array must be unique"
    ):
        read_arguments(made, raw)
    assert read_arguments(made, b'{"words":[1,"a"]}').words == {1, "a"}
