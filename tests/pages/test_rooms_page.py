"""The chat page of the live pages guide: `examples/rooms.py` and its page `examples/rooms.html`."""

import re
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from millstream.client import BlockingClient
from pages_world import OpenPage, run_axe
from patience import WAIT
from processes import ROOT, free_port, run_command, run_server

pytestmark = pytest.mark.server

PROGRAM = "examples/rooms.py"
SIDEWAYS = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def enter(open_page: OpenPage, url: str, name: str, **options: object) -> Page:
    """Open the page and join with a name, by keyboard."""
    page: Page = open_page("about:blank", fresh=True, **options)
    page.goto(url)
    page.keyboard.press("Tab")
    expect(page.get_by_label("Your name")).to_be_focused()
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Connected.")
    return page


def say(page: Page, text: str) -> None:
    """Type a message where the focus is, and wait until it's sent."""
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type(text)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message", exact=True)).to_have_value("")


def expect_messages(page: Page, *texts: str) -> None:
    """Wait until the page shows these messages."""
    expect(page.get_by_role("log").get_by_role("paragraph")).to_have_text([*texts])


def test_two_visitors_talk_and_see_who_is_here(open_page: OpenPage, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with run_server(run_command(PROGRAM, port), port, tmp_path / "log"):
        ada = enter(open_page, url, "Ada")
        expect(ada.locator("#here")).to_have_text("Here: Ada")
        say(ada, "Hello")
        bob = enter(open_page, url, "Bob")
        expect(ada.locator("#here")).to_have_text("Here: Ada, Bob")
        expect(bob.locator("#here")).to_have_text("Here: Ada, Bob")
        say(bob, "<img src=x onerror=alert(1)>")
        with BlockingClient(f"{url}/mcp") as client:
            client.call("say", room="lobby", text="I'm a model.", name="Agent")
        for page in (ada, bob):
            expect_messages(page, "Ada: Hello", "Bob: <img src=x onerror=alert(1)>", "Agent: I'm a model.")
        bob.goto("about:blank")
        expect(ada.locator("#here")).to_have_text("Here: Ada")


def test_visitor_who_arrives_while_the_list_is_on_its_way_is_shown(open_page: OpenPage, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with run_server(run_command(PROGRAM, port), port, tmp_path / "log"):
        ada = open_page("about:blank", fresh=True)
        held = list[tuple[WebSocketRoute, str | bytes]]()

        def hold_list(socket: WebSocketRoute) -> None:
            def pass_on(message: str | bytes) -> None:
                if '"members"' in str(message):
                    held.append((socket, message))
                else:
                    socket.send(message)

            socket.connect_to_server().on_message(pass_on)

        ada.route_web_socket(re.compile("/ws$"), hold_list)
        ada.goto(f"{url}/?name=Ada")
        expect(ada.get_by_role("status")).to_have_text("Connected.")
        for _ in range(int(WAIT * 50)):
            if held:
                break
            ada.wait_for_timeout(20)
        bob = enter(open_page, url, "Bob")
        expect(bob.locator("#here")).to_have_text("Here: Ada, Bob")
        ((socket, message),) = held
        assert "Bob" not in str(message)
        socket.send(message)
        expect(ada.locator("#here")).to_have_text("Here: Ada, Bob")


def lose_first(page: Page, text: str, *, from_server: bool) -> list[str]:
    """Close the page's WebSocket instead of passing on the first message with a text. Return what was lost."""
    lost = list[str]()

    def connect(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        sender, receiver = (server, socket) if from_server else (socket, server)

        def pass_on(message: str | bytes) -> None:
            if text in str(message) and not lost:
                lost.append(str(message))
                socket.close()
                server.close()
            else:
                receiver.send(message)

        sender.on_message(pass_on)

    page.route_web_socket(re.compile("/ws$"), connect)
    return lost


def test_visitors_are_shown_after_the_connection_is_lost_while_the_list_is_requested(
    open_page: OpenPage, tmp_path: Path
) -> None:
    port = free_port()
    with run_server(run_command(PROGRAM, port), port, tmp_path / "log"):
        ada = open_page("about:blank", fresh=True)
        lost = lose_first(ada, '"members"', from_server=False)
        ada.goto(f"http://127.0.0.1:{port}/?name=Ada")
        expect(ada.locator("#here")).to_have_text("Here: Ada")
        assert lost


def test_message_that_is_sent_again_is_delivered_once(open_page: OpenPage, tmp_path: Path) -> None:
    """The first attempt is delivered, but the page doesn't get the confirmation."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with run_server(run_command(PROGRAM, port), port, tmp_path / "log"):
        ada = open_page("about:blank", fresh=True)
        lose_first(ada, '"published"', from_server=True)
        ada.goto(f"{url}/?name=Ada")
        expect(ada.get_by_role("status")).to_have_text("Connected.")
        ada.keyboard.type("Hello")
        ada.keyboard.press("Enter")
        expect(ada.get_by_role("alert")).to_have_text("Not sent: The connection was lost.")
        expect(ada.get_by_role("status")).to_have_text("Connected.")
        ada.keyboard.press("Enter")
        expect(ada.get_by_role("alert")).to_have_text("")
        say(ada, "Bye")
        expect_messages(ada, "Ada: Hello", "Ada: Bye")


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_page_shows_that_the_server_is_gone_and_continues(open_page: OpenPage, tmp_path: Path, store: str) -> None:
    """With the memory store, the page gets a gap, and starts over."""
    port = free_port()
    options = [] if store == "memory" else ["--store", f"sqlite:///{tmp_path}/store.db"]
    command = run_command(PROGRAM, port, *options)
    with ExitStack() as server:
        server.enter_context(run_server(command, port, tmp_path / "log"))
        ada = enter(open_page, f"http://127.0.0.1:{port}", "Ada", lossy=True)
        say(ada, "Before")
        expect_messages(ada, "Ada: Before")
        server.close()
        expect(ada.get_by_role("status")).to_have_text(re.compile(r"The .+\. Trying again soon\."))
        server.enter_context(run_server(command, port, tmp_path / "log2"))
        expect(ada.get_by_role("status")).to_have_text("Connected.")
        expect_messages(ada, *(["Ada: Before"] if options else []))
        say(ada, "After")
        expect_messages(ada, *(["Ada: Before"] if options else []), "Ada: After")
        expect(ada.locator("#here")).to_have_text("Here: Ada")
        ada.context.set_offline(True)
        expect(ada.get_by_role("status")).to_have_text("You're offline.")
        ada.context.set_offline(False)
        expect(ada.get_by_role("status")).to_have_text("Connected.")


def test_signed_in_visitors_cannot_use_another_name(open_page: OpenPage, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    file = tmp_path / "keys.json"
    start = run_command("", 0)[:3]
    keys = {
        name: subprocess.run(
            [*start, "keys", "add", name, "--file", str(file)], check=True, capture_output=True, text=True, timeout=WAIT
        ).stdout.strip()
        for name in ("Ada", "Eve")
    }  # fmt: skip
    pages = {name: open_page("about:blank", fresh=True, lossy=True) for name in keys}
    with run_server(run_command(PROGRAM, port), port, tmp_path / "log"):
        for page in pages.values():
            page.goto(url)  # which browsers mustn't cache, because the server asks for a key later
    with run_server(run_command(PROGRAM, port, "--serve", "web", "--auth-keys", str(file)), port, tmp_path / "log2"):
        for name, page in pages.items():
            page.goto(url)
            page.get_by_role("textbox").fill(keys[name])
            page.keyboard.press("Enter")
            page.get_by_label("Your name").fill("Ada")
            page.keyboard.press("Enter")
            expect(page.get_by_role("status")).to_have_text("Connected.")
            say(page, f"I'm {name}")
        for page in pages.values():
            expect_messages(page, "Ada: I'm Ada", "Eve: I'm Eve")
            expect(page.locator("#here")).to_have_text("Here: Ada, Eve")


def test_refused_message_stays_in_the_box(open_page: OpenPage, tmp_path: Path) -> None:
    program = tmp_path / "closed.py"
    text = (ROOT / PROGRAM).read_text("utf-8")
    program.write_text(text.replace('channel.startswith("room.")', "False"), "utf-8")
    (tmp_path / "rooms.html").write_bytes((ROOT / "examples" / "rooms.html").read_bytes())
    port = free_port()
    with run_server(run_command(str(program), port), port, tmp_path / "log"):
        page = enter(open_page, f"http://127.0.0.1:{port}", "Ada")
        page.keyboard.type("Hello")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("Not sent: You aren't allowed to publish")
        expect(page.get_by_label("Message", exact=True)).to_have_value("Hello")


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_page_is_accessible_and_fits_a_phone(open_page: OpenPage, tmp_path: Path, color_scheme: str) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with run_server(run_command(PROGRAM, port), port, tmp_path / "log"):
        page = open_page("about:blank", fresh=True, width=360, height=640, color_scheme=color_scheme)
        page.goto(url)
        assert run_axe(page) == []
        page.goto(f"{url}/?name=Ada")
        for number in range(30):
            say(page, f"{number}{'x' * 60}")
        expect_messages(page, *(f"Ada: {number}{'x' * 60}" for number in range(30)))
        expect(page.get_by_text("Ada: 29")).to_be_in_viewport()
        expect(page.get_by_role("button", name="Send")).to_be_in_viewport()
        assert run_axe(page) == []
        assert page.evaluate(SIDEWAYS) <= 0
        assert page.get_by_role("log").evaluate("log => log.scrollWidth - log.clientWidth") <= 0
        dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        color = page.evaluate("getComputedStyle(document.body).color")
        assert (dark, color) == (color_scheme == "dark", "rgb(255, 255, 255)" if dark else "rgb(0, 0, 0)")
