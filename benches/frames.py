"""`python -m benches.frames`: how smoothly the pages draw while 1,000 messages a second arrive.

Chromium shows each page for some seconds, first while nothing happens and then under the load, and counts its frames.
The maximum is 60 frames per second. A late frame is caused by the page or by other load on the machine. The processor
time of the page's main thread shows which.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any, cast
from urllib.request import Request, urlopen

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from benches import processes
from benches.processes import ROOT, free_port
from benches.wire import FIRST_EVENT

RATE = 1_000
LATE_MS = 50
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
TALKER = "benches/servers/talker.py"
FRAMES = """async (seconds) => {
  const frames = [];
  const tasks = [];
  const observer = new PerformanceObserver((list) => tasks.push(...list.getEntries().map((each) => each.duration)));
  observer.observe({ type: "longtask" });
  const end = performance.now() + 1000 * seconds;
  await new Promise((resolve) => {
    const next = (now) => {
      frames.push(now);
      if (performance.now() < end) requestAnimationFrame(next);
      else resolve();
    };
    requestAnimationFrame(next);
  });
  observer.disconnect();
  return { frames, tasks };
}"""


@dataclass(frozen=True)
class Drawn:
    """One page under one load."""

    page: str
    load: str
    per_second: float
    """Frames per second."""
    p95: float
    """Milliseconds between frames, 95th percentile."""
    longest: float
    late: int
    """Number of frames later than `LATE_MS`."""
    tasks: int
    """Number of long tasks, as the browser defines them: over 50 ms."""
    thread: float
    """Processor time of the page's main thread, in percent of one core."""
    sent: int
    """Messages per second sent by the server at the same time."""


def chat(page: Page) -> None:
    """Show a channel on which others are talking."""
    page.locator("#state:text-is('Live')").wait_for()


def dashboard(page: Page) -> None:
    """Show the charts, and the log in its drawer."""
    page.locator("#state:text-is('Live')").wait_for()
    page.locator("#log-toggle").click()


def inspect(page: Page) -> None:
    """Show the list of messages next to a tool."""
    page.locator("#state:text-is('Connected')").wait_for()
    page.get_by_role("tab", name="Logs").click()
    page.get_by_label("Ask for").select_option("debug")
    page.get_by_role("tab", name="Messages").click()


PAGES: dict[str, tuple[str, Callable[[Page], None]]] = {
    "/chat": ("chat", chat),
    "/dashboard": ("dashboard", dashboard),
    "/inspect": ("inspect#tool=log", inspect),
}


def call(address: str, tool: str, arguments: dict[str, Any], found: list[int]) -> None:
    """Call a tool over REST, and add the result to `found`."""
    body = json.dumps({"name": tool, "arguments": arguments}).encode()
    request = Request(f"{address}/mcp/tools/call", body, {"content-type": "application/json"})  # noqa: S310  loopback
    with urlopen(request, timeout=120) as reply:  # noqa: S310
        found.append(int(json.load(reply)["result"]["content"][0]["text"]))


def spent(watch: CDPSession) -> tuple[float, float]:
    """Return the time, and the processor seconds of the page's main thread."""
    answer = cast("dict[str, Any]", watch.send("Performance.getMetrics"))  # pyright: ignore[reportUnknownMemberType]
    found: dict[str, float] = {each["name"]: each["value"] for each in answer["metrics"]}
    return time.monotonic(), found["TaskDuration"]


def measured(page: Page, name: str, load: str, seconds: float, sent: int) -> Drawn:
    """Count the frames of a page."""
    watch = page.context.new_cdp_session(page)
    watch.send("Performance.enable", {"timeDomain": "threadTicks"})  # pyright: ignore[reportUnknownMemberType]
    begun, before = spent(watch)
    found = page.evaluate(FRAMES, seconds)
    ended, after = spent(watch)
    watch.detach()
    times = found["frames"]
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    return Drawn(
        name,
        load,
        1000 * len(gaps) / (times[-1] - times[0]),
        gaps[int(0.95 * (len(gaps) - 1))],
        gaps[-1],
        sum(gap > LATE_MS for gap in gaps),
        len(found["tasks"]),
        100 * (after - before) / (ended - begun),
        sent,
    )


def draw(browser: Browser, address: str, name: str, seconds: float) -> list[Drawn]:
    """Measure a page at rest, then under load, which begins before and ends after the measurement."""
    path, prepare = PAGES[name]
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    context.add_init_script("localStorage.setItem('millstream.name', '\"Ada\"')")
    page = context.new_page()
    page.goto(f"{address}/{path}")
    prepare(page)
    rest = measured(page, name, "nothing", seconds, 0)
    length = seconds + 4
    sent: list[int] = []
    worker = Thread(target=call, args=(address, "talk", {"rate": RATE, "seconds": length}, sent))
    if name == "/inspect":
        page.get_by_label("rate").fill(str(RATE))
        page.get_by_label("seconds").fill(str(length))
        page.get_by_role("button", name="Run", exact=True).click()
    else:
        worker.start()
    page.wait_for_timeout(2_000)
    busy = measured(page, name, f"{RATE:,} messages/s", seconds, 0)
    if name == "/inspect":
        text = page.get_by_role("region", name="Result").get_by_label("Text", exact=True)
        text.wait_for(timeout=120_000)
        sent.append(int(text.inner_text()))
    else:
        worker.join()
    context.close()
    return [rest, replace(busy, sent=round(sent[0] / length))]


def table(rows: list[Drawn]) -> str:
    """Return the figures as Markdown."""
    head = (
        "| page | what arrives | sent/s | frames/s | p95 ms | longest ms | over 50 ms | long tasks | main thread % |\n"
    )
    lines = [
        f"| `{row.page}` | {row.load} | {row.sent or ''} | {row.per_second:.1f} | {row.p95:.1f} | {row.longest:.0f} |"
        f" {row.late} | {row.tasks} | {row.thread:.0f} |"
        for row in rows
    ]
    return head + "|---|---|--:|--:|--:|--:|--:|--:|--:|\n" + "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benches.frames", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one measurement")
    parser.add_argument("--source", type=Path, default=ROOT / "src", help="another version of the package to measure")
    options = parser.parse_args()
    program = shutil.which("chromium")
    if program is None:
        sys.exit("This needs Debian's chromium: apt-get install chromium.")
    port = free_port()
    start = "from millstream._cli import main; main()"
    command = [sys.executable, "-c", start, "run", TALKER, "--port", str(port)]
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        environment = {"PYTHONPATH": str(options.source)}
        server = processes.start(command, environment, port, Path(folder) / "log", first=FIRST_EVENT)
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            rows = [row for name in PAGES for row in draw(browser, f"http://127.0.0.1:{port}", name, options.seconds)]
            version = browser.version
        finally:
            browser.close()
            server.stop()
    command_line = f"`python -m benches.frames --seconds {options.seconds:g}`"
    load = f"{os.cpu_count()} cores with a load of {before:.1f} before and {os.getloadavg()[0]:.1f} after"
    print(f"{command_line}, Chromium {version} without a screen, drawn in software, on {load}\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
