"""Functions as programs write them: decorated methods, classes inside functions, defaults, collections as results."""

from __future__ import annotations

import functools
import threading
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final  # noqa: F401  named in a string

import attrs
import pytest
from pydantic import BaseModel, HttpUrl, TypeAdapter
from typing_extensions import Doc

from millstream import Server
from millstream.client import ToolFailed
from millstream.protocol import Json
from millstream.testing import connect


async def _call(function: Any, arguments: Json) -> Any:
    mcp = Server("functions")
    mcp.add_tool(function, name="tool")
    async with connect(mcp) as client:
        return await client.call("tool", arguments)


async def _output(function: Any) -> Any:
    mcp = Server("functions")
    mcp.add_tool(function, name="tool")
    async with connect(mcp) as client:
        return (await client.request("tools/list"))["tools"][0].get("outputSchema")


def logged(function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **more: Any) -> Any:
        return function(*args, **more)

    return call


class Shop:
    @logged
    def buy(self, n: int) -> str:
        return f"{type(self).__name__} {n}"

    @classmethod
    @logged
    def sell(cls, n: int) -> str:
        return f"{cls.__name__} {n}"

    @functools.lru_cache  # noqa: B019  as people write it
    def find(self, n: int) -> str:
        return f"{type(self).__name__} {n}"


@pytest.mark.parametrize("method", [Shop().buy, Shop.sell, Shop().find], ids=["method", "classmethod", "cache"])
async def test_decorated_methods_keep_their_object(method: Any) -> None:
    assert (await _call(method, {"n": 3})).text == "Shop 3"


async def test_postponed_annotations_may_name_a_class_in_the_enclosing_function() -> None:
    @dataclass
    class Local:
        x: int

    mcp = Server("functions")

    @mcp.tool
    def read(local: Local, more: list[Local] | None = None) -> str:
        return f"{local.x} {more}"

    async with connect(mcp) as client:
        assert (await client.call("read", local={"x": 3})).text == "3 None"


MISSING: Any = object()


async def test_sentinel_default_keeps_its_identity() -> None:
    def find(n: int = MISSING) -> str:
        return str(n is MISSING)

    assert (await _call(find, {})).text == "True"


async def test_ellipsis_as_default_makes_an_argument_required() -> None:
    def find(n: int = ...) -> str:  # type: ignore[assignment]  # as FastAPI's users write it
        return str(n)

    with pytest.raises(ToolFailed, match="missing 'n'"):
        await _call(find, {})


RESULTS: list[tuple[Any, Any, Any]] = [
    (Iterable[int], [1, 2], [1, 2]),
    (list[int], range(2), [0, 1]),
    (list[str], {"a": 1}.keys(), ["a"]),
    (deque[int], deque([1]), [1]),
    (OrderedDict[str, int], OrderedDict(a=1), {"a": 1}),
    (defaultdict[str, list[int]], defaultdict(list, a=[1]), {"a": [1]}),
    (Counter[str], Counter("aab"), {"a": 2, "b": 1}),
    (Mapping[str, int], types.MappingProxyType({"a": 1}), {"a": 1}),
]


@pytest.mark.parametrize("other", [Any, "Link | None"])
@pytest.mark.parametrize(("annotation", "value", "written"), RESULTS, ids=str)
async def test_collections_can_be_returned(annotation: Any, value: Any, written: Any, other: Any) -> None:
    def tool(other: Any = None) -> Any:
        return value

    tool.__annotations__.update({"return": annotation, "other": other})
    assert await _output(tool) is not None
    assert (await _call(tool, {})).data == written


class Link(BaseModel):
    url: HttpUrl = "https://example.com/"  # type: ignore[assignment]  # pydantic doesn't validate defaults
    words: defaultdict[str, list[int]] = defaultdict(list)


async def test_model_with_valid_json_defaults_can_be_returned() -> None:
    def link() -> Link:
        return Link()

    assert (await _call(link, {})).data == {"url": "https://example.com/", "words": {}}
    assert (await _output(link))["properties"]["words"]["type"] == "object"


@dataclass
class Range:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low must be below high")


async def test_errors_raised_by_a_class_show_the_path_to_the_value() -> None:
    def pick(ranges: list[Range]) -> str:
        return str(ranges)

    with pytest.raises(ToolFailed, match=r"'ranges\[0\]' is invalid: low must be below high\."):
        await _call(pick, {"ranges": [{"low": 2, "high": 1}]})


class Absent:
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
        raise ImportError("email-validator is not installed, run `pip install 'pydantic[email]'`")


def test_error_suggests_the_package_that_a_type_needs() -> None:
    def mail(to: Absent) -> str:
        return str(to)

    with pytest.raises(TypeError, match=r"Absent needs a package: email-validator .* run `pip install"):
        Server("functions").add_tool(mail)
    with pytest.raises(ImportError):
        TypeAdapter(Absent)


