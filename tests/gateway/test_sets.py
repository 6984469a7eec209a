"""Sets: choices of a server's items, each at an address of its own, as their clients see them."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from auth_world import ALICE, BOB, make_key_auth, run_guarded
from http_peer import serve
from millstream import Client, Context, Server, Settings
from millstream._app.gateway_server import server_of_file
from millstream.client import Options, ServerError
from millstream.gateway import ResourcePolicy, SetConfig, ToolPolicy, UpstreamPolicy
from millstream.middleware import ListRequest, MessageRequest, Middleware, Next
from patience import WAIT
from wire import POST, Wire, per_request, request, routing, run_wire

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
async def open_at(port: int, path: str, revision: str = "2026-07-28", **options: Any) -> AsyncIterator[Client]:
    """Connect to an address of a server."""
    async with Client(
        f"http://127.0.0.1:{port}{path}", revision=revision, timeout=WAIT, options=Options(**options)
    ) as client:
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
    mcp.offer("/mcp/interns", allow=["add", "files_read", "doc://files/i*", "greet"], instructions="For interns.")
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
    mcp.offer("/mcp/interns", allow=["add", "greet", "doc://files/index"])
    outside = {"tool": "order", "upstream": "files_delete", "bare": "delete", "prompt": "files_review"}
    uris = "doc://files/secret", "doc://secret", "DOC://files/%73ecret", "doc://files/x/../secret", "shop://opening-hours"
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
    mcp.offer("/mcp/interns", allow=["add"])
    mcp.offer("/mcp/staff")
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
        "group": ({"with_groups": ["staff"]}, {"files_delete"}),
        "deny": ({"deny": ["*_*"]}, {"add", "reveal"}),
    }
    for name, (options, _) in expected.items():
        mcp.offer(f"/{name}", **options)
    async with run_guarded(mcp) as running:
        del running
        for name, (_, tools) in expected.items():
            chosen = mcp.runtimes.current.dispatcher.find_address(name)  # some callers see less
            assert {*chosen.registry.tools} == {*tools}, name
