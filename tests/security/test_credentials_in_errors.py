"""Errors of a server that quotes the requests of its clients never contain the credentials in them.

Other results may: they belong to the caller, and policies redact them.
"""

import asyncio
import json
import logging
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from cases import for_each
from client.misbehaving_servers import DONE, GREETING, OFFER, ReceivedRequest, misbehaving, refuse
from issuer_world import run_issuer
from millstream import Client, Server
from millstream.client import AccessDenied, ClientError, MemoryTokenStore, OAuth, Options, ServerError, parse_url
from millstream.gateway import OpenApi, bearer, static_headers
from patience import WAIT
from processes import ROOT

PAGE = ROOT / "docs/guides/credentials-for-upstreams.md"
KEY = "k3y/of+the=operator"
BASIC = b64encode(b"shop:pa55/word").decode()
TOOL = {"name": "hello", "inputSchema": {"type": "object"}}
WAYS = (
    "401 text", "403 json", "404 escaped", "422 text", "500 html", "503 json", "challenge", "redirect", "200 text",
    "message", "data", "escaped", "stream", "failed", "422 utf-16le", "500 iso-2022-jp",
)  # fmt: skip
"""How the server quotes the request."""


def php(value: object) -> str:
    """Encode JSON as PHP does, with escaped slashes."""
    return json.dumps(value).replace("/", "\\/")


async def quote_request(request: ReceivedRequest, way: str) -> None:
    """Respond to a call with an error that repeats the request's headers and path."""
    said = f"{request.path} {request.headers}"
    for value in request.headers.values():
        scheme, _, word = value.partition(" ")
        if scheme == "Basic":
            said += f" {b64encode(word.encode()).decode()} shop:pa55/word"
    error: dict[str, Any] = {"code": -32000, "message": f"bad: {said}"}
    if way == "data":
        error = {"code": -32000, "message": "bad", "data": {"request": [said, {said: said}]}}
    message = {"jsonrpc": "2.0", "id": request.message.get("id"), "error": error}
    match way:
        case "challenge":
            more = f'WWW-Authenticate: Bearer error="invalid_token", error_description="{request.headers}"\r\n'
            await request.reply(b"denied", status="401 Unauthorized", type="text/plain", more=more.replace("'", ""))
        case "redirect":
            more = f"Location: https://elsewhere.example/?{''.join(request.headers.values()).replace(' ', '%20')}\r\n"
            await request.reply(b"", status="307 Temporary Redirect", more=more)
        case "result" | "failed":
            await request.result({**DONE, "content": [{"type": "text", "text": said}], "isError": way == "failed"})
        case "message" | "data":
            await request.reply(json.dumps(message).encode())
        case "escaped":
            await request.reply(php(message).encode())
        case "stream":
            await request.stream()
            await request.event(json.dumps(message).encode())
            await request.end()
        case _:
            status, kind = way.split()
            texts = {
                "utf-16le": said.encode("utf-16le").decode("latin-1"),
                "iso-2022-jp": "\x1b(B".join(said),
                "json": json.dumps({"error": said}),
                "escaped": php({"error": php(said)}),
                "text": said,
                "html": f"<p>{said.replace('&', '&amp;')}</p>",
            }
            media = "text/plain" if kind == "text" else "text/html" if kind == "html" else "application/json"
            media = f"text/plain; charset={kind}" if "-" in kind else media
            await request.reply(texts[kind].encode("latin-1"), status=f"{status} No", type=media)


@asynccontextmanager
async def quoting(way: str, *, handshake: bool = False) -> AsyncIterator[str]:
    async def behave(request: ReceivedRequest) -> None:
        results: dict[str, Any] = {"tools/list": {"tools": [TOOL]}}
        results["initialize" if handshake else "server/discover"] = GREETING if handshake else OFFER
        if request.method in results:
            await request.result(results[request.method])
        elif request.path.startswith("/api") or request.method == "tools/call":
            await quote_request(request, way)
        else:
            await refuse(request)

    async with misbehaving(behave) as server:
        yield server.url


