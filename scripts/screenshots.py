"""Take the pictures of the pages that the README and the guides show: docs/images/PAGE-SCHEME-WIDTH.png.

Run it after a change to a page, with the environment of the tests and Debian's chromium: ``.venv/bin/python
scripts/screenshots.py``. It starts examples/hub.py, generates some activity, and opens each page in both color schemes,
at desktop and phone width. The pages of other servers have one picture each: sign-in.png, sign-in-key.png, gateway.png,
and rooms.png. With names, such as ``scripts/screenshots.py inspect``, only those pages.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "images"
with socket.create_server(("127.0.0.1", 0)) as listener:
    PORT: int = listener.getsockname()[1]
ADDRESS = f"http://127.0.0.1:{PORT}"
SIZES = {"desk": ViewportSize(width=1360, height=850), "phone": ViewportSize(width=360, height=740)}
TALK = [
    ("Grace", "Morning! Is the new build on staging?"),
    ("Ada", "Since half past eight. Streams resume now: pull your cable and see."),
    ("Grace", "Offline, online, and not one line missing.\nI'll put it in the notes."),
    ("Ada", "And the dashboard shows who was slow."),
    ("Mary", "Joining late – the history was there when I came."),
]
MINUTE_MS = 62_000
"""The period of the charts."""


def call(tool: str, arguments: dict[str, Any]) -> None:
    """Call a tool of the hub."""
    body = json.dumps({"name": tool, "arguments": arguments}).encode()
    request = Request(f"{ADDRESS}/mcp/tools/call", body, {"content-type": "application/json"})  # noqa: S310  loopback
    urlopen(request, timeout=5).close()  # noqa: S310


def wait_for(address: str) -> None:
    """Wait until a server answers."""
    for _ in range(1200):
        try:
            urlopen(f"{address}/livez", timeout=1).close()  # noqa: S310
            return
        except URLError:
            time.sleep(0.05)


@contextmanager
def serving() -> Iterator[None]:
    """Run the hub inside the block."""
    start = "from millstream._cli import main; main()"
    command = [sys.executable, "-c", start, "run", "examples/hub.py", "--port", str(PORT), "--serve", "all"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for(ADDRESS)
        yield
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def busy() -> Iterator[None]:
    """Make calls at varying times, as on a working day."""
    over = Event()
    chance = random.Random(7)  # noqa: S311  no secret

    def work() -> None:
        while not over.is_set():
            for _ in range(chance.randint(2, 14)):
                kind = chance.random()
                if kind < 0.5:
                    call("add_numbers", {"a": 1, "b": 2})
                elif kind < 0.75:
                    call("greet", {"name": "Ada"})
                else:
                    call("get_current_time", {"timezone": "UTC" if kind < 0.98 else "Mars/Base"})
            if chance.random() < 0.2:
                call("long_task", {"steps": 4, "seconds": 0.02})
            over.wait(chance.random() * 0.15)

    worker = Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join(10)


def dashboard(page: Page, open_other: Callable[[str], Page]) -> None:
    """Show the dashboard after a minute of activity."""
    page.goto(f"{ADDRESS}/dashboard")
    page.locator("#state:text-is('Live')").wait_for()


def docs(page: Page, open_other: Callable[[str], Page]) -> None:
    """Show a tool after a call."""
    page.goto(f"{ADDRESS}/docs#tool=add_numbers")
    page.get_by_role("spinbutton", name="a", exact=True).fill("19")
    page.get_by_role("spinbutton", name="b", exact=True).fill("23")
    page.get_by_role("button", name="Run").click()
    page.get_by_label("Reply", exact=True).wait_for()
    page.evaluate("document.activeElement.blur(); document.getElementById('pane').scrollTop = 0")


def chat(page: Page, open_other: Callable[[str], Page]) -> None:
    """Show a chat among three people."""
    for name in ("Grace", "Mary"):
        open_other(name).goto(f"{ADDRESS}/chat")
    page.goto(f"{ADDRESS}/chat")
    page.locator("#members").get_by_text("Mary").wait_for(state="attached")
    page.get_by_text(TALK[-1][1]).wait_for()


def join(page: Page, open_other: Callable[[str], Page]) -> None:
    """Show the chat before the user joins."""
    page.goto(f"{ADDRESS}/chat")
    page.locator("#server-name:text-is('hub')").wait_for(state="attached")
    page.evaluate("localStorage.clear()")
    page.get_by_role("button", name="Change name").click()


def inspect(page: Page, open_other: Callable[[str], Page]) -> None:
    """Show a tool that asks a question."""
    page.goto(f"{ADDRESS}/inspect")
    page.locator("#state:text-is('Connected')").wait_for()
    page.locator("#items").get_by_role("option", name="order_parcel").click()
    page.get_by_role("textbox", name="item").fill("A lamp")
    page.locator("#detail").get_by_role("button", name="Run").click()
    page.get_by_label("street").fill("Mill Lane 1")
    page.get_by_label("city").fill("York")
    if page.viewport_size == SIZES["desk"]:
        page.get_by_role("button", name="Accept").click()
        page.get_by_text("Raw result").wait_for()
        answer = page.locator("#traffic > li").filter(has_text="order_parcel").first
        answer.locator("summary").first.click()
        page.mouse.move(0, 0)


def take(browser: Browser, act: Callable[..., None], looks: list[tuple[Any, str]], settle_ms: int = 0) -> None:
    """Take a picture for each scheme and size, all at the same time."""
    contexts: list[BrowserContext] = []
    pages: list[tuple[str, Page]] = []
    for scheme, size in looks:

        def open_one(person: str, scheme: Any = scheme, size: str = size) -> Page:
            context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, locale="en-GB")
            context.add_init_script(f"localStorage.setItem('millstream.name', JSON.stringify({person!r}))")
            context.set_default_timeout(120_000)
            contexts.append(context)
            return context.new_page()

        page = open_one("Ada")
        act(page, open_one)
        pages.append((f"{act.__name__}-{scheme}-{size}.png", page))
    page.wait_for_timeout(settle_ms)
    for name, page in pages:
        path = FOLDER / name
        page.screenshot(path=path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KiB")
    for context in contexts:
        context.close()


@contextmanager
def signing_people_in() -> Iterator[str]:
    """Run the book shop with sign-in inside the block. Yield the URL at which a program asks for access."""
    start = [sys.executable, "-c", "from millstream._cli import main; main()"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    shop = f"http://127.0.0.1:{port}"
    program = {
        "client_name": "Bookworm",
        "redirect_uris": ["http://127.0.0.1:7777/callback"],
        "token_endpoint_auth_method": "none",
    }
    asked = {
        "response_type": "code",
        "redirect_uri": program["redirect_uris"][0],
        "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",  # the example of RFC 7636
        "code_challenge_method": "S256",
        "scope": "orders:write",
    }
    with TemporaryDirectory() as folder:
        users = f"{folder}/users.json"
        add = [*start, "users", "add", "ada", "--scope", "orders:write", "--file", users]
        subprocess.run(add, input=b"a password\n", stdout=subprocess.DEVNULL, cwd=ROOT, check=True)
        process = subprocess.Popen(
            [*start, "run", "examples/sign_in.py", "--port", str(port)], cwd=ROOT, stderr=subprocess.DEVNULL,
            env={**os.environ, "SHOP_URL": shop, "SHOP_USERS": users},
        )  # fmt: skip
        try:
            wait_for(shop)
            request = Request(f"{shop}/register", json.dumps(program).encode(), {"content-type": "application/json"})  # noqa: S310  loopback
            with urlopen(request, timeout=5) as reply:  # noqa: S310
                client = json.load(reply)["client_id"]
            yield f"{shop}/authorize?{urlencode({**asked, 'client_id': client})}"
        finally:
            process.terminate()
            process.wait(10)


@contextmanager
def running(*arguments: str, folder: str, **environment: str) -> Iterator[str]:
    """Run a server or a gateway in an examples folder inside the block. Yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environ = {**os.environ, **environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", "from millstream._cli import main; main()", *arguments, "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT / "examples" / folder, stderr=subprocess.DEVNULL, env=environ)
    try:
        wait_for(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def take_consent(browser: Browser) -> None:
    """Take the page on which a user signs in and approves a program."""
    with signing_people_in() as address:
        page = browser.new_page(viewport=ViewportSize(width=560, height=516), color_scheme="light", locale="en-GB")
        page.goto(address)
        page.wait_for_timeout(300)
        page.screenshot(path=FOLDER / "sign-in.png")


def take_gateway(browser: Browser) -> None:
    """Take the page of the guide's gateway, after some calls."""
    with running("gateway", "servers.json", "--serve", "web,rest", folder="gateway") as address:
        for name, arguments in (("shop_search_books", {"words": "Tolkien"}), ("warehouse_count", {"isbn": "1"})):
            for _ in range(4):
                body = json.dumps({"name": name, "arguments": arguments}).encode()
                request = Request(f"{address}/mcp/tools/call", body, {"content-type": "application/json"})  # noqa: S310
                urlopen(request, timeout=30).close()  # noqa: S310
        page = browser.new_page(viewport=ViewportSize(width=1360, height=520), color_scheme="light", locale="en-GB")
        page.goto(f"{address}/gateway")
        page.locator("#upstreams").get_by_text("shop").first.click()
        page.locator("#tools").get_by_text("shop_order").wait_for()
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)
        page.screenshot(path=FOLDER / "gateway.png")


