import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx2
import pytest

from cases import for_each
from client import shop
from client.misbehaving_servers import ReceivedRequest, misbehaving
from fleet import until
from http_peer import NO_TRUST, serve
from millstream import Client, Server, auth
from millstream._app.definition import Bind
from millstream._app.server_process import CommandError
from millstream._cli.serve import check_inspected, configure
from millstream._config import Settings
from patience import WAIT
from processes import free_port


@asynccontextmanager
async def inspecting(*urls: str, max_streams: int = 100) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of our server, which may reach these."""
    async with AsyncExitStack() as stack:
        mcp = Server("ours", serve="web", settings=Settings(inspect_urls=urls, max_streams=max_streams))
        stack.push_async_callback(mcp.stop)
        running = await stack.enter_async_context(serve(mcp, lane=True))
        http = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{running.port}", verify=NO_TRUST, timeout=WAIT)
        yield await stack.enter_async_context(http)


@for_each("revision", ["2025-06-18", "2026-07-28"])
async def test_clients_work_through_the_inspector_proxy(revision: str) -> None:
    steps: list[float] = []
    async with serve(shop.mcp, lane=True) as other:
        async with inspecting("http://127.0.0.1:1/mcp", f"http://127.0.0.1:{other.port}/mcp") as http:
            found = (await http.get("/inspect/servers")).json()["servers"]
            assert [each["name"] for each in found] == ["1", "2"]
            assert found[1]["url"] == f"http://127.0.0.1:{other.port}/mcp"
            url = str(http.base_url.join("/inspect/via/2"))
            async with Client(url, revision=revision, elicit=lambda asked: {"street": "Mill Lane"}) as client:
                assert client.server.name == "shop"
                result = await client.call("slowly", steps=3, progress=lambda value, total, text: steps.append(value))
                assert (result.text, steps) == ("done", [1, 2, 3])
                assert (await client.call("deliver")).text == "Mill Lane, 3"
        await shop.mcp.stop()


async def test_only_foreign_credentials_are_forwarded() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        body = json.dumps(asked.headers).encode()
        more = "Set-Cookie: a=b\r\nX-Secret: c\r\nMcp-Session-Id: s\r\nRetry-After: 3\r\n"
        await asked.reply(body, status="401 Unauthorized", more=f"{more}WWW-Authenticate: Bearer realm=x\r\n")

    async with misbehaving(behave) as other, inspecting(other.url) as http:
        sent = {
            "authorization": "Bearer ours", "cookie": "ours=1", "mcp-inspect-authorization": "Bearer theirs",
            "mcp-session-id": "s", "mcp-protocol-version": "2025-06-18", "accept": "text/plain", "x-other": "1",
        }  # fmt: skip
        reply = await http.post("/inspect/via/1", headers=sent, json={})
    arrived = reply.json()
    assert (reply.status_code, arrived["authorization"]) == (401, "Bearer theirs")
    names = {
        "host",
        "accept",
        "content-type",
        "content-length",
        "authorization",
        "mcp-session-id",
        "mcp-protocol-version",
    }
    assert set(arrived) == names
    assert arrived["host"] == other.url.split("/")[2]
    assert reply.headers["www-authenticate"] == "Bearer realm=x"
    assert (reply.headers["mcp-session-id"], reply.headers["retry-after"]) == ("s", "3")
    assert not {"set-cookie", "x-secret"} & set(reply.headers)


async def test_basic_auth_prompts_from_other_servers_are_blocked() -> None:

    async def behave(asked: ReceivedRequest) -> None:
        await asked.reply(b"{}", status="401 Unauthorized", more="WWW-Authenticate: Basic realm=x\r\n")

    async with misbehaving(behave) as other, inspecting(other.url) as http:
        assert "www-authenticate" not in (await http.post("/inspect/via/1", json={})).headers


@for_each("method", ["GET", "POST"])
async def test_replies_from_other_servers_are_never_shown_as_pages(method: str) -> None:

    async def behave(asked: ReceivedRequest) -> None:
        await asked.reply(
            b"<script>steal()</script>", more="Content-Security-Policy: default-src *\r\n", type="text/html"
        )

    async with misbehaving(behave) as other, inspecting(other.url) as http:
        headers = (await http.request(method, "/inspect/via/1", headers={"accept": "text/html"})).headers
    assert headers.get_list("content-security-policy") == ["default-src 'none'; sandbox"]
    assert headers["x-content-type-options"] == "nosniff"


async def test_proxied_streams_count_toward_the_cap() -> None:
    go, leave = asyncio.Event(), asyncio.Event()

    async def behave(asked: ReceivedRequest) -> None:
        await go.wait()
        await asked.stream()
        await leave.wait()

    async def get() -> int:
        async with http.stream("GET", "/inspect/via/1", headers={"accept": "text/event-stream"}) as reply:
            statuses.append(reply.status_code)
            if reply.status_code == 200:
                await leave.wait()
            return reply.status_code

    statuses: list[int] = []
    async with misbehaving(behave) as other, inspecting(other.url, max_streams=1) as http:
        asking = [asyncio.create_task(get()) for _ in range(3)]
        await until(lambda: len(other.requests) == 3)
        go.set()
        await until(lambda: len(statuses) == 3)
        leave.set()
        assert sorted(await asyncio.gather(*asking)) == [200, 503, 503]


async def test_only_configured_servers_are_reachable() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.reply(b"", status="307 Temporary Redirect", more="Location: http://169.254.169.254/\r\n")

    async with misbehaving(behave) as other, inspecting(other.url, f"http://127.0.0.1:{free_port()}/mcp") as http:
        for name in ("0", "3", "", "1/x", "http://127.0.0.1"):
            assert (await http.post(f"/inspect/via/{name}", json={})).status_code == 404
        redirected = await http.post("/inspect/via/1", json={})
        assert (redirected.status_code, len(other.requests)) == (502, 1)
        assert "redirects to http://169.254.169.254/" in redirected.text
        gone = await http.post("/inspect/via/2", json={})
        assert (gone.status_code, "There is no server at" in gone.text) == (502, True)
        assert (await http.put("/inspect/via/1")).status_code == 405


@for_each("method", ["GET", "DELETE"])
async def test_bodies_cannot_smuggle_requests(method: str) -> None:
    heard = bytearray()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        while data := await reader.read(65536):
            heard.extend(data)
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/mcp"
    async with listener, inspecting(url) as http:
        smuggled = b"POST /admin HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n"
        reply = await http.request(method, "/inspect/via/1", content=smuggled)
        assert (reply.status_code, reply.content) == (200, b"{}")
    assert heard.startswith(f"{method} /mcp HTTP/1.1\r\n".encode())
    assert b"/admin" not in heard


@for_each("method", ["GET", "POST", "DELETE"])
async def test_cross_site_pages_are_rejected(method: str) -> None:
    async with misbehaving(lambda asked: asked.reply(b"{}")) as other, inspecting(other.url) as http:
        evil = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
        assert (await http.request(method, "/inspect/via/1", headers=evil)).status_code == 403
        assert other.requests == []


async def test_remote_access_is_rejected_despite_credentials() -> None:
    mcp = Server("ours", serve="web", settings=Settings(inspect_urls=("http://127.0.0.1:1/mcp",), auth_key="k" * 20))
    mcp.runtimes.bind = Bind(loopback=False)
    try:
        transport = httpx2.ASGITransport(mcp, client=("10.0.0.5", 1))
        headers = {"authorization": "Bearer " + "k" * 20}
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as http:
            assert (await http.get("/inspect")).status_code == 200
            assert (await http.get("/inspect/servers")).status_code == 403
            assert (await http.post("/inspect/via/1", json={})).status_code == 403
    finally:
        await mcp.stop()


def test_inspect_option_enables_the_pages() -> None:
    mcp = Server("ours", serve="hub")
    configure(mcp, serve="", store="", settings={"inspect_urls": ("http://a.example/mcp",)}, web=True)
    assert mcp.settings.inspect_urls == ("http://a.example/mcp",)
    assert mcp.definition.parts == {"hub", "web", "rest", "metrics"}


@for_each("url", ["nonsense", "ws://127.0.0.1/mcp", "file:///etc/passwd", "http://a:b@example.com/"])
def test_invalid_inspect_targets_prevent_startup(url: str) -> None:
    with pytest.raises(CommandError):
        check_inspected((url,))


@asynccontextmanager
async def developing(*, show_errors: bool = True) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of our server in development. It sends what our own page would."""
    async with AsyncExitStack() as stack:
        mcp = Server("ours", serve="web", settings=Settings(show_errors=show_errors))
        stack.push_async_callback(mcp.stop)
        running = await stack.enter_async_context(serve(mcp, lane=True))
        url = f"http://127.0.0.1:{running.port}"
        http = httpx2.AsyncClient(base_url=url, verify=NO_TRUST, timeout=WAIT, headers={"origin": url})
        yield await stack.enter_async_context(http)