def assert_clean(text: str, *, kept: str = "production") -> None:
    """Check that a text has no credential, in any spelling, but an ordinary value."""
    plain = text.replace("\\", "")
    for secret in (KEY, "k3y%2Fof", "of+the", BASIC, "pa55", "s3cret"):
        assert secret not in plain, plain
    if kept:
        assert kept in plain, plain


class Signer:
    """A source of credentials that a user wrote, whose header has a name of its own."""

    async def headers(self, url: Any, method: str, target: str) -> Mapping[str, str]:
        return {"X-Signed": KEY}

    def learn_nonce(self, url: Any, nonce: str, challenge: str) -> bool:
        return False

    async def handle_challenge(self, url: Any, status: int, challenge: str) -> bool:
        return False


CREDENTIALS: dict[str, dict[str, Any]] = {
    "key": {"headers": {"X-Tenant": "production", "X-Api-Key": KEY}},
    "cookie": {"headers": {"X-Tenant": "production", "Cookie": f"sid={KEY}; theme=dark"}},
    "basic": {"headers": {"X-Tenant": "production", "Authorization": f"Basic {BASIC}"}},
    "scheme": {"headers": {"X-Tenant": "production", "Authorization": f"Shop {KEY}"}},
    "auth": {"headers": {"X-Tenant": "production"}, "options": Options(auth=Signer())},
}


@pytest.mark.parametrize("way", WAYS)
async def test_errors_for_clients_do_not_contain_their_credentials(way: str) -> None:
    for handshake in (False, True):
        async with quoting(way, handshake=handshake) as url:
            for options in CREDENTIALS.values():
                async with Client(f"{url}?api_key=s3cret-in-url", timeout=WAIT, **options) as client:
                    with pytest.raises(ClientError) as caught:
                        await client.call("hello")
                error = caught.value
                texts = [str(error), error.detail, error.message, str(getattr(error, "challenge", ""))]
                texts.append(json.dumps(getattr(error, "data", None)))
                assert_clean("\n".join(texts), kept="" if way in ("redirect", "challenge") else "production")


async def refusal(client: Client, tool: str) -> str:
    """Return all texts of the error of a call."""
    try:
        found = await client.call(tool, raise_on_error=False)
    except ServerError as exc:
        return f"{exc} {json.dumps(exc.data)}"
    assert found.is_error
    return found.text


