"""The dashboard: figures that move and match `/metrics`, charts, the log, and a server that goes and comes."""

import json
import re
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Locator, Page, expect

from pages_world import OpenPage, call, counted
from patience import WAIT
from processes import free_port, millstream, serving
from workers_world import kill, workers

pytestmark = pytest.mark.server

SIDEWAYS = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
INKED = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.some((value) => value !== 0);
}"""
TOLD = re.compile(r"^.+, now: .+ [\d.]+ ")
PROGRAM = """
import logging
from millstream import Server

mcp = Server("loud")
logger = logging.getLogger("mill")

@mcp.tool
def note(text: str, level: str = "info") -> str:
    \"\"\"Write to the log.\"\"\"
    logger.log(getattr(logging, level.upper()), text)
    return "Written."
"""


def live(page: Page) -> None:
    """Wait until the page is connected and drew something."""
    expect(page.locator("#state")).to_have_text("Live")
    expect(page.locator("#uptime")).not_to_have_text("–")


def row(page: Page, name: str) -> Locator:
    """The line of a tool."""
    return page.get_by_role("row").filter(has=page.get_by_role("button", name=name, exact=True))


def test_the_numbers_move_and_match_the_metrics(hub: str, open_page: OpenPage) -> None:
    """Our choice: the dashboard's numbers move and match `/metrics`."""
    page = open_page(f"{hub}/dashboard")
    live(page)
    for _ in range(2):
        for number in range(7):
            call(hub, "add_numbers", {"a": number, "b": 1})
        expect(page.locator("#calls")).to_have_text(f"{counted(hub):,}")
        expect(row(page, "add_numbers").get_by_role("cell").nth(5)).to_have_text(f"{counted(hub, 'add_numbers'):,}")
    for cell in (2, 3, 4):
        expect(row(page, "add_numbers").get_by_role("cell").nth(cell)).not_to_have_text("–")


def test_the_store_is_told_by_what_it_holds_of_what_it_may(hub: str, open_page: OpenPage) -> None:
    """A fixed defect: the page said "up: yes", whatever happened."""
    page = open_page(f"{hub}/dashboard")
    live(page)
    expect(page.locator("#server")).to_contain_text(
        re.compile(r"Storememory.*Store answersyes.*Stored values[\d.]+ of 32\.0 MiB")
    )
    expect(page.locator("#server")).to_contain_text(re.compile(r"Stored events[\d.]+ of 64\.0 MiB"))


