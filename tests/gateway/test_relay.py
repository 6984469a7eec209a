"""A server of another library behind Millstream, as its clients see it. The servers are those of the official SDK."""

import asyncio
from typing import Any

import httpx2
import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import SamplingMessage, TextContent
from pydantic import BaseModel

from millstream import Client, Server
from patience import WAIT

ERAS = ("2025-06-18", "2026-07-28")
ABLE: dict[str, Any] = {"elicit": lambda question: {}}  # so that the upstream has a session for the client


def growing() -> MCPServer:
    """A program whose tools add tools, and say so or not."""
    program = MCPServer("books")

    @program.tool()
    async def grow(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
        program.add_tool(lambda: "x", name="announced")
        await ctx.session.send_tool_list_changed()
        return "grown"

    @program.tool()
    async def grow_silently() -> str:  # pyright: ignore[reportUnusedFunction]
        program.add_tool(lambda: "x", name="silent")
        return "grown"

    @program.resource("book://{isbn}")
    def book(isbn: str) -> str:  # pyright: ignore[reportUnusedFunction]
        return isbn

    @program.tool()
    async def touch(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
        await ctx.session.send_resource_updated("book://1")
        return "touched"

    return program


def catalog(*programs: Any) -> Server:
    """A gateway with prefixes."""
    gateway = Server("gateway")
    for number, program in enumerate(programs or (growing(), growing())):
        gateway.upstream("ab"[number], program)
    return gateway


async def names(client: Client) -> list[str]:
    return [tool.name async for tool in client.tools(fresh=True)]


async def listed(client: Client, name: str) -> None:
    """Wait until a tool is listed. A catalog asks its upstreams once a second."""
    async with asyncio.timeout(WAIT):
        while name not in await names(client):
            pass


@pytest.mark.parametrize("era", ERAS)
async def test_announced_tool_of_a_program_behind_a_prefix_is_listed_and_callable(era: str) -> None:
    async with Client(catalog(), revision=era) as client:
        await client.call("a_grow")
        await listed(client, "a_announced")
        assert (await client.call("a_announced")).text == "x"


async def test_tool_that_a_program_adds_silently_is_listed_when_a_client_asks() -> None:
    async with Client(catalog(), revision=ERAS[0]) as client:
        assert "a_silent" not in await names(client)
        await client.call("a_grow_silently")
        await listed(client, "a_silent")


async def test_clients_do_not_cache_the_lists_of_a_program() -> None:
    async with Client(catalog(), revision=ERAS[1]) as client:
        assert (await client.request("tools/list"))["ttlMs"] == 0


async def test_clients_are_notified_of_an_announced_change() -> None:
    changes: asyncio.Queue[str] = asyncio.Queue()
    async with Client(
        catalog(), revision=ERAS[0], on_change=lambda each: changes.put_nowait(each.kind), **ABLE
    ) as client:
        await client.call("a_grow")
        async with asyncio.timeout(WAIT):
            assert await changes.get() == "tools"


async def test_update_announced_in_a_call_reaches_only_the_session_that_called() -> None:
    seen: dict[str, list[str]] = {"caller": [], "other": []}
    arrived = asyncio.Event()
    gateway = catalog()

    def note(who: str, uri: str) -> None:
        seen[who].append(uri)
        arrived.set()

    async with (
        Client(gateway, revision=ERAS[0], on_change=lambda change: note("caller", change.uri), **ABLE) as caller,
        Client(gateway, revision=ERAS[0], on_change=lambda change: note("other", change.uri), **ABLE) as other,
    ):
        for client in (caller, other):
            await client.request("resources/subscribe", {"uri": "book://a/1"})
        await caller.call("a_touch")
        async with asyncio.timeout(WAIT):
            await arrived.wait()
        await other.call("b_grow_silently")  # anything for it would have come before
    assert seen == {"caller": ["book://a/1"], "other": []}


def asking() -> MCPServer:
    program = MCPServer("registrar", title="The registrar")

    @program.tool()
    async def register(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
        answer = await ctx.elicit("Choose a username.", Username)
        return answer.data.name if answer.action == "accept" else answer.action

    @program.tool()
    async def poem(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
        text = TextContent(type="text", text="A poem, please.")
        messages = [SamplingMessage(role="user", content=text)]
        await ctx.session.create_message(messages, max_tokens=9, system_prompt="Be brief.")
        return "done"

    return program


class Username(BaseModel):
    name: str


def relay(program: Any, **options: Any) -> Server:
    """A server with a single upstream, under its own names, as `millstream run` makes it."""
    gateway = Server("gateway")
    gateway.upstream("only", program, prefix="", **options)
    gateway.definition.named = False
    return gateway


async def test_questions_of_a_single_upstream_reach_the_user_unchanged() -> None:
    questions: list[str] = []

    def elicit(question: Any) -> dict[str, str]:
        questions.append(question.message)
        return {"name": "ada"}

    for gateway, tool in ((relay(asking()), "register"), (catalog(asking()), "a_register")):
        async with Client(gateway, revision=ERAS[0], elicit=elicit) as client:
            assert (await client.call(tool)).text == "ada"
    assert questions == ["Choose a username.", "[a] Choose a username."]


@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
async def test_system_prompt_of_a_single_upstream_is_not_extended() -> None:
    prompts: list[Any] = []

    def sample(request: Any) -> str:
        prompts.append(request.system_prompt)
        return "Roses"

    async with Client(relay(asking()), revision=ERAS[0], sample=sample) as client:
        await client.call("poem")
    assert prompts == ["Be brief."]


async def test_single_upstream_introduces_itself() -> None:
    for era in ERAS:
        async with Client(relay(asking()), revision=era) as client:
            assert (client.server.name, client.server.title) == ("registrar", "The registrar")


async def post(gateway: Server, message: dict[str, Any], **headers: str) -> httpx2.Response:
    common = {"accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(gateway), base_url="http://127.0.0.1:8000") as http:
        return await http.post("/mcp", json={"jsonrpc": "2.0", "id": 1} | message, headers=common | headers)


async def test_method_that_an_upstream_does_not_know_has_status_404() -> None:
    gateway = relay(MCPServer("plain"))
    meta = {
        "io.modelcontextprotocol/protocolVersion": ERAS[1],
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
    }
    headers = {"mcp-protocol-version": ERAS[1], "mcp-method": "com.example/foo"}
    async with Client(gateway):
        reply = await post(gateway, {"method": "com.example/foo", "params": {"_meta": meta}}, **headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, -32601)