async def test_own_page_adds_servers_in_development() -> None:
    async with serve(shop.mcp, lane=True) as other, developing() as http:
        url = f"http://127.0.0.1:{other.port}/mcp"
        first, second = [(await http.post("/inspect/servers", json={"url": f" {url} "})).json() for _ in range(2)]
        assert first == second
        assert first["url"] == url
        assert [each["url"] for each in (await http.get("/inspect/servers")).json()["servers"]] == [url]
        async with Client(str(http.base_url.join(f"/inspect/via/{first['name']}"))) as client:
            assert client.server.name == "shop"
        await shop.mcp.stop()


@for_each(
    "headers",
    [
        {"origin": ""},
        {"origin": "null"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"x-forwarded-for": "203.0.113.9"},
        {"host": "evil.example", "origin": "http://evil.example", "sec-fetch-site": "same-origin"},
    ],
)
async def test_other_pages_and_machines_cannot_add_servers(headers: dict[str, str]) -> None:
    async with developing() as http:
        reply = await http.post("/inspect/servers", json={"url": "http://169.254.169.254/"}, headers=headers)
        assert reply.status_code == (421 if "host" in headers else 403)
        assert (await http.get("/inspect/servers")).json()["servers"] == []


async def test_servers_are_added_only_in_development() -> None:
    async with developing(show_errors=False) as http:
        reply = await http.post("/inspect/servers", json={"url": "http://127.0.0.1:1/mcp"})
        assert (reply.status_code, "--inspect URL" in reply.text) == (403, True)
        assert (await http.get("/inspect/servers")).json()["servers"] == []


