"""Documents in the style of Kubernetes and DigitalOcean, with the parts that surprise readers."""

import asyncio
import gc
import json
from collections.abc import Callable
from itertools import count
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator
from starlette.requests import Request
from starlette.responses import JSONResponse

from api_calls import BASE, TEXT, operation, parameter, tools
from api_calls import body as json_body
from cases import for_each
from cpu import check_linear, count_calls
from growth import measured
from http_peer import serve
from millstream import Client, Server
from millstream._protocol.json_schema import children
from millstream.gateway import OpenApi
from millstream.protocol import encode
from patience import WAIT


def ref(to: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{to}"}


def body(schema: Any, media: str = "application/json", **more: Any) -> dict[str, Any]:
    return {"content": {media: {"schema": schema, **more}}}


PROPS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
SCHEMA_PROPS = {
    "description": "JSONSchemaProps is a JSON-Schema following Specification Draft 4 (http://json-schema.org/).",
    "type": "object",
    "properties": {
        "$ref": {"type": "string"},
        "$schema": {"type": "string"},
        "allOf": {"type": "array", "items": {"default": {}, "allOf": [ref(PROPS)]}, "x-kubernetes-list-type": "atomic"},
        "default": {"description": "default is a default value for undefined object fields."},
        "enum": {"type": "array", "items": {}},
        "example": {},
        "nullable": {"type": "boolean"},
        "properties": {"type": "object", "additionalProperties": {"default": {}, "allOf": [ref(PROPS)]}},
        "required": {"type": "array", "items": {"type": "string", "default": ""}},
        "x-kubernetes-embedded-resource": {"type": "boolean"},
    },
}
CRD = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition"
KUBERNETES: dict[str, Any] = {
    "openapi": "3.0.0",
    "info": {"title": "Kubernetes", "version": "v1.31.0"},
    "paths": {
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}": {
            "parameters": [
                {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "uniqueItems": True}},
                {"name": "pretty", "in": "query", "schema": {"type": "string", "uniqueItems": True}},
            ],
            "put": {
                "operationId": "replaceApiextensionsV1CustomResourceDefinition",
                "tags": ["apiextensions_v1"],
                "requestBody": {**body(ref(CRD), "*/*"), "required": True},
                "responses": {"200": {"description": "OK", **body(ref(CRD))}, "401": {"description": "Unauthorized"}},
                "x-kubernetes-action": "put",
                "x-kubernetes-group-version-kind": {"group": "apiextensions.k8s.io", "properties": [], "allOf": True},
            },
        },
    },
    "components": {
        "schemas": {
            CRD: {
                "type": "object",
                "required": ["spec"],
                "properties": {
                    "metadata": {
                        "default": {},
                        "allOf": [ref("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")],
                        "description": "Standard object's metadata",
                    },
                    "spec": {
                        "type": "object",
                        "properties": {"names": {"type": "object"}, "schema": {"default": {}, "allOf": [ref(PROPS)]}},
                        "example": {"properties": True, "required": None, "allOf": {"$ref": 5}, "$ref": "#/nowhere"},
                    },
                },
                "x-kubernetes-group-version-kind": [{"kind": "CustomResourceDefinition", "items": "none"}],
            },
            "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta": {
                "type": "object",
                "properties": {
                    "creationTimestamp": {"type": "string", "format": "date-time", "nullable": True, "readOnly": True},
                    "deletionTimestamp": {"type": "string", "format": "date-time", "nullable": True},
                    "labels": {"type": "object", "additionalProperties": {"type": "string", "default": ""}},
                },
                "required": ["creationTimestamp"],
            },
            PROPS: SCHEMA_PROPS,
        }
    },
}

