"""Checks of each page in each state, in each size and color scheme, and exclusions with reasons.

A page is loaded once per state and isn't reloaded when its size or scheme changes. Tests take the pages of a state from
`pages_in`, so each combination is either checked or excluded with a reason.
"""

from collections.abc import Callable

from playwright.sync_api import Page, ViewportSize

from pages_world import LAYOUTS, OUTSIDE, SIZES, run_axe, schemes
from property_settings import NIGHTLY

PAGES = ("connect", "inspect", "dashboard", "docs", "chat", "playground", "sign-in", "consent")
STATES = ("empty", "busy", "500 tools", "long texts", "right-to-left", "server gone", "server back")

_NO_SCRIPT = "It needs no script and has no connection: without its server, the browser shows an error page."
_SENT_ONCE = "It has no connection, so it receives no updates."
_NO_TOOLS = "It shows no tools."
LEFT_OUT = {
    ("connect", "busy"): _SENT_ONCE,
    ("chat", "500 tools"): "It lists channels, people, and messages; many of those are its busy state.",
    ("sign-in", "busy"): _SENT_ONCE,
    ("sign-in", "500 tools"): _NO_TOOLS,
    ("sign-in", "server gone"): _NO_SCRIPT,
    ("consent", "busy"): _SENT_ONCE,
    ("consent", "500 tools"): _NO_TOOLS,
    ("consent", "server gone"): _NO_SCRIPT,
}  # fmt: skip
"""(page, state) -> why the combination doesn't exist."""

PRIMARY = {"inspect": "#items, .offers:has(#items[hidden])", "dashboard": ".details",
           "docs": "#index, .index:has(#index[hidden])", "chat": "#scroll", "playground": "#answers"}  # fmt: skip
"""Selector of a page's main list or its placeholder. Other pages are cards with their own height."""
_WITHOUT_PALETTE = {"sign-in", "consent", "call"}

_MAX_TABS = 40


def pages_in(state: str, *among: str) -> list[str]:
    """Return the pages with a state, optionally only those `among` some names."""
    assert state in STATES
    return [name for name in PAGES if (name, state) not in LEFT_OUT and name in (among or PAGES)]


def find_problems(page: Page, name: str, tool: str = "") -> list[str]:
    """Return a page's problems: overflow, axe's violations, a short main list, wrong text direction, and failures of
    keyboard navigation.

    Args:
        page: the page, in its state.
        name: the name of the page.
        tool: a tool to find with the keyboard in the page's list. The page shows it afterward.
    """
    found: list[str] = []
    for width, height in SIZES:
        page.set_viewport_size(ViewportSize(width=width, height=height))
        for place, scheme in enumerate(schemes(width)):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            judged = run_axe(page, colors=place > 0) if width in LAYOUTS and (NIGHTLY or width > 800) else []
            found += [f"{name} {scheme} {width}: {each}" for each in [*judged, *page.evaluate(_WRONG)]]
    for width, height in reversed(SIZES):
        page.set_viewport_size(ViewportSize(width=width, height=height))
        here = [*_find_keyboard_problems(page, name, tool), *_find_short_list(page, name, height)]
        found += [f"{name} {width}: {each}" for each in here]
    return found


# Text that starts with a right-to-left letter must be aligned right. The pages' own sentences may contain such names,
# so only the first strong letter of each text node counts.
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


def _find_short_list(page: Page, name: str, height: int) -> list[str]:
    """Return a problem if the main list has less than 40% of the window's height."""
    if name not in PRIMARY:
        return []
    most = page.locator(PRIMARY[name]).evaluate_all(
        "(all) => Math.max(0, ...all.map((each) => each.getBoundingClientRect().height))"
    )
    return [] if most >= 0.4 * height else [f"the main list is {most} of {height} pixels high"]


# Keyboard navigation


class _FocusError(Exception):
    """Raised if the keyboard focus isn't where it should be."""


def _assert_focus(page: Page, selector: str) -> None:
    """Assert that an element has the focus, visibly."""
    seen = """(wanted) => {
      const node = document.activeElement;
      const { outlineStyle, boxShadow } = getComputedStyle(node);
      const says = `${node.tagName} #${node.id} .${node.className}`;
      return node.matches(wanted) ? (outlineStyle !== "none" || boxShadow !== "none" ? "" : `no ring: ${says}`) : says;
    }"""
    said = page.evaluate(seen, selector)
    if said:
        raise _FocusError(f"the focus should be at {selector}: {said}")


