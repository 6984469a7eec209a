"""Sets: choices of a server's items, each at an address of its own, as their clients see them."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from auth_world import ALICE, BOB, make_key_auth, run_guarded
from http_peer import serve
from millstream import Client, Context, Server, Settings
from millstream.client import ClientError, ServerError
from millstream.gateway import PromptPolicy, ResourcePolicy, SetConfig, ToolPolicy, UpstreamPolicy
from millstream.middleware import ListRequest, MessageRequest, Middleware, Next
from patience import WAIT
from wire import POST, per_request, request, routing, run_wire

ERAS = ("2024-11-05", "2025-06-18", "2026-07-28")


def make_files() -> Server:
    """Return an upstream with items of each kind."""
    files = Server("files", instructions="Read first.")

    @files.tool(annotations={"readOnlyHint": True})
    async def read(path: str) -> str:
        """Read a file."""
        return f"text of {path}"

    @files.tool
    async def delete(path: str, force: bool = False) -> str:
        """Delete a file."""
        return f"deleted {path} {force}"

    @files.resource("doc://index")
    async def index() -> str:
        return "index"

    @files.resource("doc://secret")
    async def secret() -> str:
        return "secret"

    @files.resource("doc://{name}")
    async def document(name: str) -> str:
        return name

    @files.prompt
    async def review(path: str) -> str:
        return f"Review {path}."

    @files.complete("review", argument="path")
    def paths(value: str, arguments: dict[str, str]) -> list[str]:
        return ["a.txt"]

    return files


def make_shop(**options: Any) -> Server:
    """Return a gateway with items of its own and one upstream."""
    mcp = Server("shop", instructions="For everyone.", **options)

    @mcp.tool(tags=["public"])
    async def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    @mcp.tool(limit="2/hour")
    async def order(isbn: str, copies: int = 1) -> str:
        """Order a book."""
        return f"{copies} of {isbn}"

    @mcp.resource("shop://opening-hours", tags=["public"])
    async def hours() -> str:
        return "always"

    @mcp.prompt
    async def greet(name: str) -> str:
        return f"Hello {name}"

    mcp.upstream("files", make_files(), start_timeout=WAIT)
    return mcp


@asynccontextmanager
async def open_at(port: int, path: str, revision: str = "2026-07-28", *, key: str = "") -> AsyncIterator[Client]:
    """Connect to an address of a server."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with Client(f"http://127.0.0.1:{port}{path}", revision=revision, timeout=WAIT, headers=headers) as client:
        yield client


async def list_all(client: Client) -> dict[str, list[str]]:
    """Return the names and URIs that a client sees."""
    return {
        "tools": [each.name for each in await client.tools()],
        "prompts": [each.name for each in await client.prompts()],
        "resources": [each.uri for each in await client.resources()],
        "templates": [each.uri_template for each in await client.templates()],
    }


async def find_error(work: Any) -> str:
    """Return the error of a request."""
    with pytest.raises(ServerError) as caught:
        await work
    return str(caught.value)


async def test_set_has_only_its_items_in_each_era() -> None:
    mcp = make_shop()
    mcp.add_set("/mcp/interns", allow=["add", "files_read", "doc://files/i*", "greet"], instructions="For interns.")
    async with serve(mcp) as running:
        for era in ERAS:
            async with open_at(running.port, "/mcp/interns", era) as client:
                assert await list_all(client) == {
                    "tools": ["add", "files_read"],
                    "prompts": ["greet"],
                    "resources": ["doc://files/index"],
                    "templates": [],
                }
                assert client.instructions == "For interns."
                assert (await client.call("add", a=1, b=2)).text == "3"
                assert (await client.call("files_read", path="a")).text == "text of a"
                assert (await client.read("doc://files/index"))[0].text == "index"
            async with open_at(running.port, "/mcp", era) as client:
                assert len(await client.tools()) == 4
                assert (await client.read("doc://files/secret"))[0].text == "secret"


