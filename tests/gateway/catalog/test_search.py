import asyncio
import gc
import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from auth_world import ALICE, BOB, make_key_auth, run_guarded
from http_peer import serve
from millstream import Client, Context, Principal, Server, Settings
from millstream._gateway.catalog.search import ToolIndex
from millstream.client import Options, ServerError
from millstream.gateway import ToolPolicy, UpstreamPolicy
from millstream.items import Tool
from millstream.middleware import ListRequest, Middleware, Next
from millstream.protocol import BY_DATE
from patience import WAIT
from wire import MemoryPipe, per_request


def make_library(**settings: Any) -> Server:
    mcp = Server("library", settings=Settings(tool_search=True, **settings))

    @mcp.tool(name="createIssue")
    def create_issue(title: str) -> str:
        """Open a ticket about a defect."""
        return f"opened {title}"

    @mcp.tool
    def list_branches(repository: str) -> list[str]:
        """Return the branches of a repository."""
        return [repository]

    @mcp.tool(tags=["listed"])
    def ping() -> str:
        """Answer."""
        return "pong"

    @mcp.tool
    async def asks(ctx: Context) -> str:
        """Ask the user for a number."""
        number = await ctx.elicit("How many?", int)
        return f"{number} it is"

    return mcp


async def test_hidden_tools_can_be_found_and_called() -> None:
    async def person(question: Any) -> Any:
        return {"value": 3}

    for revision in BY_DATE:
        async with Client(make_library(), timeout=WAIT, revision=revision, elicit=person) as client:
            assert [each.name for each in await client.tools()] == ["ping", "search_tools", "call_tool"]
            found = json.loads((await client.call("search_tools", query="issues of a repository")).text)
            assert {each["name"] for each in found["tools"]} == {"createIssue", "list_branches"}
            assert found["tools"][0]["inputSchema"]["required"]
            first = json.loads((await client.call("search_tools", query="branch", limit=1)).text)
            assert [each["name"] for each in first["tools"]] == ["list_branches"]
            nothing = await client.call("search_tools", query='"; DROP TABLE tools; -- *')
            assert nothing.text == "No tool matches. Try other words."
            assert (await client.call("call_tool", name="createIssue", arguments={"title": "x"})).text == "opened x"
            assert (await client.call("createIssue", title="y")).text == "opened y"
            if revision >= "2025-06-18":
                assert (await client.call("call_tool", name="asks")).text == "3 it is"


async def test_call_tool_returns_tool_errors() -> None:
    async with Client(make_library(), timeout=WAIT) as client:
        wrong = await client.call("call_tool", name="createIssue", arguments={}, raise_on_error=False)
        assert "'createIssue'" in wrong.text
        assert wrong.is_error
        for arguments in ({"name": "call_tool"}, {}, {"name": 3}):
            assert (await client.call("call_tool", arguments, raise_on_error=False)).is_error


async def test_rest_callers_learn_which_arguments_of_call_tool_are_invalid() -> None:
    mcp = Server("library", serve="rest", settings=Settings(tool_search=True))
    mcp.tool(lambda: "pong", name="ping", description="Answer.")
    async with mcp.running(), serve(mcp) as running, httpx2.AsyncClient(trust_env=False) as http:
        url = f"http://127.0.0.1:{running.port}/tools/call_tool"
        replies = [await http.post(url, json=each) for each in ({}, {"name": 3}, {"name": "ping"})]
    assert [each.status_code for each in replies] == [422, 422, 200]
    assert "`name`" in replies[0].text


async def test_search_finds_tools_that_are_added_later() -> None:
    mcp = make_library()
    async with Client(mcp, timeout=WAIT) as client:
        await client.call("search_tools", query="weather")
        mcp.tool(lambda: "sunny", name="weather", description="The weather")
        assert "weather" in (await client.call("search_tools", query="weather")).text
        mcp.remove_tool("weather")
        assert "weather" not in (await client.call("search_tools", query="weather")).text


