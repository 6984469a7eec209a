"""A third-party OpenID provider, oidc-provider, as the issuer of tokens and as an upstream of our issuer."""

import runpy
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
from msgspec.structs import replace

from auth.test_issuers import Clock
from auth_world import make_server, run_guarded
from identity_world import Identity, Visitor, browser, find_continue_link, identity, sign_in_at
from issuing_world import BACK, URL, Browser, Desk, Reply
from millstream import Client, Server, auth
from millstream.auth._authorization_server.upstreams import KNOWN
from millstream.auth._jose import ASYMMETRIC, FetchedKeys, TokenRules
from millstream.auth._tokens import Discovery, TokenMethod, ask_issuer
from millstream.client import Options
from millstream.client._errors import AccessDenied
from millstream.client._oauth import MemoryTokenStore
from millstream.client._oauth.flow import OAuth
from processes import ROOT, free_port
from store_parts import BACKINGS

pytestmark = pytest.mark.server

AUDIENCE, OPAQUE = "https://mcp.example.com/mcp", "https://mcp.example.com/opaque"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Identity]:
    """Run the provider for all tests."""
    with identity(tmp_path_factory.mktemp("identity")) as running:
        yield running


# As the issuer of tokens


async def test_foreign_issuer_tokens_are_checked_for_audience(provider: Identity) -> None:
    """RFC 8707."""
    client = provider.register()
    async with run_guarded(make_server(auth.oidc(provider.url, audience=AUDIENCE))) as world:
        good = await world.call(provider.token(client, AUDIENCE), "order", {"isbn": "1"})
        assert good.message["result"]["content"][0]["text"] == "ordered 1"
        who = await world.call(provider.token(client, AUDIENCE), "who")
        assert who.message["result"]["content"][0]["text"] == client[0]
        less = await world.call(provider.token(client, AUDIENCE, "orders:read"), "order", {"isbn": "1"})
        assert (less.status, b"insufficient_scope" in less.headers[b"www-authenticate"]) == (403, True)
        assert (await world.call(provider.token(client, f"{AUDIENCE}/other"), "who")).status == 401
        assert (await world.call(provider.token(client, OPAQUE), "who")).status == 401


async def test_opaque_tokens_work_by_introspection(provider: Identity) -> None:
    """RFC 7662."""
    client, ours = provider.register(), provider.register()
    given = {"issuer": provider.url, "audience": OPAQUE, "endpoint": f"{provider.url}/token/introspection",
             "client": ours[0], "secret": ours[1]}  # fmt: skip
    assert await auth.introspection(**given).identify(provider.token(client, OPAQUE)) is None
    method = auth.introspection(**given, client_tokens=True)
    async with run_guarded(make_server(method)) as world:
        token = provider.token(client, OPAQUE)
        reply = await world.call(token, "order", {"isbn": "1"})
        assert reply.message["result"]["content"][0]["text"] == "ordered 1"
        assert (await world.call(token, "who")).message["result"]["content"][0]["text"] == client[0]
        assert (await world.call(provider.token(client, "https://mcp.example.com/2/opaque"), "who")).status == 401
        assert (await world.call("made-up", "who")).status == 401


async def test_issuer_key_rotation_is_followed(provider: Identity) -> None:
    client, clock = provider.register(), Clock()
    keys = FetchedKeys(Discovery(provider.url).keys_url, ask_issuer, clock=clock)
    method = TokenMethod(TokenRules(provider.url, AUDIENCE), keys, algorithms=ASYMMETRIC)
    old = provider.token(client, AUDIENCE)
    assert await method.identify(old) is not None
    provider.rotate()
    client = provider.register()
    new = provider.token(client, AUDIENCE)
    assert await method.identify(new) is None
    clock.now += 30
    assert await method.identify(new) is not None
    assert await method.identify(old) is None


async def test_client_discovers_and_registers_with_the_issuer(provider: Identity) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    visits: list[str] = []

    async def visit(link: str) -> str:
        visits.append(link)
        return await sign_in_at(link, "ada@example.com", dict(parse_qsl(urlsplit(link).query))["redirect_uri"])

    async with run_guarded(make_server(auth.oidc(provider.url, audience=f"{url}/mcp")), port=port):
        oauth = OAuth(store=MemoryTokenStore(), redirect_handler=visit)
        async with Client(f"{url}/mcp", options=Options(auth=oauth)) as client:
            assert (await client.call("who")).content[0].text == "ada@example.com"
            assert (await client.call("order", {"isbn": "1"})).content[0].text == "ordered 1"
    assert visits[0].startswith(f"{provider.url}/auth?")


