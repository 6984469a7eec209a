"""A browser, the hub of the examples, and pages that must not complain.

The browser is Debian's Chromium, driven by Playwright, without the window around the pages: that window is made of
pages, too, and takes two thirds of the work of opening one. Every page that a test opens is watched: an error in the
console, an exception, or something that the Content-Security-Policy refused fails the test when it is over.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from pages_world import OpenPage, PagePool
from patience import WAIT
from processes import SharedServer, run_command, share_server

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


@pytest.fixture(scope="package")
def launched() -> Iterator[Callable[[], Browser]]:
    """One browser for the tests of this folder, and another one should it crash.

    Not for the session: Playwright runs an event loop in this thread as long as it lives, and other tests need one.
    """
    program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    assert program is not None, "These tests need Debian's chromium-headless-shell, or its chromium."
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
    """The browser of these tests."""
    return launched()


@pytest.fixture(scope="session")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """`examples/hub.py` with everything that runs beside MCP."""

    def command(port: int) -> list[str]:
        return run_command("examples/hub.py", port, "--serve", "all")

    with share_server(command, tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def hub(shared_hub: SharedServer) -> str:
    """The address of the hub."""
    return f"http://127.0.0.1:{shared_hub.port()}"


@pytest.fixture(scope="session")
def shared_plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """A server with the pages and the smallest example's one tool."""

    def command(port: int) -> list[str]:
        return run_command("examples/greet.py", port, "--serve", "web")

    with share_server(command, tmp_path_factory.mktemp("plain")) as server:
        yield server


@pytest.fixture
def plain(shared_plain: SharedServer) -> str:
    """The address of the plain server."""
    return f"http://127.0.0.1:{shared_plain.port()}"


@pytest.fixture(scope="session")
def shared_crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """`large_shop.py` with the pages."""

    def command(port: int) -> list[str]:
        return run_command(str(Path(__file__).parent / "large_shop.py"), port, "--serve", "all")

    with share_server(command, tmp_path_factory.mktemp("crowd")) as server:
        yield server


@pytest.fixture(scope="package")
def visits() -> PagePool:
    """The contexts of the browser that a test has left behind, clean."""
    return PagePool()


@pytest.fixture
def open_page(browser: Browser, visits: PagePool) -> Iterator[OpenPage]:
    """``open_page(url, name="", lossy=False, fresh=False, **options of the context)``: a page of a browser without a
    past. It may have files of the pages in its cache, as theirs has who come again; `fresh` has nothing.
    """
    visits.begin(browser)
    yield visits.open
    assert visits.end() == []
