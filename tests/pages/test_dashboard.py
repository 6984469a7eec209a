import csv
import re
from datetime import datetime
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from pages_world import OpenPage, call, count_calls
from processes import free_port, run_command, run_server
from workers_world import kill, run_workers

pytestmark = pytest.mark.server

INKED = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.some((value) => value !== 0);
}"""
TOLD = re.compile(r"^.+, now: .+ [\d.]+[ ,]")
STOOD_STILL = "The event loop was blocked for"
"""What a server says of itself when its machine has stood still."""
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
    """The line of a tool. What other tests have called may push it off the first page, so it's filtered for."""
    page.get_by_role("searchbox", name="Filter the tools").fill(name)
    return page.get_by_role("row").filter(has=page.get_by_role("button", name=name, exact=True))


def part(page: Page, name: str) -> Locator:
    """Open one of the tabs."""
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel", name=name)


def test_dashboard_numbers_match_the_metrics(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/dashboard")
    live(page)
    for _ in range(2):
        for number in range(7):
            call(hub, "add_numbers", {"a": number, "b": 1})
        expect(page.locator("#calls")).to_have_text(f"{count_calls(hub):,}")
        expect(row(page, "add_numbers").get_by_role("cell").last).to_have_text(f"{count_calls(hub, 'add_numbers'):,}")
    for cell in (0, 3, 4, 5):
        expect(row(page, "add_numbers").get_by_role("cell").nth(cell)).not_to_have_text("–")
    expect(page.locator("#p99")).to_contain_text("ms")
    expect(part(page, "Server")).to_contain_text(
        re.compile(r"Storememory.*Store answersyes.*Stored values[\d.]+ of 32\.0")
    )


def test_chart_titles_fit_beside_wide_values(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/dashboard", width=1280, height=720)
    live(page)
    cut = """heads => heads.filter(head => {
      head.querySelectorAll("#latency-chart .legend-value").forEach(value => { value.textContent = "999.9 ms"; });
      const title = head.querySelector("h2");
      return title.scrollWidth > title.clientWidth;
    }).map(head => head.textContent)"""
    assert page.locator(".plot-head").evaluate_all(cut) == []


def test_charts_follow_the_selected_tool_and_range(hub: str, open_page: OpenPage) -> None:
    call(hub, "greet", {})
    page = open_page(f"{hub}/dashboard")
    live(page)
    page.get_by_role("button", name="greet", exact=True).press("Enter")
    expect(page.get_by_role("button", name="greet", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("heading", name="Latency of greet")).to_be_visible()
    row(page, "greet").get_by_role("cell").nth(1).click()  # the whole row is the button's
    expect(page.get_by_role("button", name="greet", exact=True)).to_have_attribute("aria-pressed", "false")
    expect(page.get_by_role("heading", name="Latency", exact=True)).to_be_visible()
    row(page, "greet").get_by_role("cell").nth(1).click()
    expect(page.get_by_role("heading", name="Latency of greet")).to_be_visible()
    charts = page.locator("canvas.chart")
    assert charts.count() == 5
    for chart in charts.all():
        expect(chart).to_have_attribute("aria-label", re.compile(r"^.+, now: "))
        assert chart.evaluate(INKED)
    page.locator("#memory-chart canvas").press("ArrowLeft")
    expect(page.get_by_role("img", name="seconds ago")).to_have_count(5)
    for name, seconds in (("15 min", 900), ("1 h", 3600)):
        with page.expect_response(lambda reply, wanted=seconds: f"history?seconds={wanted}" in reply.url) as told:  # type: ignore[misc]
            page.get_by_role("button", name=name, exact=True).click()
        found = told.value.json()
        assert sum(each or 0 for each in found["all"]["calls"]) >= 1
        assert len(found["at"]) <= 100
        expect(page.locator("#calls-chart canvas")).to_have_attribute("aria-label", TOLD)
    page.reload()
    expect(page.get_by_role("button", name="1 h", exact=True)).to_have_attribute("aria-pressed", "true")


def test_recent_calls_hide_secrets_and_link_to_the_inspector(tmp_path: Path, open_page: OpenPage) -> None:
    port = free_port()
    file = tmp_path / "loud.py"
    audited = f'Server("loud", serve="all", settings=Settings(audit_log={str(tmp_path / "audit.jsonl")!r}))'
    file.write_text(PROGRAM.replace("import Server", "import Server, Settings").replace('Server("loud")', audited))
    address = f"http://127.0.0.1:{port}"
    markup = "<img src=x onerror=alert(1)>"
    with run_server(run_command(str(file), port), port, tmp_path / "log"):
        call(address, "note", {"text": f"{markup} token=abcdefgh", "level": "nonsense"})
        page = open_page(f"{address}/dashboard#calls")
        live(page)
        calls = page.get_by_role("table", name="Recent calls").locator("tbody tr")
        expect(calls).to_have_count(1)
        page.get_by_role("tab", name="Clients").click()
        call(address, "note", {"text": "fine"})
        page.get_by_role("tab", name="Recent calls").click()
        expect(calls).to_have_count(2)
        page.get_by_role("checkbox", name="Only failures").check()
        expect(calls).to_have_count(1)
        page.get_by_label("Filter the calls").fill("nothing like it")
        expect(page.get_by_role("tabpanel", name="Recent calls")).to_contain_text("No matches")
        page.get_by_label("Filter the calls").fill("img")
        calls.get_by_role("button", name="note").press("Enter")
        dialog = page.get_by_role("dialog", name="note")
        expect(dialog.get_by_label("Arguments", exact=True)).to_contain_text(f"{markup} token=***")
        expect(dialog).to_contain_text("server error")
        assert "abcdefgh" not in page.content()
        link = dialog.get_by_role("link", name="Open in the inspector").get_attribute("href") or ""
        assert link.startswith("inspect#tool=note&args=")
        page.keyboard.press("Escape")
        records = page.get_by_role("table", name="Audit records").locator("tbody tr")
        part(page, "Audit")
        expect(records).to_have_count(2)
        expect(records.first).to_contain_text("tools/call note")
        page.locator("#audit-failed").check()
        expect(records).to_have_count(1)
        page.context.close()


def test_log_can_be_filtered_and_paused(tmp_path: Path, open_page: OpenPage) -> None:
    port = free_port()
    program = tmp_path / "loud.py"
    program.write_text(PROGRAM, "utf-8")
    with run_server(run_command(str(program), port, "--serve", "all"), port, tmp_path / "log"):
        address = f"http://127.0.0.1:{port}"
        page = open_page(f"{address}/dashboard")
        live(page)
        lines = page.locator("#log > li")
        call(address, "note", {"text": "the first <b>line</b>"})
        call(address, "note", {"text": "a bad second", "level": "error"})
        expect(page.locator("#log-errors")).to_have_text("1 error")
        expect(page.locator("#log-last")).to_have_text(re.compile(f"a bad second|{STOOD_STILL}"))
        page.keyboard.press("l")
        expect(lines.filter(has_text="the first <b>line</b>")).to_have_count(1)
        expect(lines.filter(has_text="a bad second")).to_have_count(1)
        page.get_by_label("Filter the log").fill("FIRST")
        expect(lines).to_have_count(1)
        page.get_by_label("Filter the log").fill("")
        page.get_by_label("Minimum level").select_option(label="Error and above")
        expect(lines).to_have_count(1)
        page.get_by_label("Minimum level").select_option(label="All levels")
        page.get_by_role("button", name="Pause").click()
        call(address, "note", {"text": "while it is paused"})
        expect(page.locator("#log-count")).to_have_text(re.compile("paused: [1-9][0-9]* new"))
        expect(lines.filter(has_text="while it is paused")).to_have_count(0)
        page.get_by_role("button", name="Pause").click()
        expect(lines.filter(has_text="while it is paused")).to_have_count(1)
        page.get_by_role("button", name=re.compile("^Log")).click()
        expect(page.locator("#log-body")).to_be_hidden()
        page.context.close()


def test_each_worker_has_a_row_until_it_ends(tmp_path: Path, open_page: OpenPage) -> None:
    with run_workers(tmp_path, 2, "--serve", "all") as served:
        page = open_page(f"http://127.0.0.1:{served.port}/dashboard", lossy=True)
        live(page)
        part(page, "Workers")
        rows = page.get_by_role("table", name="Workers").locator("tbody tr")
        expect(rows).to_have_count(2)
        shown = {int(each.get_by_role("cell").nth(0).inner_text()) for each in rows.all()}
        assert shown == set(served.pids)
        expect(page.locator("#fleet")).to_contain_text("all 2 workers together")
        answered = {
            call(f"http://127.0.0.1:{served.port}", "who", {})["result"]["content"][0]["text"] for _ in range(40)
        }
        assert len(answered) == 2
        page.get_by_role("tab", name="Tools").click()
        expect(row(page, "who").get_by_role("cell").first).to_have_text("40")
        page.get_by_role("tab", name="Recent calls").click()
        expect(page.get_by_role("tabpanel", name="Recent calls")).to_contain_text("of 40")
        kill(served.pids[0])
        page.get_by_role("tab", name="Workers").click()
        expect(rows.filter(has_text=str(served.pids[0]))).to_have_count(0)
        expect(rows).to_have_count(2)
        page.context.close()


def test_dashboard_can_be_used_by_keyboard_alone(hub: str, open_page: OpenPage) -> None:
    """WCAG 2.2, 2.1.1."""
    call(hub, "greet", {})
    page = open_page(f"{hub}/dashboard")
    live(page)
    page.keyboard.press("/")
    page.keyboard.type("greet")
    found = page.get_by_role("button", name="greet", exact=True)
    expect(found).to_be_visible()
    for _ in range(20):
        page.keyboard.press("Tab")
        if found.evaluate("(node) => node === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Latency of greet")).to_be_visible()
    page.keyboard.press("3")
    expect(page.get_by_role("button", name="1 h", exact=True)).to_have_attribute("aria-pressed", "true")
    page.get_by_role("tab", name="Tools").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Recent calls")).to_be_focused()
    page.keyboard.press("l")
    expect(page.get_by_label("Lines of the log")).to_be_visible()
    page.keyboard.press("Control+k")
    page.keyboard.type("last minute")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="1 min", exact=True)).to_have_attribute("aria-pressed", "true")


