import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser

from pages_world import PagePool
from patience import WAIT

pytestmark = pytest.mark.server

PAGE = b"<!doctype html><link rel='icon' href='data:,'><title>A page</title>"
LOUD = PAGE + b"<script>console.error('mine')</script>"
LOST = PAGE + b"<img src='gone.svg' alt='A picture that is gone'>"
BODIES = {"/loud": LOUD, "/lost": LOST}
ICON = b"fetch('/favicon.ico').catch(() => null)"
MARK = b"<svg xmlns='http://www.w3.org/2000/svg'><script>%s</script></svg>" % ICON
"""A browser with a window looks for an icon by itself; this file does it in any."""


class Unlucky(BaseHTTPRequestHandler):
    """Stood still just after a page was cleared: that there is no icon, it says when the next page is asked for."""

    left: threading.Event
    """The page under test has been asked for."""
    said: threading.Event
    """The browser has told of the icon."""

    def do_GET(self) -> None:
        kind, body = "text/html", BODIES.get(self.path, PAGE)
        if self.path == "/favicon.ico":
            self.left.wait(WAIT)
        if self.path in ("/favicon.ico", "/gone.svg"):
            self.send_error(404)
            return
        if self.path == "/assets/mark.svg":
            kind, body = "image/svg+xml", MARK
        elif self.path == "/late":
            self.left.set()
            self.said.wait(WAIT)
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def unlucky() -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """Its address, and the events that it waits for: `left` and `said`."""
    left, said = threading.Event(), threading.Event()
    handler = type("Handler", (Unlucky,), {"left": left, "said": said})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", left, said
        server.shutdown()


def test_missing_favicon_is_not_reported_on_the_next_page(
    unlucky: tuple[str, threading.Event, threading.Event], browser: Browser
) -> None:
    address, _, said = unlucky
    visits = PagePool()
    visits.begin(browser)
    page = visits.open(f"{address}/page")
    page.on("console", lambda each: said.set() if "404" in each.text else None)
    assert visits.end() == []
    visits.begin(browser)
    assert visits.open(f"{address}/late") is page
    assert said.is_set()
    assert visits.end() == []
    visits.begin(browser)
    visits.open(f"{address}/loud")
    assert visits.end() == ["mine"]


def test_connection_errors_are_ignored_only_where_expected(
    unlucky: tuple[str, threading.Event, threading.Event], browser: Browser
) -> None:
    address, left, _ = unlucky
    left.set()
    visits = PagePool()
    visits.begin(browser)
    lost = visits.open(f"{address}/lost", lossy=True)
    loud = visits.open(f"{address}/loud", lossy=True)
    assert visits.end() == ["mine"]
    visits.begin(browser)
    assert visits.open(f"{address}/page") not in (lost, loud)
    assert visits.open(f"{address}/page", lossy=True) is lost
    assert loud.is_closed()
    assert visits.open(f"{address}/lost") not in (lost, loud)
    (word,) = visits.end()
    assert "status of 404" in word
