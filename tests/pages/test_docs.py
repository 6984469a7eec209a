"""The page of tools in a browser: a form for each tool, its result, its problems, and the same call for a terminal."""

import pytest
from playwright.sync_api import Page, expect

from pages_world import OpenPage

pytestmark = pytest.mark.server


def opened(hub: str, open_page: OpenPage) -> Page:
    """The page with its tools."""
    page: Page = open_page(f"{hub}/docs")
    expect(page.get_by_role("article", name="add_numbers")).to_be_visible()
    return page


def test_a_tool_runs_from_its_form(hub: str, open_page: OpenPage) -> None:
    """Our choice: `/docs`, a page that lists and runs the tools."""
    tool = opened(hub, open_page).get_by_role("article", name="add_numbers")
    tool.get_by_role("spinbutton", name="a", exact=True).fill("19")
    tool.get_by_role("spinbutton", name="b", exact=True).fill("23")
    tool.get_by_role("button", name="Run").click()
    expect(tool.get_by_role("status")).to_contain_text("200")
    expect(tool.get_by_label("Reply")).to_contain_text("42")
    tool.get_by_role("button", name="As curl").click()
    expect(tool.get_by_label("Command")).to_contain_text("curl -X POST")


def test_tools_are_found_by_words(hub: str, open_page: OpenPage) -> None:
    """Our choice: a long list has a filter."""
    page = opened(hub, open_page)
    page.get_by_label("Find a tool").fill("time zone")
    expect(page.get_by_role("article", name="get_current_time")).to_be_visible()
    expect(page.get_by_role("article", name="add_numbers")).to_be_hidden()
    page.get_by_label("Find a tool").fill("no such words")
    expect(page.get_by_text("No tool matches")).to_be_visible()
