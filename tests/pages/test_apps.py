import json
import re
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote, urlsplit

import httpx2
import pytest
from playwright.sync_api import Browser, FrameLocator, Page, Route, expect

from millstream._web.pages import app_policy
from pages_world import find_layout_problems, press
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server


FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "node_modules" / "@modelcontextprotocol" / "ext-apps" / "dist" / "src" / "app-with-deps.js"


class Open(BaseHTTPRequestHandler):
    """Answers pages of every origin; the official library of apps, or nothing."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("access-control-allow-origin", "*")
        self.send_header("content-type", "text/javascript")
        self.end_headers()
        if self.path == "/app-with-deps.js":
            self.wfile.write(LIBRARY.read_bytes())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[str]:
    """The address of a server with an app, which declares one of two servers elsewhere."""
    others = [ThreadingHTTPServer(("127.0.0.1", 0), Open) for _ in range(2)]
    threads = [Thread(target=each.serve_forever) for each in others]
    for each in threads:
        each.start()
    port = free_port()
    declared, undeclared = (f"http://127.0.0.1:{each.server_port}" for each in others)
    address = f"http://127.0.0.1:{port}"
    variables = {"SERVER": address, "DECLARED": declared, "UNDECLARED": undeclared}
    try:
        with run_server(run_command("tests/pages/app_shop.py", port), port, tmp_path / "log", **variables):
            yield address
    finally:
        for other in others:
            other.shutdown()
            other.server_close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own: what the browser says of a hostile app isn't a defect of ours."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, locale="en-GB")
    context.add_cookies([{"name": "millstream", "value": "secret", "url": "http://127.0.0.1"}])
    yield context.new_page()
    context.close()


def app(page: Page, address: str) -> FrameLocator:
    """Run the tool, and return the frame of its app."""
    page.goto(f"{address}/inspect#tool=stock")
    page.locator("#detail").get_by_role("button", name="Run", exact=True).click()
    frame = page.frame_locator(".app iframe")
    expect(frame.locator("#rows li")).to_have_text(["Book 0", "Book 1", "Book 2"])
    return frame


def test_app_gets_the_call_and_acts_only_with_approval(shop: str, page: Page) -> None:
    frame = app(page, shop)
    expect(frame.locator("#input")).to_have_text('{"count":3}')
    expect(page.locator(".app iframe")).to_have_css("height", "333px")
    for choice, rows in (("Decline", None), ("Approve", ["Counted 0", "Counted 1"])):
        frame.get_by_role("button", name="Refresh").click()
        asked = page.get_by_role("group", name="Allow it to call refresh?")
        expect(asked).to_contain_text('"count": 2')
        assert find_layout_problems(page) == []
        press(asked.get_by_role("button", name=choice))
        if rows:
            expect(frame.locator("#rows li")).to_have_text(rows)
        else:
            expect(frame.locator("#answer")).to_have_text("The user declined.")
    frame.get_by_role("button", name="Hidden tool").click()
    expect(frame.locator("#answer")).to_have_text("Apps have no tool secret.")
    frame.get_by_role("button", name="Say").click()
    page.get_by_text("What the app did").click()
    expect(page.locator(".app-events")).to_contain_text("Order more books")
    page.locator("#detail").get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".app iframe")).to_have_count(1)
    expect(frame.locator("#rows li")).to_have_text(["Book 0", "Book 1", "Book 2"])


def test_app_saves_files_only_with_approval(shop: str, page: Page) -> None:
    frame = app(page, shop)
    asked = page.get_by_role("group", name="Allow it to save stock.csv, -today.txt?")
    frame.get_by_role("button", name="Save").click()
    press(asked.get_by_role("button", name="Decline"))
    expect(frame.locator("#answer")).to_have_text('{"isError":true}')
    frame.get_by_role("button", name="Save").click()
    saved: list[tuple[str, str]] = []
    page.on("download", lambda each: saved.append((each.suggested_filename, each.path().read_text())))
    with page.expect_download(), page.expect_download(lambda each: "today" in each.suggested_filename):
        press(asked.get_by_role("button", name="Approve"))
    expect(frame.locator("#answer")).to_have_text("{}")
    assert dict(saved) == {"stock.csv": "title,count", "-today.txt": "Order books"}


def test_app_learns_that_its_call_was_canceled(shop: str, page: Page) -> None:
    page.goto(f"{shop}/inspect#tool=recount")
    detail = page.locator("#detail")
    detail.get_by_role("textbox", name="shelf").fill("top")
    detail.get_by_role("button", name="Run", exact=True).click()
    detail.get_by_role("button", name="Cancel").click()
    frame = page.frame_locator(".app iframe")
    expect(frame.locator("#answer")).to_have_text("Canceled: The user canceled the call.")
    expect(frame.locator("#partial")).to_have_text(re.compile(r'^\{\}(\{"shelf":"top"\})?$'))
    expect(frame.locator("#input")).to_contain_text('"shelf":"top"')
    expect(frame.locator("#rows li")).to_have_count(0)


COVER = """(on) => {
  document.getElementById("cover")?.remove();
  if (!on) return;
  document.body.insertAdjacentHTML("beforeend", "<dialog id=cover></dialog>");
  const cover = document.getElementById("cover");
  cover.show();
  Object.assign(cover.style, { position: "fixed", inset: 0, width: "100%", height: "100%" });
}"""


def test_approval_cannot_be_clicked_too_early_or_while_covered(shop: str, page: Page) -> None:
    page.set_viewport_size({"width": 1280, "height": 1400})
    page.clock.install()
    frame = app(page, shop)
    page.clock.pause_at(time.time() + 60)
    before = page.locator(".app iframe").bounding_box()
    frame.get_by_role("button", name="Refresh").click()
    card = page.get_by_role("group", name="Allow it to call refresh?")
    approve = card.get_by_role("button", name="Approve")
    expect(approve).to_be_disabled()
    assert page.locator(".app iframe").bounding_box() == before
    for covered in (False, True):
        if covered:
            page.evaluate(COVER, arg=True)
            page.clock.run_for(1_000)
            expect(approve).to_be_disabled()
            page.evaluate(COVER, arg=False)
        page.clock.run_for(500)
        expect(approve).to_be_disabled()
        page.clock.run_for(300)
        expect(approve).to_be_enabled()
    approve.press("Enter")
    expect(frame.locator("#rows li")).to_have_text(["Counted 0", "Counted 1"])


def test_an_app_cannot_flood_the_page(shop: str, page: Page) -> None:
    frame = app(page, shop)
    frame.get_by_role("button", name="Flood").click()
    expect(frame.locator("#answer")).to_have_text("An app sends at most 100 messages a second.")
    page.get_by_text("What the app did").click()
    events = page.locator(".app-events > li")
    assert 1 < events.count() <= 50
    expect(events.filter(has_text="A message was dropped").last).to_contain_text("100 messages a second")


def test_app_can_reach_only_domains_that_its_resource_declares(shop: str, page: Page) -> None:
    frame = app(page, shop)
    expect(frame.locator("#reached")).to_have_text("null: declared")
    expect(page.locator(".app")).to_contain_text("connects to http://127.0.0.1:")
    inner = next(each for each in page.frames if each is not page.main_frame)
    inner.evaluate("() => { try { top.location.href = 'http://127.0.0.1:1/'; } catch {} }")
    with page.expect_console_message(lambda each: "frame-src 'self'" in each.text):
        inner.evaluate("() => { location.href = 'http://127.0.0.1:1/?stolen'; }")
    expect(page.locator(".app")).to_be_visible()
    assert page.url.startswith(shop)
    assert not any("stolen" in each.url for each in page.frames)


WEBRTC = """async (port) => {
  const peer = new RTCPeerConnection({ iceServers: [{ urls: `stun:127.0.0.1:${port}` }] });
  const gathered = new Promise((done) => {
    peer.onicegatheringstatechange = () => peer.iceGatheringState === "complete" && done();
  });
  peer.createDataChannel("leak");
  await peer.setLocalDescription();
  await gathered;
}"""


def test_an_app_cannot_use_webrtc(shop: str, page: Page) -> None:
    app(page, shop)
    inner = next(each for each in page.frames if each is not page.main_frame)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.setblocking(False)
        inner.evaluate(WEBRTC, listener.getsockname()[1])
        with pytest.raises(BlockingIOError):
            listener.recv(100)


def test_frame_can_be_embedded_only_here_and_accepts_only_domains(shop: str) -> None:
    rules = dict(each.partition(" ")[::2] for each in app_policy({}).split("; "))
    assert (rules["connect-src"], rules["frame-src"], rules["sandbox"]) == ("'none'", "'none'", "allow-scripts")
    assert "'self'" not in rules["script-src"]
    for query, status in (
        ("connect=https://api.example.com&resource=https://*.example.com:8443", 200),
        ("connect=*", 400),
        ("connect=https://a.example;script-src *", 400),
        ("resource='unsafe-eval'", 400),
        ("&".join(["frame=https://a.example"] * 21), 400),
    ):
        assert httpx2.get(f"{shop}/inspect/app", params=query).status_code == status
    head = httpx2.get(f"{shop}/inspect/app").headers["content-security-policy"]
    assert "frame-ancestors 'self'" in head


# Apps of upstreams

OFFICE = """
import sys
from millstream import Server

