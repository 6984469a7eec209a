"""A server made of an OpenAPI document, in front of an API that notes what it is asked."""

import httpx2
from fastmcp import FastMCP
from fastmcp.server.providers.openapi import MCPType, RouteMap

TEXT = {"type": "string"}
NOTHING = {"200": {"description": "ok"}}
BOOK = {"$ref": "#/components/schemas/Book"}


def gives(schema):
    return {"200": {"description": "ok", "content": {"application/json": {"schema": schema}}}}


def takes(schema):
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def query(name, **schema):
    return {"name": name, "in": "query", "schema": schema}


SPEC = {
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
                "responses": gives(BOOK),
            },
            "put": {
                "operationId": "put_book__v1",
                "requestBody": takes(BOOK),
                "responses": {"200": {"description": "ok"}},
            },
        },
        "/orders": {
            "post": {
                "summary": "Order books!",
                "requestBody": takes({"$ref": "#/components/schemas/Order"}),
                "responses": gives({"type": "array", "items": {"type": "string"}}),
            },
            "get": {
                "parameters": [
                    query("tags", type="array", items={"type": "string"}),
                    {"$ref": "#/components/parameters/Page"},
                ],
                "responses": gives({"type": "array", "items": {"type": "string"}}),
            },
        },
        "/raw": {
            "post": {
                "operationId": "raw",
                "requestBody": takes({"type": "array", "items": {"type": "integer"}}),
                "responses": {"204": {"description": "none"}},
            }
        },
        "/fail": {"get": {"operationId": "fail", "responses": {"200": {"description": "ok"}}}},
        "/inside": {"get": {"operationId": "inside", "responses": {"200": {"description": "ok"}}}},
        "/shelf": {"get": {"operationId": "shelf", "responses": gives({"type": "object"})}},
        "/shelves/{floor}": {
            "get": {
                "operationId": "floor",
                "parameters": [{"name": "floor", "in": "path", "required": True, "schema": {"type": "integer"}}],
                "responses": gives({"type": "object"}),
            }
        },
    },
}
asked = []


def api(request):
    asked.append(f"{request.method} {request.url} {request.headers.get('x-shop')} {request.content.decode()}")
    path = request.url.path
    if path.endswith("/fail"):
        return httpx2.Response(404, json={"detail": "no such book"})
    if path.endswith("/raw"):
        return httpx2.Response(204)
    return httpx2.Response(200, json=["a", "b"] if path.endswith("/orders") else {"isbn": "7"})


mcp = FastMCP.from_openapi(
    SPEC,
    client=httpx2.AsyncClient(base_url="http://shop/api", transport=httpx2.MockTransport(api)),
    name="shop",
    mcp_names={"fail": "break_it"},
    route_maps=[
        RouteMap(pattern=r"^/inside", mcp_type=MCPType.EXCLUDE),
        RouteMap(methods=["GET"], pattern=r"^/shelf$", mcp_type=MCPType.RESOURCE),
        RouteMap(methods=["GET"], pattern=r"^/shelves/.*", mcp_type=MCPType.RESOURCE_TEMPLATE),
    ],
)


@mcp.tool
def log() -> list[str]:
    return asked


if __name__ == "__main__":
    mcp.run(show_banner=False)