APP = "#/paths/~1v2~1apps~1%7Bid%7D/get/responses/200/content/application~1json/schema"
DIGITAL_OCEAN: dict[str, Any] = {
    "openapi": "3.0.0",
    "info": {"title": "DigitalOcean API", "version": "2.0"},
    "servers": [{"url": "https://api.digitalocean.com"}],
    "paths": {
        "x-note": "paths may have extensions",
        "/v2/apps/{id}": {
            "get": {
                "operationId": "apps_get",
                "parameters": [
                    {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "example": "4f6c"},
                    {
                        "name": "per_page",
                        "in": "query",
                        "schema": {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 200},
                    },
                    {"name": "where", "in": "query", "content": {"application/json": {"schema": {"type": "object"}}}},
                ],
                "responses": {
                    "200": {
                        "description": "A JSON object with a `app` key.",
                        **body(
                            {"type": "object", "properties": {"app": ref("app")}},
                            examples={"App": {"value": {"app": {"$ref": [], "properties": {"id": None}}}}},
                        ),
                    }
                },
                "x-codeSamples": [{"lang": "cURL", "source": "curl -X GET"}],
            },
            "put": {
                "operationId": "apps_update",
                "parameters": [{"$ref": "#/paths/~1v2~1apps~1%7Bid%7D/get/parameters/0"}],
                "requestBody": body({"type": "object", "properties": {"app": {"$ref": f"{APP}/properties/app"}}}),
                "responses": {"200": {"$ref": "#/components/responses/app"}},
            },
        },
        "/v2/droplets": {
            "post": {
                "operationId": "droplets_create",
                "requestBody": body(
                    {
                        "type": "object",
                        "properties": {
                            "image": {"oneOf": [{"type": "string"}, {"type": "integer"}], "example": {"oneOf": 1}},
                            "region": {"enum": ["nyc3", {"items": 3}, None], "default": {"$ref": "#/components"}},
                            "kind": {"const": {"$ref": "#/components", "allOf": 1}, "x-kind": {"properties": []}},
                            "size": {"$ref": "#/components/schemas/app/allOf/1/properties/size"},
                            "vpc": {"$ref": "#/components/schemas/app/allOf/1/properties/vpc", "nullable": True},
                            "volumes": {"type": "array", "items": [{"type": "string"}], "minItems": "0"},
                        },
                        "required": ["image"],
                    }
                ),
                "responses": {"202": {"$ref": "#/components/responses/app"}},
            },
            "get": {
                "operationId": "droplets_list",
                "parameters": [{"$ref": "#/components/parameters/missing"}],
                "responses": {},
            },
            "delete": {
                "operationId": "droplets_delete",
                "parameters": [{"in": "query", "schema": {"type": "string"}}],
                "responses": {},
            },
        },
    },
    "components": {
        "responses": {"app": {"description": "An app", **body({"$ref": APP})}},
        "schemas": {
            "app": {
                "allOf": [
                    {"type": "object", "properties": {"id": {"type": "string"}, "owner": {"$ref": "./user.yml"}}},
                    {
                        "type": "object",
                        "properties": {
                            "size": {"type": "string", "enum": ["small", "large"], "nullable": True},
                            "vpc": {"nullable": True, "allOf": [ref("vpc")]},
                        },
                    },
                ],
                "discriminator": {"propertyName": "id"},
                "example": {"allOf": "text"},
            },
            "vpc": {
                "type": "object",
                "anyOf": [],
                "properties": {"ip_range": {"type": "Text"}, "peers": True, "none": None},
            },
        },
    },
}