# As an upstream of our issuer


Make = Callable[..., Any]


@pytest.fixture
async def desk_with(provider: Identity) -> Any:
    """Return a function that creates an authorization server with the provider as its upstream."""
    backing = BACKINGS["memory"]()
    store = await backing.worker()
    clients: dict[str, tuple[str, str]] = {}

    def make(allow: Any, who: str = "google", **more: Any) -> Desk:
        at = who if "://" in who else provider.url
        name = "openid" if "://" in who else who
        if at not in clients:
            clients[at] = provider.register(f"{URL}/sign-in/callback/{name}", at=at)
        id, secret = clients[at]
        given = {} if "://" in who else {"base_url": at}
        return Desk(
            store, people=auth.login_provider(who, allow=allow, client_id=id, client_secret=secret, **given), **more
        )

    yield make
    await backing.close()


async def away(desk: Desk, window: Browser, way: str = "google", **asked: Any) -> tuple[str, str]:
    """Consent and select the upstream; return the client, and the redirect's URL."""
    id = (await desk.register())["client_id"]
    page = await window.open(id, **asked)
    reply = await window.answer(page, way=way)
    assert reply.status == 200, reply.text
    return id, find_continue_link(reply.text)


async def back(window: Browser, url: str) -> Reply:
    """Follow the provider's redirect back."""
    parts = urlsplit(url)
    return await window.ask("GET", parts.path, query=parts.query)


async def test_external_login_grants_the_allowlist_scopes(provider: Identity, desk_with: Make) -> None:
    desk = desk_with({"@example.com": ["orders:write"]})
    window = Browser(desk)
    id, url = await away(desk, window, scope="orders:read orders:write")
    asked = dict(pair.split("=", 1) for pair in urlsplit(url).query.split("&"))
    assert (asked["prompt"], asked["code_challenge_method"], asked["scope"]) == (
        "select_account", "S256", "openid+email+profile"
    )  # fmt: skip
    reply = await back(window, await sign_in_at(url, "ada@example.com", URL))
    assert reply.location.startswith(f"{BACK}?code="), reply.text
    given = (await desk.token(id, reply.answer["code"])).message
    found = await desk.who(given["access_token"])
    assert found is not None
    assert (found.principal.subject, found.principal.scopes) == ("google:ada@example.com", {"orders:write"})
    assert "You are signed in as <strong>Ada Lovelace" in (await window.open(id, prompt="consent")).text
    assert provider.count_requests("/me") == 0
    # Grants of removed entries end, others stay valid.
    more = desk_with({"grace@gmail.com": [], "@example.com": ["orders:write"]})
    assert await more.who(given["access_token"]) is not None
    given = (await more.refresh(id, given["refresh_token"])).message
    for allow in ({"@example.com": []}, ["grace@gmail.com"]):
        after = desk_with(allow)
        assert await after.who(given["access_token"]) is None
        window.desk = after
        assert "You are signed in as" not in (await window.open(id, prompt="consent")).text
    assert (await desk_with(["grace@gmail.com"]).refresh(id, given["refresh_token"])).error == "invalid_grant"


@pytest.mark.parametrize(
    ("login", "allow"),
    [
        ("grace@gmail.com", ["@example.com"]),
        ("eve@example.com", ["@example.com", "eve@example.com"]),
        ("mallory@example.com", ["@example.com", "mallory@example.com"]),
    ],
    ids=["another", "unverified", "not-of-the-organization"],
)
async def test_users_not_on_the_allowlist_are_rejected(login: str, allow: list[str], desk_with: Make) -> None:
    desk = desk_with(allow)
    window = Browser(desk)
    _, url = await away(desk, window)
    reply = await back(window, await sign_in_at(url, login, URL))
    assert (reply.status, f"{login} can&#39;t sign in here." in reply.text) == (403, True)
    assert not any("person" in name for name in window.cookies)


