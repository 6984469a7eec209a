"""The dashboard, the reference and the chat in every state, size and scheme: nothing lies outside of its box, axe finds
nothing, the list is there, and nothing moves while a page comes. Each page is loaded once, and goes through its states.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from pages_world import SIZES, OpenPage, call, fits
from processes import Shared, free_port, millstream, serving

pytestmark = pytest.mark.server

READY = {"dashboard": "#uptime:not(:text-is('–'))", "docs": "#main:not(:has([aria-busy]))", "chat": "#scroll"}
MAIN = {"dashboard": ".details", "docs": "#index", "chat": "#scroll"}
SHIFTS = """new PerformanceObserver((list) => {
  for (const each of list.getEntries()) window.shifted = (window.shifted ?? 0) + each.value;
}).observe({type: "layout-shift", buffered: true})"""


@pytest.fixture
def crowd(shared_crowd: Shared) -> str:
    """The address of the crowded server, with calls and words of all kinds."""
    address = f"http://127.0.0.1:{shared_crowd.port()}"
    for name in ["broken", "broken", "gallery", "nobody", *(f"tool_{number:03d}" for number in range(40))]:
        call(address, name, {})
    return address


def tab(name: str) -> Callable[[Page], None]:
    """Open a part of the dashboard."""

    def act(page: Page) -> None:
        page.get_by_role("tab", name=name).click()

    return act


def look_at_call(page: Page) -> None:
    """One call in full."""
    page.get_by_role("tab", name="Recent calls").click()
    page.get_by_role("checkbox", name="Only failures").check()
    page.locator("#recent .row-name").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()


def drawer(page: Page) -> None:
    """The log, over the call that is closed again."""
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Log").click()


def tool(name: str, run: bool = False) -> Callable[[Page], None]:
    """Open a tool of the reference, with everything that folds."""

    def act(page: Page) -> None:
        page.evaluate("(name) => (location.hash = `tool=${name}`)", name)
        expect(page.locator("#operation-title")).to_have_text(name)
        if run:
            page.get_by_role("button", name="Run", exact=True).click()
            expect(page.get_by_role("status", name="Result").locator(".badge")).to_be_visible()
        page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")

    return act


def nothing_found(page: Page) -> None:
    """A filter that nothing matches, in the list and beside the overview."""
    page.evaluate("location.hash = 'busy'")
    page.evaluate("document.querySelector('#main').dataset.view = 'list'")
    page.get_by_label("Find a tool").fill("no such words")


def talked(page: Page) -> None:
    """Words of every length, kind and direction, and one that is refused."""
    texts = [
        "x" * 500,
        "نص عربي طويل " * 30,
        "```\n" + "code " * 60 + "\n```",
        "https://example.org/" + "a" * 200,
        "hi",
    ]
    for number, text in enumerate(texts):
        data = {
            "name": f"Person {number} " * (1 + number * 3),
            "message": text,
            "time": 1_700_000_000 + 90_000 * number,
        }
        body = json.dumps({"channel": "chat", "data": data})
        page.request.post(
            page.url.split("/chat")[0] + "/publish", data=body, headers={"content-type": "application/json"}
        )
    expect(page.locator(".bubble").get_by_text("hi", exact=True).last).to_be_visible()


def long_channel(page: Page) -> None:
    """A channel with a name that is too long for any list."""
    page.evaluate("location.hash = 'channel=' + 'c'.repeat(120)")
    expect(page.get_by_text("It's quiet in here")).to_be_visible()


STATES: dict[str, list[Callable[[Page], None]]] = {
    "dashboard": [lambda page: None, *(tab(name) for name in ("Clients", "Streams", "Workers", "Server")), look_at_call,
                  drawer],
    "docs": [lambda page: None, tool("place_order"), tool("gallery", run=True), tool("broken", run=True),
             nothing_found],
    "chat": [talked, long_channel],
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_every_state_fits_every_size_and_axe_finds_nothing(crowd: str, open_page: OpenPage, name: str) -> None:
    """Our choice: three sizes, both schemes, all states; 500 tools, long texts, text from right to left."""
    page = open_page(f"{crowd}/{name}", name="Ada", lossy=True)
    page.locator(READY[name]).wait_for()
    found: list[str] = []
    for place, act in enumerate(STATES[name]):
        act(page)
        found += [f"{place} {each}" for each in fits(page)]
    assert found == []


@pytest.mark.parametrize("name", STATES)
def test_the_list_has_two_fifths_of_the_window_and_nothing_moves_while_it_comes(
    crowd: str, open_page: OpenPage, name: str
) -> None:
    """Our choice: what a page is about is in view, at 1280 by 720 as on a phone, and stays where it was drawn first.

    A fixed defect: what the dashboard had to say about the server's health moved everything below it on a phone.
    """
    for width, height in SIZES:
        page = open_page(f"{crowd}/{name}", name="Ada", fresh=True, width=width, height=height)
        page.evaluate(SHIFTS)
        page.locator(READY[name]).wait_for()
        page.wait_for_function("() => document.readyState === 'complete'")
        box = page.locator(MAIN[name]).bounding_box()
        assert box is not None
        assert box["height"] >= 0.4 * height, (width, box)
        assert page.evaluate("window.shifted ?? 0") < 0.05, width
        page.context.close()


def test_a_phone_keeps_no_empty_line_for_what_is_wrong_and_moves_nothing_when_something_is(
    tmp_path: Path, open_page: OpenPage
) -> None:
    """Fixed defects: a line stayed empty below "Healthy", and "Needs a look" pushed the ranges into a line of their own
    and everything below down.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with serving(millstream(str(Path(__file__).parent / "crowded.py"), port, "--serve", "all"), port, tmp_path / "log"):
        page = open_page(f"{address}/dashboard", fresh=True, lossy=True, width=390, height=844)
        expect(page.locator("#verdict")).to_have_text("Healthy")
        places = "() => ['#ranges', '.figures', '#calls-chart'].map((each) => document.querySelector(each).offsetTop)"
        before = page.evaluate(places)
        rows = [page.locator(each).bounding_box() for each in ("#verdict", "#ranges", ".figures")]
        tops, ends = zip(*((each["y"], each["y"] + each["height"]) for each in rows if each), strict=True)
        assert max(top - end for top, end in zip(tops[1:], ends, strict=False)) < 20
        page.evaluate(SHIFTS)
        for _ in range(20):
            call(address, "broken", {})
        expect(page.locator("#reasons")).to_contain_text("100% of the calls fail")
        assert page.evaluate(places) == before
        assert page.evaluate("window.shifted ?? 0") < 0.01
        page.context.close()


