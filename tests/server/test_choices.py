import enum
import sys
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NewType, cast

import pydantic
import pytest
from pydantic import AfterValidator, HttpUrl, SecretStr
from typing_extensions import TypeAliasType

from cases import for_each
from millstream import Field, Server, Settings
from millstream._server.functions.engine import encode_result
from millstream.items import ArgumentError
from millstream.testing import connect
from plans import Plan, plan, read_arguments

MEMBERS_ARE_CHECKED = tuple(map(int, pydantic.VERSION.split(".")[:2])) >= (2, 14)


class Level(enum.Enum):
    LOW = 1
    HIGH = "high"
    NONE = None


class Tone(enum.Enum):
    WARM = "warm"
    DRY = "dry"


@dataclass
class Folder:
    at: Path
    level: int = 1
    inside: list[Path] = field(default_factory=list)


@dataclass
class Film:
    title: str


def inside(path: str) -> str:
    if ".." in path:
        raise ValueError("it leaves the folder")
    return path


Age = TypeAliasType("Age", Annotated[int, Field(ge=0)])
Inside = TypeAliasType("Inside", Annotated[str, AfterValidator(inside)])
Pet = NewType("Pet", str)


def tool_with(annotation: Any) -> Plan:
    def tool(x: Any) -> Any:
        return x

    tool.__annotations__["x"] = annotation
    return plan(tool)


def read(annotation: Any, raw: str) -> Any:
    return read_arguments(tool_with(annotation), b'{"x":%b}' % raw.encode()).x


@for_each(
    ("annotation", "raw", "value"),
    [
        (Path, '"a/b"', Path("a/b")),
        (PurePosixPath, '"a/b"', PurePosixPath("a/b")),
        (list[Path], '["a"]', [Path("a")]),
        (Path | int, "3", 3),
        (Path | int, '"a"', Path("a")),
        (Folder, '{"at":"a","inside":["b"]}', Folder(Path("a"), 1, [Path("b")])),
        (Level, "1", Level.LOW),
        (Level, '"high"', Level.HIGH),
        (Level, "null", Level.NONE),
        (list[Level], '["high"]', [Level.HIGH]),
        (Literal[Tone.WARM, "cold"], '"warm"', Tone.WARM),
        (Literal[Tone.WARM, "cold"], '"cold"', "cold"),
        (Age, "5", 5),
        (list[Age], "[5]", [5]),
        (Pet, '"cat"', "cat"),
        (object, '{"a":1}', {"a": 1}),
        (deque[int], "[1,2]", deque([1, 2])),
    ],
)
def test_values_are_converted_to_the_annotated_type(annotation: Any, raw: str, value: Any) -> None:
    found = read(annotation, raw)
    assert (type(found), found) == (type(value), value)


