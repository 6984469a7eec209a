import base64
import json
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from playwright.sync_api import Page, expect

from pages_world import OpenPage, find_layout_problems
from processes import TEST_PATH, SharedServer, free_port, run_command, run_server
from proxies import NEEDS_NGINX, nginx

pytestmark = pytest.mark.server

KEY = "a-key-for-the-pages-0123456789"


def steps(page: Page) -> str:
    """The steps of the open client."""
    return page.locator("#steps").inner_text()


def test_page_describes_the_server_and_how_each_client_connects(hub: str, open_page: OpenPage) -> None:
    page = open_page(hub, permissions=["clipboard-read", "clipboard-write"])
    expect(page.get_by_role("heading", level=1)).to_have_text("hub")
    expect(page.locator("#address")).to_have_text(f"{hub}/mcp")
    expect(page.locator("#count-tools")).to_have_text("9")
    page.get_by_role("button", name="Copy the URL").click()
    assert page.evaluate("navigator.clipboard.readText()") == f"{hub}/mcp"
    assert f"claude mcp add --transport http hub {hub}/mcp" in steps(page)
    page.get_by_role("tab", name="Claude Code").press("End")
    assert f"millstream list {hub}/mcp" in steps(page)
    assert f"millstream call {hub}/mcp" in steps(page)
    page.get_by_role("tab", name="ChatGPT").click()
    assert "public HTTPS address" in steps(page)
    page.get_by_role("tab", name="Cursor").click()
    link = urlsplit(page.get_by_role("link", name="Add to Cursor").get_attribute("href") or "")
    given = parse_qs(link.query)
    assert (link.scheme, given["name"]) == ("cursor", ["hub"])
    assert json.loads(base64.b64decode(given["config"][0])) == {"url": f"{hub}/mcp"}
    page.get_by_role("tab", name="VS Code").click()
    link = urlsplit(page.get_by_role("link", name="Add to VS Code").get_attribute("href") or "")
    assert (link.scheme, link.path) == ("vscode", "mcp/install")
    assert json.loads(unquote(link.query)) == {"name": "hub", "type": "http", "url": f"{hub}/mcp"}
    page.reload()
    expect(page.get_by_role("tab", name="VS Code")).to_have_attribute("aria-selected", "true")
    page.locator("#names").get_by_role("link").first.click()
    expect(page.locator("#detail h2").first).to_contain_text("add_numbers")


def test_tapping_a_tab_shows_its_steps_and_the_page_fits(hub: str, open_page: OpenPage) -> None:
    page = open_page(hub, has_touch=True, width=390, height=844)
    page.get_by_role("tab", name="Terminal").tap()
    expect(page.locator("#steps")).to_contain_text("millstream list")
    assert find_layout_problems(page) == []


def test_commands_for_a_server_with_keys_send_a_key_without_showing_it(tmp_path: Path, open_page: OpenPage) -> None:
    port = free_port()
    command = run_command("examples/hub.py", port, "--serve", "all")
    with run_server(command, port, tmp_path / "log", MILLSTREAM_AUTH_KEY=KEY):
        page = open_page(f"http://127.0.0.1:{port}/", lossy=True)
        page.get_by_label("Key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#sign-in")).to_contain_text("Callers send a key")
        expect(page.locator("#count-tools")).to_have_text("9")
        assert '--header "Authorization: Bearer $MCP_SERVER_AUTH_KEY"' in steps(page)
        page.get_by_role("tab", name="Cursor").click()
        assert "Bearer ${env:MCP_SERVER_AUTH_KEY}" in steps(page)
        page.get_by_role("tab", name="VS Code").click()
        assert '"password": true' in steps(page)
        page.get_by_role("tab", name="ChatGPT").click()
        assert "signs in with OAuth only" in steps(page)
        assert KEY not in page.content()
        assert find_layout_problems(page) == []
        page.context.close()


@NEEDS_NGINX
def test_every_command_uses_the_public_url_behind_a_path_prefix(tmp_path: Path, open_page: OpenPage) -> None:
    port = free_port()
    command = run_command("tests/pages/guarded_shop.py", port)
    path = {"PYTHONPATH": TEST_PATH, "MILLSTREAM_ROOT_PATH": "/tools"}
    with nginx(tmp_path / "front", port, at="/tools") as front:
        here = f"http://127.0.0.1:{front}/tools"
        with run_server(run_command("examples/greet.py", port, "--serve", "web"), port, tmp_path / "plain", **path):
            page = open_page(f"{here}/", fresh=True)
            expect(page.locator("#address")).to_have_text(f"{here}/mcp")
            expect(page.locator("#count-tools")).to_have_text("1")
            assert f"claude mcp add --transport http hello-server {here}/mcp" in steps(page)
            page.get_by_role("link", name="Docs").first.click()
            expect(page.locator("#overview")).to_contain_text(f"{here}/mcp")
            page.context.close()
        for public in (here, "https://shop.example.com/tools"):
            with run_server(command, port, tmp_path / "guarded", SHOP_URL=public, **path):
                page = open_page(f"{here}/connect", fresh=True, lossy=True)
                page.get_by_label("Name").fill("ada")
                page.get_by_label("Password").fill("correct horse")
                page.keyboard.press("Enter")
                expect(page.locator("#address")).to_have_text(f"{public}/mcp")
                expect(page.locator("#count-tools")).to_have_text("2")
                assert f"claude mcp add --transport http book-shop {public}/mcp" in steps(page)
                assert "choose book-shop to sign in" in steps(page)
                page.get_by_role("tab", name="Cursor").click()
                link = urlsplit(page.get_by_role("link", name="Add to Cursor").get_attribute("href") or "")
                config = parse_qs(link.query)["config"][0]
                assert json.loads(base64.b64decode(config)) == {"url": f"{public}/mcp"}
                page.get_by_role("tab", name="ChatGPT").click()
                expect(page.locator("#steps .warn")).to_have_count(1 if public == here else 0)
                page.get_by_role("tab", name="Terminal").click()
                assert f"millstream list {public}/mcp --login" in steps(page)
                page.context.close()


def test_long_and_non_ascii_names_fit(shared_crowd: SharedServer, open_page: OpenPage) -> None:
    page = open_page(f"http://127.0.0.1:{shared_crowd.port()}")
    expect(page.locator("#names")).to_contain_text("more")
    assert find_layout_problems(page) == []