SHOP = """
from millstream import Server, ToolError

mcp = Server("shop", serve="all")

@mcp.tool
def find(number: int) -> str:
    \"\"\"Find an order.\"\"\"
    if number < 50:
        raise ToolError(f"No order {number}.")
    return "Found."
"""


def test_clicking_a_chart_or_an_error_shows_its_calls(tmp_path: Path, open_page: OpenPage) -> None:
    port = free_port()
    file = tmp_path / "shop.py"
    file.write_text(SHOP)
    address = f"http://127.0.0.1:{port}"
    with run_server(run_command(str(file), port), port, tmp_path / "log"):
        for number in range(100):
            call(address, "find", {"number": number})
        for touch in (False, True):
            page = open_page(f"{address}/dashboard", has_touch=touch, width=1440, height=900, lossy=True)
            live(page)
            expect(page.locator("#calls")).to_have_text("100")
            expect(page.locator("#client-errors")).to_have_text("50")
            expect(page.locator("#errors")).to_have_text("0")
            expect(page.locator("#verdict")).not_to_have_text("Unhealthy")
            box = page.locator("#calls-chart canvas").bounding_box()
            assert box is not None
            (page.touchscreen.tap if touch else page.mouse.click)(box["x"] + box["width"] - 12, box["y"] + 40)
            calls = page.get_by_role("table", name="Recent calls").locator("tbody tr")
            expect(page.get_by_role("button", name="Show the calls of all times")).to_be_visible()
            expect(page.locator("#call-note")).to_contain_text("kept")
            page.get_by_role("button", name="Show the calls of all times").click()
            expect(page.locator("#call-tools .pager")).to_contain_text("of 100")
            if not touch:  # a finger needs higher rows
                last, part = calls.nth(9).bounding_box(), page.locator(".details").bounding_box()
                assert last is not None
                assert part is not None
                assert last["y"] + last["height"] <= part["y"] + part["height"], "a laptop shows ten rows"
            page.get_by_role("button", name="0", exact=True).click()
            errors = page.get_by_role("table", name="Errors by message").locator("tbody tr")
            expect(errors).to_have_count(1)
            expect(errors).to_contain_text(re.compile(r"No order ….*50.*find.*Client"))
            errors.get_by_role("button").press("Enter")
            expect(page.locator("#call-tools .pager")).to_contain_text("of 50")
            page.get_by_role("button", name="Show the calls with any error").click()
            expect(page.locator("#call-tools .pager")).to_contain_text("of 100")
        page.locator("#calls-chart canvas").press("Enter")
        expect(page.get_by_role("button", name="Show the calls of all times")).to_be_visible()
        page.context.close()


