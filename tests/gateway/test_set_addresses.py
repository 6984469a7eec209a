"""The addresses of sets over each transport, with and without sign-in, from files, and on several workers."""

import json
import shutil
import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import httpx2
import pytest
from msgspec import structs
from websockets.asyncio.client import connect

from auth_world import ALICE, BOB, ROOT, run_guarded
from http_peer import serve
from issuer_world import claims, run_issuer, token
from millstream import Client, Server, auth
from millstream._app.gateway_server import server_of_file
from millstream.gateway._config import load_file
from patience import WAIT
from wire import POST, request


def make_shop(**options: Any) -> Server:
    """Return a server with two tools, and a set with one of them."""
    mcp = Server("shop", serve=["rest", "hub"], **options)

    @mcp.tool
    async def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    @mcp.tool
    async def drop() -> str:
        """Drop."""
        return "dropped"

    return mcp


async def test_sets_are_served_over_http_sse() -> None:
    mcp = make_shop()
    mcp.offer("/mcp/interns", allow=["add"])
    async with serve(mcp) as running:
        for path, expected in (("/mcp/interns/sse", ["add"]), ("/sse", ["add", "drop"])):
            async with Client(f"http://127.0.0.1:{running.port}{path}", timeout=WAIT) as client:
                assert [each.name for each in await client.tools()] == expected
                assert (await client.call("add", a=1, b=2)).text == "3"
        async with (
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{running.port}") as http,
            http.stream("GET", "/mcp/interns/sse", headers={"accept": "text/event-stream"}) as stream,
        ):
            lines = stream.aiter_lines()
            endpoint = ""
            while not endpoint:
                endpoint = (await anext(lines)).partition("data: ")[2]
            assert endpoint.startswith("/mcp/interns/messages/?session_id=")
            query = endpoint.partition("?")[2]
            message = request("initialize", {})
            for other in ("/messages/", "/message"):
                assert (await http.post(f"{other}?{query}", json=message)).status_code == 404
            assert (await http.post(endpoint, json=message)).status_code == 202


async def test_sets_are_served_over_websockets() -> None:
    mcp = make_shop()
    mcp.offer("/mcp/interns", allow=["add"])
    async with serve(mcp) as running:
        async with Client(f"ws://127.0.0.1:{running.port}/mcp/interns/ws", timeout=WAIT) as client:
            assert [each.name for each in await client.tools()] == ["add"]
        async with connect(f"ws://127.0.0.1:{running.port}/mcp/interns/ws", proxy=None) as socket:
            assert json.loads(await socket.recv())["type"] == "connected"
            for message, part in (
                ({"type": "mcp_call", "tool": "add", "arguments": {"a": 1, "b": 2}}, '"result":3'),
                ({"type": "mcp_call", "tool": "drop"}, "Unknown tool"),
                ({"type": "subscribe", "channel": "news"}, "Connect to /ws"),
            ):
                await socket.send(json.dumps(message))
                assert part in str(await socket.recv())


async def test_sets_are_served_as_rest_with_their_own_document() -> None:
    mcp = make_shop()
    mcp.offer("/mcp/interns", allow=["add"])
    async with serve(mcp) as running, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{running.port}") as http:
        assert (await http.post("/mcp/interns/tools/add", json={"a": 1, "b": 2})).json() == 3
        outside, missing = [(await http.post(f"/mcp/interns/tools/{name}", json={})) for name in ("drop", "none")]
        assert outside.status_code == missing.status_code == 404
        assert outside.text.replace("drop", "none") == missing.text
        document = (await http.get("/mcp/interns/openapi.json")).json()
        assert [*document["paths"]] == ["/mcp/interns/tools/add"]
        assert document["x-mcp"]["endpoint"] == "mcp/interns"
        assert len((await http.get("/openapi.json")).json()["paths"]) == 2


async def test_callers_without_the_rights_of_a_set_are_refused_with_the_reason() -> None:
    keys = auth.keys(ROOT, named_keys={"alice": (ALICE, ["orders:write"]), "bob": BOB})
    mcp = make_shop(auth=keys)
    mcp.offer("/staff", scopes=["orders:write"])
    mcp.offer("/people", groups=["people"])
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    body = json.dumps(request("initialize", about)).encode()
    headers = {name.replace("-", "_"): value for name, value in POST.items()}
    async with run_guarded(mcp) as running:
        for key, status in ((ALICE, 200), (ROOT, 200), (BOB, 403), (None, 401)):
            reply = await running.ask(key, "POST", "/staff", body, **headers)
            assert reply.status == status
            if key == BOB:
                assert b"orders:write" in reply.body
                assert b'error="insufficient_scope"' in reply.headers[b"www-authenticate"]
                assert b'scope="orders:write"' in reply.headers[b"www-authenticate"]
        for method, path in (
            ("GET", "/staff"), ("DELETE", "/staff"), ("POST", "/staff/"), ("GET", "/staff/sse"),
            ("POST", "/staff/messages/"), ("POST", "/staff/tools/add"), ("GET", "/staff/openapi.json"),
            ("GET", "/staff/ws"),
        ):  # fmt: skip
            assert (await running.ask(BOB, method, path, b"{}", **headers)).status == 403, path
        for key in (ALICE, BOB, ROOT):
            reply = await running.ask(key, "POST", "/people", body, **headers)
            assert reply.status == 403
            assert b"group 'people'" in reply.body
        with pytest.raises(Exception, match="403"):
            async with connect(
                f"ws://127.0.0.1:{running.running.port}/staff/ws",
                additional_headers={"authorization": f"Bearer {BOB}"},
                proxy=None,
            ):
                pass


