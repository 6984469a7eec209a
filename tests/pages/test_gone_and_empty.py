import json
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event, Thread
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Locator, Page, expect

from pages_matrix import find_problems, pages_in
from pages_world import OpenPage, call
from patience import WAIT
from processes import SharedServer, free_port, run_command, run_server

pytestmark = pytest.mark.server

LINKS = {"connect": "connect", "dashboard": "dashboard", "docs": "docs#tool=greet", "chat": "chat",
         "old": "inspect#tool=greet", "new": "inspect#tool=greet"}  # fmt: skip
INSPECTORS = {"old": "2025-11-25", "new": "2026-07-28"}
_PAUSE = 0.1
"""Seconds between two rounds of calls: more than anyone can read, and the browser gets the rest of the processor."""
EMPTY = 'from millstream import Server\n\nmcp = Server("empty", serve="all")\n'


def opened(address: str, open_page: OpenPage) -> dict[str, Page]:
    """Every page of a server, each in a state of its own; the inspector in both eras."""
    pages = {name: open_page(f"{address}/{link}", name="Ada", lossy=True) for name, link in LINKS.items()}
    expect(pages["old"].locator("#state")).to_have_text("Connected")
    pages["old"].get_by_label("Revision").select_option(INSPECTORS["old"])
    ready(pages)
    return pages


def ready(pages: dict[str, Page]) -> None:
    """Wait until every page has what its server has."""
    for name in ("dashboard", "chat"):
        expect(pages[name].locator("#state")).to_have_text("Live")
    for name, revision in INSPECTORS.items():
        expect(pages[name].locator("#state")).to_have_attribute("data-revision", revision)
        expect(pages[name].locator("#state")).to_have_text("Connected")
    expect(pages["dashboard"].locator("#uptime")).not_to_have_text("–")
    expect(pages["docs"].locator("#main:not(:has([aria-busy]))")).to_be_visible()
    expect(pages["connect"].locator("#count-tools")).not_to_have_text("–")


def wrong(state: str, pages: dict[str, Page], tool: str = "") -> list[str]:
    """What isn't right with the pages that have the state; the inspector looks the same in both eras."""
    shown = {"inspect": pages["new"]} | pages
    return [
        each
        for name in pages_in(state, "connect", "inspect", "dashboard", "docs", "chat")
        for each in find_problems(shown[name], name, tool)
    ]


def result(page: Page) -> Locator:
    """What a tool said in the inspector."""
    return page.get_by_role("region", name="Result")


def run(page: Page) -> None:
    """Press the button of the tool."""
    page.get_by_role("button", name="Run", exact=True).click()


def test_pages_report_a_lost_server_and_recover(tmp_path: Path, open_page: OpenPage) -> None:
    port = free_port()
    command = run_command("examples/hub.py", port, "--serve", "all", "--json-response")
    with run_server(command, port, tmp_path / "first"):
        pages = opened(f"http://127.0.0.1:{port}", open_page)
        call(f"http://127.0.0.1:{port}", "greet", {})
        expect(pages["dashboard"].locator("#tools .row-name").get_by_text("greet", exact=True)).to_be_visible()
        for name in INSPECTORS:
            pages[name].get_by_role("textbox", name="name").fill("Ada")
    docs, dashboard = pages["docs"], pages["dashboard"]
    for page in (docs, pages["connect"]):
        page.evaluate("dispatchEvent(new Event('online'))")  # or it would find out within five seconds
    for name in INSPECTORS:
        expect(pages[name].locator("#state")).to_have_text("Not connected")
        expect(pages[name].get_by_role("alert")).to_contain_text("reconnects when the server is back")
    expect(pages["connect"].locator("#banner")).to_contain_text("can't be reached")
    for name in ("dashboard", "chat"):
        expect(pages[name].locator("#state")).to_have_text("Reconnecting…")
        expect(pages[name].locator("#banner")).to_contain_text("This page continues when it's back.")
    expect(docs.locator("#banner")).to_contain_text("can't be reached")
    expect(dashboard.locator("#verdict")).to_have_text("Unknown")  # a fixed defect: it stayed healthy
    run(docs)
    outcome = docs.get_by_role("status", name="Result")
    expect(outcome).to_contain_text("The server can't be reached, so nothing was sent.")
    run(pages["new"])
    expect(result(pages["new"])).to_contain_text("The server can't be reached.")
    assert wrong("server gone", pages, "greet") == []
    with run_server(command, port, tmp_path / "second"):
        outcome.get_by_role("button", name="Try again").click()
        expect(outcome).to_contain_text("200")
        ready(pages)
        expect(dashboard.locator("#verdict")).not_to_have_text("Unknown")
        for page in pages.values():
            expect(page.locator("#banner")).to_be_hidden()
        for name in INSPECTORS:
            expect(pages[name].locator("#kinds")).to_contain_text("Tools9")
            run(pages[name])
            expect(result(pages[name])).to_contain_text("Hello, Ada!")  # the form is as it was
        calls = dashboard.get_by_role("row").filter(has=dashboard.get_by_role("button", name="greet", exact=True))
        expect(calls.get_by_role("cell").last).to_have_text("3")
        assert wrong("server back", pages, "greet") == []
        close(pages)


