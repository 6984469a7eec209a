# pyright: strict
# mypy: disallow-any-generics, disallow-untyped-calls, disallow-untyped-defs, disallow-untyped-decorators
# mypy: warn-return-any, warn-unused-ignores, no-implicit-reexport, strict-equality
"""Types of the attributes of clients, and of what contexts return. Type checkers find no mistake.

`test_type_mistakes.py` reads it and requires a line for each public name of a client.
"""

from collections.abc import Mapping
from typing import Any, assert_type

from millstream import Context, ResourceContents, SampleResult, Server, SyncContext
from millstream.client import (
    BlockingClient,
    Changes,
    Client,
    ClientEvents,
    ClientTasks,
    PaginatedList,
    Result,
    ServerInfo,
)
from millstream.hub import Event, HubStats, Member, MemberList, PublishResult
from millstream.protocol import (
    Completion,
    GetPromptResult,
    PromptDescription,
    ResourceDescription,
    Skill,
    TemplateDescription,
    ToolDescription,
)
from millstream.testing import TestClient, connect


async def use_client(client: Client, skill: Skill) -> None:
    async with client as same:
        assert_type(same, Client)
    async with connect(Server("shop")) as connected:
        assert_type(connected, TestClient)
    assert_type(client.server, ServerInfo)
    assert_type(client.revision, str)
    assert_type(client.capabilities, Mapping[str, Any])
    assert_type(client.server_extensions, Mapping[str, Any])
    assert_type(client.instructions, str)
    assert_type(client.transport, str)
    assert_type(await client.call("add", a=1), Result)
    assert_type(await client.call("add", {"a": 1}, result_type=None), Result)
    assert_type(await client.call("add", a=1, result_type=int), int)
    assert_type(await client.call("add", a=1, result_type=dict[str, int]), dict[str, int])
    assert_type(client.tools(), PaginatedList[ToolDescription])
    assert_type(await client.tools(), list[ToolDescription])
    async for tool in client.tools(fresh=True):
        assert_type(tool, ToolDescription)
    assert_type(await client.resources(), list[ResourceDescription])
    assert_type(await client.templates(), list[TemplateDescription])
    assert_type(await client.prompts(), list[PromptDescription])
    assert_type(await client.read("shop://about"), list[ResourceContents])
    assert_type(await client.prompt("review", title="a"), GetPromptResult)
    assert_type(await client.complete("title", "a", prompt="review"), Completion)
    assert_type(await client.skills(), list[Skill])
    assert_type(await client.skill("skill://a/SKILL.md"), Skill)
    assert_type(await client.read_skill(skill), bytes)
    assert_type(client.tasks, ClientTasks)
    assert_type(client.events, ClientEvents)
    assert_type(await client.request("tools/list"), dict[str, Any])
    assert_type(await client.notify("com.example/sold"), None)
    assert_type(await client.ping(timeout=3), None)
    assert_type(await client.set_log_level("debug"), None)
    assert_type(await client.roots_changed(), None)
    assert_type(client.watch("shop://stock"), Changes)
    assert_type(await client.call_tool("add", {"a": 1}), Result)
    assert_type(await client.list_tools(), list[ToolDescription])
    assert_type(await client.list_resources(), list[ResourceDescription])
    assert_type(await client.list_resource_templates(), list[TemplateDescription])
    assert_type(await client.list_prompts(), list[PromptDescription])
    assert_type(await client.read_resource("shop://about"), list[ResourceContents])
    assert_type(await client.get_prompt("review", {"title": "a"}), GetPromptResult)


def use_blocking_client(client: BlockingClient, skill: Skill) -> None:
    with client as same:
        assert_type(same, BlockingClient)
    assert_type(client.server, ServerInfo)
    assert_type(client.revision, str)
    assert_type(client.capabilities, Mapping[str, Any])
    assert_type(client.server_extensions, Mapping[str, Any])
    assert_type(client.instructions, str)
    assert_type(client.transport, str)
    assert_type(client.call("add", a=1), Result)
    assert_type(client.call("add", {"a": 1}, result_type=None), Result)
    assert_type(client.call("add", a=1, result_type=int), int)
    assert_type(client.call("add", a=1, result_type=dict[str, int]), dict[str, int])
    for tool in client.tools(fresh=True):
        assert_type(tool, ToolDescription)
    assert_type(client.tools(), list[ToolDescription])
    assert_type(client.resources(), list[ResourceDescription])
    assert_type(client.templates(), list[TemplateDescription])
    assert_type(client.prompts(), list[PromptDescription])
    assert_type(client.read("shop://about"), list[ResourceContents])
    assert_type(client.prompt("review", title="a"), GetPromptResult)
    assert_type(client.complete("title", "a", prompt="review"), Completion)
    assert_type(client.skills(), list[Skill])
    assert_type(client.skill("skill://a/SKILL.md"), Skill)
    assert_type(client.read_skill(skill), bytes)
    assert_type(client.request("tools/list"), dict[str, Any])
    assert_type(client.notify("com.example/sold"), None)
    assert_type(client.ping(timeout=3), None)
    assert_type(client.set_log_level("debug"), None)
    assert_type(client.roots_changed(), None)
    assert_type(client.call_tool("add", {"a": 1}), Result)
    assert_type(client.list_tools(), list[ToolDescription])
    assert_type(client.list_resources(), list[ResourceDescription])
    assert_type(client.list_resource_templates(), list[TemplateDescription])
    assert_type(client.list_prompts(), list[PromptDescription])
    assert_type(client.read_resource("shop://about"), list[ResourceContents])
    assert_type(client.get_prompt("review", {"title": "a"}), GetPromptResult)


async def use_context(ctx: Context) -> None:
    assert_type(await ctx.hub.publish("news", "a"), PublishResult)
    assert_type(await ctx.hub.send("ada", "a"), PublishResult)
    assert_type(await ctx.hub.presence("news"), list[Member])
    assert_type(await ctx.hub.members("news"), MemberList)
    assert_type(await ctx.hub.history("news"), list[Event])
    assert_type(ctx.hub.stats(), HubStats)
    assert_type(await ctx.elicit("Where to?", str), str)
    assert_type(await ctx.elicit("Where to?", {"type": "object"}), dict[str, Any])
    assert_type(await ctx.sample("Say hello"), SampleResult)
    assert_type(await ctx.once("order", lambda: 5), int)
    assert_type(await ctx.progress(1), None)


def use_sync_context(ctx: SyncContext) -> None:
    assert_type(ctx.hub.publish("news", "a"), PublishResult)
    assert_type(ctx.hub.send("ada", "a"), PublishResult)
    assert_type(ctx.hub.presence("news"), list[Member])
    assert_type(ctx.hub.members("news"), MemberList)
    assert_type(ctx.hub.history("news"), list[Event])
    assert_type(ctx.hub.stats(), HubStats)
    assert_type(ctx.elicit("Where to?", str), str)
    assert_type(ctx.elicit("Where to?", {"type": "object"}), dict[str, Any])
    assert_type(ctx.sample("Say hello"), SampleResult)
    assert_type(ctx.once("order", lambda: 5), int)
    assert_type(ctx.progress(1), None)
