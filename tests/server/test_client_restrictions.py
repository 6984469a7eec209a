"""No current client or model API rejects the tools of the examples, or tools with many kinds of annotations.

`make adopt` applies the same rules to published servers.
"""

import datetime as dt
import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import msgspec
import pytest
from pydantic import AfterValidator, BaseModel, Field, FilePath, HttpUrl, JsonValue

from client_restrictions import refused
from millstream import Server
from millstream.protocol import Json
from millstream.testing import connect


class Color(enum.Enum):
    RED = "red"


class Pair(NamedTuple):
    a: int
    b: str = "x"


class Planet(enum.Enum):
    EARTH = (5.976e24, 6.37814e6)


@dataclass
class Book:
    title: str
    tags: list[Any]
    parent: "Book | None" = None


class Circle(msgspec.Struct, tag="circle"):
    radius: float


class Square(msgspec.Struct, tag="square"):
    side: list[int]


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    toys: list[Any] = []


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    friends: tuple[int, str] = (1, "a")


ANNOTATIONS: list[Any] = [
    *(list, set, tuple, dict, list[Any], list[list], list | None, tuple[int, str], tuple[int, ...], tuple[()]),
    *(Pair, Book, list[Book], Circle | Square, Annotated[Cat | Dog, Field(discriminator="kind")], list[Cat | Dog]),
    *(Color, list[Color], dict[Color, int], dict[Literal["a"], list], Literal["a", 1], Literal["a"], Sequence[int]),
    *(Any | None, object | None, Literal["a", None], Literal[1, "a", None]),  # noqa: PYI061  null is a choice
    *(
        list[Any | None],
        Mapping[str, list],
        Decimal,
        UUID,
        dt.datetime,
        Path,
        list[Path],
        list[FilePath],
        bytes,
        JsonValue,
        HttpUrl,
        frozenset[str],
        Any,
        object,
    ),
    Planet,
    *(Annotated[Decimal, Field(ge=0, le=1, max_digits=3)], Annotated[int, AfterValidator(abs), Field(ge=1)]),
    Annotated[int, AfterValidator(abs), Field(gt=Decimal("0.5"))],
    Annotated[float, AfterValidator(abs), Field(lt=math.inf)],
    *(
        Annotated[int | float, Field(gt=0, multiple_of=2)],
        Annotated[list[int], AfterValidator(list), Field(min_length=1)],
    ),
]


async def _check(server: Server) -> int:
    async with connect(server) as client:
        tools = (await client.request("tools/list"))["tools"]
    for tool in tools:
        if tool["name"] == "json_schema_2020_12_tool":  # it's for validators, not for models
            continue
        assert list(refused(tool)) == [], tool["name"]
    return len(tools)


@pytest.mark.parametrize("annotation", ANNOTATIONS, ids=str)
async def test_every_client_accepts_schemas_from_annotations(annotation: Any) -> None:
    def tool(a: Any, b: Any = None) -> Any:
        return a

    for more in (int, Cat):
        tool.__annotations__ = {"a": annotation, "b": more | None, "return": annotation}
        server = Server("restrictions")
        server.add_tool(tool)
        assert await _check(server) == 1


async def test_every_client_accepts_schemas_from_an_openapi_document() -> None:
    fields: Json = {
        "size": {"type": "string", "nullable": True, "enum": ["s", "m", "s"]},
        "note": {"type": ["null", "string", "integer"], "minLength": 1},
        "places": {"type": "array", "items": {"type": ["object", "null"], "properties": {"any": True}}},
        "way": {"enum": ["car", None], "description": "How"},
        "other": {"anyOf": [{}, {"type": "null"}]},
        "both": {"type": ["object", "array"], "properties": {"a": {"type": "string"}}, "items": {"type": "integer"}},
        "who": {"nullable": True, "$ref": "#/components/schemas/Person"},
    }
    body = {"content": {"application/json": {"schema": {"type": "object", "properties": fields}}}}
    document: Json = {
        "openapi": "3.1.0",
        "info": {"title": "Trips", "version": "1"},
        "servers": [{"url": "https://example.com"}],
        "paths": {"/trips": {"post": {"operationId": "plan", "requestBody": body, "responses": {}}}},
        "components": {"schemas": {"Person": {"type": ["object", "null"], "properties": {"name": {"type": "string"}}}}},
    }
    server = Server.from_openapi(document)
    assert await _check(server) == 1
    async with connect(server) as client:
        [tool] = await client.tools()
    found: Json = tool.input_schema["properties"]
    assert found["size"] == {"anyOf": [{"type": "string", "enum": ["s", "m"]}, {"type": "null"}]}
    assert found["note"]["anyOf"] == [
        {"minLength": 1, "type": "string"},
        {"minLength": 1, "type": "integer"},
        {"type": "null"},
    ]
    assert found["both"]["anyOf"] == [
        {"type": "object", "properties": {"a": {"type": "string"}}},
        {"type": "array", "items": {"type": "integer"}},
    ]
    assert found["way"] == {"description": "How", "anyOf": [{"type": "string", "enum": ["car"]}, {"type": "null"}]}
    assert "anyOf" not in found["other"]


class Size(enum.Enum):
    SMALL = "s"
    NONE = ""


def choose(size: Size) -> str:
    """Choose a size."""
    return size.value


def test_empty_choices_cause_a_warning() -> None:
    """Gemini (sbroenne/mcp-server-excel#607, anomalyco/opencode#46676)."""
    with pytest.warns(UserWarning, match="Gemini's API rejects empty choices"):
        Server("sizes").add_tool(choose)


def test_large_schemas_cause_a_warning() -> None:
    """claude.ai (anthropics/claude-code#77296)."""

    def tool(text: Annotated[str, Field(description="long " * 4000)]) -> str:
        """Do something."""
        return text

    with pytest.warns(UserWarning, match=r"claude.ai drops tools with more than 16,384"):
        Server("large").add_tool(tool)


EXAMPLES = ["archive", "argument_types", "bookshop", "calls", "everything", "notes", "parcels", "shelves"]
EXAMPLES += ["reports", "rooms", "stock", "summaries", "weather"]


@pytest.mark.parametrize("name", EXAMPLES)
async def test_every_client_accepts_schemas_from_the_examples(name: str) -> None:
    server = import_module(f"examples.{name}").mcp
    assert await _check(server) > 0