async def test_a_set_that_nobody_can_use_prevents_the_start() -> None:
    mcp = make_shop()
    mcp.offer("/staff", scopes=["orders:write"])
    with pytest.raises(ValueError, match="The set 'staff' requires scopes or groups"):
        async with mcp.running():
            pass


async def test_each_set_has_metadata_for_its_own_address_and_accepts_tokens_for_it() -> None:
    async with run_issuer() as issuer:
        await _check_metadata(issuer.url)


async def _check_metadata(issuer: str) -> None:
    mcp = make_shop(auth=auth.oidc(issuer, audience="http://127.0.0.1/mcp"))
    mcp.offer("/mcp/staff", scopes=["orders:write"])
    mcp.offer("/mcp/interns", allow=["add"])
    headers = {name.replace("-", "_"): value for name, value in POST.items()}
    known = "/.well-known/oauth-protected-resource"
    async with run_guarded(mcp) as running:
        for path in ("/mcp/staff", "/mcp/interns", "/mcp/staff/sse"):
            reply = await running.ask(None, "POST" if "sse" not in path else "GET", path, b"{}", **headers)
            assert reply.status == 401
            challenge = reply.headers[b"www-authenticate"].decode()
            assert f'resource_metadata="http://127.0.0.1{known}{path}"' in challenge
            assert ("orders:write" in challenge) is ("staff" in path)
            found = json.loads((await running.ask(None, "GET", known + path)).body)
            assert found["resource"] == f"http://127.0.0.1{path}"
            assert ("orders:write" in found.get("scopes_supported", [])) is ("staff" in path)
        about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        body = json.dumps(request("initialize", about)).encode()
        for scope, status in (("orders:write", 200), ("other", 403)):
            audience = "http://127.0.0.1/mcp/staff"
            access = token(claims(iss=issuer, aud=audience, scope=scope))
            reply = await running.ask(access, "POST", "/mcp/staff", body, **headers)
            assert reply.status == status
        challenge = reply.headers[b"www-authenticate"].decode()
        assert f'resource_metadata="http://127.0.0.1{known}/mcp/staff"' in challenge


FILE = """
name = "tools"

[upstreams.files]
command = ["{python}", "{program}"]
start_timeout = 60

[sets.readers]
upstreams = ["files"]
allow = ["files_read"]
instructions = "Only read."
short_names = true

[sets.writers]
path = "/write"
deny = ["*_read"]

[sets.writers.tools.files_delete]
description = "Delete a file for good."
hidden = {{ force = true }}
"""
PROGRAM = """
from millstream import Server
mcp = Server("files")

@mcp.tool
async def read(path: str) -> str:
    return "text of " + path

@mcp.tool
async def delete(path: str, force: bool = False) -> str:
    return f"deleted {path} {force}"

mcp.run("stdio")
"""


async def test_sets_in_a_file_share_the_process_of_their_upstream(tmp_path: Path) -> None:
    program, file = tmp_path / "files.py", tmp_path / "gateway.toml"
    program.write_text(PROGRAM)
    file.write_text(FILE.format(python=sys.executable, program=program))
    mcp = server_of_file(file)
    async with serve(mcp) as running:
        base = f"http://127.0.0.1:{running.port}"
        async with Client(f"{base}/mcp/readers", timeout=WAIT) as client:
            assert client.instructions == "Only read."
            assert [each.name for each in await client.tools()] == ["read"]
            assert (await client.call("read", path="a")).text == "text of a"
        async with Client(f"{base}/write", timeout=WAIT) as client:
            (tool,) = await client.tools()
            assert tool.description == "Delete a file for good."
            assert (await client.call("files_delete", path="a")).text == "deleted a True"
        runtime = mcp.runtimes.current
        assert runtime is not None
        (report,) = runtime.host.gateway.describe()
        assert report["processes"]["running"] == 1


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[sets.a]\nallowed = []", "allow"),
        ("[sets.a]\nname = 'b'", "unknown option"),
        ("[sets.a]\nallow = 'x'", "a list"),
        ("[sets.a]\npath = 'x'", "path can't be 'x'"),
        ("[sets.a.tools.x]\nlimit = '1/hour'", "can't differ between addresses"),
        ("[sets.'a b']", "name can't be 'a b'"),
        ("[sets.a]\npath = '/sse'", "serves it already"),
    ],
)
def test_mistakes_in_sets_are_explained(text: str, hint: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f"[upstreams.files]\ncommand = 'true'\n{text}\n")
    with pytest.raises(ValueError, match=hint) as caught:
        server_of_file(file)
    assert "gateway.toml" in str(caught.value)


