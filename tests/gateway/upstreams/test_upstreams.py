import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from client.feature_walk import changes, resources, tools
from gateway.content_server import LINKED, PICTURE, SOUND, make_library
from millstream import Audio, EmbeddedResource, Image, ResourceLink, Server, Text
from millstream._override import override
from millstream.client import Client, ServerError
from millstream.gateway import OpenApi, UpstreamConfig
from millstream.middleware import Middleware, Next, Request
from millstream.protocol import BY_DATE
from patience import WAIT
from processes import SharedServer, run_command, share_server

pytestmark = pytest.mark.server

SHOP = Path(__file__).parents[2] / "client" / "shop.py"
COMMAND = [sys.executable, "-m", "millstream", "run", str(SHOP), "--transport", "stdio"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    with share_server(
        lambda port: run_command(str(SHOP), port, "--serve", "hub"), tmp_path_factory.mktemp("shop")
    ) as running:
        yield running


async def test_upstream_and_local_tools_are_listed_together(shop: SharedServer) -> None:
    mcp = Server("front", instructions="Be kind.")

    @mcp.tool
    def here() -> str:
        """A tool of the gateway itself."""
        return "here"

    mcp.upstream("web", f"http://127.0.0.1:{shop.port()}/mcp", start_timeout=WAIT)
    mcp.upstream("child", COMMAND, start_timeout=WAIT)
    mcp.upstream("inside", make_library(), start_timeout=WAIT, prefix="in_side")
    async with Client(mcp, timeout=WAIT) as client:
        names = {tool.name for tool in await client.tools()}
        assert {"here", "web_order", "child_order", "in_side_length"} <= names
        assert (await client.call("here")).text == "here"
        assert (await client.call("in_side_length", words=["a", "b"])).text == "2"
        for prefix in ("web", "child"):
            assert (await client.call(f"{prefix}_count", a=2, b=3)).text == "5"
        for part in ("Be kind.", "web (names begin with web_):\nSell books.", "Lend books."):
            assert part in client.instructions


@pytest.mark.parametrize("upstream_revision", [None, *BY_DATE])
async def test_single_upstream_without_prefix_looks_like_the_server(
    shop: SharedServer, upstream_revision: str | None
) -> None:
    origin = f"127.0.0.1:{shop.port()}"
    first = upstream_revision == next(iter(BY_DATE))
    for target in (f"http://{origin}{'/sse' if first else '/mcp'}", f"ws://{origin}/ws"):
        for revision in (None, "2025-06-18"):
            mcp = Server("shop")
            mcp.upstream("shop", target, prefix="", revision=upstream_revision, start_timeout=WAIT)
            async with Client(mcp, revision=revision, timeout=WAIT) as client:
                assert client.instructions == "Sell books."
                await resources(client)
                await changes(client)
                if upstream_revision == revision:
                    await tools(client)


@pytest.mark.parametrize("revision", BY_DATE)
async def test_every_content_type_reaches_every_revision(revision: str) -> None:
    mcp = Server("front")
    mcp.upstream("plain", make_library(), prefix="", start_timeout=WAIT)
    for each in BY_DATE:
        mcp.upstream(each, make_library(each), prefix=f"r_{each[:4]}_{each[5:7]}", revision=each, start_timeout=WAIT)
    spoken = BY_DATE[revision]
    async with Client(mcp, revision=revision, timeout=WAIT) as client:
        for prefix in ("", *(f"r_{each[:4]}_{each[5:7]}" for each in BY_DATE)):
            upstream = BY_DATE[revision] if not prefix else next(r for d, r in BY_DATE.items() if d[5:7] == prefix[-2:])
            name, host = (f"{prefix}_", prefix.replace("_", "-") + "/") if prefix else ("", "")
            linked = LINKED.replace("://", f"://{host}")
            result = await client.call(f"{name}everything")
            assert result.meta["example.com/kept"] == {"n": 1.5}
            blocks = result.content
            assert blocks[:2] == [Text("text"), Image(PICTURE, "image/png")]
            if "audio" in spoken.content and "audio" in upstream.content:
                assert blocks[2] == Audio(SOUND, "audio/wav")
            if "resource_link" in spoken.content and "resource_link" in upstream.content:
                assert blocks[3] == ResourceLink(linked, "notes")
            embedded = blocks[4]
            assert isinstance(embedded, EmbeddedResource)
            assert embedded.resource is not None
            assert embedded.resource.uri == f"book://{host}1"
            if spoken.structured != "none" and upstream.structured != "none":
                assert result.data == {"n": 1}
                assert (await client.call(f"{name}length", words=["a"], result_type=int)) == 1
            assert (await client.read(linked))[0].blob == PICTURE
            assert (await client.read(f"book://{host}7"))[0].uri == f"book://{host}7"
            urn = f"{host[:-1]}+urn:library:hours" if prefix else "urn:library:hours"
            assert (await client.read(urn))[0].text == "9 to 5"
            assert {linked, urn} <= {each.uri for each in await client.resources()}
            messages = (await client.prompt(f"{name}pitch", title="Emma")).messages
            assert messages[0].content == Text("Praise Emma, warm.")
            completed = await client.complete("tone", "w", prompt=f"{name}pitch")
            assert completed.values == ["warm", "wild"]
            completed = await client.complete("isbn", "9", template=f"book://{host}{{isbn}}")
            assert completed.values == ["90", "91", "92"]
            with pytest.raises(ServerError, match="Closed") as refused:
                await client.call(f"{name}refuse")
            assert (refused.value.code, refused.value.data) == (-32099, {"until": "Monday"})
            with pytest.raises(ServerError):
                await client.read(f"book://{host}missing")
            reported: list[tuple[float, float | None, str | None]] = []
            await client.call(f"{name}steps", progress=lambda *what, to=reported: to.append(what))
            assert [each[:2] for each in reported] == [(1, 2)]


@for_each("revision", ["2025-06-18", "2025-11-25", "2026-07-28"])
async def test_middleware_that_passes_a_result_on_does_not_change_it(revision: str) -> None:
    class Watching(Middleware):
        @override
        async def on_call(self, request: Request, next: Next) -> Any:
            return await next(request)

    library = Server("library")
    library.tool(lambda: 1, name="count", output_schema={"type": "integer"})
    for middleware in ([], [Watching()]):
        mcp = Server("front", middleware=middleware)
        mcp.upstream("lib", library, start_timeout=WAIT)
        async with Client(mcp, revision=revision, timeout=WAIT) as client:
            result = await client.call("lib_count")
        assert json.loads(bytes(result.structured_content or b"")) == (1 if revision == "2026-07-28" else {"result": 1})


async def test_middleware_receives_gateway_uris() -> None:
    seen: list[Any] = []

    class Watching(Middleware):
        @override
        async def on_call(self, request: Request, next: Next) -> Any:
            seen.append((await next(request)).content[3].uri)
            return await next(request)

        @override
        async def on_prompt(self, request: Request, next: Next) -> Any:
            seen.append((await next(request))[1].content.uri)
            return await next(request)

        @override
        async def on_read(self, request: Request, next: Next) -> Any:
            seen.append((await next(request))[0].resource.uri)
            return await next(request)

    mcp = Server("front", middleware=[Watching()])
    mcp.upstream("lib", make_library(), start_timeout=WAIT)
    linked = LINKED.replace("://", "://lib/")
    async with Client(mcp, timeout=WAIT) as client:
        assert (await client.call("lib_everything")).content[3] == ResourceLink(linked, "notes")
        assert (await client.prompt("lib_pitch", title="Emma")).messages[1].content == ResourceLink(linked, "notes")
        assert (await client.read(linked))[0].uri == linked
    assert seen == [linked] * 3


@for_each(
    ("options", "problem"),
    [
        ({"openapi": OpenApi(document={}, hosts=("https://a.example/other/",))}, "in hosts isn't an origin"),
        ({"openapi": OpenApi(document={}, hosts=("a.example:9173",))}, "in hosts isn't an origin"),
        ({"openapi": OpenApi(document={}, hosts=("*",))}, "in hosts isn't an origin"),
        ({"openapi": OpenApi(document={}, references=("../",))}, "in references isn't a URL"),
        ({"headers": {"X-Tenant": "a\r\nX-Role: admin"}}, "X-Tenant contains characters"),
        ({"headers": {"X: Role": "admin"}}, "isn't a valid header name"),
    ],
)
def test_values_that_cannot_be_sent_stop_the_start(options: dict[str, Any], problem: str) -> None:
    target = None if "openapi" in options else "http://127.0.0.1:9/mcp"
    with pytest.raises(ValueError, match=problem):
        UpstreamConfig(name="up", target=target, **options).check()
