import asyncio
import json
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from auth_world import ALICE, BOB, ROOT, GuardedServer, make_server, run_guarded
from cases import for_each
from millstream import Client, Server, Settings
from millstream.testing import connect
from patience import WAIT
from wire import POST, per_request, request

LISTS = {
    "tools/list": ("tools", "name", {"order"}),
    "resources/list": ("resources", "uri", {"secret://plan"}),
    "resources/templates/list": ("resourceTemplates", "uriTemplate", {"secret://{name}"}),
    "prompts/list": ("prompts", "name", {"whisper"}),
}
REVISIONS = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]


async def listed(world: GuardedServer, key: str, method: str, *, modern: bool) -> tuple[set[str], dict[str, Any]]:
    """Return the names in a list, and the whole result."""
    member, name, _ = LISTS[method]
    reply = await world.modern(key, method) if modern else await world.post(key, request(method))
    result = reply.message["result"]
    return {each[name] for each in result[member]}, result


@for_each("modern", [True, False], ids=["per-request", "handshake"])
@for_each("method", LISTS)
async def test_lists_depend_on_the_callers_scopes(method: str, modern: bool) -> None:
    hidden = LISTS[method][2]
    async with run_guarded() as world:
        for _ in range(2):
            everything, result = await listed(world, ROOT, method, modern=modern)
            assert hidden <= everything
            assert (await listed(world, ALICE, method, modern=modern))[0] == everything
            assert (await listed(world, BOB, method, modern=modern))[0] == everything - hidden
            if modern:
                assert result["cacheScope"] == "private"


async def test_cursors_and_changes_do_not_leak_hidden_items() -> None:
    server = make_server(page_size=1)
    async with run_guarded(server) as world:

        async def walk(key: str) -> list[str]:
            names: list[str] = []
            cursor: Any = None
            while True:
                params = {} if cursor is None else {"cursor": cursor}
                result = (await world.post(key, request("tools/list", params))).message["result"]
                names += [each["name"] for each in result["tools"]]
                cursor = result.get("nextCursor")
                if cursor is None:
                    return names

        assert await walk(ROOT) == ["who", "order", "asks", "counts"]
        assert await walk(BOB) == ["who", "asks", "counts"]
        server.tool(name="late", scopes=["orders:write"])(lambda: "late")
        assert await walk(ROOT) == ["who", "order", "asks", "counts", "late"]
        assert await walk(BOB) == ["who", "asks", "counts"]
        pages = (await world.post(ROOT, request("tools/list"))).message["result"]
        pages = (await world.post(ROOT, request("tools/list", {"cursor": pages["nextCursor"]}))).message["result"]
        assert pages["tools"][0]["name"] == "order"
        reply = await world.post(BOB, request("tools/list", {"cursor": pages["nextCursor"]}))
        assert reply.message["error"]["message"].startswith("Invalid cursor")


USES = {
    "tools/call": ({"name": "order", "arguments": {"isbn": "1"}}, "orders:write", "order"),
    "resources/read": ({"uri": "secret://plan"}, "secrets", "secret://plan"),
    "prompts/get": ({"name": "whisper", "arguments": {"word": "w"}}, "secrets", "whisper"),
    "completion/complete": (
        {"ref": {"type": "ref/prompt", "name": "whisper"}, "argument": {"name": "word", "value": ""}}, "secrets", "",
    ),
}  # fmt: skip


@for_each("method", USES)
async def test_missing_scopes_get_403_with_the_required_scopes(method: str) -> None:
    """MCP 2025-11-25, basic/authorization."""
    params, scope, name = USES[method]
    challenge = f'Bearer error="insufficient_scope", scope="{scope}"'.encode()
    async with run_guarded() as world:
        replies = [await world.modern(BOB, method, params, name)]
        replies += [await world.post(BOB, request(method, params), mcp_session_id=await world.initialize(BOB, revision))
                    for revision in REVISIONS]  # fmt: skip
        for reply in replies:
            assert reply.status == 403
            assert reply.headers[b"www-authenticate"] == challenge
            assert reply.message["error"]["code"] == -31403
            assert reply.message["error"]["data"] == {"error": "insufficient_scope", "scope": scope}
            assert reply.message["id"] == 1
        for key in (ALICE, ROOT):
            assert (await world.modern(key, method, params, name)).status == 200


async def test_scopes_are_checked_before_arguments() -> None:
    async with run_guarded() as world:
        for arguments in ({}, {"isbn": 1}, {"nonsense": True}):
            reply = await world.post(BOB, request("tools/call", {"name": "order", "arguments": arguments}))
            assert reply.status == 403
            body = json.dumps(arguments).encode()
            reply = await world.ask(BOB, "POST", "/tools/order", body, content_type="application/json")
            assert reply.status == 403
            assert b"isbn" not in reply.body
        uri = {"uri": "secret://a/b?c"}
        assert (await world.post(BOB, request("resources/read", {"uri": "secret://x"}))).status == 403
        assert (await world.post(BOB, request("resources/read", uri))).message["error"]["code"] == -32002


async def test_rest_and_openapi_respect_scopes() -> None:
    async with run_guarded() as world:
        for _ in range(2):
            for key, sees in ((ROOT, True), (BOB, False), (ALICE, True)):
                paths = json.loads((await world.ask(key, "GET", "/openapi.json")).body)["paths"]
                assert ("/tools/order" in paths) == sees
        reply = await world.ask(BOB, "POST", "/tools/order", b'{"isbn":"1"}', content_type="application/json")
        assert (reply.status, b"orders:write" in reply.headers[b"www-authenticate"]) == (403, True)
        body = b'{"params":{"name":"order","arguments":{"isbn":"1"}}}'
        reply = await world.ask(BOB, "POST", "/mcp/tools/call", body, content_type="application/json")
        assert (reply.status, reply.message["error"]["code"]) == (403, -31403)
        body = b'{"params":{"name":"order","arguments":{"isbn":"1"}}}'
        assert (await world.ask(ALICE, "POST", "/mcp/tools/call", body, content_type="application/json")).status == 200
        names = (await world.ask(BOB, "POST", "/mcp/tools/list", b"{}", content_type="application/json")).body
        assert b"order" not in names


