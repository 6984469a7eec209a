"""Servers from an OpenAPI document or a FastAPI application: their items, and the requests to the API."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel

from cases import for_each
from examples import books_api, remote_api
from millstream import Client, Server
from millstream._gateway.apis.document import Document
from millstream.client import ToolFailed
from millstream.gateway import RouteKind, RouteMap
from patience import WAIT

NOTHING = {"200": {"description": "ok"}}
BOOK = {"$ref": "#/components/schemas/Book"}


def response_of(schema: Any) -> dict[str, Any]:
    return {"200": {"description": "ok", "content": {"application/json": {"schema": schema}}}}


def body_of(schema: Any) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def query(name: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


SPEC: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Shop", "version": "1"},
    "components": {
        "schemas": {
            "Book": {
                "type": "object",
                "properties": {"isbn": {"type": "string"}, "next": BOOK},
                "required": ["isbn"],
            },
            "Order": {
                "type": "object",
                "properties": {"book": BOOK, "copies": {"type": "integer", "default": 1}},
                "required": ["book"],
            },
        },
        "parameters": {"Page": query("page", type="integer")},
    },
    "paths": {
        "/books/{isbn}": {
            "parameters": [
                {
                    "name": "isbn",
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string"},
                    "description": "Its number",
                }
            ],
            "get": {
                "operationId": "get_book",
                "summary": "Get a book",
                "description": "All about it",
                "parameters": [
                    query("full", type="boolean"),
                    {"name": "X-Shop", "in": "header", "schema": {"type": "string"}},
                ],
                "responses": response_of(BOOK),
            },
            "put": {
                "operationId": "put_book__v1",
                "requestBody": body_of(BOOK),
                "responses": {"200": {"description": "ok"}},
            },
        },
        "/orders": {
            "post": {
                "summary": "Order books!",
                "requestBody": body_of({"$ref": "#/components/schemas/Order"}),
                "responses": response_of({"type": "array", "items": {"type": "string"}}),
            },
            "get": {
                "parameters": [
                    query("tags", type="array", items={"type": "string"}),
                    {"$ref": "#/components/parameters/Page"},
                ],
                "responses": response_of({"type": "array", "items": {"type": "string"}}),
            },
        },
        "/raw": {
            "post": {
                "operationId": "raw",
                "requestBody": body_of({"type": "array", "items": {"type": "integer"}}),
                "responses": {"204": {"description": "none"}},
            }
        },
        "/fail": {"get": {"operationId": "fail", "responses": {"200": {"description": "ok"}}}},
        "/inside": {"get": {"operationId": "inside", "responses": {"200": {"description": "ok"}}}},
        "/shelf": {"get": {"operationId": "shelf", "responses": response_of({"type": "object"})}},
        "/shelves/{floor}": {
            "get": {
                "operationId": "floor",
                "parameters": [{"name": "floor", "in": "path", "required": True, "schema": {"type": "integer"}}],
                "responses": response_of({"type": "object"}),
            }
        },
    },
}


async def test_operations_become_tools_and_resources() -> None:
    asked: list[str] = []

    def api(request: httpx2.Request) -> httpx2.Response:
        asked.append(f"{request.method} {request.url} {request.headers.get('x-shop')} {request.content.decode()}")
        path = request.url.path
        if path.endswith("/fail"):
            return httpx2.Response(404, json={"detail": "no such book"})
        if path.endswith("/raw"):
            return httpx2.Response(204)
        return httpx2.Response(200, json=["a", "b"] if path.endswith("/orders") else {"isbn": "7"})

    http = httpx2.AsyncClient(base_url="http://shop/api", transport=httpx2.MockTransport(api))
    routes = [
        RouteMap(pattern=r"^/inside", kind=RouteKind.EXCLUDE),
        RouteMap(methods=["GET"], pattern=r"^/shel", kind=RouteKind.RESOURCE),
    ]
    mcp = Server.from_openapi(SPEC, http, name="shop", names={"fail": "break_it"}, routes=routes)
    async with Client(mcp, timeout=WAIT) as client:
        tools = {each.name: each for each in await client.tools()}
        book = await client.call("get_book", {"isbn": "7 8/9", "full": True, "X-Shop": "north"})
        await client.call("put_book", {"isbn__path": "7", "isbn": "8"})
        ordered = await client.call("Order_books", {"book": {"isbn": "1"}, "copies": 2})
        await client.call("GET_orders", {"tags": ["a", "b"], "page": 2})
        raw = await client.call("raw", {"body": [1, 2]})
        failed = await client.call("break_it", raise_on_error=False)
        resources = [(each.uri, each.mime_type) for each in await client.resources()]
        templates = [(each.uri_template, each.name) for each in await client.templates()]
        read = [(await client.read(uri))[0].text for uri in ("resource://shelf", "resource://floor/7")]
    assert set(tools) == {"get_book", "put_book", "Order_books", "GET_orders", "raw", "break_it"}
    assert tools["get_book"].description == "All about it"
    assert tools["get_book"].input_schema["required"] == ["isbn"]
    assert tools["put_book"].input_schema["properties"]["isbn__path"]["description"] == "Its number (Path parameter)"
    assert tools["get_book"].output_schema is None
    assert book.data == {"isbn": "7"}
    assert ordered.text == '["a","b"]'
    assert (raw.is_error, raw.text) == (False, "")
    assert failed.is_error
    assert "HTTP error 404" in failed.text
    assert "no such book" in failed.text
    assert resources == [("resource://shelf", "application/json")]
    assert templates == [("resource://floor/{floor}", "floor")]
    assert [json.loads(text or "") for text in read] == [{"isbn": "7"}] * 2
    assert asked == [
        "GET http://shop/api/books/7%208%2F9?full=true north ",
        'PUT http://shop/api/books/7 None {"isbn":"8"}',
        'POST http://shop/api/orders None {"book":{"isbn":"1"},"copies":2}',
        "GET http://shop/api/orders?tags=a&tags=b&page=2 None ",
        "POST http://shop/api/raw None [1,2]",
        "GET http://shop/api/fail None ",
        "GET http://shop/api/shelf None ",
        "GET http://shop/api/shelves/7 None ",
    ]


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


async def test_fastapi_applications_become_servers() -> None:
    mcp = Server.from_fastapi(shop(), names={"add_books__shelf__post": "add"})
    assert mcp.name == "Shop"
    async with Client(mcp, timeout=WAIT) as client:
        assert sorted(each.name for each in await client.tools()) == ["add", "plan_secret_plan_get"]
        result = await client.call("add", shelf="a", isbn="7", loud=True)
        assert result.data == {"isbn": "a/7!", "pages": 7}
        wrong = await client.call("add", shelf="a", isbn="7", pages="many", raise_on_error=False)
        assert wrong.is_error
        assert "'pages' must be an integer" in wrong.text


@for_each("how", ["from_fastapi", "upstream", "mounted", "mounted on the application", "mounted on a server"])
async def test_lifespan_of_an_application_runs_once_with_its_state(how: str) -> None:
    log = list[str]()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        log.append("start")
        app.state.db = "Emma"
        yield {"pool": "open"}
        log.append("stop")

    app = FastAPI(title="Books", lifespan=lifespan)

    @app.get("/find", operation_id="find")
    def find(request: Request) -> str:
        return f"{request.app.state.db} {getattr(request.state, 'pool', '')}".strip()

    made, outside = Server("front"), AsyncExitStack()
    if how == "upstream":
        made.upstream("books", openapi=app, prefix="", start_timeout=WAIT)
    else:
        made = Server.from_fastapi(app)
    if how == "mounted on the application":
        app.mount("/mcp", made)
        await outside.enter_async_context(app.router.lifespan_context(app))
    elif how == "mounted":
        FastAPI().mount("/mcp", made)
    elif how == "mounted on a server":
        made, books = Server("front"), made
        made.mount(books)
    async with outside, Client(made, timeout=WAIT) as client:
        while not await client.tools(fresh=True):
            pass
        assert ("Emma" if how == "mounted on the application" else "Emma open") in (await client.call("find")).text
        assert log == ["start"]
    assert log == ["start", "stop"]


@pytest.mark.parametrize("shelf", ["..", ".", ""])
async def test_path_traversal_values_do_not_reach_any_operation(shelf: str) -> None:
    asked: list[str] = []

    def api(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.raw_path.decode())
        return httpx2.Response(200, json={})

    http = httpx2.AsyncClient(base_url="http://shop", transport=httpx2.MockTransport(api))
    mcp = Server.from_openapi(shop().openapi(), http, names={"add_books__shelf__post": "add"})
    async with Client(mcp, timeout=WAIT) as client:
        result = await client.call("add", shelf=shelf, isbn="7", raise_on_error=False)
        assert result.is_error
        assert "change the path" in result.text
        assert (await client.call("add", shelf=f"{shelf}./../secret", isbn="7", raise_on_error=False)).is_error
        assert not asked
        await client.call("add", shelf="a/b c", isbn="7")
    assert asked == ["/books/a%2Fb%20c"]


async def test_unreachable_api_is_a_one_line_error() -> None:
    http = httpx2.AsyncClient(base_url="http://127.0.0.1:9", timeout=WAIT)
    mcp = Server.from_openapi(shop().openapi(), http)
    async with Client(mcp, timeout=WAIT) as client:
        result = await client.call("plan_secret_plan_get", raise_on_error=False)
    assert result.is_error
    assert "ConnectError" in result.text


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({}, "no paths"),
        ({"swagger": "1.2", "paths": {}}, "2.0, 3.0, or 3.1"),
        ({"openapi": "3.1.0", "paths": {}, "servers": [{"url": "/api"}]}, "no absolute server URL"),
        ({"openapi": "3.1.0", "paths": {}, "servers": [{"url": "{where}/v1"}]}, "no absolute server URL"),
    ],
)
def test_invalid_documents_are_rejected_immediately(spec: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Server.from_openapi(spec)


def test_server_url_variables_have_their_defaults() -> None:
    variables = {"scheme": {"default": "https"}, "port": {"enum": ["443", "8443"], "default": "8443"}}
    servers = [{"url": "{scheme}://{region}.example.com:{port}/v1", "variables": variables}, {"url": "http://other"}]
    variables["region"] = {"default": "eu"}
    document = Document({"openapi": "3.0.3", "paths": {}, "servers": servers})
    assert document.url == "https://eu.example.com:8443/v1"


async def test_function_selects_the_kind_of_each_operation() -> None:
    def choose(operation: Any, kind: RouteKind) -> RouteKind | None:
        return RouteKind.EXCLUDE if operation.path.startswith("/secret") else None

    mcp = Server.from_fastapi(shop(), choose=choose)
    async with Client(mcp, timeout=WAIT) as client:
        (tool,) = await client.tools()
    assert tool.name == "add_books"


@pytest.mark.parametrize(
    ("media", "kind", "body"),
    [
        ("application/json", "application/json", b'{"tags":["a","b"],"label":"x"}'),
        ("application/vnd.shop+json; v=2", "application/vnd.shop+json; v=2", b'{"tags":["a","b"],"label":"x"}'),
        ("application/x-www-form-urlencoded", "application/x-www-form-urlencoded", b"tags=a&tags=b&label=x"),
        ("multipart/form-data", "multipart/form-data; boundary=", b'name="tags"\r\n\r\nb\r\n'),
    ],
)
async def test_bodies_are_encoded_as_the_document_specifies(media: str, kind: str, body: bytes) -> None:
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
    async with Client(Server.from_openapi(spec, http), timeout=WAIT) as client:
        assert not (await client.call("add", tags=["a", "b"], label="x")).is_error
    assert asked[0].headers["content-type"].startswith(kind)
    assert body in asked[0].content


async def request_of(spec: dict[str, Any], **arguments: Any) -> httpx2.Request:
    """Return the request that a document's only operation sends."""
    asked: list[httpx2.Request] = []

    def api(request: httpx2.Request) -> httpx2.Response:
        request.read()
        asked.append(request)
        return httpx2.Response(200, json={})

    http = httpx2.AsyncClient(base_url="http://shop", transport=httpx2.MockTransport(api))
    mcp = Server.from_openapi(spec, http)
    async with Client(mcp, timeout=WAIT) as client:
        (tool,) = await client.tools()
        result = await client.call(tool.name, **arguments)
    assert not result.is_error, result.text
    return asked[0]


