import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from pages_world import LAYOUTS, SIZES, OpenPage, find_overflow, run_axe, schemes
from patience import WAIT
from processes import SharedServer, free_port, run_command, run_server
from property_settings import NIGHTLY

pytestmark = pytest.mark.server

WINDOWS = [*SIZES, *([(1920, 1080)] if NIGHTLY else [])]


@pytest.fixture
def crowd(shared_crowd: SharedServer) -> str:
    """The address of the crowded server."""
    return f"http://127.0.0.1:{shared_crowd.port()}"


def inspect(address: str, open_page: OpenPage, link: str = "", **options: object) -> Page:
    """The page, connected."""
    page: Page = open_page(f"{address}/inspect{link}", **options)
    expect(page.locator("#state")).to_have_text("Connected")
    return page


def result(page: Page) -> Locator:
    """Where the result is shown."""
    return page.get_by_role("region", name="Result")


def ran(page: Page, tool: str, outcome: str) -> None:
    """Open a tool by its address, and run it."""
    page.evaluate("(tool) => (location.hash = `#tool=${tool}`)", tool)
    expect(page.locator("#detail").get_by_role("heading", name=tool).first).to_be_visible()
    page.locator("#detail").get_by_role("button", name="Run", exact=True).click()
    expect(result(page)).to_contain_text(outcome)


def invalid(page: Page) -> None:
    """A nested form of which some values are missing, and one was added."""
    page.evaluate("location.hash = '#tool=place_order'")
    page.get_by_role("group", name="lines").get_by_role("button", name="Add item").click()
    page.get_by_role("group", name="prices").get_by_role("button", name="Add entry").click()
    page.locator("#detail").get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#argument-summary")).to_contain_text("don't fit the schema")


def logged(page: Page) -> None:
    """Log messages, with the panel that shows them."""
    ran(page, "chatty", "Done")
    page.get_by_role("tab", name="Logs").click()


def opened_message(page: Page) -> None:
    """A message with its headers."""
    ran(page, "broken", "Tool error")
    page.get_by_role("tab", name="Messages").click()
    page.locator("#traffic > li.failed summary").first.click()
    page.locator("#traffic").get_by_text("Headers").first.click()


def about(page: Page) -> None:
    """The server itself."""
    page.get_by_role("tab", name="History").click()
    page.evaluate("location.hash = '#server=About'")
    expect(page.locator("#about")).to_contain_text("3.2.1-rc.4")


STATES: dict[str, Callable[[Page], object]] = {
    "a form with errors": invalid,
    "every kind of content": lambda page: ran(page, "gallery", "Done"),
    "Markdown": lambda page: ran(page, "prose", "Done"),
    "logs": logged,
    "a failed message": opened_message,
    "about the server": about,
    "settings": lambda page: page.locator("#open-settings").click(),
    "the palette": lambda page: (page.keyboard.press("Escape"), page.keyboard.press("Control+k")),
    "the keys": lambda page: (page.keyboard.press("Escape"), page.keyboard.press("?")),
    "nothing found": lambda page: (page.keyboard.press("Escape"), page.locator("#filter").fill("no such tool")),
}

VIEWS = {"logs": "activity", "a failed message": "activity", "nothing found": "list"}
"""Where a phone shows what is new in a state; elsewhere it's the detail."""