async def test_websockets_respect_the_callers_scopes() -> None:
    async with run_guarded() as world:
        for key, works in ((ALICE, True), (BOB, False)):
            async with world.socket(key) as socket:
                await socket.recv()
                await socket.send('{"type":"mcp_call","tool":"order","arguments":{"isbn":"1"}}')
                said = json.loads(await socket.recv())
                assert (said["type"] == "mcp_result") == works
                if not works:
                    assert said["error"]["code"] == -31403


async def test_subscriptions_require_read_scopes() -> None:
    async with run_guarded() as world:
        session = await world.initialize(BOB)
        reply = await world.post(BOB, request("resources/subscribe", {"uri": "secret://x"}), mcp_session_id=session)
        assert reply.status == 403
        params = {"notifications": {"resourceSubscriptions": ["secret://x", "open://news"]}}
        for key, granted in ((BOB, ["open://news"]), (ALICE, ["secret://x", "open://news"])):
            headers = {**POST, "mcp-protocol-version": "2026-07-28", "mcp-method": "subscriptions/listen"}
            body = json.dumps(per_request("subscriptions/listen", params)).encode()
            fields = {name.replace("-", "_"): value for name, value in headers.items()}
            peer = await world.send(key, "POST", "/mcp", body, **fields)
            assert (await peer.head())[0] == 200
            said = json.loads((await peer.chunk()).split(b"data: ")[1])
            assert said["params"]["notifications"]["resourceSubscriptions"] == granted


async def test_stdio_clients_have_all_scopes_and_anonymous_http_callers_have_none() -> None:
    server = Server("open", settings=Settings())

    @server.tool(scopes=["orders:write"])
    async def order() -> str:
        """Order."""
        return "ordered"

    async with run_guarded(server) as world:
        reply = await world.call(None, "order")
        assert (reply.status, reply.message["error"]["data"]["scope"]) == (403, "orders:write")
        assert (await world.post(None, request("tools/list"))).message["result"]["tools"] == []
    async with connect(server) as client:
        assert (await client.call("order")).text == "ordered"


@pytest.mark.server
async def test_callers_over_stdio_have_no_principal(tmp_path: Path) -> None:
    program = """
        from millstream import Context, Server, auth
        mcp = Server("shop", auth=auth.keys("a-key-of-some-length"))

        @mcp.tool
        async def who(ctx: Context) -> str:
            return f"{ctx.principal}"
    """
    file = tmp_path / "shop.py"
    file.write_text(dedent(program))
    async with Client(
        [sys.executable, "-m", "millstream", "run", str(file), "--transport", "stdio"], timeout=WAIT
    ) as client:
        assert (await client.call("who")).text == "None"


@for_each("scopes", ["orders", [1], [""], ["a b"], ['a"'], {"a": 1}, 5])
def test_invalid_scopes_are_rejected_at_registration(scopes: Any) -> None:
    server = Server("s", settings=Settings())
    with pytest.raises(TypeError, match="scopes"):
        server.tool(scopes=scopes)(lambda: "x")


async def test_operator_pages_and_publishing_have_their_own_scopes() -> None:
    async with run_guarded() as world:
        for path in ("/dashboard", "/metrics"):
            assert (await world.ask(ROOT, "GET", path)).status == 200
            reply = await world.ask(BOB, "GET", path)
            assert (reply.status, b"millstream:watch" in reply.headers[b"www-authenticate"]) == (403, True)
        for key, status in ((ROOT, 200), (BOB, 403)):
            reply = await world.ask(key, "POST", "/publish", b'{"data":1}', content_type="application/json")
            assert reply.status == status
            async with world.socket(key) as socket:
                await socket.recv()
                await socket.send('{"type":"publish","data":1}')
                assert ("published" in str(await socket.recv())) == (status == 200)
        await asyncio.sleep(0)


async def test_rejected_publications_report_the_missing_scope() -> None:
    async with run_guarded() as world:
        async with world.socket(BOB) as socket:
            await socket.recv()
            await socket.send('{"type":"publish","data":"hi"}')
            assert "requires the scope millstream:publish" in str(await socket.recv())
        refused = await world.ask(BOB, "POST", "/publish", b"{}", content_type="application/json")
        assert (refused.status, b"millstream:publish" in refused.body) == (403, True)


async def test_sign_in_links_on_error_pages_return_to_the_page() -> None:
    async with run_guarded() as world:
        page = await world.ask(BOB, "GET", "/dashboard", accept="text/html,application/xhtml+xml,*/*;q=0.8")
        assert (page.status, b"/sign-in?next=%2Fdashboard" in page.body) == (403, True)
        assert b"your account, key, or token" in page.body


async def test_common_sign_in_paths_point_to_the_sign_in_page() -> None:
    async with run_guarded() as world:
        for path in ("/login", "/signin/", "/auth/login"):
            assert b"Use /sign-in." in (await world.ask(None, "GET", path)).body
    async with run_guarded(Server("open", serve="all", settings=Settings())) as world:
        assert b"sign-in" not in (await world.ask(None, "GET", "/login")).body
