"""Servers from OpenAPI documents, and their exchanges with an API."""

import json
from typing import Any

import httpx2

from millstream import Client, Server
from millstream.client import Result
from patience import WAIT

BASE = "http://shop.test/api"
OBJECT = {"type": "object"}
TEXT = {"type": "string"}
LIST = {"type": "array", "items": TEXT}


def operation(*parameters: Any, method: str = "get", path: str = "/p", **more: Any) -> dict[str, Any]:
    """Return a document with one operation, named `op`."""
    described = {"operationId": "op", "parameters": [*parameters], "responses": {}, **more}
    return {"openapi": "3.1.0", "info": {"title": "Shop", "version": "1"}, "paths": {path: {method: described}}}


def parameter(place: str, schema: Any, name: str = "a", **more: Any) -> dict[str, Any]:
    """Return a parameter."""
    return {"name": name, "in": place, "required": place == "path", "schema": schema, **more}


def body(schema: Any, media: str = "application/json", *, required: bool = True, **more: Any) -> dict[str, Any]:
    """Return the member of an operation that describes its body."""
    return {"requestBody": {"required": required, "content": {media: {"schema": schema, **more}}}}


class Api:
    """An API in this process, which records its requests."""

    def __init__(self, *replies: httpx2.Response) -> None:
        self.requests: list[httpx2.Request] = []
        self._replies = [*replies]

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.requests.append(request)
        return self._replies.pop(0) if self._replies else httpx2.Response(200, json={"ok": True})

    def client(self, **options: Any) -> httpx2.AsyncClient:
        """Return an HTTP client for it."""
        return httpx2.AsyncClient(**{"base_url": BASE, "transport": httpx2.MockTransport(self._answer), **options})

    async def call(self, document: Any, arguments: dict[str, Any], **options: Any) -> Result:
        """Call the document's first tool."""
        mcp = Server.from_openapi(document, self.client(), **options)
        async with Client(mcp, timeout=WAIT) as client:
            name = (await client.tools())[0].name
            return await client.call(name, arguments, raise_on_error=False)


async def sent(document: Any, arguments: dict[str, Any], **options: Any) -> httpx2.Request:
    """Return the request that a call of the document's only tool sends."""
    api = Api()
    result = await api.call(document, arguments, **options)
    assert not result.is_error, result.text
    (request,) = api.requests
    return request


async def reply(answer: httpx2.Response, document: Any = None, **options: Any) -> Result:
    """Return what a caller gets for an API's response."""
    return await Api(answer).call(document or operation(), {}, **options)


async def refusal(document: Any, arguments: dict[str, Any]) -> str:
    """Return the error of a call that sends no request."""
    api = Api()
    result = await api.call(document, arguments)
    assert result.is_error
    assert not api.requests
    return result.text


async def tools(document: Any, **options: Any) -> dict[str, Any]:
    """Return the tools made from a document, by name."""
    async with Client(Server.from_openapi(document, Api().client(), **options), timeout=WAIT) as client:
        return {each.name: each for each in await client.tools()}


def multipart(request: httpx2.Request) -> list[tuple[str, dict[str, str], bytes]]:
    """Return each part's disposition, other headers, and content."""
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    found: list[tuple[str, dict[str, str], bytes]] = []
    for part in request.content.split(b"--" + boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        found.append((fields.pop("Content-Disposition"), fields, content.removesuffix(b"\r\n")))
    return found


def sent_json(request: httpx2.Request) -> Any:
    """Return the JSON body of a request."""
    return json.loads(request.content)
