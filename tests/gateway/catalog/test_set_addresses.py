"""The addresses of sets over each transport, with and without sign-in, from files, and on several workers."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect

from auth_world import ALICE, BOB, ROOT, run_guarded
from http_peer import serve
from issuer_world import claims, run_issuer, token
from millstream import Client, Server, Settings, auth
from millstream.gateway import ApprovalPolicy, ToolPolicy, UpstreamPolicy
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
    mcp.add_set("/mcp/interns", allow=["add"])
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
    mcp.add_set("/mcp/interns", allow=["add"])
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
    mcp.add_set("/mcp/interns", allow=["add"])
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
    mcp.add_set("/staff", scopes=["orders:write"])
    mcp.add_set("/people", groups=["people"])
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
    mcp.add_set("/staff", scopes=["orders:write"])
    with pytest.raises(ValueError, match="The set 'staff' requires scopes or groups"):
        async with mcp.running():
            pass


async def test_groups_of_a_set_are_read_from_any_claim_of_a_token() -> None:
    async with run_issuer() as issuer:
        mcp = make_shop(auth=auth.oidc(issuer.url, audience="http://127.0.0.1/mcp"))
        mcp.add_set("/mcp/people", groups=["people"])
        about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        body = json.dumps(request("initialize", about)).encode()
        headers = {name.replace("-", "_"): value for name, value in POST.items()}
        async with run_guarded(mcp) as running:
            for groups, status in (
                (["other", "people"], 200), ("people", 200), (["other"], 403), ("other", 403), (None, 403),
                (7, 403), ([{"name": "people"}], 403), ({"people": True}, 403),
            ):  # fmt: skip
                access = token(claims(iss=issuer.url, aud="http://127.0.0.1/mcp", groups=groups))
                reply = await running.ask(access, "POST", "/mcp/people", body, **headers)
                assert reply.status == status, groups


async def test_each_set_has_metadata_for_its_own_address_and_accepts_tokens_for_it() -> None:
    async with run_issuer() as issuer:
        await _check_metadata(issuer.url)


async def _check_metadata(issuer: str) -> None:
    mcp = make_shop(auth=auth.oidc(issuer, audience="http://127.0.0.1/mcp"))
    mcp.add_set("/mcp/staff", scopes=["orders:write"])
    mcp.add_set("/mcp/interns", allow=["add"])
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


async def test_pages_and_health_show_the_sets_that_a_caller_can_use() -> None:
    keys = auth.keys(ROOT, named_keys={"alice": (ALICE, ["orders:write"]), "bob": BOB})
    mcp = Server("shop", serve="web", auth=keys)
    mcp.tool(lambda: "done", name="add")
    mcp.upstream("files", Server("files"), start_timeout=WAIT)
    mcp.add_set("/staff", scopes=["orders:write"])
    mcp.add_set("/interns", allow=["nothing"])
    async with run_guarded(mcp) as running:
        for key, sets in ((ALICE, ["/staff", "/interns"]), (BOB, ["/interns"])):
            facts = json.loads((await running.ask(key, "GET", "/connect/server")).body)
            assert facts["sets"] == sets
        for path in ("/gateway/upstreams", "/health"):
            (staff, interns) = json.loads((await running.ask(ROOT, "GET", path)).body)["sets"]
            assert (staff["path"], staff["items"]["tools"], staff["scopes"]) == ("/staff", 1, ["orders:write"])
            assert interns["items"]["tools"] == 0


async def test_page_of_the_gateway_shows_sets_in_their_order_and_whether_people_approve_calls() -> None:
    rule = ApprovalPolicy(by=("group:managers",))
    mcp = Server("shop", serve="web", auth=auth.keys(ROOT, named_keys={"alice": ALICE}))
    mcp.upstream("files", Server("files"), start_timeout=WAIT, policy=UpstreamPolicy(approve=rule))
    mcp.upstream("notes", Server("notes"), start_timeout=WAIT)
    for name in ("zoo", "alpha", "mid"):
        mcp.add_set(f"/{name}")
    async with run_guarded(mcp) as running:
        found = json.loads((await running.ask(ROOT, "GET", "/gateway/upstreams")).body)
    assert [each["name"] for each in found["sets"]] == ["zoo", "alpha", "mid"]
    assert {each["name"]: each["approvals"] for each in found["upstreams"]} == {"files": True, "notes": False}


async def test_metrics_and_health_name_the_tools_of_sets_only_to_operators() -> None:
    keys = auth.keys(ROOT, named_keys={"bob": BOB})
    mcp = Server("shop", serve="metrics", auth=keys)
    mcp.tool(lambda: "done", name="add")
    mcp.add_set("/staff", tools={"add": ToolPolicy(name="sum")})
    async with run_guarded(mcp) as running:
        headers = {"authorization": f"Bearer {BOB}"}
        async with Client(f"http://127.0.0.1:{running.running.port}/staff", timeout=WAIT, headers=headers) as client:
            assert (await client.call("sum")).text == "done"
        metrics = (await running.ask(ROOT, "GET", "/metrics")).body.decode()
        assert 'tool="add"' in metrics or 'name="add"' in metrics
        assert "sets" in json.loads((await running.ask(ROOT, "GET", "/health")).body)
        assert b"staff" not in (await running.ask(BOB, "GET", "/health")).body


async def test_records_tell_tools_of_two_sets_with_one_short_name_apart(tmp_path: Path) -> None:
    front = Server("front", settings=Settings(audit_log=str(tmp_path / "audit")), serve=["metrics"])
    for name in "billing", "wiki":
        upstream = Server(name)
        upstream.tool(lambda: "deleted", name="delete")
        upstream.prompt(lambda: "Delete it.", name="ask")
        front.upstream(name, upstream, start_timeout=WAIT)
        front.add_set(f"/mcp/{name}", upstreams=[name], short_names=True)
    async with serve(front) as running:
        for name in "billing", "wiki":
            async with Client(f"http://127.0.0.1:{running.port}/mcp/{name}", timeout=WAIT) as client:
                await client.call("delete")
                await client.prompt("ask")
        async with httpx2.AsyncClient() as http:
            metrics = (await http.get(f"http://127.0.0.1:{running.port}/metrics")).text
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text("utf-8").splitlines()]
    assert [(each["set"], each["target"]) for each in lines if each["method"] in ("tools/call", "prompts/get")] == [
        ("billing", "billing_delete"),
        ("billing", "billing_ask"),
        ("wiki", "wiki_delete"),
        ("wiki", "wiki_ask"),
    ]
    assert '"wiki_delete"' in metrics
    assert '"delete"' not in metrics