async def test_one_thread_builds_the_index_for_all_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    class Index(ToolIndex):
        def __init__(self, tools: Any) -> None:
            threads.append(threading.current_thread())
            super().__init__(tools)

    monkeypatch.setattr("millstream._gateway.catalog.search.ToolIndex", Index)
    async with Client(make_library(), timeout=WAIT) as client:
        found = await asyncio.gather(*(client.call("search_tools", query="branch") for _ in range(3)))
    assert all("list_branches" in each.text for each in found)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_search_waits_for_one_of_each_other_caller_only(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, released, searched = asyncio.Event(), threading.Event(), list[str]()

    class Index(ToolIndex):
        def search(self, query: str) -> list[str]:
            loop.call_soon_threadsafe(begun.set)
            assert released.wait(WAIT)
            searched.append(query)
            return super().search(query)

    monkeypatch.setattr("millstream._gateway.catalog.search.ToolIndex", Index)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(WAIT), make_library().running() as runtime:
        eve, ada = (MemoryPipe(runtime.dispatcher, principal=Principal(each)) for each in ("eve", "ada"))

        def search(pipe: MemoryPipe, query: str, id: int) -> None:
            params = {"name": "search_tools", "arguments": {"query": query}}
            pipe.send(json.dumps(per_request("tools/call", params, id)).encode())

        for number in range(20):
            search(eve, f"eve's {number}", number)
        await begun.wait()
        search(ada, "branches", 0)
        await asyncio.sleep(0)
        released.set()
        assert b"list_branches" in await ada.receive()
        assert searched.index("branches") <= 2
        for _ in range(20):
            await eve.receive()
        await eve.close()
        await ada.close()


def test_index_closes_its_table() -> None:
    index = ToolIndex({"find": {"description": "Finds orders."}})
    table = index._table
    assert index.search("orders") == ["find"]
    del index
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        table.execute("SELECT 1")


async def test_upstream_tools_are_found_after_listing() -> None:
    upstream = Server("upstream")
    upstream.tool(lambda city: f"sunny in {city}", name="weather", description="The weather of a city")
    mcp = make_library()
    mcp.upstream("far", upstream, start_timeout=WAIT)
    async with Client(mcp, timeout=WAIT) as client:
        found = json.loads((await client.call("search_tools", query="weather in cities")).text)
        assert [each["name"] for each in found["tools"]] == ["far_weather"]
        called = await client.call("call_tool", name="far_weather", arguments={"city": "Rome"})
        assert called.text == "sunny in Rome"


async def test_only_returned_tools_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    mcp = make_library()
    for number in range(200):
        mcp.tool(name=f"issue_{number}")(lambda: "")
    async with Client(mcp, timeout=WAIT) as client:
        await client.call("search_tools", query="issue")  # builds the index
        described: list[str] = []
        describe = Tool.describe
        monkeypatch.setattr(Tool, "describe", lambda tool: described.append(tool.name) or describe(tool))
        found = json.loads((await client.call("search_tools", query="issue", limit=3)).text)
        assert found["matches"] == 201
        assert described == [each["name"] for each in found["tools"]]


async def test_scopes_limits_and_audit_match_direct_calls(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    settings = Settings(tool_search=True, audit_log=str(path), limit_concurrency=1)
    mcp = Server("guarded", auth=make_key_auth(), settings=settings)

    @mcp.tool(scopes=["orders:write"], limit="2/day")
    def order(isbn: str) -> str:
        """Order a book."""
        return f"ordered {isbn}"

    @mcp.tool(visible=lambda principal: principal is not None and principal.subject == "bob")
    def hidden_order() -> str:
        """Order in secret."""
        return "hidden"

    async with run_guarded(mcp) as world:

        async def names(key: str) -> list[str]:
            reply = await world.call(key, "search_tools", {"query": "order"})
            return [each["name"] for each in reply.message["result"]["structuredContent"]["tools"]]

        assert await names(ALICE) == ["order"]
        assert await names(BOB) == ["hidden_order"]
        inner = {"name": "order", "arguments": {"isbn": "1"}}
        assert (await world.call(BOB, "call_tool", inner)).status == 403
        assert "Unknown tool" in (await world.call(ALICE, "call_tool", {"name": "hidden_order"})).body.decode()
        for tool, arguments, status in (
            ("call_tool", inner, 200),
            ("order", {"isbn": "2"}, 200),
            ("call_tool", inner, 429),
            ("order", {"isbn": "2"}, 429),
        ):
            assert (await world.call(ALICE, tool, arguments)).status == status
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [each["target"] for each in lines[2:]] == ["order", "hidden_order", *["order"] * 4]


class HideDrafts(Middleware):
    """Hides drafts from everyone but editors, and marks the other tools."""

    async def on_list(self, request: ListRequest, next: Next) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = await next(request)
        editor = request.context.client.name == "editor"
        return [{**each, "description": "Checked."} for each in items if editor or "draft" not in each["name"]]


@pytest.mark.parametrize("mounted", [False, True])
async def test_searches_find_only_what_list_hooks_show(mounted: bool) -> None:
    inner = Server("inner", middleware=[HideDrafts()], settings=Settings(tool_search=not mounted))

    @inner.tool
    def send_draft(text: str) -> str:
        """Send a letter."""
        return text

    @inner.tool
    def send_letter(text: str) -> str:
        """Send a letter."""
        return text

    mcp = inner
    if mounted:
        mcp = Server("outer", settings=Settings(tool_search=True))
        mcp.mount(inner, prefix="mail")
    names = [f"mail_{each}" if mounted else each for each in ("send_draft", "send_letter")]
    for client, expected in (("reader", names[1:]), ("editor", names), ("reader", names[1:])):
        async with Client(mcp, options=Options(name=client)) as each:
            found = (await each.call("search_tools", query="send a letter")).data
        assert sorted(tool["name"] for tool in found["tools"]) == expected
        assert found["matches"] == len(expected)
        assert {tool["description"] for tool in found["tools"]} == {"Checked."}


async def test_servers_that_cannot_be_used_are_named_instead_of_their_tools() -> None:
    mcp, policy = (
        Server("front", settings=Settings(tool_search=True)),
        UpstreamPolicy(tools={"*": ToolPolicy(groups=("staff",))}),
    )
    mcp.upstream("jira", "http://127.0.0.1:1/mcp", start_timeout=WAIT)
    mcp.upstream("secret", "http://127.0.0.1:1/mcp", start_timeout=WAIT, policy=policy)
    async with asyncio.timeout(WAIT), Client(mcp, timeout=WAIT) as client:
        found = await client.call("search_tools", query="create an issue")
        text = (
            "The server 'jira' can't be used at the moment, so its tools are missing. The server 'jira' can't be "
            "reached. Try again in a minute. If it keeps failing, its operator has to restart it."
        )
        assert found.text == f"No tool matches. {text}"
        for call in (("call_tool", {"name": "jira_create", "arguments": {}}), ("jira_create", {})):
            with pytest.raises(ServerError, match=f"Unknown tool: 'jira_create'. {text}"):
                await client.call(call[0], call[1])
        for name in ("secret_create", "other"):  # the first one's tools are hidden from this caller
            with pytest.raises(ServerError, match=f"Unknown tool: '{name}'; use one of"):
                await client.call(name)
