"""Confused deputies: CVE-2026-27124 (another client uses a user's consent) and unvalidated redirect URIs (CWE-601).

MCP, security best practices: users consent to each client before a redirect, and consent is bound to the browser.
"""

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest

from cases import for_each
from issuing_world import BACK, STORE_KINDS, URL, Browser, Desk, Desks, KnownUsers, Reply, authorization, desk_on
from millstream import auth
from millstream.auth.providers import AuthorizationRedirect, Callback, User

EVIL = "https://evil.example/back"


class Elsewhere:
    """An upstream that signs the user in without asking, because they agreed earlier."""

    name, label = "elsewhere", "Continue with Elsewhere"

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """Return the redirect."""
        return AuthorizationRedirect(f"https://id.example/go?redirect_uri={quote(callback)}&state={state}")

    async def finish(self, callback: Callback) -> User:
        """Return the user."""
        return User("victim", "Victim")


@pytest.fixture(params=STORE_KINDS)
async def desk(request: pytest.FixtureRequest) -> AsyncIterator[Desk]:
    """Yield an authorization server with that upstream."""
    async with desk_on(request.param, people=[KnownUsers(), Elsewhere()]) as desk:
        yield desk


async def away(desk: Desk, browser: Browser, **about: Any) -> str:
    """Return the upstream's URL for a client that the user of this browser has approved."""
    id = (await desk.register(**about))["client_id"]
    page = await browser.open(id, redirect_uri=about.get("redirect_uris", [BACK])[0])
    leads = await browser.answer(page, way="elsewhere")
    return leads.text.split('content="0;url=')[1].split('"')[0].replace("&amp;", "&")


async def back_from(browser: Browser, upstream: str) -> Reply:
    """Follow the upstream's redirect back."""
    state = parse_qs(urlsplit(upstream).query)["state"][0]
    query = urlencode({"state": state, "code": "x"})
    return await browser.ask("GET", "/sign-in/callback/elsewhere", query=query)


async def test_stolen_upstream_links_are_rejected_in_another_browser(desk: Desk) -> None:
    attacker = Browser(desk)
    link = await away(desk, attacker, redirect_uris=[EVIL])
    victim = Browser(desk)
    await victim.open((await desk.register())["client_id"])
    for browser in (victim, Browser(desk)):
        fresh = link if browser is victim else await away(desk, attacker, redirect_uris=[EVIL])
        reply = await back_from(browser, fresh)
        assert (reply.status, "location" in reply.headers) == (403, False)


async def test_upstream_login_requires_consent_for_this_client(desk: Desk) -> None:
    victim = Browser(desk)
    assert (await back_from(victim, await away(desk, victim))).status == 303
    evil = (await desk.register(redirect_uris=[EVIL], client_name="Reader"))["client_id"]
    for prompt in (None, "none"):
        reply = await victim.open(evil, redirect_uri=EVIL, prompt=prompt)
        assert (reply.status, "code" in reply.headers.get("location", "")) == (400 if prompt else 200, False)
    assert await desk.services.store.kv.keys("oauth-away:") == []


async def test_clients_cannot_submit_the_consent_form(desk: Desk) -> None:
    victim = Browser(desk)
    good = (await desk.register())["client_id"]
    page = await victim.open(good)
    evil = (await desk.register(redirect_uris=[EVIL]))["client_id"]
    for extra in ({"client_id": evil}, {"redirect_uri": EVIL}, {"scope": "orders:write"}, {"state": "forged"}):
        form = {"ticket": page.ticket, "answer": "allow", "name": "ada", "password": "correct horse", **extra}
        reply = await victim.send(form)
        assert reply.location.startswith(f"{BACK}?")
        assert reply.answer["state"] == "st"
        given = (await desk.token(good, reply.answer["code"])).message
        assert given["scope"] == ""
    assert (await victim.send({"ticket": page.ticket, "answer": "allow"}, origin="https://evil.example")).status == 403


@for_each("uri", [
    EVIL, f"{BACK}.evil.example", f"{BACK}/../evil", f"{BACK}?next=https://evil.example", f"{BACK}#x",
    "https://app.example.com",
    "https://app.example.com@evil.example/back", "https://app.example.com\\@evil.example/back", "//evil.example", "",
    "https://app.example.com:443/back", "javascript:alert(1)//app.example.com/back",
    " " + BACK, BACK + "\r\nx: y", BACK + "\0",
])  # fmt: skip
async def test_unregistered_redirect_uris_show_an_error_page(desk: Desk, uri: str) -> None:
    id = (await desk.register(redirect_uris=[BACK, BACK + "2"]))["client_id"]
    reply = await desk.ask("GET", "/authorize", query=authorization(id, redirect_uri=uri))
    assert (reply.status, "location" in reply.headers) == (400, False)


async def test_responses_include_the_issuer(desk: Desk) -> None:
    """RFC 9207."""
    browser = Browser(desk)
    id = (await desk.register())["client_id"]
    page = await browser.open(id)
    for reply in (
        await browser.answer(page, answer="deny"),
        await browser.answer(page),
        await browser.open(id, scope='a"b'),
        await browser.open(id, prompt="none"),
    ):
        assert reply.answer["iss"] == URL


async def test_intercepted_codes_are_useless(desk: Desk) -> None:
    id, other = (await desk.register())["client_id"], (await desk.register())["client_id"]
    code = (await desk.sign_in(id))["code"]
    for client, verifier in ((id, "w" * 43), (other, "v" * 43), (id, None)):
        assert (await desk.token(client, code, code_verifier=verifier)).status == 400
    assert (await desk.token(id, code)).status == 200


async def test_repeated_logins_do_not_evict_other_users_logins(desk: Desks) -> None:
    for worker in desk.workers:
        worker.running._tickets._leaving.clock = lambda: 0.0  # on a slow machine, the limiter may allow more
    victim, flooder = Browser(desk), Browser(desk)
    link = await away(desk, victim)
    id = (await desk.register())["client_id"]
    page = await flooder.open(id)
    desk.peer = "198.51.100.7"
    found = {(await flooder.answer(page, way="elsewhere")).status for _ in range(900)}
    kept = len(await desk.services.store.kv.keys("oauth-away:"))
    assert found == {200, 429}
    assert kept < 900
    desk.peer = "192.0.2.1"
    assert (await back_from(victim, link)).status == 303


@for_each("name", ["code", "state", "iss", "error", "c%6fde", "code=x&a", "error_description"])
async def test_return_urls_contain_no_response_parameters(desk: Desk, name: str) -> None:
    """Regression: a redirect URI with `code` or `iss` in its query led to repeated parameters, and many programs use
    the first (RFC 6749 §3.1).
    """
    about = {"token_endpoint_auth_method": "none", "redirect_uris": [f"{BACK}?{name}=evil"]}
    reply = await desk.ask("POST", "/register", body=json.dumps(about).encode(), content_type="application/json")
    assert (reply.status, reply.error) == (400, "invalid_redirect_uri")
    with pytest.raises(ValueError, match="response parameters"):
        auth.client("desk", redirect_uris=about["redirect_uris"])
    id = (await desk.register(redirect_uris=[f"{BACK}?tenant=acme&codes=1"]))["client_id"]
    answer = await desk.sign_in(id, redirect_uri=f"{BACK}?tenant=acme&codes=1")
    assert (answer["tenant"], answer["codes"], answer["iss"]) == ("acme", "1", URL)
