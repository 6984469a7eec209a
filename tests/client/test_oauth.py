"""Logins of a client, beyond the official conformance suite. The rules are RFCs 6749, 7636, 8252, 9207, and 9728, and
https://modelcontextprotocol.io/specification/2026-07-28/basic/authorization.
"""

import asyncio
import html
import json
import re
import stat
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from cases import for_each
from client.misbehaving_servers import DONE, ReceivedRequest, connected, misbehaving, with_discovery
from client.test_proxies import proxying, secure
from millstream import Client
from millstream._http.client.url import parse_url
from millstream.client import AccessDenied, Options
from millstream.client._oauth import (
    FileTokenStore,
    MemoryTokenStore,
    Registration,
    StoredCredentials,
    Tokens,
    endpoints,
)
from millstream.client._oauth.endpoints import (
    MAX_LENGTH,
    IssuerMetadata,
    fetch,
    method_of,
    parse_secure,
    read_challenges,
    refuse_local,
)
from millstream.client._oauth.flow import OAuth, code_of
from millstream.client._oauth.loopback import Loopback, parse_redirect
from patience import WAIT
from processes import ROOT

ISSUER = IssuerMetadata(issuer="https://as.example", authorization_response_iss_parameter_supported=True)


def test_quoted_challenges_are_parsed() -> None:
    """RFC 9110 §11.6.1"""
    header = 'Bearer error="insufficient_scope", scope="a b", resource_metadata="https://x/y?z=1,2", n=1'
    assert read_challenges(header).parameters == {
        "error": "insufficient_scope",
        "scope": "a b",
        "resource_metadata": "https://x/y?z=1,2",
        "n": "1",
    }
    assert read_challenges("Basic").parameters == {}
    both = read_challenges('Negotiate abc==, Bearer realm="a \\" b", scope=x, DPoP algs="ES256"')
    assert (both.schemes, both.parameters["scope"]) == ({"negotiate", "bearer", "dpop"}, "x")


def test_hostile_challenges_are_parsed_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_challenges("Bearer " + "a" * MAX_LENGTH).schemes == frozenset()
    monkeypatch.setattr(endpoints, "MAX_LENGTH", 1 << 20)
    for part in ("a", "a=", '"', '\\"', " ", "a \t", 'a="', "a=\\"):
        read = read_challenges(f'Bearer x="y", {part * ((1 << 20) // len(part) - 32)}')
        assert ("bearer" in read.schemes, read.parameters["x"]) == (True, "y")


@for_each(
    ("answer", "words"),
    [
        ({"code": "c", "state": "s"}, "lacks the iss parameter"),
        ({"code": "c", "state": "s", "iss": "https://evil.example"}, "evil.example"),
        ({"code": "c", "state": "s", "iss": "https://as.example/"}, "as.example/"),
        ({"code": "c", "state": "other", "iss": "https://as.example"}, "another sign-in"),
        ({"code": "c", "iss": "https://as.example"}, "another sign-in"),
        ({"error": "access_denied", "state": "s", "iss": "https://as.example"}, "access_denied"),
    ],
)
def test_malformed_oauth_responses_are_rejected(answer: dict[str, str], words: str) -> None:
    with pytest.raises(AccessDenied, match=words):
        code_of(answer, "s", ISSUER)
    assert code_of({"code": "c", "state": "s", "iss": "https://as.example"}, "s", ISSUER) == "c"


def test_duplicate_parameters_are_rejected() -> None:
    """RFC 6749 §3.1"""
    with pytest.raises(AccessDenied, match="twice"):
        parse_redirect("/callback?code=a&code=b")


@for_each("url", ["http://as.example/token", "http://192.168.0.1/token", "http://127.0.0.1.evil.example/"])
def test_credentials_require_tls_except_on_loopback(url: str) -> None:
    """RFC 6749 §3.2."""
    with pytest.raises(AccessDenied, match="https"):
        parse_secure(url)
    assert parse_secure("http://127.0.0.1:1/token").port == 1


def test_client_authentication_method_follows_the_issuer() -> None:
    """RFC 8414 §2."""
    offered = IssuerMetadata(token_endpoint_auth_methods_supported=["client_secret_post"])
    assert method_of(offered, Registration("a", "b")) == "client_secret_post"
    assert method_of(offered, Registration("a", "b", "client_secret_basic")) == "client_secret_basic"
    assert method_of(IssuerMetadata(), Registration("a", "b")) == "client_secret_basic"
    assert method_of(IssuerMetadata(), Registration("a")) == "none"