async def test_allowlist_accepts_email_addresses_and_wildcard(desk_with: Make) -> None:
    for login, allow in (("grace@gmail.com", ["grace@gmail.com"]), ("mallory@example.com", ["*"])):
        desk = desk_with(allow)
        window = Browser(desk)
        _, url = await away(desk, window)
        assert (await back(window, await sign_in_at(url, login, URL))).answer["code"]


async def test_emails_are_read_from_userinfo(provider: Identity, desk_with: Make) -> None:
    """OpenID Connect Core §5.4."""
    desk = desk_with(["@example.com"], provider.strict)
    window = Browser(desk)
    id, url = await away(desk, window, "openid")
    reply = await back(window, await sign_in_at(url, "mallory@example.com", URL))
    found = await desk.who((await desk.token(id, reply.answer["code"])).message["access_token"])
    assert found is not None
    assert found.principal.subject == "openid:mallory@example.com"
    assert provider.count_requests("/me", provider.strict) == 1


async def test_denied_external_login_is_reported(desk_with: Make) -> None:
    """RFC 6749 §4.1.2.1."""
    desk = desk_with(["*"])
    window = Browser(desk)
    _, url = await away(desk, window)
    reply = await back(window, await sign_in_at(url, "ada@example.com", URL, agrees=False))
    assert (reply.status, "allow Google to identify you" in reply.text) == (403, True)


async def test_foreign_codes_do_not_sign_users_in(desk_with: Make) -> None:
    """RFC 9700 §4.5."""
    desk = desk_with(["*"])
    mine, theirs = Browser(desk), Browser(desk)
    (_, url), (_, other) = await away(desk, mine), await away(desk, theirs)
    stolen = await sign_in_at(other, "ada@example.com", URL)
    own = await sign_in_at(url, "grace@gmail.com", URL)
    fields = dict(pair.split("=", 1) for pair in urlsplit(own).query.split("&"))
    fields["code"] = dict(pair.split("=", 1) for pair in urlsplit(stolen).query.split("&"))["code"]
    reply = await mine.ask("GET", "/sign-in/callback/google", query="&".join(f"{k}={v}" for k, v in fields.items()))
    assert reply.status == 403
    assert not any("person" in name for name in mine.cookies)


async def test_consent_precedes_external_login(provider: Identity, desk_with: Make) -> None:
    desk = desk_with(["*"])
    window = Browser(desk)
    _, url = await away(desk, window)
    await back(window, await sign_in_at(url, "ada@example.com", URL))
    before = provider.count_requests("/auth")
    second = await desk.register(client_name="Another")
    page = await window.open(second["client_id"])
    assert (page.status, "<bdi>Another</bdi> wants to use <bdi>Book shop</bdi>" in page.text) == (200, True)
    assert provider.count_requests("/auth") == before


# Logins to the server's own pages


async def at_the_page(url: str, login: str, way: str, page: str = "/docs") -> tuple[httpx2.Response, httpx2.Response]:
    """Press the button on a page and sign in; return the callback's response, and the page."""
    async with browser() as window:
        shown = await window.get(f"{url}{page}", headers={"accept": "text/html"})
        assert (shown.status_code, f'name="way" value="{way}"' in shown.text) == (401, True)
        away = await window.post(f"{url}/sign-in", data={"way": way, "next": page}, headers={"origin": url})
        back = await sign_in_at(find_continue_link(away.text), login, f"{url}/sign-in/callback/{way}?")
        landed = await window.get(back, headers={"sec-fetch-site": "cross-site"})
        return landed, await window.get(f"{url}{page}", headers={"sec-fetch-site": "same-origin"})


async def test_google_users_on_the_allowlist_open_the_pages(shop: str) -> None:
    server = example("google_sign_in.py")
    server.definition.configure(serve="all")
    async with run_guarded(server, port=int(shop.rpartition(":")[2])):
        landed, page = await at_the_page(shop, "ada@example.com", "google", "/docs")
        assert (landed.status_code, find_continue_link(landed.text), page.status_code) == (200, "/docs", 200)
        assert "SameSite=Strict" in landed.headers["set-cookie"]
        landed, page = await at_the_page(shop, "mallory@example.com", "google")
        assert (landed.status_code, page.status_code) == (403, 401)
        assert "mallory@example.com can&#39;t sign in here." in landed.text