async def test_names_outside_a_set_fail_like_names_that_do_not_exist() -> None:
    mcp = make_shop()
    mcp.add_set("/mcp/interns", allow=["add", "greet", "doc://files/index"])
    outside = {"tool": "order", "upstream": "files_delete", "bare": "delete", "prompt": "files_review"}
    uris = (
        "doc://files/secret",
        "doc://secret",
        "DOC://files/%73ecret",
        "doc://files/x/../secret",
        "shop://opening-hours",
    )
    async with serve(mcp) as running:
        for era in ERAS:
            async with open_at(running.port, "/mcp/interns", era) as client:

                async def call(name: str, client: Client = client) -> str:
                    return (await find_error(client.call(name, path="x"))).replace(name, "NAME")

                for name in (outside["tool"], outside["upstream"], outside["bare"]):
                    assert await call(name) == await call("no_such_name")
                for name in (outside["prompt"], "review"):
                    missing = await find_error(client.prompt("no_such_name"))
                    assert (await find_error(client.prompt(name))).replace(name, "no_such_name") == missing
                for uri in uris:
                    assert await find_error(client.read(uri)) == await find_error(client.read("doc://no/such"))
                    if era == "2025-06-18":
                        message = await find_error(client.request("resources/subscribe", {"uri": uri}))
                        assert message == await find_error(
                            client.request("resources/subscribe", {"uri": "doc://no/such"})
                        )
                for ref in (
                    {"type": "ref/prompt", "name": "files_review"},
                    {"type": "ref/resource", "uri": "doc://files/{name}"},
                ):
                    params = {"ref": ref, "argument": {"name": "path", "value": ""}}
                    if era != "2024-11-05":
                        assert "Unknown" in await find_error(client.request("completion/complete", params))


async def test_sessions_of_one_address_are_unknown_at_another() -> None:
    mcp = make_shop()
    mcp.add_set("/mcp/interns", allow=["add"])
    mcp.add_set("/mcp/staff")
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    async with run_wire(mcp, "own") as wire:
        paths = "/mcp", "/mcp/interns", "/mcp/staff"
        for home in paths:
            opened = await wire.post(request("initialize", about), path=home)
            session = {
                "mcp-session-id": opened.headers[b"mcp-session-id"].decode(),
                "mcp-protocol-version": "2025-06-18",
            }
            for path in paths:
                expected = 200 if path == home else 404
                for message in (request("tools/list", id=2), request("ping", id=3)):
                    assert (await wire.post(message, {**POST, **session}, path)).status == expected, (home, path)
                if path != home:
                    headers = {"host": "127.0.0.1", **session}
                    stream = {**headers, "accept": "text/event-stream"}
                    assert (await wire.ask("GET", path, stream)).status == 404
                    assert (await wire.ask("DELETE", path, headers)).status == 404
            assert (await wire.ask("DELETE", home, {"host": "127.0.0.1", **session})).status == 204


async def test_selectors_choose_by_upstream_tag_hint_scope_and_group() -> None:
    mcp = Server("shop", auth=make_key_auth())

    @mcp.tool(tags=["public"])
    async def add(a: int, b: int) -> int:
        return a + b

    @mcp.tool(scopes=["secrets"])
    async def reveal() -> str:
        return "it"

    policy = UpstreamPolicy(tools={"delete": ToolPolicy(groups=("staff",), tags=("public",))})
    mcp.upstream("files", make_files(), start_timeout=WAIT, policy=policy)
    mcp.upstream("other", make_files(), start_timeout=WAIT)
    expected: Mapping[str, tuple[Mapping[str, Any], Collection[str]]] = {
        "upstream": ({"upstreams": ["f*"]}, {"files_read", "files_delete"}),
        "tag": ({"with_tags": ["public"]}, {"add", "files_delete"}),
        "hint": ({"with_hints": {"readOnlyHint": True}, "upstreams": ["files"]}, {"files_read"}),
        "scope": ({"with_scopes": ["secrets"]}, {"reveal"}),
        "brackets": ({"upstreams": ["[f]iles"]}, set()),  # not a set of characters
        "group": ({"with_groups": ["staff"]}, {"files_delete"}),
        "deny": ({"deny": ["*_*"]}, {"add", "reveal"}),
    }
    for name, (options, _) in expected.items():
        mcp.add_set(f"/{name}", **options)
    async with run_guarded(mcp) as running:
        del running
        for name, (_, tools) in expected.items():
            chosen = mcp.runtimes.current.dispatcher.find_address(name)  # some callers see less
            assert {*chosen.registry.tools} == {*tools}, name


