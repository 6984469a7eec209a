"""A server of another library behind Millstream, as seen by clients. The servers use the official SDK."""

import asyncio
import json
import logging
import subprocess
import sys
from collections import defaultdict
from collections.abc import Awaitable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.server import MCPServer
from mcp.server import Server as LowLevelServer
from mcp.server.mcpserver import Context
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourceUpdated
from mcp.shared.exceptions import MCPError
from mcp_types import SamplingMessage, TextContent, ToolListChangedNotification
from pydantic import BaseModel

from client.misbehaving_servers import GREETING, OFFER, Behave, ReceivedRequest, misbehaving, with_handshake
from cpu import count_calls
from http_peer import serve
from millstream import Client, ProtocolError, Server, Settings
from millstream.client import ClientError, ConnectionLost, Options, ServerError, ToolFailed
from millstream.gateway import ToolPolicy, UpstreamPolicy
from millstream.protocol import members
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
async def test_announced_tool_from_a_prefixed_program_is_listed_and_callable(era: str) -> None:
    async with Client(catalog(), revision=era) as client:
        await client.call("a_grow")
        await listed(client, "a_announced")
        assert (await client.call("a_announced")).text == "x"


async def test_tool_added_without_a_notification_is_listed_when_a_client_asks() -> None:
    async with Client(catalog(), revision=ERAS[0]) as client:
        assert "a_silent" not in await names(client)
        await client.call("a_grow_silently")
        await listed(client, "a_silent")


async def test_clients_do_not_cache_program_lists() -> None:
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


HARMLESS = UpstreamPolicy(deny=("never_*",), tools={"never": ToolPolicy(limit="1/minute")})
"""A policy that matches no item of these upstreams."""
_policy: list[UpstreamPolicy | None] = [None]


@pytest.fixture(autouse=True, params=[None, HARMLESS], ids=["no policy", "policy"])
def policy(request: pytest.FixtureRequest) -> None:
    """Relays have no policy, or one that changes nothing."""
    _policy[:] = [request.param]


def relay(program: Any, **options: Any) -> Server:
    """A server with a single upstream, under its own names, as `millstream run` makes it."""
    gateway = Server("gateway")
    gateway.upstream("only", program, prefix="", **({"policy": _policy[0]} | options))
    gateway.definition.named = False
    return gateway


async def test_questions_from_a_single_upstream_reach_the_user_unchanged() -> None:
    questions: list[str] = []

    def elicit(question: Any) -> dict[str, str]:
        questions.append(question.message)
        return {"name": "ada"}

    for gateway, tool in ((relay(asking()), "register"), (catalog(asking()), "a_register")):
        async with Client(gateway, revision=ERAS[0], elicit=elicit) as client:
            assert (await client.call(tool)).text == "ada"
    assert questions == ["Choose a username.", "[a] Choose a username."]


@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
async def test_system_prompt_from_a_single_upstream_is_not_extended() -> None:
    prompts: list[Any] = []

    def sample(request: Any) -> str:
        prompts.append(request.system_prompt)
        return "Roses"

    async with Client(relay(asking()), revision=ERAS[0], sample=sample) as client:
        await client.call("poem")
    assert prompts == ["Be brief."]


async def test_single_upstream_keeps_its_own_description() -> None:
    for era in ERAS:
        async with Client(relay(asking()), revision=era) as client:
            assert (client.server.name, client.server.title) == ("registrar", "The registrar")


async def post(gateway: Server, message: dict[str, Any], **headers: str) -> httpx2.Response:
    common = {"accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(gateway), base_url="http://127.0.0.1:8000") as http:
        return await http.post("/mcp", json={"jsonrpc": "2.0", "id": 1} | message, headers=common | headers)


ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": ERAS[1],
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
}


async def test_method_unknown_to_the_upstream_gets_404() -> None:
    gateway = relay(MCPServer("plain"))
    headers = {"mcp-protocol-version": ERAS[1], "mcp-method": "com.example/foo"}
    async with Client(gateway):
        reply = await post(gateway, {"method": "com.example/foo", "params": {"_meta": ENVELOPE}}, **headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, -32601)


async def test_methods_cannot_contain_another_method() -> None:
    """A relayed method must not become a call that the gateway's limits, scopes, and audit log don't see."""
    calls: list[str] = []
    upstream = MCPServer("plain")

    @upstream.tool()
    def delete() -> str:  # pyright: ignore[reportUnusedFunction]
        calls.append("delete")
        return "deleted"

    gateway = relay(upstream)
    async with Client(gateway) as client:
        for method in ('x","method":"tools/call","z":"', 'x"}\n{"jsonrpc":"2.0","id":1,"method":"tools/call","z":"'):
            with pytest.raises(ClientError):
                await client.request(method, {"name": "delete", "arguments": {}})
        assert calls == []
        assert (await client.call_tool("delete", {})).text == "deleted"