def test_url_links_to_the_selected_period(tmp_path: Path, open_page: OpenPage) -> None:
    port = free_port()
    file = tmp_path / "shop.py"
    file.write_text(SHOP)
    address = f"http://127.0.0.1:{port}"
    with run_server(run_command(str(file), port), port, tmp_path / "log"):
        for number in range(10):
            call(address, "find", {"number": number})
        page = open_page(f"{address}/dashboard", lossy=True)
        live(page)
        page.get_by_role("button", name="1 d", exact=True).click()
        expect(page.get_by_role("button", name="1 d", exact=True)).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#calls-chart canvas")).to_have_attribute("aria-label", TOLD)
        page.locator("#calls-chart canvas").press("Enter")
        chip = page.get_by_role("button", name="Show the calls of all times")
        period = chip.inner_text()
        page.wait_for_url(re.compile(r"#calls&range=86400&since=\d+&until=\d+$"))
        other = open_page(page.url, lossy=True)
        expect(other.get_by_role("button", name="Show the calls of all times")).to_have_text(period)
        expect(other.get_by_role("button", name="1 d", exact=True)).to_have_attribute("aria-pressed", "true")
        other.get_by_role("button", name="Show the calls of all times").click()
        other.wait_for_url(re.compile(r"#calls$"))
        for odd in ("#calls&range=x&since=&until=9", "#&&=&until=2&since=1", "#tools&range=60&since=9e99&until=1e999"):
            strange = open_page(f"{address}/dashboard{odd}", lossy=True)
            live(strange)
        page.context.close()