async def test_names_are_short_unless_two_items_would_have_one_name() -> None:
    mcp = make_shop()
    mcp.upstream("other", make_files(), start_timeout=WAIT)
    mcp.add_set("/one", upstreams=["files"], short_names=True)
    mcp.add_set("/two", allow=["*_read", "files_delete", "*_review", "add"], short_names=True)
    async with serve(mcp) as running:
        async with open_at(running.port, "/one") as client:
            found = await list_all(client)
            assert found["tools"] == ["read", "delete"]
            assert found["prompts"] == ["review"]
            assert found["resources"] == ["doc://files/index", "doc://files/secret"]
            assert (await client.call("read", path="a")).text == "text of a"
            assert "Review a." in str(await client.prompt("review", path="a"))
            assert (await client.complete("path", "", prompt="review")).values == ["a.txt"]
            assert "Unknown tool" in await find_error(client.call("files_read", path="a"))
        async with open_at(running.port, "/two") as client:
            assert (await list_all(client))["tools"] == ["add", "files_read", "delete", "other_read"]


async def test_rules_of_a_set_change_its_items_only_there() -> None:
    mcp = make_shop()
    rules = {
        "order": ToolPolicy(name="buy", description="Buy one.", hidden={"copies": 1}),
        "files_delete": ToolPolicy(hidden={"force": False}, annotations={"destructiveHint": True}),
        "add": ToolPolicy(defaults={"b": 5}),
    }
    mcp.add_set("/interns", tools=rules, resources={"doc://files/index": ResourcePolicy(title="Index")})
    async with serve(mcp) as running:
        for era in ERAS:
            async with open_at(running.port, "/interns", era) as client:
                tools = {each.name: each for each in await client.tools()}
                assert tools["buy"].description == "Buy one."
                assert [*tools["buy"].input_schema["properties"]] == ["isbn"]
                assert [*tools["files_delete"].input_schema["properties"]] == ["path"]
                deleted = await client.call("files_delete", {"path": "a", "force": True})
                assert deleted.text == "deleted a False"
                assert (await client.call("add", a=1)).text == "6"
                if era != "2024-11-05":
                    assert (await client.resources())[0].uri == "shop://opening-hours"
            async with open_at(running.port, "/mcp", era) as client:
                tools = {each.name: each for each in await client.tools()}
                assert "copies" in tools["order"].input_schema["properties"]
                assert (await client.call("files_delete", path="a", force=True)).text == "deleted a True"
        async with open_at(running.port, "/interns") as client:
            assert (await client.call("buy", isbn="7")).text == "1 of 7"


def test_rules_that_cannot_differ_between_addresses_are_rejected() -> None:
    for rule in ({"limit": "1/hour"}, {"redact_results": ["x"]}, {"result_bytes": 9}, {"concurrency": 1}):
        with pytest.raises(ValueError, match="can't differ between addresses"):
            SetConfig(path="/a", tools={"x": ToolPolicy(**rule)})
    for path in ("mcp", "/a b", "/", "/a/"):
        with pytest.raises(ValueError, match=r"can't be|path"):
            SetConfig(name="a", path=path)
    with pytest.raises(ValueError, match="allow"):
        SetConfig(path="/a", allow="files_*")  # pyright: ignore[reportArgumentType]  one pattern per character


def test_paths_of_sets_must_be_free() -> None:
    mcp = make_shop()
    mcp.add_set("/mcp/interns")
    for path in ("/sse", "/mcp/interns", "/messages", "/other/interns"):
        with pytest.raises(ValueError, match="already"):
            mcp.add_set(path)
    with pytest.raises(TypeError, match="allowed"):
        mcp.add_set("/b", allowed=["x"])  # type: ignore[call-arg]