def test_a_chosen_tool_is_drawn_in_the_charts(hub: str, open_page: OpenPage) -> None:
    """Our choice: calls per second and latency percentiles per tool as live charts, usable by keyboard."""
    call(hub, "greet", {})
    page = open_page(f"{hub}/dashboard")
    live(page)
    call(hub, "greet", {})
    page.get_by_role("button", name="greet", exact=True).press("Enter")
    expect(page.get_by_role("button", name="greet", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#latency-of")).to_have_text("of greet")
    charts = page.locator("canvas.chart")
    assert charts.count() == 5
    for chart in charts.all():
        expect(chart).to_have_attribute("aria-label", TOLD)
        assert chart.evaluate(INKED)
    latency = page.get_by_role("img", name="Latency, now")
    latency.press("ArrowLeft")
    expect(page.get_by_role("img", name="seconds ago")).to_have_count(1)


def test_a_server_that_nobody_called_says_so(tmp_path: Path, open_page: OpenPage) -> None:
    """Our choice: empty states are designed, too."""
    port = free_port()
    with serving(millstream("examples/hub.py", port, "--serve", "all"), port, tmp_path / "log"):
        page = open_page(f"http://127.0.0.1:{port}/dashboard")
        live(page)
        for text in ("No calls yet", "No sessions", "No subscribers"):
            expect(page.get_by_text(text)).to_be_visible()
        page.context.close()


def test_subscribers_are_counted_and_one_is_no_plural(tmp_path: Path, open_page: OpenPage) -> None:
    """A fixed defect: "1 subscribers"."""
    port = free_port()
    with serving(millstream("examples/hub.py", port, "--serve", "all"), port, tmp_path / "log"):
        pages = [open_page(f"http://127.0.0.1:{port}/dashboard")]
        live(pages[0])
        for text in ("0 subscribers to channels", "1 subscriber to channels", "2 subscribers to channels"):
            expect(pages[0].locator("#subscriber-count")).to_have_text(text)
            pages.append(open_page(f"http://127.0.0.1:{port}/chat", name="Ada"))
        for page in pages:
            page.context.close()


def test_the_log_can_be_filtered_and_paused(tmp_path: Path, open_page: OpenPage) -> None:
    """Our choice: the stream of logs with filter and pause."""
    port = free_port()
    program = tmp_path / "loud.py"
    program.write_text(PROGRAM, "utf-8")
    with serving(millstream(str(program), port, "--serve", "all"), port, tmp_path / "log"):
        address = f"http://127.0.0.1:{port}"
        page = open_page(f"{address}/dashboard")
        live(page)
        lines = page.locator("#log > li")
        call(address, "note", {"text": "the first <b>line</b>"})
        call(address, "note", {"text": "a bad second", "level": "error"})
        expect(lines.filter(has_text="the first <b>line</b>")).to_have_count(1)
        expect(lines.filter(has_text="a bad second")).to_have_count(1)
        page.get_by_label("Filter the log").fill("FIRST")
        expect(lines).to_have_count(1)
        page.get_by_label("Filter the log").fill("")
        page.get_by_label("Least level").select_option(label="Error and above")
        expect(lines).to_have_count(1)
        page.get_by_label("Least level").select_option(label="All levels")
        page.get_by_role("button", name="Pause").click()
        call(address, "note", {"text": "while it is paused"})
        expect(page.locator("#log-count")).to_contain_text("paused: 1 new")
        expect(lines.filter(has_text="while it is paused")).to_have_count(0)
        page.get_by_role("button", name="Pause").click()
        expect(lines.filter(has_text="while it is paused")).to_have_count(1)
        page.context.close()


def test_a_restarted_server_is_found_again(tmp_path: Path, open_page: OpenPage) -> None:
    """Our choice: error states are designed, too; our choice: the page needs no reload."""
    port = free_port()
    command = millstream("examples/hub.py", port, "--serve", "all")
    with serving(command, port, tmp_path / "first"):
        page = open_page(f"http://127.0.0.1:{port}/dashboard", lossy=True)
        live(page)
    expect(page.locator("#state")).to_have_text("Reconnecting…")
    expect(page.get_by_role("alert")).to_be_visible()
    with serving(command, port, tmp_path / "second"):
        live(page)
        expect(page.get_by_role("alert")).to_be_hidden()
        call(f"http://127.0.0.1:{port}", "greet", {})
        expect(page.locator("#calls")).to_have_text("1")
        page.context.close()


def test_each_worker_has_a_row_until_it_is_gone(tmp_path: Path, open_page: OpenPage) -> None:
    """Our choice: the dashboard adds up over all workers, and tells them apart; one alone needs no table."""
    with workers(tmp_path, 2, "--serve", "all") as served:
        page = open_page(f"http://127.0.0.1:{served.port}/dashboard", lossy=True)
        live(page)
        rows = page.locator("#workers > tr")
        expect(rows).to_have_count(2)
        shown = {int(each.get_by_role("cell").nth(0).inner_text()) for each in rows.all()}
        assert shown == set(served.pids)
        kill(served.pids[0])
        expect(rows.filter(has_text=str(served.pids[0]))).to_have_count(0)
        expect(rows).to_have_count(2)
        page.context.close()


def test_one_worker_alone_has_no_table_of_workers(hub: str, open_page: OpenPage) -> None:
    """Our choice: whoever runs one process sees nothing of others."""
    page = open_page(f"{hub}/dashboard")
    live(page)
    expect(page.locator("#fleet")).to_be_hidden()


@pytest.mark.parametrize("width", [360, 1280])
def test_the_table_of_workers_is_reached_by_keyboard_and_fits_a_phone(
    tmp_path: Path, open_page: OpenPage, width: int
) -> None:
    """WCAG 2.2, 2.1.1, and our choice: phone width. The row of a long host name scrolls in a box of its own."""
    with workers(tmp_path, 2, "--serve", "all") as served:
        page = open_page(f"http://127.0.0.1:{served.port}/dashboard", width=width)
        page.locator("#fleet").wait_for()
        expect(page.get_by_role("group", name="Table of workers")).to_have_attribute("tabindex", "0")
        assert page.evaluate(SIDEWAYS) <= 0
        page.context.close()


def test_the_audit_log_is_shown_and_filtered_and_its_content_is_text(tmp_path: Path, open_page: OpenPage) -> None:
    """Who called what, when, and with what result; a name that is markup stays a name."""
    port = free_port()
    file = tmp_path / "loud.py"
    audited = f'Server("loud", serve="all", settings=Settings(audit_log={str(tmp_path / "audit.jsonl")!r}))'
    file.write_text(PROGRAM.replace("import Server", "import Server, Settings").replace('Server("loud")', audited))
    markup = "<img src=x onerror=alert(1)>"
    address = f"http://127.0.0.1:{port}"
    with serving(millstream(str(file), port), port, tmp_path / "log"):
        call(address, "note", {"text": "hello"})
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "prompts/get", "params": {"name": markup}}).encode()
        asked = Request(f"{address}/mcp", body, {"content-type": "application/json", "accept": "application/json"})  # noqa: S310
        urlopen(asked, timeout=WAIT).close()  # noqa: S310  loopback
        page = open_page(f"{address}/dashboard")
        rows = page.locator("#audit-rows tr")
        expect(rows).to_have_count(2)
        expect(rows.nth(0)).to_contain_text(markup)
        expect(rows.nth(1)).to_contain_text("tools/call note")
        page.locator("#audit-failed").check()
        expect(rows).to_have_count(1)
        page.locator("#audit-filter").fill("note")
        expect(page.locator("#no-audit")).to_be_visible()
