import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from millstream._cli.diagnosis import cost
from millstream._protocol.notifications import ToolDescription
from pages_world import OpenPage, find_overflow, run_axe
from processes import SharedServer, run_command, share_server

pytestmark = pytest.mark.server
PROGRAM = '''
from millstream import Context, Server, ToolError

mcp = Server("orchard", serve="all", instructions="Ask first. ß")


@mcp.tool(tags=["stock"], title="stock_list")
def stock_list(limit: int = 3) -> list[dict[str, object]]:
    """List what is in stock – all of it."""
    return [{"name": f"apple {n}", "weight": 10 - n, "picked": None if n else "today"} for n in range(limit)]


@mcp.tool(tags=["stock"], title="stock_count")
async def stock_count(ctx: Context, steps: int = 60) -> str:
    """Count, with progress."""
    for step in range(steps):
        await ctx.progress(step + 1, steps, f"shelf {step}")
    return "Counted."


@mcp.tool(title="order_find")
def order_find(number: int) -> str:
    """Find an order."""
    raise ToolError(f"No order {number}.")


@mcp.tool(title="weigh")
def weigh(total: float, parts: int) -> float:
    """Divide."""
    return total / parts


def plain(number: int = 0) -> int:
    """Give it back."""
    return number


for index in range(12):
    mcp.tool(plain, name=f"order_get_{index}", title=f"order_get_{index}")
'''


@pytest.fixture(scope="module")
def shared_orchard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """The program above, as a developer runs it."""
    folder = tmp_path_factory.mktemp("orchard")
    file = folder / "orchard.py"
    file.write_text(PROGRAM, "utf-8")
    with share_server(lambda port: run_command(str(file), port, "--dev"), folder) as server:
        yield server


@pytest.fixture
def orchard(shared_orchard: SharedServer) -> str:
    """Its address."""
    return f"http://127.0.0.1:{shared_orchard.port()}"


def inspect(address: str, open_page: OpenPage, tool: str = "stock_list", **options: Any) -> Page:
    """The page with a tool."""
    page: Page = open_page(f"{address}/inspect#tool={tool}", lossy=True, **options)
    expect(page.locator("#detail").get_by_role("heading", name=tool, exact=True)).to_be_visible()
    return page


def run(page: Page) -> Locator:
    """Run what is open, and give its result."""
    page.locator("#detail").get_by_role("button", name="Run", exact=True).click()
    result = page.get_by_role("region", name="Result")
    expect(result.locator(".badge").first).to_have_text(re.compile("Done|Tool error|Pass|Fail"))
    return result


def opened(page: Page, tool: str) -> None:
    """Open a tool."""
    page.evaluate("(tool) => (location.hash = `tool=${tool}`)", tool)
    expect(page.locator("#detail").get_by_role("heading", name=tool, exact=True)).to_be_visible()


def press(page: Page, target: Locator, *, touch: bool) -> None:
    """Press an element with the mouse or a finger."""
    if touch:
        target.tap()
    else:
        target.click()


def test_tools_are_grouped_by_tag_and_prefix_in_collapsible_groups(orchard: str, open_page: OpenPage) -> None:
    for touch in (False, True):
        page = inspect(orchard, open_page, has_touch=touch)
        listed = page.locator("#items")
        expect(listed.locator(".group .group-name")).to_have_text(["order", "stock", "Other"])
        press(page, listed.get_by_role("option", name="order 13"), touch=touch)
        expect(listed.get_by_role("option", name="order_get_3")).to_have_count(0)
        page.locator("#filter").fill("order_get_3")
        press(page, listed.get_by_role("option", name="order_get_3"), touch=touch)
        expect(page.locator("#detail").get_by_role("heading", name="order_get_3", exact=True)).to_be_visible()
        page.locator("#filter").fill("stock")
        expect(listed.get_by_role("option")).to_have_text([re.compile("stock_list"), re.compile("stock_count")])
        page.locator("#filter").fill("")
        listed.focus()
        page.keyboard.press("Home")
        page.keyboard.press("Enter")
        expect(listed.get_by_role("option", name="order_get_3")).to_be_visible()
        page.get_by_label("Order of the list").select_option("As listed")
        expect(listed.locator(".group")).to_have_count(0)
        expect(listed.get_by_role("option").first).to_contain_text("stock_list")


def test_page_and_command_estimate_the_same_tokens(orchard: str, open_page: OpenPage) -> None:
    page = inspect(orchard, open_page)
    listed = page.request.post(f"{orchard}/mcp/tools/list", data={}).json()["result"]["tools"]
    costs = {
        each["name"]: cost(
            ToolDescription(name=each["name"], input_schema=each["inputSchema"], description=each["description"])
        )
        for each in listed
    }
    for name in ("stock_list", "weigh"):
        opened(page, name)
        expect(page.locator("#detail .title")).to_contain_text(f"≈ {costs[name]} tokens")
    expect(page.locator("#cost")).to_have_text(f"≈ {sum(costs.values()) + 3} tokens")  # and "Ask first. ß"
    page.get_by_label("Order of the list").select_option("Most tokens")
    dearest = max(costs, key=lambda name: costs[name])
    expect(page.locator("#items").get_by_role("option").first).to_contain_text(f"{dearest}{costs[dearest]}")


