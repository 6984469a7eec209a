"""What the tests of the pages share: calls and figures of a running server, past the browser."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from playwright.sync_api import Browser, ConsoleMessage, Error, Page, ViewportSize

from patience import WAIT
from property_settings import NIGHTLY

OpenPage = Callable[..., Page]
"""``open_page(url, name="", lossy=False, fresh=False, **options of the context)``, a fixture."""

LOST = re.compile(
    r"Failed to load resource: net::ERR_|status of (40[01349]|50[23])|^WebSocket connection to .+ failed: .*ERR_"
)
"""What Chromium itself says of a connection that a test cuts, an unknown session, a missing key, a wrong password, a
wrong link, a tool that fails."""

_BLANK = "/assets/mark.svg"
"""A file of every server with pages, on which no script runs."""
_WATCH = """
document.addEventListener("securitypolicyviolation", (event) => {
  violated(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


class Visits:
    """Pages of one browser, each in a context that no other page of the same test is in.

    A later test gets the page of an earlier one, in the same process and with the files in its cache, but without
    anything else that was kept there: that spares three quarters of the work of opening a page. A page that is `lossy`
    goes only to a test that is lossy, too. One that is `fresh` has nothing, and nobody gets it later: for what a test
    does to the page itself, and for servers without pages.
    """

    def __init__(self) -> None:
        self._browser: Browser | None = None
        self._free: dict[str, list[Page]] = {}
        # The test of now
        self._opened: list[tuple[Page, str, bool]] = []
        self._said: dict[Page, list[str]] = {}

    def begin(self, browser: Browser) -> None:
        """Another test begins, with this browser."""
        if browser is not self._browser:
            self._browser = browser
            self._free.clear()
        self._opened.clear()
        self._said.clear()

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
        """A page that shows `url`, to a person who is called `name` in the chat."""
        key = "" if fresh else json.dumps([options, lossy])
        free = self._free.setdefault(key, [])
        page = free.pop() if free and not fresh else self._new(options)
        self._opened.append((page, key, lossy))
        page.set_viewport_size(ViewportSize(width=width, height=height))
        page.emulate_media(color_scheme=options.get("color_scheme", "light"), reduced_motion="no-preference")
        if fresh and name:
            page.add_init_script(f"localStorage.setItem('millstream.name', {name!r})")
        elif name or page.url != "about:blank":
            _cleared(page, url, name)
        self._said[page] = []
        page.goto(url)
        return page

    def _new(self, options: dict[str, Any]) -> Page:
        assert self._browser is not None
        context = self._browser.new_context(locale="en-GB", **options)
        context.set_default_timeout(WAIT * 1000)

        def violated(source: dict[str, Any], text: str) -> None:
            self._hear(source["page"], text)

        context.expose_binding("violated", violated)  # pyright: ignore[reportUnknownMemberType]
        context.add_init_script(_WATCH)
        page = context.new_page()
        page.on("console", lambda each: self._log(page, each))
        page.on("pageerror", lambda error: self._hear(page, str(error)))
        return page

    def _log(self, page: Page, message: ConsoleMessage) -> None:
        """Note what went wrong on a page. For the file on which a page is cleared, which can't name an icon, Chromium
        looks for one: it may hear as late as on the way to the next page that there's none.
        """
        if message.type in {"error", "warning"} and not page.url.endswith(_BLANK):
            self._hear(page, message.text)

    def _hear(self, page: Page, text: str) -> None:
        self._said.get(page, []).append(text)

    def end(self) -> list[str]:
        """The test is over: what its pages complained of, but for `LOST` where it cut their connections."""
        complaints: list[str] = []
        for page, key, lossy in self._opened:
            said = [text for text in self._said.pop(page) if not (lossy and LOST.search(text))]
            complaints += said
            well = key and not said and not page.is_closed() and len(page.context.pages) == 1
            if well and _cleared(page, page.url):
                page.mouse.move(0, 0)
                self._free[key].append(page)
            else:
                page.context.close()
        return complaints


def _cleared(page: Page, url: str, name: str = "") -> bool:
    """Go to a file of a server, where no script runs, and remove what its pages have kept; `name` is known there.

    False if the server of the test is gone.
    """
    parts = urlsplit(url)
    blank = f"{parts.scheme}://{parts.netloc}{_BLANK}"
    try:
        if page.url != blank:  # as another test has left it
            page.goto(blank)
    except Error:
        return False
    page.evaluate("localStorage.clear(); sessionStorage.clear()")
    page.context.clear_cookies()
    if name:
        page.evaluate("(name) => localStorage.setItem('millstream.name', name)", name)
    return True


_COUNT = re.compile(r"mcp_server_operation_duration_seconds_count\{(.*)\} (\d+)")


def call(address: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a tool in the dialect of the seeds."""
    body = json.dumps({"name": tool, "arguments": arguments}).encode()
    request = Request(f"{address}/mcp/tools/call", body, {"content-type": "application/json"})  # noqa: S310  loopback
    with urlopen(request, timeout=WAIT) as response:  # noqa: S310
        return dict(json.load(response))


def counted(address: str, tool: str = "") -> int:
    """Calls by `/metrics`, as the dashboard counts them: all but subscriptions, or those of one tool."""
    with urlopen(f"{address}/metrics", timeout=WAIT) as response:  # noqa: S310
        text = response.read().decode()
    wanted = f'gen_ai_tool_name="{tool}"' if tool else ""
    found = [(labels, int(count)) for labels, count in _COUNT.findall(text) if wanted in labels]
    return sum(count for labels, count in found if '"subscriptions/listen"' not in labels)


_AXE = Path(__file__).parent / "pages" / "node_modules" / "axe-core" / "axe.min.js"
# A dialog that still fades in has another contrast than the dialog has, so what ends by itself is waited for.
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


def axe(page: Page, *, colors: bool = False) -> list[str]:
    """What keeps people from using the page as it is now, by axe with all its rules, or with those about `colors`: all
    that another scheme changes (`test_schemes_change_only_colors`).
    """
    assert _AXE.exists(), "These tests need axe: make tests/pages/node_modules/.package-lock.json."
    found = page.evaluate(_RUN, colors)
    if found is None:
        page.evaluate(_AXE.read_text("utf-8"))
        found = page.evaluate(_RUN, colors)
    return list(found)


# What is meant to scroll sideways, and what ends in dots.
OUTSIDE = """() => {
  const sideways = "pre, textarea, .tabs, .scroll, .bar nav";
  const style = (node) => getComputedStyle(node);
  const told = (node) => `${node.tagName.toLowerCase()}#${node.id}.${node.className}: ${node.textContent.slice(0, 60)}`;
  const wrong = [];
  for (const node of document.querySelectorAll("body *")) {
    if (node.closest("svg, option, .visually-hidden, .skip") || !node.checkVisibility()) continue;
    const box = node.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    if (["auto", "scroll"].includes(style(node).overflowX) && node.scrollWidth > node.clientWidth + 1
      && !node.matches(sideways)) wrong.push(`scrolls sideways: ${told(node)}`);
    let frame = node.parentElement;
    while (frame && style(frame).overflowX === "visible" && style(frame).position !== "fixed") {
      frame = frame.parentElement;
    }
    const card = node.parentElement.closest(".card, .tile, .bubble, .badge, button, dialog");
    if (card && !card.contains(frame) && !["absolute", "fixed"].includes(style(node).position)) {
      const edge = card.getBoundingClientRect();
      if (box.left < edge.left - 1 || box.right > edge.right + 1) wrong.push(`outside of its card: ${told(node)}`);
    }
    if (frame && (frame.matches(sideways) || style(frame).textOverflow === "ellipsis")) continue;
    const holds = frame && style(frame).overflowX !== "visible";
    const bounds = holds ? frame.getBoundingClientRect() : {left: 0, right: innerWidth};
    if (box.left < bounds.left - 1 || box.right > bounds.right + 1) wrong.push(`outside: ${told(node)}`);
  }
  if (document.documentElement.scrollWidth > innerWidth) wrong.push("the page scrolls sideways");
  return wrong;
}"""


def outside(page: Page) -> list[str]:
    """Elements that lie outside of the box that should hold them, as the page is now."""
    return list(page.evaluate(OUTSIDE))


SIZES = [(1280, 720), (390, 844), *([(1440, 900)] if NIGHTLY else [])]
"""Windows of a laptop, of a phone, and by night of a desktop."""
LAYOUTS = frozenset({1280, 390})
"""Widths that axe checks: `test_desktop_and_laptop_layouts_differ_only_in_height`."""
Scheme = Literal["dark", "light"]


def schemes(width: int) -> tuple[Scheme, ...]:
    """Return the color schemes to check at a width: by day one, another one for phones than for laptops."""
    if NIGHTLY:
        return ("dark", "light")
    return ("dark",) if width > 800 else ("light",)


def fits(page: Page) -> list[str]:
    """Return what axe and `outside` find in each size and scheme, without loading the page again."""
    found: list[str] = []
    for width, height in reversed(SIZES):  # the page stays as a laptop has it
        page.set_viewport_size(ViewportSize(width=width, height=height))
        for place, scheme in enumerate(schemes(width)):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            if width in LAYOUTS:
                found += [f"{scheme} {width}: {each}" for each in axe(page, colors=place > 0)]
        found += [f"{width}: {each}" for each in outside(page)]
    return found
