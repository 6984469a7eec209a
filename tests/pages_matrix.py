"""Each page in each state: what is checked there, in each size and scheme, and what is left out and why.

A page is loaded once for a state, and stays what it is while its window and its scheme change. Tests take the pages of
a state from `pages_in`, so that a place in the table is either looked at or has its reason.
"""

from collections.abc import Callable

from playwright.sync_api import Page, ViewportSize

from pages_world import LAYOUTS, OUTSIDE, SIZES, axe, schemes
from property_settings import NIGHTLY

PAGES = ("connect", "inspect", "dashboard", "docs", "chat", "playground", "sign-in", "consent")
STATES = ("empty", "busy", "500 tools", "long texts", "right-to-left", "server gone", "server back")

_NO_SCRIPT = "It works without a script and has no connection: when its server is gone, the browser shows its own page."
_SENT_ONCE = "It has no connection: nothing comes in while somebody looks at it."
_NO_TOOLS = "It names no tool."
LEFT_OUT = {
    ("connect", "busy"): _SENT_ONCE,
    ("chat", "500 tools"): "It lists channels, people and messages; many of those are its busy state.",
    ("sign-in", "busy"): _SENT_ONCE,
    ("sign-in", "500 tools"): _NO_TOOLS,
    ("sign-in", "server gone"): _NO_SCRIPT,
    ("consent", "busy"): _SENT_ONCE,
    ("consent", "500 tools"): _NO_TOOLS,
    ("consent", "server gone"): _NO_SCRIPT,
}  # fmt: skip
"""(page, state) -> why nobody can meet them together."""

PRIMARY = {"inspect": "#items, .offers:has(#items[hidden])", "dashboard": ".details",
           "docs": "#index, .index:has(#index[hidden])", "chat": "#scroll", "playground": "#answers"}  # fmt: skip
"""The list that a page is about, or its place; the other pages are cards of their own height."""
_WITHOUT_PALETTE = {"sign-in", "consent", "call"}

_FAR = 40


def pages_in(state: str, *among: str) -> list[str]:
    """The pages that have a state, or those of them that are named."""
    assert state in STATES
    return [name for name in PAGES if (name, state) not in LEFT_OUT and name in (among or PAGES)]


def whole(page: Page, name: str, tool: str = "") -> list[str]:
    """What is wrong with a page as it is now: what lies outside of its box, what axe finds, a list that is too short,
    text that runs the wrong way, and a path that the keyboard alone doesn't go.

    Args:
        page: the page, in its state.
        name: which page it is.
        tool: what the keyboard looks for in the page's list; the page shows it from then on.
    """
    found: list[str] = []
    for width, height in SIZES:
        page.set_viewport_size(ViewportSize(width=width, height=height))
        for place, scheme in enumerate(schemes(width)):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            judged = axe(page, colors=place > 0) if width in LAYOUTS and (NIGHTLY or width > 800) else []
            found += [f"{name} {scheme} {width}: {each}" for each in [*judged, *page.evaluate(_WRONG)]]
    for width, height in reversed(SIZES):
        page.set_viewport_size(ViewportSize(width=width, height=height))
        here = [*_walk(page, name, tool), *_low(page, name, height)]
        found += [f"{name} {width}: {each}" for each in here]
    return found


# Text that begins with a letter of a script from right to left begins at the right. Sentences of the pages' own may
# hold such a name, so what counts is the first strong letter of a text of its own.
_BACKWARDS = r"""() => {
  const wrong = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = texts.nextNode());) {
    const first = text.data.match(/\p{L}/u)?.[0];
    if (!first || text.data.trim().length < 2 || !/\p{Script=Arabic}/u.test(first)) continue;
    if (!text.parentElement.checkVisibility()) continue;
    const { direction, unicodeBidi } = getComputedStyle(text.parentElement);
    const kept = text.parentElement.matches("bdi, code, span, strong") && unicodeBidi.includes("isolate");
    if (direction !== "rtl" && unicodeBidi !== "plaintext" && !kept) {
      wrong.push(`runs backwards: ${text.parentElement.outerHTML.slice(0, 160)}`);
    }
  }
  return wrong;
}"""
_WRONG = f"() => [...({OUTSIDE})(), ...({_BACKWARDS})()]"


def _low(page: Page, name: str, height: int) -> list[str]:
    """The primary list, if it has less than two fifths of the window's height."""
    if name not in PRIMARY:
        return []
    most = page.locator(PRIMARY[name]).evaluate_all(
        "(all) => Math.max(0, ...all.map((each) => each.getBoundingClientRect().height))"
    )
    return [] if most >= 0.4 * height else [f"the list has {most} of {height} pixels"]


# Keyboard only


class _Lost(Exception):
    """The keyboard didn't get where it should."""