def document_with_body(body: dict[str, Any], media: str = "application/json", **more: Any) -> dict[str, Any]:
    """Return a document with one operation that takes a body."""
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
async def test_query_values_follow_the_documents_style(
    how: dict[str, Any], value: Any, query: list[tuple[str, str]]
) -> None:
    parameter = {"name": "at", "in": "query", "schema": LIST if isinstance(value, list) else {"type": "object"}, **how}
    operation = {"operationId": "find", "parameters": [parameter], "responses": {}}
    spec = {"openapi": "3.1.0", "paths": {"/books": {"get": operation}}}
    assert (await request_of(spec, at=value)).url.params.multi_items() == query


@pytest.mark.parametrize(
    ("encoding", "value", "parts"),
    [
        ({}, ["a", "b"], ["a", "b"]),
        ({}, [], []),
        ({"contentType": "application/json"}, ["a", "b"], ['["a","b"]']),
        ({"style": "form", "explode": False}, ["a", "b"], ["a,b"]),
    ],
)
async def test_multipart_lists_follow_their_encoding(
    encoding: dict[str, Any], value: list[str], parts: list[str]
) -> None:
    schema = {"type": "object", "properties": {"tags": LIST}}
    spec = document_with_body(schema, "multipart/form-data", about={"encoding": {"tags": encoding}})
    request = await request_of(spec, tags=value)
    assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
    found = [each.partition(b"\r\n\r\n")[2].rstrip(b"\r\n-") for each in request.content.split(b'name="tags"')[1:]]
    assert [each.partition(b"\r\n")[0].decode() for each in found] == parts


