"""Each session in front of a proxy has its own connection to the server behind it."""

import asyncio
from typing import Any

import pytest

from millstream import Client
from millstream.client import ClientError, Failure
from millstream.compat.fastmcp import _lines, standalone
from millstream.compat.fastmcp._behind import _is_program
from patience import WAIT

HANDSHAKE, NEWEST = "2025-11-25", "2026-07-28"


def asking(both: asyncio.Event) -> standalone.FastMCP[Any]:
    """A server that keeps something for each session, and asks when two callers are in it."""
    mcp: standalone.FastMCP[Any] = standalone.FastMCP("asking")
    kept: dict[str, str] = {}
    callers: list[str] = []

    @mcp.tool
    async def keep(value: str, ctx: standalone.Context) -> str:
        return kept.setdefault(str(ctx.session_id), value)

    @mcp.tool
    async def who(ctx: standalone.Context) -> str:
        callers.append("one more")
        if len(callers) == 2:
            both.set()
        await both.wait()
        await ctx.info("asking")
        answer: Any = await ctx.elicit("Who are you?", response_type=str)
        return str(answer.data)

    return mcp


async def test_each_session_has_what_the_server_behind_keeps_for_it_and_gets_its_questions() -> None:
    """With one connection for all, the second session read what the first one had kept, and nobody could be asked."""
    proxy = standalone.create_proxy(asking(asyncio.Event()))
    said: dict[str, list[Any]] = {"Ada": [], "Bob": []}

    def caller(name: str) -> Client:
        return Client(
            proxy.engine,
            revision=HANDSHAKE,
            timeout=WAIT,
            elicit=lambda question: {"value": name},
            on_log=lambda message: said[name].append(message.data),
        )

    async with caller("Ada") as ada, caller("Bob") as bob:
        assert (await ada.call("keep", value="a")).text == "a"
        assert (await bob.call("keep", value="b")).text == "b"
        assert (await ada.call("keep", value="c")).text == "a"
        answers = await asyncio.gather(ada.call("who"), bob.call("who"))
    assert [each.text for each in answers] == ["Ada", "Bob"]
    assert said == {"Ada": [{"msg": "asking", "extra": None}], "Bob": [{"msg": "asking", "extra": None}]}


async def test_a_stateful_proxy_client_leads_where_its_target_is() -> None:
    """fastmcp: ``client_factory=client.new_stateful``; callers without a session share one connection."""
    client = standalone.StatefulProxyClient(asking(asyncio.Event()))
    proxy: standalone.FastMCPProxy[Any] = standalone.FastMCPProxy(client_factory=client.new_stateful)
    for revision, second in ((HANDSHAKE, "b"), (NEWEST, "c")):
        async with Client(proxy.engine, revision=revision, timeout=WAIT) as caller:
            assert (await caller.call("keep", value=second)).text == second


def test_a_program_behind_a_proxy_runs_once_for_all() -> None:
    """A process for each session is what only a program can decide."""
    assert not _is_program("https://example.com/mcp")
    assert not _is_program({"mcpServers": {"a": {"url": "https://example.com/mcp"}}})
    assert _is_program("server.py")
    assert _is_program(["python", "server.py"])
    assert _is_program({"mcpServers": {"a": {"command": "uvx"}}})


class Line:
    """A client that says when it is closed."""

    def __init__(self, session: str, closed: list[str]) -> None:
        self.session = session
        self._closed = closed

    async def __aexit__(self, *exc: object) -> None:
        self._closed.append(self.session)


async def test_connections_that_are_not_in_use_make_room_and_those_in_use_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sessions come and go without a word, so their connections are bounded."""
    closed: list[str] = []

    async def connect(session: str) -> Any:
        if session == "broken":
            raise ClientError("no way")
        return Line(session, closed)

    monkeypatch.setattr(_lines, "_MOST", 2)
    lines = _lines.Lines(connect)
    first: Any = await lines.take("a")
    assert await lines.take("a") is first
    await lines.take("b")
    with pytest.raises(ClientError, match="2 sessions are calling"):
        await lines.take("c")
    lines.release("b")
    await lines.take("c")
    assert closed == ["b"]
    lines.release("c")
    with pytest.raises(ClientError, match="no way"):
        await lines.take("broken")
    assert await lines.take("a") is first
    monkeypatch.setattr(_lines, "_IDLE", -1.0)
    for _ in range(3):
        lines.release("a")
    await lines.take("d")
    assert closed == ["b", "c", "a"]
    await lines.close()
    assert closed == ["b", "c", "a", "d"]


@pytest.mark.parametrize("revision", [HANDSHAKE, NEWEST])
async def test_lists_of_a_proxy_are_errors_while_nobody_is_behind_it_if_the_program_says_so(revision: str) -> None:
    """fastmcp: ``provider_error_strategy="raise"``; an empty list would tell a host that the tools are gone."""
    proxy = standalone.create_proxy("http://127.0.0.1:9/mcp", provider_error_strategy="raise")
    async with Client(proxy.engine, revision=revision, timeout=WAIT) as client:
        with pytest.raises(Failure, match="Client failed to connect"):
            await client.tools()
    with pytest.raises(standalone.McpError, match="Client failed to connect"):
        await proxy.list_tools()
    with pytest.raises(ValueError, match="'warn' or 'raise'"):
        standalone.create_proxy("http://127.0.0.1:9/mcp", provider_error_strategy="never")


async def test_a_comma_of_an_item_stays_one_behind_a_proxy() -> None:
    """RFC 6570 §3.2.8: it was decoded, and reached the server behind as a comma between items."""
    behind: standalone.FastMCP[Any] = standalone.FastMCP("behind")

    @behind.resource("books://found{?tags}")
    def found(tags: list[str] | None = None) -> str:
        return "|".join(tags or ["none"])

    async with Client(standalone.create_proxy(behind).engine, timeout=WAIT) as client:
        assert (await client.read("books://found?tags=a%2Cb,c"))[0].text == "a,b|c"
        assert (await client.read("books://found?tags=a,b"))[0].text == "a|b"
        assert (await client.read("books://found"))[0].text == "none"
