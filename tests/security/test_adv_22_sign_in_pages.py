"""Script injection through client metadata on the sign-in pages (CVE-2025-62800)."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from cases import for_each
from issuing_world import BACK, STORE_KINDS, Browser, Desk, KnownUsers, desk_on
from millstream.auth.providers import AuthorizationRedirect, Callback, SignInFailed, User

PAYLOADS = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'><svg/onload=alert(1)>",
    "</title><script>x</script>",
    "{body}{0}{__class__}", "javascript:alert(1)", "&lt;script&gt;", "\u202e<b>", "--><script>", "${7*7}{{7*7}}",
    '" autofocus onfocus="alert(1)', "</textarea><iframe srcdoc='<script>x</script>'>",
]  # fmt: skip
ALLOWED = {"html", "head", "meta", "title", "link", "body", "main", "h1", "h2", "p", "dl", "div", "dt", "dd",
"strong", "section",
           "ul", "li", "form", "input", "label", "button", "span", "a", "bdi"}  # fmt: skip


class Elements(HTMLParser):
    """Collects the elements of a page and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def check(page: Any) -> None:
    """Check that a page contains nothing executable, and that its policy forbids scripts."""
    found = Elements()
    found.feed(page.text)
    assert {tag for tag, _ in found.seen} <= ALLOWED
    for tag, attributes in found.seen:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("href", "src", "action", "formaction"):
            assert re.fullmatch(
                r"((\.\./)*assets/[\w.-]+|authorize|https://id\.example/.*)?", attributes.get(name) or ""
            )
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'self'; font-src 'self'; ")
    assert "script" not in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"


class Elsewhere:
    """An upstream whose label and error message contain a payload."""

    name = "elsewhere"

    def __init__(self, payload: str) -> None:
        self.label = payload

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """Return the redirect."""
        return AuthorizationRedirect(f'https://id.example/?state={state}&x="><script>alert(1)</script>')

    async def finish(self, callback: Callback) -> User:
        """Fail with the payload."""
        raise SignInFailed(self.label)


@pytest.mark.parametrize("kind", STORE_KINDS)
@for_each("payload", PAYLOADS)
async def test_untrusted_text_is_escaped_on_every_page(payload: str, kind: str) -> None:
    people = KnownUsers()
    people.people["ada"] = ("correct horse", User("ada", payload, ("*",)))
    options: dict[str, Any] = {"people": [people, Elsewhere(payload)], "scope_descriptions": {"orders:write": payload}}
    async with desk_on(kind, **options) as desk:
        await look_around(desk, payload)


async def look_around(desk: Desk, payload: str) -> None:
    """Open each page."""
    id = (await desk.register(client_name=payload))["client_id"]
    browser = Browser(desk)
    page = await browser.open(id, scope="orders:write", state=payload)
    check(page)
    check(await browser.answer(page, name=payload, password=payload, answer="allow"))
    leads = await browser.answer(page, way="elsewhere")
    check(leads)
    state = leads.text.split("state=")[1].split("&")[0]
    check(await browser.ask("GET", "/sign-in/callback/elsewhere", query=f"state={state}"))
    check(await browser.ask("GET", "/sign-in/callback/elsewhere", query=f"state={state}"))
    await browser.answer(page)
    check(await browser.open(id, scope="orders:write orders:read", prompt="consent"))
    check(await browser.open(payload))
    check(await browser.open(id, redirect_uri=payload))


@for_each("uri", [
    f"{BACK};script-src", f"{BACK}?a;b,c", "https://a.example;script-src 'unsafe-inline'/", "https://a.example,x/",
    "com.example.app:/x;y",
    "http://[::1]:5/x;default-src *", "https://'self'/",
])  # fmt: skip
@pytest.mark.parametrize("kind", STORE_KINDS)
async def test_redirect_uris_cannot_extend_the_policy(uri: str, kind: str) -> None:
    async with desk_on(kind) as desk:
        await register_and_look(desk, uri)


async def register_and_look(desk: Desk, uri: str) -> None:
    """Check the policy of the page, if the registration succeeds."""
    try:
        id = (await desk.register(redirect_uris=[uri]))["client_id"]
    except AssertionError as refused:
        assert "invalid_redirect_uri" in str(refused)  # noqa: PT017  one of two valid outcomes
        return
    page = await Browser(desk).open(id, redirect_uri=uri)
    policy = page.headers["content-security-policy"]
    assert policy.count(";") == 4
    assert "," not in policy
    assert "unsafe" not in policy
