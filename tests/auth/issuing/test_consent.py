import asyncio
import re
from typing import Any
from urllib.parse import urlencode

from cases import for_each
from issuing_world import BACK, FORM, OTHER, RESOURCE, URL, Browser, Clock, Desk, authorization
from millstream.auth.providers import Provider, User
from redis_parts import until

NATIVE = "http://127.0.0.1:7777/back"


async def test_consent_page_shows_client_host_and_scopes_and_cannot_be_framed(
    desk: Desk,
) -> None:
    desk = Desk(desk.services.store, scope_descriptions={"orders:write": "Order books"})
    id = (await desk.register(client_name="Reader"))["client_id"]
    page = await Browser(desk).open(id, scope="orders:write orders:read")
    for each in ("Reader", "app.example.com", "Order books", "orders:read", "Book shop"):
        assert each in page.text
    policy = page.headers["content-security-policy"]
    assert policy == ("default-src 'none'; style-src 'self'; font-src 'self'; base-uri 'none'; frame-ancestors 'none'")
    assert page.headers["x-frame-options"] == "DENY"
    assert page.headers["cache-control"] == "no-store"
    assert "<script" not in page.text
    assert all(each.endswith("HttpOnly; SameSite=Lax; Secure") for each in page.set_cookies)
    assert [each.startswith("__Host-millstream-browser=") for each in page.set_cookies] == [True]


async def test_denied_consent_redirects_with_an_error(desk: Desk) -> None:
    """OAuth 2.1 §4.1.2.1."""
    id = (await desk.register())["client_id"]
    browser = Browser(desk)
    reply = await browser.answer(await browser.open(id), answer="deny")
    assert (reply.status, reply.answer["error"], reply.answer["iss"]) == (303, "access_denied", URL)


@for_each(("name", "password"), [("ada", "wrong"), ("nobody", "x"), ("", ""), ("ada", "correct horse ")])
async def test_wrong_password_shows_an_error_and_allows_a_retry(desk: Desk, name: str, password: str) -> None:
    id = (await desk.register())["client_id"]
    browser = Browser(desk)
    page = await browser.answer(await browser.open(id), name=name, password=password, answer="allow")
    assert page.status == 403
    assert "The name or password is wrong." in page.text
    assert f'value="{name}"' in page.text
    assert not password or f'value="{password}"' not in page.text
    assert (await browser.answer(page)).status == 303


async def test_passwords_cannot_be_guessed_quickly(desk: Desk) -> None:
    id = (await desk.register())["client_id"]
    browser = Browser(desk)
    page = await browser.open(id)
    wrong = {"ticket": page.ticket, "name": "ada", "password": "wrong", "answer": "allow"}
    body, cookie = urlencode(wrong).encode(), "; ".join(f"{n}={v}" for n, v in browser.cookies.items())
    headers = {"content_type": FORM, "origin": URL, "cookie": cookie}
    told = [(await desk.ask("POST", "/authorize", body=body, **headers)).status for _ in range(12)]
    assert told == [403] * 10 + [429] * 2
    right = urlencode({**wrong, "password": "correct horse"}).encode()
    assert (await desk.ask("POST", "/authorize", body=right, **headers)).status == 429
    assert (await desk.ask("POST", "/authorize", body=right, peer="192.0.2.7", **headers)).status == 303
    for number in range(30):
        await desk.ask("POST", "/authorize", body=body, peer=f"198.51.100.{number}", **headers)
    assert (await desk.ask("POST", "/authorize", body=right, peer="203.0.113.1", **headers)).status == 429


