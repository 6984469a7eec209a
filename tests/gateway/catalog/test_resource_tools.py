"""Tools that read resources and prompts, for clients that only know tools."""

import json
import re
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI

from auth_world import ALICE, BOB, make_key_auth, run_guarded
from http_peer import serve
from millstream import (
    Client,
    Context,
    EmbeddedResource,
    Image,
    ResourceLink,
    Server,
    Settings,
    Text,
    ToolResult,
)
from millstream.client import AccessDenied, Options, ServerError
from millstream.gateway import ResourcePolicy, ToolPolicy, UpstreamPolicy
from millstream.middleware import ListRequest, MessageRequest, Middleware, Next
from millstream.protocol import BY_DATE
from patience import WAIT

TOOLS = ["list_resources", "read_resource", "list_prompts", "get_prompt"]
PNG = b"\x89PNG\r\n\x1a\n"


def make_library(**options: Any) -> Server:
    mcp = Server("library", **options)

    @mcp.resource("doc://hours", mime_type="text/plain")
    def hours() -> str:
        return "9 to 5"

    @mcp.resource("doc://staff", scopes=["secrets"])
    def staff() -> str:
        return "Ada"

    @mcp.resource("doc://cover", mime_type="image/png")
    def cover() -> bytes:
        return PNG

    @mcp.resource("doc://{shelf}/books")
    async def books(shelf: str, ctx: Context) -> str:
        return f"{shelf}, {await ctx.elicit('How many?', int)} books"

    @mcp.prompt
    def review(book: str) -> str:
        return f"Review {book}."

    @mcp.tool
    def catalog() -> str:
        return "Emma, Momo. " * 1_000

    return mcp


def for_all(**more: Any) -> Settings:
    return Settings(resource_tools="on", **more)


async def ask(client: Client, tool: str, **arguments: Any) -> Any:
    """Return the text of a result, or its only block if that isn't text."""
    result = await client.call(tool, arguments, raise_on_error=False)
    return result.text or result.content[0]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("revision", list(BY_DATE))
async def test_tools_read_what_other_clients_read(revision: str, behind: bool) -> None:
    mcp = make_library(settings=for_all())
    if behind:
        mcp = Server("front", settings=for_all())
        mcp.upstream("shop", make_library())
    place = "doc://shop" if behind else "doc:/"

    async def person(question: Any) -> Any:
        return {"value": 3}

    async with Client(mcp, timeout=WAIT, revision=revision, elicit=person) as client:
        assert set(TOOLS) < {each.name for each in await client.tools()}
        found = json.loads(await ask(client, "list_resources"))
        assert {each["uri"] for each in found["resources"]} == {str(each.uri) for each in await client.resources()}
        assert [each["uriTemplate"] for each in found["resourceTemplates"]] == [f"{place}/{{shelf}}/books"]
        assert await ask(client, "read_resource", uri=f"{place}/hours") == "9 to 5"
        assert await ask(client, "read_resource", uri=f"{place}/cover") == Image(PNG, "image/png")
        if revision >= "2025-06-18":
            assert await ask(client, "read_resource", uri=f"{place}/left/books") == "left, 3 books"
        (prompt,) = json.loads(await ask(client, "list_prompts"))["prompts"]
        assert await ask(client, "get_prompt", name=prompt["name"], arguments={"book": "Emma"}) == "Review Emma."
        assert await ask(client, "read_resource", uri="doc://nowhere") == "Resource not found: doc://nowhere"
        assert await ask(client, "get_prompt", name="none") == "Unknown prompt: 'none'"
        if revision >= "2025-11-25":  # before, invalid arguments are an error of the protocol
            assert "`uri`" in await ask(client, "read_resource")


