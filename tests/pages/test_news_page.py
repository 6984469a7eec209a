"""The page of `examples/news.py`, which the guide to live pages opens."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from millstream.client import BlockingClient
from pages_world import OpenPage
from processes import ROOT, free_port, run_command, run_server

pytestmark = pytest.mark.server


def open_news(open_page: OpenPage, url: str) -> Page:
    """Open the page, which has no icon."""
    page = open_page("about:blank", fresh=True)
    page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
    page.goto(f"{url}/news")
    return page


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
        assert client.call("announce", text="<b>Late</b>").text == "1 on this worker heard it."
        expect(page.get_by_role("listitem")).to_have_text(["Early", "<b>Late</b>"])


def test_script_in_the_guide_runs_in_the_page_console(open_page: OpenPage, tmp_path: Path) -> None:
    port = free_port()
    script = (ROOT / "examples/news.js").read_text("utf-8").replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    url = f"http://127.0.0.1:{port}"
    with (
        run_server(run_command("examples/news.py", port), port, tmp_path / "log"),
        BlockingClient(f"{url}/mcp") as client,
    ):
        client.call("order", isbn="7")
        page = open_news(open_page, url)
        with page.expect_console_message(lambda message: message.text == "ordered: 7"):
            page.add_script_tag(content=script.replace("orders.created", "orders.created&history=1", 1))
