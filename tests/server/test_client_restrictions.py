"""What the clients and model APIs in use refuse in the schema of a tool, as they publish it.

Each rule names its source. The rules hold for every tool of the examples, and for many annotations.
"""

import datetime as dt
import enum
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import msgspec
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, FilePath, HttpUrl, JsonValue

from millstream import Server
from millstream.protocol import Json
from millstream.testing import connect

Problems = Iterator[str]


def _nodes(node: Any, path: str = "#") -> Iterator[tuple[str, Any]]:
    yield path, node
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield from _nodes(value, f"{path}/{key}")


def _schemas(schema: Json) -> Iterator[tuple[str, Json]]:
    """Yield the schema objects, but no properties that are called like keywords."""
    for path, node in _nodes(schema):
        if isinstance(node, dict) and not re.search(r"/(properties|\$defs|patternProperties)$", path):
            yield path, node


def vscode(schema: Json) -> Problems:
    """VS Code: "tool parameters array type must have items" (microsoft/vscode#246119, #257537)."""
    for path, node in _schemas(schema):
        if node.get("type") == "array" and not isinstance(node.get("items"), dict):
            yield f"{path}: an array without items"


def claude(schema: Json) -> Problems:
    """Claude's API: names of properties are ``^[a-zA-Z0-9_.-]{1,64}$``, and the root is an object without oneOf, allOf,
    or anyOf (platform.claude.com/docs, tool use; anthropics/claude-code#34771, #88049).
    """
    for path, node in _schemas(schema):
        for name in node.get("properties", {}):
            if not re.fullmatch("[a-zA-Z0-9_.-]{1,64}", name):
                yield f"{path}: the property {name!r}"
    yield from (f"#: {each} at the root" for each in ("oneOf", "anyOf", "allOf") if each in schema)


def openai(schema: Json) -> Problems:
    """OpenAI's API: the root is an object, with `properties` (developers.openai.com, function calling)."""
    if schema.get("type") != "object" or not isinstance(schema.get("properties", {}), dict):
        yield "#: not an object"


def gemini(schema: Json) -> Problems:
    """Gemini: enums of texts have the type string, arrays have items, and `required` names properties
    (ai.google.dev/api/caching#Schema; google-gemini/gemini-cli#13326). No choice is null, and every alternative has a
    type (router-for-me/CLIProxyAPI#4545, zereight/gitlab-mcp#166).
    """
    for path, node in _schemas(schema):
        names = node.get("properties", {})
        if "properties" in node and not set(node.get("required", ())) <= names.keys():
            yield f"{path}: required names {node['required']}"
        if "enum" in node and all(isinstance(each, str) for each in node["enum"]) and node.get("type") != "string":
            yield f"{path}: an enum of texts without a type"
        if None in node.get("enum", ()):
            yield f"{path}: null among the choices"
        if {} in [*node.get("anyOf", ()), *node.get("oneOf", ())]:
            yield f"{path}: an alternative without a type"


def cursor(schema: Json) -> Problems:
    """Cursor and Copilot: a schema has one type, and isn't a boolean (cursor/cursor#3778, github/copilot-cli#4623)."""
    for path, node in _schemas(schema):
        if isinstance(node.get("type"), list):
            yield f"{path}: several types"
        if any(isinstance(each, bool) for each in node.get("properties", {}).values()):
            yield f"{path}: a boolean as the schema of a property"


def validators(schema: Json) -> Problems:
    """The validators of the official SDKs (ajv in TypeScript, jsonschema in Python): a valid schema of 2020-12, whose
    references and mappings lead somewhere (modelcontextprotocol/typescript-sdk, PrefectHQ/fastmcp#3679).
    """
    Draft202012Validator.check_schema(schema)
    for path, node in _nodes(schema):
        if isinstance(node, str) and node.startswith("#/") and ("/mapping/" in path or path.endswith("$ref")):
            target: Any = schema
            for part in node[2:].split("/"):
                target = target.get(part) if isinstance(target, dict) else None
            if target is None:
                yield f"{path}: {node} leads nowhere"
    for path, node in _schemas(schema):
        if node.get("required") == []:  # draft 4 forbids it
            yield f"{path}: required is empty"
        if len(choices := node.get("enum", ())) > len({*map(repr, choices)}):  # PrefectHQ/fastmcp#195
            yield f"{path}: a choice is repeated"


FORMATS = {
    *("date", "date-time", "duration", "email", "hostname", "idn-email", "idn-hostname", "ipv4", "ipv6", "iri"),
    *("iri-reference", "json-pointer", "regex", "relative-json-pointer", "time", "uri", "uri-reference"),
    *("uri-template", "uuid"),
}
"""JSON Schema 2020-12, validation §7.3."""


def formats(schema: Json) -> Problems:
    """The official TypeScript SDK: its validator warns about formats that JSON Schema doesn't define, whenever it reads
    a list (ajv-validator/ajv, strict mode).
    """
    for path, node in _schemas(schema):
        if node.get("format", "uri") not in FORMATS:
            yield f"{path}: the format {node['format']}"


RULES: list[Callable[[Json], Problems]] = [vscode, claude, openai, gemini, cursor, validators]


class Color(enum.Enum):
    RED = "red"


class Pair(NamedTuple):
    a: int
    b: str = "x"


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
]


async def _check(server: Server) -> int:
    async with connect(server) as client:
        tools = (await client.request("tools/list"))["tools"]
    for tool in tools:
        if tool["name"] == "json_schema_2020_12_tool":  # it's for validators, not for models
            continue
        for rule in RULES:
            assert list(rule(tool["inputSchema"])) == [], (tool["name"], rule.__name__)
        assert list(validators(tool.get("outputSchema", {}))) == [], tool["name"]
        assert list(vscode(tool.get("outputSchema", {}))) == [], tool["name"]
        assert list(formats(tool.get("outputSchema", {}))) == [], tool["name"]
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
    with pytest.warns(UserWarning, match="Gemini's API refuses choices that are empty"):
        Server("sizes").add_tool(choose)


def test_large_schemas_cause_a_warning() -> None:
    """claude.ai (anthropics/claude-code#77296)."""

    def tool(text: Annotated[str, Field(description="long " * 4000)]) -> str:
        """Do something."""
        return text

    with pytest.warns(UserWarning, match=r"claude.ai leaves out tools with more than 16,384"):
        Server("large").add_tool(tool)


EXAMPLES = ["archive", "argument_types", "bookshop", "calls", "everything", "library", "notes", "parcels"]
EXAMPLES += ["reports", "rooms", "stock", "summaries", "weather"]


@pytest.mark.parametrize("name", EXAMPLES)
async def test_every_client_accepts_schemas_from_the_examples(name: str) -> None:
    server = import_module(f"examples.{name}").mcp
    assert await _check(server) > 0
