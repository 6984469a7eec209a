"""Servers made of an OpenAPI document or a FastAPI application: what they offer, and what the API is asked."""

import json
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from millstream import Client
from millstream.client import Options
from millstream.compat._porting.rewriting import rewritten
from millstream.compat._porting.survey import survey
from millstream.compat.fastmcp import standalone
from patience import WAIT
from processes import ROOT

PROGRAM = Path(__file__).resolve().parent / "originals" / "api.py"
FASTMCP = str(ROOT / ".venv-foreign" / "bin" / "python")
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("get_book", {"isbn": "7 8/9", "full": True, "X-Shop": "north"}),
    ("put_book", {"isbn__path": "7", "isbn": "8"}),
    ("Order_books", {"book": {"isbn": "1"}, "copies": 2}),
    ("GET_orders", {"tags": ["a", "b"], "page": 2}),
    ("raw", {"body": [1, 2]}),
    ("break_it", {}),
    ("inside", {}),
]


async def seen(python: str, program: Path) -> dict[str, Any]:
    """What a client sees of the server, and what the API was asked."""
    options = Options(probe_timeout=WAIT, connect_timeout=WAIT)
    async with Client([python, str(program)], revision="2025-11-25", timeout=WAIT, options=options) as client:
        tools = {each.name: [each.description, each.input_schema, each.output_schema] for each in await client.tools()}
        for about in tools.values():
            if about[2] is not None:
                about[2].pop("x-fastmcp-top-level-schema", None)  # type: ignore[union-attr]  a mark of fastmcp's
        answers = []
        for name, arguments in CALLS:
            try:
                result = await client.call(name, arguments)
                answers.append((name, result.is_error, result.text, result.data))
            except Exception as error:
                answers.append((name, True, type(error).__name__, None))
        answers.pop()
        resources = [(each.uri, each.mime_type) for each in await client.resources()]
        templates = [(each.uri_template, each.name) for each in await client.templates()]
        read = [(await client.read(uri))[0].text for uri in ("resource://shelf", "resource://floor/7")]
        log = (await client.call("log")).data
    return {
        "tools": tools,
        "answers": answers,
        "resources": resources,
        "templates": templates,
        "read": read,
        "log": log,
    }


@pytest.mark.server
async def test_an_api_is_offered_and_asked_as_fastmcp_does_it(tmp_path: Path) -> None:
    """Names, schemas, results, errors, and every request that the API gets."""
    source = PROGRAM.read_text("utf-8")
    found = survey(source)
    assert not found.missing, found.missing
    ported = tmp_path / "api.py"
    ported.write_text(rewritten(source, found.changes), "utf-8")
    theirs, ours = await seen(FASTMCP, PROGRAM), await seen(sys.executable, ported)
    for part, value in theirs.items():
        assert ours[part] == value, part
    assert ours["log"]["result"][0] == "GET http://shop/api/books/7%208%2F9?full=true north "
    assert "inside" not in ours["tools"]


class Book(BaseModel):
    isbn: str
    pages: int = 7


def shop() -> FastAPI:
    app = FastAPI(title="Shop")

    @app.post("/books/{shelf}")
    async def add(shelf: str, book: Book, loud: bool = False) -> Book:
        return Book(isbn=f"{shelf}/{book.isbn}{'!' if loud else ''}", pages=book.pages)

    @app.get("/secret/plan")
    async def plan() -> str:
        return "the plan"

    return app


async def test_a_fastapi_application_is_a_server() -> None:
    """Its operations run in this process, and its types are the schemas."""
    mcp = standalone.FastMCP.from_fastapi(shop(), mcp_names={"add_books__shelf__post": "add"})
    assert mcp.name == "Shop"
    async with Client(mcp.engine, timeout=WAIT) as client:
        assert sorted(each.name for each in await client.tools()) == ["add", "plan_secret_plan_get"]
        result = await client.call("add", shelf="a", isbn="7", loud=True)
        assert result.data == {"isbn": "a/7!", "pages": 7}
        wrong = await client.call("add", shelf="a", isbn="7", pages="many")
        assert wrong.is_error
        assert "HTTP error 422" in wrong.text


