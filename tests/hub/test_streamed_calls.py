import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from cases import for_each
from millstream import Context, Server, ToolResult
from millstream._transports.hub_routes import HubRoutes
from patience import WAIT

LARGE = 400_000


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server with one tool that reports its progress and one whose result is no event of the hub."""
    mcp = Server("streamed", serve=("hub", "rest"))

    @mcp.tool
    async def add(a: int, b: int, ctx: Context, stream: bool = False) -> int:
        await ctx.progress(1)
        return a + b

    @mcp.tool(thread=False)
    def large(stream: bool = False) -> str:
        return "x" * LARGE

    @mcp.tool
    async def count(to: int, stream: bool = False) -> AsyncIterator[str]:
        for number in range(1, to + 1):
            yield str(number)

    @mcp.tool(thread=False)
    def greet(stream: bool = False) -> ToolResult:
        return ToolResult("Hello", meta={"com.example/tone": "warm"})

    yield mcp
    await mcp.stop()


def client(app: Any) -> httpx2.AsyncClient:
    """A client in this process, on this machine."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1", timeout=WAIT)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """A body of the dialect."""
    return {"id": 1, "params": {"name": name, "arguments": {**arguments, "stream": True}}}


async def kept(server: Server, client_id: str) -> list[Any]:
    """What the mailbox of a client holds."""
    return [json.loads(event.data or b"") for event in await server.hub.history(f"$client.{client_id}")]


@pytest.mark.parametrize("where", ["header", "query", "meta"])
async def test_callers_can_name_their_stream(server: Server, where: str) -> None:
    body = call("add", a=1, b=2)
    if where == "meta":
        body["params"]["_meta"] = {"clientId": "ada"}
    async with client(server) as http:
        reply = await http.post(
            "/mcp/tools/call" + ("?client_id=ada" if where == "query" else ""),
            json=body,
            headers={"x-client-id": "ada"} if where == "header" else {},
        )
    assert reply.json()["result"]["_meta"] == {"clientId": "ada", "streamUrl": "/mcp/sse/ada"}
    progress, result = await kept(server, "ada")
    assert progress["method"] == "notifications/progress"
    assert result == reply.json()


async def test_explicit_results_name_their_stream(server: Server) -> None:
    async with client(server) as http:
        reply = await http.post("/mcp/tools/call", json=call("greet"), headers={"x-client-id": "ada"})
    meta = {"clientId": "ada", "streamUrl": "/mcp/sse/ada", "com.example/tone": "warm"}
    assert reply.json()["result"]["_meta"] == meta


async def test_values_of_generators_are_progress_on_the_stream(server: Server) -> None:
    async with client(server) as http:
        reply = await http.post("/mcp/tools/call", json=call("count", to=2), headers={"x-client-id": "ada"})
    *progress, result = await kept(server, "ada")
    assert [each["params"]["message"] for each in progress] == ["1", "2"]
    assert result == reply.json()


@for_each("path", ["/mcp/tools/call", "/tools/add"])
@for_each("client_id", [b"a b", b"*", b"x" * 200, b"a..b", b"\xff"], ids=len)
async def test_invalid_client_ids_are_rejected(server: Server, path: str, client_id: bytes) -> None:
    dialect = path == "/mcp/tools/call"
    body = call("add", a=1, b=2) if dialect else {"a": 1, "b": 2, "stream": True}
    async with client(server) as http:
        by_header = await http.post(path, json=body, headers={b"x-client-id": client_id})
        by_query = await http.post(f"{path}?client_id={quote(client_id)}", json=body)
    for reply, place in ((by_header, "X-Client-Id"), (by_query, "client_id")):
        assert reply.status_code == (200 if dialect else 400)
        told = reply.json()["error"]["message"] if dialect else reply.json()["detail"]
        assert told.startswith(f"Invalid client id in {place}: ")
    assert dialect or by_header.headers["content-type"] == "application/problem+json"


async def test_oversized_results_reach_their_caller(server: Server) -> None:
    async with client(server) as http:
        reply = await http.post("/mcp/tools/call", json=call("large"), headers={"x-client-id": "ada"})
    assert reply.status_code == 200
    assert len(reply.json()["result"]["content"][0]["text"]) == LARGE


async def test_head_requests_do_not_empty_a_mailbox(server: Server) -> None:
    """RFC 9110 §9.3.2."""
    async with client(server) as http:
        await http.post("/mcp/tools/call", json=call("add", a=1, b=2), headers={"x-client-id": "ada"})
        async with asyncio.timeout(WAIT):
            reply = await http.head("/mcp/sse/ada")
    assert (reply.status_code, reply.content) == (200, b"")
    assert len(await kept(server, "ada")) == 2


async def test_stream_url_includes_the_mount_path(server: Server) -> None:
    async with client(Starlette(routes=[Mount("/shop", server)])) as http:
        reply = await http.post("/shop/mcp/tools/call", json=call("add", a=1, b=2), headers={"x-client-id": "ada"})
    assert reply.json()["result"]["_meta"]["streamUrl"] == "/shop/mcp/sse/ada"


async def test_rest_reply_contains_the_stream_url(server: Server) -> None:
    async with client(server) as http:
        reply = await http.post("/tools/add", json={"a": 1, "b": 2, "stream": True})
    assert reply.json() == 3
    assert any("/mcp/sse/" in value for value in reply.headers.values())


@for_each("client_id", ["q?x=1", "a/b", "50%", "x#y", "ä"])
async def test_stream_url_serves_the_client_that_it_names(server: Server, client_id: str) -> None:
    """RFC 3986 §2.4."""
    async with client(server) as http:
        reply = await http.post("/mcp/tools/call", params={"client_id": client_id}, json=call("add", a=1, b=2))
    if "result" in reply.json():
        address = urlsplit(reply.json()["result"]["_meta"]["streamUrl"])
        assert address.path.isascii()
        assert HubRoutes.match(unquote(address.path)) == client_id
    else:
        assert "client id" in reply.text
