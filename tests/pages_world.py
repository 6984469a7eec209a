"""What the tests of the pages share: calls and figures of a running server, past the browser."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from playwright.sync_api import Page

from patience import WAIT

OpenPage = Callable[..., Page]
"""``open_page(url, name="", lossy=False, **options of the context)``, a fixture."""

_COUNT = re.compile(r"mcp_server_operation_duration_seconds_count\{(.*)\} (\d+)")


def call(address: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a tool in the dialect of the seeds."""
    body = json.dumps({"name": tool, "arguments": arguments}).encode()
    request = Request(f"{address}/mcp/tools/call", body, {"content-type": "application/json"})  # noqa: S310  loopback
    with urlopen(request, timeout=WAIT) as response:  # noqa: S310
        return dict(json.load(response))


def counted(address: str, tool: str = "") -> int:
    """Calls by `/metrics`: all of them, or those of one tool."""
    with urlopen(f"{address}/metrics", timeout=WAIT) as response:  # noqa: S310
        text = response.read().decode()
    wanted = f'gen_ai_tool_name="{tool}"' if tool else ""
    return sum(int(count) for labels, count in _COUNT.findall(text) if wanted in labels)


_AXE = Path(__file__).parent / "pages" / "node_modules" / "axe-core" / "axe.min.js"
# A dialog that still fades in has another contrast than the dialog has, so what ends by itself is waited for.
_RUN = """async () => {
  const ends = (each) => each.playState === "running" && Number.isFinite(each.effect.getComputedTiming().endTime);
  for (let moving; (moving = document.getAnimations().filter(ends)).length;) {
    await Promise.allSettled(moving.map((each) => each.finished));
  }
  return (await axe.run(document, {resultTypes: ["violations"]})).violations
  .flatMap(({id, nodes}) => nodes.map(({html}) => `${id}: ${html.slice(0, 160)}`));
}"""


def axe(page: Page) -> list[str]:
    """What keeps people from using the page as it is now, by axe with all its rules."""
    assert _AXE.exists(), "These tests need axe: make tests/pages/node_modules/.package-lock.json."
    if not page.evaluate("'axe' in window"):
        page.evaluate(_AXE.read_text())
    return list(page.evaluate(_RUN))


# What is meant to scroll sideways, and what ends in dots.
_OUTSIDE = """() => {
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
    return list(page.evaluate(_OUTSIDE))