def test_tables_are_saved_as_csv(tmp_path: Path, open_page: OpenPage) -> None:
    port = free_port()
    file = tmp_path / "shop.py"
    file.write_text(SHOP)
    address = f"http://127.0.0.1:{port}"
    with run_server(run_command(str(file), port), port, tmp_path / "log"):
        for number in range(30):
            call(address, "find", {"number": number})
        call(address, '=1+1,"', {})
        page = open_page(f"{address}/dashboard#calls", lossy=True)
        live(page)
        expect(page.locator("#call-tools .pager")).to_contain_text("of 31")
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save this table as CSV").click()
        assert saved.value.suggested_filename == "calls.csv"
        rows = list(csv.reader(saved.value.path().read_text("utf-8").splitlines()))
        assert len(rows) == 32, "all rows, not one page"
        assert rows[0][:3] == ["When", "What", "Took"]
        assert all(datetime.fromisoformat(line[0]).tzinfo for line in rows[1:]), "dates and times with a zone"
        assert not any(cell.startswith("=") for line in rows for cell in line)
        assert any("'=1+1" in cell for line in rows for cell in line)
        page.get_by_role("tab", name="Clients").click()
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save this table as CSV").click()
        assert saved.value.suggested_filename == "clients.csv"
        page.context.close()


def test_table_rows_do_not_move_under_the_pointer(tmp_path: Path, open_page: OpenPage) -> None:
    port = free_port()
    file = tmp_path / "shop.py"
    file.write_text(SHOP)
    address = f"http://127.0.0.1:{port}"
    with run_server(run_command(str(file), port), port, tmp_path / "log"):
        for number in range(60, 70):
            call(address, "find", {"number": number})
        page = open_page(f"{address}/dashboard#calls", lossy=True)
        live(page)
        calls = page.get_by_role("table", name="Recent calls").locator("tbody tr")
        expect(calls).to_have_count(10)
        before = calls.all_inner_texts()
        calls.nth(3).hover()
        for number in range(5):
            call(address, "find", {"number": number})
        expect(page.locator("#call-tools .pager")).to_contain_text("5 new")
        assert calls.all_inner_texts() == before
        page.mouse.move(5, 5)
        expect(calls).to_have_count(15)
        expect(calls.first).to_contain_text("No order")
        page.context.close()


