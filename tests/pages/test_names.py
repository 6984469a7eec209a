"""Names that begin alike can be told from each other in each list, at each size."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from playwright.sync_api import Page, expect

from pages_world import OpenPage, call, find_overflow
from patience import WAIT
from processes import SharedServer, free_port, run_command, run_server, share_server

pytestmark = pytest.mark.server

SIZES = [(1440, 900), (1024, 768), (390, 844)]
PROGRAM = str(Path(__file__).parent / "alike_shop.py")

# The characters of each row that can be seen, below the heading of its group. Lists may draw only their visible rows.
READ = """async ([list, rows]) => {
  const box = document.querySelector(list), found = new Map();
  const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const read = (row) => {
    let seen = "";
    const walker = document.createTreeWalker(row, NodeFilter.SHOW_TEXT);
    for (let text; (text = walker.nextNode()); ) {
      if (text.parentElement.closest(".visually-hidden") || !text.parentElement.checkVisibility()) continue;
      let [left, top, right, bottom] = [0, -Infinity, innerWidth, Infinity];
      for (let node = text.parentElement; node; node = node.parentElement) {
        if (getComputedStyle(node).overflowX === "visible") continue;
        const edge = node.getBoundingClientRect();
        [left, right] = [Math.max(left, edge.left), Math.min(right, edge.right)];
        if (row.contains(node)) [top, bottom] = [Math.max(top, edge.top), Math.min(bottom, edge.bottom)];
      }
      for (let at = 0; at < text.length; at += 1) {
        const range = document.createRange();
        range.setStart(text, at);
        range.setEnd(text, at + 1);
        const {left: x, right: end, top: y, bottom: low, width} = range.getBoundingClientRect();
        if (width > 0 && x >= left - 1 && end <= right + 1 && y >= top - 2 && low <= bottom + 2) seen += text.data[at];
      }
    }
    return seen.trim();
  };
  for (let top = 0; ; top += box.clientHeight * 0.8) {
    box.scrollTop = top;
    await frame();
    for (const [place, row] of box.querySelectorAll(rows).entries())
      found.set(row.id || `${place}`, [row.matches(".group"), read(row)]);
    if (box.scrollTop + box.clientHeight >= box.scrollHeight - 1) break;
  }
  let group = "";
  const order = (id) => Number(String(id).match(/[0-9]+$/)[0]);
  const all = [...found].sort(([one], [other]) => order(one) - order(other)).map(([, row]) => row);
  return all.flatMap(([isGroup, text]) => (isGroup ? ((group = text), [`heading ${text}`]) : [`${group}: ${text}`]));
}"""


def read_rows(page: Page, box: str, rows: str = "[role=option]") -> list[str]:
    """Return what can be read of each row."""
    return list(page.evaluate(READ, [box, rows]))


def find_alike(page: Page, box: str, least: int, rows: str = "[role=option]") -> list[str]:
    """Return what can be read of rows that are alike. There are at least `least` rows."""
    found = read_rows(page, box, rows)
    assert len(found) >= least, found
    return [f"{count} × {text}" for text, count in Counter(found).items() if count > 1]


@pytest.fixture(scope="module")
def shared_alike(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    with share_server(lambda port: run_command(PROGRAM, port), tmp_path_factory.mktemp("alike")) as server:
        yield server


@pytest.fixture
def alike(shared_alike: SharedServer) -> str:
    """The address of a gateway with 40 tools of three upstreams, whose resources have the same names."""
    return f"http://127.0.0.1:{shared_alike.port()}"


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_no_two_items_look_the_same_in_any_list(alike: str, open_page: OpenPage, width: int, height: int) -> None:
    page = open_page(f"{alike}/inspect", width=width, height=height)
    expect(page.locator("#state")).to_have_text("Connected")
    for tab, least in (("Tools", 43), ("Resources", 3), ("Templates", 3)):
        page.get_by_role("tab", name=tab).click()
        expect(page.locator("#items [role=option]").first).to_be_visible()
        assert find_alike(page, "#items", least) == [], tab
    assert find_overflow(page) == []
    for typed, least in (("warehouse", 40), ("counter", 3)):
        page.keyboard.press("Escape")
        page.keyboard.press("Control+k")
        page.get_by_label("Command", exact=True).fill(typed)
        expect(page.locator("#palette-options")).to_contain_text(typed)
        assert find_alike(page, "#palette-options", least) == []
    page.goto(f"{alike}/docs#tools")
    if width < 500:
        page.get_by_role("button", name="All tools").click()
    expect(page.locator("#count")).to_have_text("40 tools")
    assert find_alike(page, "#index", 43) == []
    page.goto(f"{alike}/chat#playground")
    if width < 500:
        page.locator("#show-rooms").click()
    expect(page.locator("#tool-count")).to_have_text("40")
    assert find_alike(page, "#tools", 40, "li") == []


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_no_two_upstreams_or_calls_look_the_same(alike: str, open_page: OpenPage, width: int, height: int) -> None:
    with urlopen(f"{alike}/openapi.json", timeout=WAIT) as response:  # noqa: S310  loopback
        names = [each["post"]["operationId"] for each in json.load(response)["paths"].values()]
    for name in names:
        call(alike, name, {})
    page = open_page(f"{alike}/gateway#upstream=warehouse", width=width, height=height)
    expect(page.locator("#upstream-count")).to_have_text("3")
    assert find_alike(page, "#upstreams .scroll", 3, "tbody th") == []
    expect(page.locator("#tools li").first).to_be_visible()
    assert find_alike(page, "#tools", 14, "li") == []
    page.get_by_role("tab", name="Recent calls").click()
    expect(page.locator("#recent tbody th").first).to_be_visible()
    cells = page.locator("#recent tbody th").all_text_contents()
    assert len({*read_rows(page, "#recent .scroll", "tbody th")}) == len({*cells}) > 3


@pytest.mark.parametrize(("total", "width"), [(300, 390), (1222, 1440)])
def test_long_lists_have_no_two_items_that_look_the_same(
    tmp_path: Path, open_page: OpenPage, total: int, width: int
) -> None:
    port = free_port()
    with run_server(run_command(PROGRAM, port), port, tmp_path / "log", ALIKE=str(total)):
        page = open_page(f"http://127.0.0.1:{port}/inspect", width=width, height=900, fresh=True, lossy=True)
        expect(page.get_by_role("tab", name="Tools")).to_contain_text(f"{total}")
        page.get_by_label("Filter", exact=True).fill("the name says")
        assert find_alike(page, "#items", total) == []
        page.goto(f"http://127.0.0.1:{port}/docs")
        expect(page.locator("#count")).to_have_text(f"{total} tools")
        page.get_by_label("Find a tool").fill("the name says")
        assert find_alike(page, "#index", total) == []


def test_widened_list_shows_whole_names(alike: str, open_page: OpenPage) -> None:
    page = open_page(f"{alike}/inspect", width=1440, height=900)
    items = page.locator("#items")
    option = items.get_by_role("option", name="location 003").first
    expect(option.locator(".left-out").last).to_have_css("font-size", "0px")
    box = page.locator("#offers-pane").bounding_box()
    assert box
    corner = (box["x"] + box["width"] - 4, box["y"] + box["height"] - 4)
    page.mouse.move(*corner)
    page.mouse.down()
    page.mouse.move(corner[0] + 300, corner[1])
    page.mouse.up()
    expect(option.locator(".left-out").last).not_to_have_css("font-size", "0px")
    assert "projected inventory levels for location 003" in " ".join(read_rows(page, "#items"))


def test_items_with_equal_names_can_be_opened_and_linked(alike: str, open_page: OpenPage) -> None:
    page = open_page(f"{alike}/inspect", width=1440, height=900)
    page.get_by_role("tab", name="Resources").click()
    page.locator("#items [role=option]").nth(1).click()
    second = page.locator("#detail .sub").text_content()
    expect(page.locator("#items [aria-selected=true]")).to_contain_text(str(second))
    page.reload()
    expect(page.locator("#detail .sub")).to_have_text(str(second))
    expect(page.locator("#items [aria-selected=true]")).to_contain_text(str(second))
