import re
import time
from html import unescape
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest

from auth_world import ROOT, GuardedServer, make_server, run_guarded
from cases import for_each
from issuing_world import KnownUsers
from millstream import auth
from millstream.auth.providers import AuthorizationRedirect, Callback, SignInFailed, User
from millstream.stores import StoreUnavailable
from processes import free_port
from wire import Reply

LIFETIME = 12 * 3600
"""Seconds that a sign-in cookie is valid."""


class Elsewhere:
    """An upstream that identifies users by their code, and admits those in `allowed`."""

    name, label = "elsewhere", "Continue with Elsewhere"

    def __init__(self) -> None:
        self.allowed = {"grace", "eve"}
        self.works = True

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """Return the redirect."""
        if not self.works:
            raise SignInFailed("Elsewhere isn't responding. Try again later.")
        return AuthorizationRedirect(f"https://id.example/go?redirect_uri={quote(callback)}&state={state}", b"nonce-7")

    async def finish(self, callback: Callback) -> User:
        """Return the user."""
        assert callback.state_data == b"nonce-7"
        code = callback.query.get("code", "")
        if code not in self.allowed:
            raise SignInFailed("<b> may not sign in here.")
        return User(code, code.title(), ("*",) if code == "grace" else ("orders:write",), 7.0)

    def still(self, user: User) -> bool:
        """Return whether the user is still allowed."""
        return user.name.lower() in self.allowed


class World:
    """A server at its issuer's URL, and a browser that keeps cookies and sends Fetch Metadata."""

    def __init__(self, guarded: GuardedServer, upstream: Elsewhere, url: str) -> None:
        self.guarded = guarded
        self.upstream = upstream
        self.host = urlsplit(url).netloc
        self.url = url
        self.jar: dict[str, str] = {}

    async def ask(self, method: str, path: str, form: dict[str, str] | None = None, **headers: str) -> Reply:
        """Send one request of the browser."""
        given = {"host": self.host, "accept": "text/html", **headers}
        if self.jar:
            given["cookie"] = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        if form is not None:
            given = {"content_type": "application/x-www-form-urlencoded", "origin": self.url, **given}
        reply = await self.guarded.ask(None, method, path, urlencode(form or {}).encode(), **given)
        if b"set-cookie" in reply.headers:
            key, _, rest = reply.headers[b"set-cookie"].decode().partition("=")
            self.jar[key] = rest.partition(";")[0]
        return reply

    async def away(self, page: str = "/docs", way: str = "elsewhere") -> Reply:
        """Press a login's button."""
        return await self.ask("POST", "/sign-in", {"way": way, "next": page})

    async def back(self, away: Reply, code: str = "grace", **more: str) -> Reply:
        """Follow the upstream's cross-site redirect back."""
        state = parse_qs(urlsplit(led_to(away)).query)["state"][0]
        query = urlencode({"state": state, "code": code, **more})
        return await self.ask("GET", f"/sign-in/callback/elsewhere?{query}", sec_fetch_site="cross-site")

    async def opened(self, page: str = "/docs") -> int:
        """Return the status of a page opened from another one of ours."""
        return (await self.ask("GET", page, sec_fetch_site="same-origin")).status


def led_to(reply: Reply) -> str:
    """Return the page's redirect target."""
    found = re.search(r'content="0;url=([^"]+)"', reply.body.decode())
    assert found, reply.body
    return unescape(found[1])


@pytest.fixture
async def world() -> Any:
    """Yield a server with local users, an upstream, and a key."""
    upstream, port = Elsewhere(), free_port()
    url = f"http://127.0.0.1:{port}"
    methods = [auth.issuer(url, users=[KnownUsers(), upstream]), auth.keys(ROOT)]
    async with run_guarded(make_server(methods, allowed_hosts=("shop.example.com",)), port=port) as running:
        yield World(running, upstream, url)


async def test_external_login_returns_to_the_requested_page(world: World) -> None:
    shown = await world.ask("GET", "/dashboard")
    assert b'<button name="way" value="elsewhere">Continue with Elsewhere</button>' in shown.body
    away = await world.away("/dashboard")
    assert parse_qs(urlsplit(led_to(away)).query)["redirect_uri"] == [f"{world.url}/sign-in/callback/elsewhere"]
    assert "millstream" not in world.jar
    landed = await world.back(away)
    assert (landed.status, led_to(landed)) == (200, "/dashboard")
    assert landed.headers[b"cache-control"] == b"no-store"
    flags = landed.headers[b"set-cookie"].decode().split("; ")[1:]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(flags)
    assert await world.opened("/dashboard") == 200
    who = await world.ask("POST", "/tools/who", None, content_type="application/json", sec_fetch_site="same-origin")
    assert b"elsewhere:grace" in who.body
    assert await world.opened() == 200
    assert (await world.ask("GET", "/docs", sec_fetch_site="cross-site")).status == 401


async def test_page_permissions_follow_the_allowlist_entry(world: World) -> None:
    await world.back(await world.away(), "eve")
    assert [await world.opened(page) for page in ("/docs", "/chat", "/dashboard")] == [200, 200, 403]