@pytest.mark.parametrize("shelf", ["..", ".", ""])
async def test_a_value_that_leads_to_another_path_reaches_no_operation(shelf: str) -> None:
    """A model that is talked into `..` must not reach an operation that isn't offered."""
    asked: list[str] = []

    def api(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.raw_path.decode())
        return httpx2.Response(200, json={})

    http = httpx2.AsyncClient(base_url="http://shop", transport=httpx2.MockTransport(api))
    mcp = standalone.FastMCP.from_openapi(shop().openapi(), http, mcp_names={"add_books__shelf__post": "add"})
    async with Client(mcp.engine, timeout=WAIT) as client:
        result = await client.call("add", shelf=shelf, isbn="7")
        assert result.is_error
        assert "another path" in result.text
        assert not asked
        await client.call("add", shelf="../secret", isbn="7")
    assert asked == ["/books/..%2Fsecret"]


async def test_an_api_that_can_not_be_reached_is_one_sentence() -> None:
    """The client's own error, without a traceback for the model."""
    http = httpx2.AsyncClient(base_url="http://127.0.0.1:9", timeout=WAIT)
    mcp = standalone.FastMCP.from_openapi(shop().openapi(), http)
    async with Client(mcp.engine, timeout=WAIT) as client:
        result = await client.call("plan_secret_plan_get")
    assert result.is_error
    assert "ConnectError" in result.text


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({}, "no paths"),
        ({"swagger": "2.0", "paths": {}}, "3.0 or 3.1"),
        ({"openapi": "3.1.0", "paths": {}, "servers": [{"url": "/api"}]}, "where the API is"),
    ],
)
def test_what_is_no_document_is_refused_at_once(spec: Any, says: str) -> None:
    """The line that makes the server is the one to correct."""
    with pytest.raises(ValueError, match=says):
        standalone.FastMCP.from_openapi(spec)


async def test_functions_of_the_program_choose_and_change_what_is_offered() -> None:
    """fastmcp: route_map_fn and mcp_component_fn."""

    def choose(route: Any, kind: Any) -> Any:
        return standalone.MCPType.EXCLUDE if route.path.startswith("/secret") else None

    def change(route: Any, component: Any) -> None:
        component.description = f"{route.method}: {component.description}"

    mcp = standalone.FastMCP.from_fastapi(shop(), route_map_fn=choose, mcp_component_fn=change, tags={"shop"})
    async with Client(mcp.engine, timeout=WAIT) as client:
        (tool,) = await client.tools()
    assert tool.description == "POST: Add"
    assert tool.meta == {"fastmcp": {"tags": ["shop"]}}


@pytest.mark.parametrize(
    ("media", "kind", "body"),
    [
        ("application/json", "application/json", b'{"tags":["a","b"],"label":"x"}'),
        ("application/vnd.shop+json; v=2", "application/vnd.shop+json; v=2", b'{"tags":["a","b"],"label":"x"}'),
        ("application/x-www-form-urlencoded", "application/x-www-form-urlencoded", b"tags=a&tags=b&label=x"),
        ("multipart/form-data", "multipart/form-data; boundary=", b'name="tags"\r\n\r\nb\r\n'),
    ],
)
async def test_a_body_is_sent_as_the_document_says(media: str, kind: str, body: bytes) -> None:
    """JSON under its own media type, or a form whose lists are repeated fields."""
    asked: list[httpx2.Request] = []

    def api(request: httpx2.Request) -> httpx2.Response:
        request.read()
        asked.append(request)
        return httpx2.Response(200, json={})

    fields = {"tags": {"type": "array", "items": {"type": "string"}}, "label": {"type": "string"}}
    schema = {"type": "object", "properties": fields, "required": ["tags"]}
    operation = {"operationId": "add", "requestBody": {"required": True, "content": {media: {"schema": schema}}}}
    spec = {"openapi": "3.0.3", "paths": {"/books": {"post": {**operation, "responses": {}}}}}
    http = httpx2.AsyncClient(base_url="http://shop", transport=httpx2.MockTransport(api))
    async with Client(standalone.FastMCP.from_openapi(spec, http).engine, timeout=WAIT) as client:
        assert not (await client.call("add", tags=["a", "b"], label="x")).is_error
    assert asked[0].headers["content-type"].startswith(kind)
    assert body in asked[0].content


