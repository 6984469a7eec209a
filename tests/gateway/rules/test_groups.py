"""Interns read, staff write, deleting asks, and finance sees its own: one upstream for four kinds of people."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from auth_world import GuardedServer, run_guarded
from cases import for_each
from issuer_world import AUDIENCE, ISSUER, claims, key_set, token
from millstream import Client, Server, Settings, auth
from millstream.gateway import GroupPolicy, OpenApi, ToolPolicy, UpstreamPolicy
from patience import WAIT
from wire import Json

INTERN, STAFF = token(claims(sub="ian", groups=["interns"])), token(claims(sub="sue", groups=["staff"]))
FINANCE = token(claims(sub="fay", groups=["finance"]))
BOTH = token(claims(sub="bea", groups=["interns", "finance"]))
NONE = token(claims(sub="nat", groups=None))
RULES = UpstreamPolicy(
    groups={
        "interns": GroupPolicy(read_only=True, deny=("*ledger*", "*pay*", "book://private/*")),
        "staff": GroupPolicy(deny=("*ledger*", "*pay*", "book://ledger/*")),
        "finance": GroupPolicy(allow=("*ledger*", "*pay*")),
    },
    tools={"*delete*": ToolPolicy(approve=True), "find": ToolPolicy(annotations={"readOnlyHint": True})},
)


def make_office() -> tuple[Server, list[str]]:
    """Return an upstream, and the tools that were called."""
    mcp, calls = Server("office"), list[str]()

    def add(name: str, **hints: bool) -> None:
        def tool() -> str:
            calls.append(name)
            return f"done {name}"

        mcp.tool(tool, name=name, annotations=hints)

    add("find")
    add("claims_to_read", readOnlyHint=True)
    add("write", readOnlyHint=False)
    add("delete", destructiveHint=True)
    add("pay")
    add("show_ledger", readOnlyHint=True)

    @mcp.prompt
    def about(shelf: str) -> str:
        """About a shelf."""
        return f"About {shelf}"

    @mcp.prompt
    def pay_slip(month: str) -> str:
        """A pay slip."""
        return f"Slip {month}"

    @mcp.complete("pay_slip", argument="month")
    def months(value: str, arguments: dict[str, str]) -> list[str]:
        """Suggest months."""
        return ["SECRET-MONTH"]

    @mcp.resource("book://{shelf}/{title}")
    def book(shelf: str, title: str) -> str:
        """A book."""
        return f"{shelf} {title}"

    @mcp.resource("book://ledger/2026")
    def ledger() -> str:
        """The ledger."""
        return "the ledger"

    return mcp, calls


@asynccontextmanager
async def running(
    policy: UpstreamPolicy = RULES, prefix: str = "office", second: bool = False, **settings: Any
) -> AsyncIterator[tuple[GuardedServer, list[str], Server]]:
    """Run a gateway to the office."""
    office, calls = make_office()
    method = auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set())
    front = Server("front", auth=method, serve="all", settings=Settings(**settings))
    front.upstream("office", office, policy=policy, prefix=prefix, start_timeout=WAIT)
    if second:
        front.upstream("other", make_office()[0], policy=policy, start_timeout=WAIT)
    async with run_guarded(front) as world:
        yield world, calls, office


async def listed(world: GuardedServer, key: str, method: str = "tools/list", member: str = "tools") -> set[str]:
    reply = await world.modern(key, method)
    return {each.get("name", each.get("uri")) for each in reply.message["result"][member]}


@for_each("prefix", ["office", ""])
@for_each("second", [False, True])
async def test_each_group_sees_its_own_tools(prefix: str, second: bool) -> None:
    async with running(prefix=prefix, second=second) as (world, _, _):
        start = f"{prefix}_" if prefix else ""
        for key, names in (
            (INTERN, {"find"}),
            (STAFF, {"find", "claims_to_read", "write", "delete"}),
            (FINANCE, {"pay", "show_ledger"}),
            (BOTH, {"find", "pay", "show_ledger"}),
            (NONE, set[str]()),
        ):
            found = {each for each in await listed(world, key) if not each.startswith("other_")}
            assert found == {f"{start}{name}" for name in names}
            prompts = {each for each in await listed(world, key, "prompts/list", "prompts") if "other_" not in each}
            about = {f"{start}about"} if key in (INTERN, STAFF, BOTH) else set[str]()
            assert prompts == about | ({f"{start}pay_slip"} if key in (FINANCE, BOTH) else set[str]())


async def test_other_ways_lead_to_the_same_rules() -> None:
    async with running() as (world, calls, _):
        for tool in ("write", "delete", "pay", "claims_to_read", "show_ledger"):
            for name in (f"office_{tool}", tool, f"office_{tool.upper()}", f"office__{tool}", f"OFFICE_{tool}"):
                session = await world.initialize(INTERN)
                body = json.dumps({"name": name, "arguments": {}}).encode()
                json_type = {"content_type": "application/json"}
                replies = [
                    await world.call(INTERN, name),
                    await world.post(
                        INTERN,
                        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name}},
                        mcp_session_id=session,
                    ),
                    await world.ask(INTERN, "POST", f"/tools/{name}", b"{}", **json_type),
                    await world.ask(INTERN, "POST", "/mcp/tools/call", body, **json_type),
                ]
                for reply in replies:
                    assert b"done" not in reply.body, (name, reply)
        assert calls == []
        assert b"office_write" not in (await world.ask(INTERN, "GET", "/openapi.json")).body
        listing = await world.ask(INTERN, "POST", "/mcp/tools/list", b"{}", content_type="application/json")
        assert b"office_find" in listing.body
        assert b"office_write" not in listing.body


async def test_resources_prompts_and_completions_follow_the_groups() -> None:
    async with running() as (world, _, _):
        for key, uri, allowed in (
            (INTERN, "book://office/open/dune", True),
            (INTERN, "book://office/private/dune", False),
            (INTERN, "book://office/%70rivate/dune", False),
            (INTERN, "BOOK://office/private/dune", False),
            (INTERN, "book://office/open/../private/dune", False),
            (INTERN, "book://office/ledger/2026", False),
            (STAFF, "book://office/private/dune", True),
            (STAFF, "book://office/ledger/2026", False),
            (STAFF, "book://office/ledger/2025", False),
            (FINANCE, "book://office/ledger/2026", True),
            (FINANCE, "book://office/ledger/2025", True),
            (FINANCE, "book://office/open/dune", False),
            (BOTH, "book://office/ledger/2025", True),
            (BOTH, "book://office/private/dune", False),
            (NONE, "book://office/open/dune", False),
        ):
            reply = await world.modern(key, "resources/read", {"uri": uri}, uri)
            assert ("result" in reply.message) is allowed, (uri, reply.message)
        for key, allowed in ((FINANCE, True), (INTERN, False), (STAFF, False), (NONE, False)):
            got = await world.modern(
                key, "prompts/get", {"name": "office_pay_slip", "arguments": {"month": "1"}}, "office_pay_slip"
            )
            assert ("result" in got.message) is allowed
            reference = {"type": "ref/prompt", "name": "office_pay_slip"}
            asked = {"ref": reference, "argument": {"name": "month", "value": ""}}
            assert (b"SECRET-MONTH" in (await world.modern(key, "completion/complete", asked)).body) is allowed
        for key, allowed in ((FINANCE, True), (INTERN, False)):
            session = await world.initialize(key)
            body: Json = {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "resources/subscribe",
                "params": {"uri": "book://office/ledger/2026"},
            }
            assert ("result" in (await world.post(key, body, mcp_session_id=session)).message) is allowed


async def test_tool_search_finds_what_a_group_sees() -> None:
    async with running(tool_search=True) as (world, calls, _):
        for key, sees in ((INTERN, False), (STAFF, True), (FINANCE, False)):
            reply = await world.call(key, "search_tools", {"query": "write"})
            assert (b"office_write" in reply.body) is sees
            called = await world.call(key, "call_tool", {"name": "office_write", "arguments": {}})
            assert (b"done write" in called.body) is sees
        assert calls == ["write"]


async def test_deleting_asks_staff_and_stays_unknown_to_others() -> None:
    async with running() as (world, calls, _):
        asked = (await world.call(STAFF, "office_delete")).message["result"]
        (key,) = asked["inputRequests"]
        then = {"inputResponses": {key: {"action": "accept"}}, "requestState": asked["requestState"]}
        for other in (INTERN, FINANCE, BOTH):
            assert "Unknown tool" in str((await world.call(other, "office_delete", **then)).message)
        assert calls == []
        assert b"done delete" in (await world.call(STAFF, "office_delete", **then)).body
        rest = await world.ask(STAFF, "POST", "/tools/office_delete", b"{}", content_type="application/json")
        assert rest.status == 409
        assert calls == ["delete"]


async def test_new_tools_follow_the_default_of_each_group() -> None:
    async with running() as (world, calls, office):
        await listed(world, STAFF)
        office.tool(lambda: calls.append("new") or "done new", name="new", annotations={"readOnlyHint": True})
        for _ in range(100):
            if "office_new" in await listed(world, STAFF):
                break
        assert "office_new" in await listed(world, STAFF)
        for key in (INTERN, FINANCE, NONE):
            assert "office_new" not in await listed(world, key)
            assert b"done" not in (await world.call(key, "office_new")).body
        assert calls == []


async def test_updates_of_resources_reach_only_who_can_read_them() -> None:
    async with running() as (world, _, office):
        secret, public = "book://office/ledger/2025", "book://office/open/dune"
        url = f"http://127.0.0.1:{world.running.port}/mcp"
        for revision in ("2025-11-25", "2026-07-28"):
            for key, sees in ((INTERN, [public]), (FINANCE, [secret])):
                async with Client(
                    url, headers={"authorization": f"Bearer {key}"}, timeout=WAIT, revision=revision
                ) as client:
                    wanted = [secret, public] if revision == "2026-07-28" else sees
                    async with client.watch(*wanted) as changes, asyncio.timeout(WAIT):
                        for _ in range(2):
                            await office.resource_updated("book://ledger/2025")
                            await office.resource_updated("book://open/dune")
                            assert [(await anext(changes)).uri] == sees


async def names_for(key: str, front: Server) -> set[str]:
    async with run_guarded(front) as world:
        return await listed(world, key)


def make_front(target: Any = None, **options: Any) -> Server:
    front = Server("front", auth=auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set()))
    front.upstream("office", target, prefix="", start_timeout=WAIT, **options)
    return front


async def test_hints_count_if_the_operator_stands_behind_them(tmp_path: Path) -> None:
    groups = {"interns": GroupPolicy(read_only=True)}
    own = {"claims_to_read", "show_ledger"}
    office, _ = make_office()
    for policy, trust, seen in (
        (UpstreamPolicy(groups=groups), "", set[str]()),
        (UpstreamPolicy(groups=groups), "pin", set[str]()),
        (UpstreamPolicy(groups=groups, pins=str(tmp_path / "gateway.lock")), "pin", set[str]()),
        (UpstreamPolicy(groups=groups, trust_hints=True), "", own),
        (UpstreamPolicy(groups=groups, shared=UpstreamPolicy(trust_hints=True)), "", own),
        (UpstreamPolicy(groups=groups, tools={"pay": ToolPolicy(annotations={"readOnlyHint": True})}), "", {"pay"}),
    ):
        options: Json = {"trust": trust} if trust else {}
        assert await names_for(INTERN, make_front(office, policy=policy, **options)) == seen


async def test_operations_of_an_api_have_the_hints_of_their_methods() -> None:
    methods = ("get", "head", "post", "put", "patch", "delete")
    paths = {"/book": {each: {"operationId": each, "responses": {}} for each in methods}}
    document = {"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": paths}
    document["servers"] = [{"url": "http://127.0.0.1:1"}]
    changed = {
        "get": ToolPolicy(annotations={"readOnlyHint": False}),
        "put": ToolPolicy(annotations={"readOnlyHint": True}),
    }
    for trusted, seen in ((True, {"head", "put"}), (False, {"put"})):
        policy = UpstreamPolicy(
            groups={"interns": GroupPolicy(read_only=True), "staff": GroupPolicy()}, trust_hints=trusted, tools=changed
        )
        front = make_front(openapi=OpenApi(document=document), policy=policy)
        async with run_guarded(front) as world:
            reply = await world.modern(STAFF, "tools/list")
            hints = {each["name"]: each["annotations"] for each in reply.message["result"]["tools"]}
            assert await listed(world, INTERN) == seen
        assert hints["head"] == {"readOnlyHint": True}
        assert hints["get"] == {"readOnlyHint": False}
        assert hints["post"] == hints["patch"] == {"readOnlyHint": False, "idempotentHint": False}
        assert hints["put"] == {"readOnlyHint": True, "idempotentHint": True}
        assert hints["delete"] == {"readOnlyHint": False, "idempotentHint": True, "destructiveHint": True}


async def test_everyone_who_signs_in_is_a_group() -> None:
    office, _ = make_office()
    policy = UpstreamPolicy(
        groups={"*": GroupPolicy(allow=("find",)), "staff": GroupPolicy()}, shared=UpstreamPolicy(deny=("pay",))
    )
    front = make_front(office, policy=policy)
    async with run_guarded(front) as world:
        assert await listed(world, NONE) == {"find"}
        assert await listed(world, FINANCE) == {"find"}
        assert "write" in await listed(world, STAFF)
        assert "pay" not in await listed(world, STAFF)
    open_front = Server("open")
    open_front.upstream("office", office, prefix="", policy=policy, start_timeout=WAIT)
    async with Client(open_front, timeout=WAIT) as client:
        assert await client.tools() == []


async def test_allowed_uris_are_allowed_in_each_spelling() -> None:
    mcp = Server("office")

    @mcp.resource("book://shelf/{path*}")
    def book(path: str) -> str:
        """A book."""
        return f"read {path}"

    group = UpstreamPolicy(groups={"interns": GroupPolicy(allow=("book://shelf/public/*", "book://shelf/{path*}"))})
    for policy in (group, UpstreamPolicy(allow=("book://shelf/public/*", "book://shelf/{path*}"))):
        async with run_guarded(make_front(mcp, policy=policy)) as world:
            for path, allowed in (
                ("public/a", True),
                ("public/..%2fprivate/a", False),
                ("public/%2e%2e/private/a", False),
                ("public%2f..%2fprivate/a", False),
                ("public/..%255cprivate/a", False),
                ("private/a", False),
            ):
                reply = await world.modern(
                    INTERN, "resources/read", {"uri": f"book://shelf/{path}"}, f"book://shelf/{path}"
                )
                assert ("result" in reply.message) is allowed, (path, reply.message)
