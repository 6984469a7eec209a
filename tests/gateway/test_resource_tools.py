"""Tools that read resources and prompts, for clients that only know tools."""

import json
from typing import Any

import pytest

from auth_world import ALICE, BOB, make_key_auth, run_guarded
from http_peer import serve
from millstream import Client, Context, Image, Server, Settings
from millstream.client import AccessDenied, Options
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
            (*_, link) = (await alice.call("shop_catalog")).content
            assert "Emma, Momo. " * 1_000 in await ask(alice, "read_resource", uri=link.uri)
        async with Client(
            f"http://127.0.0.1:{guarded.running.port}/mcp", timeout=WAIT, headers={"authorization": f"Bearer {BOB}"}
        ) as bob:
            assert "not found" in await ask(bob, "read_resource", uri=link.uri)


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
    class Odd(Middleware):
        async def on_message(self, request: MessageRequest, next: Next) -> Any:
            odd = {
                "prompts/get": {"messages": [{"role": "user", "content": {"type": "hologram"}}]},
                "resources/read": {"contents": [{"uri": "doc://hours", "blob": 3}]},
            }
            return odd.get(request.method) or await next(request)

    async with Client(make_library(settings=for_all(), middleware=[Odd()]), timeout=WAIT) as client:
        assert "can't be shown" in await ask(client, "get_prompt", name="review", arguments={"book": "x"})
        assert await ask(client, "read_resource", uri="doc://hours") == "The contents of doc://hours are malformed."
