"""`POST /mcp/tools/list` and `POST /mcp/tools/call`: abbreviated JSON-RPC for scripts."""

import json
from typing import Any

from cases import for_each
from http_messages import Response
from rest_world import post, routes, world

FORM = "application/x-www-form-urlencoded"
ADD = {"name": "add", "arguments": {"a": 2, "b": 3}}


async def send(path: str, body: Any, **headers: str) -> tuple[Response, Any]:
    """A request of the dialect and its decoded reply."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with routes(world()) as rest:
        handler = rest.list_tools if path == "list" else rest.call_tool
        response = await handler(post(f"/mcp/tools/{path}", data, **headers))
    return response, json.loads(response.body)


@for_each(
    "body",
    [
        {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": ADD},
        {"method": "tools/call", "params": ADD},
        {"params": ADD},
        ADD,
        {"id": None, **ADD},
        {"id": "x", **ADD},
    ],
    ids=["full", "no id", "params only", "top level", "null id", "text id"],
)
async def test_calls_need_only_a_name(body: dict[str, Any]) -> None:
    response, reply = await send("call", body)
    assert response.status == 200
    assert reply["jsonrpc"] == "2.0"
    assert reply.get("id", None) == body.get("id")
    assert ("id" in reply) == (body.get("id") is not None)
    assert reply["result"] == {"content": [{"type": "text", "text": "5"}], "structuredContent": {"result": 5}}


@for_each("body", [b"{}", b"", {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}])
async def test_list_matches_the_seed(body: Any) -> None:
    response, reply = await send("list", body, content_type="application/json" if body else "")
    assert response.status == 200
    assert set(reply["result"]) == {"tools"}
    add = reply["result"]["tools"][0]
    assert (add["name"], add["description"]) == ("add", "Add two numbers.")
    assert add["inputSchema"]["required"] == ["a"]


async def test_curl_form_type_is_accepted_from_scripts() -> None:
    response, reply = await send("call", ADD, content_type=FORM)
    assert response.status == 200
    assert reply["result"]["content"][0]["text"] == "5"


@for_each("header", ["origin", "sec_fetch_site", "sec_fetch_mode", "sec_fetch_dest"])
async def test_form_type_is_rejected_from_browsers(header: str) -> None:
    response, reply = await send("call", ADD, content_type=FORM, **{header: "http://127.0.0.1"})
    assert response.status == 415
    assert reply["error"]["code"] == -32600


@for_each("content_type", ["text/plain", "multipart/form-data; boundary=x", ""])
async def test_other_content_types_get_415(content_type: str) -> None:
    response, _ = await send("call", ADD, content_type=content_type)
    assert response.status == 415


@for_each(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"name=add", -32700),
        (b'{"name":"\xff"}', -32700),
        (b"[" * 65 + b"]" * 65, -32700),
        (b"[]", -32600),
        (b"3", -32600),
        (b"null", -32600),
        ({"jsonrpc": "1.0", **ADD}, -32600),
        ({"id": True, **ADD}, -32600),
        ({"id": 1.5, **ADD}, -32600),
        ({"id": {}, **ADD}, -32600),
        ({"method": "tools/list", **ADD}, -32600),
        ({"params": [1]}, -32600),
    ],
)
async def test_invalid_bodies_get_400(body: Any, code: int) -> None:
    response, reply = await send("call", body)
    assert response.status == 400
    assert reply["error"]["code"] == code
    assert "id" not in reply


async def test_unknown_tools_are_protocol_errors() -> None:
    """MCP 2025-11-25, server/tools: -32602, with the id of the request."""
    _, reply = await send("call", {"id": 4, "name": "nope"})
    assert (reply["id"], reply["error"]["code"]) == (4, -32602)


@for_each("arguments", [{"a": "x"}, {}, {"a": 1, "c": 1}])
async def test_errors_for_invalid_arguments_help_a_model(arguments: dict[str, Any]) -> None:
    _, reply = await send("call", {"name": "add", "arguments": arguments})
    assert reply["result"]["isError"] is True
    assert "Invalid arguments for tool 'add'" in reply["result"]["content"][0]["text"]


async def test_tools_that_ask_questions_are_rejected() -> None:
    _, reply = await send("call", {"name": "ask"})
    assert reply["result"]["isError"] is True
    assert "elicitation" in reply["result"]["content"][0]["text"]


async def test_parameter_headers_are_not_required_in_the_dialect() -> None:
    _, reply = await send("call", {"name": "region", "arguments": {"name": "eu"}})
    assert reply["result"]["content"][0]["text"] == "eu"


async def test_draining_server_replies_503() -> None:
    async with routes(world()) as rest:
        rest._dispatcher.load.max_calls = rest._dispatcher.load.max_each = 0
        response = await rest.call_tool(post("/mcp/tools/call", b"{}"))
    assert response.status == 503
    assert b"retry-after: 1\r\n" in response.head