def _at(page: Page, selector: str) -> None:
    """The focus is there, and can be seen."""
    seen = """(wanted) => {
      const node = document.activeElement;
      const { outlineStyle, boxShadow } = getComputedStyle(node);
      const says = `${node.tagName} #${node.id} .${node.className}`;
      return node.matches(wanted) ? (outlineStyle !== "none" || boxShadow !== "none" ? "" : `no ring: ${says}`) : says;
    }"""
    said = page.evaluate(seen, selector)
    if said:
        raise _Lost(f"the focus should be at {selector}: {said}")


def _tab_to(page: Page, selector: str) -> None:
    """Press Tab until the focus is there; soon."""
    for _ in range(_FAR):
        page.keyboard.press("Tab")
        if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
            return _at(page, selector)
    raise _Lost(f"{_FAR} steps of Tab don't lead to {selector}")


def _choose(page: Page, name: str, tool: str) -> None:
    """Find a tool in a list, and open it; a list without tools is passed."""
    page.keyboard.press("/")
    _at(page, "#filter")
    if not tool:
        return _tab_to(page, "#pane, #pane *, .activity *, .views *, #to-overview")
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(tool)
    page.keyboard.press("Enter")
    _at(page, "#pane")
    _tab_to(page, "#pane input, #pane textarea, #pane button:not(#back), #pane summary")
    return None


def _use_dashboard(page: Page, name: str, tool: str) -> None:
    """Find a tool, show it in the charts and no more, open the log and close it."""
    page.keyboard.press("/")
    _at(page, "#tool-filter")
    if tool:
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(tool)
        _tab_to(page, "#tools .row-name")
        for pressed in ("true", "false"):
            page.keyboard.press("Enter")
            _at(page, f"#tools .row-name[aria-pressed={pressed}]")
    else:
        _tab_to(page, "#log-toggle")
    for expanded in ("true", "false"):
        page.keyboard.press("l")
        if page.locator("#log-toggle").get_attribute("aria-expanded") != expanded:
            raise _Lost(f"the log isn't {'open' if expanded == 'true' else 'closed'}")
    page.locator("#tool-filter").fill("")


def _talk(page: Page, name: str, tool: str) -> None:
    """Come to the field for a message, to the button, and back to what was said."""
    page.keyboard.press("/")
    _at(page, "#text")
    page.keyboard.press("Tab")
    _at(page, "#send")
    for _ in range(2):
        page.keyboard.press("Shift+Tab")
    _at(page, "#scroll, #scroll *, #newer")


def _connect(page: Page, name: str, tool: str) -> None:
    """Choose a client, and reach what is copied for it."""
    _tab_to(page, "#clients [aria-selected=true]")
    for key, client in (("End", "terminal"), ("Home", "claude-code")):
        page.keyboard.press(key)
        _at(page, f"#tab-{client}[aria-selected=true]")
    _tab_to(page, "#steps button")


def _ask(page: Page, name: str, tool: str) -> None:
    """Come to the field for a question, and back to the answers."""
    page.keyboard.press("/")
    _at(page, "#question")
    for _ in range(2):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("() => document.activeElement.closest('#answers') !== null"):
            return
    raise _Lost("Shift+Tab doesn't lead from the question to the answers")


def _sign(page: Page, name: str, tool: str) -> None:
    """Through the form in its order, and no further than its end."""
    fields = page.locator("form :is(input:not([type=hidden]), button)").all() or page.locator("main a").all()
    for place, field in enumerate(fields):
        if place == 0:
            field.focus()
        else:
            page.keyboard.press("Tab")
        if not field.evaluate("node => node === document.activeElement"):
            raise _Lost(f"Tab passes {field.evaluate('node => node.outerHTML')}")
        _at(page, "*")


_PATHS: dict[str, Callable[[Page, str, str], None]] = {
    "inspect": _choose, "docs": _choose, "dashboard": _use_dashboard, "chat": _talk, "sign-in": _sign,
    "consent": _sign, "connect": _connect, "playground": _ask, "call": lambda page, name, tool: None,
}  # fmt: skip


def _walk(page: Page, name: str, tool: str) -> list[str]:
    """What a person without a mouse can't do here."""
    page.evaluate("document.activeElement.blur()")
    try:
        _PATHS[name](page, name, tool)
        if name not in _WITHOUT_PALETTE:
            page.keyboard.press("Control+k")
            _at(page, ".palette input")
            page.keyboard.press("Escape")
            if page.locator("dialog[open]").count():
                raise _Lost("the palette stays open")
    except _Lost as error:
        return [str(error)]
    finally:
        if name in ("inspect", "docs"):
            page.evaluate("document.getElementById('main').dataset.view = 'list'")
    return []
