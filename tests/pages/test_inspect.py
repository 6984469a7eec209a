import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from pages_world import OpenPage, find_overflow, run_axe
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server

REVISIONS = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"]
BOTH_ERAS = ["2025-11-25", "2026-07-28"]
SUBSCRIBED = {"2025-11-25": "resources/subscribe", "2026-07-28": "subscriptions/listen"}


def inspect(hub: str, open_page: OpenPage, revision: str = "2026-07-28", **options: object) -> Page:
    """The page, connected at a revision."""
    page: Page = open_page(f"{hub}/inspect", **options)
    connected(page)
    if revision != "2026-07-28":
        page.get_by_label("Revision").select_option(revision)
    expect(page.locator("#state")).to_have_attribute("data-revision", revision)
    connected(page)
    return page


def connected(page: Page) -> None:
    """Wait until the lists are there."""
    expect(page.locator("#state")).to_have_text("Connected")
    expect(page.locator("#kinds")).to_contain_text(re.compile("Tools ?[1-9]"))


def choose(page: Page, kind: str, name: str) -> None:
    """Open an item of one kind."""
    page.locator("#kinds").get_by_role("tab", name=kind).click()
    page.locator("#items").get_by_role("option", name=name).click()
    expect(page.locator("#detail").get_by_role("heading", name=name)).to_be_visible()


def result(page: Page) -> Locator:
    """Where the result of the chosen item is shown."""
    return page.get_by_role("region", name="Result")


def structured(page: Page) -> Any:
    """The structured content of the result."""
    result(page).get_by_role("button", name="JSON", exact=True).click()
    return json.loads(result(page).get_by_label("Structured content", exact=True).inner_text())


def exchange(page: Page, name: str) -> Locator:
    """The rows of the exchanges of that method, or of the tool with that name, which were answered or accepted."""
    answered = page.locator(".marks").filter(has_text=re.compile(r"ms$|^\d"))
    return page.locator("#traffic > li").filter(has_text=f"sent {name}").filter(has=answered)


def run(page: Page, verb: str = "Run") -> None:
    """Press the button of the form."""
    page.locator("#detail").get_by_role("button", name=verb, exact=True).click()


def test_tools_run_on_every_revision(hub: str, open_page: OpenPage) -> None:
    page = inspect(hub, open_page)
    for number, revision in enumerate(REVISIONS):
        page.get_by_label("Revision").select_option(revision)
        expect(page.locator("#state")).to_have_attribute("data-revision", revision)
        expect(page.locator("#state")).to_have_text("Connected")
        choose(page, "Tools", "add_numbers")
        page.get_by_role("spinbutton", name="a", exact=True).fill(str(number))
        page.get_by_role("spinbutton", name="b", exact=True).fill("23")
        run(page)
        expect(result(page)).to_contain_text("Done")
        expect(result(page).get_by_label("Text", exact=True)).to_have_text(str(number + 23))


@pytest.mark.parametrize("revision", BOTH_ERAS)
def test_elicitations_can_be_answered(hub: str, open_page: OpenPage, revision: str) -> None:
    """Answers an elicitation at 2025-11-25 and at 2026-07-28."""
    page = inspect(hub, open_page, revision)
    choose(page, "Tools", "order_parcel")
    page.get_by_role("textbox", name="item").fill("a lamp")
    run(page)
    question = page.get_by_role("dialog")
    expect(question.get_by_role("heading")).to_contain_text("a lamp")
    assert run_axe(page) == []
    assert find_overflow(page) == []
    switch, field = (each.bounding_box() for each in (question.get_by_role("group"), question.get_by_label("street")))
    assert switch is not None
    assert field is not None
    assert switch["y"] + switch["height"] <= field["y"], "a fixed defect: it stood below the form"
    question.get_by_label("street").fill("Mill Lane 1")
    question.get_by_label("city").fill("York")
    question.get_by_label("speed").select_option("express")
    question.get_by_role("button", name="Accept").click()
    expect(question).to_be_hidden()
    expect(result(page)).to_contain_text("a lamp to Mill Lane 1, York (express)")


