"""Results of a server's own tools that are shortened: ``@mcp.tool(result_tokens=2000)``."""

import asyncio
import re
import signal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from auth_world import ALICE, BOB, make_key_auth, run_guarded
from http_peer import serve
from millstream import Client, Context, Image, Server, Settings, Text, ToolError, ToolResult
from millstream.client import ServerError
from millstream.gateway import UpstreamPolicy
from millstream.middleware import Middleware, Next, Request
from millstream.protocol import BY_DATE
from millstream.testing import connect
from patience import WAIT
from redis_parts import RedisServer

LONG = "\n".join(f"line {number}" for number in range(5_000))
SHOWN = LONG[:400]


def make_reports(**options: Any) -> Server:
    mcp = Server("reports", **options)

    @mcp.tool(result_tokens=100)
    async def report() -> str:
        return LONG

    @mcp.tool(result_tokens=100)
    def lines(count: int = 5_000) -> dict[str, list[str]]:
        return {"lines": LONG.splitlines()[:count]}

    @mcp.tool
    def whole() -> str:
        return LONG

    return mcp


def find_uri(text: str) -> str:
    assert "To read on, call read_resource with offset 400" in text
    return text.rpartition(" ")[2]


async def read_on(client: Client, uri: str) -> str:
    """Return what a model reads that follows the notes in results."""
    found, offset = "", 0
    while True:
        content = [*(await client.call("read_resource", uri=uri, offset=offset)).content]
        note = re.search(r"use offset (\d+)\.\]$", getattr(content[-1], "text", "")) if len(content) > 1 else None
        found += "".join(each.text for each in (content[:-1] if note else content) if isinstance(each, Text))
        if note is None:
            return found
        offset = int(note[1])


@pytest.mark.parametrize("revision", list(BY_DATE))
async def test_long_results_are_shortened_and_readable(revision: str) -> None:
    async with Client(make_reports(), timeout=WAIT, revision=revision) as client:
        listed = {each.name: each for each in await client.tools()}
        assert [*listed] == ["report", "lines", "whole", "read_resource"]
        assert listed["lines"].output_schema is None
        assert [each.uri_template for each in await client.templates()] == ["result://{id}"]
        result = await client.call("report")
        assert result.text.startswith(f"{SHOWN}\n[The first 400 of {len(LONG):,} characters.")
        assert await read_on(client, find_uri(result.text)) == LONG
        assert (await client.read(find_uri(result.text)))[0].text == LONG
        values = await client.call("lines")
        assert not isinstance(values.structured_content, dict)
        assert '"line 4999"]}' in await read_on(client, find_uri(values.text))
        few = await client.call("lines", count=2)
        assert few.text == '{"lines":["line 0","line 1"]}'
        assert (await client.call("whole")).text == LONG


async def test_errors_and_other_blocks_are_shortened_as_well() -> None:
    mcp = Server("reports")

    @mcp.tool(result_tokens=100)
    def fail(how: str) -> ToolResult:
        if how == "raise":
            raise ToolError(LONG)
        if how == "briefly":
            raise ToolError("It's closed.")
        return ToolResult(LONG, is_error=True, meta={"example.com/shelf": 1})

    @mcp.tool(result_tokens=100)
    def cover() -> list[Any]:
        return [Text(LONG), Image(b"png", "image/png"), Image(b"x" * 1_000, "image/png")]

    async with connect(mcp) as client:
        for how in ("raise", "return"):
            result = await client.call("fail", how=how, raise_on_error=False)
            assert result.is_error
            assert await read_on(client, find_uri(result.text)) == LONG
        assert result.meta is not None
        assert result.meta["example.com/shelf"] == 1
        assert (await client.call("fail", how="briefly", raise_on_error=False)).text == "It's closed."
        content = (await client.call("cover")).content
        assert [type(each) for each in content] == [Text, Image]


async def test_servers_without_the_option_list_nothing_more() -> None:
    mcp = Server("reports")
    mcp.tool(lambda: LONG, name="whole")
    async with connect(mcp) as client:
        assert [each.name for each in await client.tools()] == ["whole"]
        assert await client.templates() == []


async def test_the_first_such_tool_can_be_added_while_the_server_runs() -> None:
    mcp = Server("reports")
    mcp.tool(lambda: "more", name="other")
    async with connect(mcp) as client:
        assert [each.name for each in await client.tools()] == ["other"]
        mcp.tool(lambda: LONG, name="report", result_tokens=100)
        assert {each.name for each in await client.tools(fresh=True)} == {"other", "report", "read_resource"}
        assert await read_on(client, find_uri((await client.call("report")).text)) == LONG


async def test_items_beside_the_tools_end_with_the_server() -> None:
    mcp = make_reports()
    for _ in range(2):
        async with connect(mcp) as client:
            assert "read_resource" in {each.name for each in await client.tools()}
    other = Server("other")
    other.mount(mcp, "shop")
    async with connect(other) as client:
        names = {each.name for each in await client.tools()}
        assert names == {"shop_report", "shop_lines", "shop_whole", "read_resource"}
        assert await read_on(client, find_uri((await client.call("shop_report")).text)) == LONG


