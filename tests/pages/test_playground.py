import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, WebSocketRoute, expect

from agent_world import KEY, Answer, ScriptedModel, calls, hangs, repeats, says
from pages_matrix import find_problems
from pages_world import OpenPage, find_layout_problems, press
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server

HOSTILE = "**Bold**, [a link](https://example.org/a) and <img src=x onerror=alert(1)> [bad](javascript:alert(1))"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """``shop(script…)``: the address of a shop whose playground has a model with that script."""
    started: list[Any] = []

    def start(*script: Any) -> str:
        model = ScriptedModel(*script)
        variables = {"API_URL": model.__enter__().url, "API_KEY": KEY, "DEFAULT_MODEL": "test-model"}
        port = free_port()
        server = run_server(
            run_command("tests/agent/shop.py", port, "--serve", "all"), port, tmp_path / "log", **variables
        )
        server.__enter__()
        started.extend((model, server))
        return f"http://127.0.0.1:{port}/chat#playground"

    yield start
    for each in reversed(started):
        each.__exit__(None, None, None)


ARABIC = "نص عربي طويل " * 30


@pytest.fixture
def crowd(tmp_path: Path) -> Callable[..., AbstractContextManager[str]]:
    """``with crowd(script…) as address``: the server with 500 tools, long texts, and Arabic ones, and a model."""

    @contextmanager
    def start(*script: Any) -> Iterator[str]:
        with ScriptedModel(*script) as model:
            variables = {"API_URL": model.url, "API_KEY": KEY, "DEFAULT_MODEL": "test-model-" + "x" * 80}
            command = run_command(str(Path(__file__).parent / "large_shop.py"), port, "--serve", "all")
            with run_server(command, port, tmp_path / "crowd", **variables):
                yield f"http://127.0.0.1:{port}/chat#playground"

    port = free_port()
    return start


def ask(page: Page, text: str) -> None:
    """Ask the model."""
    page.get_by_label("Ask the model", exact=True).fill(text)
    page.keyboard.press("Enter")


def uses(start: str, arguments: str, text: str) -> Callable[[dict[str, Any]], Answer]:
    """Call the tool whose name for the model begins with `start`: long names are cut."""

    def answer(body: dict[str, Any]) -> Answer:
        names = [tool["function"]["name"] for tool in body["tools"]]
        return calls((next(name for name in names if name.startswith(start)), arguments), text=text)

    return answer


def idle(page: Page) -> None:
    """Wait until the answer is over."""
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()


def test_calls_appear_beside_the_text_and_ask_before_changes(shop: Callable[..., str], open_page: OpenPage) -> None:
    burn = calls(("burn", '{"isbn": "1"}'))
    price = calls(("price", '{"isbn": "9780"}'), text="I'll look.")
    page = open_page(
        shop(price, says(HOSTILE), burn, repeats(""), burn, repeats(""), burn, repeats("")), has_touch=True
    )
    expect(page.locator("#model")).to_have_text("test-model")
    expect(page.locator("#tools")).to_contain_text("burn")
    ask(page, "How much?")
    idle(page)
    answer = page.locator(".answer").last
    card = answer.locator(".call")
    expect(card.locator("summary")).to_contain_text("price")
    expect(card.locator("summary")).to_contain_text(" ms")
    card.locator("summary").click()
    expect(card.get_by_label("Arguments of price")).to_contain_text('"isbn": "9780"')
    expect(card.get_by_label("Result", exact=True)).to_have_text("4")
    text = answer.locator(".markdown").last
    expect(text.locator("strong")).to_have_text("Bold")
    expect(text.get_by_role("link")).to_have_attribute("href", "https://example.org/a")
    expect(text).to_contain_text("<img src=x onerror=alert(1)>")
    assert find_layout_problems(page) == []
    for choice, word in (("Decline", "Declined"), ("Approve, and don't ask again for this tool", None), (None, None)):
        ask(page, "Burn it")
        card = page.locator(".answer").last.locator(".call")
        if choice == "Decline":
            expect(card.get_by_role("group", name="Allow burn to run?")).to_contain_text("Burn a book.")
            assert find_layout_problems(page) == []
        if choice:
            press(card.get_by_role("button", name=choice))
        idle(page)
        if word:
            expect(card.locator("summary")).to_contain_text(word)
        else:
            expect(page.locator(".answer").last).to_contain_text("1 is gone")
            expect(card).to_have_class("call good")


