"""The reference of the tools in a browser: schemas, code, forms, results, problems, deep links."""

import json
import subprocess
import sys

import pytest
from playwright.sync_api import Page, expect

from pages_world import OpenPage
from patience import WAIT

pytestmark = pytest.mark.server


def opened(hub: str, open_page: OpenPage, tool: str) -> Page:
    """The page with one of its tools."""
    page: Page = open_page(f"{hub}/docs#tool={tool}")
    expect(page.get_by_role("heading", name=tool, exact=True)).to_be_visible()
    return page


def test_tool_form_runs_and_updates_the_code_sample(hub: str, open_page: OpenPage) -> None:
    """Our choice: `/docs` lists and runs the tools. A fixed defect: "As curl" took the place of the result."""
    page = opened(hub, open_page, "add_numbers")
    form = page.get_by_role("form", name="Try add_numbers")
    form.get_by_role("spinbutton", name="a", exact=True).fill("19")
    form.get_by_role("spinbutton", name="b", exact=True).fill("23")
    form.get_by_role("button", name="Run").click()
    result, code = page.get_by_role("status", name="Result"), page.get_by_label("Code", exact=True)
    expect(result).to_contain_text("200")
    expect(result.get_by_label("Reply", exact=True)).to_contain_text("42")
    ran = [(name, code.inner_text()) for name in ("curl", "Python", "TypeScript") if chosen(page, name)]
    expect(result.get_by_label("Reply", exact=True)).to_contain_text("42")
    shell, program, script = (text for _, text in ran)
    for command in (["sh", "-c", shell], [sys.executable, "-c", program]):
        done = subprocess.run(command, check=True, capture_output=True, timeout=WAIT)
        assert json.loads(done.stdout) == 42
    # Without a type in it, TypeScript is JavaScript: the page itself runs it.
    asked = script.replace("console.log(await response.json())", "return await response.json()")
    assert page.evaluate(f"async () => {{ {asked} }}") == 42


def chosen(page: Page, language: str) -> bool:
    """Show the code in a language."""
    button = page.get_by_role("button", name=language, exact=True)
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    return True


def test_tools_are_found_by_search_keys_and_links(hub: str, open_page: OpenPage) -> None:
    """Our choice: a long list has a filter, works without a mouse, and each tool has an address."""
    page = open_page(f"{hub}/docs")
    tools = page.get_by_role("listbox", name="Tools")
    expect(page.get_by_role("heading", name="How to call a tool")).to_be_visible()
    page.keyboard.press("/")
    expect(page.get_by_label("Find a tool")).to_be_focused()
    page.keyboard.type("time zone")
    expect(tools.get_by_role("option")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="get_current_time")).to_be_visible()
    assert page.url.endswith("#tool=get_current_time")
    page.get_by_label("Find a tool").fill("no such words")
    expect(page.get_by_text("No tool matches")).to_be_visible()
    page.get_by_label("Find a tool").fill("")
    for link, text in (("tool-error", "Read its explanation."), ("tool=nobody", "There's no tool nobody"),
                       ("problems-title", "When something is wrong")):  # fmt: skip
        page.evaluate("(link) => (location.hash = link)", link)
        expect(page.get_by_text(text)).to_be_in_viewport()
    page.go_back()
    page.go_back()
    page.go_back()
    expect(page.get_by_role("heading", name="get_current_time")).to_be_visible()


def test_schemas_are_readable(hub: str, open_page: OpenPage) -> None:
    """Our choice: names, types, limits and defaults, and the JSON for those who want it."""
    page = opened(hub, open_page, "long_task")
    arguments = page.locator("details.section").filter(has=page.get_by_role("heading", name="Arguments"))
    expect(arguments.locator(".property").first).to_contain_text("integer")
    expect(arguments).to_contain_text("default")
    arguments.get_by_text("JSON Schema").click()
    expect(arguments.get_by_label("Schema of the arguments")).to_contain_text('"properties"')
    page.get_by_role("heading", name="Errors").click()
    expect(page.get_by_role("row", name="409")).to_be_visible()


def test_reopened_tools_keep_their_state(hub: str, open_page: OpenPage) -> None:
    """A fixed defect: one look at another tool, and the form was empty and the result gone; the language is the one
    that was chosen last, wherever that was.
    """
    page = opened(hub, open_page, "greet")
    page.get_by_role("form", name="Try greet").get_by_label("name").fill("Ada")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("status", name="Result")).to_contain_text("Hello, Ada!")
    page.evaluate("location.hash = 'tool=add_numbers'")
    expect(page.get_by_role("heading", name="add_numbers", exact=True)).to_be_visible()
    chosen(page, "Python")
    page.evaluate("location.hash = 'tool=greet'")
    expect(page.get_by_role("form", name="Try greet").get_by_label("name")).to_have_value("Ada")
    expect(page.get_by_role("status", name="Result")).to_contain_text("Hello, Ada!")
    expect(page.get_by_role("button", name="Python", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Code", exact=True)).to_contain_text("urlopen")