async def test_large_api_documents_become_tools(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[httpx2.Request] = []

    def api(request: httpx2.Request) -> httpx2.Response:
        request.read()
        asked.append(request)
        return httpx2.Response(200, json={"app": {"id": "7"}})

    http = httpx2.AsyncClient(base_url="http://api", transport=httpx2.MockTransport(api))
    calls: dict[str, dict[str, Any]] = {
        "replaceApiextensionsV1CustomResourceDefinition": {
            "name": "a",
            "spec": {"schema": {"properties": {"b": {"$ref": "c", "required": ["d"]}}}},
            "metadata": {"labels": {"e": "f"}, "deletionTimestamp": None},
        },
        "apps_get": {"id": "7", "per_page": 5, "where": {"a": 1}},
        "apps_update": {"id": "7", "app": {"id": "7", "owner": 3, "size": None, "vpc": None}},
        "droplets_create": {
            "image": 7,
            "region": None,
            "size": "large",
            "vpc": {"peers": 1, "ip_range": 2},
            "volumes": [{"a": 1}],
        },
    }
    offered: set[str] = set()
    for document in (KUBERNETES, DIGITAL_OCEAN):
        async with Client(Server.from_openapi(document, http), timeout=WAIT) as client:
            for tool in await client.tools():
                offered.add(tool.name)
                for schema in (tool.input_schema, tool.output_schema or {}):
                    Draft202012Validator.check_schema(schema)
                    assert dangling_references(schema) == []
                Draft202012Validator(tool.input_schema).validate(
                    {name: each for name, each in calls[tool.name].items() if each is not None}
                )
                result = await client.call(tool.name, calls[tool.name], raise_on_error=False)
                assert not result.is_error, result.text
            for tool_name, wrong in (("apps_get", {"per_page": 0}), ("droplets_create", {"size": "huge"})):
                if tool_name in offered:
                    arguments = calls[tool_name] | wrong
                    assert (await client.call(tool_name, arguments, raise_on_error=False)).is_error
    assert offered == set(calls)
    replaced, got, updated, _ = asked
    assert replaced.headers["content-type"] == "application/json"
    assert json.loads(replaced.content)["spec"]["schema"]["properties"]["b"] == {"$ref": "c", "required": ["d"]}
    assert got.url.params["where"] == '{"a":1}'
    assert json.loads(updated.content) == {"app": {"id": "7", "owner": 3, "size": None, "vpc": None}}
    skipped = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert [each.partition(", because")[0] for each in skipped] == [
        "DigitalOcean API: skipped GET /v2/droplets",
        "DigitalOcean API: skipped DELETE /v2/droplets",
    ]


def dangling_references(root: dict[str, Any]) -> list[str]:
    """Return the references of a schema that lead to none of its definitions."""
    found, pending = list[str](), [root]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            pending += [child for _, child in children(node)]
            name = node.get("$ref", "")
            found += [name] if name and name.removeprefix("#/$defs/") not in root.get("$defs", {}) else []
    return found


async def test_malformed_operation_is_logged_once_and_does_not_affect_others(caplog: pytest.LogCaptureFixture) -> None:
    api, reads, read_again = Server("api"), count(1), asyncio.Event()

    async def answer(request: Request) -> JSONResponse:
        number = next(reads)
        if number == 4:
            read_again.set()
        return JSONResponse({**DIGITAL_OCEAN, "servers": "none", "x-first": number == 1})

    api.route("/about.json")(answer)
    async with serve(api) as running:
        base = f"http://127.0.0.1:{running.port}"
        mcp = Server("front")
        about = OpenApi(document=f"{base}/about.json", base_url=base)
        mcp.upstream("ocean", openapi=about, prefix="", start_timeout=WAIT, refresh_seconds=0.01)
        async with Client(mcp, timeout=WAIT) as client, asyncio.timeout(WAIT):
            await client.tools()
            await read_again.wait()
            tools = await client.tools(fresh=True)
    assert {each.name for each in tools} == {"apps_get", "apps_update", "droplets_create"}
    skipped = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert [each.partition(", because")[0] for each in skipped] == [
        f"ocean: skipped the reference to {base}/user.yml",
        "ocean: skipped GET /v2/droplets",
        "ocean: skipped DELETE /v2/droplets",
    ]


async def test_properties_that_allow_nothing_are_objects_in_schemas() -> None:
    schema = {"type": "object", "properties": {"id": {"type": "integer"}, "additionalProperties": False}}
    document = operation(method="post", **json_body({"type": "object", "properties": {"inner": schema}}))
    content = {"content": {"application/json": {"schema": schema}}}
    document["paths"]["/p"]["post"]["responses"] = {"200": {"description": "OK", **content}}
    tool = (await tools(document, output_schemas=True))["op"]
    for found in (tool.input_schema["properties"]["inner"], tool.output_schema):
        assert found["properties"]["additionalProperties"] == {"not": {}}


def _paths(size: int, **more: Any) -> Any:
    paths = {f"/p{number}": {"get": {"operationId": f"op{number}", "responses": {}}} for number in range(size)}
    return {**operation(), "paths": paths, **more}


def _named_alike(size: int) -> Any:
    fields = {f"f{number}": {"$ref": f"#/x-parts/{number}/Part"} for number in range(size)}
    parts = [{"Part": {"type": "object", "title": f"Part {number}"}} for number in range(size)]
    return {**operation(method="post", **json_body({"type": "object", "properties": fields})), "x-parts": parts}


def _queries(size: int, schema: Any, **more: Any) -> Any:
    copied = encode(schema)  # as in a file
    return operation(*(parameter("query", json.loads(copied), f"a{number}", **more) for number in range(size)))


def _shared(size: int, document: Any, **flags: Any) -> Any:
    """Return a document in which all operations can refer to an object with many properties, and to a long union."""
    fields = {f"p{number}": {"type": "string", **flags} for number in range(size)}
    parts = {f"P{number}": {"properties": {f"f{number}": TEXT}} for number in range(size)}
    mapping = {f"k{number}": f"#/components/schemas/P{number}" for number in range(size)}
    schemas = {
        "Wide": {"type": "object", "additionalProperties": False, "properties": fields},
        "Union": {
            "oneOf": [ref(each) for each in parts], "discriminator": {"propertyName": "kind", "mapping": mapping},
        },
        **parts,
    }  # fmt: skip
    return {**document, "components": {"schemas": schemas}}


def _bodies(size: int) -> Any:
    paths = {f"/p{number}": {"post": {"responses": {}, **json_body(ref("Wide"))}} for number in range(size)}
    return _shared(size, _paths(0, paths=paths), readOnly=True)


def _files(size: int) -> Any:
    fields = {f"f{number}": ref("Union") for number in range(size)}
    parts = {"content": {"multipart/form-data": {"schema": {"type": "object", "properties": fields}}}}
    return _shared(size, operation(method="post", requestBody=parts))


def _tuple(size: int) -> Any:
    schema = {"type": "array", "prefixItems": [{"const": number} for number in range(8 * size)]}
    return operation(method="post", **json_body({"type": "object", "properties": {"a": schema}}))


def _extended(size: int) -> Any:
    document = _shared(size, operation(method="post"))
    schemas = document["components"]["schemas"]
    schemas |= {f"E{number}": {"allOf": [ref("Wide")]} for number in range(size)}
    fields = {f"f{number}": ref(f"E{number}") for number in range(size)}
    document["paths"]["/p"]["post"] |= json_body({"type": "object", "properties": fields})
    return document


def _media_types(size: int) -> Any:
    body = {"name": "b", "in": "body", "schema": {"type": "object"}}
    paths = {f"/p{number}": {"post": {"parameters": [body], "responses": {}}} for number in range(size)}
    return {"swagger": "2.0", "consumes": [f"a/b{number}+json" for number in range(size)], "paths": paths}


def _many_keys(size: int) -> Any:
    keys = {f"s{number}": {"type": "apiKey", "name": f"k{number}", "in": "header"} for number in range(size)}
    return _paths(size, components={"securitySchemes": keys})


_LARGE: dict[str, Callable[[int], Any]] = {
    "paths without a server": _paths,
    "ids that are alike": lambda size: _paths(
        size, paths={f"/{'p' * 60}{number}": {"get": {}} for number in range(size)}
    ),
    "API keys": _many_keys,
    "parts with one name": _named_alike,
    "open objects in a query": lambda size: _queries(size, {"type": "object"}),
    "deep objects in a query": lambda size: _queries(size, {"type": "object"}, style="deepObject"),
    "one object in a query": lambda size: _shared(size, _queries(size, ref("Wide"))),
    "a part of objects in a query": lambda size: _shared(size, _queries(size, {"allOf": [ref("Wide")]})),
    "a body of read-only properties": _bodies,
    "files": _files,
    "a union with a mapping": lambda size: _shared(size, operation(method="post", **json_body(ref("Union")))),
    "a tuple": _tuple,
    "objects that extend another": _extended,
    "media types": _media_types,
    "servers": lambda size: _paths(size, servers=[{"url": f"{BASE}/{number}"} for number in range(size)]),
    "braces in a server": lambda size: {**_paths(1), "servers": [{"url": f"/{'{' * size * 100}"}]},
}


@for_each("kind", _LARGE)
def test_memory_for_a_document_is_proportional_to_its_size(kind: str) -> None:
    http = httpx2.AsyncClient(base_url=BASE)
    kept: list[float] = []
    for size in (50, 400):
        document = _LARGE[kind](size)
        with measured() as growth:
            server = Server.from_openapi(document, http)
        kept.append(growth.bytes / len(json.dumps(document)))
        del server
    assert kept[1] < 2 * kept[0] + 1


@for_each("kind", _LARGE)
def test_documents_are_read_in_linear_time(kind: str) -> None:
    http = httpx2.AsyncClient(base_url=BASE)
    gc.disable()  # its time depends on the other tests
    try:
        check_linear(lambda size: Server.from_openapi(_LARGE[kind](size), http), 200)
    finally:
        gc.enable()


def _definitions(size: int, leads_to: Callable[[int], list[int]]) -> Any:
    """Return a document whose definitions consist of others."""
    schemas = {
        f"P{number}": {
            "type": "object",
            "properties": {f"f{number}": {"type": "string"}},
            "required": [f"f{number}"],
            "allOf": [ref(f"P{each}") for each in leads_to(number) if each < size],
        }
        for number in range(size)
    }
    fields = {"a": ref("P0")}
    return {
        **operation(method="post", **json_body({"type": "object", "properties": fields})),
        "components": {"schemas": schemas},
    }


_COMPOSED: dict[str, Callable[[int], Any]] = {
    "chain": lambda size: _definitions(size, lambda number: [number + 1]),
    "circle": lambda size: _definitions(size, lambda number: [(number + 1) % size]),
    "diamond": lambda size: _definitions(size, lambda number: [number // 2 * 2 + 2, number // 2 * 2 + 3]),
    "fan": lambda size: _definitions(size, lambda number: [0] if number else [*range(1, size)]),
}


@for_each("kind", _COMPOSED)
def test_composed_definitions_are_read_in_linear_time(kind: str) -> None:
    http = httpx2.AsyncClient(base_url=BASE)

    def work(size: int) -> int:
        with count_calls() as names:
            Server.from_openapi(_COMPOSED[kind](size), http)
        return len(names)

    assert work(400) < 5 * work(100)


async def test_parameters_can_share_an_object_with_many_properties(caplog: pytest.LogCaptureFixture) -> None:
    (tool,) = (await tools(_LARGE["one object in a query"](200))).values()
    assert len(tool.input_schema["properties"]) == 200
    assert await tools(_LARGE["a part of objects in a query"](200)) == {}
    assert "skipped GET /p, because its query parameters have more than 10,000 properties" in caplog.text


async def test_read_only_property_in_a_wide_object_is_not_an_argument() -> None:
    parts = [{"properties": {f"f{number}": {"type": "string", "readOnly": number == 79}}} for number in range(80)]
    spec = operation(method="post", **json_body({"type": "object", "properties": {"a": {"allOf": parts}}}))
    async with Client(Server.from_openapi(spec, httpx2.AsyncClient(base_url=BASE))) as client:
        schema = json.dumps((await client.tools())[0].input_schema)
    assert ("f78" in schema, "f79" in schema) == (True, False)


def test_operations_with_the_same_name_are_numbered() -> None:
    spec = _paths(0, paths={f"/p{number}": {"get": {"summary": "List"}} for number in range(6)})
    mcp = Server.from_openapi(spec, httpx2.AsyncClient(base_url=BASE))

    async def names() -> list[str]:
        async with Client(mcp) as client:
            return sorted(tool.name for tool in await client.tools())

    assert asyncio.run(names()) == ["List", "List_2", "List_3", "List_4", "List_5", "List_6"]