async def test_limits_of_tools_are_shared_by_addresses_and_a_set_can_have_its_own() -> None:
    mcp = make_shop(auth=make_key_auth())
    mcp.add_set("/interns", tools={"order": ToolPolicy(name="buy")})
    mcp.add_set("/staff", limit="3/hour")

    async with run_guarded(mcp) as running:

        async def call(path: str, tool: str, key: str = ALICE) -> int:
            arguments = {"isbn": "7"} if tool != "add" else {"a": 1, "b": 2}
            body = json.dumps(per_request("tools/call", {"name": tool, "arguments": arguments})).encode()
            headers = {name.replace("-", "_"): value for name, value in routing("tools/call", tool).items()}
            return (await running.ask(key, "POST", path, body, **headers)).status

        assert [await call("/mcp", "order"), await call("/interns", "buy"), await call("/interns", "buy")] == [
            200,
            200,
            429,
        ]
        assert await call("/staff", "order") == 429
        assert [await call("/staff", "add", BOB) for _ in range(4)] == [200, 200, 200, 429]
        assert await call("/mcp", "add", BOB) == 200


async def test_clients_learn_of_changes_at_their_own_address_only() -> None:
    mcp = make_shop()
    mcp.add_set("/interns", allow=["add", "doc://files/index"])
    async with serve(mcp) as running:
        for era in ("2025-06-18", "2026-07-28"):
            async with (
                open_at(running.port, "/interns", era) as interns,
                open_at(running.port, "/mcp", era) as main,
                interns.watch() as inside,
                main.watch() as everything,
            ):
                mcp.disable("tool", "order")
                assert (await anext(everything)).kind == "tools"
                assert len(await interns.tools()) == 1
                mcp.disable("tool", "add")
                assert (await anext(inside)).kind == "tools"
                assert await interns.tools() == []
                assert "Unknown tool" in await find_error(interns.call("add", a=1, b=2))
                mcp.enable("tool", "add")
                mcp.enable("tool", "order")
                assert (await anext(inside)).kind == "tools"
                assert (await interns.call("add", a=1, b=2)).text == "3"


async def test_updates_of_resources_outside_a_set_are_not_reported() -> None:
    mcp = make_shop()
    mcp.add_set("/interns", allow=["shop://opening-hours"])
    mcp.resource("shop://stock", name="stock")(lambda: "9")
    async with (
        serve(mcp) as running,
        open_at(running.port, "/interns") as client,
        client.watch("shop://stock", "shop://opening-hours") as changes,
    ):
        await mcp.resource_updated("shop://stock")
        await mcp.resource_updated("shop://opening-hours")
        assert (await anext(changes)).uri == "shop://opening-hours"


async def test_search_finds_and_calls_only_tools_of_the_set() -> None:
    mcp = make_shop(settings=Settings(tool_search=True))
    mcp.add_set("/interns", upstreams=["files"], deny=["*delete"], short_names=True)
    async with serve(mcp) as running:
        for era in ERAS:
            async with open_at(running.port, "/interns", era) as client:
                assert [each.name for each in await client.tools()] == ["read"]
                found = json.loads((await client.call("search_tools", query="file book add delete order")).text)
                assert [each["name"] for each in found["tools"]] == ["read"]
                inside = await client.call("call_tool", name="read", arguments={"path": "a"})
                assert inside.text == "text of a"
                for name in ("order", "files_delete", "delete", "files_read"):
                    assert "Unknown tool" in await find_error(client.call("call_tool", name=name, arguments={}))
            async with open_at(running.port, "/mcp", era) as client:
                found = json.loads((await client.call("search_tools", query="order a book")).text)
                assert found["tools"][0]["name"] == "order"