async def test_guesses_from_other_networks_do_not_lock_a_user_out(desk: Desk) -> None:
    known, new = Browser(desk), Browser(desk)
    id = (await desk.register())["client_id"]
    await desk.sign_in(id, browser=known)

    async def log_in(browser: Browser, peer: str, password: str = "correct horse") -> int:  # noqa: S107
        desk.peer = peer
        page = await browser.open(id, prompt="login")
        return (await browser.answer(page, answer="allow", name="ada", password=password)).status

    for _ in range(40):
        await desk.guess("198.51.100.1", "ada")
    assert await log_in(new, "203.0.113.1") == 303
    for number in range(40):
        await desk.guess(f"198.51.100.{number}", "ada")
    assert await log_in(Browser(desk), "203.0.113.2") == 429
    assert await log_in(known, "203.0.113.3") == 303
    assert await log_in(known, "198.51.100.1") == 303, "not even from the network of those who guess"
    known.cookies["__Host-millstream-device"] = new.cookies["__Host-millstream-device"][:-4]
    assert await log_in(known, "203.0.113.4") == 429
    statuses = [await log_in(new, "203.0.113.5", "wrong") for _ in range(11)]
    assert statuses == [403] * 10 + [429], "a device may guess no faster"


async def test_guesses_from_a_few_networks_do_not_lock_out_a_new_browser(desk: Desk) -> None:
    guesses = 0
    for number in range(100):
        said = await desk.guess(f"198.51.100.{number % 4}", "ada")
        guesses += said == "The name or password is wrong."
    assert 15 <= guesses < 30
    assert isinstance(await desk.guess("203.0.113.1", "ada", "correct horse"), User)
    for number in range(100):
        said = await desk.guess(f"198.51.100.{number}", "ada")
        guesses += said == "The name or password is wrong."
    assert guesses == 30, "many networks have no more guesses together"


async def test_concurrent_guesses_are_throttled(desk: Desk) -> None:
    looked = 0
    gate = asyncio.Event()

    async def slowly(name: str, password: str) -> None:
        nonlocal looked
        looked += 1
        await gate.wait()

    desk.people.check = slowly
    id = (await desk.register())["client_id"]
    browser = Browser(desk)
    page = await browser.open(id)
    forms = [{"name": "ada", "password": f"{number}", "answer": "allow"} for number in range(40)]
    guesses = [asyncio.create_task(browser.answer(page, **form)) for form in forms]
    await until(lambda: looked == 1)
    gate.set()
    statuses = sorted(each.status for each in await asyncio.gather(*guesses))
    assert (looked, statuses) == (10, [403] * 10 + [429] * 30)


async def consented(desk: Desk, **about: Any) -> tuple[str, Browser]:
    """Return a client that Ada has approved, and her browser with the session."""
    id = (await desk.register(**about))["client_id"]
    browser = Browser(desk)
    await browser.answer(
        await browser.open(id, redirect_uri=about.get("redirect_uris", [BACK])[0], scope="orders:read")
    )
    return id, browser


async def test_consent_is_remembered_and_new_scopes_require_it_again(desk: Desk) -> None:
    id, browser = await consented(desk)
    assert "code" in (await browser.open(id, scope="orders:read")).answer
    more = await browser.open(id, scope="orders:read orders:write")
    assert more.status == 200
    assert "Signed in" not in more.text
    assert "You are signed in as <strong>Ada</strong>" in more.text
    assert "code" in (await browser.answer(more)).answer
    assert (await browser.open(id, scope="orders:write")).status == 303


async def test_consent_applies_to_one_server(desk: Desk) -> None:
    id, browser = await consented(desk)
    for resource in (OTHER, [RESOURCE, OTHER]):
        page = await browser.open(id, scope="orders:read", resource=resource)
        assert (page.status, "other.example.com/mcp" in page.text) == (200, True)
    await browser.answer(page)
    assert (await browser.open(id, scope="orders:read", resource=OTHER)).status == 303


async def test_unknown_clients_always_require_consent(desk: Desk) -> None:
    _, browser = await consented(desk)
    other = (await desk.register())["client_id"]
    assert (await browser.open(other, scope="orders:read")).status == 200
    assert "error=consent_required" in (await browser.open(other, prompt="none")).text


@for_each("uri", [NATIVE, "com.example.app:/back"])
async def test_clients_with_insecure_redirects_need_consent_each_time(desk: Desk, uri: str) -> None:
    """RFC 8252 §8.6: the client's identity can't be assured."""
    id, browser = await consented(desk, redirect_uris=[uri])
    assert (await browser.open(id, redirect_uri=uri, scope="orders:read")).status == 200