@pytest.mark.parametrize(
    ("spec", "arguments", "body"),
    [
        (document_with_body({"type": "string"}, "text/plain"), {"body": "Momo"}, b"Momo"),
        (
            document_with_body({"type": "object", "properties": {}, "title": "Any Labels"}),
            {"any_labels": {"a": "b"}},
            b'{"a":"b"}',
        ),
        (
            document_with_body(
                {"$ref": "#/components/schemas/Labels"},
                components={"schemas": {"Labels": {"title": "Labels", "additionalProperties": {"type": "string"}}}},
            ),
            {"labels": {"a": "b"}},
            b'{"a":"b"}',
        ),
    ],
)
async def test_bodies_without_fields_are_one_argument(
    spec: dict[str, Any], arguments: dict[str, Any], body: bytes
) -> None:
    request = await request_of(spec, **arguments)
    assert request.content == body
    (media,) = spec["paths"]["/books"]["post"]["requestBody"]["content"]
    assert request.headers["content-type"] == media


async def test_arguments_that_fit_the_document_are_not_rejected() -> None:
    properties = {
        "price": {"type": "number", "multipleOf": 0.01},
        "image": {"oneOf": [{"type": "integer"}, {"type": "string", "pattern": "^[a-z]+$"}, {"type": "string"}]},
        "copies": {"type": "integer"},
        "note": {"type": "string"},
    }
    spec = document_with_body({"type": "object", "properties": properties, "required": ["price"]})
    request = await request_of(spec, price=19.99, image="7", copies="2", note=None)
    assert json.loads(request.content) == {"price": 19.99, "image": "7", "copies": 2}


