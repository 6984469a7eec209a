"""How a server handles the annotations of the table "Other types"."""

import collections
import collections.abc
import enum
import fractions
import ipaddress
import json
import typing
from dataclasses import InitVar, dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import attrs
import msgspec
from typing_extensions import ReadOnly, TypedDict

from millstream import Server
from millstream.testing import connect

T = TypeVar("T")
Number = TypeVar("Number", int, str)


class Level(enum.IntEnum):
    LOW = 1


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Ratio(enum.Enum):
    HALF = 0.5


@dataclass
class Draft:
    title: str
    words: int = field(init=False, default=0)


@dataclass
class Scaled:
    size: int
    factor: InitVar[int] = 1


@attrs.define
class Place:
    city: str


class Fixed(TypedDict):
    at: ReadOnly[int]


class Pair(NamedTuple, Generic[T]):
    one: T


class Camel(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    first_name: str


class Named(Protocol):
    name: str


class Plain:
    def __init__(self, name: str) -> None:
        self.name = name


NAMES = {
    **vars(typing),
    **vars(collections.abc),
    **vars(collections),
    **vars(fractions),
    **vars(ipaddress),
    **globals(),
}
"""The names that annotations on the page mean."""


def tool_with(annotation: str, other: Any) -> Any:
    def tool(a: Any, other: Any = None) -> str:
        return repr(a)

    tool.__annotations__.update(a=eval(annotation, NAMES), other=other)  # noqa: S307  our own page
    return tool


async def try_annotation(annotation: str, sent: str, other: Any = Any) -> str:
    """Return what a tool receives for a value, or "refused" if it can't be registered.

    Args:
        annotation: The annotation, as Python.
        sent: The value, as JSON.
        other: The annotation of another parameter, which isn't sent.
    """
    mcp = Server("types")
    try:
        mcp.add_tool(tool_with(annotation, other))
    except TypeError as error:
        return "refused" if "parameter 'a': " in str(error) else str(error)
    async with connect(mcp) as client:
        return (await client.call("tool", a=json.loads(sent))).text


async def try_annotations(rows: list[list[str]], other: Any = Any) -> list[str]:
    return [await try_annotation(annotation, sent, other) for annotation, sent in rows]