def test_an_exchange_is_one_row_with_its_progress_folded(orchard: str, open_page: OpenPage) -> None:
    page = inspect(orchard, open_page, "stock_count")
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(run(page)).to_contain_text("Counted.")
    rows = page.locator("#traffic > li")
    expect(rows).to_have_count(1)
    expect(rows.locator(".count")).to_have_text("60")
    rows.locator("summary").first.click()
    rows.get_by_text("60 notifications").click()
    expect(rows.locator(".folded-notes li")).to_have_count(60)
    expect(rows.locator(".folded-notes li").last).to_contain_text("60 of 60, shelf 59")
    answer = json.loads(rows.locator("pre[aria-label=Response]").inner_text())
    assert answer["result"]["content"][0]["text"] == "Counted."
    opened(page, "order_find")
    page.get_by_label("number").fill("7")
    run(page)
    expect(rows.nth(1)).to_contain_text("tool error")
    page.locator("#traffic-filter").fill("failed")
    expect(rows).to_have_count(1)
    assert run_axe(page) == []


def test_list_of_objects_is_shown_once_as_a_sortable_table(orchard: str, open_page: OpenPage) -> None:
    page = inspect(orchard, open_page)
    result = run(page)
    expect(result.get_by_label("Text", exact=True)).to_have_count(0)
    rows = result.get_by_role("table", name="Rows of the result").locator("tbody tr")
    expect(rows).to_have_text(["apple 010today", "apple 19", "apple 28"])
    result.get_by_role("button", name="weight").click()
    expect(rows).to_have_text(["apple 28", "apple 19", "apple 010today"])
    result.get_by_role("button", name="picked").click()
    result.get_by_role("button", name="picked").press("Enter")
    expect(result.get_by_role("columnheader", name="picked")).to_have_attribute("aria-sort", "descending")
    expect(rows.first).to_have_text("apple 010today")
    result.get_by_role("button", name="JSON", exact=True).click()
    shown = json.loads(result.get_by_label("Structured content", exact=True).inner_text())
    assert [each["weight"] for each in shown] == [10, 9, 8]
    assert run_axe(page) == []


def test_a_failure_in_development_shows_its_source_line(orchard: str, open_page: OpenPage) -> None:
    page = inspect(orchard, open_page, "weigh")
    page.get_by_label("total").fill("1")
    page.get_by_label("parts").fill("0")
    result = run(page)
    line = PROGRAM.splitlines().index("    return total / parts") + 1
    expect(result.get_by_role("region", name="Where it failed")).to_contain_text(
        re.compile(rf"ZeroDivisionError.*orchard\.py:{line} in weigh.*return total / parts")
    )
    page.get_by_role("tab", name="Logs").click()
    expect(page.locator("#logs .trace summary")).to_contain_text(f"orchard.py:{line} return total / parts")
    assert run_axe(page) == []


def test_saved_calls_run_with_their_checks(orchard: str, open_page: OpenPage, tmp_path: Path) -> None:
    page = inspect(orchard, open_page)
    run(page)
    page.get_by_role("button", name="Save call").click()
    form = page.locator("#detail").get_by_role("form", name="stock_list")
    form.get_by_role("button", name="Add a check").click()
    form.get_by_label("Place in the result").fill("structuredContent.length")
    form.get_by_label("Value", exact=True).focus()
    expect(form.get_by_label("Value", exact=True)).to_have_value("3")
    form.get_by_role("button", name="Add a check").click()
    form.get_by_label("Place in the result").last.fill("structuredContent[0].weight")
    form.get_by_label("Relation").last.select_option("is at least")
    form.get_by_label("Value", exact=True).last.fill("10")
    form.get_by_label("Name").fill("three apples")
    form.get_by_label("Name").press("Tab")
    expect(run(page)).to_contain_text("Pass")
    opened(page, "order_find")
    page.get_by_label("number").fill("7")
    run(page)
    page.get_by_role("button", name="Save call").click()
    form = page.locator("#detail").get_by_role("form", name="order_find")
    expect(form.get_by_label("What must hold")).to_have_value("fails")
    form.get_by_role("button", name="Add a check").click()
    form.get_by_label("Place in the result").fill("content[0].text")
    form.get_by_label("Relation").select_option("contains")
    form.get_by_label("Value", exact=True).fill("No order 8")
    page.get_by_role("button", name="Run all").click()
    expect(page.locator("#saved-summary")).to_have_text("1 of 2 pass")
    expect(page.get_by_role("list", name="What doesn't hold")).to_contain_text('it\'s "No order 7."')
    assert run_axe(page) == []
    assert find_overflow(page) == []
    form.get_by_label("Value", exact=True).fill("No order 7")
    page.reload()
    page.get_by_role("tab", name="Saved").click()
    expect(page.locator("#items").get_by_role("option")).to_have_text(
        [re.compile("three apples"), re.compile("order_find")]
    )
    page.get_by_role("button", name="Run all").click()
    expect(page.locator("#saved-summary")).to_have_text("2 of 2 pass")
    exported_and_imported(page, tmp_path / "calls.json")


def exported_and_imported(page: Page, file: Path) -> None:
    """Save all calls to a file, delete them, and take them from the file."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Export the calls").click()
    download.value.save_as(file)
    assert [each["checks"][0]["value"] for each in json.loads(file.read_text())["calls"]] == ["3", "No order 7"]
    for left in (1, 0):
        page.get_by_role("button", name="Delete").click()
        expect(page.locator("#items").get_by_role("option")).to_have_count(left)
    page.locator("#saved-file").set_input_files(file)
    page.get_by_role("button", name="Run all").click()
    expect(page.locator("#saved-summary")).to_have_text("2 of 2 pass")
    page.get_by_role("option", name="three apples").click()
    page.get_by_role("button", name="Open the form").click()
    expect(page.locator("#detail").get_by_role("heading", name="stock_list", exact=True)).to_be_visible()
    file.write_text('{"calls": 1}')
    page.get_by_role("tab", name="Saved").click()
    page.locator("#saved-file").set_input_files(file)
    expect(page.get_by_text("has no calls")).to_be_visible()