def take_rooms(browser: Browser) -> None:
    """Take the chat of the guide to live pages, with two visitors."""
    with running("run", "rooms.py", folder=".") as address:
        ada, bob = (
            browser.new_page(viewport=ViewportSize(width=640, height=600), color_scheme="light", locale="en-GB")
            for _ in range(2)
        )
        for page, name, text in ((ada, "Ada", "Is the new shelf up?"), (bob, "Bob", "Since this morning.")):
            page.goto(f"{address}/?name={name}")
            page.get_by_text("Connected.").wait_for()
            page.keyboard.type(text)
            page.keyboard.press("Enter")
            ada.get_by_text(text).wait_for()
        ada.get_by_text("Here: Ada, Bob").wait_for()
        ada.screenshot(path=FOLDER / "rooms.png")


def take_key_form(browser: Browser) -> None:
    """Take the form in which a browser sends a key."""
    with running("run", "archive.py", "--serve", "web", folder=".", MCP_SERVER_AUTH_KEY="k" * 32) as address:
        page = browser.new_page(viewport=ViewportSize(width=900, height=520), color_scheme="light", locale="en-GB")
        page.goto(f"{address}/inspect")
        page.get_by_role("button", name="Sign in").wait_for()
        page.screenshot(path=FOLDER / "sign-in-key.png")


def main() -> None:
    """Take all pictures, or only those of the named pages."""
    program = shutil.which("chromium") or shutil.which("chromium-headless-shell")
    if program is None:
        sys.exit("This needs Debian's chromium: apt-get install chromium.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with serving(), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for name, text in TALK:
            call("send_sse_message", {"message": text, "name": name, "channel": "broadcast"})
        looks = [(scheme, size) for scheme in ("light", "dark") for size in SIZES]
        wanted = sys.argv[1:] or ["chat", "docs", "inspect", "sign-in", "gateway", "sign-in-key", "rooms", "dashboard"]
        for name, one in (
            ("sign-in", take_consent),
            ("sign-in-key", take_key_form),
            ("gateway", take_gateway),
            ("rooms", take_rooms),
        ):
            if name in wanted:
                one(browser)
        for act in (chat, join, docs, inspect):
            for look in looks if act.__name__ in wanted else []:
                take(browser, act, [look], settle_ms=300)
        if "dashboard" in wanted:
            with busy():
                take(browser, dashboard, looks, settle_ms=MINUTE_MS)
        browser.close()


if __name__ == "__main__":
    main()