def test_every_state_fits_every_size_and_passes_axe(crowd: str, open_page: OpenPage) -> None:
    page = inspect(crowd, open_page)
    page.get_by_role("tab", name="Logs").click()
    page.get_by_label("Ask for").select_option("debug")
    wrong: list[str] = []
    for name, enter in STATES.items():
        page.set_viewport_size({"width": 1280, "height": 720})
        page.emulate_media(color_scheme="light", reduced_motion="reduce")
        enter(page)
        for width, height in WINDOWS:
            page.set_viewport_size({"width": width, "height": height})
            for view in ("list", "detail", "activity") if width < 800 else ("list",):
                page.evaluate("(view) => (document.getElementById('main').dataset.view = view)", view)
                wrong += [f"{name}, {width}, {view}: {each}" for each in find_overflow(page)]
                if width not in LAYOUTS or (width < 800 and view != VIEWS.get(name, "detail")):
                    continue
                for place, scheme in enumerate(schemes(width)):
                    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                    found = run_axe(page, colors=place > 0)
                    wrong += [f"{name}, {scheme}, {width}: {each}" for each in found]
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_list_loads_without_layout_shift(crowd: str, open_page: OpenPage, scheme: str) -> None:
    page = open_page("about:blank", fresh=True, color_scheme=scheme)
    page.add_init_script(
        "window.shifts = []; new PerformanceObserver((list) => shifts.push(...list.getEntries().map((e) => e.value)))"
        ".observe({type: 'layout-shift', buffered: true});"
    )
    page.goto(f"{crowd}/inspect")
    expect(page.locator("#kinds")).to_contain_text("507")
    for width, height in WINDOWS:
        page.set_viewport_size({"width": width, "height": height})
        box = page.locator("#items").bounding_box()
        assert box is not None
        assert min(box["y"] + box["height"], height) - box["y"] >= 0.4 * height
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    page.reload()
    expect(page.locator("#kinds")).to_contain_text("507")
    assert page.evaluate("shifts.reduce((sum, each) => sum + each, 0)") < 0.02


