"""A single upstream with a policy: what the policy doesn't change passes as in a relay, and nothing gets around it."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from client.misbehaving_servers import GREETING, OFFER, MisbehavingServer, ReceivedRequest, misbehaving
from millstream import Client, Server
from millstream.client import ClientError, ServerError, ToolFailed
from millstream.gateway import ResourcePolicy, ToolPolicy, UpstreamPolicy
from patience import WAIT

REVISIONS = ("2025-06-18", "2025-11-25", "2026-07-28")
ITEMS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "tools/list": ("tools", [{"name": name, "inputSchema": {"type": "object"}} for name in ("read", "delete_all")]),
    "prompts/list": ("prompts", [{"name": name} for name in ("greet", "secret_plan")]),
    "resources/list": ("resources", [{"uri": uri, "name": uri} for uri in ("doc://a", "secret://plan")]),
    "resources/templates/list": ("resourceTemplates", []),
}
CAPABILITIES = {"tools": {}, "prompts": {}, "resources": {"subscribe": True}, "completions": {}, "logging": {}}
COMPLETE = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
RESULTS: dict[str, dict[str, Any]] = {
    "tools/call": {"content": [{"type": "text", "text": "done"}]},
    "prompts/get": {"messages": []},
    "resources/read": {"contents": [{"uri": "doc://a", "text": "a"}]},
    "completion/complete": {"completion": {"values": ["x"]}},
}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a method that isn't a list."""
    if method == "initialize":
        return GREETING | {"capabilities": CAPABILITIES, "protocolVersion": params["protocolVersion"]}
    if method == "server/discover":
        return OFFER | {"capabilities": CAPABILITIES}
    return COMPLETE | RESULTS.get(method, {"asked": method})


@asynccontextmanager
async def upstream(without: str = "") -> AsyncGenerator[MisbehavingServer]:
    """Run a server that has two pages of each list, leaving out items that contain a text, and answers every request,
    also for names that it doesn't list.
    """

    async def behave(asked: ReceivedRequest) -> None:
        method, params = asked.method, asked.message.get("params", {})
        if "id" not in asked.message:
            await asked.reply(b"", status="202 Accepted" if asked.body else "405 Method Not Allowed")
            return
        if method in ITEMS:
            member, items = ITEMS[method]
            page = int(params.get("cursor", "page 0").removeprefix("page "))
            listed = [each for each in items[page : page + 1] if not without or without not in json.dumps(each)]
            result = COMPLETE | {member: listed} | ({"nextCursor": "page 1"} if not page else {})
        else:
            result = answer(method, params)
        await asked.result(result)

    async with misbehaving(behave) as world:
        yield world


def gateway(url: str, **rules: Any) -> Server:
    server = Server("gateway")
    server.upstream("only", url, prefix="", policy=UpstreamPolicy(**rules), isolation="shared")
    return server


def forwarded(world: MisbehavingServer, method: str) -> list[dict[str, Any]]:
    return [each.message["params"] for each in world.requests if each.method == method]


@pytest.mark.parametrize("revision", REVISIONS)
async def test_what_a_policy_does_not_match_passes_as_in_a_relay(revision: str) -> None:
    async with upstream() as world, Client(gateway(world.url, deny=("never_*",)), revision=revision) as client:
        page = await client.request("tools/list", {"cursor": "page 1"})
        assert [each["name"] for each in page["tools"]] == ["delete_all"]  # the upstream's own cursor
        assert (await client.call("unlisted")).text == "done"
        assert (await client.request("acme/search", {"q": 1}))["asked"] == "acme/search"
        completed = await client.request(
            "completion/complete", {"ref": {"type": "ref/prompt", "name": "x"}, "argument": {"name": "a", "value": ""}}
        )
        assert completed["completion"]["values"] == ["x"]