@pytest.mark.nightly
def test_the_layout_fits_any_content(crowd: Callable[..., AbstractContextManager[str]], open_page: OpenPage) -> None:
    found: list[str] = []
    texts = {"long texts": "unbreakable" * 60 + "\n\n" + "word " * 300, "right-to-left": ARABIC}
    parameter = "a_parameter_whose_name_goes_on_and_on_without_ever_coming_to_its_end"
    wanted = {"long texts": ("long_words_", parameter), "right-to-left": ("greeting", "name")}
    script = [
        answer
        for state, text in texts.items()
        for name, parameter in [wanted[state]]
        for answer in (uses(name, json.dumps({parameter: text}), text), says(text))
    ]
    with crowd(*script, hangs("Once upon")) as address:
        page = open_page(address, lossy=True)
        expect(page.locator("#tool-count")).to_have_text("507")
        found += [f"500 tools: {each}" for each in find_problems(page, "playground")]
        for state, text in texts.items():
            ask(page, text)
            expect(page.get_by_role("button", name="Decline")).to_be_visible()
            found += [f"{state}, asked: {each}" for each in find_problems(page, "playground")]
            press(page.get_by_role("button", name="Decline"))
            idle(page)
            page.evaluate("document.querySelectorAll('#turns details').forEach((each) => (each.open = true))")
            found += [f"{state}: {each}" for each in find_problems(page, "playground")]
        ask(page, "A story")
        expect(page.locator(".answer").last).to_contain_text("Once")
        found += [f"busy: {each}" for each in find_problems(page, "playground")]
    expect(page.get_by_role("alert").filter(has_text="This conversation has ended.")).to_be_visible()
    found += [f"server gone: {each}" for each in find_layout_problems(page)]
    with crowd(says("Yes.")):
        expect(page.locator("#banner")).to_be_hidden()
        page.get_by_role("button", name="New conversation").click()
        ask(page, "Are you back?")
        idle(page)
        expect(page.locator(".answer")).to_contain_text("Yes.")
        found += [f"server back: {each}" for each in find_problems(page, "playground")]
        page.context.close()
    assert found == [], "\n".join(found)


def test_an_open_question_cannot_be_collapsed(shop: Callable[..., str], open_page: OpenPage) -> None:
    page = open_page(shop(calls(("burn", '{"isbn": "1"}')), says("Gone.")))
    ask(page, "Burn it")
    card = page.locator(".call")
    card.locator("summary").click()
    card.locator("summary").press("Enter")
    press(card.get_by_role("button", name="Approve", exact=True))
    idle(page)
    card.locator("summary").click()
    expect(card.get_by_label("Result", exact=True)).to_have_text("1 is gone")


def test_user_fills_in_a_form_and_stops_an_answer(shop: Callable[..., str], open_page: OpenPage) -> None:
    page = open_page(shop(calls(("deliver", "{}")), repeats("To "), hangs("Once upon"), says("Yes.")))
    ask(page, "Deliver it")
    form = page.get_by_role("form", name="Where to?")
    form.get_by_label("street").fill("Mill Lane")
    assert find_layout_problems(page) == []
    form.get_by_role("button", name="Send").click()
    expect(page.locator(".answer .markdown")).to_have_text("To Mill Lane, 1")
    ask(page, "A story")
    expect(page.locator(".answer").last).to_contain_text("Once")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".answer").last).to_contain_text("Stopped.")
    ask(page, "Still there?")
    expect(page.locator(".answer").last).to_contain_text("Yes.")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".answer")).to_have_count(0)
    expect(page.get_by_role("heading", name="What should the model do?")).to_be_visible()
    page.get_by_role("link", name="People").click()
    expect(page.get_by_label("Your name")).to_be_focused()


def test_screen_without_a_model_explains_how_to_configure_one(plain: str, open_page: OpenPage) -> None:
    page = open_page(f"{plain}/chat", name="Ada")
    page.get_by_role("link", name="Playground").click()
    expect(page.get_by_role("heading", name="Choose a model")).to_be_visible()
    expect(page.locator("#setup")).to_contain_text("DEFAULT_MODEL=your_model")
    expect(page.get_by_label("Ask the model", exact=True)).to_be_hidden()
    expect(page).to_have_title("Playground")
    assert find_layout_problems(page) == []
    page.go_back()
    expect(page.get_by_label("Message", exact=True)).to_be_visible()


def test_new_conversation_continues_after_the_old_one_ends(shop: Callable[..., str], open_page: OpenPage) -> None:
    page = open_page(shop(says("Hello."), says("Hello again.")), fresh=True)
    held: list[Route] = []
    sockets: list[WebSocketRoute] = []

    def relay(socket: WebSocketRoute) -> None:
        sockets.append(socket)
        socket.connect_to_server()

    def hold(route: Route) -> None:
        held.append(route)

    page.route_web_socket("**/chat/playground/talk", relay)
    ask(page, "Are you there?")
    idle(page)
    page.route("**/chat/playground", hold)
    with page.expect_request("**/chat/playground"):
        sockets[0].close()
    page.get_by_role("button", name="New conversation").click()
    with page.expect_response("**/chat/playground"):
        held[0].continue_()
    ask(page, "And now?")
    expect(page.locator(".answer")).to_have_text("Hello again.")