mcp = Server("office")

@mcp.tool(meta={"ui": {"resourceUri": "ui://games/games/app"}})
def borrowed() -> str:
    \"\"\"Name a view of an upstream.\"\"\"
    return "ours"

for name in ("vault", "games"):
    mcp.upstream(name, [sys.executable, "-I", "-S", PROGRAM, name])
"""


@pytest.fixture
def office(tmp_path: Path) -> Iterator[str]:
    """The address of a gateway to two upstreams with apps."""
    (tmp_path / "office.py").write_text(OFFICE.replace("PROGRAM", repr(str(FOLDER / "app_upstream.py"))))
    port = free_port()
    with run_server(run_command(str(tmp_path / "office.py"), port, "--serve", "web"), port, tmp_path / "log"):
        yield f"http://127.0.0.1:{port}"


def test_an_app_uses_only_its_own_upstream_and_asks_first(office: str, page: Page) -> None:
    page.goto(f"{office}/inspect#tool=games_show")
    page.locator("#detail").get_by_role("button", name="Run", exact=True).click()
    frame = page.frame_locator(".app iframe")
    answers = frame.locator("#answers li")
    expect(answers).to_have_text(["ready"])
    for button, question, answer in (
        ("tools/call vault_peek", "", "Apps have no tool vault_peek."),
        ("tools/call games_peek", "Allow it to call games_peek?", "peeked into games"),
        (
            "resources/read note://vault/vault/one",
            "Allow it to read note://vault/vault/one?",
            "note://vault/vault/one isn't a resource of games.",
        ),
        ("resources/read note://games/games/one", "Allow it to read note://games/games/one?", "note of games"),
    ):
        frame.get_by_role("button", name=button).click()
        if question:
            asked = page.get_by_role("group", name=question)
            expect(asked).to_contain_text("The app of games asks:")
            press(asked.get_by_role("button", name="Approve"))
        expect(answers.last).to_have_text(answer)


def test_a_tool_cannot_show_the_app_of_another_server(office: str, page: Page) -> None:
    page.goto(f"{office}/inspect#tool=borrowed")
    page.locator("#detail").get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".app .notice")).to_contain_text(
        "ui://games/games/app comes from another server than borrowed."
    )


# The official library: @modelcontextprotocol/ext-apps


def host(page: Page, address: str, tool: str, given: dict[str, object]) -> FrameLocator:
    """Show the app of a tool in the official host: a page beside those of the server, so that it needs no CORS."""

    def answer(route: Route) -> None:
        path = urlsplit(route.request.url).path.removeprefix("/official/")
        kind = "text/html" if path.endswith(".html") else "text/javascript"
        route.fulfill(body=(FOLDER / path).read_bytes(), content_type=kind)

    page.route(f"{address}/official/**", answer)
    page.goto(f"{address}/official/official_host.html#{quote(json.dumps([tool, given]))}")
    return page.frame_locator("#app")


def test_the_official_host_shows_our_apps_and_calls_their_tools(shop: str, page: Page) -> None:
    frame = host(page, shop, "stock", {"count": 2})
    expect(frame.locator("#rows li")).to_have_text(["Book 0", "Book 1"])
    expect(frame.locator("#input")).to_have_text('{"count":2}')
    expect(page.locator("#app")).to_have_css("height", "333px")
    frame.get_by_role("button", name="Refresh").click()
    expect(frame.locator("#rows li")).to_have_text(["Counted 0", "Counted 1"])
    frame.get_by_role("button", name="Say").click()
    expect(page.locator("#said")).to_have_text("Order more books")


def test_the_official_host_shows_the_documented_app(tmp_path: Path, page: Page) -> None:
    port = free_port()
    command = ["sh", "-c", 'cd examples && exec "$@"', "sh", *run_command("charted.py", port)]
    with run_server(command, port, tmp_path / "log"):
        frame = host(page, f"http://127.0.0.1:{port}", "sales", {"year": 2026})
        expect(frame.get_by_text("Feb").first).to_be_visible()
        page.goto("about:blank")


def test_app_built_with_the_official_library_runs_in_the_inspector(shop: str, page: Page) -> None:
    page.goto(f"{shop}/inspect#tool=official")
    page.locator("#detail").get_by_role("button", name="Run", exact=True).click()
    frame = page.frame_locator(".app iframe")
    expect(frame.locator("#rows li")).to_have_text(["Book 0", "Book 1", "Book 2"])
    expect(frame.locator("#input")).to_have_text('{"count":3}')
    for choice in ("Decline", "Approve"):
        frame.get_by_role("button", name="Refresh").click()
        press(page.get_by_role("group", name="Allow it to call refresh?").get_by_role("button", name=choice))
        expected = "The user declined." if choice == "Decline" else "millstream-inspect: 1"
        expect(frame.locator("#answer")).to_contain_text(expected)
    expect(frame.locator("#rows li")).to_have_text(["Counted 0", "Counted 1"])
    page.get_by_text("What the app did").click()
    expect(page.locator(".app-events")).to_contain_text("Order more books")
    expect(page.locator(".app-events")).to_contain_text("refreshed")