def _tab_to(page: Page, selector: str) -> None:
    """Press Tab until an element has the focus, at most `_MAX_TABS` times."""
    for _ in range(_MAX_TABS):
        page.keyboard.press("Tab")
        if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
            return _assert_focus(page, selector)
    raise _FocusError(f"{_MAX_TABS} presses of Tab don't reach {selector}")


def _choose(page: Page, name: str, tool: str) -> None:
    """Find a tool in the list and open it. Without tools, tab past the list."""
    page.keyboard.press("/")
    _assert_focus(page, "#filter")
    if not tool:
        return _tab_to(page, "#pane, #pane *, .activity *, .views *, #to-overview")
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(tool)
    page.keyboard.press("Enter")
    _assert_focus(page, "#pane")
    _tab_to(page, "#pane input, #pane textarea, #pane button:not(#back), #pane summary")
    return None


def _use_dashboard(page: Page, name: str, tool: str) -> None:
    """Filter for a tool, toggle it in the charts, and open and close the log."""
    page.keyboard.press("/")
    _assert_focus(page, "#tool-filter")
    if tool:
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(tool)
        _tab_to(page, "#tools .row-name")
        for pressed in ("true", "false"):
            page.keyboard.press("Enter")
            _assert_focus(page, f"#tools .row-name[aria-pressed={pressed}]")
    else:
        _tab_to(page, "#log-toggle")
    for expanded in ("true", "false"):
        page.keyboard.press("l")
        if page.locator("#log-toggle").get_attribute("aria-expanded") != expanded:
            raise _FocusError(f"the log isn't {'open' if expanded == 'true' else 'closed'}")
    page.locator("#tool-filter").fill("")


def _talk(page: Page, name: str, tool: str) -> None:
    """Move to the message field, to the button, and back to the messages."""
    page.keyboard.press("/")
    _assert_focus(page, "#text")
    page.keyboard.press("Tab")
    _assert_focus(page, "#send")
    for _ in range(2):
        page.keyboard.press("Shift+Tab")
    _assert_focus(page, "#scroll, #scroll *, #newer")


def _connect(page: Page, name: str, tool: str) -> None:
    """Choose a client and move to its copy button."""
    _tab_to(page, "#clients [aria-selected=true]")
    for key, client in (("End", "terminal"), ("Home", "claude-code")):
        page.keyboard.press(key)
        _assert_focus(page, f"#tab-{client}[aria-selected=true]")
    _tab_to(page, "#steps button")


def _ask(page: Page, name: str, tool: str) -> None:
    """Move to the question field and back to the answers."""
    page.keyboard.press("/")
    _assert_focus(page, "#question")
    for _ in range(2):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("() => document.activeElement.closest('#answers') !== null"):
            return
    raise _FocusError("Shift+Tab doesn't lead from the question to the answers")


def _sign(page: Page, name: str, tool: str) -> None:
    """Move through all fields of the form in order."""
    fields = page.locator("form :is(input:not([type=hidden]), button)").all() or page.locator("main a").all()
    for place, field in enumerate(fields):
        if place == 0:
            field.focus()
        else:
            page.keyboard.press("Tab")
        if not field.evaluate("node => node === document.activeElement"):
            raise _FocusError(f"Tab skips {field.evaluate('node => node.outerHTML')}")
        _assert_focus(page, "*")


_PATHS: dict[str, Callable[[Page, str, str], None]] = {
    "inspect": _choose, "docs": _choose, "dashboard": _use_dashboard, "chat": _talk, "sign-in": _sign,
    "consent": _sign, "connect": _connect, "playground": _ask, "call": lambda page, name, tool: None,
}  # fmt: skip


def _find_keyboard_problems(page: Page, name: str, tool: str) -> list[str]:
    """Return the failures of keyboard navigation."""
    page.evaluate("document.activeElement.blur()")
    try:
        _PATHS[name](page, name, tool)
        if name not in _WITHOUT_PALETTE:
            page.keyboard.press("Control+k")
            _assert_focus(page, ".palette input")
            page.keyboard.press("Escape")
            if page.locator("dialog[open]").count():
                raise _FocusError("the palette stays open")
    except _FocusError as error:
        return [str(error)]
    finally:
        if name in ("inspect", "docs"):
            page.evaluate("document.getElementById('main').dataset.view = 'list'")
    return []