async def test_pages_of_resources_are_followed_by_pages_of_templates() -> None:
    mcp = Server("many", settings=for_all(page_size=2))
    for number in range(3):
        mcp.resource(f"doc://{number}", name=f"r{number}")(lambda: "")
        mcp.resource(f"doc://{number}/{{x}}", name=f"t{number}")(lambda x: x)
    pages: list[Any] = []
    async with Client(mcp, timeout=WAIT) as client:
        cursor = ""
        while True:
            pages.append(json.loads(await ask(client, "list_resources", **({"cursor": cursor} if cursor else {}))))
            if not (cursor := pages[-1].get("nextCursor", "")):
                break
        names = [
            each["name"] for page in pages for kind in ("resources", "resourceTemplates") for each in page.get(kind, [])
        ]
        assert names == ["r0", "r1", "r2", "t0", "t1", "t2"]
        assert "cursor" in await ask(client, "list_resources", cursor="made up")


@pytest.mark.server
@pytest.mark.parametrize("behind", [False, True])
async def test_callers_read_only_what_they_may_read(behind: bool) -> None:
    mcp = make_library(settings=for_all(), auth=make_key_auth())
    if behind:
        mcp = Server("front", settings=for_all(), auth=make_key_auth())
        rules = {"doc://staff": ResourcePolicy(scopes=("secrets",))}
        mcp.upstream("shop", make_library(), prefix="", policy=UpstreamPolicy(resources=rules))
    async with run_guarded(mcp) as guarded:
        url = f"http://127.0.0.1:{guarded.running.port}/mcp"
        async with Client(url, timeout=WAIT, headers={"authorization": f"Bearer {ALICE}"}) as alice:
            assert "doc://staff" in await ask(alice, "list_resources")
            assert await ask(alice, "read_resource", uri="doc://staff") == "Ada"
        async with Client(url, timeout=WAIT, headers={"authorization": f"Bearer {BOB}"}) as bob:
            assert "doc://staff" not in await ask(bob, "list_resources")
            for read in (bob.read("doc://staff"), bob.call("read_resource", uri="doc://staff")):
                with pytest.raises(AccessDenied, match="secrets"):
                    await read


@pytest.mark.server
async def test_rest_of_a_shortened_result_is_read_by_its_owner_only() -> None:
    mcp = Server("front", settings=for_all(), auth=make_key_auth())
    mcp.upstream("shop", make_library(), policy=UpstreamPolicy(tools={"*": ToolPolicy(result_bytes=100)}))
    async with run_guarded(mcp) as guarded:
        async with Client(
            f"http://127.0.0.1:{guarded.running.port}/mcp", timeout=WAIT, headers={"authorization": f"Bearer {ALICE}"}
        ) as alice:
            uri = (await alice.call("shop_catalog")).text.rpartition(" ")[2]
            assert "Emma, Momo. " * 1_000 in await ask(alice, "read_resource", uri=uri)
        async with Client(
            f"http://127.0.0.1:{guarded.running.port}/mcp", timeout=WAIT, headers={"authorization": f"Bearer {BOB}"}
        ) as bob:
            assert "not found" in await ask(bob, "read_resource", uri=uri)


async def test_hooks_see_what_tools_read() -> None:
    seen: list[str] = []

    class Hide(Middleware):
        async def on_message(self, request: MessageRequest, next: Next) -> Any:
            seen.append(request.method)
            return await next(request)

        async def on_list(self, request: ListRequest, next: Next) -> list[dict[str, Any]]:
            return [each for each in await next(request) if each["name"] != "hours"]

    async with Client(make_library(settings=for_all(), middleware=[Hide()]), timeout=WAIT) as client:
        assert "hours" not in await ask(client, "list_resources")
        await ask(client, "read_resource", uri="doc://cover")
    assert {"resources/list", "resources/templates/list", "resources/read"} < set(seen)


async def test_clients_that_declare_capabilities_do_not_list_them_with_auto() -> None:
    mcp = make_library(settings=Settings(resource_tools="auto"))

    async def person(question: Any) -> Any:
        return {}

    for revision in BY_DATE:
        async with Client(mcp, timeout=WAIT, revision=revision) as plain:
            declared = {"roots": {}} if revision < "2025-06-18" else {}
            assert set(TOOLS) < {each.name for each in await plain.tools()}
        options = Options(extra_capabilities=declared)
        async with Client(mcp, timeout=WAIT, revision=revision, elicit=person, options=options) as able:
            assert [each.name for each in await able.tools()] == ["catalog"]
            assert await ask(able, "read_resource", uri="doc://hours") == "9 to 5"


