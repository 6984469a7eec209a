import json
from typing import Any

import pytest

from millstream import Server, Settings, ToolResult
from millstream._server.features.registry import RegisteredExtension
from millstream.items import Call, ItemSource, Prompt, Template, Tool
from millstream.protocol import BY_DATE, NEWEST, NEWEST_HANDSHAKE
from schema_source import source_from_schema
from wire import LATEST_HANDSHAKE, POST, Wire, per_request, request, routing, run_wire

SCHEMA = {"type": "object", "properties": {"of": {"enum": ["salt", "rice"]}}, "required": ["of"]}

LISTS = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}
"""Method -> member of its result."""


async def weigh(arguments: dict[str, Any], _: Call) -> dict[str, int]:
    return {"grams": len(arguments["of"])}


@pytest.fixture
def mcp() -> Server:
    server = Server("shop", serve=("rest",), settings=Settings())
    output = {"type": "object", "properties": {"grams": {"type": "integer"}}}
    source = source_from_schema("weigh", weigh, input_schema=SCHEMA, output_schema=output, description="Weigh it.")
    server.registry.add("tools", "weigh", Tool(source))
    return server


async def ask(wire: Wire, method: str, name: str = "", /, **params: Any) -> Any:
    reply = await wire.post(per_request(method, params), {**POST, **routing(method, name)})
    return reply.message


async def test_tool_without_a_python_function_is_in_the_openapi_document(mcp: Server) -> None:
    async with run_wire(mcp, "asgi") as wire:
        document = (await wire.ask("GET", "/openapi.json", POST)).message
        operation = document["paths"]["/tools/weigh"]["post"]
        assert (operation["summary"], operation["requestBody"]["required"]) == ("Weigh it.", True)
        reply = await wire.ask("POST", "/tools/weigh", POST, b'{"of":"rice"}')
        assert (reply.status, reply.message) == (200, {"grams": 4})
        refused = await wire.ask("POST", "/tools/weigh", POST, b'{"of":"tea"}')
        assert refused.status == 422
        assert """'of' must be one of "salt", "rice", got "tea\"""" in refused.message["detail"]


async def test_prompts_and_templates_without_a_python_function_are_served(mcp: Server) -> None:
    async def run(arguments: Any, _: Call) -> str:
        return f"Weigh {arguments['of']}."

    source = ItemSource("recipe", run, lambda texts: texts, schema=SCHEMA)
    mcp.registry.add("prompts", "recipe", Prompt(source))
    mcp.registry.add("templates", "food://{of}", Template("food://{of}", source))
    async with run_wire(mcp, "asgi") as wire:
        (listed,) = (await ask(wire, "prompts/list"))["result"]["prompts"]
        assert listed == {"name": "recipe", "arguments": [{"name": "of", "required": True}]}
        made = await ask(wire, "prompts/get", "recipe", name="recipe", arguments={"of": "salt"})
        assert made["result"]["messages"][0]["content"]["text"] == "Weigh salt."
        read = await ask(wire, "resources/read", "food://rice", uri="food://rice")
        assert read["result"]["contents"][0]["text"] == "Weigh rice."
        reference = {"ref": {"type": "ref/prompt", "name": "recipe"}, "argument": {"name": "of", "value": "s"}}
        assert (await ask(wire, "completion/complete", **reference))["result"]["completion"]["values"] == ["salt"]


async def later(call: Call) -> bytes:
    return b'"seen":%b' % json.dumps(call.method).encode()


def tasks(*revisions: str) -> RegisteredExtension:
    return RegisteredExtension("extensions", {"example.com/tasks": {}}, {"tasks/peek": later}, frozenset(revisions))