@pytest.mark.parametrize("number", [20, 21])
async def test_only_sets_with_more_tools_than_a_search_returns_list_the_search(number: int) -> None:
    mcp = Server("shop", settings=Settings(tool_search=True))
    names = [f"order_{each}" for each in range(number)]
    for name in names:
        mcp.tool(lambda: "ordered", name=name)
    mcp.resource("shop://hours", name="hours")(lambda: "9 to 5")
    mcp.add_set("/interns", allow=["*"])
    async with serve(mcp) as running:
        for era in ERAS:
            async with open_at(running.port, "/interns", era) as client:
                listed = [each.name for each in await client.tools()]
                assert listed == (names if number == 20 else ["search_tools", "call_tool"])
                assert [each.name for each in await client.resources()] == ["hours"]
                assert (await client.call("call_tool", name="order_7", arguments={})).text == "ordered"
            async with open_at(running.port, "/mcp", era) as client:
                assert [each.name for each in await client.tools()] == ["search_tools", "call_tool"]


async def test_views_of_tools_are_in_a_set_by_its_rules_for_them() -> None:
    apps = Server("apps")
    views = ("ui://map", "ui://private", "doc://plans", "ui://{page}", "review")
    for number, uri in enumerate(views):
        apps.tool(lambda: "shown", name=f"show_{number}", meta={"ui": {"resourceUri": uri}})
    apps.tool(lambda: "shown", name="take", meta={"ui/resourceUri": "ui://bank/money"})
    apps.resource("ui://map", name="map")(lambda: "the map")
    apps.resource("ui://private", name="private")(lambda: "private")
    apps.resource("doc://plans", name="plans")(lambda: "plans")
    apps.resource("ui://{page}", name="page")(lambda page: f"page {page}")
    apps.prompt(lambda: "a review", name="review")
    bank = Server("bank")
    bank.resource("ui://money", name="money")(lambda: "the bank's")
    mcp = Server("front", auth=make_key_auth())
    mcp.upstream("apps", apps, prefix="", start_timeout=WAIT)
    mcp.upstream("bank", bank, start_timeout=WAIT)
    mcp.add_set("/all", allow=["show_*", "take"])
    mcp.add_set("/denied", allow=["show_*"], deny=["ui://private"])
    mcp.add_set("/ruled", allow=["show_*"], resources={"ui://p*": ResourcePolicy(groups=("staff",))})
    async with run_guarded(mcp) as running:
        for path, expected in (
            ("/all", ["ui://map", "ui://private"]),
            ("/denied", ["ui://map"]),
            ("/ruled", ["ui://map"]),
        ):
            for era in ERAS:
                async with open_at(running.running.port, path, era, key=ALICE) as client:
                    found = await list_all(client)
                    assert (found["resources"], found["templates"], found["prompts"]) == (expected, [], []), path
                    assert (await client.read("ui://map"))[0].text == "the map"
                    for uri in {"ui://map", "ui://private", "ui://bank/money", "doc://plans", "ui://other"}.difference(
                        expected
                    ):
                        assert "Resource not found" in await find_error(client.read(uri)), (path, uri)


async def test_hidden_secrets_of_a_set_are_not_shown_to_the_person_who_approves() -> None:
    asked = list[str]()

    async def decline(question: Any) -> str:
        asked.append(question.message)
        return "decline"

    shop = Server("shop")
    shop.tool(lambda book, account, api_key="": book, name="order")
    rules = {"order": ToolPolicy(approve=True, hidden={"token": "t0p"})}
    for search in (False, True):
        mcp = Server("front", settings=Settings(tool_search=search))
        mcp.upstream("s", shop, start_timeout=WAIT, policy=UpstreamPolicy(tools=rules))
        hidden = {"api_key": "s3cret", "account": "company"}
        mcp.add_set("/b", short_names=True, tools={"s_order": ToolPolicy(hidden=hidden)})
        async with serve(mcp) as running:
            for era in ERAS[1:]:
                async with Client(
                    f"http://127.0.0.1:{running.port}/b", revision=era, elicit=decline, timeout=WAIT
                ) as client:
                    arguments = {"book": "Dune"}
                    called = (
                        ("call_tool", {"name": "order", "arguments": arguments}) if search else ("order", arguments)
                    )
                    with pytest.raises(ClientError):
                        await client.call(*called)
                question = asked.pop()
                assert "s3cret" not in question
                assert "t0p" not in question
                assert '"account": "company"' in question
                assert '"api_key": "[redacted]"' in question