async def test_their_names_are_taken() -> None:
    mcp = Server("own", settings=for_all())
    mcp.tool(lambda: "", name="read_resource")
    with pytest.raises(ValueError, match="read_resource"):
        async with Client(mcp, timeout=WAIT):
            pass


async def test_they_are_listed_beside_tool_search() -> None:
    async with Client(make_library(settings=for_all(tool_search=True)), timeout=WAIT) as client:
        assert {each.name for each in await client.tools()} == {"search_tools", "call_tool", *TOOLS}


@pytest.mark.server
async def test_tools_at_another_address_keep_to_its_set() -> None:
    mcp = make_library(settings=for_all())
    mcp.add_set("/mcp/readers", allow=["doc://hours"])
    async with mcp.running(), serve(mcp) as running:
        url = f"http://127.0.0.1:{running.port}/mcp/readers"
        for revision in ("2025-11-25", "2026-07-28"):
            async with Client(url, timeout=WAIT, revision=revision) as client:
                assert {each.name for each in await client.tools()} == set(TOOLS)
                assert [each["uri"] for each in json.loads(await ask(client, "list_resources"))["resources"]] == [
                    "doc://hours"
                ]
                assert await ask(client, "read_resource", uri="doc://hours") == "9 to 5"
                assert await ask(client, "read_resource", uri="doc://cover") == "Resource not found: doc://cover"
                assert (
                    await ask(client, "get_prompt", name="review", arguments={"book": "x"})
                    == "Unknown prompt: 'review'"
                )


async def test_malformed_and_unknown_contents_are_explained() -> None:
    odd: dict[str, Any] = {"resources/read": {"contents": [{"uri": "doc://hours", "blob": 3}]}}

    class Odd(Middleware):
        async def on_message(self, request: MessageRequest, next: Next) -> Any:
            return odd.get(request.method) or await next(request)

    async with Client(make_library(settings=for_all(), middleware=[Odd()]), timeout=WAIT) as client:
        unknown, known = {"type": "hologram"}, {"type": "text", "text": "Hi"}
        for message in ({"role": "user", "content": unknown}, {"content": known}, {"role": "user"}, "Hi"):
            odd["prompts/get"] = {"messages": [message]}
            assert "can't be shown" in await ask(client, "get_prompt", name="review", arguments={"book": "x"})
        assert await ask(client, "read_resource", uri="doc://hours") == "The contents of doc://hours are malformed."


# Results that are shortened

LONG = "\n".join(f"line {number}" for number in range(5_000))
SHORT = UpstreamPolicy(result_bytes=500)
RESULTS: dict[str, Any] = {
    "text": LONG,
    "value": {"lines": LONG.splitlines()},
    "error": ToolResult(LONG, is_error=True),
    "small_image": [Text(LONG), Image(PNG, "image/png")],
    "large_image": [Text("A cover"), Image(PNG * 200, "image/png")],
    "embedded": [EmbeddedResource("doc://a", text=LONG)],
    "link": [Text(LONG), ResourceLink("doc://a", "a")],
    "both": ToolResult("3 lines", {"lines": LONG}),
    "repeated": ToolResult("x" * 400, {"result": "x" * 400}),
}


def make_reports(**options: Any) -> Server:
    """Return a gateway in front of a server whose results are longer than `SHORT` allows."""
    upstream, mcp = Server("reports"), Server("front", **options)
    for name, result in RESULTS.items():
        upstream.tool(lambda result=result: result, name=name, input_schema={"type": "object"})
    mcp.upstream("shop", upstream, policy=SHORT, start_timeout=WAIT)
    return mcp


def find_uri(text: str) -> str:
    return text.rpartition(" ")[2]


async def read_on(client: Client, text: str) -> list[Any]:
    """Return the content that a model gets by following the notes in results."""
    found: list[Any] = []
    uri, note = find_uri(text), text
    while (offset := re.search(r"offset (\d+)", note)) is not None:
        content = (await client.call("read_resource", uri=uri, offset=int(offset[1]))).content
        note = getattr(content[-1], "text", "")
        found += content[:-1] if note.startswith("[Up to here") else content
        note = note if note.startswith("[Up to here") else ""
    return found


