from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from pages_world import OpenPage
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `kinds.py`."""
    port = free_port()
    log = tmp_path_factory.mktemp("kinds") / "log"
    with run_server(run_command(str(Path(__file__).parent / "kinds.py"), port, "--serve", "all"), port, log):
        yield f"http://127.0.0.1:{port}"


def press(page: Page, *keys: str) -> None:
    """Press keys one after the other."""
    for key in keys:
        page.keyboard.press(key)


def tabbed(page: Page, wanted: Locator) -> None:
    """Press Tab until the focus is there, within as many steps as anybody has patience for."""
    for _ in range(20):
        page.keyboard.press("Tab")
        if wanted.evaluate("(node) => node === document.activeElement"):
            return
    raise AssertionError(f"Tab doesn't lead to {wanted}")


def opened(page: Page, tool: str) -> Locator:
    """Find a tool by its name, and open it."""
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    press(page, "/", "Control+a")
    page.keyboard.type(tool)
    press(page, "Enter")
    detail = page.locator("#detail")
    expect(detail.get_by_role("heading", name=tool, exact=True)).to_be_visible()
    return detail


def test_every_kind_of_tool_works_by_keyboard(kinds: str, open_page: OpenPage) -> None:
    """WCAG 2.2, 2.1.1."""
    page = open_page(f"{kinds}/inspect")
    expect(page.locator("#state")).to_have_text("Connected")
    result = page.get_by_role("region", name="Result")

    detail = opened(page, "draw")
    shapes = detail.get_by_label("Shape of shape")
    assert shapes.locator("option").all_inner_texts() == ["circle", "square"]
    tabbed(page, shapes)
    page.keyboard.press("ArrowDown")
    tabbed(page, detail.get_by_label("side"))
    page.keyboard.type("2")
    tabbed(page, detail.get_by_label("color"))
    page.keyboard.type("g")
    tabbed(page, detail.get_by_role("button", name="Run", exact=True))
    page.keyboard.press("Enter")
    expect(result).to_contain_text("Square(kind='square', side=2.0) Color.GREEN")

    detail = opened(page, "plan")
    expect(detail.get_by_text("string, date")).to_be_visible()
    day = detail.get_by_label("day")
    tabbed(page, day)
    press(page, "ArrowUp", "ArrowRight", "ArrowUp", "ArrowRight", "ArrowUp")
    expect(day).not_to_have_value("")
    press(page, "Control+Enter")
    expect(result).to_contain_text(f"{day.input_value()} 1:00:00 None")

    detail = opened(page, "plan")
    add = detail.get_by_role("group", name="at").get_by_role("button", name="Add", exact=True)
    tabbed(page, add)
    page.keyboard.press("Enter")
    expect(detail.get_by_label("street")).to_be_focused()
    press(page, "Shift+Tab", "Enter")
    expect(add).to_be_focused()

    detail = opened(page, "add")
    add_item = detail.get_by_role("button", name="Add item")
    for number in "19", "1", "23":
        tabbed(page, add_item)
        page.keyboard.press("Enter")
        page.keyboard.type(number)
    press(page, "Shift+Tab", "Enter")
    expect(add_item).to_be_focused()
    assert detail.locator(".nested-row label").all_inner_texts() == ["Item 1•", "Item 3•"]
    press(page, "Control+Enter")
    expect(result).to_contain_text("42")

    opened(page, "dot")
    press(page, "Control+Enter")
    expect(result.get_by_role("img")).to_be_visible()
    opened(page, "bake")
    press(page, "Control+Enter")
    expect(result).to_contain_text("Heat it up first.")


def test_questions_receive_focus(kinds: str, open_page: OpenPage) -> None:
    page = open_page(f"{kinds}/inspect")
    expect(page.locator("#state")).to_have_text("Connected")
    result, question = page.get_by_role("region", name="Result"), page.get_by_role("dialog")
    opened(page, "think")
    press(page, "Control+Enter")
    expect(question.get_by_label("Reply of the model")).to_be_focused()
    page.keyboard.type("hi there")
    expect(question.locator("#question-accept")).to_be_enabled()
    press(page, "Control+Enter")
    expect(result).to_contain_text("It says")
    expect(result).to_contain_text("hi there")
    opened(page, "mill")
    press(page, "Control+Enter")
    expect(question.get_by_label("street")).to_be_focused()
    expect(result).to_contain_text("three sacks, 3 of 12")
    page.keyboard.type("Mill Lane 1")
    expect(question.locator("#question-accept")).to_be_enabled()
    press(page, "Enter")
    expect(question).to_be_hidden()
    expect(result).to_contain_text("flour")
    expect(page.locator("#pane")).to_be_focused()


def test_phones_show_whole_transport_names(kinds: str, open_page: OpenPage) -> None:
    page = open_page(f"{kinds}/inspect", width=360, height=740)
    expect(page.locator("#state")).to_have_text("Connected")
    for name in ("Transport", "Revision"):
        needs = """(node) => {
          const twin = node.cloneNode(true);
          twin.style.width = "max-content";
          node.after(twin);
          const {width} = twin.getBoundingClientRect();
          twin.remove();
          return node.getBoundingClientRect().width - width;
        }"""
        assert page.get_by_label(name).evaluate(needs) >= -1, name
    page.set_viewport_size({"width": 1280, "height": 720})
    press(page, "2")
    expect(page.get_by_text("No resources").locator("visible=true")).to_have_count(1)
