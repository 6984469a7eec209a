"""The checks of `make seeds` from a user's perspective: pages in two people's browsers, restarts, and several
workers."""

import asyncio
import os
import re
import signal
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import Popen, run
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

import aiohttp
from playwright.sync_api import Locator, Page, expect, sync_playwright

from millstream import Client
from patience import WAIT
from processes import run_server
from programs import find_program
from seeds import snippets_001 as snippets

PATIENCE_MS = 500
ELEMENTS = "".join(f"<p id={name}></p>" for name in ("server-status", "connection-count", "logs"))
LISTENERS = 8
CALL = (
    "curl -sS http://localhost:8000/mcp/tools/call "
    """-d '{"method": "tools/call", "params": {"name": "TOOL", "arguments": {}}}'"""
)
CALLED = "listeners on this worker"
SENT = "Received: {type: mcp_result, tool: send_sse_message"
KEY = "a-key-of-forty-eight-letters-for-the-container"
BROADCASTS = 40


class Server:
    """A server that a scene can stop, start again, and signal."""

    def __init__(self, words: list[str], port: int, log: Path) -> None:
        self._run = partial(run_server, words, port, log)
        self._stack = ExitStack()
        self.process: Popen[bytes]

    def __enter__(self) -> Self:
        self.process = self._stack.enter_context(self._run())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stack.close()


class Browser:
    """A browser, started at its first page. Each page has a profile of its own, like another person's."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._open: Callable[[], Page] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, url: str) -> Page:
        """Open a page."""
        if self._open is None:
            program = find_program("chromium-headless-shell", "chromium", "google-chrome")
            playwright = self._stack.enter_context(sync_playwright())
            started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
            self._stack.callback(started.close)
            self._open = lambda: started.new_context(locale="en-GB").new_page()
        page = self._open()
        page.set_default_timeout(WAIT * 1000)
        page.goto(url)
        return page

    def read(self, url: str, wanted: Sequence[str]) -> str:
        """Open a page, and return its text once everything that's wanted is visible."""
        page = self.open(url)
        for each in wanted:
            see(page.get_by_text(each).first)
        text = page.locator("body").inner_text()
        page.context.close()
        return text

    def run_script(
        self,
        script: str,
        then: list[str] | None,
        wanted: Sequence[str],
        variables: Mapping[str, str],
        *,
        from_disk: bool = False,
    ) -> str:
        """Run a page's script in a page of another origin, and return what's missing in its console and elements."""
        with TemporaryDirectory() as name, ExitStack() as stack:
            file = Path(name) / "page.html"
            file.write_text(
                f"<!doctype html><meta charset=utf-8>{ELEMENTS}<script type=module>{script}</script>", "utf-8"
            )
            handler = partial(QuietHandler, directory=name)
            site = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=site.serve_forever, daemon=True).start()
            stack.callback(site.shutdown)
            page = self.open("about:blank")
            stack.callback(page.context.close)
            printed: list[str] = []
            page.on("console", lambda message: printed.append(message.text))
            page.goto(file.as_uri() if from_disk else f"http://localhost:{site.server_port}/page.html")
            seen = ""
            for _ in range(int(WAIT * 1000 / PATIENCE_MS)):
                if then:
                    run(then, env=dict(variables), capture_output=True, timeout=WAIT, check=False)
                page.wait_for_timeout(PATIENCE_MS)
                seen = "\n".join([*printed, page.locator("body").inner_text()])
                if all(each in seen for each in wanted):
                    return ""
            return f"No {' or no '.join(wanted)} in: {seen[-400:]}"


class QuietHandler(SimpleHTTPRequestHandler):
    """A web server without a log."""

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


class Stage(NamedTuple):
    """What a scene has."""

    ports: Sequence[int]
    server: Server
    browser: Browser
    folder: Path
    type: Callable[[str], str]
    """Type a line in a shell, and return its output."""

    @property
    def url(self) -> str:
        return f"http://localhost:{self.ports[0]}"


def see(what: Locator) -> None:
    """Wait until something is visible."""
    expect(what).to_be_visible(timeout=WAIT * 1000)


def live(page: Page) -> None:
    """Wait until a page is connected."""
    expect(page.locator("#state")).to_have_text("Live", timeout=WAIT * 1000)


def join(stage: Stage, name: str) -> Page:
    """Open the chat as a person."""
    page = stage.browser.open(f"{stage.url}/chat")
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Join").click()
    live(page)
    return page


def write(page: Page, text: str, how: str = "hub") -> None:
    """Type a message and send it, by the hub or by the server's tool."""
    page.get_by_label("Send with").select_option(how)
    page.get_by_label("Message", exact=True).press_sequentially(text, delay=20)
    page.keyboard.press("Enter")


def message(page: Page, text: str) -> Locator:
    """A message on a page. There must be one of it."""
    return page.locator(".message", has=page.locator(".bubble").get_by_text(text, exact=True))


def signed(page: Page, text: str, sender: str) -> None:
    """Wait until a message is there with its sender and its time."""
    see(message(page, text))
    expect(message(page, text).locator("strong")).to_have_text(sender, timeout=WAIT * 1000)
    expect(message(page, text).locator("time")).to_have_count(1)


