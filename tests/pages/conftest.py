"""A browser, the hub of the examples, and pages that must not complain.

The browser is Debian's Chromium, driven by Playwright. Every page that a test opens is watched: an error in the
console, an exception, or something that the Content-Security-Policy refused fails the test when it is over.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from pages_world import OpenPage
from patience import WAIT
from processes import Shared, millstream, shared

WAIT_MS = WAIT * 1000
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOST = re.compile(
    r"Failed to load resource: net::ERR_|status of (40[1349]|50[23])|^WebSocket connection to .+ failed: .*ERR_"
)
"""What Chromium itself says of a connection that a test cuts, an unknown session, a missing key, a wrong password, a
tool that fails."""

WATCH = """
document.addEventListener("securitypolicyviolation", (event) => {
  violated(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


@pytest.fixture(scope="module")
def launched() -> Iterator[Callable[[], Browser]]:
    """One browser for a file of tests, and another one should it crash; each page gets a context of its own.

    Not for the session: Playwright runs an event loop in this thread as long as it lives, and other tests need one.
    """
    program = shutil.which("chromium")
    assert program is not None, "These tests need Debian's chromium: apt-get install chromium."
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        found: list[Browser] = []

        def launch() -> Browser:
            if not found or not found[-1].is_connected():
                found.append(playwright.chromium.launch(executable_path=program, args=ARGUMENTS, timeout=WAIT_MS))
            return found[-1]

        yield launch
        for each in found:
            each.close()


@pytest.fixture
def browser(launched: Callable[[], Browser]) -> Browser:
    """The browser of the file."""
    return launched()


@pytest.fixture(scope="session")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """`examples/hub.py` with everything that runs beside MCP."""

    def command(port: int) -> list[str]:
        return millstream("examples/hub.py", port, "--serve", "all")

    with shared(command, tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def hub(shared_hub: Shared) -> str:
    """The address of the hub."""
    return f"http://127.0.0.1:{shared_hub.port()}"


@pytest.fixture(scope="session")
def shared_plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A server with the pages and the smallest example's one tool."""

    def command(port: int) -> list[str]:
        return millstream("examples/greet.py", port, "--serve", "web")

    with shared(command, tmp_path_factory.mktemp("plain")) as server:
        yield server


@pytest.fixture
def plain(shared_plain: Shared) -> str:
    """The address of the plain server."""
    return f"http://127.0.0.1:{shared_plain.port()}"


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """``open_page(url, name="", lossy=False, **options of the context)``: a page of a browser without a past."""
    opened: list[tuple[Page, list[str], bool]] = []

    def open_one(
        url: str, *, name: str = "", lossy: bool = False, width: int = 1280, height: int = 860, **options: Any
    ) -> Page:
        context = browser.new_context(viewport=ViewportSize(width=width, height=height), locale="en-GB", **options)
        context.set_default_timeout(WAIT_MS)
        said: list[str] = []
        context.expose_binding("violated", lambda _, text: said.append(text))
        context.add_init_script(WATCH)
        if name:
            context.add_init_script(f"localStorage.setItem('millstream.name', {name!r})")
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        opened.append((page, said, lossy))
        page.goto(url)
        return page

    yield open_one
    for page, said, lossy in opened:
        page.context.close()
        assert [text for text in said if not (lossy and LOST.search(text))] == []
