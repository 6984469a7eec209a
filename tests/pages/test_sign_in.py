import asyncio
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Page, expect

from issuing_world import challenge
from millstream.client import Client, MemoryTokenStore, OAuth, Options
from pages.test_accessibility import DANGLING, NAMELESS, SIDEWAYS, TWICE
from pages_world import OpenPage, find_layout_problems
from patience import WAIT
from processes import TEST_PATH, free_port, run_command, run_server

pytestmark = pytest.mark.server


class Site(BaseHTTPRequestHandler):
    """A client's page, and an upstream that sends everybody straight back."""

    came: list[str]

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        if parts.path == "/go":
            self.send_response(302)
            back = {"state": query["state"][0], "code": "grace"}
            self.send_header("location", f"{query['redirect_uri'][0]}?{urlencode(back)}")
        elif parts.path == "/onward":
            self.send_response(302)
            self.send_header("location", f"http://localhost:{self.server.server_address[1]}/back?{parts.query}")
        else:
            if parts.path == "/back":
                self.came.append(self.path)
            self.send_response(200)
            self.send_header("content-type", "text/html")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Shop:
    """A running shop, and what comes back to a client."""

    def __init__(self, url: str, site: str, came: list[str]) -> None:
        self.url = url
        self.site = site
        self.came = came

    def link(self, name: str = "Claude Code", scope: str = "shop:use orders:write", back: str = "/back") -> str:
        """A link of a client that has just registered."""
        about = {"redirect_uris": [f"{self.site}{back}"], "client_name": name}
        body, headers = json.dumps(about).encode(), {"content-type": "application/json"}
        with urlopen(Request(f"{self.url}/register", body, headers), timeout=WAIT) as reply:  # noqa: S310  loopback
            id = json.load(reply)["client_id"]
        asked = {"response_type": "code", "client_id": id, "redirect_uri": f"{self.site}{back}", "state": "s t",
                 "code_challenge": challenge(), "code_challenge_method": "S256", "scope": scope}  # fmt: skip
        return f"{self.url}/authorize?{urlencode(asked)}"

    def answered(self, page: Page) -> dict[str, list[str]]:
        """What the client got, once the browser is there."""
        page.wait_for_url(re.compile(f"^{self.site}/back"))
        return parse_qs(urlsplit(self.came[-1]).query)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """`upstream_shop.py` at one port, a client and an upstream at another."""
    came: list[str] = []
    site = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Site,), {"came": came}))
    Thread(target=site.serve_forever, daemon=True).start()
    port = free_port()
    url, elsewhere = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{site.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOP_URL", url)
        patch.setenv("UPSTREAM_URL", elsewhere)
        patch.setenv("PYTHONPATH", os.pathsep.join([TEST_PATH, os.environ.get("PYTHONPATH", "")]))
        log = tmp_path_factory.mktemp("shop") / "log"
        with run_server(run_command("tests/pages/upstream_shop.py", port), port, log):
            yield Shop(url, elsewhere, came)
    site.shutdown()
    site.server_close()


def test_user_signs_in_consents_and_returns_to_the_client(shop: Shop, open_page: OpenPage) -> None:
    page = open_page(shop.link(), fresh=True)
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_role("button", name="Sign in and allow").click()
    answer = shop.answered(page)
    assert (answer["state"], answer["iss"]) == (["s t"], [shop.url])
    assert answer["code"]
    page.goto(shop.link("Another"))
    expect(page.get_by_text("You are signed in as Ada.")).to_be_visible()
    page.get_by_role("button", name="Deny").click()
    assert shop.answered(page)["error"] == ["access_denied"]


def test_callback_may_redirect_to_another_site(shop: Shop, open_page: OpenPage) -> None:
    page = open_page(shop.link(back="/onward"), fresh=True)
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_role("button", name="Sign in and allow").click()
    page.wait_for_url("http://localhost:*/back?*")
    assert "code=" in page.url


def test_user_returns_to_the_client_from_an_upstream(shop: Shop, open_page: OpenPage) -> None:
    page = open_page(shop.link(), fresh=True)
    page.get_by_role("button", name="Continue with Elsewhere").click()
    assert shop.answered(page)["code"]
    page.goto(shop.link("Another"))
    expect(page.get_by_text("You are signed in as Grace Hopper.")).to_be_visible()
    page.get_by_role("button", name="Use another account").click()
    expect(page.get_by_label("Password")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sign_in_page_is_styled_and_accessible(shop: Shop, open_page: OpenPage, scheme: str) -> None:
    page = open_page(shop.link("W" * 80), fresh=True, width=320, height=844, color_scheme=scheme)
    assert page.evaluate(SIDEWAYS) == 0
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(TWICE) == []
    assert page.evaluate(DANGLING) == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(246, 247, 247)", "dark": "rgb(12, 17, 16)"}[scheme]
    allow = page.get_by_role("button", name="Sign in and allow")
    assert allow.evaluate("node => getComputedStyle(node).fontWeight") == "600"


def test_sign_in_and_consent_states_pass_axe(shop: Shop, open_page: OpenPage) -> None:
    page = open_page(shop.link("تطبيق طويل الاسم " * 4), fresh=True, lossy=True)
    wrong = [f"asked {each}" for each in find_layout_problems(page)]
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in and allow").click()
    expect(page.get_by_role("alert")).to_be_visible()
    wrong += [f"refused {each}" for each in find_layout_problems(page)]
    page.get_by_label("Password").fill("correct horse")
    page.get_by_role("button", name="Sign in and allow").click()
    assert shop.answered(page)["code"]
    page.goto(shop.link("W" * 80))
    expect(page.get_by_text("You are signed in as Ada.")).to_be_visible()
    wrong += [f"agreed {each}" for each in find_layout_problems(page)]
    page.goto(f"{shop.url}/authorize?client_id=nobody")
    wrong += [f"a wrong link {each}" for each in find_layout_problems(page)]
    page.context.clear_cookies()
    page.goto(f"{shop.url}/dashboard")
    expect(page.get_by_label("Password")).to_be_visible()
    wrong += [f"before a page {each}" for each in find_layout_problems(page)]
    assert wrong == []


def test_last_page_of_a_login_passes_axe(shop: Shop, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Queue[str]()
    monkeypatch.setattr("webbrowser.open", opened.put)

    async def login() -> str:
        async with Client(f"{shop.url}/mcp", options=Options(auth=OAuth(store=MemoryTokenStore()))) as client:
            return client.server.name

    with ThreadPoolExecutor(1) as pool:
        name = pool.submit(asyncio.run, login())
        page = open_page(opened.get(timeout=WAIT), fresh=True, lossy=True)
        page.get_by_label("Name").fill("ada")
        page.get_by_label("Password").fill("correct horse")
        page.get_by_role("button", name="Sign in and allow").click()
        expect(page.get_by_role("heading", name="You're signed in")).to_be_visible()
        assert name.result(WAIT) == "shop"
    assert find_layout_problems(page) == []


def test_sign_in_page_works_by_keyboard_and_without_scripts(shop: Shop, open_page: OpenPage) -> None:
    page = open_page(shop.link(), lossy=True, java_script_enabled=False, fresh=True)
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("wrong")
    page.get_by_label("Password").press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The name or password is wrong.")
    assert page.get_by_label("Name").input_value() == "ada"
    page.get_by_label("Password").fill("correct horse")
    page.get_by_label("Password").press("Enter")
    assert shop.answered(page)["code"]


def test_wrong_password_keeps_the_user_name(shop: Shop, open_page: OpenPage) -> None:
    page = open_page(f"{shop.url}/dashboard", lossy=True, fresh=True)
    expect(page.get_by_label("Name")).to_be_focused()
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_role("alert")).to_have_class("notice bad")
    expect(page.get_by_label("Name")).to_have_value("ada")
    expect(page.get_by_label("Password")).to_be_focused()
    page.keyboard.type("correct horse")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Dashboard")


def test_pages_open_with_name_and_password(shop: Shop, open_page: OpenPage) -> None:
    page = open_page(f"{shop.url}/docs", fresh=True, lossy=True, width=320)
    for found in (NAMELESS, TWICE, DANGLING):
        assert page.evaluate(found) == []
    assert page.evaluate(SIDEWAYS) == 0
    asked = "Sign in to shop to open the docs"
    expect(page.get_by_role("heading", level=1)).to_have_text(asked)
    expect(page).to_have_title(asked)
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("wrong")
    page.get_by_label("Password").press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The name or password is wrong.")
    expect(page.get_by_role("heading", level=1)).to_have_text(asked)
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.wait_for_url(f"{shop.url}/docs")
    expect(page.get_by_label("Password")).to_have_count(0)
    expect(page.get_by_role("heading", level=1)).to_be_visible()


def sign_in(page: Page, typed: str = "correct horse") -> None:
    """Fill in the form that's shown."""
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill(typed)
    page.get_by_label("Password").press("Enter")


def test_private_program_page_works_with_its_form_and_fetch(shop: Shop, open_page: OpenPage) -> None:
    page = open_page(f"{shop.url}/notes/tea?tab=1", fresh=True, lossy=True)
    sign_in(page)
    page.wait_for_url(f"{shop.url}/notes/tea?tab=1")
    expect(page.locator("output")).to_contain_text("ada saved text=y in x")
    page.get_by_label("Text").fill("green")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("ada saved text=green in tea")).to_be_visible()


def test_account_menu_shows_the_user_and_signs_out_this_browser(shop: Shop, open_page: OpenPage) -> None:
    for name in ("connect", "inspect", "dashboard", "docs", "chat"):
        page = open_page(f"{shop.url}/{name}", fresh=True, lossy=True)
        sign_in(page)
        page.wait_for_url(f"{shop.url}/{name}")
        button = page.get_by_role("button", name="Ada", exact=True)
        button.click()
        menu = page.get_by_role("region", name="Account")
        expect(menu).to_contain_text("Signed in as")
        expect(menu.locator("#account-scopes")).to_have_text("everything")
        if name == "docs":
            assert find_layout_problems(page) == []
        page.keyboard.press("Escape")
        expect(menu).to_be_hidden()
        expect(button).to_be_focused()
        button.press("Enter")
        menu.get_by_role("button", name="Sign out here").click()
        page.wait_for_url(f"{shop.url}/sign-in")
        page.goto(f"{shop.url}/{name}")
        expect(page.get_by_label("Password")).to_be_visible()


def test_docs_show_how_callers_sign_in(shop: Shop, plain: str, open_page: OpenPage) -> None:
    page = open_page(f"{shop.url}/docs", fresh=True, lossy=True)
    sign_in(page)
    page.wait_for_url(f"{shop.url}/docs")
    expect(page.locator("#sign-in")).to_contain_text("authorization: Bearer KEY. This page calls tools as you.")
    page.goto(f"{shop.url}/docs#tool=order")
    code = page.get_by_label("Code", exact=True)
    for language in ("curl", "Python", "TypeScript"):
        page.get_by_role("button", name=language, exact=True).click()
        expect(code).to_contain_text("Bearer KEY")
    page = open_page(f"{plain}/docs#tool=greet")
    expect(page.get_by_label("Code", exact=True)).not_to_contain_text("Bearer")


@pytest.mark.parametrize(("button", "left"), [("Sign out here", False), ("Sign out everywhere", True)])
def test_signing_out_everywhere_ends_the_other_browser(
    shop: Shop, open_page: OpenPage, button: str, left: bool
) -> None:
    first, second = (open_page(f"{shop.url}/docs", fresh=True, lossy=True) for _ in range(2))
    for page in (first, second):
        sign_in(page)
        page.wait_for_url(f"{shop.url}/docs")
    first.get_by_role("button", name="Ada", exact=True).click()
    first.get_by_role("button", name=button).click()
    first.wait_for_url(f"{shop.url}/sign-in")
    second.goto(f"{shop.url}/docs")
    expect(second.get_by_label("Password")).to_have_count(int(left))


def test_sign_in_and_consent_show_the_server_and_set_the_focus(shop: Shop, open_page: OpenPage) -> None:
    page = open_page(f"{shop.url}/docs", fresh=True, lossy=True)
    expect(page.locator(".brand")).to_have_text("S")
    expect(page.get_by_label("Name")).to_be_focused()
    sign_in(page, "wrong")
    expect(page.get_by_label("Password")).to_be_focused()
    page.goto(shop.link("Claude Code"))
    expect(page.locator(".brand")).to_have_text("S")
    expect(page.get_by_label("Name")).to_be_focused()
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_role("button", name="Sign in and allow").click()
    assert shop.answered(page)["code"]
    page.goto(shop.link("Another"))
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Allow", exact=True)).to_be_focused()
    page.goto(f"{shop.url}/docs")
    sign_in(page)
    page.get_by_role("button", name="Ada", exact=True).click()
    page.get_by_role("button", name="Sign out here").click()
    page.wait_for_url(f"{shop.url}/sign-in")
    page.goto(shop.link("A third"))
    expect(page.get_by_label("Password")).to_be_visible()