CURSOR = ["cursor://anysphere.cursor-mcp/oauth/callback", "https://www.cursor.com/agents/mcp/oauth/callback",
          "http://localhost:8787/callback"]  # fmt: skip
"""The redirect URIs that Cursor registers (github.com/makeplane/plane-mcp-server/issues/159 and others)."""


@for_each(
    ("uri", "label", "shown"),
    [
        (CURSOR[0], "Opens the app", "cursor://anysphere.cursor-mcp"),
        ("com.example.app:/back", "Opens the app", "com.example.app:"),
        (CURSOR[1], "Takes you back to", "www.cursor.com"),
    ],
)
async def test_page_shows_the_app_that_the_browser_will_open(desk: Desk, uri: str, label: str, shown: str) -> None:
    id = (await desk.register(redirect_uris=[*CURSOR, "com.example.app:/back"]))["client_id"]
    browser = Browser(desk)
    page = await browser.open(id, redirect_uri=uri)
    assert f"<dt>{label}</dt><dd><strong>{shown}</strong></dd>" in page.text
    assert ("open an app on your device" in page.text) is (label == "Opens the app")
    assert (await browser.answer(page)).location.startswith(f"{uri}?code=")


@for_each(("prompt", "status", "form"), [
    ("consent", 200, False), ("login", 200, True), ("select_account", 200, True), ("none", 303, False),
    (None, 303, False),
])  # fmt: skip
async def test_clients_can_request_the_consent_page(desk: Desk, prompt: str | None, status: int, form: bool) -> None:
    """OpenID Connect Core §3.1.2.1."""
    id, browser = await consented(desk)
    page = await browser.open(id, scope="orders:read", prompt=prompt)
    assert page.status == status
    assert ('name="password"' in page.text) is form


@for_each("prompt", ["login", "select_account", "login consent"])
async def test_reauthentication_requires_a_password(desk: Desk, prompt: str) -> None:
    id, browser = await consented(desk)
    page = await browser.open(id, scope="orders:read", prompt=prompt)
    asked = await browser.send({"ticket": page.ticket, "answer": "allow"})
    assert asked.status == 403
    assert 'name="password"' in asked.text
    assert (await browser.answer(asked)).status == 303


async def test_users_can_switch_accounts(desk: Desk) -> None:
    id, browser = await consented(desk)
    page = await browser.open(id, scope="orders:write")
    asked = await browser.answer(page, answer="other")
    assert (asked.status, "Sign in first" in asked.text) == (200, False)
    assert 'name="password"' in asked.text
    reply = await browser.answer(asked, name="bob", password="battery staple", answer="allow")
    assert (await desk.token(id, reply.answer["code"])).message["scope"] == ""


async def test_consent_is_bound_to_the_account_shown_on_the_page(desk: Desk) -> None:
    id, browser = await consented(desk)
    other = (await desk.register())["client_id"]
    page = await browser.open(other, scope="orders:write")
    assert "signed in as <strong>Ada</strong>" in page.text
    switched = await browser.answer(await browser.open(id, scope="orders:write"), answer="other")
    await browser.answer(switched, name="bob", password="battery staple", answer="allow")
    refused = await browser.answer(page)
    assert (refused.status, "location" in refused.headers) == (403, False)
    again = await browser.open(other, scope="orders:write")
    assert "signed in as <strong>Bob</strong>" in again.text
    assert "code" in (await browser.answer(again)).answer


async def test_removed_users_are_signed_out(desk: Desk) -> None:
    id, browser = await consented(desk)
    desk.people.remove("ada")
    assert 'name="password"' in (await browser.open(id, scope="orders:read")).text


async def test_new_password_resets_consent(desk: Desk) -> None:
    id, browser = await consented(desk)
    desk.people.people["ada"] = ("new horse", User("ada", "Ada", ("*",), since=2.0))
    page = await browser.open(id, scope="orders:read")
    assert 'name="password"' in page.text
    other = await desk.register()
    reply = await browser.answer(
        await browser.open(other["client_id"]), name="ada", password="new horse", answer="allow"
    )
    assert "code" in reply.answer
    again = await browser.open(id, scope="orders:read")
    assert (again.status, 'name="password"' in again.text) == (200, False)