@pytest.mark.parametrize("revision", BOTH_ERAS)
def test_questions_can_be_declined_and_canceled(hub: str, open_page: OpenPage, revision: str) -> None:
    page = inspect(hub, open_page, revision)
    choose(page, "Tools", "order_parcel")
    page.get_by_role("textbox", name="item").fill("a lamp")
    run(page)
    page.get_by_role("dialog").get_by_role("button", name="Decline").click()
    expect(result(page)).to_contain_text("Tool error")
    run(page)
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(result(page)).to_contain_text("Tool error")


@pytest.mark.parametrize("revision", BOTH_ERAS)
def test_sampling_requests_can_be_answered(hub: str, open_page: OpenPage, revision: str) -> None:
    page = inspect(hub, open_page, revision)
    choose(page, "Tools", "summarize")
    page.get_by_role("textbox", name="text").fill("A long text.")
    run(page)
    expect(page.get_by_role("dialog")).to_contain_text("A long text.")
    assert run_axe(page) == []
    assert find_overflow(page) == []
    page.get_by_label("Reply of the model").fill("It is long.")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="JSON", exact=True).click()
    expect(dialog.get_by_label("Result as JSON").and_(dialog.locator(":visible"))).to_be_visible()
    expect(page.get_by_label("Reply of the model")).to_be_hidden()
    dialog.get_by_role("button", name="Form", exact=True).click()
    page.get_by_role("button", name="Accept").click()
    expect(result(page).get_by_label("Text", exact=True)).to_have_text("It is long.")


@pytest.mark.parametrize("revision", BOTH_ERAS)
def test_progress_is_shown_and_calls_can_be_canceled(hub: str, open_page: OpenPage, revision: str) -> None:
    page = inspect(hub, open_page, revision)
    choose(page, "Tools", "long_task")
    page.get_by_label("steps").fill("1000")
    page.get_by_label("seconds").fill("60")
    run(page)
    expect(result(page)).to_have_text(re.compile(r"^\D*\d+ of 1,?000\D*$"))  # once, although the message says it, too
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(result(page)).to_contain_text("Canceled")
    expect(page.locator("#traffic > li").filter(has_text="canceled")).to_have_count(1)
    expect(page.locator("#traffic > li.failed")).to_have_count(0)
    page.get_by_role("tab", name="History").click()
    expect(page.locator("#history .mark.soft")).to_have_count(1)
    expect(page.locator("#history .mark.bad")).to_have_count(0)


def test_arguments_can_be_written_as_json(hub: str, open_page: OpenPage) -> None:
    page = inspect(hub, open_page)
    choose(page, "Tools", "greet")
    page.get_by_role("textbox", name="name").fill("Ada")
    page.get_by_role("button", name="JSON", exact=True).click()
    editor = page.get_by_label("Arguments as JSON")
    assert json.loads(editor.input_value()) == {"name": "Ada"}
    editor.fill("{")
    run(page)
    expect(page.get_by_text("This isn't JSON")).to_be_visible()
    expect(editor).to_be_focused()
    editor.fill('{"name": "Grace"}')
    run(page)
    expect(result(page)).to_contain_text("Hello, Grace!")


@pytest.mark.parametrize("revision", BOTH_ERAS)
def test_resources_can_be_read(hub: str, open_page: OpenPage, revision: str) -> None:
    page = inspect(hub, open_page, revision)
    choose(page, "Resources", "about")
    run(page, "Read")
    expect(result(page).get_by_role("heading", name="hub", exact=True)).to_be_visible()
    choose(page, "Templates", "time_in")
    page.get_by_role("combobox", name="area").fill("Europe")
    page.get_by_role("combobox", name="city").fill("Berlin")
    run(page, "Read")
    expect(result(page)).to_contain_text("time://Europe/Berlin")
    expect(result(page)).to_contain_text("Done")


@pytest.mark.parametrize("revision", BOTH_ERAS)
def test_prompts_support_completed_arguments(hub: str, open_page: OpenPage, revision: str) -> None:
    page = inspect(hub, open_page, revision)
    choose(page, "Prompts", "translate")
    page.get_by_role("combobox", name="text").fill("Good morning")
    language = page.get_by_label("language")
    language.fill("G")
    expect(page.locator("datalist option[value=German]")).to_have_count(1)
    expect(page.locator("datalist option[value=French]")).to_have_count(0)
    language.fill("German")
    run(page, "Get")
    expect(result(page)).to_contain_text("Translate into German")