@pytest.mark.parametrize("public", [True, False], ids=["public", "confidential"])
async def test_external_users_open_the_pages_as_themselves(provider: Identity, public: bool) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    more = {"token_endpoint_auth_method": "none"} if public else {}
    id, secret = provider.register(f"{url}/sign-in/callback/oidc", **more)
    method = auth.oidc(
        provider.url, audience=f"{url}/mcp", client_id=id, client_secret=secret, scope_includes={"openid": ["extra"]}
    )
    async with run_guarded(make_server(method), port=port):
        landed, page = await at_the_page(url, "ada@example.com", "oidc")
        assert (landed.status_code, page.status_code) == (200, 200), landed.text
        assert 0 < int(landed.headers["set-cookie"].split("Max-Age=")[1].split(";")[0]) <= 600
        own = {"cookie": landed.headers["set-cookie"].split(";")[0], "origin": url}
        async with browser() as window:
            who = await window.post(f"{url}/tools/who", json={}, headers=own)
            assert "ada@example.com" in who.text
            order = await window.post(f"{url}/tools/order", json={"isbn": "1"}, headers=own)
            assert "ordered 1" in order.text
            foreign = await window.post(f"{url}/tools/who", json={}, headers={**own, "origin": "http://x"})
            assert foreign.status_code in (401, 403)
    needs = auth.oidc(provider.url, audience=f"{url}/mcp", client_id=id, client_secret=secret, scopes=["board"])
    async with run_guarded(make_server(needs), port=port):
        landed, page = await at_the_page(url, "ada@example.com", "oidc")
        assert (landed.status_code, page.status_code) == (403, 401)


# The pages of docs/guides


def example(name: str) -> Server:
    """Load the server of an example with the current environment."""
    server = runpy.run_path(str(ROOT / "examples" / name))["mcp"]
    assert isinstance(server, Server)
    return server


@asynccontextmanager
async def connected(url: str, visitor: Visitor) -> AsyncIterator[Client]:
    """Yield a client whose user signs in at the provider."""
    oauth = OAuth(store=MemoryTokenStore(), redirect_handler=visitor.visit)
    async with Client(f"{url}/mcp", options=Options(auth=oauth)) as client:
        yield client


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, provider: Identity) -> str:
    """Return the URL of an example. The provider replaces Google; GitHub has no client id."""
    url = f"http://127.0.0.1:{free_port()}"
    id, secret = provider.register(f"{url}/sign-in/callback/google")
    staff, password = provider.register(f"{url}/sign-in/callback/staff", at=provider.strict)
    known = {"SHOP_URL": url, "GOOGLE_CLIENT_ID": id, "GOOGLE_CLIENT_SECRET": secret, "LOGIN": provider.strict,
             "STAFF_CLIENT_ID": staff, "STAFF_CLIENT_SECRET": password, "GITHUB_CLIENT_ID": "Iv1.0",
             "GITHUB_CLIENT_SECRET": "unused"}  # fmt: skip
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(KNOWN, "google", replace(KNOWN["google"], at=provider.url))
    return url


async def test_google_page_is_sufficient(shop: str) -> None:
    ada = Visitor("ada@example.com", "google")
    async with run_guarded(example("google_sign_in.py"), port=int(shop.rpartition(":")[2])):
        async with connected(shop, ada) as client:
            assert (await client.call("greet")).content[0].text == "Hello, google:ada@example.com!"
        assert "Continue with Google" in ada.pages[0]
        mallory = Visitor("mallory@example.com", "google")
        with pytest.raises(AccessDenied):
            async with connected(shop, mallory) as client:
                await client.call("greet")
        assert "mallory@example.com can&#39;t sign in here." in mallory.pages[-1]


async def test_several_login_methods_have_buttons(shop: str) -> None:
    staff = Visitor("eve@example.com", "staff")
    async with run_guarded(example("several_ways.py"), port=int(shop.rpartition(":")[2])):
        async with connected(shop, staff) as client:
            said = (await client.call("order", {"isbn": "1"})).content[0].text
            assert said == "1 is on its way to staff:eve@example.com."
        for label in ("Google", "GitHub", "our sign-in"):
            assert f"Continue with {label}<" in staff.pages[0]
        async with connected(shop, Visitor("ada@example.com", "google")) as client:
            assert "google:ada@" in (await client.call("order", {"isbn": "1"})).content[0].text