async def test_nested_composed_fields_reach_the_body() -> None:
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
    spec = document_with_body({"$ref": "#/components/schemas/L24"}, components={"schemas": schemas})
    request = await request_of(spec, id="7", kind="ebook", size=3)
    assert json.loads(request.content) == {"id": "7", "kind": "ebook", "size": 3}
    assert not (await request_of(spec, id="7", kind="paper")).content.count(b"size")


async def test_output_schema_omits_write_only_members() -> None:
    """Responses omit `writeOnly` properties (OpenAPI 3.0). Properties can be named like keywords."""
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
    http = httpx2.AsyncClient(base_url="http://shop", timeout=WAIT)
    async with Client(Server.from_openapi(spec, http, output_schemas=True), timeout=WAIT) as client:
        (tool,) = await client.tools()
    assert "password" in tool.input_schema["required"]
    assert tool.output_schema is not None
    assert tool.output_schema["required"] == ["id"]
    assert "password" not in str(tool.output_schema)
    assert list(tool.output_schema["properties"]) == ["id", "nullable", "allOf", "required"]


@pytest.mark.parametrize("ids", [["find__a", "find__b", "find_2"], ["find_2", "find__a", "find__b"]])
async def test_operation_names_are_unique(ids: list[str]) -> None:
    paths = {f"/{each}": {"get": {"operationId": each, "responses": {}}} for each in ids}
    mcp = Server.from_openapi(
        {"openapi": "3.1.0", "paths": paths}, httpx2.AsyncClient(base_url="http://shop", timeout=WAIT)
    )
    async with Client(mcp, timeout=WAIT) as client:
        assert len({tool.name for tool in await client.tools()}) == len(ids)


async def test_documented_application_and_document_are_served() -> None:
    async with Client(books_api.mcp) as client:
        assert (await client.call("order_book", isbn="1", copies=2)).data == {"result": "Ordered 2 of 1"}
        with pytest.raises(ToolFailed, match=r'HTTP error 404: Not Found - {"detail":"There is no such book\."}'):
            await client.call("get_book", isbn="1")
        with pytest.raises(ToolFailed, match="'copies' must be an integer, got the string \"many\""):
            await client.call("order_book", isbn="1", copies="many")
    api = FastAPI()
    api.get("/books/{isbn}", name="get_book")(lambda isbn: isbn)
    api.get("/admin/users")(lambda: None)
    api.post("/orders", operation_id="order")(lambda: None)
    async with Client(remote_api.make_server(api.openapi(), "secret")) as client:
        assert [tool.name for tool in await client.tools()] == ["order"]
        assert [each.name for each in await client.templates()] == ["book"]
