import asyncio
import gzip
import json
import logging
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from client.misbehaving_servers import (
    GREETING,
    OFFER,
    MisbehavingServer,
    ReceivedRequest,
    misbehaving,
    with_handshake,
)
from client.test_foreign_servers import EVERYTHING
from conformance.official import KEEP_ALIVE
from fleet import until
from gateway.strangers import Json, stranger
from millstream import Icon, Info, Server, Settings
from millstream._app.gateway_server import server_of_upstream
from millstream._app.server_process import startup_message
from millstream._cli.items import signature_of
from millstream._gateway.catalog.catalog import AcceptedFile
from millstream._gateway.questions.abilities import ALL_ABILITIES
from millstream._gateway.questions.questions import project_question
from millstream._gateway.upstreams.upstream import Upstream
from millstream._protocol.content import ResourceLink
from millstream._protocol.errors import ProtocolError
from millstream._protocol.jsonrpc import encode
from millstream._protocol.notifications import ToolDescription
from millstream._protocol.revisions import BY_DATE, NEWEST
from millstream.agent._tools import Toolbox
from millstream.client import Client, ServerError
from millstream.client._server_messages import Change
from millstream.gateway import ToolPolicy, UpstreamPolicy
from patience import WAIT
from processes import NODE, ROOT, free_port, run_command, run_server
from programs import require_program

pytestmark = pytest.mark.server

DONE: Json = {"result": {"content": [{"type": "text", "text": "done"}]}}


def make_gateway(command: list[str] | str, **options: Any) -> Server:
    mcp = Server("front", serve="rest", settings=Settings(**options.pop("settings", {})))
    mcp.upstream("odd", command, **{"start_timeout": WAIT, "prefix": "", **options})
    return mcp


def upstream_of(runtime: Any) -> Upstream:
    upstream: Upstream = runtime.host.gateway.upstreams["odd"]
    return upstream


