from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from pages.test_inspect import choose, connected, inspect, result, run
from pages_world import OpenPage, call, find_layout_problems
from processes import SharedServer, run_command, share_server

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def shared_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """`extended_shop.py`."""

    def command(port: int) -> list[str]:
        return run_command("tests/pages/extended_shop.py", port)

    with share_server(command, tmp_path_factory.mktemp("extended")) as server:
        yield server


@pytest.fixture
def shop(shared_shop: SharedServer) -> str:
    """Its address."""
    return f"http://127.0.0.1:{shared_shop.port()}"


def tab(page: Page, name: str) -> None:
    """Open a kind."""
    page.locator("#kinds").get_by_role("tab", name=name).click()


def test_a_call_becomes_a_task_that_is_followed_canceled_and_resumed(shop: str, open_page: OpenPage) -> None:
    page = inspect(shop, open_page)
    choose(page, "Tools", "print_catalog")
    run(page)
    expect(result(page)).to_contain_text("First page (1 of 2)")
    expect(result(page).locator(".badge")).to_have_text("Working")
    assert find_layout_problems(page) == []
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(result(page)).to_contain_text("The task was canceled.")
    run(page)
    expect(result(page)).to_contain_text("First page (1 of 2)")
    page.keyboard.press("7")
    tasks = page.locator("#items").get_by_role("option", name="print_catalog")
    expect(tasks).to_have_count(2)
    expect(tasks.nth(0)).to_contain_text("Working: First page")
    expect(tasks.nth(1)).to_contain_text("Canceled")
    expect(result(page)).to_contain_text("First page (1 of 2)")  # the newest is open, and is followed
    page.reload()
    connected(page)
    expect(page.locator("#detail h2")).to_have_text("print_catalog")
    expect(result(page)).to_contain_text("First page (1 of 2)")
    assert find_layout_problems(page) == []
    call(shop, "finish_catalog", {})
    expect(result(page)).to_contain_text("The catalog is printed.")
    expect(tasks.nth(0)).to_contain_text("Done")
    page.locator("#items").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(result(page)).to_contain_text("The task was canceled.")


def test_tasks_can_ask_and_are_hidden_in_older_revisions(shop: str, open_page: OpenPage) -> None:
    page = inspect(shop, open_page)
    for approved, text in ((True, "Ordered."), (False, "Nothing was ordered.")):
        choose(page, "Tools", "reorder")
        run(page)
        dialog = page.get_by_role("dialog", name="Order ten of each?")
        dialog.get_by_label("approved").set_checked(approved)
        expect(dialog.get_by_role("button", name="Accept")).to_be_enabled()
        dialog.get_by_role("button", name="Accept").press("Enter")
        expect(result(page)).to_contain_text(text)
    expect(page.locator("#kinds").get_by_role("tab", name="Tasks")).to_contain_text("2")
    page.get_by_label("Revision").select_option("2025-11-25")
    expect(page.locator("#state")).to_have_attribute("data-revision", "2025-11-25")
    expect(page.locator("#kinds").get_by_role("tab", name="Tasks")).to_be_hidden()
    expect(page.locator("#kinds").get_by_role("tab", name="Skills")).to_be_visible()


def test_skills_are_listed_and_their_files_are_read_and_checked(shop: str, open_page: OpenPage) -> None:
    page = inspect(shop, open_page)
    choose(page, "Skills", "refunds")
    run(page, "Read")
    expect(result(page).get_by_role("heading", name="Refunds", exact=True)).to_be_visible()
    expect(result(page)).to_contain_text("as in the manifest")
    assert find_layout_problems(page) == []
    page.get_by_label("File", exact=True).focus()
    page.get_by_label("File", exact=True).select_option("skill://refunds/templates/granted.md")
    page.keyboard.press("Control+Enter")
    expect(result(page)).to_contain_text("skill://refunds/templates/granted.md")
    expect(result(page)).to_contain_text("as in the manifest")
    choose(page, "Skills", "opening-hours")
    expect(page.locator("#detail")).to_contain_text("made at each read")
    run(page, "Read")
    expect(result(page)).to_contain_text("Nine to five")


@pytest.mark.parametrize("revision", ["2026-07-28", "2025-11-25"])
def test_events_are_listed_and_arrive(shop: str, open_page: OpenPage, revision: str) -> None:
    page = inspect(shop, open_page, revision)
    choose(page, "Events", "order.paid")
    expect(page.locator("#detail")).to_contain_text("A customer paid an order.")
    page.get_by_label("customer").fill("ada")
    run(page, "Subscribe")
    events = page.get_by_role("log", name="Events").get_by_role("listitem")
    expect(page.locator("#detail")).to_contain_text("Waiting for events")
    sent = page.locator("#traffic > li").filter(has_text="stream" if revision > "2026" else "poll")
    expect(sent.first).to_contain_text("1" if revision > "2026" else "ms")  # it has begun
    call(shop, "pay", {"order": "for-grace", "customer": "grace"})
    call(shop, "pay", {"order": "first"})
    expect(events).to_have_count(1)
    call(shop, "pay", {"order": "second"})
    expect(events).to_have_count(2)
    expect(events.first).to_contain_text("second")
    events.first.locator("summary").press("Enter")
    expect(events.first.get_by_label("Data")).to_contain_text('"order": "second"')
    assert find_layout_problems(page) == []
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(result(page)).to_contain_text("Done")
    call(shop, "pay", {"order": "third"})
    run(page, "Subscribe")
    call(shop, "pay", {"order": "fourth"})
    expect(result(page)).not_to_contain_text("third")
    tab(page, "Tools")  # ends the subscription
    expect(page.locator("#kinds").get_by_role("tab", name="Events")).to_contain_text("1")