async def test_extensions_pass_unless_a_request_could_be_about_a_changed_item() -> None:
    everything = {"allow": ("read", "delete_all", "greet", "secret_plan", "doc://a", "secret://plan")}
    template: dict[str, Any] = {"resources": {"never://{x}": ResourcePolicy(title="Never")}}
    without_resources = "://"
    for rules, left_out, passes in (
        (everything, "", False),
        (template, "", False),
        (template, without_resources, True),
        ({"tools": {"never_*": ToolPolicy(title="Never")}}, "", True),
    ):
        async with upstream(left_out) as world, Client(gateway(world.url, **rules)) as client:
            if passes:
                assert (await client.request("acme/search", {"q": 1}))["asked"] == "acme/search", rules
            else:
                with pytest.raises(ServerError, match="Method not found"):
                    await client.request("acme/search", {"q": 1})
                assert not forwarded(world, "acme/search"), rules


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "unlisted"])
async def test_no_spelling_of_a_request_reaches_what_a_policy_denies(revision: str, *, listed: bool) -> None:
    arguments: dict[str, Any] = {"arguments": {}}
    reference = {"type": "ref/prompt", "name": "secret_plan"}
    argument = {"argument": {"name": "a", "value": ""}}
    attempts: list[tuple[str, Any]] = [
        ("tools/call", {"name": "delete_all"} | arguments),
        ("tools/call", {"name": "read", "Name": "delete_all"} | arguments),
        ("tools/call", {"Name": "delete_all"} | arguments),
        ("tools/call", {"name": "read", "NAME": "delete_all"} | arguments),
        ("prompts/get", {"name": "secret_plan"}),
        ("prompts/get", {"name": "greet", "namE": "secret_plan"}),
        ("resources/read", {"uri": "secret://plan"}),
        ("resources/read", {"uri": "secret://plan?"}),
        ("resources/read", {"uri": "secret://x/../plan"}),
        ("resources/read", {"uri": "%73ecret://plan"}),
        ("resources/read", {"uri": "doc://a", "Uri": "secret://plan"}),
        ("completion/complete", {"ref": reference} | argument),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "greet", "Name": "secret_plan"}} | argument),
        ("completion/complete", {"ref": {"type": "ref/resource", "uri": "secret://plan"}} | argument),
    ]
    if revision != "2026-07-28":
        attempts += [
            ("resources/subscribe", {"uri": "secret://plan"}),
            ("resources/unsubscribe", {"uri": "secret://plan"}),
        ]
    rules: dict[str, Any] = {"deny": ("delete_*", "secret*")}
    left_out = "" if listed else "e"
    async with upstream(left_out) as world, Client(gateway(world.url, **rules), revision=revision) as client:
        for method, params in attempts:
            with suppress(ClientError):  # with two names, a request may be about the one that's allowed
                await client.request(method, params)
        for method in ("tools/call", "prompts/get", "resources/read", "completion/complete", "resources/subscribe"):
            sent = json.dumps(forwarded(world, method)).casefold()
            assert "delete" not in sent, sent
            assert "secret" not in sent, sent


async def test_denied_names_stay_denied_while_the_upstream_is_unreachable() -> None:
    server = gateway("http://127.0.0.1:9/mcp", deny=("delete_*",))
    async with Client(server, revision="2025-11-25") as client:
        with pytest.raises(ClientError):
            await client.call("delete_all")


@pytest.mark.parametrize("revision", REVISIONS)
async def test_changed_items_of_a_list_are_served_as_the_policy_changes_them(revision: str) -> None:
    policy = {"tools": {"delete_all": ToolPolicy(name="wipe", description="Wipe.")}, "deny": ("secret*",)}
    async with upstream() as world, Client(gateway(world.url, **policy), revision=revision) as client:
        tools = {tool.name: tool.description async for tool in client.tools()}
        assert tools == {"read": None, "wipe": "Wipe."}
        assert [each.name async for each in client.prompts()] == ["greet"]
        assert [each.uri async for each in client.resources()] == ["doc://a"]
        assert (await client.call("wipe")).text == "done"
        assert forwarded(world, "tools/call")[-1]["name"] == "delete_all"
        with pytest.raises((ServerError, ToolFailed)):
            await client.call("delete_all")
        with pytest.raises(ServerError, match="not found"):
            await client.request("acme/delete", {})  # could be about anything


