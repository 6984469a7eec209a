import json
import os
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from playwright.sync_api import Locator, Page, expect

from pages_world import OpenPage, find_layout_problems
from processes import TEST_PATH, free_port, run_command, run_server

pytestmark = pytest.mark.server
ORDER = json.dumps({"method": "tools/call", "params": {"name": "order", "arguments": {"title": "The Hobbit"}}})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`guarded_shop.py`, by another name of this machine than the inspector: another site, as servers elsewhere are."""
    port = free_port()
    url = f"http://localhost:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOP_URL", url)
        patch.setenv("PYTHONPATH", os.pathsep.join([TEST_PATH, os.environ.get("PYTHONPATH", "")]))
        command = run_command("tests/pages/guarded_shop.py", port)
        with run_server(command, port, tmp_path_factory.mktemp("shop") / "log"):
            yield url


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the inspector's server logs."""
    return tmp_path_factory.mktemp("inspector") / "log"


@pytest.fixture(scope="module")
def inspector(shop: str, log: Path) -> Iterator[str]:
    """A server whose operator has named the shop."""
    port = free_port()
    options = ["--serve", "web", "--log-level", "debug", "--inspect", f"{shop}/mcp"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILLSTREAM_ACCESS_LOG", "true")
        with run_server(run_command("examples/greet.py", port, *options), port, log):
            yield f"http://127.0.0.1:{port}"


def asked(inspector: str, shop: str, open_page: OpenPage) -> tuple[Page, Locator]:
    """The page, where the shop is chosen and asks to sign in; and what asks."""
    page = open_page(f"{inspector}/inspect", lossy=True, fresh=True)
    expect(page.locator("#state")).to_have_text("Connected")
    page.locator("#server").select_option(f"{shop}/mcp")
    card = page.get_by_role("form", name="This server asks you to sign in")
    expect(card).to_be_visible()
    return page, card


def agree(page: Page, shop: str) -> None:
    """Sign in at the shop, and allow what the inspector asks for."""
    page.wait_for_url(re.compile(f"^{re.escape(shop)}/authorize"))
    if page.get_by_label("Password").count():
        page.get_by_label("Name").fill("ada")
        page.get_by_label("Password").fill("correct horse")
        page.get_by_role("button", name="Sign in and allow").click()
    else:
        page.get_by_role("button", name="Allow").click()


def ordered(page: Page) -> Locator:
    """What asks for more rights, once somebody has tried what their list leaves out."""
    page.evaluate("(values) => (location.hash = `#server=Any request&args=${encodeURIComponent(values)}`)", ORDER)
    page.locator("#detail").get_by_role("button", name="Send").click()
    card = page.get_by_role("form", name="This needs more scopes")
    expect(card).to_contain_text("orders:write")
    return card


def test_user_signs_in_steps_up_and_signs_out(inspector: str, shop: str, open_page: OpenPage, log: Path) -> None:
    page, card = asked(inspector, shop, open_page)
    tokens: list[str] = []
    heard: list[str] = []
    page.on("request", lambda each: heard.extend([each.url, str(each.headers), each.post_data or ""]))
    expect(card).to_contain_text("books:read")
    card.get_by_role("button", name="Sign in", exact=True).click()
    agree(page, shop)
    page.wait_for_url(f"{inspector}/inspect**")
    expect(page.locator("#state")).to_have_text("Connected")
    expect(page.get_by_text("Signed in as ada.")).to_be_visible()
    expect(page.locator(".server")).to_contain_text("Book shop")
    page.locator("#items").get_by_role("option", name="who").click()
    page.locator("#detail").get_by_role("button", name="Run").click()
    expect(page.get_by_role("region", name="Result")).to_contain_text("ada")

    more = ordered(page)
    more.get_by_role("button", name="Sign in again").click()
    agree(page, shop)
    page.wait_for_url(f"{inspector}/inspect**")
    expect(page.locator("#state")).to_have_text("Connected")
    page.locator("#detail").get_by_role("button", name="Send").click()
    expect(page.get_by_role("region", name="Result")).to_contain_text("1 × The Hobbit")
    page.get_by_role("tab", name="Tools").click()
    expect(page.locator("#items").get_by_role("option", name="order")).to_be_visible()

    cookies = {each["name"]: each for each in page.context.cookies(f"{inspector}/inspect")}
    kept = cookies["millstream-inspect"]
    assert (kept["httpOnly"], kept["sameSite"], kept["path"]) == (True, "Lax", "/inspect")
    stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
    page.locator("#account-button").click()
    account = page.get_by_role("dialog")
    expect(account).to_contain_text("orders:write")
    account.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("Signed out. The tokens are revoked.")).to_be_visible()
    expect(page.get_by_role("form", name="This server asks you to sign in")).to_be_visible()
    tokens = re.findall(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", " ".join([*heard, stored, page.content(), log.read_text()]))
    assert tokens == []


def test_declined_sign_in_can_be_retried(inspector: str, shop: str, open_page: OpenPage) -> None:
    page, card = asked(inspector, shop, open_page)
    card.get_by_role("button", name="Sign in", exact=True).click()
    page.wait_for_url(re.compile(f"^{re.escape(shop)}/authorize"))
    page.get_by_role("button", name="Deny").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("You aren't signed in")
    expect(page.get_by_role("alert")).to_contain_text("Sign in again")
    found = find_layout_problems(page)
    page.get_by_role("link", name="Go back").click()
    expect(page.get_by_role("form", name="This server asks you to sign in")).to_be_visible()
    assert found == []


def test_sign_in_states_fit_every_size_and_pass_axe(inspector: str, shop: str, open_page: OpenPage) -> None:
    page, card = asked(inspector, shop, open_page)
    wrong = [f"asked {each}" for each in find_layout_problems(page)]
    page.route(
        "**/inspect/sign-in/*",
        lambda route: route.fulfill(
            status=502,
            json={
                "detail": f"{shop} doesn't support client registration. Register one with the redirect URI {inspector}."
            },
        ),
    )
    card.get_by_role("button", name="Sign in", exact=True).click()
    expect(card.get_by_role("alert")).to_contain_text("doesn't support client registration")
    expect(card.get_by_label("Client ID")).to_be_visible()
    wrong += [f"refused {each}" for each in find_layout_problems(page)]
    page.unroute("**/inspect/sign-in/*")
    card.get_by_role("button", name="Sign in", exact=True).click()
    agree(page, shop)
    expect(page.locator("#state")).to_have_text("Connected")
    wrong += [f"signed in {each}" for each in find_layout_problems(page)]
    ordered(page)
    wrong += [f"for more {each}" for each in find_layout_problems(page)]
    page.locator("#account-button").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    wrong += [f"account {each}" for each in find_layout_problems(page)]
    assert wrong == []


def test_another_server_is_added_with_sign_in_and_outlives_a_restart(
    shop: str, open_page: OpenPage, tmp_path: Path
) -> None:
    port = free_port()
    command = run_command("examples/greet.py", port, "--serve", "web", "--dev")
    with run_server(command, port, tmp_path / "log"):
        page = open_page(f"http://127.0.0.1:{port}/inspect", lossy=True, fresh=True)
        expect(page.locator("#state")).to_have_text("Connected")
        page.locator("#server").select_option("Another server…")
        dialog = page.get_by_role("dialog", name="Connect to another server")
        assert find_layout_problems(page) == []
        dialog.get_by_label("URL").fill("ftp://example.com/")
        dialog.get_by_role("button", name="Connect").click()
        expect(dialog.get_by_role("alert")).to_contain_text("Use a URL such as")
        dialog.get_by_label("URL").fill(f"{shop}/mcp")
        page.keyboard.press("Enter")
        card = page.get_by_role("form", name="This server asks you to sign in")
        card.get_by_role("button", name="Sign in", exact=True).click()
        agree(page, shop)
        page.wait_for_url(f"http://127.0.0.1:{port}/inspect**")
        expect(page.locator("#state")).to_have_text("Connected")
        expect(page.locator(".server")).to_contain_text("Book shop")
    with run_server(command, port, tmp_path / "log"):
        page.reload()
        expect(page.locator("#server option:checked")).to_have_text(f"{shop}/mcp")
        expect(page.get_by_role("form", name="This server asks you to sign in")).to_be_visible()


def test_key_for_this_server_is_not_sent_to_another_one(open_page: OpenPage, tmp_path: Path) -> None:
    sent: list[str] = []

    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(str(self.headers))
            self.send_error(404)

        do_GET = do_POST  # noqa: N815  the name of the method

    other, port = ThreadingHTTPServer(("127.0.0.1", 0), Other), free_port()
    Thread(target=other.serve_forever, daemon=True).start()
    with (
        other,
        run_server(run_command("examples/greet.py", port, "--serve", "web", "--dev"), port, tmp_path / "log"),
    ):
        page = open_page(f"http://127.0.0.1:{port}/inspect", lossy=True, fresh=True)
        expect(page.locator("#state")).to_have_text("Connected")
        page.locator("#open-settings").click()
        page.get_by_label("Key or token").fill("the-key-of-this-server")
        page.get_by_role("button", name="Save and reconnect").click()
        page.locator("#server").select_option("Another server…")
        page.get_by_role("dialog", name="Connect to another server").get_by_label("URL").fill(
            f"http://127.0.0.1:{other.server_port}/mcp"
        )
        page.keyboard.press("Enter")
        expect(page.locator("#state")).to_have_text("Not connected")
        assert sent
        assert not [each for each in sent if "the-key-of-this-server" in each]
        page.locator("#server").select_option("This server")
        expect(page.locator("#state")).to_have_text("Connected")
        page.locator("#open-settings").click()
        expect(page.get_by_label("Key or token")).to_have_value("the-key-of-this-server")
        other.shutdown()