@for_each(
    ("annotation", "raw", "text"),
    [
        (Path, '""', "'x' must be a path as text, got \"\". Expected"),
        (Path, "5", "'x' must be a string, got the integer 5. Expected"),
        (Path, r'"a\u0000b"', "'x' must be a path as text"),
        # Before 2.14, pydantic reads any JSON text as the member whose value is None.
        *(
            [(Level, '"low"', '\'x\' must be 1 or "high" or null, got the string "low". Expected')]
            if MEMBERS_ARE_CHECKED
            else []
        ),
        (Literal[Tone.WARM, "cold"], '"dry"', '\'x\' must be one of "warm", "cold", got "dry". Expected'),
        (Age, "-1", "'x' must be an integer >= 0, got -1. Expected"),
        (Inside, '"../a"', 'it leaves the folder, got "../a". Expected'),
        (dict[int, str], '{"a":"b"}', "'x.a' must be a string matching regex '^(0|-?[1-9][0-9]*)$'"),
        (list[Literal["a", "b"]], '["c"]', '\'x[0]\' must be one of "a", "b", got "c". Expected'),
        (list[int] | list[str], "[1.5]", "'x[0]' is invalid: Input should be a valid integer, got 1.5"),
        (int, '"' + "9" * 500 + '"', 'got the string "' + "9" * 79 + "…. Expected"),
        (SecretStr, "5", "'x' must be a string, got an integer"),
        (HttpUrl, '"example"', 'Input should be a valid URL, relative URL without a base, got "example". Expected'),
    ],
)
def test_errors_show_the_invalid_value_and_the_valid_choices(annotation: Any, raw: str, text: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        read(annotation, raw)
    assert text in str(refused.value)


def test_errors_do_not_repeat_passwords() -> None:
    marked = Annotated[str, Field(min_length=10, extra={"format": "password"})]
    checked = Annotated[str, AfterValidator(inside)]

    def tool(x: marked | None = None, api_key: int = 0, token: checked = "", at: int | Film = 0) -> None: ...

    for raw, text in [
        ('{"x":"s3cret"}', "'x' must be a string of length >= 10. Expected"),
        ('{"api_key":"s3cret"}', "'api_key' must be an integer, got a string. Expected"),
        ('{"token":"..s3cret"}', "'token' is invalid: it leaves the folder. Expected"),
        ('{"at":{"name":"Momo","password":"s3cret"}}', "missing 'title' in 'at'. Expected"),
        ('{"at":[{"password":"s3cret"}]}', "'at' must be an integer or an object, got an array. Expected"),
    ]:
        with pytest.raises(ArgumentError) as refused:
            read_arguments(plan(tool), raw.encode())
        assert text in str(refused.value)
        assert "s3cret" not in str(refused.value)


def tool_with_default(annotation: Any, default: Any) -> Plan:
    def tool(x: Any = default) -> Any:
        return x

    tool.__annotations__["x"] = annotation
    return plan(tool)


MARKER = object()


@for_each(
    ("annotation", "default"),
    [
        (int, None), (float, 1), (list[int], ()), (Path, Path("a")), (Tone, Tone.DRY), (Film, Film("a")),
        (str, MARKER), (set[str], {"a"}), (bytes, b"a"), (dict[int, str], {1: "a"}), (Literal["a"], "a"),
    ],
)  # fmt: skip
def test_valid_defaults_are_accepted(annotation: Any, default: Any) -> None:
    made = tool_with_default(annotation, default)
    assert "required" not in made.input_schema
    assert made.decode(b"{}").x == default or default is MARKER


@for_each(
    ("annotation", "default"),
    [
        (int, "one"), (int, True), (int, []), (Literal["a"], "b"), (list[int], ["a"]), (Film, {"name": 1}),
        (Annotated[int, Field(ge=1)], 0), (Annotated[int, Field(default="one")], ...),
    ],
)  # fmt: skip
def test_defaults_that_clients_cannot_send_are_rejected(annotation: Any, default: Any) -> None:
    with pytest.raises(TypeError, match=r"parameter 'x': its default .* doesn't fit its type: "):
        tool_with_default(annotation, default) if default is not ... else tool_with(annotation)


STATEMENTS = """
from dataclasses import dataclass
type Age = Annotated[int, Field(ge=0)]
type Either = Film | Folder
type Several[T] = list[T]
type Tree = dict[str, Tree] | int
type Nest[T] = T | list[Nest[T]]
@dataclass
class Box[T]:
    item: T
    age: Age = 1
def tool(age: Age, either: Either, several: Several[Age]) -> Either:
    return either
def hold(box: Box[int]) -> None: ...
def both(either: Either, box: Box[int]) -> None: ...
def grow(tree: Tree) -> None: ...
def branch(nest: Nest[int]) -> None: ...
def grown() -> Tree: ...
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax of PEP 695 is that of Python 3.12")
def test_type_statement_is_an_alias_of_its_value() -> None:
    """PEP 695."""
    names = {"Annotated": Annotated, "Field": Field, "Film": Film, "Folder": Folder, "__name__": __name__}
    exec(STATEMENTS, names)  # noqa: S102  older versions cannot read it
    made = plan(cast("Any", names["tool"]))
    assert made.input_schema["properties"]["several"]["items"] == {"type": "integer", "minimum": 0}
    arguments = read_arguments(made, b'{"age":1,"either":{"title":"Momo"},"several":[2]}')
    assert arguments.either == Film("Momo")
    holds = plan(cast("Any", names["hold"]))
    assert read_arguments(holds, b'{"box":{"item":3}}').box.age == 1
    with pytest.raises(ArgumentError, match=r"'box.age' must be an integer >= 0, got -1"):
        read_arguments(holds, b'{"box":{"item":3,"age":-1}}')
    both = plan(cast("Any", names["both"]))
    assert read_arguments(both, b'{"either":{"title":"Momo"},"box":{"item":3}}').box.age == 1
    grow = plan(cast("Any", names["grow"]))
    assert read_arguments(grow, b'{"tree":{"a":{"b":1}}}').tree == {"a": {"b": 1}}
    with pytest.raises(ArgumentError, match="integer"):
        read_arguments(grow, b'{"tree":{"a":{"b":"x"}}}')
    branches = plan(cast("Any", names["branch"]))
    assert read_arguments(branches, b'{"nest":[[1],2]}').nest == [[1], 2]
    grown = plan(cast("Any", names["grown"])).output
    assert grown is not None
    assert grown.schema["$defs"]["Tree"]


async def test_choices_are_encoded_in_the_form_in_which_they_are_decoded() -> None:
    mcp = Server("s", settings=Settings())

    @mcp.tool
    def path() -> Path:
        return Path("a/b")

    @mcp.tool
    def folders() -> list[Folder]:
        return [Folder(Path("a"))]

    @mcp.tool
    def maybe() -> Folder | Film | None:
        return Film("Momo")

    @mcp.tool
    def links() -> list[HttpUrl]:
        return [HttpUrl("https://example.com/")]

    @mcp.tool
    async def secret() -> AsyncIterator[dict[str, SecretStr]]:
        yield {"key": SecretStr("s3cret")}

    async with connect(mcp) as client:
        assert (await client.call("path")).data == "a/b"
        assert (await client.call("folders")).data == [{"at": "a", "level": 1, "inside": []}]
        assert (await client.call("maybe")).data == {"title": "Momo"}
        assert (await client.call("links")).data == ["https://example.com/"]
        assert (await client.call("secret")).data == {"key": "**********"}
    tools = mcp.registry.tools
    assert "anyOf" in tools["maybe"].describe()["outputSchema"]
    assert tools["links"].describe()["outputSchema"]["items"]["format"] == "uri"


def test_enums_with_mixed_types_are_encoded_as_their_values() -> None:
    assert encode_result([Level.LOW, Level.HIGH, Level.NONE]).endswith(b'"structuredContent":[1,"high",null]')
