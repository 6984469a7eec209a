from typing import Any
from urllib.parse import quote, urlencode

import pytest

from cases import for_each
from issuing_world import BACK, URL, Browser, Clock, Desk, KnownUsers, Reply, authorization
from millstream.auth.providers import AuthorizationRedirect, Callback, SignInFailed, User
from shared_store import MemoryStore


class Elsewhere:
    """An upstream that identifies users by their code."""

    name = "elsewhere"
    label = "Continue with Elsewhere"

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        self.sent.append((callback, state))
        return AuthorizationRedirect(f"https://id.example/go?redirect_uri={quote(callback)}&state={state}", b"nonce-7")

    async def finish(self, callback: Callback) -> User:
        assert callback.state_data == b"nonce-7"
        assert callback.url == f"{URL}/sign-in/callback/elsewhere"
        if "error" in callback.query:
            raise SignInFailed("Elsewhere does not know you <b>.")
        return User(callback.query["code"], "Grace", ("orders:read",))


@pytest.fixture
def elsewhere() -> Elsewhere:
    return Elsewhere()


@pytest.fixture
def desk_of(desk: Desk, elsewhere: Elsewhere) -> Desk:
    """Return an authorization server with passwords and an upstream."""
    return Desk(desk.services.store, people=[KnownUsers(), elsewhere])


async def sent_away(desk: Desk, browser: Browser, **asked: Any) -> tuple[str, Reply]:
    """Consent and select the upstream; return the client, and the page that redirects."""
    id = (await desk.register())["client_id"]
    page = await browser.open(id, **asked)
    return id, await browser.answer(page, way="elsewhere")


async def come_back(browser: Browser, state: str, **more: str) -> Reply:
    """Follow the upstream's redirect back."""
    return await browser.ask("GET", "/sign-in/callback/elsewhere", query=urlencode({"state": state, **more}))


async def test_upstream_login_returns_to_the_client(desk_of: Desk, elsewhere: Elsewhere) -> None:
    browser = Browser(desk_of)
    id, page = await sent_away(desk_of, browser, scope="orders:read orders:write")
    assert page.status == 200
    assert 'content="0;url=https://id.example/go?' in page.text
    reply = await come_back(browser, elsewhere.sent[0][1], code="ada")
    assert reply.location.startswith(f"{BACK}?code=")
    given = (await desk_of.token(id, reply.answer["code"])).message
    found = await desk_of.who(given["access_token"])
    assert found is not None
    assert (found.principal.subject, found.principal.scopes) == ("elsewhere:ada", {"orders:read"})
    assert (await desk_of.refresh(id, given["refresh_token"])).message["scope"] == "orders:read"
    assert (await browser.open(id, scope="orders:read")).status == 303


async def test_consent_precedes_the_upstream_redirect(desk_of: Desk, elsewhere: Elsewhere) -> None:
    browser = Browser(desk_of)
    id = (await desk_of.register())["client_id"]
    page = await browser.open(id)
    assert 'name="password"' in page.text
    assert "Continuing allows what is listed above" in page.text
    assert elsewhere.sent == []
    assert (await browser.send({"ticket": page.ticket, "way": "nobody"})).status == 400


async def test_login_state_is_single_use_and_expires(desk: Desk, elsewhere: Elsewhere) -> None:
    clock = Clock()
    desk = Desk(desk.services.store, people=elsewhere, clock=clock)
    browser = Browser(desk)
    await sent_away(desk, browser)
    state = elsewhere.sent[0][1]
    assert (await come_back(browser, "made-up", code="grace")).status == 400
    assert (await come_back(browser, "", code="grace")).status == 400
    assert (await come_back(browser, state, code="grace")).status == 303
    assert (await come_back(browser, state, code="grace")).status == 400


async def test_users_unknown_to_the_upstream_see_an_error(desk_of: Desk, elsewhere: Elsewhere) -> None:
    browser = Browser(desk_of)
    await sent_away(desk_of, browser)
    reply = await come_back(browser, elsewhere.sent[0][1], error="access_denied")
    assert (reply.status, "Elsewhere does not know you &lt;b&gt;." in reply.text) == (403, True)
    assert not any("person" in name for name in browser.cookies)