def chat(stage: Stage) -> None:
    """Two people write, by the hub and by the tool, and go on after a restart."""
    ada, bob = join(stage, "Ada"), join(stage, "Bob")
    see(ada.locator("#members").get_by_text("Bob", exact=True))
    write(ada, "Hello, Bob")
    signed(bob, "Hello, Bob", "Ada")
    bob.get_by_label("Message", exact=True).press_sequentially("Hel", delay=20)
    see(ada.get_by_text("Bob is typing"))
    write(bob, "lo, Ada", "tool")
    signed(ada, "Hello, Ada", "Bob")
    expect(ada.get_by_text("Bob is typing")).to_be_hidden()
    stage.type(CALL.replace("TOOL", "send_sse_message").replace("{}", '{"message": "User1: Hello everyone!"}'))
    for page in (ada, bob):
        see(message(page, "User1: Hello everyone!"))
    stage.server.stop()
    expect(ada.locator("#state")).not_to_have_text("Live", timeout=WAIT * 1000)
    write(ada, "Written while it restarts")
    stage.server.__enter__()
    live(bob)
    signed(bob, "Written while it restarts", "Ada")
    for page in (ada, bob):
        expect(message(page, "Written while it restarts")).to_have_count(1)
        expect(page.get_by_text("no longer has some older messages")).to_have_count(1)
        page.context.close()


def dashboard(stage: Stage) -> None:
    """The dashboard counts what happens while it's open, and continues after a restart."""
    page = stage.browser.open(f"{stage.url}/dashboard")
    live(page)
    call = CALL.replace("TOOL", "get_server_info")
    for _ in range(2):
        expect(page.locator("#calls")).to_have_text("0", timeout=WAIT * 1000)
        expect(page.locator("#connection-count")).not_to_have_text("–", timeout=WAIT * 1000)
        before = int(page.locator("#connection-count").inner_text())
        other = stage.browser.open("about:blank")
        other.goto(f"{stage.url}/health")
        other.evaluate("window.stream = new EventSource('/events')")
        stage.type(f"{call}; {call}; {call}")
        expect(page.locator("#calls")).to_have_text("3", timeout=WAIT * 1000)
        expect(page.locator("#connection-count")).to_have_text(str(before + 1), timeout=WAIT * 1000)
        see(page.locator("#tools").get_by_text("get_server_info", exact=True))
        other.context.close()
        stage.server.stop()
        stage.server.__enter__()
        live(page)
    page.context.close()


def scripts_from_disk(stage: Stage) -> None:
    """The document's scripts work in a page from disk, where the server allows the origin null."""
    call = CALL.replace("TOOL", "send_sse_message").replace("{}", '{"message": "for the disk"}')
    for script, wanted in (
        (snippets.EVENTS_JS, "Received SSE message: for the disk"),
        (snippets.DASHBOARD_JS, "Server: broadcast"),
        (snippets.WEBSOCKET_JS, SENT),
    ):
        text = script.replace("localhost:8000", f"localhost:{stage.ports[0]}")
        then = ["bash", "-c", call.replace("8000", str(stage.ports[0]))]
        missing = stage.browser.run_script(text, then, [wanted], os.environ, from_disk=True)
        assert not missing, missing


def sent_by_websocket(stage: Stage) -> None:
    """Listeners hear what the document's script sends by WebSocket."""
    heard = stage.type("curl -sN --max-time 2 'http://localhost:8000/events?history=9' || true")
    assert "data: Hello from WebSocket client!" in heard, heard


def addresses(stage: Stage) -> list[str]:
    """The addresses in the README's table."""
    rows = re.findall(r"^\| (`/.*`) \|", (stage.folder / "README.md").read_text("utf-8"), re.MULTILINE)
    return [path for row in rows for path in re.findall(r"`(/[^`]*)`", row)]


PAGES = {"/chat": "Chat", "/dashboard": "Dashboard", "/docs": "send_sse_message", "/inspect": "Tools"}


def compose_without_key(stage: Stage) -> None:
    """Callers need no key, and a closed page says how to open it, as the README does."""
    readme = (stage.folder / "README.md").read_text("utf-8")
    assert set(PAGES) < set(addresses(stage))
    assert CALLED in stage.type(CALL.replace("TOOL", "get_server_info"))
    for path in ("/chat", "/dashboard"):
        page = stage.browser.open(f"{stage.url}{path}")
        see(page.get_by_text("MCP_SERVER_AUTH_KEY"))
        assert "MCP_SERVER_AUTH_KEY" in readme
        page.context.close()


def compose_with_key(stage: Stage) -> None:
    """Two people sign in with the key, open each page of the README, and callers need the key."""
    refused = stage.type("curl -s http://localhost:8000/mcp/tools/list -d '{}'")
    assert "send_sse_message" not in refused
    for _ in range(2):
        page = stage.browser.open(f"{stage.url}/chat")
        sign_in(page, KEY)
        for path, text in PAGES.items():
            page.goto(f"{stage.url}{path}")
            see(page.get_by_text(text).first)
        page.context.close()