@pytest.mark.parametrize("revision", BOTH_ERAS)
def test_every_message_can_be_inspected(hub: str, open_page: OpenPage, revision: str) -> None:
    page = inspect(hub, open_page, revision)
    page.get_by_role("button", name="Clear", exact=True).click()
    choose(page, "Tools", "greet")
    run(page)
    expect(result(page)).to_contain_text("Done")
    messages = page.locator("#traffic > li")
    expect(exchange(page, "tools/call greet")).to_have_count(1)
    messages.first.locator("summary").click()
    request, response = (messages.first.locator(f"pre[aria-label={name}]") for name in ("Request", "Response"))
    assert json.loads(request.inner_text())["params"]["name"] == "greet"
    assert json.loads(response.inner_text())["result"]["content"]


@pytest.mark.parametrize("revision", BOTH_ERAS)
def test_server_errors_are_shown_with_their_code(hub: str, open_page: OpenPage, revision: str) -> None:
    page = inspect(hub, open_page, revision)
    choose(page, "Server", "Any request")
    page.get_by_label("method").fill("tools/call")
    page.get_by_label("params").fill('{"name": "no_such_tool"}')
    run(page, "Send")
    expect(result(page)).to_contain_text("Failed")
    expect(result(page)).to_contain_text("(-32602)")


def test_page_reports_and_survives_a_network_loss(hub: str, open_page: OpenPage) -> None:
    page = inspect(hub, open_page, "2025-11-25", lossy=True)
    page.context.set_offline(True)
    choose(page, "Tools", "greet")
    run(page)
    expect(result(page)).to_contain_text("The server can't be reached.")
    page.context.set_offline(False)
    run(page)
    expect(result(page)).to_contain_text("Hello, world!")


def test_clicks_just_before_the_network_recovers_take_effect(hub: str, open_page: OpenPage) -> None:
    page = inspect(hub, open_page, "2025-11-25", lossy=True)
    choose(page, "Tools", "greet")
    back: list[bool] = []

    def drop(route: Route) -> None:
        """Drop everything up to the first `initialize`, which the click causes: the page itself waits for `livez`."""
        if back:
            route.fallback()
            return
        back.extend([True] if '"initialize"' in (route.request.post_data or "") else [])
        route.abort("connectionfailed")

    page.route("**/*", drop)
    run(page)
    expect(result(page)).to_contain_text("The server can't be reached.")
    run(page)
    expect(result(page)).to_contain_text("Hello, world!")


@pytest.mark.parametrize("revision", BOTH_ERAS)
def test_watched_resources_are_read_again_on_change(hub: str, open_page: OpenPage, revision: str) -> None:
    page = inspect(hub, open_page, revision)
    choose(page, "Templates", "order_status")
    page.get_by_label("number").fill("0")
    page.get_by_role("button", name="Clear", exact=True).click()
    page.get_by_role("button", name="Watch").click()
    expect(exchange(page, SUBSCRIBED[revision])).to_have_count(1)
    other = inspect(hub, open_page)
    choose(other, "Tools", "order_parcel")
    other.get_by_role("textbox", name="item").fill("a lamp")
    run(other)
    other.get_by_label("street").fill("Mill Lane 1")
    other.get_by_label("city").fill("York")
    other.get_by_role("button", name="Accept").click()
    number = structured(other)["order"]
    page.get_by_role("button", name="Watch").click()
    expect(page.get_by_role("button", name="Watch")).to_have_attribute("aria-pressed", "false")
    page.get_by_label("number").fill(str(int(number) + 1))
    page.get_by_role("button", name="Watch").click()
    expect(exchange(page, SUBSCRIBED[revision])).to_have_count(2)
    run(other)
    other.get_by_label("street").fill("Weir Road 2")
    other.get_by_label("city").fill("Hull")
    other.get_by_role("button", name="Accept").click()
    expect(result(page)).to_contain_text("a lamp to Weir Road 2, Hull")