def test_url_with_an_unknown_fragment_opens_the_first_tab(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/dashboard#toString")
    live(page)
    expect(page.get_by_role("tab", selected=True)).to_contain_text("Tools and methods")


def test_marked_point_is_cleared_in_a_range_with_fewer_points(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/dashboard", fresh=True)

    def cut(route: Route) -> None:
        response = route.fetch()
        found = response.json()
        kept = 4 if "seconds=60&" in f"{route.request.url}&" else 1
        size = len(found["at"])
        for part in (found, found["process"], found["all"]):
            for name, values in part.items():
                if isinstance(values, list) and len(values) == size:
                    part[name] = [*values, *values, *values, *values][-kept:]
        route.fulfill(response=response, json=found)

    page.route("**/dashboard/history?*", cut)
    page.reload()
    live(page)
    chart = page.locator("#calls-chart canvas")
    expect(chart).to_have_attribute("aria-label", re.compile(", now: "))
    chart.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    expect(chart).to_have_attribute("aria-label", re.compile(" ago: "))
    page.keyboard.press("2")
    expect(chart).to_have_attribute("aria-label", re.compile(", now: "))
    expect(page.locator("#lag-chart canvas")).to_have_attribute("aria-label", re.compile(", now: "))


CUT = """() => [...document.querySelectorAll("table th, table td, dt, dd")]
  .filter((cell) => cell.checkVisibility() && cell.scrollWidth > cell.clientWidth + 1)
  .map((cell) => cell.innerText)"""


def test_charts_have_two_rows_and_tables_are_whole(hub: str, open_page: OpenPage) -> None:
    call(hub, "greet", {})
    page = open_page(f"{hub}/dashboard", width=1440, height=900)
    live(page)
    expect(row(page, "greet")).to_be_visible()
    boxes = [each.bounding_box() for each in page.locator(".plot").all()]
    assert {round(box["height"]) for box in boxes if box} == {180}
    assert len({round(box["y"]) for box in boxes if box}) == 2
    for width in (1440, 1024):
        page.set_viewport_size({"width": width, "height": 768})
        for name in ("Workers", "Tools and methods"):
            page.get_by_role("tab", name=name).click()
            assert page.evaluate(CUT) == []


def test_log_opens_at_its_newest_line_and_follows_it(tmp_path: Path, open_page: OpenPage) -> None:
    port = free_port()
    program = tmp_path / "loud.py"
    program.write_text(PROGRAM, "utf-8")
    at_end = "() => { const log = document.getElementById('log'); return log.scrollHeight > log.clientHeight"
    at_end += " && log.scrollHeight - log.scrollTop - log.clientHeight < 8; }"
    with run_server(run_command(str(program), port, "--serve", "all"), port, tmp_path / "log"):
        address = f"http://127.0.0.1:{port}"
        for number in range(60):
            call(address, "note", {"text": f"line {number}", "level": "error"})
        page = open_page(f"{address}/dashboard")
        live(page)
        expect(page.locator("#log-last")).to_contain_text("line 59")
        page.keyboard.press("l")
        page.wait_for_function(at_end)
        call(address, "note", {"text": "the newest", "level": "error"})
        expect(page.locator("#log > li").filter(has_text="the newest")).to_have_count(1)
        assert page.evaluate(at_end)
        page.context.close()


def test_day_of_a_young_server_is_drawn_with_its_finest_points(tmp_path: Path, open_page: OpenPage) -> None:
    port = free_port()
    program = tmp_path / "loud.py"
    program.write_text(PROGRAM, "utf-8")
    with run_server(run_command(str(program), port, "--serve", "all"), port, tmp_path / "log"):
        page = open_page(f"http://127.0.0.1:{port}/dashboard")
        live(page)
        with page.expect_response(lambda reply: "history?seconds=86400" in reply.url) as told:
            page.get_by_role("button", name="1 d", exact=True).click()
        assert told.value.json()["step"] == 10
        page.context.close()
