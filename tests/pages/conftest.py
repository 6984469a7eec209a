"""Fixtures for browser tests: the browser, shared servers, and pages.

The browser is Debian's headless Chromium, driven by Playwright. A test fails at its end if a page that it opened
logged a console error, raised an exception, or violated its Content-Security-Policy.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from pages_world import OpenPage, PagePool
from patience import WAIT
from processes import SharedServer, run_command, share_server
from programs import require_program

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
def launch_browser() -> Iterator[Callable[[], Browser]]:
    """Yield a function that returns the folder's browser, and restarts it after a crash.

    The scope isn't the session, because Playwright's event loop blocks this thread for other tests.
    """
    program = require_program("chromium-headless-shell", "chromium")
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
def browser(launch_browser: Callable[[], Browser]) -> Browser:
    """Return the browser."""
    return launch_browser()


@pytest.fixture(scope="session")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """Run `examples/hub.py` with everything switched on."""

    def command(port: int) -> list[str]:
        return run_command("examples/hub.py", port, "--serve", "all")

    with share_server(command, tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def hub(shared_hub: SharedServer) -> str:
    """Return the URL of the hub."""
    return f"http://127.0.0.1:{shared_hub.port()}"


@pytest.fixture(scope="session")
def shared_plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """Run `examples/greet.py`, which has one tool, with the pages."""

    def command(port: int) -> list[str]:
        return run_command("examples/greet.py", port, "--serve", "web")

    with share_server(command, tmp_path_factory.mktemp("plain")) as server:
        yield server


@pytest.fixture
def plain(shared_plain: SharedServer) -> str:
    """Return the URL of the server with one tool."""
    return f"http://127.0.0.1:{shared_plain.port()}"


@pytest.fixture(scope="session")
def shared_crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """Run `large_shop.py` with the pages."""

    def command(port: int) -> list[str]:
        return run_command(str(Path(__file__).parent / "large_shop.py"), port, "--serve", "all")

    with share_server(command, tmp_path_factory.mktemp("crowd")) as server:
        yield server


@pytest.fixture(scope="package")
def page_pool() -> PagePool:
    """Return the pool of cleared browser pages."""
    return PagePool()


@pytest.fixture
def open_page(browser: Browser, page_pool: PagePool) -> Iterator[OpenPage]:
    """Yield a function that opens a page: ``open_page(url, name="", lossy=False, fresh=False, **context_options)``.

    Pages come from a pool: without history, but with cached files. A `fresh` page has no cache, either.
    """
    page_pool.begin(browser)
    yield page_pool.open
    assert page_pool.end() == []