def test_tools_can_be_run_by_keyboard_alone(crowd: str, open_page: OpenPage) -> None:
    """WCAG 2.2, 2.1.1."""
    page = inspect(crowd, open_page)
    page.keyboard.press("/")
    expect(page.locator("#filter")).to_be_focused()
    page.keyboard.type("tool_49")
    expect(page.locator("#items [role=option]")).to_have_count(10)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#items .at")).to_have_css("outline-style", "solid")  # while the focus is in the filter
    page.keyboard.press("Enter")
    expect(page.locator("#detail").get_by_role("heading", name="tool_491")).to_be_visible()
    expect(page.locator("#pane")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("7")
    page.keyboard.press("Control+Enter")
    expect(result(page)).to_contain_text("7")
    page.locator("#filter").fill("")
    page.locator("#items").focus()
    page.keyboard.press("End")
    expect(page.locator("#items").get_by_role("option", name="Other")).to_be_in_viewport()
    assert page.locator("#items [role=option]").count() < 60
    page.keyboard.press("Control+k")
    page.keyboard.type("tool_123")
    page.keyboard.press("Enter")
    expect(page.locator("#detail").get_by_role("heading", name="tool_123")).to_be_visible()
    page.keyboard.press("4")
    expect(page.locator("#no-items")).to_contain_text("No prompts")
    expect(page.get_by_role("tab", name="Prompts")).to_have_attribute("aria-selected", "true")


def test_nested_forms_produce_valid_values(crowd: str, open_page: OpenPage) -> None:
    page = inspect(crowd, open_page, "#tool=place_order")
    detail = page.locator("#detail")
    detail.get_by_label("customer").fill("Ada")
    detail.get_by_label("street").fill("Mill Lane 1")
    detail.get_by_label("zip").fill("1")
    detail.get_by_role("group", name="lines").get_by_role("button", name="Add item").click()
    detail.get_by_label("sku").fill("X-1")
    detail.get_by_label("count").fill("100")
    detail.get_by_role("group", name="bill_to").get_by_role("button", name="Add").click()
    detail.get_by_role("group", name="bill_to").get_by_label("street").fill("Weir Road 2")
    detail.get_by_role("button", name="Run", exact=True).click()
    expect(detail.get_by_text("At most 99; it's 100.")).to_be_visible()
    expect(detail.get_by_text("Must match")).to_be_visible()
    expect(detail.get_by_role("group", name="ship_to").get_by_label("zip")).to_be_focused()
    page.keyboard.type("0123")
    page.keyboard.press("Control+a")
    page.keyboard.type("54321")
    detail.get_by_label("count").fill("3")
    detail.get_by_role("button", name="Run", exact=True).click()
    expect(result(page)).to_contain_text("fits the schema")
    expect(result(page).get_by_label("Value", exact=True)).to_contain_text('sku: "X-1"')
    expect(result(page).get_by_label("Value", exact=True)).to_contain_text('zip: "54321"')
    assert run_axe(page) == []


def test_calls_can_be_edited_and_repeated(crowd: str, open_page: OpenPage) -> None:
    link = "#tool=tool_001&args=%7B%22number%22%3A41%7D"
    page = inspect(crowd, open_page, link, permissions=["clipboard-read", "clipboard-write"])
    field = page.locator("#detail").get_by_label("number")
    expect(field).to_have_value("41")
    page.keyboard.press("Control+Enter")
    page.locator("#detail").get_by_role("button", name="Run", exact=True).click()
    expect(result(page)).to_contain_text("41")
    page.locator("summary", has_text="Copy as").click()
    page.get_by_role("button", name="Link to this page").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()").endswith(link)
    page.evaluate("location.hash = '#tool=tool_002'")
    page.get_by_role("tab", name="History").click()
    page.locator("#history button").first.click()
    expect(field).to_have_value("41")
    page.get_by_role("tab", name="Messages").click()
    sent = page.locator("#traffic > li").filter(has_text="sent tools/call tool_001")
    sent.locator("summary").first.click()
    sent.get_by_role("button", name="Edit and resend").click()
    params = page.locator("#detail").get_by_label("params")
    assert '"number": 41' in params.input_value()
    params.fill('{"name": "tool_001", "arguments": {"number": 43}}')
    page.locator("#detail").get_by_role("button", name="Send").click()
    expect(result(page).get_by_label("Result", exact=True)).to_contain_text("43")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export the messages").click()
    lines = download.value.path().read_text().splitlines()
    assert any('"direction":"received"' in line and '"answers":' in line and "43" in line for line in lines)


def test_hostile_markdown_is_shown_as_text(crowd: str, open_page: OpenPage) -> None:
    page = inspect(crowd, open_page)
    ran(page, "prose", "<img src=x onerror=alert(1)>")
    expect(result(page).get_by_role("link")).to_have_count(1)
    expect(result(page).get_by_role("link")).to_have_attribute("rel", "noopener noreferrer")
    expect(result(page).get_by_role("columnheader", name="name")).to_be_visible()
    ran(page, "gallery", "Done")
    page.get_by_role("button", name="Read note://1").click()
    page.locator("#detail").get_by_role("button", name="Read", exact=True).click()
    expect(result(page).get_by_role("heading", name="Note 1")).to_be_visible()


STEPS = """async (text) => {
  const { markdown } = await import("./assets/render/markdown.js");
  const { element } = await import("./assets/dom.js");
  const append = Element.prototype.append;
  let [elements, scans, depth] = [0, 0, 0];
  Element.prototype.append = function (...nodes) {
    if (this.closest("[dir=auto]")) scans += nodes.length;
    append.apply(this, nodes);
  };
  const root = element("div", { dir: "auto" }, ...markdown(text));
  Element.prototype.append = append;
  for (let level = [...root.children]; level.length; level = level.flatMap((each) => [...each.children])) {
    [elements, depth] = [elements + level.length, depth + 1];
  }
  return [elements, scans, depth];
}"""
"""Elements of Markdown, nodes added where each makes the browser read all others for the direction, and the depth."""


def test_long_markdown_does_not_freeze_the_page(crowd: str, open_page: OpenPage) -> None:
    page = inspect(crowd, open_page)
    pieces = ("*_", "**a ", "~~a", "[a](", "`a ", "- a\n", "> ", "<http:", "a|", "a|\n-|\n" + "x|\n" * 10_000)
    texts = [(piece * (size // len(piece) + 1))[:size] for piece in pieces for size in (50_000, 1_000_000)]
    for text in (*texts, "*a " * 3_000 + "a* " * 3_000):
        elements, scans, depth = page.evaluate(STEPS, text)
        assert 1 <= elements <= 20_000, text[:10]
        assert scans == 0, text[:10]
        assert depth <= 250, text[:10]


@pytest.mark.parametrize("transport", ["HTTP+SSE", "WebSocket"])
def test_calls_logs_and_cancellation_work_on_other_transports(hub: str, open_page: OpenPage, transport: str) -> None:
    page = inspect(hub, open_page)
    page.locator("#transport").select_option(transport)
    expect(page.locator("#state")).to_have_attribute(
        "data-revision", "2024-11-05" if "SSE" in transport else "2026-07-28"
    )
    page.evaluate("location.hash = '#tool=long_task'")
    page.locator("#detail").get_by_label("steps").fill("1000")
    page.locator("#detail").get_by_label("seconds").fill("60")
    page.locator("#detail").get_by_role("button", name="Run", exact=True).click()
    expect(result(page)).to_contain_text(re.compile("of 1,?000"))
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(result(page)).to_contain_text("Canceled")
    expect(page.locator("#traffic").get_by_text("sent notifications/cancelled")).to_have_count(1)
    ran(page, "greet", "Hello, world!")


def test_the_users_roots_and_headers_are_sent(crowd: str, open_page: OpenPage) -> None:
    page = inspect(crowd, open_page)
    page.locator("#open-settings").click()
    page.get_by_label("Key or token").fill("mls_secret")
    page.get_by_role("button", name="Add a header").click()
    page.get_by_label("Name of the header").fill("x-tenant")
    page.get_by_label("Value of the header").fill("blue")
    with page.expect_request(lambda request: request.headers.get("x-tenant") == "blue") as sent:
        page.get_by_role("button", name="Save and reconnect").click()
    assert sent.value.headers["authorization"] == "Bearer mls_secret"
    expect(page.locator("#state")).to_have_text("Connected")
    page.locator("#traffic summary").last.click()
    page.locator("#traffic > li summary").first.click()
    assert "mls_secret" not in page.locator("#traffic").inner_text()
    page.evaluate("location.hash = '#server=Roots'")
    page.locator("#detail").get_by_role("button", name="Add item").click()
    page.locator("#detail").get_by_label("uri").fill("/home/ada")
    page.locator("#detail").get_by_role("button", name="Save").click()
    expect(page.get_by_text("isn't a valid uri")).to_be_visible()
    page.locator("#detail").get_by_label("uri").fill("file:///home/ada")
    page.locator("#detail").get_by_role("button", name="Save").click()
    expect(result(page)).to_contain_text("gets this root")


def test_theme_persists_without_a_flash(crowd: str, open_page: OpenPage) -> None:
    page = inspect(crowd, open_page, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.locator("#theme").click()
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate(ground) != light
    page.goto(f"{crowd}/docs", wait_until="commit")
    page.wait_for_function("document.body")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme ?? 'auto'") == "auto"


def test_other_servers_are_inspected_through_this_one(hub: str, open_page: OpenPage, tmp_path: Path) -> None:
    port = free_port()
    command = [*run_command("examples/greet.py", port, "--serve", "web"), "--inspect", f"{hub}/mcp"]
    with run_server(command, port, tmp_path / "log"):
        page = inspect(
            f"http://127.0.0.1:{port}", open_page, lossy=True, permissions=["clipboard-read", "clipboard-write"]
        )
        expect(page.locator(".server")).to_contain_text("Hello")
        page.locator("#server").select_option(f"{hub}/mcp")
        expect(page.locator(".server")).to_have_text("hub 1.0.0")
        expect(page.locator("#transport")).to_be_disabled()
        expect(page.locator("#kinds")).to_contain_text("Tools9")
        ran(page, "greet", "Hello, world!")
        page.locator("summary", has_text="Copy as").click()
        page.get_by_role("button", name="curl", exact=True).click()
        expect(page.get_by_text("Copied.")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()").startswith(f"curl -s {hub}/mcp")


def test_schema_violations_are_shown_with_their_path(hub: str, open_page: OpenPage) -> None:
    page = open_page("about:blank", fresh=True)

    def promise(route: Route) -> None:
        reply = route.fetch()
        body = reply.json()
        for tool in body.get("result", {}).get("tools", []):
            if "outputSchema" in tool:
                tool["outputSchema"] = {"type": "object", "required": ["unit"]}
        route.fulfill(response=reply, json=body)

    def refuse(route: Route) -> None:
        number = route.request.post_data_json["id"]
        route.fulfill(json={"jsonrpc": "2.0", "id": number, "error": {"code": -32601, "message": "Not here"}})

    ways = {"tools/list": promise, "resources/templates/list": refuse}
    page.route(
        "**/mcp",
        lambda route: ways.get((route.request.post_data_json or {}).get("method"), Route.continue_)(route),
    )
    page.goto(f"{hub}/inspect#tool=get_server_info")
    expect(page.locator("#state")).to_have_text("Connected")
    ran(page, "get_server_info", "deviation")
    expect(page.get_by_label("Deviations")).to_contain_text("unit Required.")
    expect(result(page).get_by_label("Value")).to_contain_text("unit: missing Required.")
    page.get_by_role("tab", name="Templates").click()
    expect(page.locator("#no-items")).to_contain_text("The server answered: Not here (-32601)")


def test_keys_can_be_entered_for_protected_servers(hub: str, open_page: OpenPage) -> None:
    page = open_page("about:blank", fresh=True, lossy=True)

    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer sesame":
            route.continue_()
        else:
            route.fulfill(status=401, json={"detail": "Send a key."})

    page.route("**/mcp", guard)
    page.goto(f"{hub}/inspect")
    expect(page.get_by_role("alert")).to_contain_text("wants you to sign in. Send a key.")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Key or token").fill("sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("Connected")
    expect(page.get_by_text("Connected again.")).to_be_visible()


@pytest.mark.parametrize("width", [1024, 1440])
def test_ways_to_copy_have_a_row_of_their_own_until_one_is_chosen(hub: str, open_page: OpenPage, width: int) -> None:
    page = inspect(hub, open_page, "#tool=greet", permissions=["clipboard-read", "clipboard-write"])
    page.set_viewport_size({"width": width, "height": 900})
    page.locator("#detail").get_by_label("name").fill("Ada")
    copies = page.locator("details", has=page.locator("summary", has_text="Copy as"))
    copies.locator("summary").click()
    assert copies.evaluate("(fold) => fold.clientWidth === fold.parentElement.clientWidth")
    assert page.locator("#activity-tabs").evaluate("(tabs) => tabs.scrollWidth === tabs.clientWidth")
    copies.get_by_role("button", name="Link to this page").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    expect(copies).not_to_have_attribute("open", "")
    expect(copies.locator("summary")).to_be_focused()


def test_copied_commands_run_elsewhere(hub: str, open_page: OpenPage) -> None:
    page = inspect(hub, open_page, permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(
        """location.hash = '#tool=greet&args=' + encodeURIComponent('{"name": "O\\'Hara \\\\"é\\\\" $HOME"}')"""
    )
    expect(page.locator("#detail").get_by_label("name")).to_have_value('O\'Hara "é" $HOME')
    for kind, command in (("curl", ["sh", "-c"]), ("Python", [sys.executable, "-c"])):
        page.locator("summary", has_text="Copy as").click()
        page.evaluate("navigator.clipboard.writeText('')")
        page.get_by_role("button", name=kind, exact=True).click()
        page.wait_for_function("async () => (await navigator.clipboard.readText()) !== ''")
        code = page.evaluate("navigator.clipboard.readText()")
        said = subprocess.run([*command, code], capture_output=True, text=True, timeout=WAIT, check=True)
        assert "Hello, O'Hara" in said.stdout
        assert "$HOME" in said.stdout
