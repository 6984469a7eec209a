"""A proxy offers what the server behind it offers, as fastmcp's proxies do: both run in front of one server."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from millstream import Client, Server
from millstream.client import Failure, Options, TargetError
from millstream.compat.fastmcp import standalone
from patience import WAIT
from processes import ROOT

ORIGINALS = Path(__file__).resolve().parent / "originals"
FASTMCP = str(ROOT / ".venv-foreign" / "bin" / "python")
BEHIND = f"{sys.executable} {ORIGINALS / 'behind.py'}"
HANDSHAKE, NEWEST = "2025-11-25", "2026-07-28"


def to(python: str, program: Path, revision: str = HANDSHAKE, answer: Any = None) -> Client:
    """A client of a program that has `behind.py` behind it."""
    return Client(
        [python, str(program)],
        revision=revision,
        timeout=WAIT,
        elicit=lambda question: answer,
        options=Options(env={"BEHIND": BEHIND}, probe_timeout=WAIT, connect_timeout=WAIT),
    )


def plain(listed: list[Any], *members: str) -> list[Any]:
    return sorted([[getattr(each, member) for member in members] for each in listed], key=str)


async def seen(client: Client) -> dict[str, Any]:
    """What a client sees of a proxy."""
    steps: list[Any] = []
    return {
        "tools": plain(await client.tools(), "name", "input_schema", "output_schema", "annotations"),
        "resources": plain(await client.resources(), "uri", "name", "description", "mime_type"),
        "templates": plain(await client.templates(), "uri_template", "name", "mime_type"),
        "prompts": plain(await client.prompts(), "name", "description", "arguments"),
        "find": await client.request("tools/call", {"name": "find", "arguments": {"isbn": "7"}}),
        "wrong": (await client.call("find", isbn=[1])).is_error,
        "order": (await client.call("order")).text,
        "fail": [(each := await client.call("fail")).is_error, each.text],
        "cover": (await client.call("cover")).content,
        "own": (await client.call("own", words="abc")).text,
        "counted": [(await client.call("counted")).text for _ in range(2)],
        "books": await client.read("books://all"),
        "cover of 7": await client.read("books://7/cover"),
        "review": (await client.prompt("review", isbn="7")).messages,
        "slowly": [(await client.call("slowly", progress=lambda *step: steps.append(step))).text, steps],
    }


@pytest.mark.server
async def test_a_proxy_shows_and_does_what_fastmcps_proxy_shows_and_does(ported: Path) -> None:
    """fastmcp: `create_proxy`. Progress arrives, errors say what they said, and the person is asked."""
    async with to(FASTMCP, ORIGINALS / "proxy.py", answer={"size": "L"}) as client:
        theirs = await seen(client)
    async with to(sys.executable, ported / "proxy.py", answer={"size": "L"}) as client:
        ours = await seen(client)
        suggested = await client.complete("tone", "k", prompt="review")
    for result in (theirs["find"], ours["find"]):
        result.pop("_meta", None)  # fastmcp's own marks
    assert ours["find"].pop("isError", False) == theirs["find"].pop("isError", False)
    assert "back-channel" in theirs.pop("order"), "fastmcp 4.1.2 passes no questions of such a server on"
    assert ours.pop("order") == "L"
    assert ours == theirs
    assert ours["counted"] == ["1", "2"]
    assert suggested.values == ["kind", "keen"]


@pytest.mark.server
async def test_the_server_behind_asks_the_person_in_the_newest_revision_too(ported: Path) -> None:
    """The answer comes with the next round of the call, which is sent on again."""
    async with to(sys.executable, ported / "proxy.py", NEWEST, {"size": "S"}) as client:
        assert (await client.call("order")).text == "S"
        assert (await client.call("find", isbn="7")).data == {"isbn": "7", "pages": 7}


@pytest.mark.server
async def test_proxies_of_several_servers_are_mounted_under_their_names(ported: Path) -> None:
    """fastmcp: the names of a configuration with several servers are prefixes; 4.1.2 shows the same names and URIs."""
    tools = ("find", "order", "slowly", "fail", "cover", "counted")
    async with to(sys.executable, ported / "proxies.py") as client:
        assert {tool.name for tool in await client.tools()} == {
            f"all_{n}_{each}" for n in ("one", "two") for each in tools
        }
        assert {each.uri for each in await client.resources()} == {f"books://all/{n}/all" for n in ("one", "two")}
        assert (await client.call("all_two_find", isbn="7")).data == {"isbn": "7", "pages": 7}
        assert (await client.read("books://all/one/all"))[0].text == "# Momo"


def shop() -> Server:
    """A server behind."""
    mcp = Server("shop")

    @mcp.tool
    def buy(isbn: str) -> str:
        return isbn

    return mcp


async def test_what_the_server_behind_adds_and_takes_away_later_comes_and_goes() -> None:
    """A proxy lives for weeks, and servers register at any time."""
    behind = shop()
    proxy = standalone.create_proxy(behind)
    async with Client(proxy.engine, timeout=WAIT) as client, client.watch(tools=True) as changes:
        assert [tool.name for tool in await client.tools()] == ["buy"]

        @behind.tool
        def sell(isbn: str) -> str:
            return isbn

        await anext(aiter(changes))
        assert {tool.name for tool in await client.tools(fresh=True)} == {"buy", "sell"}
        assert (await client.call("sell", isbn="7")).text == "7"
        behind.definition.remove("tools", "buy")
        await anext(aiter(changes))
        assert [tool.name for tool in await client.tools(fresh=True)] == ["sell"]
        with pytest.raises(Failure):
            await client.call("buy", isbn="7")


async def test_what_can_not_be_offered_is_passed_over_and_the_rest_is_there(caplog: pytest.LogCaptureFixture) -> None:
    """One odd resource of another server must not take its tools away."""
    behind = shop()

    @behind.resource("book://7")
    def book() -> str:
        return "Momo"

    described = behind.definition.registry.resources["book://7"]
    described._described = {**described._described, "uri": "no URI"}
    proxy = standalone.create_proxy(behind, name="odd")
    async with Client(proxy.engine, timeout=WAIT) as client:
        assert [tool.name for tool in await client.tools()] == ["buy"]
        assert await client.resources() == []
    assert "odd: book of the resources behind it can't be offered" in caplog.text


async def test_a_proxy_starts_while_nobody_is_behind_it(caplog: pytest.LogCaptureFixture) -> None:
    """What it has of its own works, and the log says what's wrong."""
    proxy = standalone.FastMCP.as_proxy("http://127.0.0.1:9/mcp", name="alone")

    @proxy.tool
    def own() -> str:
        return "here"

    async with Client(proxy.engine, timeout=WAIT) as client:
        assert [tool.name for tool in await client.tools()] == ["own"]
        assert (await client.call("own")).text == "here"
    assert "alone: the server behind it can't be reached" in caplog.text