def sign_in(page: Page, key: str) -> None:
    """Sign in with a key."""
    page.get_by_label("Key or token").fill(key)
    page.get_by_role("button", name="Sign in").click()


def streamed_calls(stage: Stage) -> None:
    """Each of several clients hears the steps of its own calls, whichever process runs them."""

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        call = {"name": "add_numbers", "arguments": {"a": number, "b": 100, "stream": True}}
        body = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": call}
        address = f"{stage.url}/mcp?client_id=client-{number}"
        async with session.get(f"{stage.url}/mcp/sse/client-{number}") as stream:
            async with session.post(address, json=body, headers={"Connection": "close"}) as reply:
                assert reply.status == 200
            seen = b""
            while b"Adding" not in seen or f'"text":"{number + 100}"'.encode() not in seen:
                line = await stream.content.readline()
                assert line, seen
                seen += line

    async def clients() -> None:
        async with aiohttp.ClientSession() as session, asyncio.timeout(WAIT):
            await asyncio.gather(*(client(session, number) for number in range(LISTENERS)))

    _run_apart(clients())


async def _listen(url: str, session: aiohttp.ClientSession, connected: asyncio.Semaphore) -> None:
    """Hear every broadcast, also when streams end. A stream's first event tells that its subscription is active.

    As in browsers, the id of an event counts once the whole event has arrived: a stream can end within one.
    """
    last, missing = "", {f"Broadcast {number}" for number in range(BROADCASTS)}
    while missing:
        try:
            headers = {"Last-Event-ID": last} if last else {}
            async with session.get(f"{url}/events", headers=headers) as response:
                arriving, opened = last, False
                while missing and (line := (await response.content.readline()).decode()):
                    if not opened:
                        opened = True
                        connected.release()
                    name, _, value = line.strip().partition(": ")
                    if name == "id":
                        arriving = value
                    elif name == "data":
                        missing.discard(value)
                    elif not name:
                        last = arriving
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)


async def _broadcast(url: str, restart: Callable[[], None] | None = None) -> None:
    """Broadcast to listeners, and restart the workers under their streams after half of it."""
    connected = asyncio.Semaphore(0)
    async with aiohttp.ClientSession() as session, asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        for _ in range(LISTENERS):
            group.create_task(_listen(url, session, connected))
        for number in range(BROADCASTS):
            if number == 0 or (restart and number == BROADCASTS // 2):
                if number and restart:
                    restart()
                for _ in range(LISTENERS):
                    await connected.acquire()
            arguments = {"name": "send_sse_message", "arguments": {"message": f"Broadcast {number}"}}
            # A new connection for each call, which any of the processes may get.
            body = {"method": "tools/call", "params": arguments}
            async with session.post(f"{url}/mcp/tools/call", json=body, headers={"Connection": "close"}) as reply:
                assert "Sent to" in await reply.text()


def _run_apart(work: Coroutine[Any, Any, None]) -> None:
    """Run in another thread, because Playwright's event loop may have this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


def broadcasts(stage: Stage) -> None:
    """Every listener hears every broadcast, whichever process has it."""
    _run_apart(_broadcast(stage.url))


def rolling_restart(stage: Stage) -> None:
    """No listener misses a broadcast while workers are replaced."""
    _run_apart(_broadcast(stage.url, lambda: stage.server.process.send_signal(signal.SIGHUP)))


def restart_between_calls(stage: Stage) -> None:
    """A client calls a tool, the server restarts, and the client calls it again."""

    async def call() -> None:
        for path in ("/sse", "/mcp"):
            async with Client(f"{stage.url}{path}", headers={"Authorization": "Bearer my_secret_key"}) as client:
                assert "+00:00" in (await client.call("get_current_time")).text
                stage.server.stop()
                stage.server.__enter__()
                assert "+00:00" in (await client.call("get_current_time")).text

    asyncio.run(call())


def inspector(stage: Stage) -> None:
    """The inspector opens with the server's name."""
    page = stage.browser.open(f"{stage.url}/inspect")
    see(page.get_by_text("My App").first)
    page.context.close()


def orders(stage: Stage) -> None:
    """Two people sign in with the key and see each order once, also after everything was restarted."""
    people: list[Page] = []
    for name in ("Ada", "Bob"):
        page = stage.browser.open(f"{stage.url}/chat")
        sign_in(page, "key-of-the-orders-example")
        page.get_by_label("Your name").fill(name)
        page.get_by_role("button", name="Join").click()
        live(page)
        people.append(page)
    for item in ("tea", "cake"):
        if item == "cake":
            stage.server.stop()
            stage.server.__enter__()
            for page in people:
                live(page)
        stage.type(f"millstream call http://localhost:8002/mcp place_order user=ada item={item} copies=2")
        for page in people:
            see(message(page, f"Ada Lovelace ordered 2 × {item}."))
    for page in people:
        for item in ("tea", "cake"):
            expect(message(page, f"Ada Lovelace ordered 2 × {item}.")).to_have_count(1)
        page.context.close()
