import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from pages_world import OpenPage
from processes import free_port, run_server

pytestmark = pytest.mark.server
FILE = """
import logging
from millstream import Server

mcp = Server("shop")


@mcp.tool
def order(copies: int) -> float:
    \"\"\"Order copies.\"\"\"
    print("printed", copies)
    logging.getLogger("shop").warning("logged %s", copies)
    return 10 / copies
"""


def test_the_inspector_shows_tracebacks_logs_and_prints(tmp_path: Path, open_page: OpenPage) -> None:
    (tmp_path / "shop.py").write_text(FILE, "utf-8")
    port = free_port()
    start = [sys.executable, "-c", "from millstream._cli import main; main()"]
    command = [*start, "dev", str(tmp_path / "shop.py"), "--port", str(port), "--no-open"]
    with run_server(command, port, tmp_path / "log"):
        page = open_page(f"http://127.0.0.1:{port}/inspect#tool=order", fresh=True, lossy=True)
        page.get_by_role("spinbutton", name="copies").fill("0")
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.get_by_role("region", name="Result")).to_contain_text("ZeroDivisionError")
        page.get_by_role("tab", name="Logs").click()
        logs = page.locator("#logs")
        for text in ("printed 0", "logged 0", "return 10 / copies"):
            expect(logs).to_contain_text(text)
