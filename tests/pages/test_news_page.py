"""The page of `examples/news.py`, which the guide to live pages opens, and the guide's scripts for it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import ConsoleMessage, Page, expect

from millstream.client import BlockingClient
from pages_world import OpenPage
from processes import ROOT, free_port, run_command, run_server
from proxies import NEEDS_NGINX, nginx_site

pytestmark = pytest.mark.server


def open_news(open_page: OpenPage, url: str, *, lossy: bool = False) -> Page:
    """Open the page, which has no icon."""
    page = open_page("about:blank", fresh=True, lossy=lossy)
    page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
    page.goto(f"{url}/news")
    return page


def script(name: str, url: str) -> str:
    """Return a script of the guide, for a server."""
    return (ROOT / "examples" / name).read_text("utf-8").replace("http://127.0.0.1:8000", url)


def publish(url: str, **message: object) -> None:
    """Call the tool."""
    with BlockingClient(f"{url}/mcp") as client:
        client.call("announce", **message)


def test_news_page_shows_earlier_and_new_announcements(open_page: OpenPage, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        run_server(run_command("examples/news.py", port), port, tmp_path / "log"),
        BlockingClient(f"{url}/mcp") as client,
    ):
        client.call("announce", text="Early")
        page = open_news(open_page, url)
        expect(page.get_by_role("listitem")).to_have_text(["Early"])
        assert client.call("announce", text="<b>Late</b>").text == "Sent to 1 on this worker."
        expect(page.get_by_role("listitem")).to_have_text(["Early", "<b>Late</b>"])


def test_script_in_the_guide_runs_in_the_page_console(open_page: OpenPage, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        run_server(run_command("examples/news.py", port), port, tmp_path / "log"),
        BlockingClient(f"{url}/mcp") as client,
    ):
        client.call("order", isbn="7")
        page = open_news(open_page, url)
        asks = script("news.js", url).replace('"orders.created"', '"orders.created", { history: 1 }')
        with page.expect_console_message(lambda message: message.text == "order: 7"):
            page.add_script_tag(content=asks, type="module")
        with page.expect_console_message(lambda message: message.text == "Hello"):
            client.call("announce", text="Hello")


@contextmanager
def behind_nginx(folder: Path) -> Iterator[tuple[ExitStack, list[str], int, str]]:
    """Run nginx with the site of the guide, in front of a server that a test starts and stops."""
    backend = free_port()
    site = (ROOT / "examples" / "nginx.conf").read_text("utf-8").replace("127.0.0.1:8000", f"127.0.0.1:{backend}")
    command = run_command("examples/news.py", backend, "--store", f"sqlite:///{folder}/store.db")
    with nginx_site(folder / "nginx", site.replace("server_name mcp.example.com;", "")) as port, ExitStack() as server:
        yield server, command, backend, f"http://127.0.0.1:{port}"


@NEEDS_NGINX
def test_news_page_behind_nginx_survives_two_restarts(open_page: OpenPage, tmp_path: Path) -> None:
    """nginx answers with 502 while the server is down."""
    with behind_nginx(tmp_path) as (server, command, backend, url):
        server.enter_context(run_server(command, backend, tmp_path / "log"))
        page = open_news(open_page, url, lossy=True)
        publish(url, text="0")
        expect(page.get_by_role("listitem")).to_have_text(["0"])
        for number in (1, 2):
            with page.expect_response(lambda response: response.status == 502):
                server.close()
            server.enter_context(run_server(command, backend, tmp_path / f"log{number}"))
            publish(url, text=f"{number}")
            expect(page.get_by_role("listitem")).to_have_text([f"{each}" for each in range(number + 1)])


@NEEDS_NGINX
def test_documented_event_source_survives_a_restart_behind_nginx(open_page: OpenPage, tmp_path: Path) -> None:
    said: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "log":
            said.append(message.text)

    with behind_nginx(tmp_path) as (server, command, backend, url):
        server.enter_context(run_server(command, backend, tmp_path / "log"))
        page = open_news(open_page, url, lossy=True)
        page.on("console", note)
        page.add_script_tag(content=script("eventsource.js", url))
        with page.expect_console_message(lambda message: message.text == "0"):
            publish(url, text="0")
        with page.expect_response(
            lambda response: response.status == 502 and "events?channel=news&history" in response.url
        ):
            server.close()
        server.enter_context(run_server(command, backend, tmp_path / "log2"))
        with page.expect_console_message(lambda message: message.text == "1"):
            publish(url, text="1")
        assert said == ["0", "1"]