def test_token_file_is_readable_only_by_its_owner(tmp_path: Path) -> None:
    store = FileTokenStore(tmp_path / "state" / "tokens.json")
    assert store.load() == StoredCredentials({}, {})
    kept = StoredCredentials({"https://as.example": Registration("id")}, {"https://x/mcp": Tokens("t")})
    store.save(kept)
    assert store.load() == kept
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    store.path.write_text("{")
    assert store.load() == StoredCredentials({}, {})


async def test_only_the_redirect_with_our_state_ends_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8252 §7.3."""
    loopback = Loopback()
    redirect = await loopback.open()

    def open_browser(url: str) -> None:
        other = redirect.replace("/callback", "/favicon.ico")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(other, timeout=WAIT)  # noqa: S310  our own page
        refused.value.close()
        for forged in ("", "?error=access_denied", "?code=c&state=", "?code=c&state=other"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{redirect}{forged}", timeout=WAIT)  # noqa: S310  our own page
            refused.value.close()
        urllib.request.urlopen(f"{redirect}?code=c&state=s", timeout=WAIT).close()  # noqa: S310  our own page

    monkeypatch.setattr("webbrowser.open", open_browser)
    try:
        async with asyncio.timeout(WAIT):
            assert parse_redirect(await loopback.visit("https://as.example/authorize?state=s")) == {
                "code": "c",
                "state": "s",
            }
    finally:
        await loopback.close()


@pytest.mark.parametrize(
    ("problem", "title"), [("", "You're signed in"), ("Ada declined <b>.", "You aren't signed in")]
)
async def test_final_login_page_shows_whether_the_login_worked(
    problem: str, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback, pages = Loopback(), list[str]()
    redirect, tokens = await loopback.open(), (ROOT / "src/millstream/_web/assets/tokens.css").read_text("utf-8")

    def open_browser(url: str) -> None:
        with urllib.request.urlopen(f"{redirect}?code=c&state=s", timeout=WAIT) as page:  # noqa: S310  our own page
            pages.append(page.read().decode())

    monkeypatch.setattr("webbrowser.open", open_browser)
    async with asyncio.timeout(WAIT):
        await loopback.visit("https://as.example/authorize?state=s")
        await loopback.close(problem)
        while not pages:  # noqa: ASYNC110  it's read in a thread
            await asyncio.sleep(0)
    assert title in pages[0]
    assert "<svg" in pages[0]
    assert all(color in tokens for color in re.findall(r"light-dark\(.*?\)", pages[0]))
    assert html.escape(problem) in pages[0]


async def test_login_does_not_wait_for_other_browser_connections() -> None:
    loopback = Loopback()
    port = urlsplit(await loopback.open()).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(WAIT):
        while not loopback._writers:  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0)
        await loopback.close()
        with suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("kept", ["memory", "file"])
async def test_concurrent_calls_sign_in_once_and_refresh_silently(kept: str, tmp_path: Path) -> None:
    visits = registrations = renewals = 0
    valid = {"t1"}

    async def behave(asked: ReceivedRequest) -> None:
        nonlocal registrations, renewals
        origin = f"http://{asked.headers['host']}"
        path = asked.path.partition("?")[0]
        if path.startswith("/.well-known/oauth-protected-resource"):
            about = {"resource": f"{origin}/mcp", "authorization_servers": [origin], "scopes_supported": ["read"]}
            await asked.reply(json.dumps(about).encode())
        elif path == "/.well-known/oauth-authorization-server":
            about = {
                "issuer": origin,
                "authorization_endpoint": f"{origin}/authorize",
                "token_endpoint": f"{origin}/token",
                "registration_endpoint": f"{origin}/register",
                "code_challenge_methods_supported": ["S256"],
            }
            await asked.reply(json.dumps(about).encode())
        elif path == "/register":
            registrations += 1
            await asked.reply(b'{"client_id": "me"}', status="201 Created")
        elif path == "/authorize":
            query = parse_qs(urlsplit(asked.path).query)
            location = f"{query['redirect_uri'][0]}?code=c&state={query['state'][0]}"
            await asked.reply(b"", status="302 Found", more=f"Location: {location}\r\n")
        elif path == "/token":
            form = parse_qs(asked.body.decode())
            assert form["resource"] == [f"{origin}/mcp"]
            if form["grant_type"] == ["refresh_token"]:
                renewals += 1
                valid.add("t2")
                await asked.reply(b'{"access_token": "t2", "token_type": "Bearer"}')
            else:
                assert len(form["code_verifier"][0]) >= 43
                await asked.reply(b'{"access_token": "t1", "refresh_token": "r", "token_type": "Bearer"}')
        elif asked.headers.get("authorization", "").removeprefix("Bearer ") not in valid:
            await asked.reply(b"", status="401 Unauthorized", more="WWW-Authenticate: Bearer\r\n")
        else:
            await with_discovery(lambda asked: asked.result(DONE))(asked)

    async def visit(url: str) -> str:
        nonlocal visits
        visits += 1
        return (await fetch("GET", url)).header(b"location")

    store = MemoryTokenStore() if kept == "memory" else FileTokenStore(tmp_path / "tokens.json")
    options = Options(auth=OAuth(store=store, redirect_handler=visit))
    async with connected(behave, options=options) as (server, client):
        await asyncio.gather(*(client.call("x") for _ in range(10)))
        assert (visits, registrations, renewals) == (1, 1, 0)
        valid.clear()
        results = await asyncio.gather(*(client.call("x") for _ in range(10)))
        assert {result.text for result in results} == {"done"}
        assert (visits, registrations, renewals) == (1, 1, 1)
        assert store.load().tokens[str(parse_url(server.url))].refresh_token == "r"


async def test_tokens_for_other_resources_are_not_requested() -> None:
    """RFC 9728 §3.3."""

    async def behave(asked: ReceivedRequest) -> None:
        if asked.path.startswith("/.well-known/"):
            about = {"resource": "https://bank.example/", "authorization_servers": ["https://as.example"]}
            await asked.reply(json.dumps(about).encode())
        else:
            await asked.reply(b"", status="401 Unauthorized", more="WWW-Authenticate: Bearer\r\n")

    options = Options(auth=OAuth(store=MemoryTokenStore()))
    async with misbehaving(behave) as server:
        with pytest.raises(AccessDenied, match=r"bank\.example"):
            async with Client(server.url, options=options):
                pass


def served(*, issuer: str, page: str, token: str, registration: str) -> Callable[[ReceivedRequest], Awaitable[None]]:
    """Run a server that is also its own authorization server."""

    async def behave(asked: ReceivedRequest) -> None:
        if "oauth-protected-resource" in asked.path:
            await asked.reply(json.dumps({"authorization_servers": [issuer]}).encode())
        elif asked.path == "/.well-known/oauth-authorization-server":
            about = {"issuer": issuer, "authorization_endpoint": page, "token_endpoint": token,
                     "registration_endpoint": registration, "code_challenge_methods_supported": ["S256"]}  # fmt: skip
            await asked.reply(json.dumps(about).encode())
        elif asked.path == "/register":
            await asked.reply(b'{"client_id": "me"}')
        else:
            await asked.reply(b"", status="404 Not Found")

    return behave


@pytest.mark.parametrize("evil", ["", "challenge", "issuer", "page", "token", "registration"])
async def test_remote_servers_cannot_open_loopback_urls(
    evil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {
        "issuer": "https://mcp.test",
        "page": "https://mcp.test/authorize",
        "token": "https://mcp.test/token",
        "registration": "https://mcp.test/register",
    }
    async with misbehaving(lambda asked: asked.reply(b"{}")) as here:
        named = {**good, evil: here.url.removesuffix("/mcp")} if evil in good else good
        challenge = f'Bearer resource_metadata="{here.url}"' if evil == "challenge" else "Bearer"
        async with secure(tmp_path, served(**named)) as (port, trusting), proxying(port) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
            credentials = OAuth(store=MemoryTokenStore(), tls=trusting)
            asking = credentials.ask(parse_url("https://mcp.test/mcp"), 401, challenge)
            if evil:
                with pytest.raises(AccessDenied, match="on this machine"):
                    await asking
            else:
                assert (await asking).who.client_id == "me"
        assert here.requests == []


async def test_servers_cannot_specify_login_addresses_on_a_more_private_network() -> None:
    remote, near, here = "mcp.test", "192.168.1.5", "127.0.0.1"
    local = ["localhost", "a.localhost", "127.0.0.2", "127.1", "0x7f000001", "2130706433", "localhost."]
    local += ["0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]"]  # noqa: S104
    private = ["10.0.0.1", "[::ffff:10.0.0.1]", "[fe80::1]", "[fd00::1]", "169.254.169.254", "0xa000001", "router"]
    private.append("printer.local")
    for hosts, refused, allowed, text in (
        (local, (remote, near), (here,), "on this machine"),
        (private, (remote,), (near, here), "in a private network"),
        (["login.test", "8.8.8.8"], (), (remote, near, here), ""),
    ):
        for host in hosts:
            place = f"https://{host}/authorize"
            for server in refused:
                with pytest.raises(AccessDenied, match=text):
                    refuse_local(place, parse_url(f"https://{server}/mcp"))
            for server in allowed:
                assert refuse_local(place, parse_url(f"https://{server}/mcp")) == place
