import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from pages_world import OpenPage, find_layout_problems
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


def test_overlay_stays_until_the_file_loads(tmp_path: Path, open_page: OpenPage) -> None:
    file = tmp_path / "shop.py"
    file.write_text(FILE, "utf-8")
    port = free_port()
    start = [sys.executable, "-c", "from millstream._cli import main; main()"]
    command = [*start, "dev", str(file), "--port", str(port), "--no-open"]
    with run_server(command, port, tmp_path / "log"):
        page = open_page(f"http://127.0.0.1:{port}/inspect", fresh=True, lossy=True)
        state, alert = page.locator("#state"), page.locator("#load-failure")
        expect(state).to_have_text("Connected")
        for source, told in (("\norder = [\n", "SyntaxError"), ("\nmcp.tool(1 / 0)\n", "ZeroDivisionError")):
            file.write_text(FILE + source, "utf-8")
            expect(alert).to_contain_text(told)
            expect(alert).to_contain_text("shop.py:15")
            expect(alert.locator(".source-line")).to_contain_text(source.strip())
            expect(state).to_have_text("Old version")
        assert find_layout_problems(page) == []
        page.reload()
        expect(alert).to_contain_text("ZeroDivisionError")
        file.write_text(FILE.replace("order", "order_copies"), "utf-8")
        expect(alert).to_have_count(0)
        expect(page.locator("#items")).to_contain_text("order_copies")
        expect(state).to_have_text("Connected")