async def test_stored_results_are_read_only_at_their_own_address() -> None:
    policy = UpstreamPolicy(result_bytes=20)
    large = Server("large")
    large.tool(lambda: "x" * 5000, name="much")
    mcp = Server("shop")
    mcp.upstream("large", large, policy=policy, start_timeout=WAIT)
    mcp.upstream("files", make_files(), start_timeout=WAIT)
    mcp.add_set("/one", upstreams=["large"])
    mcp.add_set("/two", upstreams=["files"])
    async with serve(mcp) as running:
        async with open_at(running.port, "/one") as client:
            result = await client.call("large_much")
            uri = result.text.rpartition(" ")[2]
            assert len((await client.read(uri))[0].text or "") >= 5000
        for path in ("/two", "/mcp"):
            async with open_at(running.port, path) as client:
                assert "Resource not found" in await find_error(client.read(uri))


async def test_tasks_belong_to_the_address_of_their_call() -> None:
    mcp, done = make_shop(), asyncio.Event()

    @mcp.tool(task="required")
    async def slow() -> str:
        await done.wait()
        return "slow"

    mcp.add_set("/interns", tools={"slow": ToolPolicy(name="long")})
    async with (
        serve(mcp) as running,
        open_at(running.port, "/interns") as client,
        open_at(running.port, "/mcp") as main,
    ):
        task = await client.tasks.start("long", {})
        assert "Unknown task" in await find_error(main.tasks.get(task.task_id))
        assert "Unknown task" in await find_error(main.tasks.cancel(task.task_id))
        assert "Unknown task" in await find_error(main.tasks.get(f"interns.{task.task_id}"))
        assert "Unknown task" in await find_error(main.tasks.cancel(f"interns.{task.task_id}"))
        done.set()
        assert (await client.tasks.wait(task)).text == "slow"


async def test_answers_of_one_address_are_not_accepted_at_another() -> None:
    mcp = make_shop()

    @mcp.tool
    async def ask(ctx: Context) -> int:
        return await ctx.elicit("How many?", int)

    mcp.add_set("/interns")
    async with run_wire(mcp, "own") as wire:
        params: dict[str, Any] = {"name": "ask", "arguments": {}}
        first = await wire.post(
            per_request("tools/call", params, elicitation={}), routing("tools/call", "ask"), "/interns"
        )
        result = json.loads(first.body)["result"]
        key = next(iter(result["inputRequests"]))
        again = {
            **params,
            "requestState": result["requestState"],
            "inputResponses": {key: {"action": "accept", "content": {"value": 3}}},
        }
        message = per_request("tools/call", again, elicitation={})
        foreign = await wire.post(message, routing("tools/call", "ask"), "/mcp")
        assert "Invalid requestState" in json.loads(foreign.body)["error"]["message"]
        own = await wire.post(message, routing("tools/call", "ask"), "/interns")
        assert json.loads(own.body)["result"]["structuredContent"] == 3


async def test_middleware_sees_calls_and_lists_of_sets() -> None:
    seen: list[str] = []

    class Watch(Middleware):
        async def on_message(self, request: MessageRequest, next: Next) -> Any:
            seen.append(f"{request.context.set_name or '-'} {request.method}")
            return await next(request)

        async def on_list(self, request: ListRequest, next: Next) -> Any:
            return [each for each in await next(request) if each.get("name") != "order"]

    mcp = make_shop(middleware=[Watch()])
    mcp.add_set("/interns", allow=["add", "order"])
    async with serve(mcp) as running, open_at(running.port, "/interns") as client:
        assert [each.name for each in await client.tools()] == ["add"]
        assert (await client.call("add", a=1, b=2)).text == "3"
    assert "interns tools/call" in seen


async def test_functions_read_resources_of_their_own_address() -> None:
    mcp = make_shop()

    @mcp.tool
    async def peek(uri: str, ctx: Context) -> str:
        return f"{ctx.set_name}: {await ctx.read_resource(uri)}"

    mcp.add_set("/interns", allow=["peek", "shop://*"])
    async with serve(mcp) as running:
        async with open_at(running.port, "/interns") as client:
            assert (await client.call("peek", uri="shop://opening-hours")).text == "interns: always"
            hidden = await find_error(client.call("peek", uri="doc://files/index"))
            assert hidden == await find_error(client.call("peek", uri="doc://files/nothing"))
        async with open_at(running.port, "/mcp") as client:
            assert (await client.call("peek", uri="doc://files/index")).text == ": index"