def test_many_tools_are_sorted_by_what_hurts_filtered_and_turned_page_by_page(crowd: str, open_page: OpenPage) -> None:
    """A fixed defect: 190 tools made a page of 10,635 pixels. `_other` is explained."""
    page = open_page(f"{crowd}/dashboard")
    page.locator(READY["dashboard"]).wait_for()
    table = page.get_by_role("table", name="Tools and methods")
    rows = table.locator("tbody tr")
    expect(rows.first.get_by_role("rowheader")).to_have_text("broken")
    expect(page.locator("#chosen")).to_contain_text("names that this server doesn't have")
    expect(page.locator("#part-tools .pager")).to_contain_text("1–")
    shown = rows.count()
    assert shown < 30
    page.get_by_role("button", name="Next page").click()
    expect(page.locator("#part-tools .pager")).to_contain_text(f"{shown + 1}–{2 * shown} of ")
    table.get_by_role("button", name="Name").press("Enter")
    expect(table.get_by_role("columnheader", name="Name")).to_have_attribute("aria-sort", "ascending")
    expect(rows.first.get_by_role("rowheader")).to_have_text("broken")
    page.keyboard.press("/")
    page.keyboard.type("tool_03")
    expect(rows.first.get_by_role("rowheader")).to_have_text("tool_030")
    expect(rows).to_have_count(min(shown, 10))
