from pathlib import Path

import pytest
from playwright.sync_api import expect

from pages_world import OpenPage
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server

EMPTY = 'from millstream import Server\n\nmcp = Server("first")\n'
KINDS = {"Tools": "greet", "Resources": "hours", "Templates": "book", "Prompts": "review"}


def test_examples_of_the_empty_inspector_work(open_page: OpenPage, tmp_path: Path) -> None:
    program, port = tmp_path / "first.py", free_port()
    program.write_text(EMPTY)
    with run_server(run_command(str(program), port, "--serve", "web"), port, tmp_path / "log"):
        page = open_page(f"http://127.0.0.1:{port}/inspect", lossy=True)
        expect(page.locator("#state")).to_have_text("Connected")
        for kind in KINDS:
            page.locator("#kinds").get_by_role("tab", name=kind).click()
            program.write_text(f"{program.read_text()}\n\n{page.get_by_label('Example', exact=True).inner_text()}\n")
    with run_server(run_command(str(program), port, "--serve", "web"), port, tmp_path / "log"):
        for kind, name in KINDS.items():
            page.locator("#kinds").get_by_role("tab", name=kind).click()
            expect(page.locator("#items").get_by_role("option", name=name)).to_be_visible()
            expect(page.locator("#detail").get_by_role("heading", name=name)).to_be_visible()


def test_link_takes_precedence_over_automatic_navigation(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/inspect#tool=greet")
    expect(page.locator("#detail").get_by_role("heading", name="greet")).to_be_visible()
    page.evaluate("location.hash = '#tool=long_task'; history.replaceState(null, '', '#tool=greet')")
    expect(page.locator("#detail").get_by_role("heading", name="long_task")).to_be_visible()
    expect(page).to_have_url(f"{hub}/inspect#tool=long_task")