@pytest.fixture(scope="module")
def go_server(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A server of the official Go SDK."""
    target = tmp_path_factory.mktemp("go") / "anything"
    source = Path(__file__).parent.parent / "foreign" / "anything.go"
    command = [require_program("go"), "build", "-C", "benches/go", "-o", str(target), str(source)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=10 * WAIT, capture_output=True)
    return str(target)


async def test_go_sdk_server_with_an_argument_of_any_type_is_served(go_server: str, tmp_path: Path) -> None:
    port = free_port()
    with run_server(run_command(f"{go_server} --stdio", port), port, tmp_path / "log"):
        async with Client(f"http://127.0.0.1:{port}/mcp", timeout=WAIT) as client:
            assert (client.server.name, client.server.title, client.server.version) == ("anything", "Any Thing", "7.1")
            [tool] = [each for each in await client.tools() if each.name == "show"]
            assert tool.input_schema["properties"] == {"anything": True}
            assert (await client.call("show", anything=[1, 2])).text == "[1 2]"


async def test_go_sdk_server_can_ask_clients_from_both_eras(go_server: str) -> None:
    mcp, answers = Server("front"), {"elicit": lambda _: {"name": "Ada"}, "timeout": WAIT}
    mcp.upstream("odd", [go_server], prefix="", start_timeout=WAIT, timeout=WAIT)
    async with (
        asyncio.timeout(WAIT), mcp.running() as runtime,
        Client(mcp, revision="2025-11-25", **answers) as old, Client(mcp, revision="2026-07-28", **answers) as new,
    ):  # fmt: skip
        assert "Call again." in (await old.call("ask", raise_on_error=False)).text
        await upstream_of(runtime).lists.load()  # as if another worker had listed it, in the newer era
        assert [(await each.call("ask")).text for each in (old, new)] == ["Ada", "Ada"]


SCHEMAS: list[Any] = [
    True,
    None,
    {"properties": {"a": True, "b": False, "c": None}, "required": None},
    {"properties": None, "required": "a"},
    {"properties": {"a": {"type": None}}, "required": ["a", 5, ["a"]]},
    {"properties": {"a": {"enum": 5, "examples": "x", "anyOf": True, "oneOf": [5]}}, "required": ["a"]},
    {"properties": {"a": {"type": [], "minimum": "1", "default": None}, "b": {"type": [["x"]]}}, "required": ["b"]},
    {"properties": {"a": {"type": "array", "items": [True, None], "minItems": "1"}}, "required": ["a"]},
    {"properties": {"a": {"type": "number", "minimum": True, "multipleOf": 0}}, "required": ["a"]},
    {"properties": {"a": {"type": "number", "minimum": 5, "multipleOf": 0}}, "required": ["a"]},
    {"properties": {"a": {"type": "number", "minimum": 1e308, "multipleOf": 1e-308}}, "required": ["a"]},
    {"properties": {"a": {"type": "string", "format": ["x"], "maxLength": {}}}, "required": ["a"]},
    {"properties": {"a": {"$ref": 5}, "b": {"$ref": "#"}, "c": {"$ref": "#/$defs/loop"}}, "required": ["b", "c"]},
    {"$defs": {"loop": {"$ref": "#/$defs/loop"}}, "properties": {"a": {"$ref": "#/$defs/loop"}}, "required": ["a"]},
    {"$defs": None, "dependentRequired": {"a": [[]]}, "allOf": None, "not": None, "if": "x", "description": None},
    {"properties": {"a": {"properties": [], "type": "object", "required": {}}}, "required": ["a", "missing"]},
]


async def test_unusual_schemas_lose_at_most_their_example() -> None:
    tools = [{"name": f"tool{at}", "inputSchema": each, "outputSchema": each} for at, each in enumerate(SCHEMAS)]
    command = stranger({"tools": {}}, {"tools/list": {"result": {"tools": tools}}, "tools/call": DONE})
    hidden = UpstreamPolicy(tools={"*": ToolPolicy(hidden={"a": 1}, defaults={"b": 2})})
    for options in ({"policy": UpstreamPolicy(tags=("all",))}, {"settings": {"tool_search": True}}, {"policy": hidden}):
        mcp = make_gateway(command, **options)
        async with mcp.running(), httpx2.AsyncClient(transport=httpx2.ASGITransport(mcp)) as http:
            registry = mcp.definition.registry
            assert [name for name in registry.tools if name.startswith("tool")] == [each["name"] for each in tools]
            for name, tool in registry.tools.items():
                shown = "".join(startup_message.example_calls("http://x/mcp", {name: tool}))
                # Without an example of its arguments, a tool isn't called. The commands list the tools then.
                assert name in shown or ("millstream list" in shown and "tools/list" in shown)
            document = (await http.get("http://127.0.0.1/openapi.json")).json()
            assert f"/tools/{tools[-1]['name']}" in document["paths"]
            for revision in BY_DATE:
                async with Client(mcp, revision=revision, timeout=WAIT) as client:
                    listed = await client.tools()
                    assert len(listed) == len(tools) or "tool_search" in str(options)
                    assert all(signature_of(each).startswith(each.name) for each in listed)
                    assert (await client.call("tool0")).text == "done"


VALUES: list[Any] = [
    None,
    True,
    3,
    -1.5,
    "",
    "text",
    "\x1b[2J",
    [],
    [None],
    [[]],
    {},
    {"type": 3},
    {"a": None},
    "x" * 2000,
]
WHOLE: dict[str, Json] = {
    "tools": {
        "name": "go", "title": "Go", "description": "Goes.",
        "inputSchema": {
            "type": "object",
            "properties": {"a": {"type": "string", "enum": ["x"]}, "b": {"$ref": "#/$defs/b"}},
            "required": ["a"], "$defs": {"b": {"type": "array", "items": {"type": "integer"}}},
        },
        "outputSchema": {"type": "object", "properties": {"n": {"type": "number", "minimum": 1}}},
        "annotations": {"title": "Go", "readOnlyHint": True}, "icons": [{"src": "data:,", "sizes": ["1x1"]}],
        "execution": {"taskSupport": "optional"}, "_meta": {"a": {"b": 1}},
    },
    "resources": {
        "uri": "memo://go", "name": "go", "mimeType": "text/plain", "size": 3,
        "annotations": {"audience": ["user"], "priority": 0.5, "lastModified": "2026-01-01T00:00:00Z"}, "_meta": {},
    },
    "prompts": {"name": "go", "arguments": [{"name": "a", "required": True}], "icons": [{"src": "data:,"}]},
}  # fmt: skip


def with_odd_places(whole: Any) -> Iterator[Any]:
    """Yield copies of a JSON value, each with an odd value in one place, at any depth."""
    yield from VALUES
    for name in whole if isinstance(whole, dict) else range(len(whole)) if isinstance(whole, list) else ():
        for odd in with_odd_places(whole[name]):
            copy = whole.copy()
            copy[name] = odd
            yield copy


async def test_invalid_value_anywhere_in_an_item_does_not_affect_other_items(tmp_path: Path) -> None:
    replies: Json = {"tools/call": DONE}
    good: Json = {
        "tools": {"name": "good", "inputSchema": {"type": "object"}},
        "resources": {"uri": "memo://good", "name": "good"},
        "prompts": {"name": "good"},
    }
    for kind, whole in WHOLE.items():
        odd = [dict(each, name=f"odd{at}") if isinstance(each, dict) and each.get("name") == "go" else each
               for at, each in enumerate(with_odd_places(whole))]  # fmt: skip
        pages = [odd[at : at + 100] for at in range(0, len(odd), 100)]
        replies[f"{kind}/list"] = [{"result": {kind: page, "nextCursor": str(at)}} for at, page in enumerate(pages)] + [
            {"result": {kind: [good[kind]]}}
        ]
    mcp = Server("front")
    mcp.upstream("odd", stranger({kind: {} for kind in WHOLE}, replies, file=tmp_path / "replies"), start_timeout=WAIT)
    async with asyncio.timeout(WAIT), Client(mcp, timeout=WAIT) as client:
        tools, resources, prompts = await client.tools(), await client.resources(), await client.prompts()
        assert (await client.call("odd_good")).text == "done"
    assert len(tools) > 100
    assert "odd_good" in {each.name for each in tools} & {each.name for each in prompts}
    assert "memo://odd/good" in {each.uri for each in resources}


async def test_list_with_a_cursor_that_never_changes_has_its_page_once(tmp_path: Path) -> None:
    page = {"tools": [{"name": "go", "inputSchema": {"type": "object"}}], "nextCursor": "8"}
    mcp = Server("front")
    mcp.upstream("odd", stranger({"tools": {}}, {"tools/list": {"result": page}}), start_timeout=WAIT)
    async with asyncio.timeout(WAIT), Client(mcp, timeout=WAIT) as client:
        assert [each.name for each in await client.tools()] == ["odd_go"]


def test_unusual_schema_parts_reach_neither_models_nor_older_clients() -> None:
    for schema in filter(None, SCHEMAS):
        if isinstance(schema, dict):
            tool = ToolDescription(name="odd", input_schema=schema)
            server: Any = SimpleNamespace(name="s")
            [spec] = Toolbox([(server, [tool])]).specs
            parameters = spec["function"]["parameters"]
            assert parameters["properties"].keys() <= (schema.get("properties") or {}).keys()
            asked = encode({"message": "Well?", "requestedSchema": schema})
            for revision in BY_DATE.values():
                if "elicitation/create" in revision.asks:
                    with suppress(ProtocolError):  # not a flat form
                        client: Any = SimpleNamespace(
                            abilities=ALL_ABILITIES, revision=revision, redactor=None, allowed=("elicitation",)
                        )
                        project_question("elicitation/create", asked, client, NEWEST, "odd")


LISTS: Json = {
    "tools/list": {"result": {"tools": [{"name": "go", "inputSchema": {"type": "object"}}]}},
    "resources/list": {"result": {"resources": [{"uri": "memo://1", "name": "one"}]}},
    "prompts/list": {"error": {"code": -32603, "message": "The prompts are out."}},
    "resources/read": {"result": {"contents": [{"uri": "memo://1", "text": "first"}]}},
}
ALL = {"tools": {}, "resources": {}, "prompts": {}}


async def test_failed_list_does_not_affect_other_lists(caplog: pytest.LogCaptureFixture) -> None:
    mcp = make_gateway(stranger(ALL, LISTS), prefix="odd")
    async with Client(mcp, timeout=WAIT) as client:
        assert [each.name for each in await client.tools()] == ["odd_go"]
        assert [each.uri for each in await client.resources()] == ["memo://odd/1"]
        assert (await client.read("memo://odd/1"))[0].text == "first"
        assert (await client.templates(), await client.prompts()) == ([], [])
    assert caplog.text.count("The prompts are out.") == caplog.text.count("resources/templates/list") == 1


async def test_relay_between_eras_returns_the_list_error_of_its_upstream() -> None:
    command = stranger(ALL, LISTS)
    for target in (command, make_gateway(command)):
        async with Client(target, timeout=WAIT) as client:
            assert [each.name for each in await client.tools()] == ["go"]
            assert (await client.read("memo://1"))[0].text == "first"
            with pytest.raises(ServerError, match="The prompts are out"):
                await client.prompts()
            with pytest.raises(ServerError, match="Method not found"):
                await client.templates()


def run_command_line(command: str, server: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "millstream", command, shlex.join(server), *more]
    return subprocess.run(words, capture_output=True, timeout=WAIT, check=False, text=True)


def test_list_command_shows_the_lists_that_succeed() -> None:
    done = run_command_line("list", stranger(ALL, LISTS))
    assert done.returncode == 0
    assert [line.split("\t")[:2] for line in done.stdout.splitlines()] == [["tool", "go"], ["resource", "memo://1"]]
    assert "The prompts are out." in done.stderr


async def test_lists_that_fail_to_refresh_stay_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tools = LISTS["tools/list"]
    failing = {"error": {"code": -32603, "message": "Out of order."}}
    replies = {
        **LISTS,
        "tools/list": [tools, failing],
        "resources/list": [{"result": {"resources": []}}, LISTS["resources/list"]],
    }
    mcp = make_gateway(stranger(ALL, replies), prefix="odd")
    async with mcp.running() as runtime, Client(mcp, timeout=WAIT) as client, client.watch(resources=True) as changes:
        assert not await client.resources()
        upstream_of(runtime).lists.refresh()
        await anext(changes)
        assert [each.uri for each in await client.resources(fresh=True)] == ["memo://odd/1"]
        assert [each.name for each in await client.tools(fresh=True)] == ["odd_go"]
    assert "Out of order." in caplog.text


NULLS: Json = {
    "tools/list": {
        "result": {
            "tools": [
                {
                    "name": "go", "title": None, "description": None, "annotations": None, "_meta": None, "icons": None,
                    "inputSchema": {"type": "object"}, "outputSchema": None,
                },
                {"name": "hint", "inputSchema": {}, "annotations": {"readOnlyHint": None, "title": None}},
                {"name": "icon", "inputSchema": {}, "icons": [{"src": "https://x/i.png", "sizes": None}]},
            ],
            "nextCursor": None, "_meta": None, "ttlMs": None, "cacheScope": None,
        },
        "error": None,
    },
    "prompts/list": {
        "result": {
            "prompts": [
                {"name": "p", "arguments": None, "description": None},
                {"name": "q", "arguments": [{"name": "a", "description": None, "required": None}], "_meta": None},
            ],
            "nextCursor": None,
        }
    },
    "resources/list": {
        "result": {
            "resources": [
                {"uri": "memo://1", "name": "one", "mimeType": None, "size": None, "annotations": {"audience": None}}
            ],
            "_meta": None,
        }
    },
    "resources/templates/list": {"result": {"resourceTemplates": None, "nextCursor": ""}},
    "resources/read": {
        "result": {"contents": [{"uri": "memo://1", "text": "first", "blob": None, "_meta": None}], "_meta": None}
    },
    "prompts/get": {
        "result": {
            "description": None, "_meta": None,
            "messages": [{"role": "user", "content": {"type": "text", "text": "hi", "annotations": None}}],
        }
    },
    "tools/call": {
        "result": {
            "content": [{"type": "text", "text": "done", "annotations": None, "_meta": None}], "isError": None,
            "_meta": None, "resultType": None,
        },
        "error": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("behind", [False, True], ids=["client", "gateway"])
async def test_null_members_are_omitted(caplog: pytest.LogCaptureFixture, *, behind: bool) -> None:
    about = {"name": "s", "version": None, "title": None, "icons": None}
    capabilities = {**ALL, "completions": None, "logging": None, "experimental": None}
    command = stranger(capabilities, NULLS, instructions=None, _meta=None, serverInfo=about)
    mcp: Any = make_gateway(command, policy=UpstreamPolicy(tags=("all",))) if behind else command  # not relayed
    for revision in BY_DATE if behind else ("2025-06-18",):
        async with Client(mcp, revision=revision, timeout=WAIT) as client:
            assert [each.name for each in await client.tools()] == ["go", "hint", "icon"]
            assert [each.name for each in await client.prompts()] == ["p", "q"]
            assert [each.uri for each in await client.resources()] == ["memo://1"]
            assert await client.templates() == []
            assert (await client.read("memo://1"))[0].text == "first"
            assert (await client.prompt("p")).text == "hi"
            assert (await client.call("go")).text == "done"
            assert "completions" not in client.capabilities
            if behind:
                assert "null" not in json.dumps(await client.request("tools/list"))
    assert "kipped" not in caplog.text


async def test_items_that_must_be_dropped_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    tools = [
        {"name": 7, "inputSchema": {}},
        {"name": "good", "inputSchema": {}},
        {"name": "bad", "inputSchema": {"type": "array"}},
    ]
    command = stranger({"tools": {}}, {"tools/list": {"result": {"tools": tools}}})
    mcp = make_gateway(command)
    async with mcp.running() as runtime, Client(mcp, timeout=WAIT) as client:
        assert [each.name for each in await client.tools()] == ["good"]
        upstream = upstream_of(runtime)
        listed_at = upstream.catalog.taken_at
        upstream.lists.refresh()
        await until(lambda: upstream.catalog.taken_at != listed_at)
    assert caplog.text.count('"name": 7') == caplog.text.count('"name": "bad"') == 1
    caplog.clear()
    async with Client(command, timeout=WAIT) as client:
        assert [each.name for each in await client.tools()] == ["good", "bad"]
    assert caplog.text.count("Skipped an item") == 1


@asynccontextmanager
async def run_picky_server(tools: Mapping[str, str]) -> AsyncIterator[MisbehavingServer]:
    """Run a server of 2025-11-25 with sessions that lists each tool only to clients with the capability it needs."""
    sessions: list[Json] = []

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "initialize":
            sessions.append(asked.message["params"]["capabilities"])
            await asked.result(GREETING, more=f"Mcp-Session-Id: {len(sessions) - 1}\r\n")
            return
        declared = sessions[int(asked.headers.get("mcp-session-id", "0"))] if sessions else {}
        listed = [name for name, capability in tools.items() if not capability or capability in declared]
        if asked.method == "tools/list":
            await asked.result({"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in listed]})
        elif asked.method == "tools/call":
            name = asked.message["params"]["name"]
            await asked.result({"content": [{"type": "text", "text": str(name in listed)}]})
        else:
            await with_handshake(behave)(asked)

    async with misbehaving(behave) as server:
        yield server


async def test_http_upstream_lists_tools_for_every_client_capability() -> None:
    tools = {"plain": "", "ask": "elicitation", "think": "sampling", "look": "roots"}
    async with asyncio.timeout(WAIT), run_picky_server(tools) as server:
        mcp = make_gateway(server.url, policy=UpstreamPolicy(tags=("all",)))  # not relayed
        for revision in ("2025-11-25", "2026-07-28"):
            async with Client(mcp, revision=revision, timeout=WAIT, elicit=lambda _: {}) as client:
                assert [each.name for each in await client.tools()] == list(tools)
                # The call's own session declares what this client can do.
                assert [(await client.call(each)).text for each in tools] == ["True", "True", "False", "False"]
            async with Client(mcp, revision=revision, timeout=WAIT) as client:
                assert [(await client.call(each)).text for each in tools] == ["True", "False", "False", "False"]


async def test_reference_server_over_http_loses_no_tool(tmp_path: Path) -> None:
    command = ["env", f"KEEP_ALIVE_MS={WAIT * 1000:.0f}", NODE, "--require", str(KEEP_ALIVE), str(EVERYTHING)]
    port = free_port()
    with run_server(["env", f"PORT={port}", *command[1:], "streamableHttp"], port, tmp_path / "log"):
        url = f"http://127.0.0.1:{port}/mcp"
        roots: Any = ["file:///work"]
        options: Any = {"timeout": WAIT, "elicit": lambda _: {}, "sample": lambda _: "a word", "roots": roots}
        async with asyncio.timeout(WAIT), Client(url, **options) as client:
            expected = {each.name for each in await client.tools()}
        async with asyncio.timeout(WAIT), Client(make_gateway(url), **options) as client:
            assert {each.name for each in await client.tools()} == expected
            assert "a word" in (await client.call("trigger-sampling-request", prompt="x", maxTokens=5)).text
            assert "file:///work" in (await client.call("get-roots-list")).text


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_upstream_that_starts_slowly_appears_in_the_lists(revision: str) -> None:
    started = asyncio.Event()

    async def behave(asked: ReceivedRequest) -> None:
        await started.wait()
        if asked.method == "tools/list":
            await asked.result({"tools": [{"name": "go", "inputSchema": {"type": "object"}}]})
        else:
            await with_handshake(behave)(asked)

    async with asyncio.timeout(WAIT), misbehaving(behave) as server:
        mcp = make_gateway(server.url, start_timeout=0, policy=UpstreamPolicy(tags=("all",)))  # not relayed
        async with Client(mcp, revision=revision, timeout=WAIT) as client, client.watch(tools=True) as changes:
            assert client.capabilities.keys() >= {"tools", "resources", "prompts"}
            assert "subscribe" not in client.capabilities["resources"]
            assert "completions" not in client.capabilities
            for method in ("tools/list", "resources/list", "resources/templates/list", "prompts/list"):
                assert (await client.request(method)).get("ttlMs", 0) == 0
            if revision == "2026-07-28":
                assert (await client.request("server/discover"))["ttlMs"] == 0
            assert not await client.tools()
            started.set()
            assert await anext(changes) == Change("tools")
            assert [each.name for each in await client.tools()] == ["go"]
            if revision == "2026-07-28":
                assert (await client.request("tools/list"))["ttlMs"] > 0
                assert (await client.request("server/discover"))["ttlMs"] > 0


async def read_hints(pages: Json) -> dict[str, tuple[int, str]]:
    """Return the lifetimes and scopes that a gateway sends to its client for the pages of an upstream."""

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method in pages:
            await asked.result({"resultType": "complete", **pages[asked.method]})
        else:
            await asked.reply(b"", status="405 Method Not Allowed")

    async with asyncio.timeout(WAIT), misbehaving(behave) as server:
        mcp = make_gateway(server.url, policy=UpstreamPolicy(tags=("all",)))  # not relayed
        async with Client(mcp, timeout=WAIT) as client:
            results = {method: await client.request(method) for method in pages}
    return {method: (each["ttlMs"], each["cacheScope"]) for method, each in results.items()}


async def test_upstream_cache_hints_are_kept() -> None:
    pages: Json = {
        "server/discover": {**OFFER, "capabilities": ALL, "ttlMs": 9_000, "cacheScope": "private"},
        "tools/list": {"tools": [], "ttlMs": 30_000, "cacheScope": "private"},
        "resources/list": {"resources": [], "ttlMs": 10**9, "cacheScope": "public"},
        "resources/templates/list": {"resourceTemplates": [], "cacheScope": "private"},
        "prompts/list": {"prompts": [], "ttlMs": 5_000, "cacheScope": "public"},
    }

    assert await read_hints(pages) == {
        "server/discover": (9_000, "private"),
        "tools/list": (30_000, "private"),
        "resources/list": (Settings().list_ttl_ms, "public"),
        "resources/templates/list": (0, "private"),
        "prompts/list": (5_000, "public"),
    }


async def test_lists_without_hints_are_not_cached_next_to_a_stale_one() -> None:
    pages: Json = {
        "server/discover": {**OFFER, "capabilities": ALL},
        "tools/list": {"tools": [], "ttlMs": 0},
        "resources/list": {"resources": [], "ttlMs": 20_000},
        "resources/templates/list": {"resourceTemplates": []},
        "prompts/list": {"prompts": []},
    }

    found = {method: ttl for method, (ttl, _) in (await read_hints(pages)).items()}
    assert found == {**dict.fromkeys(pages, 0), "resources/list": 20_000}


async def test_only_links_readable_by_the_gateway_get_a_prefix() -> None:
    links = {
        "https://docs.example.com/p": "https://docs.example.com/p",
        "HTTP://docs.example.com/p": "HTTP://docs.example.com/p",
        "mailto:ada@example.com": "mailto:ada@example.com",
        "https://listed.example.com/": "https://odd/listed.example.com/",
        "https://matched.example.com/7": "https://odd/matched.example.com/7",
        "memo://1": "memo://odd/1",
        "memo://unlisted": "memo://odd/unlisted",
    }
    content = [{"type": "resource_link", "uri": uri, "name": "x"} for uri in links]
    content += [{"type": "resource", "resource": {"uri": uri, "text": "x"}} for uri in links]
    prompt = {"messages": [{"role": "user", "content": each} for each in content]}
    replies: Json = {
        "tools/list": {"result": {"tools": [{"name": "go", "inputSchema": {"type": "object"}}]}},
        "tools/call": {"result": {"content": content}},
        "prompts/list": {"result": {"prompts": [{"name": "p"}]}},
        "prompts/get": {"result": prompt},
    }
    resources = [{"uri": uri, "name": "x"} for uri in ("memo://1", "https://listed.example.com/")]
    templates = [{"uriTemplate": "https://matched.example.com/{id}", "name": "x"}]
    replies["resources/list"] = {"result": {"resources": resources}}
    replies["resources/templates/list"] = {"result": {"resourceTemplates": templates}}
    plain: Json = {"tools": {}, "prompts": {}}
    for capabilities, expected in ((ALL, [*links.values()]), (plain, [*links])):
        async with Client(make_gateway(stranger(capabilities, replies), prefix="odd"), timeout=WAIT) as client:
            blocks: list[Any] = (await client.call("odd_go")).content
            assert [
                each.uri if isinstance(each, ResourceLink) else each.resource.uri for each in blocks
            ] == expected * 2
            blocks = [each.content for each in (await client.prompt("odd_p")).messages]
            assert [
                each.uri if isinstance(each, ResourceLink) else each.resource.uri for each in blocks
            ] == expected * 2


async def test_link_to_a_new_resource_of_the_reference_server_can_be_read() -> None:
    mcp = make_gateway([NODE, str(EVERYTHING), "stdio"], prefix="every")
    async with asyncio.timeout(WAIT), Client(mcp, timeout=WAIT) as client:
        given = {"name": "x.gz", "data": "data:text/plain,hello", "outputType": "resourceLink"}
        [link] = (await client.call("every_gzip-file-as-resource", given)).content
        assert isinstance(link, ResourceLink)
        assert gzip.decompress((await client.read(link.uri))[0].blob or b"") == b"hello"


ABOUT: Json = {
    "name": "strange", "version": "7.1", "title": "A Stranger", "websiteUrl": "https://strange.example.com",
    "icons": [{"src": "https://strange.example.com/i.png"}], "description": None,
}  # fmt: skip


async def test_gateway_with_one_upstream_uses_its_server_info() -> None:
    command = stranger({"tools": {}}, LISTS, serverInfo=ABOUT)
    icon = Icon("https://strange.example.com/i.png")

    async def ask(mcp: Server) -> list[object]:
        seen = []
        async with mcp.running():
            for revision in ("2025-11-25", "2026-07-28"):
                async with Client(mcp, revision=revision, timeout=WAIT) as client:
                    it = client.server
                    seen.append((it.name, it.title, it.version, it.website_url, it.icons))
        assert seen[0] == seen[1]
        return [*seen[0]]

    unnamed = server_of_upstream(shlex.join(command))
    assert await ask(unnamed) == ["strange", "A Stranger", "7.1", "https://strange.example.com", (icon,)]
    # The operator's own name and title stay together.
    assert await ask(make_gateway(command)) == ["front", None, "7.1", "https://strange.example.com", (icon,)]
    mcp = Server("front", version="2", info=Info(title="Front", website_url="https://front.example.com"))
    mcp.upstream("odd", command, start_timeout=WAIT)
    assert await ask(mcp) == ["front", "Front", "2", "https://front.example.com", (icon,)]
    mcp = Server("front")
    for name in ("one", "two"):
        mcp.upstream(name, command, start_timeout=WAIT)
    assert await ask(mcp) == ["front", None, "0", None, ()]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("java -cp '/opt/peer/lib/*' Peer.java", "Peer.java"),
        ('node "/srv/my shop/dist/index.js" --verbose', "index.js"),
        ("npx -y @acme/shop@1.2 /data", "shop@1.2"),
        ("python -m shop_server --db shop.db", "shop_server"),
        (["python", "-W", "ignore::UserWarning", "/srv/my shop/shop.py"], "shop.py"),
        ("/usr/bin/shop-server --stdio", "shop-server"),
    ],
)
def test_server_of_a_command_has_the_name_of_its_program(command: str | list[str], name: str) -> None:
    assert server_of_upstream(command).name == name


async def test_unusable_information_about_an_upstream_is_omitted() -> None:
    about = {"name": "x" * 5000, "version": "1\x1b[2J", "title": 5, "icons": [{"src": 5}], "websiteUrl": None}
    mcp = server_of_upstream(shlex.join(stranger({"tools": {}}, LISTS, serverInfo=about)))
    async with Client(mcp, timeout=WAIT) as client:
        assert [each.name for each in await client.tools()] == ["go"]
        assert client.server.version == "0"
        assert client.server.title is None
        assert 0 < len(client.server.name) < 256


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_subscriptions_and_completion_are_announced_if_an_upstream_has_them(revision: str) -> None:
    has: Json = {"tools": {}, "prompts": {}, "resources": {"subscribe": True}, "completions": {}}
    for capabilities, expected in ((has, True), (ALL, False)):
        async with Client(make_gateway(stranger(capabilities, LISTS)), revision=revision, timeout=WAIT) as client:
            assert client.capabilities["resources"].get("subscribe", False) is expected
            assert ("completions" in client.capabilities) is expected


def listing(kind: str, *names: str) -> Json:
    """Return the members of a response that lists items with these names or URIs."""
    schema = {"inputSchema": {"type": "object"}} if kind == "tools" else {"name": "x"}
    return {"result": {kind: [{**schema, "uri" if kind == "resources" else "name": name} for name in names]}}


LOOK_ALIKES = [
    "Send_Mail", "SEND_MAIL", "send-mail", "sendMail", "send_mai1", "send_maiI", "s\u00e9nd_mail", "send\u200d_mail",
    # Cyrillic, then full width
    "s\u0435nd_mail", "\u0455end_mail", "send_ma\u0456l", "\u0405END_MAIL", "\uff33end_\uff4dail", "send\uff3fmail",
]  # fmt: skip


async def test_pinned_upstream_cannot_add_a_tool_that_looks_like_another(tmp_path: Path) -> None:
    later = ["send_letter", "send_mail2", *LOOK_ALIKES]
    replies = {"tools/list": [listing("tools", "send_mail"), listing("tools", *later)]}
    store = f"sqlite:///{tmp_path / 'pins.db'}"
    mcp = Server("front", store=store)
    mcp.upstream("odd", stranger({"tools": {}}, replies), trust="pin", prefix="", start_timeout=WAIT)
    async with mcp.running() as runtime, Client(mcp, timeout=WAIT) as client, client.watch(tools=True) as changes:
        assert [each.name for each in await client.tools()] == ["send_mail"]
        upstream = upstream_of(runtime)
        upstream.lists.refresh()
        await anext(changes)
        assert [each.name for each in await client.tools(fresh=True)] == ["send_letter", "send_mail2"]
        assert {each.name for each in upstream.lists.quarantined} == set(LOOK_ALIKES)


async def test_accepted_names_cannot_be_imitated(tmp_path: Path) -> None:
    lock = tmp_path / "gateway.lock"
    AcceptedFile(lock).accept("odd", "tools", {"send_mail": {"name": "send_mail", "inputSchema": {"type": "object"}}})
    command = stranger({"tools": {}}, {"tools/list": listing("tools", *LOOK_ALIKES, "send_mail")})
    mcp = make_gateway(command, trust="pin", policy=UpstreamPolicy(pins=str(lock)))
    async with Client(mcp, timeout=WAIT) as client:
        assert [each.name for each in await client.tools()] == ["send_mail"]


async def test_quarantined_resource_cannot_be_read_in_another_spelling(tmp_path: Path) -> None:
    secret = "file:///etc/Secret.txt"
    spellings = [
        secret, "FILE:///etc/Secret.txt", "file:///etc/./Secret.txt", "file:///etc/x/../Secret.txt",
        "file:///etc/Secret%2Etxt", "file:///etc//Secret.txt", "file://localhost/etc/Secret.txt",
        "file:/etc/Secret.txt", "file:///etc/secret.txt",
        "file:///etc/Secret.txt#top", "file:///etc/Secret.txt/", "file:///etc/%2553ecret.txt", "file:///etc/\uff33ecret.txt",
        "file:\\\\\\etc\\Secret.txt", "file:///etc/Secret%2etxt", "file://LOCALHOST/etc/Secret.txt", "file:////etc/Secret.txt",
        "file:///etc/%2e/Secret.txt", "file:///etc/x/%252e%252e/Secret.txt", "file:///etc/Secret.txt/x/..",
        "file:///etc/%EF%BC%B3ecret.txt", "file:///etc/%25EF%25BC%25B3ecret.txt", "file:///etc/Secret\u2024txt",
        "file:///etc%2FSecret.txt", "file:///etc%5CSecret.txt", "file:///etc/\uff05\uff15\uff13ecret.txt",
        "file:///etc/Secret.txt?", "file:///etc/Secret.txt?x=1", "file:///etc/Secret.txt/?", "file:///etc/Secret.txt%3F",
        "file:///etc/Secret.txt#", "file:///etc/Secret.txt?#", "file:///etc/Secret.txt%23x", "file:///etc/Secret.txt;x",
        "file:///etc/Secret.txt ", " file:///etc/Secret.txt", "file:///etc/Sec\nret.txt", "file:///etc/Sec%C2%ADret.txt",
        "file:///etc/Secret.txt%00.png", "file:///etc/Secret.txt.", "file://127.0.0.1/etc/Secret.txt",
        "file:///etc/%" + "25" * 10 + "53ecret.txt",
    ]  # fmt: skip
    lock = tmp_path / "gateway.lock"
    AcceptedFile(lock).accept("odd", "resources", {secret: {"uri": secret, "name": "harmless"}})
    templates = {"result": {"resourceTemplates": [{"uriTemplate": "file:///etc/{+path}", "name": "x"}]}}
    replies = {
        "resources/list": listing("resources", secret),
        "resources/read": {"result": {"contents": [{"uri": secret, "text": "leaked"}]}},
    }
    for more in ({}, {"resources/templates/list": templates}):
        for prefix in ("", "odd"):
            mcp = Server("front")
            policy = UpstreamPolicy(pins=str(lock))
            command = stranger({"resources": {}}, {**replies, **more})
            mcp.upstream("odd", command, trust="pin", policy=policy, prefix=prefix, start_timeout=WAIT)
            async with Client(mcp, timeout=WAIT) as client:
                assert not await client.resources()
                for uri in spellings:
                    prefixed = uri.replace("://", "://odd/", 1) if "://" in uri else f"odd+{uri}"
                    with pytest.raises(ServerError, match="not found"):
                        await client.read(prefixed if prefix else uri)
                other = "file://odd/etc/other" if prefix else "file:///etc/other"
                assert (await client.read(other))[0].text == "leaked"


async def test_quarantined_query_and_template_cover_only_longer_uris(tmp_path: Path) -> None:
    item, template = "shop://items?id=1", "file:///Etc/{name}"
    hidden = [
        item, "SHOP://Items/?id=1", "shop://items?id=1&x=2", "shop://items?x&id=1", "shop://items?id%3D1#x",
        "file:///Etc/a", "FILE:///etc/a", "file:///Etc/a?x", "file:///Etc/a/", "file:///Etc/x/../a",
    ]  # fmt: skip
    offered = ["shop://items?id=2", "shop://items?id=12", "shop://items", "shop://items/more?id=1", "file:///var/a"]
    lock = tmp_path / "gateway.lock"
    AcceptedFile(lock).accept("odd", "resources", {item: {"uri": item, "name": "harmless"}})
    AcceptedFile(lock).accept("odd", "templates", {template: {"uriTemplate": template, "name": "harmless"}})
    command = stranger(
        {"resources": {}},
        {
            "resources/list": listing("resources", item),
            "resources/templates/list": {"result": {"resourceTemplates": [{"uriTemplate": template, "name": "x"}]}},
            "resources/read": {"result": {"contents": [{"uri": item, "text": "read"}]}},
        },
    )
    mcp = make_gateway(command, trust="pin", policy=UpstreamPolicy(pins=str(lock)))
    async with Client(mcp, timeout=WAIT) as client:
        for uri in hidden:
            with pytest.raises(ServerError, match="not found"):
                await client.read(uri)
        for uri in offered:
            assert (await client.read(uri))[0].text == "read"


async def test_denied_uris_are_denied_with_an_empty_query_and_with_a_fragment() -> None:
    read: Json = {"result": {"contents": [{"uri": "memo://a", "text": "read"}]}}
    command = stranger({"resources": {}}, {"resources/list": listing("resources"), "resources/read": read})
    async with Client(make_gateway(command, policy=UpstreamPolicy(deny=("memo://a",))), timeout=WAIT) as client:
        assert (await client.read("memo://a?x"))[0].text == "read"
        for suffix in ("", "?", "#", "#top", "?#top", "??"):
            with pytest.raises(ServerError, match="not found"):
                await client.read(f"memo://a{suffix}")


def test_missing_resource_is_reported_even_if_templates_cannot_be_listed() -> None:
    server = stranger(ALL, {**LISTS, "resources/read": {"error": {"code": -32002, "message": "Gone."}}})
    done = run_command_line("read", server, "memo://2")
    assert done.returncode == 1
    assert "memo://2" in done.stderr
    assert "Error: Method not found" not in done.stderr


def test_doctor_accepts_a_server_that_rejects_a_list() -> None:
    done = run_command_line("doctor", stranger(ALL, LISTS))
    assert "1 tool, 1 resource, 0 templates, 0 prompts" in done.stdout + done.stderr
    assert done.returncode == 0


STRICT = r"""
import json, sys
KNOWN = {"elicitation": set(), "roots": {"listChanged"}, "sampling": set()}
for line in sys.stdin:
    message = json.loads(line)
    method, answer = message.get("method"), {"result": {}}
    if method == "initialize":
        declared = message["params"]["capabilities"]
        odd = [each for name, value in declared.items() for each in set(value) - KNOWN.get(name, set())]
        about = {"name": "strict", "version": "1"}
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": about}
        answer = {"result": result}
        if odd:
            answer = {"error": {"code": -32602, "message": f"Unrecognized field '{odd[0]}' (class Sampling)"}}
    elif method == "tools/list":
        answer = {"result": {"tools": [{"name": "go", "inputSchema": {"type": "object"}}]}}
    elif method != "ping":
        answer = {"error": {"code": -32601, "message": "Method not found"}}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}), flush=True)
"""
"""A server that refuses capabilities with members that aren't in its revision, as Java's SDK does."""


async def test_server_that_refuses_newer_members_of_capabilities_is_told_less() -> None:
    mcp = Server("front")
    mcp.upstream("strict", [sys.executable, "-c", STRICT], start_timeout=WAIT)
    async with asyncio.timeout(WAIT), Client(mcp, timeout=WAIT) as client:
        assert [each.name for each in await client.tools()] == ["strict_go"]
