import json
import os
import re
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Page, expect

from issuing_world import challenge
from pages_matrix import LEFT_OUT, PAGES, STATES, find_problems, pages_in
from pages_world import OpenPage, call
from patience import WAIT
from processes import TEST_PATH, SharedServer, free_port, run_command, run_server

pytestmark = pytest.mark.server

LONG_TOOL = "long_words_" + "without_an_end_" * 6
LONG_NAME = "Bookshop with a name of which no sign could be made " * 2
ARABIC_NAME = "متجر الكتب القديمة والجديدة"


@pytest.fixture
def crowd(shared_crowd: SharedServer) -> str:
    """The address of the crowded server."""
    return f"http://127.0.0.1:{shared_crowd.port()}"


def said(address: str, name: str, text: str) -> None:
    """A message in the chat."""
    data = {"name": name, "message": text, "time": 1_700_000_000_000}
    body = json.dumps({"channel": "broadcast", "data": data}).encode()
    request = Request(f"{address}/publish", body, {"content-type": "application/json"})  # noqa: S310  loopback
    urlopen(request, timeout=WAIT).close()  # noqa: S310


def ran(page: Page, tool: str) -> None:
    """Open a tool in the inspector or the reference, run it, and unfold everything."""
    page.evaluate("(tool) => (location.hash = `#tool=${encodeURIComponent(tool)}`)", tool)
    expect(page.locator("#detail h2").first).to_have_text(re.compile(f"{tool}|تحية"))
    page.locator("#detail").get_by_role("button", name="Run", exact=True).click()
    outcome = page.locator("#detail .badge").filter(has_text=re.compile("^(200|409|Done|Tool error)"))
    expect(outcome.first).to_be_visible()
    page.evaluate("document.querySelectorAll('#detail details').forEach((each) => (each.open = true))")


def shown_call(page: Page, tool: str) -> None:
    """A call in full, under the tool's row."""
    page.get_by_role("tab", name="Recent calls").click()
    page.get_by_label("Filter the calls").fill(tool)
    page.locator("#recent .row-name").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_every_page_state_is_covered_or_excluded_with_a_reason() -> None:
    assert {page for page, _ in LEFT_OUT} <= set(PAGES)
    assert {state for _, state in LEFT_OUT} <= set(STATES)
    assert all(len(reason) > 10 for reason in LEFT_OUT.values())


def test_pages_work_with_500_tools(crowd: str, open_page: OpenPage) -> None:
    for number in range(500):
        suffix = "_with_a_name_that_is_much_too_long_for_any_list_of_tools" if number % 50 == 7 else ""
        call(crowd, f"tool_{number:03d}{suffix}", {})
    ready = {"connect": "#count-tools:has-text('507')", "inspect": "#kinds:has-text('507')",
             "dashboard": "#tool-tools .pager:has-text('of 5')",
             "docs": "#count:has-text('507')"}  # fmt: skip
    found: list[str] = []
    for name in pages_in("500 tools", *ready):
        page = open_page(f"{crowd}/{name}", lossy=True)
        page.locator(ready[name]).wait_for()
        found += find_problems(page, name, "tool_491")
    assert found == [], "\n".join(found)


@pytest.mark.nightly
def test_pages_work_with_long_and_right_to_left_text(crowd: str, open_page: OpenPage) -> None:
    texts = ["word " * 300, "x" * 500, "https://example.org/" + "a" * 200]
    states = {"long texts": (LONG_TOOL, "Maximiliane " * 3, texts),
              "right-to-left": ("greeting", "آدا لوفليس", ["نص عربي طويل " * 30, "مرحبا"])}  # fmt: skip
    found: list[str] = []
    for state, (tool, person, texts) in states.items():
        for text in texts:
            said(crowd, person, text)
        call(crowd, tool, {"name": "لا أحد"} if tool == "greeting" else {})
        for name in pages_in(state, "connect", "inspect", "dashboard", "docs", "chat"):
            page = open_page(f"{crowd}/{name}", name=person, lossy=True)
            if name in ("inspect", "docs"):
                expect(page.locator("#server-name")).not_to_be_empty()
                ran(page, tool)
            elif name == "dashboard":
                shown_call(page, tool)
                found += [f"{state}, a call: {each}" for each in find_problems(page, "call")]
                page.keyboard.press("Escape")
                page.get_by_role("tab", name="Tools").click()
            elif name == "connect":
                expect(page.locator("#names")).to_contain_text("more")
            else:
                expect(page.locator(".bubble").get_by_text(texts[-1]).last).to_be_visible()
            found += [f"{state}: {each}" for each in find_problems(page, name, tool)]
    assert found == [], "\n".join(found)


class Shop:
    """`upstream_shop.py`, which comes and goes at one address, and what a client asks there."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def link(self, name: str, scope: str) -> str:
        """A link of a client that has just registered."""
        back = "http://127.0.0.1:9/back"
        about = json.dumps({"redirect_uris": [back], "client_name": name}).encode()
        request = Request(f"{self.url}/register", about, {"content-type": "application/json"})  # noqa: S310  loopback
        with urlopen(request, timeout=WAIT) as reply:  # noqa: S310
            id = json.load(reply)["client_id"]
        asked = {"response_type": "code", "client_id": id, "redirect_uri": back, "state": "s", "scope": scope,
                 "code_challenge": challenge(), "code_challenge_method": "S256"}  # fmt: skip
        return f"{self.url}/authorize?{urlencode(asked)}"


@pytest.mark.nightly
def test_sign_in_and_consent_work_with_unusual_content(tmp_path: Path, open_page: OpenPage) -> None:
    shop, found = Shop(), list[str]()
    pages: dict[str, Page] = {}
    tests = os.pathsep.join([TEST_PATH, os.environ.get("PYTHONPATH", "")])
    command = run_command("tests/pages/upstream_shop.py", shop.port)
    more = {"SHOP_URL": shop.url, "UPSTREAM_URL": shop.url, "PYTHONPATH": tests}
    states = {"empty": ("", ""), "long texts": ("W" * 80, "shop:use orders:write")}
    with run_server(command, shop.port, tmp_path / "first", SHOP_NAME=LONG_NAME, **more):
        for state, (client, scope) in states.items():
            opened = {"sign-in": f"{shop.url}/docs", "consent": shop.link(client, scope)}
            pages = {name: open_page(opened[name], fresh=True, lossy=True) for name in pages_in(state, *opened)}
            found += [f"{state}: {each}" for name, page in pages.items() for each in find_problems(page, name)]
    with run_server(command, shop.port, tmp_path / "second", SHOP_NAME=ARABIC_NAME, **more):
        for name in pages_in("server back", *pages):
            pages[name].get_by_label("Name").fill("ada")
            pages[name].get_by_label("Password").fill("wrong")
            pages[name].get_by_label("Password").press("Enter")
            expect(pages[name].locator("[role=status], [role=alert], h1").first).not_to_be_empty()
            found += [f"back: {each}" for each in find_problems(pages[name], name)]
        opened = {"sign-in": f"{shop.url}/docs", "consent": shop.link("قارئ الكتب " * 6, "shop:use")}
        for name in pages_in("right-to-left", *opened):
            page = open_page(opened[name], fresh=True, lossy=True)
            expect(page.get_by_role("heading", level=1)).to_contain_text("متجر")
            found += [f"right-to-left: {each}" for each in find_problems(page, name)]
    assert found == [], "\n".join(found)