async def test_a_set_at_the_main_path_replaces_everything_there() -> None:
    mcp = make_shop(serve="rest")
    mcp.add_set("/mcp", name="public", allow=["add"])
    mcp.add_set("/mcp/all")
    for era in ERAS:
        async with Client(mcp, revision=era, timeout=WAIT) as client:
            assert [each.name for each in await client.tools()] == ["add"]
    async with serve(mcp) as running:
        for path, count in (("/mcp", 1), ("/sse", 1), ("/mcp/all", 4)):
            async with Client(f"http://127.0.0.1:{running.port}{path}", timeout=WAIT) as client:
                assert len(await client.tools()) == count
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{running.port}") as http:
            assert (await http.post("/tools/order", json={"isbn": "7"})).status_code == 404
            assert "Unknown tool" in (await http.post("/mcp/tools/call", json={"name": "order"})).text


async def test_listed_resources_outside_a_set_are_not_read_through_its_templates_or_as_unlisted_ones() -> None:
    mcp = Server("shop")

    @mcp.resource("shop://plan")
    async def plan() -> str:
        return "the plan"

    @mcp.resource("shop://{name}", tags=["public"])
    async def page(name: str) -> str:
        return f"page {name}"

    rules = {"doc://files/open/*": ResourcePolicy(tags=("public",)), "doc://files/{*": ResourcePolicy(tags=("public",))}
    shared = UpstreamPolicy(shared=UpstreamPolicy(resources=rules))
    mcp.upstream("files", make_files(), start_timeout=WAIT, policy=shared)
    mcp.add_set("/tagged", with_tags=["public"])
    mcp.add_set("/denied", deny=["doc://files/secret", "shop://plan"])
    async with serve(mcp) as running:
        for era in ERAS:
            for path in ("/tagged", "/denied"):
                async with open_at(running.port, path, era) as client:
                    assert (await client.read("shop://news"))[0].text == "page news"
                    for uri in ("shop://plan", "SHOP://pl%61n", "doc://files/secret", "doc://files/%73ecret"):
                        assert "Resource not found" in await find_error(client.read(uri)), (path, uri)


async def test_scopes_and_visibility_of_a_sets_rules_hide_items_there() -> None:
    mcp = make_shop(auth=make_key_auth())
    mcp.add_set(
        "/interns",
        tools={"add": ToolPolicy(scopes=("orders:write",)), "files_delete": ToolPolicy(groups=("staff",))},
        resources={"doc://files/secret": ResourcePolicy(scopes=("secrets",))},
    )
    async with run_guarded(mcp) as running:
        for key, tools, can_read in (
            (ALICE, {"add", "order", "files_read"}, True),
            (BOB, {"order", "files_read"}, False),
        ):
            for era in ERAS:
                async with open_at(running.running.port, "/interns", era, key=key) as client:
                    assert {each.name for each in await client.tools()} == tools
                    assert ("doc://files/secret" in [each.uri for each in await client.resources()]) is can_read
                    if not can_read:
                        with pytest.raises(ClientError, match="secrets"):
                            await client.read("doc://files/secret")
                        with pytest.raises(ClientError, match="orders:write"):
                            await client.call("add", a=1, b=2)
                    assert "Unknown tool" in await find_error(client.call("files_delete", path="a"))


async def test_limits_of_a_set_apply_beside_those_of_the_server() -> None:
    mcp = make_shop(auth=make_key_auth(), settings=Settings(limit_calls="100/hour"))
    mcp.add_set("/staff", limit="1/hour")
    async with run_guarded(mcp) as running:
        async with open_at(running.running.port, "/staff", key=ALICE) as client:
            assert (await client.call("add", a=1, b=2)).text == "3"
            assert "Too many" in await find_error(client.call("add", a=1, b=2))
        async with open_at(running.running.port, "/mcp", key=ALICE) as client:
            assert (await client.call("add", a=1, b=2)).text == "3"