async def test_providers_can_require_consent_each_time(desk: Desk) -> None:
    class Careful(Provider):
        async def may_skip_consent(self, *_: Any) -> bool:
            return False

    id, browser = await consented(Desk(desk.services.store, provider=Careful()))
    assert (await browser.open(id, scope="orders:read")).status == 200


# Protection of the form


async def test_consent_is_bound_to_the_browser(desk: Desk) -> None:
    id = (await desk.register())["client_id"]
    victim, attacker = Browser(desk), Browser(desk)
    theirs = await attacker.open(id)
    await victim.open(id)
    reply = await victim.answer(theirs)
    assert (reply.status, "location" in reply.headers) == (403, False)
    bare = Browser(desk)
    assert (await bare.answer(theirs)).status == 403


@for_each("origin", ["https://evil.example", "null", "http://mcp.example.com:8080", ""])
async def test_cross_origin_consent_is_rejected(desk: Desk, origin: str) -> None:
    id, browser = await consented(desk)
    page = await browser.open(id, scope="orders:write")
    reply = await browser.send({"ticket": page.ticket, "answer": "allow"}, origin=origin)
    assert reply.status == 403


async def test_expired_changed_and_foreign_tickets_are_rejected(desk: Desk) -> None:
    clock = Clock()
    desk = Desk(desk.services.store, clock=clock)
    id, browser = await consented(desk)
    page = await browser.open(id, scope="orders:write")
    person = next(value for name, value in browser.cookies.items() if "person" in name)
    flipped = page.ticket[:40] + ("A" if page.ticket[40] != "A" else "B") + page.ticket[41:]
    for ticket in (flipped, person, "", "x", page.ticket + "A"):
        assert (await browser.send({"ticket": ticket, "answer": "allow"})).status == 403
    clock.now += 601
    assert (await browser.send({"ticket": page.ticket, "answer": "allow"})).status == 403


async def test_sealed_values_of_other_kinds_cannot_sign_users_in(desk: Desk) -> None:
    id, browser = await consented(desk)
    page = await browser.open(id, scope="orders:write")
    for value in (page.ticket, "x", (await desk.tokens(id))["refresh_token"].removeprefix("mr_")):
        browser.cookies["__Host-millstream-person"] = value
        assert 'name="password"' in (await browser.open(id, scope="orders:write")).text


async def test_duplicate_cookies_are_ignored(desk: Desk) -> None:
    id, browser = await consented(desk)
    twice = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    reply = await desk.ask(
        "GET", "/authorize", query=authorization(id, scope="orders:read"), cookie=f"{twice}; {twice}"
    )
    assert 'name="password"' in reply.text


async def test_opening_pages_stores_nothing(desk: Desk) -> None:
    id = (await desk.register())["client_id"]
    before = sorted(await desk.services.store.kv.keys("oauth-"))
    for _ in range(50):
        browser = Browser(desk)
        page = await browser.open(id)
        await browser.answer(page, name="ada", password="wrong", answer="allow")
        await browser.answer(page, answer="deny")
    assert sorted(await desk.services.store.kv.keys("oauth-")) == before


async def test_redirects_to_clients_use_303_without_referrer(desk: Desk) -> None:
    """RFC 9700 §4.12: a 307 would forward the password."""
    id = (await desk.register())["client_id"]
    browser = Browser(desk)
    reply = await browser.answer(await browser.open(id))
    assert reply.status == 303
    assert (reply.headers["referrer-policy"], reply.headers["cache-control"]) == ("no-referrer", "no-store")


async def test_cookie_names_differ_over_plain_loopback_http(desk: Desk) -> None:
    desk = Desk(desk.services.store, url="http://127.0.0.1:8000")
    page = await Browser(desk).open((await desk.register())["client_id"], resource=None)
    assert re.fullmatch(r"millstream-browser=[\w-]{43}; .*; SameSite=Lax", page.set_cookies[0])