class Cart(MCPServer):
    """A program that remembers something for each session, and knows who calls."""

    def __init__(self, *, admits: str = "") -> None:
        async def check(ctx: Any, call_next: Any) -> Any:
            if admits and ctx.method == "initialize" and ctx.params["clientInfo"]["name"] != admits:
                raise MCPError(code=-32000, message="You aren't admitted.", data={"admits": admits})
            return await call_next(ctx)

        super().__init__("cart")
        self._lowlevel_server.middleware.append(check)
        values: dict[str, int] = {}

        @self.tool()
        def put(value: int, ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
            values[str(id(ctx.session._connection))] = value
            return "ok"

        @self.tool()
        def take(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
            return str(values.get(str(id(ctx.session._connection))))

        @self.tool()
        def who(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
            params = ctx.session.client_params
            return f"{params.client_info.name} {params.protocol_version}" if params else ""


NAMED: dict[str, Any] = {"options": Options(name="ada", version="7")}


@pytest.mark.parametrize("make", [relay, catalog])
async def test_session_keeps_its_state_if_the_client_declares_nothing(make: Any) -> None:
    gateway, prefix = make(Cart()), "a_" if make is catalog else ""
    async with Client(gateway, revision="2025-11-25") as one, Client(gateway, revision="2025-11-25") as two:
        await one.call(f"{prefix}put", value=7)
        assert [(await each.call(f"{prefix}take")).text for each in (one, two, one)] == ["7", "None", "7"]


@pytest.mark.parametrize("make", [relay, catalog])
async def test_upstream_sees_the_client_name_and_revision(make: Any) -> None:
    tool = "a_who" if make is catalog else "who"
    async with Client(make(Cart()), revision=ERAS[0], **NAMED) as client:
        assert (await client.call(tool)).text == "ada 2025-06-18"


async def test_upstream_receives_all_capabilities_that_a_client_declares() -> None:
    program = MCPServer("curious")

    @program.tool()
    def about(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
        params = ctx.session.client_params
        return params.client_info.model_dump_json(by_alias=True, exclude_none=True) if params else ""

    info = {"name": "ada", "version": "7", "title": "Ada", "icons": [{"src": "https://example.com/a.png"}]}
    gateway = relay(program)
    async with gateway.running():
        begun = await post(gateway, {"method": "initialize", "params": {**INITIALIZE["params"], "clientInfo": info}})
        headers = {"mcp-session-id": begun.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
        reply = await post(gateway, calling("about"), **headers)
    assert (
        json.loads(json.loads(reply.text.partition("data: ")[2] or reply.text)["result"]["content"][0]["text"]) == info
    )


async def test_option_hides_the_client_from_the_upstream() -> None:
    for era in ERAS:
        async with Client(relay(Cart(), forward_client=False), revision=era, **NAMED) as client:
            assert (await client.call("who")).text == f"millstream-gateway {era}"


async def test_client_gets_the_upstreams_initialize_error() -> None:
    gateway = relay(Cart(admits="ada"))
    async with Client(gateway, revision=ERAS[0], **NAMED) as client:
        assert (await client.call("take")).text == "None"
    with pytest.raises(ServerError) as refused:
        async with Client(gateway, revision=ERAS[0]):
            pass
    assert refused.value.code == -32000
    assert refused.value.message == "You aren't admitted."
    assert refused.value.data == {"admits": "ada"}


async def test_catalog_rejects_only_calls_to_the_upstream_that_rejects_the_client() -> None:
    async with Client(catalog(Cart(admits="ada"), Cart()), revision=ERAS[0]) as client:
        with pytest.raises(ServerError, match="aren't admitted"):
            await client.call("a_take")
        assert (await client.call("b_take")).text == "None"


async def test_relay_forwards_unlisted_names_and_catalog_rejects_them() -> None:
    program = growing()
    for era in ERAS:
        async with Client(relay(program), revision=era) as client:
            await client.call("grow_silently")
            assert (await client.call("silent")).text == "x"
            program.remove_tool("silent")
    for era in ERAS:
        async with Client(relay(growing()), revision=era) as client:
            await client.call("grow_silently")
            assert "silent" in await names(client)  # at once


async def test_relayed_program_error_is_unchanged() -> None:
    program = MCPServer("prompts")

    @program.prompt()
    def greet(name: str) -> str:  # pyright: ignore[reportUnusedFunction]
        return f"Hello {name}"

    async with Client(relay(program), revision="2025-11-25") as client:
        with pytest.raises(ServerError, match="name"):
            await client.prompt("greet")


def reporting() -> MCPServer:
    """A program that reports progress in a call and, when another asks for it, after the call."""
    program = MCPServer("reporter")
    kept: list[tuple[Any, Any]] = []

    async def report(ctx: Any, value: float, call: str | None = None) -> None:
        await ctx.session.send_progress_notification(kept[0][1], value, 2, "step", related_request_id=call)

    @program.tool()
    async def work(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
        kept.append((ctx, (ctx.request_context.meta or {})["progress_token"]))
        await report(ctx, 1, str(ctx.request_context.request_id))
        return "done"

    @program.tool()
    async def late(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
        await report(kept[0][0], 2)
        return "reported"

    @program.tool()
    async def free(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
        await ctx.session.send_progress_notification("its own", 1, 2, "step")
        return "reported"

    @program.tool()
    async def change(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
        notice = ToolListChangedNotification()
        await ctx.session.send_notification(notice, related_request_id=str(ctx.request_context.request_id))
        return "announced"

    return program


async def next_notification(client: Client, method: str, work: Awaitable[Any]) -> Any:
    """Return the parameters of the next notification with a method, during or after some work."""
    seen: asyncio.Queue[Any] = asyncio.Queue()
    client.conversation.requests.incoming.observer = seen.put_nowait
    await work
    async with asyncio.timeout(WAIT):
        while (notification := await seen.get()).method != method:
            pass
    return json.loads(bytes(notification.params))


async def test_progress_reaches_the_client_unchanged_even_after_its_call() -> None:
    async with Client(relay(reporting()), revision="2025-11-25") as client:
        call = {"name": "work", "arguments": {}, "_meta": {"progressToken": "mine"}}
        first = await next_notification(client, "notifications/progress", client.request("tools/call", call))
        late = await next_notification(client, "notifications/progress", client.call("late"))
        free = await next_notification(client, "notifications/progress", client.call("free"))
    step = {"progressToken": "mine", "total": 2, "message": "step"}
    assert [first, late] == [step | {"progress": 1}, step | {"progress": 2}]
    assert free == step | {"progress": 1, "progressToken": "its own"}


async def test_long_progress_tokens_are_forgotten_with_their_calls() -> None:
    seen: asyncio.Queue[Any] = asyncio.Queue()
    methods: list[str] = []
    async with asyncio.timeout(WAIT), Client(relay(reporting()), revision="2025-11-25") as client:
        client.conversation.requests.incoming.observer = seen.put_nowait
        call = {"name": "work", "arguments": {}, "_meta": {"progressToken": "m" * 10_000}}
        await client.request("tools/call", call)
        await client.call("late")
        await client.call("change")
        while "notifications/tools/list_changed" not in methods:
            methods.append((await seen.get()).method)
    assert methods.count("notifications/progress") == 1


async def test_change_announced_in_a_call_without_a_session_arrives_before_its_result() -> None:
    async with Client(relay(reporting()), revision="2026-07-28") as client:
        work = client.call("change")
        assert not await next_notification(client, "notifications/tools/list_changed", work)


async def test_upstream_error_code_is_kept_in_every_era() -> None:
    async def read(ctx: Any, params: Any) -> Any:
        raise MCPError(code=-32002, message="There is no such page.", data={"uri": params.uri})

    for era in ERAS:
        async with Client(relay(LowLevelServer("pages", on_read_resource=read)), revision=era) as client:
            with pytest.raises(ServerError) as refused:
                await client.read("page://7")
        assert (refused.value.code, refused.value.data) == (-32002, {"uri": "page://7"})


async def test_program_that_rejects_every_client_returns_its_own_error() -> None:
    program = MCPServer("closed")

    async def refuse(ctx: Any, call_next: Any) -> Any:
        raise MCPError(code=-32050, message="Closed on Mondays.")

    program._lowlevel_server.middleware.append(refuse)
    gateway = relay(program)
    discover = {"method": "server/discover", "params": {"_meta": ENVELOPE}}
    async with asyncio.timeout(WAIT), gateway.running():
        replies = [
            await post(gateway, INITIALIZE),
            await post(gateway, discover, **{"mcp-protocol-version": ERAS[1], "mcp-method": "server/discover"}),
        ]
    assert [each.json()["error"] for each in replies] == [{"code": -32050, "message": "Closed on Mondays."}] * 2


async def test_upstream_is_asked_for_its_description_once_until_the_lists_are_read_again() -> None:
    program, seen = growing(), list[str]()

    async def note(ctx: Any, call_next: Any) -> Any:
        seen.append(ctx.method)
        return await call_next(ctx)

    program._lowlevel_server.middleware.append(note)
    gateway = relay(program)
    async with asyncio.timeout(WAIT), gateway.running() as runtime:
        assert seen == ["server/discover"]
        await runtime.host.gateway.upstreams["only"].lists.freshen()  # type: ignore[union-attr]
        assert seen == ["server/discover"] * 2  # its capabilities may have changed


async def test_relay_answers_a_repeated_initialize_in_a_session() -> None:
    gateway = relay(Cart())
    async with gateway.running() as runtime:
        headers = await open_session(gateway)
        assert "ok" in (await post(gateway, calling("put", value=7), **headers)).text
        again = await post(gateway, INITIALIZE, **headers)
        other = await post(gateway, {**INITIALIZE, "params": {"protocolVersion": "2025-11-25"}}, **headers)
        assert (again.status_code, again.json()["result"]["serverInfo"]["name"]) == (200, "cart")
        assert (other.status_code, "mcp-session-id" in again.headers) == (400, False)
        assert '"7"' in (await post(gateway, calling("take"), **headers)).text
        assert len(own_sessions(runtime)) == 1


async def test_closed_relay_leaves_nothing_in_the_registry() -> None:
    async with relay(Cart()).running() as runtime:
        registry = runtime.dispatcher.registry
        assert registry.relayed is not None
    assert registry.relayed is None


INITIALIZE: dict[str, Any] = {
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}


async def open_session(gateway: Server) -> dict[str, str]:
    """Begin a session over HTTP, and return its headers."""
    reply = await post(gateway, INITIALIZE)
    return {"mcp-session-id": reply.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}


def calling(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"method": "tools/call", "params": {"name": tool, "arguments": arguments}}


async def test_session_goes_on_after_the_upstream_of_a_relay_ends_its_own() -> None:
    """Most clients don't recover from the status 404."""
    gateway = relay(Cart())
    async with gateway.running() as runtime:
        headers = await open_session(gateway)
        for _ in range(2):
            assert "ok" in (await post(gateway, calling("put", value=7), **headers)).text
            end_own_sessions(runtime)
            replies = [(await post(gateway, calling("take"), **headers)).text for _ in range(2)]
            assert "has ended its session with you and lost its state" in replies[0]
            assert '"None"' in replies[1]


async def test_first_call_after_the_upstream_ends_a_session_reports_it() -> None:
    gateway = catalog(Cart(), Cart())
    async with gateway.running() as runtime:
        headers = await open_session(gateway)
        for tool in ("a_put", "b_put"):
            await post(gateway, calling(tool, value=7), **headers)
        end_own_sessions(runtime, "a")
        replies = [(await post(gateway, calling(tool), **headers)).text for tool in ("b_take", "a_take", "a_take")]
    assert '"7"' in replies[0]
    assert "has ended its session" in replies[1]
    assert '"None"' in replies[2]


async def test_second_call_after_an_upstream_restarted_opens_a_session() -> None:
    """Its sessions are unknown after the restart, and it has no stream that could report that."""
    run, opened = 1, 0

    async def behave(asked: ReceivedRequest) -> None:
        nonlocal opened
        session = asked.headers.get("mcp-session-id", "")
        if asked.method == "initialize":
            opened += 1
            await with_handshake(behave, f"{run}-{opened}")(asked)
        elif session and not session.startswith(f"{run}-"):
            await asked.reply(b"", status="404 Not Found")
        elif asked.method in ("tools/list", "tools/call"):
            tools = [{"name": "take", "inputSchema": {"type": "object"}}]
            await asked.result({"tools": tools, "content": [{"type": "text", "text": f"run {run}"}]})
        else:
            await with_handshake(behave, session)(asked)

    async with asyncio.timeout(WAIT), misbehaving(behave) as upstream:
        gateway = catalog(upstream.url, Cart())
        async with gateway.running():
            sessions = [await open_session(gateway) for _ in range(2)]
            for headers in sessions:
                assert "run 1" in (await post(gateway, calling("a_take"), **headers)).text
            run = 2
            for headers in sessions:
                replies = [(await post(gateway, calling("a_take"), **headers)).text for _ in range(3)]
                assert ["has ended its session" in reply for reply in replies] == [True, False, False]
                assert "run 2" in replies[1]


def own_sessions(runtime: Any, name: str = "only") -> dict[str, Any]:
    own: dict[str, Any] = runtime.host.gateway.upstreams[name].links.own
    return own


def end_own_sessions(runtime: Any, name: str = "only") -> None:
    """End the sessions as a program does that exits."""
    for link in own_sessions(runtime, name).values():
        link.conversation.transport.end(ConnectionLost("The program ended the session."))


async def test_deleting_a_session_ends_its_upstream_session() -> None:
    gateway = relay(Cart())
    async with gateway.running() as runtime:
        headers = await open_session(gateway)
        assert len(own_sessions(runtime)) == 1
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(gateway), base_url="http://127.0.0.1:8000"
        ) as http:
            await http.delete("/mcp", headers=headers)
        assert not own_sessions(runtime)


async def begin(gateway: Server, *peers: str) -> list[httpx2.Response]:
    """Begin a session from each of some addresses, and return the replies."""
    replies: list[httpx2.Response] = []
    async with Client(gateway):
        for peer in peers:
            transport = httpx2.ASGITransport(gateway, client=(peer, 1))
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as http:
                headers = {"accept": "application/json, text/event-stream"}
                body = {"jsonrpc": "2.0", "id": 1} | INITIALIZE
                replies.append(await http.post("/mcp", json=body, headers=headers))
    return replies


async def test_caller_with_too_many_sessions_is_rejected_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._gateway.part.MAX_OWN_SESSIONS", 4)
    replies = await begin(relay(Cart()), "192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2")
    assert [each.status_code for each in replies] == [200, 200, 503, 200]
    assert replies[2].headers["retry-after"] == "60"


async def test_sessions_through_a_trusted_proxy_are_not_limited_to_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._gateway.part.MAX_OWN_SESSIONS", 4)
    for trusted, status in (("10.0.0.0/8", 200), ("*", 503)):  # with a star, no address is known to be a proxy's
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
        replies = await begin(relay(Cart()), "10.0.0.1", "10.0.0.1", "10.0.0.1")
        assert replies[-1].status_code == status


async def test_clients_can_connect_to_a_gateway_before_its_upstream_starts() -> None:
    started = asyncio.Event()

    async def behave(asked: ReceivedRequest) -> None:
        await started.wait()
        await with_handshake(behave)(asked)

    async with asyncio.timeout(WAIT), misbehaving(behave) as server:
        mcp = Server("front")
        mcp.upstream("slow", server.url, prefix="", start_timeout=0, connect_timeout=0.5)
        for revision in ("2026-07-28", "2025-11-25"):
            async with Client(mcp, revision=revision, timeout=WAIT) as client:
                assert client.server.name == "front"
                assert await client.tools() == []
        started.set()


def starting(held: dict[str, asyncio.Event], date: str, asked_for: Mapping[str, asyncio.Event]) -> Behave:
    """A server of the handshake era that responds to some methods only after their events. It sets others when they're
    requested.
    """

    async def behave(asked: ReceivedRequest) -> None:
        asked_for[asked.method].set()
        if asked.method in held:
            await held[asked.method].wait()
        about = {"serverInfo": {"name": "late", "title": "Late", "version": "3"}, "instructions": "Ask me first."}
        match asked.method:
            case "initialize":
                offer = {"protocolVersion": date, "capabilities": {"tools": {}}, **about}
                await asked.result(offer, more="Mcp-Session-Id: s\r\n")
            case "tools/list":
                await asked.result({"tools": [{"name": "one", "inputSchema": {"type": "object"}}]})
            case "notifications/initialized":
                await asked.reply(b"", status="202 Accepted")
            case _:
                await asked.error(-32601, "Method not found")

    return behave


@pytest.mark.parametrize("date", ["2025-06-18", "2025-11-25"])
@pytest.mark.parametrize("revision", ["2025-06-18", "2025-11-25", "2026-07-28"])
async def test_slow_list_arrives_late_instead_of_empty(date: str, revision: str) -> None:
    asked_for, released = defaultdict[str, asyncio.Event](asyncio.Event), asyncio.Event()
    requested = asked_for["tools/list"]
    behave = starting({"tools/list": released}, date, asked_for)
    async with asyncio.timeout(WAIT), misbehaving(behave) as server:
        mcp = Server("front")
        mcp.upstream("late", server.url, prefix="", start_timeout=0, isolation="shared")
        async with mcp.running():
            await requested.wait()
            async with Client(mcp, revision=revision, timeout=WAIT) as client:
                assert client.capabilities.keys() - {"experimental"} == {"tools"}
                assert client.instructions == "Ask me first."
                requested.clear()
                listing = asyncio.create_task(names(client))
                await requested.wait()
                released.set()
                assert await listing == ["one"]


@pytest.mark.parametrize("date", ["2025-06-18", "2025-11-25"])
@pytest.mark.parametrize("revision", ["2025-06-18", "2025-11-25", "2026-07-28"])
async def test_client_of_a_starting_upstream_gets_its_description(
    date: str, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def open_at_once(part: Any, upstreams: Any) -> None:
        pass

    monkeypatch.setattr("millstream._gateway.part.GatewayPart._wait_for_lists", open_at_once)
    asked_for, released = defaultdict[str, asyncio.Event](asyncio.Event), asyncio.Event()
    behave = starting({"initialize": released}, date, asked_for)
    async with asyncio.timeout(WAIT), misbehaving(behave) as server:
        mcp = Server("front")
        mcp.upstream("late", server.url, prefix="", start_timeout=WAIT, isolation="shared")
        async with mcp.running(), AsyncExitStack() as stack:
            connecting = asyncio.create_task(stack.enter_async_context(Client(mcp, revision=revision, timeout=WAIT)))
            await asked_for["initialize"].wait()
            released.set()
            client = await connecting
            assert (client.server.version, client.instructions) == ("3", "Ask me first.")
            assert client.capabilities.keys() - {"experimental"} == {"tools"}
            assert await names(client) == ["one"]


NO_QUESTIONS = (  # TypeScript SDK 2.0.0, createMcpHandler with `legacy: 'stateless'`
    "Cannot request input 'q' (elicitation/create): the client on this 2025-era connection did not declare the "
    "required capability (no client capabilities are available on this connection \u2014 per-request legacy serving "
    "cannot receive server-to-client requests)"
)


async def without_sessions(asked: ReceivedRequest) -> None:
    """A server that speaks both eras without sessions, as the TypeScript SDK serves one."""
    newer, params = asked.headers.get("mcp-protocol-version") == "2026-07-28", members(asked.message.get("params"))
    answer = members(params.get("inputResponses"))
    match asked.method, params.get("name"):
        case "server/discover", _:
            await asked.result(OFFER)
        case "initialize", _:
            await asked.result({**GREETING, "protocolVersion": params["protocolVersion"]})
        case "tools/list", _:
            await asked.result(
                {"tools": [{"name": each, "inputSchema": {"type": "object"}} for each in ("ask", "era")]}
            )
        case "acme/search", _ if not newer:
            await asked.result({"items": ["x"]})
        case "tools/call", "era":
            await asked.result({"content": [{"type": "text", "text": "newer" if newer else "older"}]})
        case "tools/call", "ask" if not newer:
            await asked.result({"content": [{"type": "text", "text": NO_QUESTIONS}], "isError": True})
        case "tools/call", "ask" if answer:
            await asked.result({"content": [{"type": "text", "text": answer["q"]["content"]["name"]}]})
        case "tools/call", "ask":
            schema = {"type": "object", "properties": {"name": {"type": "string"}}}
            question = {"mode": "form", "message": "Name?", "requestedSchema": schema}
            questions = {"q": {"method": "elicitation/create", "params": question}}
            await asked.result({"resultType": "input_required", "inputRequests": questions})
        case "notifications/initialized", _:
            await asked.reply(b"", status="202 Accepted")
        case _:
            await asked.error(-32601, "Method not found")


@pytest.mark.parametrize("revision", ["2025-06-18", "2025-11-25"])
async def test_server_without_sessions_is_called_in_the_era_of_the_client(revision: str) -> None:
    async with asyncio.timeout(WAIT), misbehaving(without_sessions) as server:
        gateway = relay(server.url)
        able = {"elicitation": {}}
        async with gateway.running():
            opening = {**INITIALIZE["params"], "protocolVersion": revision, "capabilities": able}
            begun = await post(gateway, {"method": "initialize", "params": opening})
            headers = {"mcp-session-id": begun.headers["mcp-session-id"], "mcp-protocol-version": revision}
            found = await post(gateway, {"method": "acme/search", "params": {}}, **headers)
            assert json.loads(found.text)["result"] == {"items": ["x"]}
            assert '"older"' in (await post(gateway, calling("era"), **headers)).text


@pytest.mark.parametrize("revision", ["2025-06-18", "2025-11-25", "2026-07-28"])
@pytest.mark.parametrize("newest", ["2025-06-18", "2025-11-25", "2026-07-28"])
async def test_server_without_sessions_gets_notifications_of_clients_that_speak_its_revision(
    revision: str, newest: str
) -> None:
    received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "acme/moved":
            received.put_nowait(asked.message["params"])
            await asked.reply(b"", status="202 Accepted")
        elif asked.method == "server/discover" and newest < "2026":
            await asked.error(-32601, "Method not found")
        elif asked.method == "initialize":
            version = min(newest, asked.message["params"]["protocolVersion"])
            await asked.result({**GREETING, "protocolVersion": version})
        else:
            await without_sessions(asked)

    async with asyncio.timeout(WAIT), misbehaving(behave) as server:
        gateway = relay(server.url)
        for _ in range(2):
            async with Client(gateway, revision=revision, timeout=WAIT) as client:
                await client.call("era")
                await client.notify("acme/moved", {"to": revision})
                if revision == newest or newest > "2026":
                    assert (await received.get())["to"] == revision
    assert received.empty()


@pytest.mark.parametrize("revision", ["2025-06-18", "2025-11-25"])
@pytest.mark.parametrize("prefix", ["", "a"])
async def test_server_without_sessions_can_ask_clients_that_can_answer(revision: str, prefix: str) -> None:
    async with asyncio.timeout(WAIT), misbehaving(without_sessions) as server:
        gateway, tool = Server("front"), f"{prefix}_ask" if prefix else "ask"
        gateway.upstream("only", server.url, prefix=prefix)
        async with gateway.running():
            for _ in range(2):
                answers: dict[str, Any] = {"elicit": lambda question: {"name": "ada"}}
                async with Client(gateway, revision=revision, timeout=WAIT, **answers) as client:
                    assert [(await client.call(tool)).text for _ in range(2)] == ["ada", "ada"]
                async with Client(gateway, revision=revision, timeout=WAIT) as client:
                    with pytest.raises(ToolFailed, match="declare"):
                        await client.call(tool)


@pytest.mark.server
async def test_doctor_and_operators_see_whether_a_server_relays() -> None:
    one, several = Server("one"), catalog()
    one.upstream("books", growing(), prefix="")
    for server, mode in (
        (one, "relays books"),
        (several, "merges its upstreams' lists into its own, because there are several upstreams"),
    ):
        async with server.running() as runtime, serve(server) as running:
            command = [sys.executable, "-m", "millstream", "doctor", f"http://127.0.0.1:{running.port}/mcp"]
            doctor = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            shown, _ = await doctor.communicate()
            assert f"gateway: it {mode}\n" in shown.decode()
            assert {each["mode"] for each in runtime.host.gateway.describe()} == {mode}  # type: ignore[union-attr]


async def test_log_of_a_first_gateway_has_only_what_concerns_an_operator(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "millstream")
    for prefix in ("", "a"):
        gateway = Server("gateway")
        gateway.upstream("books", growing(), prefix=prefix)
        async with gateway.running(), Client(gateway) as client:
            await client.tools()
    assert {message.partition(":")[0] for message in caplog.messages} == {"The upstream books is ready"}


class Listening:
    """A program that serves subscriptions itself."""

    def __init__(self) -> None:
        self.bus = InMemorySubscriptionBus()
        self.serve = ListenHandler(self.bus)
        self.open: set[Any] = set()
        self.changed = asyncio.Event()
        self.server = LowLevelServer("listening", on_subscriptions_listen=self.listen)

    async def listen(self, ctx: Any, params: Any) -> Any:
        if params.notifications.prompts_list_changed:
            raise MCPError(code=-32050, message="Prompts never change.", data={"since": 1999})
        self.open.add(ctx.request_id)
        self.changed.set()
        try:
            return await self.serve(ctx, params)
        finally:
            self.open.discard(ctx.request_id)
            self.changed.set()

    async def wait_for(self, count: int) -> None:
        """Wait until there are as many subscriptions."""
        async with asyncio.timeout(WAIT):
            while len(self.open) != count:
                self.changed.clear()
                await self.changed.wait()


LISTEN = "subscriptions/listen"


def listening(*uris: str, **lists: bool) -> dict[str, Any]:
    return {"notifications": {"resourceSubscriptions": [*uris], **lists}}


async def test_relayed_subscription_has_the_upstreams_events_and_end() -> None:
    program, seen = Listening(), asyncio.Queue[Any]()
    async with Client(relay(program.server), revision="2026-07-28") as one, asyncio.timeout(WAIT):
        one.conversation.requests.incoming.observer = seen.put_nowait
        requests = [one.request(LISTEN, listening(f"book://{number}")) for number in (1, 2)]
        running = [asyncio.ensure_future(each) for each in requests]
        acknowledged = [json.loads(bytes((await seen.get()).params)) for _ in running]
        await program.bus.publish(ResourceUpdated(uri="book://2"))
        update = json.loads(bytes((await seen.get()).params))
        program.serve.close()
        results = [await each for each in running]
    granted = {each["_meta"][SUBSCRIPTION]: each["notifications"] for each in acknowledged}
    assert list(granted.values()) == [{"resourceSubscriptions": [f"book://{number}"]} for number in (1, 2)]
    assert update["uri"] == "book://2"
    assert granted[update["_meta"][SUBSCRIPTION]] == {"resourceSubscriptions": ["book://2"]}
    assert [each["_meta"][SUBSCRIPTION] for each in results] == [*granted]


async def test_client_disconnect_ends_its_upstream_subscription() -> None:
    program = Listening()
    async with Client(relay(program.server), revision="2026-07-28") as client:
        async with client.watch(tools=True), client.watch("book://1"):
            await program.wait_for(2)
        await program.wait_for(0)


async def test_stopping_a_relay_ends_its_upstream_subscriptions() -> None:
    program = Listening()
    gateway = relay(program.server)
    async with gateway.running():
        client = Client(gateway, revision="2026-07-28")
        async with client, client.watch(tools=True):
            await program.wait_for(1)
    await program.wait_for(0)


async def test_rejected_subscription_keeps_the_upstreams_message() -> None:
    async with Client(relay(Listening().server), revision="2026-07-28") as client:
        with pytest.raises(ServerError) as refused:
            await client.request(LISTEN, listening(promptsListChanged=True))
    assert (refused.value.code, refused.value.data) == (-32050, {"since": 1999})


async def test_relay_serves_more_subscriptions_than_an_upstream_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("millstream._gateway.upstreams.links.MAX_STREAMS", 2)
    program = MCPServer("shelf")

    @program.tool()
    async def grow(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
        await ctx.notify_tools_changed()
        return "grown"

    gateway = relay(program)
    async with Client(gateway, revision="2026-07-28") as client, AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(client.watch(tools=True)) for _ in range(4)]
        await client.call("grow")
        async with asyncio.timeout(WAIT):
            assert [(await anext(each)).kind for each in watches] == ["tools"] * 4


SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"


async def test_listed_tools_calls_and_results_pass_a_relay_unchanged() -> None:
    received: list[dict[str, Any]] = []
    about = {"ttlMs": 9, "cacheScope": "public", "resultType": "complete"}
    results: dict[str, dict[str, Any]] = {
        "server/discover": about | {"supportedVersions": [ERAS[1]], "capabilities": {"tools": {}}},
        "tools/list": about | {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]},
        "tools/call": {"resultType": "complete", "content": [], "com.example/n": 1, "_meta": {"com.example/a": [1]}},
    }

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "tools/call":
            received.append(asked.message["params"])
        if asked.method in results:
            await asked.result(results[asked.method])
        else:
            await asked.reply(b"", status="404 Not Found")

    async with asyncio.timeout(WAIT), misbehaving(behave) as server:
        gateway = relay(server.url)
        headers = {"mcp-protocol-version": ERAS[1], "mcp-method": "tools/call", "mcp-name": "echo"}
        meta = ENVELOPE | {"com.example/trace": {"id": 7}}
        params = [{"name": "echo", "arguments": {"a": 1}, "_meta": meta}, {"name": "echo", "n": 1, "_meta": meta}]
        async with gateway.running():
            replies = [await post(gateway, {"method": "tools/call", "params": each}, **headers) for each in params]
    for each in received:
        del each["_meta"]["millstream.gateway/path"]
    assert received == params
    assert [each.json()["result"] for each in replies] == [results["tools/call"]] * 2


async def test_handshake_in_a_request_of_the_newest_revision_does_not_reach_the_upstream() -> None:
    received: list[tuple[str, str | None]] = []

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method in ("initialize", "tools/call"):
            received.append((asked.method, asked.headers.get("mcp-session-id")))
        result = {"supportedVersions": [ERAS[1]], "capabilities": {"tools": {}}, "content": [], "tools": []}
        await asked.result(result, more="Mcp-Session-Id: 7\r\n")

    async with asyncio.timeout(WAIT), misbehaving(behave) as upstream:
        gateway = relay(upstream.url)
        async with gateway.running():
            replies: list[httpx2.Response] = []
            for method, name in (("tools/call", "x"), ("initialize", ""), ("tools/call", "y")):
                headers = {"mcp-protocol-version": ERAS[1], "mcp-method": method, "mcp-name": name}
                replies.append(
                    await post(gateway, {"method": method, "params": {"name": name, "_meta": ENVELOPE}}, **headers)
                )
    assert received == [("tools/call", None), ("tools/call", None)]
    assert [reply.status_code for reply in replies] == [200, 404, 200]


async def prompts_of_a_past_era(asked: ReceivedRequest) -> None:
    """Complete an argument that the list of prompts doesn't name."""
    if asked.method == "prompts/list":
        await asked.result({"prompts": [{"name": "greet"}]})
    elif asked.method == "completion/complete":
        await asked.result({"completion": {"values": [asked.message["params"]["argument"]["name"]]}})
    else:
        await asked.result({})


async def test_relay_between_eras_lists_and_completes_prompts_as_the_upstream_does() -> None:
    greeting = {**GREETING, "capabilities": {"prompts": {}, "completions": {}}}

    async def behave(asked: ReceivedRequest) -> None:
        await (asked.result(greeting) if asked.method == "initialize" else with_handshake(prompts_of_a_past_era)(asked))

    reference = {"type": "ref/prompt", "name": "greet"}
    async with misbehaving(behave) as upstream:
        for era in ERAS:
            async with Client(relay(upstream.url), revision=era, timeout=WAIT) as client:
                arguments = {"ref": reference, "argument": {"name": "tone", "value": ""}}
                found = await client.request("completion/complete", arguments)
                (prompt,) = (await client.request("prompts/list"))["prompts"]
            assert (found["completion"]["values"], prompt) == (["tone"], {"name": "greet"})


async def test_relay_between_eras_lists_unannounced_items() -> None:
    tools = ["one"]

    async def behave(asked: ReceivedRequest) -> None:
        listed = [{"name": name, "inputSchema": {"type": "object"}} for name in tools]
        await asked.result({"tools": listed} if asked.method == "tools/list" else {})

    async with misbehaving(with_handshake(behave)) as upstream:
        for era in ERAS:
            async with Client(relay(upstream.url), revision=era, timeout=WAIT) as client:
                assert await names(client) == tools
                tools.append(era)
                await listed(client, era)


async def test_relay_between_eras_forwards_unlisted_names() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        params = asked.message["params"]
        text = f"{params.get('name')} {json.dumps(params.get('arguments'))}"
        content = {"type": "text", "text": text}
        if asked.method == "tools/call":
            await asked.result({"content": [content]})
        elif asked.method == "prompts/get":
            await asked.result({"messages": [{"role": "user", "content": content}]})
        elif asked.method == "resources/read":
            await asked.result({"contents": [{"uri": params["uri"], "text": "read"}]})
        else:
            await asked.result({"tools": [], "prompts": []})

    announced: list[dict[str, Any]] = [{"tools": {}, "prompts": {}}, {"tools": {}}, {"completions": {}}]
    for era, other in (ERAS, ERAS[::-1]):
        for capabilities in announced:
            async with misbehaving(of_one_era(other, capabilities, behave)) as upstream:
                async with Client(relay(upstream.url, isolation="shared"), revision=era, timeout=WAIT) as client:
                    assert (await client.call("hidden", a=[1])).text == 'hidden {"a": [1]}'
                    prompt = await client.request("prompts/get", {"name": "hush", "arguments": {"b": "2"}})
                    read = await client.request("resources/read", {"uri": "book://1"})
                assert prompt["messages"][0]["content"]["text"] == 'hush {"b": "2"}'
                assert read["contents"] == [{"uri": "book://1", "text": "read"}]


@pytest.mark.parametrize(("era", "other"), [ERAS, ERAS[::-1]])
async def test_list_between_eras_that_has_not_changed_is_converted_once(era: str, other: str) -> None:
    tools: list[dict[str, Any]] = [{"name": f"tool_{number}", "inputSchema": {}} for number in range(1000)]

    async def behave(asked: ReceivedRequest) -> None:
        await asked.result({"tools": tools} if asked.method == "tools/list" else {})

    async with (
        misbehaving(of_one_era(other, {"tools": {}}, behave)) as upstream,
        Client(relay(upstream.url, isolation="shared"), revision=era, timeout=WAIT) as client,
    ):
        await listed(client, "tool_1")
        before = [await client.request("tools/list") for _ in range(2)][1]
        with count_calls() as calls:
            assert await client.request("tools/list") == before
        assert len(calls) < len(tools)
        tools[0]["description"] = "changed"
        (changed, *others) = (await client.request("tools/list"))["tools"]
        assert changed["description"] == "changed"
        assert others == before["tools"][1:]


@pytest.mark.parametrize("other", ERAS)
async def test_upstream_that_lists_nothing_but_answers_calls_is_ready(other: str) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        if asked.method.endswith("/list"):
            await asked.error(-32601, "The catalog is on holiday")
        else:
            await asked.result({"content": [{"type": "text", "text": "called"}]})

    for era in ERAS:
        async with misbehaving(of_one_era(other, {"tools": {}, "prompts": {}}, behave)) as upstream:
            gateway = relay(upstream.url, isolation="shared")
            async with gateway.running() as runtime, Client(gateway, revision=era, timeout=WAIT) as client:
                for method in ("tools/list", "prompts/list"):
                    with pytest.raises(ServerError, match="on holiday"):
                        await client.request(method)
                assert (await client.call("hidden")).text == "called"
                (report,) = runtime.host.gateway.describe()  # type: ignore[union-attr]
        assert (report["state"], report["reason"]) == ("ready", "")


@pytest.mark.parametrize("era", ERAS)
async def test_catalog_with_earlier_lists_is_ready_while_no_list_can_be_read(era: str, tmp_path: Path) -> None:
    works = True

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method.endswith("/list") and not works:
            await asked.error(-32601, "The catalog is on holiday")
        elif asked.method == "tools/list":
            await asked.result({"tools": [{"name": "go", "inputSchema": {"type": "object"}}]})
        elif asked.method.endswith("/list"):
            await asked.result({"prompts": []})
        else:
            await asked.result({"content": [{"type": "text", "text": "called"}]})

    async with misbehaving(of_one_era(era, {"tools": {}, "prompts": {}}, behave)) as upstream:
        for restarted in (False, True):
            gateway = Server("gateway", settings=Settings(store=f"sqlite:///{tmp_path}/gateway.db"))
            gateway.upstream("books", upstream.url, start_timeout=WAIT)
            async with gateway.running() as runtime, Client(gateway, timeout=WAIT) as client:
                books = runtime.host.gateway.upstreams["books"]  # type: ignore[union-attr]
                await books.lists.freshen()
                works = False
                await books.lists.freshen()
                assert (await client.call("books_go")).text == "called"
                assert books.lists.report_state() == ("ready", ""), restarted


async def test_log_does_not_call_an_upstream_unreachable_that_responds_with_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.error(-32601, "The catalog is on holiday")

    async with misbehaving(of_one_era(ERAS[0], {"tools": {}}, behave)) as upstream:
        gateway = Server("gateway")
        gateway.upstream("books", upstream.url, start_timeout=WAIT)
        async with gateway.running():
            pass
    assert "The upstream books responds with an error: The catalog is on holiday" in caplog.text
    assert "can't be reached" not in caplog.text


def of_one_era(era: str, capabilities: dict[str, Any], behave: Behave) -> Behave:
    """Greet clients of one era with these capabilities, refuse the other, and pass other requests to `behave`."""

    async def serve(asked: ReceivedRequest) -> None:
        greets = {"initialize": ERAS[0], "server/discover": ERAS[1]}.get(asked.method)
        if greets == era:
            declared = "+".join(asked.message["params"].get("capabilities", ())) or "nothing"
            more = f"Mcp-Session-Id: {declared}\r\n" if asked.method == "initialize" else ""
            await asked.result({**GREETING, **OFFER, "capabilities": capabilities}, more=more)
        elif greets:
            await asked.error(-32601, "Method not found")
        else:
            await with_handshake(behave)(asked)

    return serve


@pytest.mark.parametrize(("era", "other"), [ERAS, ERAS[::-1]])
async def test_relay_between_eras_announces_and_serves_the_same_features_as_the_upstream(era: str, other: str) -> None:
    theirs: dict[str, Any] = {"tools": {}, "prompts": {"listChanged": False}}

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "resources/read":
            await asked.error(-32601, "Method not found")
        else:
            await asked.result({"tools": [], "prompts": []})

    async with (
        misbehaving(of_one_era(other, theirs, behave)) as upstream,
        Client(relay(upstream.url, isolation="shared"), revision=era, timeout=WAIT) as client,
    ):
        assert {name: each for name, each in client.capabilities.items() if name != "experimental"} == theirs
        assert (await client.request("prompts/list"))["prompts"] == []
        for method, params in {
            "resources/read": {"uri": "book://1"},
            "resources/list": {},
            "completion/complete": {"ref": {"type": "ref/prompt", "name": "a"}, "argument": {"name": "b", "value": ""}},
            "com.example/other": {},
        }.items():
            with pytest.raises(ServerError) as caught:
                await client.request(method, params)
            assert caught.value.code == -32601, method


@pytest.mark.parametrize(("era", "other"), [ERAS, ERAS[::-1]])
async def test_relay_between_eras_lists_the_items_that_the_upstream_shows_to_such_a_client(
    era: str, other: str
) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        params = asked.message["params"]
        declared = [*params.get("_meta", {}).get("io.modelcontextprotocol/clientCapabilities", ())]
        declared = declared or asked.headers.get("mcp-session-id", "nothing").split("+")
        if asked.method == "tools/list" and "cursor" not in params:
            tool = {"name": "+".join(sorted(declared)), "inputSchema": {"type": "object"}}
            await asked.result({"tools": [tool], "nextCursor": "2"})
        elif asked.method == "tools/list":
            await asked.result({"tools": [{"name": f"page_{params['cursor']}"}]})
        else:
            await asked.result({"content": [{"type": "text", "text": params["name"]}]})

    async with misbehaving(of_one_era(other, {"tools": {}}, behave)) as upstream:
        gateway = relay(upstream.url, isolation="shared")
        async with (
            Client(gateway, revision=era, timeout=WAIT) as plain,
            Client(gateway, revision=era, timeout=WAIT, **ABLE) as able,
        ):
            for _ in range(2):
                assert await names(plain) == ["nothing", "page_2"]
                assert await names(able) == ["elicitation", "page_2"]
            assert (await able.call("elicitation")).text == "elicitation"


async def test_tool_call_in_a_session_passes_a_relay_byte_by_byte() -> None:
    received: list[dict[str, Any]] = []
    result = {"content": [], "com.example/n": 1, "_meta": {"com.example/a": [1]}}

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "tools/call":
            received.append(asked.message["params"])
            await asked.result(result)
        elif asked.method == "initialize":
            greeting = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "r"}}
            await asked.result(greeting, more="Mcp-Session-Id: 7\r\n")
        else:
            await asked.reply(b"", status="202 Accepted" if "notif" in asked.method else "405 Method Not Allowed")

    async with asyncio.timeout(WAIT), misbehaving(behave) as server:
        gateway = relay(server.url)
        trace = {"com.example/trace": {"id": 7}}
        params: list[dict[str, Any]] = [
            {"name": "unlisted", "arguments": {"_meta": {}, "big": 2**70}, "_meta": trace},
            {"name": "unlisted", "com.example/n": 1},
        ]
        async with gateway.running():
            headers = await open_session(gateway)
            replies = [await post(gateway, {"method": "tools/call", "params": each}, **headers) for each in params]
    for each, sent in zip(received, params, strict=True):
        del each["_meta"]["millstream.gateway/path"]
        assert {"_meta": {}, **sent} == each
    assert [each.json()["result"] for each in replies] == [result] * 2


async def test_result_that_is_not_an_object_arrives_unchanged() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        line = b'{"jsonrpc":"2.0","id":%d,"result":null}' % asked.message["id"]
        await (asked.reply(line) if asked.method == "tools/call" else asked.result({}))

    async with asyncio.timeout(WAIT), misbehaving(with_handshake(behave, "7")) as upstream:
        gateway = relay(upstream.url)
        async with gateway.running():
            reply = await post(gateway, calling("x"), **await open_session(gateway))
    assert reply.json() == {"jsonrpc": "2.0", "id": 1, "result": None}


async def test_relayed_tasks_are_found_by_their_caller() -> None:
    shop = Server("shop")

    @shop.tool(task="required")
    async def slow() -> str:
        return "done"

    async with asyncio.timeout(WAIT), Client(relay(shop), revision=ERAS[1]) as client:
        task = await client.tasks.start("slow")
        assert (await client.tasks.get(task.task_id)).task_id == task.task_id
        assert (await client.tasks.wait(task)).text == "done"


async def test_client_without_tasks_gets_the_replies_of_a_program_with_tasks() -> None:
    shop = Server("shop")

    @shop.tool(task="required")
    async def slow() -> str:
        return "done"

    @shop.tool(task="allowed")
    async def stock(isbn: str) -> str:
        if isbn != "978":
            raise ProtocolError(-32603, "The warehouse is closed.", {"until": 9})
        return "7"

    calls: list[dict[str, Any]] = [
        {"name": "slow"}, {"name": "missing"}, {"name": "stock", "arguments": {"isbn": "978"}},
        {"name": "stock", "arguments": {"isbn": "979"}}, {"name": "stock"},
    ]  # fmt: skip
    gateway = relay(shop)
    async with shop.running(), gateway.running():
        for params in calls:
            headers = {"mcp-protocol-version": ERAS[1], "mcp-method": "tools/call", "mcp-name": params["name"]}
            message = {"method": "tools/call", "params": {**params, "_meta": ENVELOPE}}
            alone, through = [await post(server, message, **headers) for server in (shop, gateway)]
            assert through.json() == alone.json()


async def test_relay_rejects_a_header_for_another_tool() -> None:
    gateway = relay(Cart())
    headers = {"mcp-protocol-version": ERAS[1], "mcp-method": "tools/call", "mcp-name": "put"}
    async with gateway.running():
        call = {"method": "tools/call", "params": {"name": "take", "arguments": {}, "_meta": ENVELOPE}}
        assert (await post(gateway, call, **headers)).json()["error"]["code"] == -32020
        assert (await post(gateway, call, **headers | {"mcp-name": "take"})).status_code == 200


async def test_server_tool_timeout_ends_relayed_calls() -> None:
    program = MCPServer("slow")

    @program.tool()
    async def wait() -> str:  # pyright: ignore[reportUnusedFunction]
        await asyncio.Event().wait()
        return ""

    gateway = Server("gateway", settings=Settings(tool_timeout=0.05))
    gateway.upstream("only", program, prefix="")
    for era in ERAS:
        async with asyncio.timeout(WAIT), Client(gateway, revision=era) as client:
            with pytest.raises(ToolFailed, match="didn't finish"):
                await client.call("wait")
