import pytest
from playwright.sync_api import Locator, Page, expect

from pages_world import OpenPage
from processes import SharedServer

pytestmark = pytest.mark.server


def press(page: Page, target: Locator, *, touch: bool) -> None:
    """Press and release the middle of an element, once, without looking again in between."""
    expect(target).to_be_visible()
    box = target.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    if touch:
        page.touchscreen.tap(x, y)
    else:
        page.mouse.move(x, y)
        page.mouse.down()
        page.wait_for_timeout(50)  # a person's finger takes longer than a frame
        page.mouse.up()


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "touch"])
def test_first_click_in_the_tool_list_opens_the_tool(
    shared_crowd: SharedServer, open_page: OpenPage, touch: bool
) -> None:
    crowd = f"http://127.0.0.1:{shared_crowd.port()}"
    for place, rows in (("docs", "#index"), ("inspect", "#items")):
        page = open_page(f"{crowd}/{place}", has_touch=touch)
        if place == "docs":  # where nothing is open yet, all groups are closed
            press(page, page.locator(rows).get_by_role("option").first, touch=touch)
        row = page.locator(rows).get_by_role("option").nth(4)
        name = row.locator("strong").inner_text()
        press(page, row, touch=touch)
        expect(page.locator("#detail").get_by_role("heading", name=name, exact=True)).to_be_visible()
        # Once more, from the field that filters the list.
        page.locator("#filter").fill("e")
        row = page.locator(rows).get_by_role("option").nth(2)
        name = row.locator("strong").inner_text()
        press(page, row, touch=touch)
        expect(page.locator("#detail").get_by_role("heading", name=name, exact=True)).to_be_visible()


def test_arrow_keys_select_in_every_list(shared_crowd: SharedServer, open_page: OpenPage) -> None:
    crowd = f"http://127.0.0.1:{shared_crowd.port()}"
    for place, rows in (("docs", "#index"), ("inspect", "#items")):
        page = open_page(f"{crowd}/{place}")
        listed = page.locator(rows)
        expect(listed.get_by_role("option").first).to_be_visible()
        listed.focus()
        page.keyboard.press("Home")
        if "closed" in (listed.locator(".at").text_content() or ""):
            page.keyboard.press("Enter")  # opens the first group; the inspector's starts open, with the first tool
        page.keyboard.press("ArrowDown")
        name = listed.locator(".at strong").inner_text()
        page.keyboard.press("Enter")
        expect(page.locator("#detail").get_by_role("heading", name=name, exact=True)).to_be_visible()
        page.keyboard.press("Control+k")
        page.get_by_role("combobox", name="Command").fill("Change the colors")
        page.keyboard.press("Escape")
        expect(page.get_by_role("combobox", name="Command")).to_have_count(0)


def test_inspector_opens_the_first_tool_of_its_list_and_keeps_the_footer(
    shared_crowd: SharedServer, open_page: OpenPage
) -> None:
    page = open_page(f"http://127.0.0.1:{shared_crowd.port()}/inspect")
    chosen = page.locator("#items [aria-selected=true]")
    expect(chosen).to_be_visible()
    assert page.evaluate("document.getElementById('items').scrollTop") == 0
    assert chosen.get_attribute("aria-posinset") == "2"  # below the first heading
    foot = page.locator("#offers-foot")
    before = foot.bounding_box()
    page.locator("#filter").fill("nothing is called this")
    expect(page.locator("#no-items")).to_be_visible()
    assert foot.bounding_box() == before


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "touch"])
def test_first_click_works_in_lists_that_update(plain: str, open_page: OpenPage, touch: bool) -> None:
    page = open_page(f"{plain}/inspect", has_touch=touch)
    press(page, page.locator("#items").get_by_role("option").first, touch=touch)
    page.get_by_role("textbox", name="name").fill("Ada")
    press(page, page.get_by_role("button", name="Run", exact=True), touch=touch)
    expect(page.get_by_role("region", name="Result")).to_contain_text("Ada")
    page.get_by_role("textbox", name="name").fill("Grace")
    press(page, page.get_by_role("tab", name="History"), touch=touch)
    press(page, page.locator("#history").get_by_role("button").first, touch=touch)
    expect(page.get_by_role("textbox", name="name")).to_have_value("Ada")
    page.keyboard.press("Control+k")
    press(page, page.get_by_role("option", name="Reconnect"), touch=touch)
    expect(page.get_by_role("combobox", name="Command")).to_have_count(0)