async def test_callbacks_with_too_many_parameters_show_an_error(desk_of: Desk) -> None:
    page = await Browser(desk_of).ask("GET", "/sign-in/callback/elsewhere", query="&".join(["state=x"] * 41))
    assert (page.status, "too many parameters" in page.text) == (400, True)


async def test_callbacks_are_bound_to_their_upstream(desk: Desk, elsewhere: Elsewhere) -> None:
    class Other(Elsewhere):
        name, label = "other", "Continue with Other"

    desk = Desk(desk.services.store, people=[elsewhere, Other()])
    browser = Browser(desk)
    await sent_away(desk, browser)
    query = urlencode({"state": elsewhere.sent[0][1], "code": "grace"})
    assert (await browser.ask("GET", "/sign-in/callback/other", query=query)).status == 400


async def test_removing_an_upstream_ends_its_grants(desk_of: Desk, elsewhere: Elsewhere) -> None:
    browser = Browser(desk_of)
    id, _ = await sent_away(desk_of, browser)
    answer = (await come_back(browser, elsewhere.sent[0][1], code="grace")).answer
    given = (await desk_of.token(id, answer["code"])).message
    after = Desk(desk_of.services.store)
    assert await after.who(given["access_token"]) is None
    assert (await after.refresh(id, given["refresh_token"])).error == "invalid_grant"


@for_each(("prompt", "handed_on"), [
    ("login", "login"), ("select_account", "select_account"), ("login consent", "login"), ("consent", ""), (None, ""),
])  # fmt: skip
async def test_reauthentication_happens_at_the_upstream(desk: Desk, prompt: str | None, handed_on: str) -> None:

    class Strict(Elsewhere):
        async def begin_anew(self, callback: str, state: str, prompt: str) -> AuthorizationRedirect:
            self.prompt = prompt
            return await self.begin(callback, state)

        prompt = ""

    strict = Strict()
    browser = Browser(Desk(desk.services.store, people=strict))
    _, page = await sent_away(browser.desk, browser, prompt=prompt)
    assert "https://id.example/go" in page.text
    assert strict.prompt == handed_on


async def test_upstream_failures_are_shown_on_the_page(desk: Desk) -> None:
    class Down(Elsewhere):
        async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
            raise SignInFailed("Elsewhere does not answer.")

    desk = Desk(desk.services.store, people=Down())
    browser = Browser(desk)
    _, page = await sent_away(desk, browser)
    assert (page.status, "Elsewhere does not answer." in page.text) == (503, True)
    assert page.ticket


async def test_pending_logins_from_one_address_do_not_displace_others(elsewhere: Elsewhere) -> None:
    store = MemoryStore(max_value_bytes=64 * 1024)
    await store.open()
    desk = Desk(store, people=elsewhere)
    browser = Browser(desk)
    _, page = await sent_away(desk, browser)
    assert page.status == 200
    mine = elsewhere.sent[0][1]
    desk.peer = "203.0.113.7"
    flood = Browser(desk)
    id = (await desk.register())["client_id"]
    for _ in range(190):
        assert (await flood.answer(await flood.open(id), way="elsewhere")).status == 200
    assert len(await store.kv.keys("oauth-pending:")) < 190  # its own ones were displaced
    assert (await come_back(browser, mine, code="grace")).status == 303


@for_each("ways", [[], [KnownUsers(), KnownUsers()], [Elsewhere(), Elsewhere()]])
async def test_indistinguishable_login_methods_are_rejected(desk: Desk, ways: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        Desk(desk.services.store, people=ways)


async def test_removed_clients_cannot_start_an_upstream_login(desk_of: Desk, elsewhere: Elsewhere) -> None:
    browser = Browser(desk_of)
    id, _ = await sent_away(desk_of, browser)
    await desk_of.services.store.kv.delete(f"oauth-new:{id}")
    assert (await come_back(browser, elsewhere.sent[0][1], code="grace")).status == 400
    assert (await desk_of.ask("GET", "/authorize", query=authorization(id))).status == 400