@for_each("url", ["", "python shop.py", "stdio:shop", "file:///etc/passwd", "ws://127.0.0.1/ws", "http://", None])
async def test_only_web_addresses_are_added(url: str | None) -> None:
    async with developing() as http:
        reply = await http.post("/inspect/servers", json={"url": url})
        assert (reply.status_code, "millstream run" in reply.text) == (400, url is not None)
        assert (await http.get("/inspect/servers")).json()["servers"] == []


async def test_number_of_added_servers_is_limited() -> None:
    async with developing() as http:
        statuses = [
            (await http.post("/inspect/servers", json={"url": f"http://127.0.0.1:1/{number}"})).status_code
            for number in range(102)
        ]
        assert (statuses.count(200), statuses.count(503)) == (100, 2)


async def test_inspector_groups_only_tools_that_the_caller_sees() -> None:
    keys = {each: f"{each}-key-for-the-inspector-0123" for each in ("ada", "ben")}
    scopes = {"ada": "books:write", "ben": "books:read"}
    named = {each: (key, [scopes[each]]) for each, key in keys.items()}
    mcp = Server("ours", serve="web", auth=auth.keys(named_keys=named))
    mcp.tool(name="look", tags={"shelf"})(lambda: "l")
    mcp.tool(name="burn", tags={"shelf"}, scopes={"books:write"})(lambda: "b")
    mcp.tool(name="ask", tags={"desk"}, visible=lambda who: who is not None and who.subject == "ben")(lambda: "a")
    async with serve(mcp, lane=True) as running, httpx2.AsyncClient(timeout=WAIT) as http:
        for who, expected in (("ada", {"look", "burn"}), ("ben", {"look", "ask"})):
            headers = {"authorization": f"Bearer {keys[who]}"}
            found = await http.get(f"http://127.0.0.1:{running.port}/inspect/servers", headers=headers)
            assert found.json()["tags"].keys() == expected