async def test_documented_sets_have_the_same_items_in_a_file_and_in_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("examples/gateway", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    servers = server_of_file(tmp_path / "sets.toml"), run_path("sets.py")["mcp"]
    for mcp in servers:
        async with serve(mcp) as running:
            found = {}
            for name in ("readers", "buyers", "warehouse"):
                async with Client(f"http://127.0.0.1:{running.port}/mcp/{name}", timeout=WAIT) as client:
                    found[name] = [each.name for each in await client.tools()]
                    if name == "buyers":
                        bought = await client.call("buy", isbn="9780261103573")
                        assert bought.text.startswith("Ordered 9780261103573 for company")
                    else:
                        assert [each.uri for each in await client.resources()] == ["stock://warehouse/empty"]
        assert found == {
            "readers": ["shop_search_books", "warehouse_count"],
            "buyers": ["shop_search_books", "buy"],
            "warehouse": ["count"],
        }
    assert servers[0].definition.sets == [structs.replace(each, path="") for each in servers[1].definition.sets]


@pytest.mark.parametrize(
    ("file", "upstreams", "expected"),
    [
        (
            "from_litellm.toml",
            {
                "github": ["list_issues", "add_issue_comment", "pull_request_read", "pull_request_review_write"],
                "deepwiki": ["ask_question", "read_wiki_structure"],
            },
            {
                "/mcp/triage": ["github_list_issues", "github_add_issue_comment"],
                "/mcp/review": [
                    "github_pull_request_read", "github_pull_request_review_write", "deepwiki_ask_question",
                ],
                "/mcp/research": ["deepwiki_ask_question", "deepwiki_read_wiki_structure"],
            },
        ),
        (
            "from_metamcp.toml",
            {"filesystem": ["read_text_file", "write_file", "move_file"], "time": ["get_current_time"]},
            {"/metamcp/development/mcp": ["read_file", "time_get_current_time"]},
        ),
    ],
)  # fmt: skip
async def test_configurations_of_other_gateways_move_to_sets(
    file: str, upstreams: dict[str, list[str]], expected: dict[str, list[str]]
) -> None:
    config = load_file(Path("examples/gateway") / file, {"GITHUB_TOKEN": "x"})
    mcp = Server("gateway")
    assert [each.name for each in config.upstreams] == [*upstreams]
    for name, tools in upstreams.items():
        upstream = Server(name)
        for tool in tools:
            upstream.tool(lambda: "done", name=tool)
        mcp.upstream(name, upstream, start_timeout=WAIT)
    for chosen in config.sets:
        mcp.definition.add_set(chosen)
    async with serve(mcp) as running:
        for path, names in expected.items():
            async with Client(f"http://127.0.0.1:{running.port}{path}", timeout=WAIT) as client:
                assert [each.name for each in await client.tools()] == names
                assert (await client.call(names[0])).text == "done"


async def test_pages_and_health_show_the_sets_that_a_caller_can_use() -> None:
    keys = auth.keys(ROOT, named_keys={"alice": (ALICE, ["orders:write"]), "bob": BOB})
    mcp = Server("shop", serve="web", auth=keys)
    mcp.tool(lambda: "done", name="add")
    mcp.upstream("files", Server("files"), start_timeout=WAIT)
    mcp.offer("/staff", scopes=["orders:write"])
    mcp.offer("/interns", allow=["nothing"])
    async with run_guarded(mcp) as running:
        for key, sets in ((ALICE, ["/staff", "/interns"]), (BOB, ["/interns"])):
            facts = json.loads((await running.ask(key, "GET", "/connect/server")).body)
            assert facts["sets"] == sets
        for path in ("/gateway/upstreams", "/health"):
            (staff, interns) = json.loads((await running.ask(ROOT, "GET", path)).body)["sets"]
            assert (staff["path"], staff["items"]["tools"], staff["scopes"]) == ("/staff", 1, ["orders:write"])
            assert interns["items"]["tools"] == 0