def test_a_proxy_of_nothing_is_an_error_at_once() -> None:
    """The line that names the server is the one to correct."""
    with pytest.raises(TargetError, match="no file"):
        standalone.create_proxy("nowhere.py")
    with pytest.raises(TypeError, match="the URL or the command"):
        standalone.create_proxy(Client("http://127.0.0.1:9/mcp"))


class Transport:
    """As fastmcp's clients have them: `StreamableHttpTransport`, `StdioTransport`."""

    def __init__(self, **members: Any) -> None:
        self.__dict__ |= members


@pytest.mark.parametrize(
    ("members", "meant"),
    [
        ({"url": "http://a/mcp", "headers": {"x-a": 1}}, {"url": "http://a/mcp", "headers": {"x-a": "1"}}),
        ({"command": "uvx", "args": ["x"], "env": {"A": "b"}}, {"command": "uvx", "args": ["x"], "env": {"A": "b"}}),
    ],
)
def test_clients_and_transports_of_fastmcp_say_where_a_proxy_leads(
    members: Mapping[str, Any], meant: Mapping[str, Any]
) -> None:
    """Programs give `ProxyClient(…)`, `Client(transport)` or the transport itself."""
    from millstream.compat.fastmcp._behind import target_of  # noqa: PLC0415

    transport = Transport(**members)
    for given in (transport, Transport(transport=transport), standalone.ProxyClient(transport)):
        assert target_of(given) == {"mcpServers": {"behind": meant}}
    proxy = standalone.FastMCPProxy(client_factory=lambda: standalone.ProxyClient(transport), name="bridge")
    assert proxy.name == "bridge"


def test_what_the_door_does_not_have_names_the_way_out() -> None:
    """An AttributeError with the sentence that `millstream port` prints."""
    mcp: standalone.FastMCP[Any] = standalone.FastMCP("shop")
    with pytest.raises(AttributeError, match="there are no transforms"):
        mcp.add_transform(object())
    with pytest.raises(TypeError, match="only OpenAPIProvider and ProxyProvider"):
        mcp.add_provider(object())
    with pytest.raises(TypeError, match="'identity' here: a proxy has its own name"):
        standalone.create_proxy(shop(), identity="upstream")
    assert standalone.create_proxy(shop(), identity="proxy").name.startswith("FastMCPProxy-")
    with pytest.raises(TypeError, match=r"'colour' here$"):
        standalone.create_proxy(shop(), colour="red")