async def test_a_tool_of_that_name_is_kept() -> None:
    mcp = make_reports()
    mcp.tool(
        lambda uri: f"mine: {uri}", name="read_resource", input_schema={"type": "object", "properties": {"uri": {}}}
    )
    async with connect(mcp) as client:
        text = (await client.call("report")).text
        uri = text.rpartition(" ")[2]
        assert "All of it is at this URI" in text
        assert (await client.call("read_resource", uri=uri)).text == f"mine: {uri}"
        assert (await client.read(uri))[0].text == LONG


async def test_a_template_with_the_same_uri_is_refused() -> None:
    mcp = make_reports()
    mcp.resource("result://{id}", name="results")(lambda id: id)
    with pytest.raises(ValueError, match="result://"):
        async with connect(mcp):
            pass


async def test_middleware_sees_the_shortened_result() -> None:
    seen: list[Any] = []

    class Watch(Middleware):
        async def on_call(self, request: Request, next: Next) -> Any:
            seen.append(await next(request))
            return seen[-1]

    async with connect(make_reports(middleware=[Watch()])) as client:
        await client.call("report")
        await client.call("lines", count=1)
    assert isinstance(seen[0], ToolResult)
    assert len(str(seen[0].content)) < 1_000
    assert seen[1] == {"lines": ["line 0"]}


async def test_repeats_get_the_same_shortened_result() -> None:
    mcp, runs = Server("reports"), list[int]()

    @mcp.tool(result_tokens=100, idempotency=True)
    def report() -> str:
        runs.append(1)
        return LONG

    async with connect(mcp) as client:
        uris = {find_uri((await client.call("report", meta={"idempotencyKey": "a"})).text) for _ in range(2)}
        assert len(uris) == len(runs) == 1
        assert await read_on(client, uris.pop()) == LONG


async def test_results_of_tasks_are_shortened() -> None:
    mcp = Server("reports")

    @mcp.tool(result_tokens=100, task="required")
    async def report(ctx: Context) -> str:
        await asyncio.sleep(0)
        return LONG

    async with connect(mcp) as client:
        assert await read_on(client, find_uri((await client.call("report", task=True)).text)) == LONG


@pytest.mark.server
async def test_callers_cannot_read_each_others_results() -> None:
    async with run_guarded(make_reports(auth=make_key_auth())) as guarded:
        url = f"http://127.0.0.1:{guarded.running.port}/mcp"
        async with Client(url, timeout=WAIT, headers={"authorization": f"Bearer {ALICE}"}) as alice:
            uri = find_uri((await alice.call("report")).text)
            assert await read_on(alice, uri) == LONG
        async with Client(url, timeout=WAIT, headers={"authorization": f"Bearer {BOB}"}) as bob:
            with pytest.raises(ServerError, match="not found"):
                await bob.read(uri)


@pytest.mark.server
async def test_sets_have_results_of_their_own() -> None:
    mcp = make_reports()
    mcp.add_set("/short", allow=["report"])
    async with mcp.running(), serve(mcp) as running:
        address = f"http://127.0.0.1:{running.port}"
        async with Client(f"{address}/short", timeout=WAIT) as client, Client(address + "/mcp", timeout=WAIT) as main:
            assert {each.name for each in await client.tools()} == {"report", "read_resource"}
            uri = find_uri((await client.call("report")).text)
            assert await read_on(client, uri) == LONG
            with pytest.raises(ServerError, match="not found"):
                await main.read(uri)


async def test_results_outlive_a_restart(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'reports.db'}"
    async with connect(make_reports(store=store)) as client:
        uri = find_uri((await client.call("report")).text)
    async with connect(make_reports(store=store)) as client:
        assert await read_on(client, uri) == LONG


@pytest.mark.server
async def test_results_are_shortened_while_the_store_is_frozen() -> None:
    redis = RedisServer()
    try:
        mcp = make_reports(store=redis.url)
        async with mcp.running() as runtime, Client(mcp, timeout=WAIT) as client:
            assert redis.process is not None
            redis.process.send_signal(signal.SIGSTOP)
            try:
                text = (await client.call("report")).text
                assert text.startswith(SHOWN)
                assert text.endswith("The rest couldn't be stored. Request less, or try again later.]")
                assert not await runtime.store_health.look()
                assert "The store doesn't respond" in {each.what for each in runtime.host.store.troubles.describe()}
            finally:
                redis.process.send_signal(signal.SIGCONT)
            while "couldn't be stored" in (text := (await client.call("report")).text):
                pass
            assert await read_on(client, find_uri(text)) == LONG
    finally:
        redis.close()


