"""`GET /openapi.json`: the registered schemas as OpenAPI 3.1, and the examples in it."""

import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from msgspec import UNSET

from cases import for_each
from millstream._transports.openapi import example_of
from plans import schema_of
from rest_world import post, routes, world


async def described(server: Any = None, root: str = "") -> dict[str, Any]:
    """The document of a server."""
    async with routes(server or world()) as rest:
        response = await rest.describe(post("/openapi.json", b"", root))
    assert response.status == 200
    return json.loads(response.body)


async def test_every_tool_is_an_openapi_operation() -> None:
    document = await described()
    assert document["openapi"] == "3.1.0"
    assert document["info"] == {"title": "world", "version": "2.1", "description": "Try them all."}
    assert set(document["paths"]) == {f"/tools/{name}" for name in world().registry.tools}
    add = document["paths"]["/tools/add"]["post"]
    assert (add["operationId"], add["summary"]) == ("add", "Add two numbers.")
    assert add["requestBody"]["required"] is True
    assert document["paths"]["/tools/greet"]["post"]["requestBody"]["required"] is False
    assert "servers" not in document


async def test_mounted_server_document_contains_its_root() -> None:
    assert (await described(root="/shop"))["servers"] == [{"url": "/shop"}]


async def test_references_inside_schemas_are_rewritten() -> None:
    document = await described()
    references = re.findall(r'"\$ref":"(#[^"]*)"', json.dumps(document, separators=(",", ":")))
    assert any("$defs" in reference for reference in references)
    for reference in references:
        node: Any = document
        for part in reference[2:].split("/"):
            node = node[part]
        assert isinstance(node, dict)


@pytest.mark.filterwarnings("ignore:The tool name")
async def test_invalid_component_names_do_not_collide() -> None:
    """OpenAPI 3.1 §4.8.7: component keys are letters, digits, dot, dash and underscore."""
    server = world()
    for name in ("x/y", "x_y", "x y"):

        @server.tool(name=name)
        async def same(a: int = 1) -> int:
            return a

    document = await described(server)
    assert {"/tools/x/y", "/tools/x_y", "/tools/x%20y"} <= set(document["paths"])
    schemas = [
        document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        for path in ("/tools/x/y", "/tools/x_y", "/tools/x%20y")
    ]
    assert len(set(schemas)) == 3
    assert all(re.fullmatch(r"#/components/schemas/[A-Za-z0-9._-]+", each) for each in schemas)


async def test_document_is_cached_until_tools_change() -> None:
    server = world()
    async with routes(server) as rest:
        first = await rest.describe(post("/openapi.json", b""))
        assert await rest.describe(post("/openapi.json", b"")) is first

        @server.tool
        async def later() -> int:
            return 1

        document = json.loads((await rest.describe(post("/openapi.json", b""))).body)
        assert "/tools/later" in document["paths"]
        server.remove_tool("later")
        document = json.loads((await rest.describe(post("/openapi.json", b""))).body)
        assert "/tools/later" not in document["paths"]


async def test_document_supports_conditional_requests() -> None:
    """RFC 9110 §13.1.2."""
    server = world()
    async with routes(server) as rest:
        whole = await rest.describe(post("/openapi.json", b""))
        (tag,) = re.findall(rb'etag: ("\w+")\r\n', whole.head)
        for known in (tag, b"W/" + tag, b'"other", ' + tag):
            reply = await rest.describe(post("/openapi.json", b"", if_none_match=known.decode()))
            assert (reply.status, reply.body) == (304, b"")
            assert tag in reply.head
        assert (await rest.describe(post("/openapi.json", b"", if_none_match='"other"'))).status == 200
        server.remove_tool("add")
        assert (await rest.describe(post("/openapi.json", b"", if_none_match=tag.decode()))).status == 200


async def test_examples_match_their_schema() -> None:
    document = await described()
    seen = 0
    for item in document["paths"].values():
        media = item["post"]["requestBody"]["content"]["application/json"]
        if "example" in media:
            seen += 1
            schema = {**document, **media["schema"]}
            Draft202012Validator(schema).validate(media["example"])
    assert seen >= 8


SCHEMAS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 5},
    {"type": "integer", "exclusiveMinimum": 5, "multipleOf": 4},
    {"type": "number", "minimum": 0.2, "maximum": 0.4},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "integer", "maximum": -3},
    {"type": "string", "minLength": 9},
    {"type": "string", "maxLength": 2},
    {"type": "string", "format": "date-time"},
    {"type": ["string", "null"]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 3},
    {"type": "array", "maxItems": 0, "items": {"type": "string"}},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "minItems": 2, "items": False},
    {"anyOf": [{"$ref": "#/$defs/x"}, {"type": "null"}], "$defs": {"x": {}}},
    {"oneOf": [{"const": 3}, {"type": "null"}]},
    {"enum": ["b", "a"]},
    {"default": False},
    {"type": "string", "examples": ["given"]},
    schema_of(dict[str, int]),
    schema_of(list[tuple[int, str]]),
]


@for_each("schema", SCHEMAS, ids=str)
def test_sample_values_match_their_schema(schema: dict[str, Any]) -> None:
    Draft202012Validator(schema).validate(example_of(schema))


@for_each(
    "schema",
    [
        {"type": "string", "pattern": "^x"},
        {"type": "string", "format": "unheard-of"},
        {"type": "string", "contentEncoding": "base64"},
        {"type": "string", "minLength": 100_000},
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 2},
        {"type": "object", "required": ["a"]},
        {"type": "object", "properties": None, "required": ["a"]},
        {"type": "object", "properties": {"a": True}, "required": ["a"]},
        {"anyOf": [True]},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4},
        {"$ref": "#/$defs/a"},
        {},
    ],
    ids=str,
)
def test_no_sample_is_given_if_it_might_not_match(schema: Any) -> None:
    assert example_of(schema) is UNSET
