"""Results with elements that a gateway doesn't understand, which reach the client as the upstream sent them."""

import asyncio
import json
from typing import Any

import pytest

from cases import for_each
from gateway.strangers import Json, stranger
from millstream import Client, Server, Text
from millstream._override import override
from millstream.middleware import Middleware, Next, Request
from millstream.protocol import BY_DATE
from patience import WAIT
from wire import MemoryPipe, per_request, request

pytestmark = pytest.mark.server

ODD: list[Any] = [
    {"type": "hologram", "data": "x", "uri": 5},
    {"type": 5},
    {"type": None, "text": "t"},
    {"text": "no type", "n": 123456789012345678901234567890},
    {"type": "text", "text": 5},
    {"type": "text", "text": "t", "annotations": "x", "_meta": 5},
    {"type": "image", "data": "%%"},
    {"type": "resource"},
    {"type": "resource", "resource": "x"},
    {"type": "resource", "resource": {"text": "no uri"}},
    {},
    None,
    7,
    ["a"],
]
GOOD: Json = {"type": "text", "text": "good"}
REPLIES: Json = {
    "tools/list": {"result": {"tools": [{"name": "t", "inputSchema": {"type": "object"}}]}},
    "prompts/list": {"result": {"prompts": [{"name": "p"}]}},
    "resources/list": {"result": {"resources": [{"uri": "memo://1", "name": "r"}]}},
    "resources/templates/list": {"result": {"resourceTemplates": []}},
    "tools/call": {"result": {"content": [*ODD, GOOD], "_meta": 5}},
    "prompts/get": {"result": {"messages": [*({"role": "user", "content": each} for each in ODD), *ODD]}},
    "resources/read": {"result": {"contents": [*ODD, {"text": "no uri"}]}},
}
EVERYTHING: Json = {"tools": {}, "prompts": {}, "resources": {}}


async def ask(pipe: MemoryPipe, revision: str, method: str, params: Json) -> Json:
    """Return the result of a request in a revision."""
    asked = request(method, params) if BY_DATE[revision].handshake else per_request(method, params)
    pipe.send(json.dumps(asked).encode())
    result: Json = json.loads(await pipe.receive())["result"]
    return result


@pytest.mark.parametrize("prefix", ["", "u"])
async def test_elements_that_the_gateway_does_not_understand_pass_unchanged(prefix: str) -> None:
    mcp = Server("front")
    mcp.upstream("odd", stranger(EVERYTHING, REPLIES), prefix=prefix, start_timeout=WAIT, timeout=WAIT)
    async with asyncio.timeout(WAIT), mcp.running() as running:
        for revision in BY_DATE:
            pipe = MemoryPipe(running.dispatcher)
            if BY_DATE[revision].handshake:
                about = {"protocolVersion": revision, "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
                await ask(pipe, revision, "initialize", about)
            name = f"{prefix}_" if prefix else ""
            listed = await ask(pipe, revision, "resources/list", {})
            result = await ask(pipe, revision, "tools/call", {"name": f"{name}t"})
            assert result["content"] == [*ODD, GOOD], revision
            prompt = await ask(pipe, revision, "prompts/get", {"name": f"{name}p"})
            assert prompt["messages"] == REPLIES["prompts/get"]["result"]["messages"], revision
            read = await ask(pipe, revision, "resources/read", {"uri": listed["resources"][0]["uri"]})
            assert read["contents"] == REPLIES["resources/read"]["result"]["contents"], revision
            await pipe.close()


@for_each("more", [{"size": "x"}, {"name": None}, {"title": 5, "icons": "x"}])
async def test_malformed_links_are_text_for_clients_without_links(more: Json) -> None:
    link = {"type": "resource_link", "uri": "https://example.com/", "name": "n", **more}
    mcp, replies = Server("front"), {**REPLIES, "tools/call": {"result": {"content": [link, GOOD]}}}
    mcp.upstream("odd", stranger(EVERYTHING, replies), start_timeout=WAIT, timeout=WAIT)
    async with asyncio.timeout(WAIT), mcp.running(), Client(mcp, revision="2025-03-26") as client:
        first, second = (await client.call("odd_t")).text.split("\n")
    assert first.endswith("https://example.com/")
    assert second == "good"


class Look(Middleware):
    """Keeps the texts that pass."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @override
    async def on_call(self, request: Request, next: Next) -> Any:
        result = await next(request)
        self.seen += [each.text for each in result.content if isinstance(each, Text)]
        return result


async def test_middleware_sees_the_rest_of_a_result() -> None:
    look = Look()
    mcp = Server("front", middleware=[look])
    mcp.upstream("odd", stranger(EVERYTHING, REPLIES), start_timeout=WAIT, timeout=WAIT)
    async with asyncio.timeout(WAIT), mcp.running(), Client(mcp) as client:
        assert (await client.call("odd_t")).text == "t\ngood"
    assert look.seen == ["t", "good"]


@for_each("output", [None, {"type": "array"}])
@for_each("sent", [[1, {"a": 2}], "a text", 5, None, False])  # the list as finite-sample/rmcp#14 reports it
async def test_structured_values_of_older_upstreams_are_wrapped_for_older_clients(
    output: Json | None, sent: Any
) -> None:
    tool: Json = {"name": "t", "inputSchema": {"type": "object"}} | ({} if output is None else {"outputSchema": output})
    result = {"content": [GOOD], "structuredContent": sent}
    replies = {"tools/list": {"result": {"tools": [tool]}}, "tools/call": {"result": result}}
    mcp = Server("front")
    mcp.upstream("odd", stranger({"tools": {}}, replies), start_timeout=WAIT, timeout=WAIT)
    async with asyncio.timeout(WAIT), mcp.running() as running:
        for revision in ("2025-06-18", "2025-11-25", "2026-07-28"):
            pipe = MemoryPipe(running.dispatcher)
            if BY_DATE[revision].handshake:
                about = {"protocolVersion": revision, "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
                await ask(pipe, revision, "initialize", about)
            called = await ask(pipe, revision, "tools/call", {"name": "odd_t"})
            assert called["content"] == [GOOD], revision
            value = called["structuredContent"]
            assert (value["result"] if BY_DATE[revision].handshake else value) == sent, revision
            await pipe.close()