def asking(roots: list[Any]) -> standalone.FastMCP[Any]:
    """A server behind that says what a call has told it."""
    mcp: standalone.FastMCP[Any] = standalone.FastMCP("asking", instructions="Ask first.")

    @mcp.tool
    async def told(ctx: standalone.Context) -> dict[str, Any]:
        roots[:] = [str(each.uri) for each in await ctx.list_roots()]
        return {**dict(ctx.meta), "revision": ctx.request_context.protocol_version}

    @mcp.resource("told://all")
    def all_told(ctx: standalone.Context) -> str:
        return str(ctx.meta and ctx.meta.get("example.com/a"))

    @mcp.prompt
    def review(isbn: str) -> str:
        return isbn

    return mcp


@pytest.mark.parametrize("front", [HANDSHAKE, NEWEST])
@pytest.mark.parametrize(("mode", "behind"), [("legacy", HANDSHAKE), ("auto", NEWEST)])
async def test_a_proxy_passes_on_meta_and_roots_but_nothing_of_its_callers_connection(
    front: str, mode: str, behind: str
) -> None:
    """fastmcp: `_meta` of the program goes through; versions, names and tokens are those of each connection."""
    roots: list[Any] = []
    info = Transport(name="bridge", version="1")
    proxy = standalone.create_proxy(standalone.ProxyClient(asking(roots), mode=mode, client_info=info))
    meta = {"example.com/a": {"b": 1}, "progressToken": "mine"}
    async with Client(proxy.engine, revision=front, timeout=WAIT, roots=["file:///books"]) as client:
        result = await client.request("tools/call", {"name": "told", "arguments": {}, "_meta": meta})
        read = await client.request("resources/read", {"uri": "told://all", "_meta": meta})
    seen = result["structuredContent"]
    assert seen["example.com/a"] == {"b": 1}
    assert isinstance(seen["progressToken"], int)
    assert seen["revision"] == behind
    name = seen.get("io.modelcontextprotocol/clientInfo", {}).get("name")
    assert name == (None if behind == HANDSHAKE else "bridge")
    assert read["contents"][0]["text"] == "{'b': 1}"
    assert roots == ["file:///books"]


async def test_a_proxy_that_does_not_run_connects_for_a_call_of_the_program() -> None:
    """fastmcp: `await proxy.list_tools()` in a test or a script, mounted proxies too, side by side."""
    behind = asking([])
    proxy = standalone.create_proxy(behind)
    outer: standalone.FastMCP[Any] = standalone.FastMCP("outer")
    outer.mount(proxy, "in")
    assert [tool.name for tool in await proxy.list_tools()] == ["told"]
    listed = await asyncio.gather(outer.list_tools(), outer.list_prompts(), outer.list_resources())
    assert [[str(each.key) for each in kind] for kind in listed] == [["in_told"], ["in_review"], ["told://in/all"]]
    assert (await outer.read_resource("told://in/all")).contents[0].content == "None"
    assert (await outer.get_prompt("in_review", {"isbn": "7"})).messages[0].content.text == "7"

    @behind.tool
    def later() -> str:
        return "here"

    assert (await outer.call_tool("in_later", {})).structured_content == {"result": "here"}
    with pytest.raises(NotImplementedError, match=r"server\.disable"):
        (await proxy.get_tool("later")).disable()
    with pytest.raises(NotImplementedError, match=r"server\.enable"):
        (await proxy.get_tool("later")).enable()


@pytest.mark.parametrize("revision", [HANDSHAKE, NEWEST])
@pytest.mark.parametrize(("own", "said"), [("", "Ask first."), ("Mine.", "Mine.")])
async def test_a_proxy_without_instructions_has_those_of_the_server_behind(revision: str, own: str, said: str) -> None:
    """fastmcp: a model that sees the proxy needs what the server's author wrote."""
    proxy = standalone.create_proxy(asking([]), instructions=own)
    async with Client(proxy.engine, revision=revision, timeout=WAIT) as client:
        assert client.instructions == said


async def test_a_provider_brings_its_items_under_a_namespace() -> None:
    """fastmcp: `add_provider`; the function that names the target may be a coroutine function."""

    async def behind() -> Any:
        return asking([])

    mcp: standalone.FastMCP[Any] = standalone.FastMCP("outer")
    mcp.add_provider(standalone.ProxyProvider(behind), namespace="in")
    mcp.add_provider(standalone.ProxyProvider(shop))
    async with Client(mcp.engine, timeout=WAIT) as client:
        assert {tool.name for tool in await client.tools()} == {"in_told", "buy"}
        assert (await client.call("buy", isbn="7")).text == "7"