async def test_a_method_and_its_capability_can_be_added_for_some_revisions(mcp: Server) -> None:
    mcp.registry.extend(tasks(NEWEST.date))
    mcp.registry.extend(
        RegisteredExtension("extensions", {"example.com/other": {"a": 1}}, {}, frozenset((NEWEST.date,)))
    )
    async with run_wire(mcp, "asgi") as wire:
        assert (await ask(wire, "tasks/peek"))["result"]["seen"] == "tasks/peek"
        offered = (await ask(wire, "server/discover"))["result"]["capabilities"]
        assert offered["extensions"] == {"example.com/tasks": {}, "example.com/other": {"a": 1}}
        session = await wire.initialize(LATEST_HANDSHAKE)
        refused = await wire.post(request("tasks/peek"), session)
        assert refused.message["error"] == {"code": -32601, "message": "Method not found: tasks/peek"}
    for revision in (each for each in BY_DATE.values() if each.handshake):
        assert "extensions" not in mcp.registry.capabilities(revision)


async def test_lists_without_items_are_empty_in_the_handshake_era() -> None:
    """Cline and opencode request every list, and give up at an error. The newest revision requires one."""
    async with run_wire(Server("shop"), "asgi") as wire:
        session = await wire.initialize(LATEST_HANDSHAKE)
        for method, member in LISTS.items():
            assert (await wire.post(request(method), session)).message["result"] == {member: []}
            assert (await ask(wire, method))["error"]["code"] == -32601


async def test_an_added_handshake_era_method_is_called_in_a_session(mcp: Server) -> None:
    mcp.registry.extend(tasks(NEWEST_HANDSHAKE.date))
    async with run_wire(mcp, "asgi") as wire:
        session = await wire.initialize(LATEST_HANDSHAKE)
        reply = await wire.post(request("tasks/peek"), session)
        assert reply.message["result"] == {"seen": "tasks/peek"}
        assert (await ask(wire, "tasks/peek"))["error"]["code"] == -32601


async def test_extensions_added_at_run_time_are_announced(
    mcp: Server,
) -> None:
    async with run_wire(mcp, "asgi") as wire:
        assert "extensions" not in (await ask(wire, "server/discover"))["result"]["capabilities"]
        mcp.registry.extend(tasks(NEWEST.date))
        assert "extensions" in (await ask(wire, "server/discover"))["result"]["capabilities"]


def test_existing_methods_cannot_be_added_again(mcp: Server) -> None:
    mcp.registry.extend(tasks(NEWEST.date))
    for method in ("tasks/peek", "tools/call"):
        with pytest.raises(ValueError, match=f"The method '{method}' already exists"):
            mcp.registry.extend(RegisteredExtension("x", {}, {method: later}, frozenset()))


EITHER = {"anyOf": [{"type": "object"}, {"type": "integer"}]}


async def test_explicit_results_are_wrapped_like_their_schema() -> None:
    """Regression: 2025-11-25 clients got a schema with `result`, but a result without it."""
    server = Server("shop", settings=Settings())

    @server.tool(output_schema=EITHER)
    async def either() -> ToolResult:
        return ToolResult("done", structured={"a": 1})

    async with run_wire(server, "asgi") as wire:
        session = await wire.initialize(LATEST_HANDSHAKE)
        (tool,) = (await wire.post(request("tools/list"), session)).message["result"]["tools"]
        called = await wire.post(request("tools/call", {"name": "either", "arguments": {}}), session)
        assert tool["outputSchema"]["properties"] == {"result": EITHER}
        assert called.message["result"]["structuredContent"] == {"result": {"a": 1}}
        newest = await ask(wire, "tools/call", "either", name="either", arguments={})
        assert newest["result"]["structuredContent"] == {"a": 1}


async def test_resource_contents_include_the_resource_meta() -> None:
    server = Server("shop", settings=Settings())
    server.resource("ui://one", meta={"ui": {"csp": {}}})(page)
    async with run_wire(server, "asgi") as wire:
        read = await ask(wire, "resources/read", "ui://one", uri="ui://one")
        assert read["result"]["contents"] == [
            {"uri": "ui://one", "mimeType": "text/plain", "text": "x", "_meta": {"ui": {"csp": {}}}}
        ]


def page() -> str:
    return "x"