@pytest.mark.parametrize("annotation", ["dict[bool, int]", "dict[tuple[int, int], str]", "Mapping[Range, int]"])
def test_dict_keys_that_are_not_text_are_rejected(annotation: str) -> None:
    def tool(a: Any) -> str:
        return str(a)

    tool.__annotations__["a"] = annotation
    with pytest.raises(TypeError, match="because the names of JSON objects are text"):
        Server("functions").add_tool(tool)


async def _in_order(numbers: Iterable[int]) -> Iterable[int]:
    return (each for each in numbers)


def _doubled(numbers: Iterable[int]) -> Iterator[int]:
    return map(int, numbers)


def _generated(numbers: Iterable[int]) -> Generator[int, None, None]:
    return (each for each in numbers)


@pytest.mark.parametrize("function", [_in_order, _doubled, _generated])
async def test_iterators_are_returned_as_lists(function: Any) -> None:
    assert (await _output(function))["items"] == {"type": "integer"}
    assert (await _call(function, {"numbers": [1, 2]})).data == [1, 2]


async def test_iterators_are_read_in_the_functions_thread() -> None:
    threads: list[int] = []

    def tool() -> Iterator[int]:
        threads.append(threading.get_ident())
        return (threading.get_ident() for _ in range(1))

    assert (await _call(tool, {})).data == threads != [threading.get_ident()]


async def test_doc_annotation_describes_an_argument() -> None:
    mcp = Server("documented")

    @mcp.tool
    def find(
        words: Annotated[str, Doc("What to look for")], limit: Annotated[int | None, Doc("How many")] = None
    ) -> str:
        return f"{words} {limit}"

    async with connect(mcp) as client:
        [tool] = await client.tools()
    described = {name: each["description"] for name, each in tool.input_schema["properties"].items()}
    assert described == {"words": "What to look for", "limit": "How many"}


async def test_final_annotations_do_not_hide_an_argument() -> None:
    def count(number: int = 1) -> str:
        return str(number)

    count.__annotations__["number"] = "Final[int]"
    assert (await _call(count, {"number": 2})).text == "2"


def test_annotations_that_are_not_types_are_rejected_with_the_parameter_name() -> None:
    def find(words: Any) -> str:
        return str(words)

    find.__annotations__["words"] = "'str' | None"
    with pytest.raises(TypeError, match=r"find: parameter 'words': .* isn't a type: unsupported operand"):
        Server("functions").add_tool(find)


def test_builtin_functions_without_a_signature_are_rejected() -> None:
    with pytest.raises(TypeError, match=r"max: its parameters are unknown\. Register a function that calls it\."):
        Server("functions").add_tool(max)


class InjectedToolArg:
    """LangChain's mark of an argument that the model must not see."""


class InjectedState(InjectedToolArg):
    pass


@pytest.mark.parametrize("mark", [InjectedToolArg, InjectedToolArg(), InjectedState, InjectedState()])
def test_arguments_that_another_library_fills_in_are_rejected(mark: Any) -> None:
    def delete(name: str, user: Any) -> str:
        return f"{name} {user}"

    delete.__annotations__["user"] = Annotated[str, mark]
    with pytest.raises(TypeError, match=r"user: clients could send what LangChain fills in\. Write: .*Depends"):
        Server("functions").add_tool(delete)


def test_typer_parameters_are_rejected() -> None:
    option = type("OptionInfo", (), {"__module__": "typer.models"})()

    def greet(name: str = option) -> str:
        return name

    with pytest.raises(TypeError, match=r"name: a tool can't use Typer's parameters\. Write: from millstream import"):
        Server("functions").add_tool(greet)


def _upper(text: str) -> str:
    return text.upper()


@attrs.define
class Converted:
    name: str = attrs.field(converter=_upper)


@attrs.define
class Counted:
    name: str
    letters: int = attrs.field(init=False, default=0)


@attrs.define
class Private:
    _name: str = "a"


@pytest.mark.parametrize("kind", [Converted, list[Counted], "Converted | Link"])
def test_attrs_classes_that_need_their_own_init_are_rejected(kind: Any) -> None:
    def tool(a: Any) -> str:
        return str(a)

    tool.__annotations__["a"] = kind
    with pytest.raises(TypeError, match=r"has a converter or init=False, which attrs applies only in its own"):
        Server("functions").add_tool(tool)


async def test_attrs_classes_with_private_attributes_have_no_output_schema() -> None:
    def tool() -> Private:
        return Private("b")

    with pytest.warns(UserWarning, match="msgspec doesn't write the private _name of Private"):
        assert await _output(tool) is None