def test_empty_servers_show_explanations(tmp_path: Path, open_page: OpenPage) -> None:
    program, port = tmp_path / "empty.py", free_port()
    program.write_text(EMPTY, "utf-8")
    address = f"http://127.0.0.1:{port}"
    with run_server(run_command(str(program), port), port, tmp_path / "log"):
        dashboard = open_page(f"{address}/dashboard", lossy=True)
        expect(dashboard.locator("#uptime")).not_to_have_text("–")
        expect(dashboard.locator("#reasons")).not_to_contain_text("calls fail")
        expect(dashboard.get_by_text("No calls yet").first).to_be_visible()
        for name, text in (("Recent calls", "No calls yet"), ("Clients", "No clients yet"), ("Streams", "No sessions")):
            dashboard.get_by_role("tab", name=name).click()
            expect(dashboard.get_by_role("tabpanel", name=name)).to_contain_text(text)
        expect(dashboard.get_by_role("tab", name="Audit")).to_be_hidden()
        pages = opened(address, open_page) | {"unused dashboard": dashboard}
        expect(pages["chat"].get_by_text("No messages yet")).to_be_visible()
        expect(pages["new"].locator("#no-items")).to_contain_text("No tools")
        assert wrong("empty", pages) == []
        expect(pages["new"].locator("#traffic").get_by_text("sent server/discover")).to_have_count(1)
        grace = open_page(f"{address}/chat", name="Grace", lossy=True)
        expect(dashboard.locator("#channels").get_by_role("row", name="broadcast 2", exact=True)).to_be_visible()
        expect(dashboard.locator("#readers")).to_contain_text("Grace")
        close(pages | {"grace": grace})


@contextmanager
def much(address: str) -> Generator[None]:
    """Calls that succeed and fail, and words in the chat, until the block ends."""
    over = Event()

    def work() -> None:
        for number in count():
            if over.wait(_PAUSE):
                return
            for tool in ("broken", "gallery", "chatty", f"tool_{number % 40:03d}"):
                call(address, tool, {})
            data = {"name": f"Person {number % 3}", "message": f"{number} نص عربي " * (1 + number % 9)}
            body = json.dumps({"channel": "broadcast", "data": data}).encode()
            request = Request(f"{address}/publish", body, {"content-type": "application/json"})  # noqa: S310  loopback
            urlopen(request, timeout=WAIT).close()  # noqa: S310

    worker = Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join(WAIT)


def test_pages_stay_usable_under_load(shared_crowd: SharedServer, open_page: OpenPage) -> None:
    address = f"http://127.0.0.1:{shared_crowd.port()}"
    with much(address):
        links = {"dashboard": "dashboard", "chat": "chat", "new": "inspect#tool=chatty", "docs": "docs#tool=chatty"}
        pages = {name: open_page(f"{address}/{link}", name="Ada", lossy=True) for name, link in links.items()}
        dashboard, inspect = pages["dashboard"], pages["new"]
        expect(dashboard.locator("#reasons")).to_contain_text("The server fails")
        dashboard.keyboard.press("l")
        expect(pages["chat"].locator(".bubble").nth(20)).to_be_visible()
        expect(inspect.locator("#state")).to_have_text("Connected")
        run(inspect)
        expect(result(inspect)).to_contain_text("Done")
        dashboard.keyboard.press("l")
        assert wrong("busy", pages, "chatty") == []
        dashboard.get_by_label("Filter the tools").fill("broken")
        dashboard.get_by_role("button", name="broken", exact=True).click()
        expect(dashboard.get_by_role("heading", name="Latency of broken")).to_be_visible()
        close(pages)


def close(pages: dict[str, Page]) -> None:
    """Before the server goes: what a page says of a cut is no part of the test."""
    for page in pages.values():
        page.context.close()