@pytest.mark.parametrize("way", WAYS)
async def test_callers_of_a_gateway_and_its_log_do_not_see_its_credentials(
    way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SHOP_KEY", KEY)
    kinds: list[dict[str, Any]] = [
        {"headers": {"X-Tenant": "production", "X-Api-Key": KEY}},
        {"headers": {"X-Tenant": "production", "X-Custom": f"v1 {KEY}"}},  # as ${SHOP_KEY} in a file
        {"headers": {"X-Tenant": "production"}, "auth": bearer(env="SHOP_KEY")},
        {"headers": {"X-Tenant": "production"}, "auth": static_headers({"X-Custom": KEY})},
    ]
    caplog.set_level(logging.DEBUG)
    for handshake in (False, True):
        async with quoting(way, handshake=handshake) as url:
            for options in kinds:
                for prefix in ("", "u"):
                    mcp = Server("front")
                    mcp.upstream("up", url, prefix=prefix, start_timeout=WAIT, **options)
                    async with Client(mcp, timeout=WAIT) as client:
                        said = await refusal(client, f"{prefix}_hello" if prefix else "hello")
                    assert_clean(said, kept="" if way in ("200 text", "redirect", "challenge") else "production")
    assert_clean(caplog.text, kept="")


@pytest.mark.parametrize(
    "way", ["401 text", "403 json", "404 escaped", "422 text", "500 html", "503 json", "redirect", *WAYS[-2:]]
)
async def test_callers_of_an_api_do_not_see_its_credentials(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", KEY)
    operation = {"operationId": "hello", "responses": {"200": {"description": "ok"}}}
    parameter = {"name": "q", "in": "query", "schema": {"type": "string"}}
    document = {
        "openapi": "3.1.0",
        "info": {"title": "shop", "version": "1"},
        "paths": {"/hello": {"get": {**operation, "parameters": [parameter]}}},
    }
    kinds: list[dict[str, Any]] = [
        {"headers": {"X-Api-Key": KEY}},
        {"headers": {"Authorization": f"Basic {BASIC}"}},
        {"auth": bearer(env="SHOP_KEY")},
        {"auth": static_headers(query={"api_key": KEY})},
    ]
    async with quoting(way) as url:
        for options in kinds:
            mcp = Server("front")
            api = OpenApi(document=document, base_url=url.replace("/mcp", "/api"))
            mcp.upstream("up", openapi=api, start_timeout=WAIT, **options)
            async with Client(mcp, timeout=WAIT) as client:
                found = await client.call("up_hello", {"q": "production"}, raise_on_error=False)
            assert found.is_error
            assert_clean(found.text, kept="" if way == "redirect" else "production")


async def test_errors_of_tasks_do_not_contain_credentials() -> None:
    async def behave(request: ReceivedRequest) -> None:
        error = {"code": -32000, "message": f"bad: {request.headers}", "data": [str(request.headers)]}
        task = {"taskId": "t-1", "createdAt": "2026-01-01T00:00:00Z", "lastUpdatedAt": "2026-01-01T00:00:00Z"}
        match request.method:
            case "server/discover":
                extensions = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
                await request.result({**OFFER, "capabilities": {**OFFER["capabilities"], **extensions}})  # type: ignore[dict-item]
            case "tools/list":
                await request.result({"tools": [TOOL]})
            case "tools/call":
                await request.result({"resultType": "task", "status": "working", "pollIntervalMs": 10, **task})
            case "tasks/get":
                await request.result({"resultType": "complete", "status": "failed", "error": error, **task})
            case _:
                await refuse(request)

    headers = {"X-Tenant": "production", "X-Api-Key": KEY}
    async with misbehaving(behave) as server:
        async with Client(server.url, headers=headers, timeout=WAIT) as client:
            with pytest.raises(ServerError) as caught:
                await client.tasks.wait(await client.tasks.start("hello"))
            assert_clean(f"{caught.value} {caught.value.data}")
        mcp = Server("front")
        mcp.upstream("up", server.url, prefix="u", start_timeout=WAIT, headers=headers)
        async with Client(mcp, timeout=WAIT) as client:
            assert_clean(await refusal(client, "u_hello"))


async def test_errors_of_authorization_servers_do_not_contain_the_secrets_of_clients() -> None:
    for status in ("400 Bad Request", "200 OK"):  # GitHub's errors have status 200

        def quote_form(request: bytes, status: str = status) -> bytes:
            body = json.dumps(
                {"error": "invalid_client", "error_description": f"bad {request.decode()}"[:2000]}
            ).encode()
            return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)

        async with run_issuer() as issuer:
            issuer.answers["/token"] = quote_form
            for methods in (["client_secret_post"], ["client_secret_basic"]):
                issuer.answers["/.well-known/oauth-authorization-server"] = {
                    "issuer": issuer.url,
                    "token_endpoint": f"{issuer.url}/token",
                    "token_endpoint_auth_methods_supported": methods,
                }
                credentials = OAuth(
                    store=MemoryTokenStore(), client_id="production", client_secret=KEY, client_credentials=True
                )
                with pytest.raises(AccessDenied) as caught:
                    await credentials.handle_challenge(parse_url(f"{issuer.url}/mcp"), 401, "Bearer")
                assert "bad" in str(caught.value)
                assert_clean(str(caught.value), kept="")
                basic = b64encode(f"production:{KEY}".encode()).decode()
                assert basic not in str(caught.value)


async def test_error_on_the_guides_page() -> None:
    async def behave(request: ReceivedRequest) -> None:
        if request.method == "tools/call":
            text = f"request with x-api-key {request.headers['x-api-key']} failed"
            await request.reply(text.encode(), status="500 Internal Server Error", type="text/plain")
        elif request.method in ("server/discover", "tools/list"):
            await request.result(OFFER if request.method == "server/discover" else {"tools": [TOOL]})
        else:
            await refuse(request)

    async with misbehaving(behave) as server:
        mcp = Server("front")
        mcp.upstream("mail", server.url, prefix="", start_timeout=WAIT, auth=static_headers({"x-api-key": KEY}))
        async with Client(mcp, timeout=WAIT) as client:
            said = (await client.call("hello", raise_on_error=False)).text
    assert f"\n{said}\n" in PAGE.read_text("utf-8")


async def test_results_are_not_changed() -> None:
    async with quoting("result") as url:
        mcp = Server("front")
        mcp.upstream("up", url, prefix="", start_timeout=WAIT, headers={"X-Api-Key": KEY})
        async with Client(mcp, timeout=WAIT) as client:
            assert KEY in (await client.call("hello")).text


PROGRAM = """
import json, os, sys
key, url = os.environ["SHOP_KEY"], os.environ["DATABASE_URL"]
print(f"starting with {key}", flush=True)  # not JSON
print(f"connected to {url} as {sys.argv[2]} for {os.environ['TENANT']}", file=sys.stderr, flush=True)
for line in sys.stdin:
    message = json.loads(line)
    method, said = message["method"], f"{key} {url} {sys.argv[2]} {os.environ['TENANT']}"
    if method == "initialize":
        about = {"name": "r", "version": "1"}
        answer = {"result": {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": about}}
    elif method == "tools/list":
        answer = {"result": {"tools": [{"name": "hello", "inputSchema": {"type": "object"}}]}}
    elif method == "tools/call" and message["params"].get("arguments", {}).get("exit"):
        sys.stderr.write(f"RuntimeError: {said}")
        sys.stderr.flush()
        sys.exit(3)
    elif method == "tools/call":
        answer = {"error": {"code": -32000, "message": said, "data": [said]}}
    elif "id" in message:
        answer = {"error": {"code": -32601, "message": "no"}}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}), flush=True)
"""


@pytest.mark.server
async def test_errors_and_output_of_commands_do_not_contain_credentials(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "program"
    file.write_text(PROGRAM, "utf-8")
    command = [sys.executable, str(file), "--token", "s3cret-argument"]
    env = {
        "SHOP_KEY": KEY,
        "DATABASE_URL": "postgres://shop:pa55/word@db".replace("/word", "word"),
        "TENANT": "production",
    }
    lines: list[str] = []
    async with Client(command, options=Options(env=env, stderr=lines.append), timeout=WAIT) as client:
        with pytest.raises(ServerError) as refused:
            await client.call("hello")
        assert_clean(f"{refused.value} {refused.value.data}")
        with pytest.raises(ClientError) as exited:
            await client.call("hello", {"exit": True})
        assert_clean(str(exited.value))
    assert_clean("\n".join(lines))
    assert_clean(caplog.text, kept="starting with [redacted]")

    mcp = Server("front")
    mcp.upstream("up", command, env=env, prefix="u", start_timeout=WAIT)
    async with Client(mcp, timeout=WAIT) as client:
        with pytest.raises(ServerError) as passed:
            await client.call("u_hello")
        assert_clean(f"{passed.value} {passed.value.data}")
        assert_clean((await client.call("u_hello", {"exit": True}, raise_on_error=False)).text, kept="")
    assert_clean(caplog.text)


async def test_close_reasons_of_websockets_do_not_contain_credentials() -> None:
    async def behave(socket: ServerConnection) -> None:
        assert socket.request is not None
        await socket.recv()
        await socket.close(4000, f"bad key {socket.request.headers['X-Api-Key']} {socket.request.headers['X-Tenant']}")

    async with serve(behave, "127.0.0.1", 0, subprotocols=["mcp"]) as server:  # type: ignore[list-item]
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        with pytest.raises(ClientError) as caught:
            async with Client(url, headers={"X-Api-Key": KEY, "X-Tenant": "production"}, timeout=WAIT):
                pass
    assert_clean(str(caught.value))


async def test_shortened_challenges_of_websockets_do_not_contain_credentials() -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        said = f'Bearer error="invalid_token", error_description="{"production " * 26}{KEY}"'
        writer.write(f"HTTP/1.1 401 No\r\nWWW-Authenticate: {said}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(behave, "127.0.0.1", 0)
    async with server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        with pytest.raises(AccessDenied) as caught:
            async with Client(url, headers={"X-Api-Key": KEY}, timeout=WAIT):
                pass
    assert KEY[:8] not in str(caught.value)
    assert_clean(str(caught.value))


@for_each("status", ["200 OK", "400 No"])
async def test_deep_errors_do_not_contain_credentials(status: str) -> None:
    async def behave(request: ReceivedRequest) -> None:
        if request.method == "server/discover":
            await request.result(OFFER)
            return
        data = b'{"a":[' * 300 + json.dumps(KEY).encode() + b"]}" * 300
        error = b'{"code":-32000,"message":"too deep","data":%b}' % data
        await request.reply(b'{"jsonrpc":"2.0","id":%d,"error":%b}' % (request.message["id"], error), status=status)

    async with misbehaving(behave) as server, Client(server.url, headers={"X-Api-Key": KEY}) as client:
        with pytest.raises(ServerError, match="too deep") as caught:
            await client.call_tool("hello", {})
    assert KEY not in json.dumps(caught.value.data)


async def test_numeric_credentials_leave_errors_readable() -> None:
    async def behave(request: ReceivedRequest) -> None:
        if request.method == "server/discover":
            await request.result(OFFER)
        elif request.message["params"]["name"] == "wait":
            await request.reply(b"{}", status="429 No", more="Retry-After: 3600\r\n")
        else:
            error = {"code": -3600, "message": "3600 is too much", "data": {"most": 3600}}
            message = {"jsonrpc": "2.0", "id": request.message["id"], "error": error}
            await request.reply(json.dumps(message).encode(), status="400 No")

    async with misbehaving(behave) as server, Client(server.url, headers={"X-Api-Key": "3600"}) as client:
        with pytest.raises(ServerError, match=r"\[redacted\] is too much") as caught:
            await client.call_tool("hello", {})
        assert (caught.value.code, caught.value.data) == (-3600, {"most": 3600})
        with pytest.raises(ClientError) as late:
            await client.call_tool("wait", {})
        assert late.value.retry_after == 3600


@for_each("way", ["401 text", "403 json", "500 html", "422 text", "message", "data", "stream"])
async def test_errors_do_not_contain_the_session(way: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")

    async def behave(request: ReceivedRequest) -> None:
        if request.method == "initialize":
            more = "Mcp-Session-Id: session-0123456789\r\nSet-Cookie: lb=route-0123456789; Path=/\r\n"
            await request.result(GREETING, more=more)
        elif request.method == "tools/call":
            await quote_request(request, way)
        else:
            await refuse(request)

    async with misbehaving(behave) as server, Client(server.url, headers={"X-Tenant": "production"}) as client:
        with pytest.raises(ClientError) as caught:
            await client.call_tool("hello", {})
    error = caught.value
    said = f"{error} {error!r} {error.args} {error.detail} {getattr(error, 'data', '')} {caplog.text}"
    assert "production" in said
    assert "0123456789" not in said


async def test_concurrent_requests_with_new_credentials_do_not_reveal_the_old_ones() -> None:
    """A token that was replaced while a request waited is still a credential."""
    first, second = asyncio.Event(), asyncio.Event()
    tokens = iter([f"first-{KEY}", f"second-{KEY}"])

    class Renewing(Signer):
        token = ""

        async def headers(self, url: Any, method: str, target: str) -> Mapping[str, str]:
            return {"X-Signed": self.token}

    auth = Renewing()

    async def behave(request: ReceivedRequest) -> None:
        if request.method == "server/discover":
            await request.result(OFFER)
            return
        if request.message["params"]["arguments"] == {"n": 1}:
            first.set()
            await second.wait()
        await quote_request(request, "message")

    async with misbehaving(behave) as server:
        auth.token = next(tokens)
        async with Client(server.url, options=Options(auth=auth), timeout=WAIT) as client:
            waiting = asyncio.ensure_future(client.call("hello", {"n": 1}))
            await first.wait()
            auth.token = next(tokens)
            with pytest.raises(ServerError) as caught:
                await client.call("hello", {"n": 2})
            assert_clean(str(caught.value), kept="bad")
            second.set()
            with pytest.raises(ServerError) as late:
                await waiting
            assert "first" not in str(late.value)
            assert_clean(str(late.value), kept="bad")