@pytest.mark.parametrize("revision", list(BY_DATE))
async def test_shortened_result_has_only_blocks_that_the_tool_returned(revision: str) -> None:
    link = "resource_link" if revision >= "2025-06-18" else "text"
    kept = {"small_image": ["text", "image"], "link": ["text", link] if link != "text" else ["text"]}
    whole = ("repeated",) if revision >= "2025-06-18" else ("repeated", "both")
    async with Client(make_reports(), timeout=WAIT, revision=revision) as client:
        for tool in RESULTS:
            result = await client.call(f"shop_{tool}", raise_on_error=False)
            kinds = [msgspec.to_builtins(each)["type"] for each in result.content]
            assert kinds == kept.get(tool, ["text"]), tool
            assert find_uri(result.content[0].text).startswith("result://shop/") is (tool not in whole), tool
            assert result.is_error is (tool == "error")
            assert result.structured_content is msgspec.UNSET


@pytest.mark.parametrize("revision", list(BY_DATE))
async def test_model_that_reads_on_gets_the_whole_result(revision: str) -> None:
    value = json.dumps(RESULTS["value"], separators=(",", ":"))
    both = json.dumps({"lines": LONG}, separators=(",", ":"))
    texts = {"value": value, "both": f"3 lines{both}", "large_image": "A cover"}
    is_json = "application/json" if revision >= "2025-06-18" else "text/plain"  # before, texts are all there is
    kinds = {"value": [is_json], "both": ["text/plain", "application/json"], "embedded": [None]}
    async with Client(make_reports(), timeout=WAIT, revision=revision) as client:
        for tool in RESULTS.keys() - {"link", "repeated", "" if revision >= "2025-06-18" else "both"}:
            text = (await client.call(f"shop_{tool}", raise_on_error=False)).content[0].text
            rest = await read_on(client, text)
            whole = text[: text.rindex("[")].removesuffix("\n")
            whole += "".join(each.text for each in rest if isinstance(each, Text))
            assert whole == texts.get(tool, LONG), tool
            assert isinstance(rest[-1], Image) is ("image" in tool)
            contents = [each for each in await client.read(find_uri(text)) if each.text is not None]
            assert "".join(each.text or "" for each in contents) == whole
            assert [each.mime_type for each in contents] == kinds.get(tool, ["text/plain"]), tool


async def test_numbers_in_a_note_count_what_is_read() -> None:
    async with Client(make_reports(), timeout=WAIT) as client:
        text = (await client.call("shop_text")).text
        assert f"[The first 500 of {len(LONG):,} characters. To read on, call read_resource with offset 500" in text
        assert (await client.read(find_uri(text)))[0].text == LONG
        assert "Use a smaller offset" in await ask(client, "read_resource", uri=find_uri(text), offset=10**6)
        assert "offset" in await ask(client, "read_resource", uri=find_uri(text), offset=-1)


async def list_names(client: Client) -> set[str]:
    return {each.name for each in await client.tools(fresh=True)}


@pytest.mark.parametrize("kind", ["relay", "prefix", "search", "API"])
@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_only_the_reader_is_listed_beside_results_that_can_be_shortened(kind: str, revision: str) -> None:
    mcp = Server("front", settings=Settings(tool_search=kind == "search"))
    policy = UpstreamPolicy(tools={"report": ToolPolicy(result_bytes=500)})
    options: dict[str, Any] = {"policy": policy, "start_timeout": WAIT, "prefix": "" if kind == "relay" else "shop"}
    if kind == "API":
        api = FastAPI()
        api.get("/", operation_id="report")(lambda: LONG)
        mcp.upstream("shop", openapi=api, **options)
    else:
        upstream = Server("shop")
        upstream.tool(lambda: LONG, name="report")
        mcp.upstream("shop", upstream, **options)
    name = "report" if kind == "relay" else "shop_report"
    async with Client(mcp, timeout=WAIT, revision=revision) as client:
        listed = {"search_tools", "call_tool"} if kind == "search" else {name}
        assert await list_names(client) == listed | {"read_resource"}
        text = (await client.call(name)).text
        assert "line 4999" in str(await read_on(client, text))
        assert "line 4999" in str(await client.read(find_uri(text)))
        assert "not found" in await ask(client, "read_resource", uri="doc://other")