async def test_completers_complete_the_arguments_of_renamed_prompts() -> None:
    mcp = make_shop()

    @mcp.complete("greet", argument="name")
    def names(value: str, arguments: dict[str, str]) -> list[str]:
        return ["Ada"]

    mcp.add_set("/interns", prompts={"greet": PromptPolicy(name="hello")})
    async with serve(mcp) as running, open_at(running.port, "/interns") as client:
        assert (await client.complete("name", "", prompt="hello")).values == ["Ada"]
        assert "Hello Bob" in str(await client.prompt("hello", name="Bob"))
        assert "Unknown prompt" in await find_error(client.complete("name", "", prompt="greet"))


async def test_failures_of_upstreams_outside_a_set_are_not_mentioned_there() -> None:
    mcp = Server("shop")
    mcp.upstream("files", make_files(), start_timeout=WAIT)
    mcp.upstream("mail", "http://127.0.0.1:9/mcp", start_timeout=0.1)
    mcp.add_set("/inside", upstreams=["files"])
    mcp.add_set("/all")
    async with serve(mcp) as running:
        for path, is_shown in (("/mcp", True), ("/all", True), ("/inside", False)):
            async with open_at(running.port, path) as client:
                assert ("'mail'" in await find_error(client.call("mail_send"))) is is_shown


async def test_set_has_the_instructions_of_its_upstreams() -> None:
    mcp = Server("shop", instructions="Be kind.")
    for name in ("one", "two"):
        upstream = Server(name, instructions=f"About {name}.")
        upstream.tool(lambda: "", name="much")
        mcp.upstream(name, upstream, start_timeout=WAIT)
    mcp.add_set("/both")
    mcp.add_set("/one", upstreams=["one"], short_names=True)
    mcp.add_set("/own", upstreams=["one"], instructions="Be quick.")
    expected = {
        "/both": "Be kind.\n\none (names begin with one_):\nAbout one.\n\ntwo (names begin with two_):\nAbout two.",
        "/one": "Be kind.\n\none:\nAbout one.",
        "/own": "Be quick.",
    }
    async with serve(mcp) as running:
        for path, instructions in expected.items():
            async with open_at(running.port, path) as client:
                assert client.instructions == instructions


async def test_names_in_a_set_that_match_nothing_are_warned_about_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shop, front = Server("shop"), Server("front")
    shop.tool(lambda: "hello", name="greet")
    shop.resource("note://{name}", name="note")(lambda name: name)
    front.upstream("a", shop, start_timeout=WAIT)
    front.add_set(
        "/mcp/x",
        upstreams=["a*", "gone*"],
        allow=["a_gret", "a_pay*", "a_greet", "note://a/b"],
        deny=["*secret*"],
        tools={"a_grret": ToolPolicy(title="Hi")},
    )
    expected = [
        "has no item of an upstream that matches 'gone*'.",
        "has a rule for 'a_gret', which no tool or prompt has. Did you mean 'a_greet'?",
        "has a rule for 'a_grret', which no tool or prompt has. Did you mean 'a_greet'?",
        "allows 'a_pay*', which matches nothing.",
    ]
    async with front.running() as runtime:
        assert [each for each in caplog.messages if "set x" in each] == [f"The set x {text}" for text in expected]
        (described,) = runtime.host.sets.describe()  # type: ignore[union-attr]
        assert described["unused"] == expected


@pytest.mark.server
async def test_names_in_a_set_are_not_judged_before_all_lists_have_arrived(caplog: pytest.LogCaptureFixture) -> None:
    shop, front = Server("shop"), Server("front")
    shop.tool(lambda: "hello", name="greet")
    front.upstream("a", shop, start_timeout=WAIT)
    front.upstream("late", ["no-such-program"], start_timeout=WAIT)
    front.add_set("/mcp/x", allow=["late_order"])
    async with front.running():
        assert "The set x" not in caplog.text
