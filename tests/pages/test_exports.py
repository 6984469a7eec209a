import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from pages_world import OpenPage
from patience import WAIT
from processes import SharedServer, run_command, share_server

pytestmark = pytest.mark.server

HERE = Path(__file__).parent
MODULES = HERE.parent / "interop" / "node_modules"
SIGNS = 'it\'s "x" $HOME `ls` \\n é\u2028'
CASES = [
    ("tool", "region", {"place": "Île-de-France", "note": SIGNS}, "Île-de-France: it"),
    ("template", "note", {"number": "7"}, "note 7"),
    ("prompt", "hello", {"name": "O'Neil"}, "Hi O'Neil"),
    ("server", "Any request", {"method": "prompts/list"}, "hello"),
    ("server", "Ping", None, ""),
]


@pytest.fixture(scope="module")
def shared_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """`export_shop.py`, with the pages."""

    def command(port: int) -> list[str]:
        return run_command(str(HERE / "export_shop.py"), port, "--serve", "web")

    with share_server(command, tmp_path_factory.mktemp("shop")) as server:
        yield server


@pytest.fixture
def page(shared_shop: SharedServer, open_page: OpenPage) -> Page:
    """The inspector, connected, in a browser that may copy."""
    permissions = ["clipboard-read", "clipboard-write"]
    opened: Page = open_page(f"http://127.0.0.1:{shared_shop.port()}/inspect", permissions=permissions)
    expect(opened.locator("#state")).to_have_text("Connected")
    return opened


def copied(page: Page, language: str) -> str:
    """What is open, as code."""
    page.evaluate("navigator.clipboard.writeText('')")
    page.locator("summary", has_text="Copy as").click()
    page.get_by_role("button", name=language, exact=True).click()
    page.wait_for_function("async () => (await navigator.clipboard.readText()) !== ''")
    return str(page.evaluate("navigator.clipboard.readText()"))


def said(language: str, code: str, folder: Path) -> str:
    """What the code prints."""
    script = folder / "call.mjs"
    script.write_text(code)
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(MODULES)
    run = {"curl": ["sh", "-c", code], "Python": [sys.executable, "-c", code], "TypeScript": ["node", str(script)]}
    return subprocess.run(run[language], capture_output=True, text=True, timeout=WAIT, check=True).stdout


@pytest.mark.parametrize("language", ["curl", "Python", "TypeScript"])
def test_copied_code_behaves_the_same(page: Page, tmp_path: Path, language: str) -> None:
    assert MODULES.exists(), "This test needs the official client: make tests/interop/node_modules/.package-lock.json."
    for kind, name, values, expected in CASES:
        link = f"#{kind}={quote(name)}" + (f"&args={quote(json.dumps(values))}" if values else "")
        page.evaluate("(link) => (location.hash = link)", link)
        expect(page.locator("#detail").get_by_role("heading", name=name)).to_be_visible()
        found = said(language, copied(page, language), tmp_path)
        assert '"error"' not in found
        assert expected in found
        if name == "region":
            assert "$HOME" in found
            assert "`ls`" in found
