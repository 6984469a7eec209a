from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, ViewportSize, expect

from pages_world import OpenPage, run_axe
from site_world import build_site, serve_folder

pytestmark = pytest.mark.server

SHOWN = [
    "", "tutorial/", "guides/tools/", "guides/gateway/", "guides/sets/", "recipes/nginx/", "examples/", "comparison/",
    "reference/settings/", "reference/gateway/", "reference/gateway-rules/", "reference/hub/", "explanation/eras/",
    "modules/millstream.testing/", "modules/millstream.compat/", "contents/", "404.html",
]  # fmt: skip
"""The home page, and pages of each kind: with wide tables, tables without headings, long code, notes, and diagrams."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the built site."""
    with serve_folder(build_site(tmp_path_factory)) as url:
        yield url


def opened(open_page: OpenPage, url: str, width: int, scheme: str) -> Page:
    """A page of the site, with its diagrams drawn."""
    page: Page = open_page(url, width=width, height=900, color_scheme=scheme, fresh=True)
    for diagram in page.locator(".diagram").all():
        expect(diagram.locator("svg")).to_be_visible()
    return page


@pytest.mark.parametrize("name", SHOWN)
def test_pages_pass_axe_and_need_no_horizontal_scrolling(site: str, open_page: OpenPage, name: str) -> None:
    page = opened(open_page, f"{site}/{name}", 390, "light")
    for width, scheme in ((390, "light"), (1440, "light"), (1440, "dark")):
        page.set_viewport_size(ViewportSize(width=width, height=900))
        if scheme == "dark":
            page.get_by_title("Switch to dark mode").click()
            expect(page.locator("body")).to_have_attribute("data-md-color-scheme", "slate")
            for diagram in page.locator(".diagram").all():
                expect(diagram).to_have_attribute("data-drawn", "slate")
        assert run_axe(page, colors=scheme == "dark") == [], (width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (width, scheme)


def test_site_sends_requests_to_no_other_host(site: str, open_page: OpenPage) -> None:
    page = open_page(site, fresh=True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for name in SHOWN:
        page.goto(f"{site}/{name}")
        for diagram in page.locator(".diagram").all():
            expect(diagram.locator("svg")).to_be_visible()
    assert any("mermaid" in url for url in asked)
    assert [url for url in asked if not url.startswith((f"{site}/", "data:", "blob:"))] == []


def test_diagrams_follow_the_color_scheme(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, f"{site}/explanation/eras/", 1440, "light")
    text = page.locator(".diagram svg text").first
    before = text.evaluate("node => getComputedStyle(node).fill")
    page.get_by_title("Switch to dark mode").click()
    expect(page.locator(".diagram").first).to_have_attribute("data-drawn", "slate")
    assert page.locator(".diagram svg text").first.evaluate("node => getComputedStyle(node).fill") != before


def test_pages_use_our_fonts(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, site, 1440, "light")
    page.evaluate("document.fonts.ready")
    loaded = page.evaluate("[...document.fonts].filter((font) => font.status === 'loaded').map((font) => font.family)")
    assert {name.strip('"') for name in loaded} == {"Inter Variable", "Geist Mono Variable"}
    assert "Inter Variable" in page.evaluate("getComputedStyle(document.body).fontFamily")


def test_search_opens_a_page(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, site, 1440, "light")
    page.get_by_role("textbox", name="Search").fill("middleware")
    expect(page.locator(".md-search-result__item").first).to_be_visible()
    assert run_axe(page) == []
    page.locator(".md-search-result__item a").first.click()
    expect(page.locator("h1").first).to_contain_text("iddleware")


# Results that show more than a title and the text after it.
LONG_RESULTS = """() => [...document.querySelectorAll(".md-search-result__article")].map((article) =>
  [...article.children].filter((each) => each.matches("p, ul, ol, pre, table") && each.checkVisibility()).length)
  .filter((texts) => texts > 1)"""


def test_search_results_are_short(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, site, 1440, "light")
    page.get_by_role("textbox", name="Search").fill("timeout")
    expect(page.locator(".md-search-result__article ul").first).to_be_attached()
    assert page.evaluate(LONG_RESULTS) == []


# Cells whose end a reader would have to scroll to.
HIDDEN_CELLS = """() => [...document.querySelectorAll("td[data-label]:last-child")].filter(
  (cell) => cell.getBoundingClientRect().right > innerWidth).length"""


@pytest.mark.parametrize("name", ["reference/settings/", "reference/gateway-rules/", "reference/errors/"])
def test_tables_of_options_fit_a_phone(site: str, open_page: OpenPage, name: str) -> None:
    page = opened(open_page, f"{site}/{name}", 390, "light")
    assert page.locator("td[data-label]").count() > 20
    assert page.evaluate(HIDDEN_CELLS) == 0


def test_unknown_addresses_lead_to_the_search(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, f"{site}/404.html", 390, "light")
    assert page.locator("main a, article a").count() >= 3
    page.get_by_role("searchbox", name="Words to search for").fill("middleware")
    page.get_by_role("button", name="Search", exact=True).last.click()
    expect(page.locator(".md-search-result__item").first).to_be_visible()


def test_home_page_has_seven_links(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, site, 1440, "light")
    assert page.locator(".home a:visible").count() == 7


def test_menu_has_nine_groups_that_fold(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, f"{site}/guides/tools/", 1440, "light")
    menu = page.locator(".md-nav--primary .md-nav__item--active > .md-nav > .md-nav__list > .md-nav__item--nested")
    assert menu.count() == 9
    assert [menu.locator(f"> nav[aria-expanded={each}]").count() for each in ("true", "false")] == [1, 8]


def test_links_of_a_group_stay_in_its_column_on_the_page_of_all_pages(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, f"{site}/contents/", 1440, "light")
    lists = page.locator(".contents .columns ul")
    assert lists.count() > 10
    assert lists.evaluate_all("lists => lists.filter(each => each.getClientRects().length > 1).length") == 0


def test_notes_have_the_colors_of_the_pages(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, f"{site}/guides/gateway/", 1440, "dark")
    warning = page.locator(".admonition.warning").first
    ends = warning.evaluate("""(note) => {
      const [side, top] = [getComputedStyle(note).borderInlineStartColor, getComputedStyle(note).borderTopColor];
      note.style.color = "var(--warn)";
      const { backgroundColor } = getComputedStyle(note.querySelector(".admonition-title"));
      return [side === getComputedStyle(note).color, top === side, backgroundColor];
    }""")
    assert ends == [True, False, "rgba(0, 0, 0, 0)"]


def test_home_page_replays_the_inspector(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, site, 1440, "dark")
    page.get_by_role("button", name="Try it here").click()
    frame = page.frame_locator("#inspector iframe")
    expect(frame.locator("#state")).to_have_text("Connected")
    assert frame.locator("html").get_attribute("data-theme") == "dark"
    frame.get_by_role("button", name="Run", exact=True).click()
    expect(frame.locator("#detail")).to_contain_text("J. R. R. Tolkien")
    frame.locator("#items [role=option]", has_text="order").click()
    frame.locator("#detail textarea").first.fill("9780141439600")
    frame.locator("#detail input").first.fill("3")
    frame.get_by_role("button", name="Run", exact=True).click()
    frame.get_by_label("street").fill("Mill Lane 1")
    frame.get_by_label("city").fill("York")
    frame.get_by_role("button", name="Accept").click()
    expect(frame.locator("#detail")).to_contain_text("ordered: 3")
    frame.locator("#detail input").first.fill("99")
    frame.get_by_role("button", name="Run", exact=True).click()
    expect(frame.locator("#detail")).to_contain_text("This page replays a recording")