async def asked_by(spec: dict[str, Any], **arguments: Any) -> httpx2.Request:
    """The request that a call of the only operation of a document makes."""
    asked: list[httpx2.Request] = []

    def api(request: httpx2.Request) -> httpx2.Response:
        request.read()
        asked.append(request)
        return httpx2.Response(200, json={})

    http = httpx2.AsyncClient(base_url="http://shop", transport=httpx2.MockTransport(api))
    mcp: standalone.FastMCP[Any] = standalone.FastMCP("shop")
    mcp.add_provider(standalone.OpenAPIProvider(spec, http))
    async with Client(mcp.engine, timeout=WAIT) as client:
        (tool,) = await client.tools()
        result = await client.call(tool.name, **arguments)
    assert not result.is_error, result.text
    return asked[0]


def taking(body: dict[str, Any], media: str = "application/json", **more: Any) -> dict[str, Any]:
    """A document whose one operation takes a body."""
    content = {media: {"schema": body, **more.pop("about", {})}}
    operation = {"operationId": "add", "requestBody": {"required": True, "content": content}, "responses": {}}
    return {"openapi": "3.1.0", "paths": {"/books": {"post": operation}}, **more}


LIST = {"type": "array", "items": {"type": "string"}}


@pytest.mark.parametrize(
    ("how", "value", "query"),
    [
        ({}, ["a", "b"], [("at", "a"), ("at", "b")]),
        ({"explode": False}, ["a", "b"], [("at", "a,b")]),
        ({"style": "pipeDelimited"}, ["a", "b"], [("at", "a|b")]),
        ({"style": "spaceDelimited"}, ["a", "b"], [("at", "a b")]),
        ({"style": "pipeDelimited", "explode": True}, ["a", "b"], [("at", "a"), ("at", "b")]),
        ({}, {"x": "1"}, [("x", "1")]),
        ({"style": "deepObject"}, {"x": "1"}, [("at[x]", "1")]),
    ],
)
async def test_a_value_in_a_query_is_written_in_the_style_of_the_document(
    how: dict[str, Any], value: Any, query: list[tuple[str, str]]
) -> None:
    """OpenAPI 3.1, Style Values: `form` explodes unless the document says otherwise, and the others don't."""
    parameter = {"name": "at", "in": "query", "schema": LIST if isinstance(value, list) else {"type": "object"}, **how}
    operation = {"operationId": "find", "parameters": [parameter], "responses": {}}
    spec = {"openapi": "3.1.0", "paths": {"/books": {"get": operation}}}
    assert (await asked_by(spec, at=value)).url.params.multi_items() == query


@pytest.mark.parametrize(
    ("encoding", "value", "parts"),
    [
        ({}, ["a", "b"], ["a", "b"]),
        ({}, [], ["[]"]),
        ({"contentType": "application/json"}, ["a", "b"], ['["a","b"]']),
        ({"style": "form", "explode": False}, ["a", "b"], ["a,b"]),
    ],
)
async def test_a_list_in_a_multipart_body_is_written_as_its_encoding_says(
    encoding: dict[str, Any], value: list[str], parts: list[str]
) -> None:
    """OpenAPI 3.1, Encoding Object; an empty list is a part, too, or the body would have no parts and no type."""
    schema = {"type": "object", "properties": {"tags": LIST}}
    spec = taking(schema, "multipart/form-data", about={"encoding": {"tags": encoding}})
    request = await asked_by(spec, tags=value)
    assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
    found = [each.partition(b"\r\n\r\n")[2].rstrip(b"\r\n-") for each in request.content.split(b'name="tags"')[1:]]
    assert [each.partition(b"\r\n")[0].decode() for each in found] == parts