@pytest.mark.parametrize("prefix", ["", "shop"])
async def test_own_tools_of_a_gateway_are_shortened_beside_its_upstreams(prefix: str) -> None:
    upstream = Server("library")
    upstream.tool(lambda: LONG, name="catalog")
    mcp = make_reports()
    policy = UpstreamPolicy(result_tokens=100)
    mcp.upstream("library", upstream, prefix=prefix, policy=policy, start_timeout=WAIT)
    async with connect(mcp) as client:
        names = [each.name for each in await client.tools()]
        assert names.count("read_resource") == 1
        for name in ("report", f"{prefix}_catalog" if prefix else "catalog"):
            assert await read_on(client, find_uri((await client.call(name)).text)) == LONG


@pytest.mark.server
async def test_sets_of_own_tools_beside_an_upstream_without_prefix_read_results() -> None:
    upstream = Server("library")
    upstream.tool(lambda: LONG, name="catalog")
    mcp = make_reports()
    mcp.upstream("library", upstream, prefix="", policy=UpstreamPolicy(result_tokens=100), start_timeout=WAIT)
    for name in ("report", "catalog"):
        mcp.add_set(f"/{name}", allow=[name])
    async with mcp.running(), serve(mcp) as running:
        for name in ("report", "catalog"):
            async with Client(f"http://127.0.0.1:{running.port}/{name}", timeout=WAIT) as client:
                assert await read_on(client, find_uri((await client.call(name)).text)) == LONG


@pytest.mark.server
async def test_sets_list_the_reader_beside_own_items_unless_they_deny_it() -> None:
    upstream = Server("library")
    upstream.tool(lambda: "", name="find")
    mcp = make_reports()
    mcp.upstream("library", upstream, start_timeout=WAIT)
    mcp.add_set("/own", allow=["whole"])
    mcp.add_set("/without", allow=["report"], deny=["read_resource"])
    mcp.add_set("/library", allow=["library_find"])
    async with mcp.running(), serve(mcp) as running:
        for name, expected in (
            ("own", {"whole", "read_resource"}), ("without", {"report"}), ("library", {"library_find"})
        ):  # fmt: skip
            async with Client(f"http://127.0.0.1:{running.port}/{name}", timeout=WAIT) as client:
                assert {each.name for each in await client.tools()} == expected


@pytest.mark.server
async def test_sets_read_results_of_a_tool_that_is_added_beside_an_upstream_without_prefix() -> None:
    upstream, mcp = Server("library"), Server("reports")
    upstream.tool(lambda: LONG, name="catalog")
    mcp.upstream("library", upstream, prefix="", policy=UpstreamPolicy(result_tokens=100), start_timeout=WAIT)
    mcp.tool(lambda: "", name="other")
    mcp.add_set("/own", allow=["other", "report"])
    async with mcp.running(), serve(mcp) as running:
        mcp.tool(lambda: LONG, name="report", result_tokens=100)
        async with Client(f"http://127.0.0.1:{running.port}/own", timeout=WAIT) as client:
            assert await read_on(client, find_uri((await client.call("report")).text)) == LONG


async def test_clients_that_declare_capabilities_list_the_reader_with_auto() -> None:
    async def person(question: Any) -> Any:
        return {}

    mcp = make_reports(settings=Settings(resource_tools="auto"))
    async with connect(mcp, elicit=person) as client:
        assert {each.name for each in await client.tools()} == {"report", "lines", "whole", "read_resource"}


@pytest.mark.server
async def test_rest_has_the_shortened_result() -> None:
    mcp = make_reports(serve="rest")
    async with mcp.running(), serve(mcp) as running, httpx2.AsyncClient(timeout=WAIT) as http:
        address = f"http://127.0.0.1:{running.port}"
        reply = await http.post(f"{address}/tools/report", json={})
        text = reply.json()["content"][0]["text"]
        assert text.startswith(SHOWN)
        rest = await http.post(f"{address}/tools/read_resource", json={"uri": find_uri(text), "offset": 400})
        assert rest.status_code == 200
        assert "line 100" in rest.text


@pytest.mark.server
async def test_example_of_the_guide_is_shortened() -> None:
    async with Client("examples/sales.py", timeout=WAIT) as client:
        text = (await client.call("sales", year=2026)).text
        beginning, _, note = text.rpartition("\n")
        assert len(beginning) == 6_000
        assert note.startswith("[The first 6,000 of 111,615 characters.")
        whole = await read_on(client, note.rpartition(" ")[2])
        assert whole.startswith(beginning)
        assert whole.endswith("2026-12-30,19,8")


def test_wrong_values_are_explained() -> None:
    mcp = Server("reports")
    for value in (-1, 1.5, True, "2000"):
        with pytest.raises(TypeError, match="result_tokens must be a number of tokens"):
            mcp.tool(lambda: "", name="report", result_tokens=value)  # type: ignore[arg-type]  wrong on purpose
    with pytest.raises(TypeError, match="result_tokens"):
        mcp.tool(lambda: "", name="report", result_token=5)  # type: ignore[call-arg]  misspelled