@for_each(
    ("code", "reason"), [("mallory", b"&lt;b&gt; may not sign in here."), ("x" * 2100, b"too large for a cookie")]
)
async def test_rejected_identities_see_the_reason_and_get_no_cookie(world: World, code: str, reason: bytes) -> None:
    if code != "mallory":
        world.upstream.allowed.add(code)
    landed = await world.back(await world.away("/chat"), code)
    assert landed.status == 403
    assert reason in landed.body
    assert b'value="/chat"' in landed.body
    assert "millstream" not in world.jar


async def test_callbacks_over_plain_http_get_no_cookie(world: World) -> None:
    state = parse_qs(urlsplit(led_to(await world.away())).query)["state"][0]
    path = f"/sign-in/callback/elsewhere?{urlencode({'state': state, 'code': 'grace'})}"
    landed = await world.ask("GET", path, host="shop.example.com", sec_fetch_site="cross-site")
    assert (landed.status, b"over https" in landed.body) == (403, True)
    assert "millstream" not in world.jar


async def test_callbacks_are_bound_to_the_browser(world: World) -> None:
    away = await world.away()
    mine, world.jar = world.jar, {}
    assert (await world.back(away)).status == 403
    await world.away()
    assert "millstream" not in world.jar
    world.jar = mine
    assert (await world.back(away)).status == 400  # a state is valid once


async def test_login_buttons_work_only_on_our_page(world: World) -> None:
    for foreign in ({"origin": "https://evil.example"}, {"origin": "null"}):
        reply = await world.ask("POST", "/sign-in", {"way": "elsewhere", "next": "/docs"}, **foreign)
        assert (reply.status, b"url=" in reply.body) == (403, False)


async def test_page_login_state_is_single_use(world: World) -> None:
    away = await world.away()
    assert (await world.ask("GET", "/sign-in/callback/elsewhere?state=made-up&code=grace")).status == 400
    assert (await world.ask("GET", "/sign-in/callback/elsewhere?code=grace")).status == 400
    assert (await world.back(away)).status == 200
    assert (await world.back(away)).status == 400
    state = parse_qs(urlsplit(led_to(await world.away())).query)["state"][0]
    twice = await world.ask("GET", f"/sign-in/callback/elsewhere?state={state}&code=grace&code=eve")
    assert (twice.status, twice.headers.get(b"set-cookie")) == (400, None)


@for_each("wanted", ["https://evil.example", "//evil.example", "/mcp", "", "javascript:alert(1)"])
async def test_page_login_redirects_only_to_pages(world: World, wanted: str) -> None:
    landed = await world.back(await world.away(wanted))
    assert led_to(landed) == "/connect"


async def test_removed_users_and_expired_cookies_are_signed_out(world: World) -> None:
    await world.back(await world.away())
    assert await world.opened() == 200
    world.upstream.allowed.discard("grace")
    guard = world.guarded.runtime.guard
    assert guard is not None
    guard.verdicts.clear()  # verdicts are cached for a minute
    assert await world.opened() == 401
    await world.back(await world.away(), "eve")
    assert await world.opened() == 200
    guard.verdicts.clear()
    sign_in: Any = getattr(guard.ambient, "__self__")  # noqa: B009  of a bound method
    sign_in._clock = lambda: time.time() + LIFETIME + 1
    assert await world.opened() == 401


async def test_upstream_outage_is_shown_on_the_form(world: World) -> None:
    world.upstream.works = False
    reply = await world.away()
    assert (reply.status, b"Elsewhere isn&#39;t responding" in reply.body) == (503, True)
    reply = await world.away(way="nobody")
    assert (reply.status, b"no longer available" in reply.body) == (400, True)


async def test_store_outage_is_shown_on_the_form(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: object, **options: object) -> None:
        raise StoreUnavailable("The store didn't respond.")

    away, kv = await world.away(), world.guarded.runtime.store.kv
    monkeypatch.setattr(kv, "put", fail)
    reply = await world.away()
    assert (reply.status, b"store isn&#39;t available" in reply.body) == (503, True)
    monkeypatch.setattr(kv, "get", fail)
    assert (await world.back(away)).status == 503


async def test_form_on_another_host_name_links_to_the_right_one(world: World) -> None:
    other = f"localhost:{urlsplit(world.url).port}"
    reply = await world.ask(
        "POST", "/sign-in", {"way": "elsewhere", "next": "/docs"}, host=other, origin=f"http://{other}"
    )
    assert reply.status == 400
    assert f"can only sign in at {world.url}/docs. Open that address.".encode() in reply.body


async def test_issuer_and_external_page_login_can_be_combined() -> None:
    foreign: dict[str, Any] = {"audience": "http://127.0.0.1:8000/mcp", "client_id": "a"}
    first, second = (auth.oidc(f"https://{each}.example.com", **foreign) for each in ("one", "two"))
    async with run_guarded(make_server([auth.issuer("http://127.0.0.1:8000", users=Elsewhere()), first])) as world:
        body = (await world.ask(None, "GET", "/docs", accept="text/html")).body
        assert (b"Continue with Elsewhere" in body, b"Continue with one.example.com" in body) == (True, True)
    with pytest.raises(ValueError, match="their paths would be the same"):
        async with run_guarded(make_server([first, second])):
            pass
    with pytest.raises(ValueError, match="requires client_id"):
        auth.oidc("https://id.example.com", audience="http://127.0.0.1:8000/mcp", client_secret="b")
