"""Signing in to other servers from the inspector, tested without a browser: tokens, their owners, and attacks.

docs/guides/develop-and-inspect.md is the contract. The rules are RFCs 6749, 7009, 7636, 9207 and our choice.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2

from backend_stores import MemoryStore
from cases import for_each
from http_peer import NO_TRUST, serve
from millstream import Server, auth
from millstream._app.definition import Bind
from millstream._config import Settings
from millstream._server.calls.services import ChangeFeed, Services
from millstream._web.inspector import SignIns
from patience import WAIT
from web.token_server import Guarded, guarded, token_for

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


class Browser:
    """A browser at the inspector of a running server."""

    def __init__(self, base: str, mcp: Server) -> None:
        self.base = base
        self.mcp = mcp
        self.http = httpx2.AsyncClient(base_url=base, headers={"origin": base}, verify=NO_TRUST, timeout=WAIT)

    async def begin(self, **wanted: Any) -> httpx2.Response:
        return await self.http.post("/inspect/sign-in/1", json={"challenge": 'Bearer scope="books:read"', **wanted})

    async def leave(self, **wanted: Any) -> dict[str, str]:
        """Go away to sign in; what the authorization server is asked."""
        reply = await self.begin(**wanted)
        assert reply.status_code == 200, reply.text
        return {name: values[-1] for name, values in parse_qs(urlsplit(reply.json()["url"]).query).items()}

    async def come_back(self, **answer: str) -> httpx2.Response:
        """As a browser does that another site sends here."""
        headers = {"origin": "", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        request = self.http.build_request("GET", "/inspect/callback", params=answer, headers=headers)
        del request.headers["origin"]
        return await self.http.send(request)

    async def sign_in(self, other: Guarded, **wanted: Any) -> httpx2.Response:
        """There and back."""
        asked = await self.leave(**wanted)
        return await self.come_back(code="c", state=asked["state"], iss=other.origin)

    async def call(self, **headers: str) -> httpx2.Response:
        return await self.http.post("/inspect/via/1", json=CALL, headers=headers)

    async def known(self) -> Any:
        """Who is signed in, as the page is told."""
        return (await self.http.get("/inspect/servers")).json()["servers"][0]["signed_in"]


@asynccontextmanager
async def inspecting(other: Guarded, **options: Any) -> AsyncIterator[Browser]:
    """A browser at our server, whose operator named this one."""
    async with AsyncExitStack() as stack:
        mcp = Server("ours", serve="web", settings=Settings(inspect_urls=(other.url,)), **options)
        stack.push_async_callback(mcp.stop)
        running = await stack.enter_async_context(serve(mcp, lane=True))
        browser = Browser(f"http://127.0.0.1:{running.port}", mcp)
        stack.push_async_callback(browser.http.aclose)
        yield browser


async def test_tokens_stay_on_the_server() -> None:
    async with guarded() as other, inspecting(other) as browser:
        assert (await browser.call()).status_code == 401
        reply = await browser.begin()
        cookie = reply.headers["set-cookie"]
        asked = {name: values[-1] for name, values in parse_qs(urlsplit(reply.json()["url"]).query).items()}
        back = await browser.come_back(code="c", state=asked["state"], iss=other.origin)
        called = await browser.call()
        listed = await browser.http.get("/inspect/servers")
    assert asked["scope"] == "books:read"
    assert asked["redirect_uri"] == f"{browser.base}/inspect/callback"
    assert "Path=/inspect;" in cookie
    assert "HttpOnly; SameSite=Lax" in cookie
    assert (back.status_code, 'content="0;url=/inspect"' in back.text) == (200, True)
    assert called.status_code == 200
    assert other.seen == ["", f"Bearer {token_for('ada', 1)}"]
    assert listed.json()["servers"][0]["signed_in"] == {"who": "ada", "issuer": other.origin, "scopes": ["books:read"]}
    said = "".join(f"{each.headers}{each.text}" for each in (reply, back, called, listed))
    assert "secret-" not in said
    assert "refresh-" not in said
    form = other.forms[0]
    assert (form["redirect_uri"], form["resource"]) == (asked["redirect_uri"], other.url)


async def test_stored_tokens_are_sealed() -> None:
    async with guarded() as other, inspecting(other) as browser, browser.mcp.running() as runtime:
        await browser.sign_in(other, client_id="me", client_secret="my-secret")
        kv = runtime.store.kv
        kept = [(key, await kv.get(key) or b"") for key in await kv.keys("inspect-")]
    assert [key.partition(":")[0] for key, _ in kept] == ["inspect-session"]
    assert not any(word in value for _, value in kept for word in (b"secret", b"refresh", b"ada"))


async def test_unknown_states_are_rejected() -> None:
    """RFC 6749 §10.12."""
    async with guarded() as other, inspecting(other) as browser:
        await browser.leave()
        for state in ("x" * 32, "", "é"):
            reply = await browser.come_back(code="c", state=state, iss=other.origin)
            assert (reply.status_code, "sign in again" in reply.text) == (403, True)
        assert other.forms == []


async def test_malformed_forms_are_rejected() -> None:
    bodies = ["[]", '{"status": "x"}']
    if sys.version_info < (3, 12):  # newer versions skip deeper members, too
        bodies.append('{"x": %s}' % ("[" * 6000 + "]" * 6000))
    async with guarded() as other, inspecting(other) as browser:
        for body in bodies:
            reply = await browser.http.post("/inspect/sign-in/1", content=body)
            assert (reply.status_code, "malformed" in reply.text) == (400, True)


async def test_callbacks_are_single_use() -> None:
    async with guarded() as other, inspecting(other) as browser:
        state = (await browser.leave())["state"]
        first, second = [await browser.come_back(code="c", state=state, iss=other.origin) for _ in range(2)]
        assert (first.status_code, second.status_code, len(other.forms)) == (200, 403, 1)


async def test_callbacks_are_bound_to_their_browser() -> None:
    async with guarded() as other, inspecting(other) as browser:
        stranger = Browser(browser.base, browser.mcp)
        await stranger.leave()
        for visitor in (stranger, Browser(browser.base, browser.mcp)):
            state = (await browser.leave())["state"]
            assert (await visitor.come_back(code="c", state=state, iss=other.origin)).status_code == 403
            assert (await browser.come_back(code="c", state=state, iss=other.origin)).status_code == 403
            await visitor.http.aclose()
        assert other.forms == []


@for_each("named", [{}, {"iss": "https://evil.example"}])
async def test_callbacks_from_another_issuer_are_rejected(named: dict[str, str]) -> None:
    """RFC 9207 §2.4."""
    async with guarded() as other, inspecting(other) as browser:
        state = (await browser.leave())["state"]
        reply = await browser.come_back(code="c", state=state, **named)
        assert (reply.status_code, other.forms) == (403, [])


async def test_duplicate_parameters_are_rejected() -> None:
    """RFC 6749 §3.1."""
    async with guarded() as other, inspecting(other) as browser:
        state = (await browser.leave())["state"]
        reply = await browser.http.get(f"/inspect/callback?code=a&code=b&state={state}&iss={other.origin}")
        assert (reply.status_code, other.forms) == (400, [])


async def test_errors_are_shown_as_text() -> None:
    script = "<script>alert(1)</script>\n" + "x" * 5000
    async with guarded() as other, inspecting(other) as browser:
        state = (await browser.leave())["state"]
        reply = await browser.come_back(
            error="access_denied", error_description=script, state=state, iss=other.origin, next="https://evil.example"
        )
    assert reply.status_code == 403
    assert "<script" not in reply.text
    assert "&lt;script&gt;alert(1)" in reply.text
    assert "evil.example" not in reply.text
    assert len(reply.text) < 3000
    assert "script-src" not in reply.headers["content-security-policy"]
    assert "default-src 'none'" in reply.headers["content-security-policy"]


async def test_token_endpoint_redirects_are_not_followed() -> None:
    async with guarded() as other, guarded() as evil, inspecting(other) as browser:
        other.redirect = f"{evil.origin}/token"
        reply = await browser.sign_in(other)
        assert (reply.status_code, "issued no token" in reply.text) == (403, True)
        assert (evil.forms, await browser.known()) == ([], None)


@for_each("place", ["javascript:alert(1)", "http://evil.example/authorize", "data:text/html,x", ""])
async def test_unprotected_servers_start_no_login(place: str) -> None:
    async with guarded() as other, inspecting(other) as browser:
        other.about = {"authorization_endpoint": place}
        reply = await browser.begin()
        assert (reply.status_code, "url" in reply.json()) == (502, False)


async def test_only_same_origin_pages_use_tokens() -> None:
    async with guarded() as other, inspecting(other) as browser:
        await browser.sign_in(other)
        asked = other.asked.copy()
        for headers in ({"origin": "http://127.0.0.1:1"}, {"origin": "null"}, {"origin": "https://evil.example"}):
            assert (await browser.http.post("/inspect/sign-in/1", json={}, headers=headers)).status_code == 403
            assert (await browser.http.delete("/inspect/sign-in/1", headers=headers)).status_code == 403
        assert other.asked == asked
        neighbor = await browser.call(origin="http://127.0.0.1:1")
        assert (neighbor.status_code, other.seen) == (401, [""])
        listed = await browser.http.get("/inspect/servers", headers={"origin": "http://127.0.0.1:1"})
        assert listed.json()["servers"][0]["signed_in"] is None
        plain = httpx2.AsyncClient(base_url=browser.base, cookies=browser.http.cookies, verify=NO_TRUST, timeout=WAIT)
        assert (await plain.post("/inspect/via/1", json=CALL)).status_code == 401
        await plain.aclose()


async def test_tokens_are_bound_to_the_operator() -> None:
    keys = auth.keys(named_keys={"ada": "a" * 20, "bob": "b" * 20})
    async with guarded() as other, inspecting(other, auth=keys) as browser:
        browser.http.headers["authorization"] = "Bearer " + "a" * 20
        state = (await browser.leave())["state"]
        del browser.http.headers["authorization"]
        assert (await browser.come_back(code="c", state=state, iss=other.origin)).status_code == 200
        assert (await browser.call()).status_code == 401
        browser.http.headers["authorization"] = "Bearer " + "a" * 20
        assert (await browser.call()).status_code == 200
        browser.http.headers["authorization"] = "Bearer " + "b" * 20
        assert (await browser.known(), (await browser.call()).status_code) == (None, 401)


async def test_sign_in_routes_are_loopback_only() -> None:
    mcp = Server("ours", serve="web", settings=Settings(inspect_urls=("http://127.0.0.1:1/mcp",), auth_key="k" * 20))
    mcp.runtimes.bind = Bind(loopback=False)
    try:
        transport = httpx2.ASGITransport(mcp, client=("10.0.0.5", 1))
        headers = {"authorization": "Bearer " + "k" * 20, "origin": "http://127.0.0.1"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as http:
            assert (await http.get("/inspect/callback?state=x&code=c")).status_code == 403
            assert (await http.post("/inspect/sign-in/1", json={})).status_code == 403
            assert (await http.delete("/inspect/sign-in/1")).status_code == 403
    finally:
        await mcp.stop()


async def test_tokens_are_refreshed_once_for_concurrent_calls() -> None:
    async with guarded() as other, inspecting(other) as browser:
        other.given = {"expires_in": 1}
        await browser.sign_in(other)
        other.given = {"expires_in": 3600}
        replies = await asyncio.gather(*(browser.call() for _ in range(6)))
        assert {each.status_code for each in replies} == {200}
        assert [form["grant_type"] for form in other.forms] == ["authorization_code", "refresh_token"]
        assert other.forms[1]["refresh_token"] == "refresh-1"


async def test_sign_out_during_a_refresh_takes_precedence() -> None:
    async with guarded() as other, inspecting(other) as browser:
        other.given = {"expires_in": 1}
        await browser.sign_in(other)
        asked, go = asyncio.Event(), asyncio.Event()
        give = other.token

        async def slowly(question: Any) -> None:
            asked.set()
            await go.wait()
            await give(question)

        other.given, other.token = {"expires_in": 3600}, slowly  # type: ignore[method-assign]
        called = asyncio.create_task(browser.call())
        async with asyncio.timeout(WAIT):
            await asked.wait()
        await browser.http.delete("/inspect/sign-in/1")
        go.set()
        await called
        assert (await browser.known(), (await browser.call()).status_code) == (None, 401)
        assert {"refresh-1", "refresh-2"} <= {form["token"] for form in other.revoked}


async def test_expired_refresh_locks_do_not_release_others() -> None:
    store = MemoryStore()
    await store.open()
    services = Services(Settings(), store, ChangeFeed())
    first, second = SignIns(services), SignIns(services)
    late = first._lock("a")
    await late.__aenter__()
    await store.kv.delete("inspect-turn:a")  # as its expiry does
    async with second._lock("a"):
        await late.__aexit__(None, None, None)
        assert await store.kv.get("inspect-turn:a") is not None
    assert await store.kv.get("inspect-turn:a") is None
    await store.close()


async def test_rejected_tokens_are_refreshed_and_the_call_repeated() -> None:
    async with guarded() as other, inspecting(other) as browser:
        await browser.sign_in(other)
        other.valid.clear()
        assert (await browser.call()).status_code == 200
        other.valid.clear()
        other.given = {"error": "invalid_grant", "access_token": ""}
        assert (await browser.call()).status_code == 401
        assert (await browser.known())["who"] == "ada"


async def test_step_up_keeps_existing_scopes() -> None:
    async with guarded() as other, inspecting(other) as browser:
        await browser.sign_in(other)
        challenge = 'Bearer error="insufficient_scope", scope="orders:write"'
        asked = await browser.leave(status=403, challenge=challenge)
        assert asked["scope"] == "books:read orders:write"
        assert other.asked["/register"] == 2, "issuers may refuse scopes that a client isn't registered for"


@for_each("able", [True, False])
async def test_sign_out_forgets_and_revokes_the_token(able: bool) -> None:
    """RFC 7009."""
    async with guarded() as other, inspecting(other) as browser:
        if not able:
            other.about = {"revocation_endpoint": None}
        await browser.sign_in(other)
        reply = await browser.http.delete("/inspect/sign-in/1")
        assert reply.json() == {"revoked": able}
        tokens = {"refresh-1", token_for("ada", 1)} if able else set()
        assert {form["token"] for form in other.revoked} == tokens
        assert (await browser.known(), (await browser.call()).status_code) == (None, 401)
        assert (await browser.http.delete("/inspect/sign-in/1")).json() == {"revoked": False}


async def test_entered_secrets_are_sent_to_only_one_issuer() -> None:
    async with guarded() as other, guarded() as evil, inspecting(other) as browser:
        asked = await browser.leave(client_id="mine", client_secret="my-secret")
        await browser.come_back(code="c", state=asked["state"], iss=other.origin)
        assert (asked["client_id"], other.asked["/register"], len(other.forms)) == ("mine", 0, 1)
        other.metadata = evil.metadata  # type: ignore[method-assign]
        reply = await browser.begin()
        assert reply.status_code == 502
        assert evil.forms == []


async def test_missing_registration_is_explained() -> None:
    async with guarded() as other, inspecting(other) as browser:
        other.about, other.registers = {"registration_endpoint": None}, False
        said = (await browser.begin()).json()["detail"]
        assert said == (
            f"{other.origin} doesn't support client registration. Register a client there with the redirect URI "
            f"{browser.base}/inspect/callback, and enter its id below."
        )
        assert (await browser.http.post("/inspect/sign-in/7", json={})).status_code == 404
        assert (await browser.http.post("/inspect/sign-in/1", content=b"x")).status_code == 400