@pytest.mark.parametrize(
    ("spec", "arguments", "body"),
    [
        (taking({"type": "string"}, "text/plain"), {"body": "Momo"}, b"Momo"),
        (taking({"type": "object", "properties": {}, "title": "Any Labels"}), {"any_labels": {"a": "b"}}, b'{"a":"b"}'),
        (
            taking(
                {"$ref": "#/components/schemas/Labels"},
                components={"schemas": {"Labels": {"title": "Labels", "additionalProperties": {"type": "string"}}}},
            ),
            {"labels": {"a": "b"}},
            b'{"a":"b"}',
        ),
    ],
)
async def test_a_body_without_fields_is_one_argument_of_its_title(
    spec: dict[str, Any], arguments: dict[str, Any], body: bytes
) -> None:
    """fastmcp: the title, also behind a reference, or `body`; text is sent as text."""
    request = await asked_by(spec, **arguments)
    assert request.content == body
    (media,) = spec["paths"]["/books"]["post"]["requestBody"]["content"]
    assert request.headers["content-type"] == media


async def test_fields_of_parts_of_parts_and_of_each_kind_reach_the_body() -> None:
    """An object may be put together of others, which repeat and lead back to it; a kind's own fields are optional."""
    schemas: dict[str, Any] = {
        "Item": {"properties": {"id": {"type": "string"}}, "required": ["id"]},
        "Book": {
            "allOf": [{"$ref": "#/components/schemas/Item"}, {"properties": {"kind": {"type": "string"}}}],
            "discriminator": {"propertyName": "kind", "mapping": {"ebook": "Ebook"}},
        },
        "Ebook": {
            "allOf": [{"$ref": "#/components/schemas/Book"}, {"properties": {"size": {}}, "required": ["size"]}],
        },
    }
    for level in range(1, 25):
        below = "Book" if level == 1 else f"L{level - 1}"
        schemas[f"L{level}"] = {"allOf": [{"$ref": f"#/components/schemas/{below}"}] * 3}
    spec = taking({"$ref": "#/components/schemas/L24"}, components={"schemas": schemas})
    request = await asked_by(spec, id="7", kind="ebook", size=3)
    assert json.loads(request.content) == {"id": "7", "kind": "ebook", "size": 3}
    assert not (await asked_by(spec, id="7", kind="paper")).content.count(b"size")


async def test_what_an_api_never_gives_is_not_promised() -> None:
    """OpenAPI 3.0, `writeOnly`: a response without it is right; names of keywords are names of properties, too."""
    user = {
        "type": "object",
        "properties": {"id": {}, "nullable": {"type": "string"}, "allOf": {}, "required": {}},
        "required": ["id", "password"],
        "allOf": [{"properties": {"password": {"type": "string", "writeOnly": True}}}],
    }
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/User"}}}
    operation = {
        "operationId": "join",
        "requestBody": {"required": True, "content": content},
        "responses": {"201": {"content": content}},
    }
    spec = {"openapi": "3.0.3", "paths": {"/users": {"post": operation}}, "components": {"schemas": {"User": user}}}
    mcp = standalone.FastMCP.from_openapi(spec, httpx2.AsyncClient(base_url="http://shop", timeout=WAIT))
    async with Client(mcp.engine, timeout=WAIT) as client:
        (tool,) = await client.tools()
    assert "password" in tool.input_schema["required"]
    assert tool.output_schema is not None
    assert tool.output_schema["required"] == ["id"]
    assert "password" not in str(tool.output_schema)
    assert list(tool.output_schema["properties"]) == ["id", "nullable", "allOf", "required"]


@pytest.mark.parametrize("ids", [["find__a", "find__b", "find_2"], ["find_2", "find__a", "find__b"]])
async def test_each_operation_has_a_name_of_its_own(ids: list[str]) -> None:
    """A number after a name may be another operation's name."""
    paths = {f"/{each}": {"get": {"operationId": each, "responses": {}}} for each in ids}
    mcp = standalone.FastMCP.from_openapi(
        {"openapi": "3.1.0", "paths": paths}, httpx2.AsyncClient(base_url="http://shop", timeout=WAIT)
    )
    async with Client(mcp.engine, timeout=WAIT) as client:
        assert len({tool.name for tool in await client.tools()}) == len(ids)
