import re

import pytest
from playwright.sync_api import Page, expect

from cases import for_each
from page_files import asset
from pages_world import OpenPage, call

pytestmark = pytest.mark.server

PAGES = ["dashboard", "chat", "inspect", "docs"]
READY = {"dashboard": "#uptime:not(:text-is('–'))", "chat": "#state:text-is('Live')",
         "inspect": "#state:text-is('Connected')", "docs": "#main:not(:has([aria-busy]))"}  # fmt: skip

NAMELESS = """() => [...document.querySelectorAll("input, select, textarea, button, a[href], canvas[role], dialog")]
  .filter((node) => node.checkVisibility())
  .filter((node) => !(node.getAttribute("aria-label")
    || (node.getAttribute("aria-labelledby") ?? "").split(" ").some((id) => document.getElementById(id)?.textContent)
    || [...(node.labels ?? [])].some((label) => label.textContent.trim())
    || (["BUTTON", "A"].includes(node.tagName) && node.textContent.trim())))
  .map((node) => node.outerHTML)"""

# A row of one scrolled inside a box of its own is not too wide; the page itself must not scroll sideways.
SIDEWAYS = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"

TWICE = """() => [...document.querySelectorAll("[id]")].map((node) => node.id)
  .filter((id, index, all) => all.indexOf(id) !== index)"""

DANGLING = """() => [...document.querySelectorAll("[aria-labelledby], [aria-describedby], label[for]")]
  .flatMap((node) => ["aria-labelledby", "aria-describedby", "for"]
    .flatMap((name) => (node.getAttribute(name) ?? "").split(" ").filter(Boolean)))
  .filter((id) => !document.getElementById(id))"""

# What scrolls, and neither takes the focus nor holds anything that does.
UNREACHABLE = """() => [...document.querySelectorAll("body *")]
  .filter((node) => node.checkVisibility() && !["SELECT", "TEXTAREA", "INPUT"].includes(node.tagName))
  .filter((node) => {
    const { overflowX, overflowY } = getComputedStyle(node);
    return (node.scrollWidth > node.clientWidth + 12 && ["auto", "scroll"].includes(overflowX))
      || (node.scrollHeight > node.clientHeight + 12 && ["auto", "scroll"].includes(overflowY));
  })
  .filter((node) => node.tabIndex < 0 && ![...node.querySelectorAll("*")].some((child) => child.tabIndex >= 0))
  .map((node) => node.outerHTML.slice(0, 120))"""


def opened(hub: str, open_page: OpenPage, name: str, **options: object) -> Page:
    """A page with something on it."""
    call(hub, "add_numbers", {"a": 1, "b": 2})
    page: Page = open_page(f"{hub}/{name}", name="Ada", **options)
    page.locator(READY[name]).wait_for()
    return page


@pytest.mark.parametrize("name", PAGES)
def test_every_element_has_an_accessible_name(hub: str, open_page: OpenPage, name: str) -> None:
    page = opened(hub, open_page, name)
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(TWICE) == []
    assert page.evaluate(DANGLING) == []
    assert page.locator("html").get_attribute("lang") == "en"
    for role, count in (("banner", 1), ("main", 1), ("heading", None)):
        found = page.get_by_role(role, **({"level": 1} if role == "heading" else {})).count()  # type: ignore[arg-type]
        assert found == (count or 1), role
    assert page.get_by_role("navigation", name="Pages").count() == 1


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_scrollable_regions_are_reachable_by_keyboard(hub: str, open_page: OpenPage, name: str, width: int) -> None:
    page = opened(hub, open_page, name, width=width, height=640)
    page.evaluate("document.querySelectorAll('details').forEach((node) => (node.open = true))")
    assert page.evaluate(UNREACHABLE) == []


@pytest.mark.parametrize("name", PAGES)
def test_first_tab_stop_skips_the_navigation(hub: str, open_page: OpenPage, name: str) -> None:
    page = opened(hub, open_page, name)
    page.evaluate("document.activeElement.blur()")
    page.locator(".mark").click()
    page.evaluate("document.querySelector('.skip').focus()")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    skip = page.locator(".skip")
    expect(skip).to_be_focused()
    assert skip.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == (skip.get_attribute("href") or "")[1:]


@pytest.mark.parametrize("name", PAGES)
def test_phones_need_no_horizontal_scrolling(hub: str, open_page: OpenPage, name: str) -> None:
    page = opened(hub, open_page, name, width=360)
    assert page.evaluate(SIDEWAYS) <= 0


# Contrast of the variables, computed as WCAG 2.2 defines it

Color = tuple[float, float, float]


def variables(dark: bool) -> dict[str, str]:
    """The color variables of one scheme."""
    text = asset("/assets/tokens.css").body.decode()
    return {name: pair[dark] for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\);", text)}


def over(text: str, ground: Color) -> Color:
    """A color as it looks on a ground, through its transparency."""
    red, green, blue, alpha = (int((text[1:] + "ff")[at : at + 2], 16) / 255 for at in (0, 2, 4, 6))
    return tuple(alpha * own + (1 - alpha) * below for own, below in zip((red, green, blue), ground, strict=True))  # type: ignore[return-value]


def luminance(color: Color) -> float:
    """Relative luminance."""
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Color, other: Color) -> float:
    """The ratio of two colors."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@for_each("dark", [False, True], ids=["light", "dark"])
def test_text_has_enough_contrast(dark: bool) -> None:
    named = variables(dark)
    opaque = {name: over(named[name], (1.0, 1.0, 1.0)) for name in ("ground", "surface", "sunken")}
    tinted = {name: over(named[name], opaque["surface"]) for name in ("accent-soft", "bad-soft")}
    pairs = [
        *((ink, ground) for ink in ("text", "text-soft", "accent", "bad") for ground in opaque),
        *((ink, ground) for ink in ("good", "warn") for ground in ("surface", "sunken")),
        ("accent", "accent-soft"), ("text", "accent-soft"), ("text", "bad-soft"), ("bad", "bad-soft"),
        ("text-soft", "bad-soft"),
    ]  # fmt: skip
    grounds = opaque | tinted
    low = {(ink, ground): contrast(over(named[ink], grounds[ground]), grounds[ground]) for ink, ground in pairs}
    accent = over(named["accent"], opaque["surface"])
    low["accent-text", "accent"] = contrast(over(named["accent-text"], accent), accent)
    assert {pair: round(ratio, 2) for pair, ratio in low.items() if ratio < 4.5} == {}
    assert contrast(over(named["line-strong"], opaque["surface"]), opaque["surface"]) >= 3


@pytest.mark.parametrize("name", PAGES)
def test_pages_carry_their_content_security_policy(hub: str, open_page: OpenPage, name: str) -> None:
    page = opened(hub, open_page, name)
    reply = page.request.get(page.url)
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|https?://", reply.text())
