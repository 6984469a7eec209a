"""Helpers for the tests of the pages: shared browser pages, layout checks, and direct calls to the server."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from playwright.sync_api import Browser, ConsoleMessage, Error, Locator, Page, ViewportSize, expect

from patience import WAIT
from property_settings import NIGHTLY

OpenPage = Callable[..., Page]
"""``open_page(url, name="", lossy=False, fresh=False, **options of the context)``, a fixture."""

EXPECTED_ERRORS = re.compile(
    r"Failed to load resource: net::ERR_|status of (40[01349]|426|50[23])|"
    r"^WebSocket connection to .+ failed: .*(ERR_|426|502)"
)
"""Chromium's console messages for dropped connections, WebSockets behind a proxy that can't have them, unknown
sessions, missing keys, wrong passwords, wrong links, and failing tools."""

_BLANK = "/assets/mark.svg"
"""A file without scripts that each server with pages has."""
_WATCH = """
document.addEventListener("securitypolicyviolation", (event) => {
  violated(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


class PagePool:
    """A pool of browser pages, each in its own context within a test.

    Tests reuse pages with their process and HTTP cache, but with cleared storage. This saves three quarters of the time
    to open a page. `lossy` pages, whose connections break, are reused only by lossy tests. `fresh` pages aren't reused:
    use them for tests that modify the page itself, and for servers without pages.
    """

    def __init__(self) -> None:
        self._browser: Browser | None = None
        self._free: dict[str, list[Page]] = {}
        # State of the current test
        self._opened: list[tuple[Page, str, bool]] = []
        self._messages: dict[Page, list[str]] = {}

    def begin(self, browser: Browser) -> None:
        """Start a test with a browser."""
        if browser is not self._browser:
            self._browser = browser
            self._free.clear()
        self._opened.clear()
        self._messages.clear()

    def open(
        self,
        url: str,
        *,
        name: str = "",
        lossy: bool = False,
        fresh: bool = False,
        width: int = 1280,
        height: int = 860,
        **options: Any,
    ) -> Page:
        """Open `url` in a page. `name` is the user's name in the chat."""
        key = "" if fresh else json.dumps([options, lossy])
        free = self._free.setdefault(key, [])
        page = free.pop() if free and not fresh else self._new(options)
        self._opened.append((page, key, lossy))
        page.set_viewport_size(ViewportSize(width=width, height=height))
        page.emulate_media(color_scheme=options.get("color_scheme", "light"), reduced_motion="no-preference")
        if fresh and name:
            page.add_init_script(f"localStorage.setItem('millstream.name', JSON.stringify({name!r}))")
        elif name or page.url != "about:blank":
            _clear_page(page, url, name)
        self._messages[page] = []
        page.goto(url)
        return page

    def _new(self, options: dict[str, Any]) -> Page:
        assert self._browser is not None
        context = self._browser.new_context(locale="en-GB", **options)
        context.set_default_timeout(WAIT * 1000)

        def violated(source: dict[str, Any], text: str) -> None:
            self._record(source["page"], text)

        context.expose_binding("violated", violated)  # pyright: ignore[reportUnknownMemberType]
        context.add_init_script(_WATCH)
        page = context.new_page()
        page.on("console", lambda each: self._log(page, each))
        page.on("pageerror", lambda error: self._record(page, str(error)))
        return page

    def _log(self, page: Page, message: ConsoleMessage) -> None:
        """Record errors and warnings, except for the blank file, whose missing icon Chromium requests late."""
        if message.type in {"error", "warning"} and not page.url.endswith(_BLANK):
            self._record(page, message.text)

    def _record(self, page: Page, text: str) -> None:
        self._messages.get(page, []).append(text)

    def end(self) -> list[str]:
        """End the test, and return its pages' errors, except `EXPECTED_ERRORS` on lossy pages."""
        complaints: list[str] = []
        for page, key, lossy in self._opened:
            said = [text for text in self._messages.pop(page) if not (lossy and EXPECTED_ERRORS.search(text))]
            complaints += said
            well = key and not said and not page.is_closed() and len(page.context.pages) == 1
            if well and _clear_page(page, page.url):
                page.mouse.move(0, 0)
                self._free[key].append(page)
            else:
                page.context.close()
        return complaints


def _clear_page(page: Page, url: str, name: str = "") -> bool:
    """Open the blank file of the server, clear the storage, and store the chat `name`.

    Return False if the server is unreachable.
    """
    parts = urlsplit(url)
    blank = f"{parts.scheme}://{parts.netloc}{_BLANK}"
    try:
        if page.url != blank:  # the page of an earlier test
            page.goto(blank)
    except Error:
        return False
    page.evaluate("localStorage.clear(); sessionStorage.clear()")
    page.context.clear_cookies()
    if name:
        page.evaluate("(name) => localStorage.setItem('millstream.name', JSON.stringify(name))", name)
    return True


def press(button: Locator) -> None:
    """Press a button that's disabled until it has been in view for a moment. A click by Playwright may scroll it."""
    button.scroll_into_view_if_needed()
    expect(button).to_be_enabled()
    button.press("Enter")


_COUNT = re.compile(r"mcp_server_operation_duration_seconds_count\{(.*)\} (\d+)")


def call(address: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a tool with the HTTP API of the seeds."""
    body = json.dumps({"name": tool, "arguments": arguments}).encode()
    request = Request(f"{address}/mcp/tools/call", body, {"content-type": "application/json"})  # noqa: S310  loopback
    with urlopen(request, timeout=WAIT) as response:  # noqa: S310
        return dict(json.load(response))


def count_calls(address: str, tool: str = "") -> int:
    """Count calls in `/metrics` like the dashboard: all except subscriptions, or those of one tool."""
    with urlopen(f"{address}/metrics", timeout=WAIT) as response:  # noqa: S310
        text = response.read().decode()
    wanted = f'gen_ai_tool_name="{tool}"' if tool else ""
    found = [(labels, int(count)) for labels, count in _COUNT.findall(text) if wanted in labels]
    return sum(count for labels, count in found if '"subscriptions/listen"' not in labels)


_AXE = Path(__file__).parents[1] / "pages" / "node_modules" / "axe-core" / "axe.min.js"
# Wait for finite animations: a dialog that fades in has less contrast.
_RUN = """async (colors) => {
  if (!("axe" in window)) return null;
  const ends = (each) => each.playState === "running" && Number.isFinite(each.effect.getComputedTiming().endTime);
  for (let moving; (moving = document.getAnimations().filter(ends)).length;) {
    await Promise.allSettled(moving.map((each) => each.finished));
  }
  const ofColors = {runOnly: {type: "rule", values: ["color-contrast", "link-in-text-block"]}};
  const rules = colors ? ofColors : {preload: {assets: ["media"]}};
  return (await axe.run(document, {resultTypes: ["violations"], ...rules})).violations
  .flatMap(({id, nodes}) => nodes.map(({html}) => `${id}: ${html.slice(0, 160)}`));
}"""


def run_axe(page: Page, *, colors: bool = False) -> list[str]:
    """Return axe's accessibility violations on the page, for all rules or only those about `colors`.

    Colors are all that another scheme changes (`test_schemes_change_only_colors`).
    """
    assert _AXE.exists(), "axe is missing. Run: make tests/pages/node_modules/.package-lock.json"
    found = page.evaluate(_RUN, colors)
    if found is None:
        page.evaluate(_AXE.read_text("utf-8"))
        found = page.evaluate(_RUN, colors)
    return list(found)


# Elements that may scroll sideways are skipped, and text that ends in an ellipsis.
OUTSIDE = """() => {
  const sideways = "pre, textarea, .tabs, .scroll, .bar nav";
  const style = (node) => getComputedStyle(node);
  const describe = (node) =>
    `${node.tagName.toLowerCase()}#${node.id}.${node.className}: ${node.textContent.slice(0, 60)}`;
  const wrong = [];
  for (const node of document.querySelectorAll("body *")) {
    if (node.closest("svg, option, .visually-hidden, .skip") || !node.checkVisibility()) continue;
    const box = node.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    if (["auto", "scroll"].includes(style(node).overflowX) && node.scrollWidth > node.clientWidth + 1
      && !node.matches(sideways)) wrong.push(`scrolls sideways: ${describe(node)}`);
    let frame = node.parentElement;
    while (frame && style(frame).overflowX === "visible" && style(frame).position !== "fixed") {
      frame = frame.parentElement;
    }
    const card = node.parentElement.closest(".card, .tile, .bubble, .badge, button, dialog");
    if (card && !card.contains(frame) && !["absolute", "fixed"].includes(style(node).position)) {
      const edge = card.getBoundingClientRect();
      if (box.left < edge.left - 1 || box.right > edge.right + 1) wrong.push(`outside of its card: ${describe(node)}`);
    }
    if (frame && (frame.matches(sideways) || style(frame).textOverflow === "ellipsis")) continue;
    const holds = frame && style(frame).overflowX !== "visible";
    const bounds = holds ? frame.getBoundingClientRect() : {left: 0, right: innerWidth};
    if (box.left < bounds.left - 1 || box.right > bounds.right + 1) wrong.push(`outside: ${describe(node)}`);
  }
  if (document.documentElement.scrollWidth > innerWidth) wrong.push("the page scrolls sideways");
  if (document.body.matches(".filled") && document.documentElement.scrollHeight > innerHeight)
    wrong.push("the page scrolls, but only its parts should");
  return wrong;
}"""


def find_overflow(page: Page) -> list[str]:
    """Return elements that overflow their container."""
    return list(page.evaluate(OUTSIDE))


SIZES = [(1280, 720), (390, 844), *([(1440, 900)] if NIGHTLY else [])]
"""Laptop, phone, and in nightly runs, desktop."""
LAYOUTS = frozenset({1280, 390})
"""Widths that axe checks: `test_desktop_and_laptop_layouts_differ_only_in_height`."""
Scheme = Literal["dark", "light"]


def schemes(width: int) -> tuple[Scheme, ...]:
    """Return the color schemes to check at a width: both in nightly runs, otherwise one that depends on the width."""
    if NIGHTLY:
        return ("dark", "light")
    return ("dark",) if width > 800 else ("light",)


def find_layout_problems(page: Page) -> list[str]:
    """Return overflowing elements and axe's violations in each size and scheme, without reloading the page."""
    found: list[str] = []
    for width, height in reversed(SIZES):  # end with the laptop's size
        page.set_viewport_size(ViewportSize(width=width, height=height))
        for place, scheme in enumerate(schemes(width)):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            if width in LAYOUTS:
                found += [f"{scheme} {width}: {each}" for each in run_axe(page, colors=place > 0)]
        found += [f"{width}: {each}" for each in find_overflow(page)]
    return found