def test_focus_returns_after_a_question(hub: str, open_page: OpenPage) -> None:
    """WCAG 2.2, 2.4.3."""
    page = inspect(hub, open_page)
    choose(page, "Tools", "order_parcel")
    page.get_by_role("textbox", name="item").fill("a lamp")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_label("street")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("textbox", name="item")).to_be_focused()


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1366, 768), (1440, 900), (390, 844)])
def test_tool_list_takes_two_fifths_of_the_window(hub: str, open_page: OpenPage, width: int, height: int) -> None:
    page = inspect(hub, open_page, width=width, height=height)
    box = page.locator("#items").bounding_box()
    assert box is not None
    assert min(box["y"] + box["height"], height) - box["y"] >= 0.4 * height
    page.locator("#items").get_by_role("option", name="greet").click()
    expect(page.locator("#detail").get_by_role("heading", name="greet")).to_be_in_viewport()
    run(page)
    expect(result(page)).to_contain_text("Hello, world!")


def test_lost_servers_without_streams_are_found_again(open_page: OpenPage, tmp_path: Path) -> None:
    port = free_port()
    command = run_command("examples/greet.py", port, "--serve", "web", "--no-sessions")
    with run_server(command, port, tmp_path / "first"):
        page = inspect(f"http://127.0.0.1:{port}", open_page, "2025-11-25", lossy=True)
    expect(page.locator("#state")).to_have_text("Not connected")
    with run_server(command, port, tmp_path / "second"):
        connected(page)
        expect(page.get_by_role("alert")).to_be_hidden()
        run(page)
        expect(result(page)).to_contain_text("Hello, world!")


def test_servers_restarted_between_calls_are_found_again(open_page: OpenPage, tmp_path: Path) -> None:
    port = free_port()
    command = run_command("examples/greet.py", port, "--serve", "web")
    with run_server(command, port, tmp_path / "first"):
        page = inspect(f"http://127.0.0.1:{port}", open_page, "2025-11-25", lossy=True)
        page.get_by_role("button", name="Clear", exact=True).click()
    with run_server(run_command("examples/hub.py", port, "--serve", "web"), port, tmp_path / "second"):
        expect(page.locator(".server")).to_have_text("hub 1.0.0")
        connected(page)
        choose(page, "Tools", "add_numbers")


def test_inspector_matches_the_tutorial(open_page: OpenPage, tmp_path: Path) -> None:
    port = free_port()
    with run_server(run_command("examples/bookshop.py", port, "--serve", "web"), port, tmp_path / "log"):
        page = inspect(f"http://127.0.0.1:{port}", open_page, lossy=True)
        choose(page, "Tools", "order")
        page.get_by_role("textbox", name="isbn").fill("9780261103573")
        run(page)
        page.get_by_label("street").fill("Hobbit Lane 1")
        page.get_by_label("city").fill("Oxford")
        page.get_by_role("button", name="Accept").click()
        expect(result(page)).to_contain_text("Done")
        assert structured(page) == {"ordered": 1}


def test_servers_with_a_moved_endpoint_can_be_inspected(open_page: OpenPage, tmp_path: Path) -> None:
    port = free_port()
    command = run_command("examples/greet.py", port, "--serve", "web", "--path", "/api/v2")
    with run_server(command, port, tmp_path / "log"):
        page = inspect(f"http://127.0.0.1:{port}", open_page, lossy=True)
        choose(page, "Tools", "greet")
        run(page)
        expect(result(page)).to_contain_text("Hello, world!")


@pytest.mark.parametrize("revision", BOTH_ERAS)
def test_servers_without_a_version_are_shown(open_page: OpenPage, tmp_path: Path, revision: str) -> None:
    program, port = tmp_path / "plain.py", free_port()
    program.write_text(
        "from millstream import Server\nmcp = Server('plain')\n@mcp.tool\ndef f() -> int:\n    return 1\n"
    )
    with run_server(run_command(str(program), port, "--serve", "web,rest"), port, tmp_path / "log"):
        page = inspect(f"http://127.0.0.1:{port}", open_page, revision, lossy=True)
        expect(page.locator(".server")).to_have_text("plain ")
        page.evaluate("location.hash = '#server=About'")
        expect(page.locator("#about")).to_contain_text("Revision")
        expect(page.locator("#about")).not_to_contain_text("Version")
        page = open_page(f"http://127.0.0.1:{port}/docs", lossy=True)
        expect(page.locator("#overview-title")).to_have_text("plain")
        expect(page.locator("#server-version")).to_be_empty()