@pytest.mark.server
async def test_sets_have_the_reader_if_they_have_results_that_can_be_shortened() -> None:
    mcp = make_reports()
    mcp.upstream("library", make_library(), start_timeout=WAIT)
    mcp.add_set("/closed", allow=["shop_text"], short_names=True)
    mcp.add_set("/other", upstreams=["library"])
    mcp.add_set("/denied", upstreams=["shop"], deny=["read_resource"])
    async with mcp.running(), serve(mcp) as running:

        def open_at(path: str) -> Client:
            return Client(f"http://127.0.0.1:{running.port}{path}", timeout=WAIT)

        async with open_at("/closed") as client:
            assert await list_names(client) == {"text", "read_resource"}
            uri = find_uri((await client.call("text")).text)
            assert "line 1" in await ask(client, "read_resource", uri=uri)
        async with open_at("/other") as client:
            assert await list_names(client) == {"library_catalog"}
        async with open_at("/denied") as client:
            assert "read_resource" not in await list_names(client)
            text = (await client.call("shop_text")).text
            assert "read_resource" not in text
            assert (await client.read(find_uri(text)))[0].text == LONG
            with pytest.raises(ServerError, match="Unknown tool"):
                await ask(client, "read_resource", uri=uri)
        async with open_at("/mcp") as client:
            assert "not found" in await ask(client, "read_resource", uri=uri)


@pytest.mark.parametrize("owner", ["server", "upstream", "set"])
async def test_item_with_the_name_of_the_reader_wins(owner: str) -> None:
    upstream, mcp = Server("shop"), Server("front")
    upstream.tool(lambda: LONG, name="report")
    if owner == "server":
        mcp.tool(lambda: "mine", name="read_resource")
    else:
        upstream.tool(lambda: "mine", name="read_resource")
    mcp.upstream("shop", upstream, policy=SHORT, start_timeout=WAIT, prefix="" if owner == "upstream" else "s")
    mcp.add_set("/short", short_names=True)
    async with mcp.running(), serve(mcp) as running:
        path, name = (
            ("/short", "report") if owner == "set" else ("/mcp", "report" if owner == "upstream" else "s_report")
        )
        async with Client(f"http://127.0.0.1:{running.port}{path}", timeout=WAIT) as client:
            assert await list_names(client) == {name, "read_resource"}
            assert await ask(client, "read_resource") == "mine"
            text = (await client.call(name)).text
            assert "read_resource" not in text
            assert (await client.read(find_uri(text)))[0].text == LONG


async def test_name_of_the_reader_is_free_again_when_its_item_is_gone() -> None:
    upstream, mcp = Server("shop"), Server("front")
    upstream.tool(lambda: LONG, name="report")
    mcp.upstream("shop", upstream, policy=SHORT, start_timeout=WAIT, prefix="")

    async def describe_reader() -> str | None:
        return next(each.description for each in await client.tools(fresh=True) if each.name == "read_resource")

    async with Client(mcp, timeout=WAIT) as client, client.watch(tools=True) as changes:
        ours = await describe_reader()
        upstream.tool(lambda uri: "mine", name="read_resource", description="Mine")
        while await describe_reader() != "Mine":
            await anext(changes)
        upstream.remove_tool("read_resource")
        while await describe_reader() != ours:
            await anext(changes)
        text = (await client.call("report")).text
        assert "line 4999" in str(await read_on(client, text))


async def test_clients_that_declare_capabilities_list_the_reader_with_auto() -> None:
    async def person(question: Any) -> Any:
        return {}

    mcp = make_reports(settings=Settings(resource_tools="auto"))
    async with Client(mcp, timeout=WAIT, elicit=person) as client:
        assert await list_names(client) & set(TOOLS) == {"read_resource"}
    async with Client(mcp, timeout=WAIT) as client:
        assert set(TOOLS) < await list_names(client)