@pytest.mark.parametrize("revision", REVISIONS)
async def test_list_that_gains_a_denied_item_shows_it_to_nobody(revision: str) -> None:
    """Between two readings of the lists, a page already has the item."""
    grown = asyncio.Event()

    async def behave(asked: ReceivedRequest) -> None:
        if "id" not in asked.message:
            await asked.reply(b"", status="202 Accepted" if asked.body else "405 Method Not Allowed")
        elif asked.method == "tools/list":
            names = ["read", *(["delete_all"] if grown.is_set() else [])]
            tools = [{"name": name, "inputSchema": {"type": "object"}} for name in names]
            await asked.result(COMPLETE | {"tools": tools, "ttlMs": 3_600_000})
        else:
            await asked.result(answer(asked.method, asked.message["params"]))

    async with misbehaving(behave) as world, Client(gateway(world.url, deny=("delete*",)), revision=revision) as client:
        assert [tool.name async for tool in client.tools()] == ["read"]
        grown.set()
        async with asyncio.timeout(WAIT):
            for _ in range(3):
                assert [tool.name async for tool in client.tools(fresh=True)] == ["read"]


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({"limit": "10/minute"}, "has rules for every item"),
        ({"redact_results": ("x",)}, "redacts text"),
        ({"questions": ()}, "limits questions"),
        ({"tools": {"a": ToolPolicy(redact_arguments=("x",))}}, "redacts text"),
    ],
)
async def test_policy_that_changes_every_item_is_named_as_the_reason_for_a_catalog(
    rules: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "millstream.gateway")
    async with upstream() as world, Client(gateway(world.url, **rules)):
        assert f"because the upstream's policy {why}" in caplog.text


async def test_allowlist_keeps_unknown_names_and_methods_out() -> None:
    async with (
        upstream() as world,
        Client(gateway(world.url, allow=("read", "doc://*")), revision="2025-11-25") as client,
    ):
        assert (await client.call("read")).text == "done"
        for method, params in (("tools/call", {"name": "unlisted", "arguments": {}}), ("acme/search", {})):
            with pytest.raises(ClientError):
                await client.request(method, params)
        assert [each["name"] for each in forwarded(world, "tools/call")] == ["read"]
        assert not forwarded(world, "acme/search")


@pytest.mark.parametrize("revision", REVISIONS[:2])
@pytest.mark.parametrize("denied", [False, True])
async def test_updates_of_denied_resources_do_not_reach_a_session(revision: str, *, denied: bool) -> None:
    """Some upstreams announce updates that nobody has subscribed to."""
    program, updates = MCPServer("books"), list[str]()

    @program.tool()
    async def touch(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
        await ctx.session.send_resource_updated("book://1")
        return "touched"

    server = Server("gateway")
    server.upstream("only", program, prefix="", policy=UpstreamPolicy(deny=("book://*",) if denied else ("never",)))

    async with Client(server, revision=revision, on_change=lambda each: updates.append(each.uri)) as client:
        await client.call("touch")
        await client.call("touch")  # what the first one announced arrives before its result
    assert set(updates) == (set() if denied else {"book://1"})


@pytest.mark.parametrize("revision", REVISIONS[:2])
@pytest.mark.parametrize("denied", [False, True])
async def test_notifications_that_could_be_about_a_changed_item_do_not_pass(revision: str, *, denied: bool) -> None:
    rules = {"deny": ("delete_*" if denied else "never_*",)}
    async with upstream() as world, Client(gateway(world.url, **rules), revision=revision) as client:
        await client.call("read")
        conversation = client.conversation
        await conversation.requests.notify(conversation.transport, "acme/delete", {"name": "delete_all"})
        async with asyncio.timeout(WAIT):
            while not denied and not forwarded(world, "acme/delete"):
                await client.call("read")
        for _ in range(3):  # what has arrived before would be there by now
            await client.call("read")
    assert bool(forwarded(world, "acme/delete")) is not denied
