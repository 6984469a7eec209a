import json
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from pages_world import SIZES, OpenPage, call, find_layout_problems
from processes import SharedServer

pytestmark = pytest.mark.server

READY = {"dashboard": "#uptime:not(:text-is('–'))", "docs": "#main:not(:has([aria-busy]))", "chat": "#scroll"}
MAIN = {"dashboard": ".details", "docs": "#index", "chat": "#scroll"}
SHIFTS = """new PerformanceObserver((list) => {
  for (const each of list.getEntries()) window.shifted = (window.shifted ?? 0) + each.value;
}).observe({type: "layout-shift", buffered: true})"""


@pytest.fixture
def crowd(shared_crowd: SharedServer) -> str:
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
        body = json.dumps({"channel": "broadcast", "data": data})
        page.request.post(
            page.url.split("/chat")[0] + "/publish", data=body, headers={"content-type": "application/json"}
        )
    expect(page.locator(".bubble").get_by_text("hi", exact=True).last).to_be_visible()


def long_channel(page: Page) -> None:
    """A channel with a name that is too long for any list."""
    page.evaluate("location.hash = 'channel=' + 'c'.repeat(120)")
    expect(page.get_by_text("No messages yet")).to_be_visible()


STATES: dict[str, list[Callable[[Page], None]]] = {
    "dashboard": [lambda page: None, *(tab(name) for name in ("Errors", "Clients", "Streams", "Workers", "Server")),
                  look_at_call, drawer],
    "docs": [lambda page: None, tool("place_order"), tool("gallery", run=True), tool("broken", run=True),
             nothing_found],
    "chat": [talked, long_channel],
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_every_state_fits_every_size_and_passes_axe(crowd: str, open_page: OpenPage, name: str) -> None:
    page = open_page(f"{crowd}/{name}", name="Ada", lossy=True)
    page.locator(READY[name]).wait_for()
    found: list[str] = []
    for place, act in enumerate(STATES[name]):
        act(page)
        found += [f"{place} {each}" for each in find_layout_problems(page)]
    assert found == []


@pytest.mark.parametrize("name", STATES)
def test_list_loads_without_layout_shift(crowd: str, open_page: OpenPage, name: str) -> None:
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


VERDICTS = """async () => {
  const { drawHealth } = await import("./assets/dashboard/health.js");
  const snapshot = {
    at_seconds: 1, uptime_seconds: 1, calls: 0, sessions: [], connections: [], workers: [{since: 0}],
    event_loop_lag_ms: {blocked: 0}, process: {}, store: {kind: "redis", up: true},
  };
  const drawn = (changes, past) => {
    drawHealth({...snapshot, ...changes}, past);
    const box = (each) => document.querySelector(each).getBoundingClientRect();
    const rows = ["#verdict", "#ranges", ".health"].map(box);
    return {
      word: document.querySelector("#verdict").textContent,
      tops: [...rows, box("#calls-chart")].map((each) => each.top),
      gaps: rows.slice(1).map((each, place) => each.top - rows[place].bottom),
    };
  };
  const failing = (errors) => ({total: {calls: 20, errors: 20, server_errors: errors}, all: {rate: [1]}});
  return [drawn({}, null), drawn({}, failing(0)), drawn({}, failing(1)),
    drawn({event_loop_lag_ms: {blocked: 6000}, store: {kind: "redis", up: false}}, failing(20))];
}"""


def test_phones_show_errors_without_layout_shift(crowd: str, open_page: OpenPage) -> None:
    page = open_page(f"{crowd}/dashboard", width=390, height=844)
    page.locator(READY["dashboard"]).wait_for()
    well, mistyped, warned, bad = page.evaluate(VERDICTS)
    assert [each["word"] for each in (well, mistyped, warned, bad)] == ["Healthy", "Healthy", "Degraded", "Unhealthy"]
    assert well["tops"] == mistyped["tops"] == warned["tops"] == bad["tops"]
    assert max(well["gaps"]) < 20


LOOP = """async () => {
  const { reasons } = await import("./assets/dashboard/health.js");
  const judged = (blocked) => reasons({at_seconds: 1, event_loop_lag_ms: {worst: blocked, blocked}, process: {}}, null);
  return [0, 999, 1_000, 5_999, 6_000].map((stood) => judged(stood).map(([look]) => look).join());
}"""


def test_loop_health_degrades_only_after_repeated_lag(crowd: str, open_page: OpenPage) -> None:
    page = open_page(f"{crowd}/dashboard")
    assert page.evaluate(LOOP) == ["", "", "warn", "warn", "bad"]


def test_identical_simultaneous_calls_are_all_shown(crowd: str, open_page: OpenPage) -> None:
    words = ("caller", "client", "transport", "revision", "outcome", "error", "incident")
    alike = {"at": 1.5, "method": "tools/call", "name": "add", "ms": 1, "bytes": 1, **dict.fromkeys(words, "")}
    page = open_page(f"{crowd}/dashboard", fresh=True)
    body = {"calls": [alike, alike, {**alike, "at": 1.0}], "clients": [], "errors": []}
    page.route("**/dashboard/calls", lambda route: route.fulfill(json=body))
    page.get_by_role("tab", name="Recent calls").click()
    expect(page.get_by_role("table", name="Recent calls").locator("tbody tr")).to_have_count(3)


@pytest.mark.parametrize("name", ["inspect", "docs"])
def test_phones_show_the_result_of_a_long_form(crowd: str, open_page: OpenPage, name: str) -> None:
    tool = "long_words_" + "without_an_end_" * 6
    page = open_page(f"{crowd}/{name}#tool={tool}", lossy=True, width=390, height=844)
    page.locator("#detail").get_by_role("button", name="Run", exact=True).click()
    outcome = page.locator("#detail .badge").filter(has_text=re.compile("^(409|Tool error)"))
    expect(outcome).to_be_in_viewport()


def test_tool_table_sorts_filters_and_pages(crowd: str, open_page: OpenPage) -> None:
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
    table.get_by_role("button", name="Name", exact=True).press("Enter")
    expect(table.get_by_role("columnheader", name="Name")).to_have_attribute("aria-sort", "ascending")
    expect(rows.first.get_by_role("rowheader")).to_have_text("broken")
    page.keyboard.press("/")
    page.keyboard.type("tool_03")
    expect(rows.first.get_by_role("rowheader")).to_have_text("tool_030")
    expect(rows).to_have_count(min(shown, 10))


def test_pages_work_while_the_browser_blocks_storage(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/assets/mark.svg", fresh=True)
    page.add_init_script(
        """for (const name of ["localStorage", "sessionStorage"])
          Object.defineProperty(window, name, { get() { throw new DOMException("Blocked.", "SecurityError"); } });"""
    )
    page.goto(f"{hub}/dashboard")
    expect(page.locator(READY["dashboard"])).to_be_visible()
    page.get_by_role("button", name="15 min").click()
    expect(page.get_by_role("button", name="15 min")).to_have_attribute("aria-pressed", "true")
    page.goto(f"{hub}/docs")
    tool("add_numbers")(page)
    page.get_by_role("group", name="Language").get_by_role("button", name="Python").click()
    page.goto(f"{hub}/inspect")
    expect(page.locator("#state")).to_have_text("Connected")
    page.get_by_label("Order of the list").select_option("tokens")
    page.goto(f"{hub}/chat")
    page.get_by_label("Your name").fill("Ada")
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("Live")
