import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import expect

from pages_world import OpenPage, find_layout_problems
from processes import ROOT, free_port
from workers_world import start_program

pytestmark = pytest.mark.server

COMMAND = [sys.executable, "-m", "millstream"]
EXAMPLES = ROOT / "examples" / "gateway"


class Shop:
    """The example's gateway and its callers, with all files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        for name in ("refunds.py", "refunds.toml"):
            shutil.copy(EXAMPLES / name, folder)
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.ada, self.meg = self.add_key("ada"), self.add_key("meg", "--group", "managers")
        self.operator = self.add_key("ola", "--scope", "millstream:watch")

    def add_key(self, *options: str) -> str:
        """Return a new key."""
        command = [*COMMAND, "keys", "add", *options]
        done = subprocess.run(command, cwd=self.folder, stdout=subprocess.PIPE, check=True, text=True)
        return done.stdout.strip()

    def call(self, tool: str, **arguments: object) -> str:
        """Return the text of a call by the official client, in a process that ends with it."""
        command = [
            sys.executable,
            str(ROOT / "tests" / "interop" / "repeat_at.py"),
            f"{self.url}/mcp",
            self.ada,
            "auto",
        ]
        line = json.dumps([tool, arguments, {}, 1])
        done = subprocess.run(command, input=line + "\n", stdout=subprocess.PIPE, check=True, text=True)
        (text,) = json.loads(done.stdout)
        return str(text)

    def audit_lines(self) -> list[tuple[str, str, str, str]]:
        """Return method, outcome, subject, and approver of each call and answer."""
        lines = map(json.loads, (self.folder / "audit.log").read_text("utf-8").splitlines())
        return [
            (each["method"], each.get("outcome", "ok"), each["subject"], each.get("approver", ""))
            for each in lines
            if each["method"] in ("approval", "tools/call")
        ]


def test_manager_approves_a_refund_in_a_browser_while_the_buyer_is_away(tmp_path: Path, open_page: OpenPage) -> None:
    shop = Shop(tmp_path)
    command = [*COMMAND, "gateway", "refunds.toml", "--port", str(shop.port)]
    with start_program(command, shop.port, tmp_path / "log", cwd=tmp_path, env=shop.environment):
        assert shop.call("shop_refund", order="6", amount=99) == "Paid back 99 for order 6."
        asked = shop.call("shop_refund", order="7", amount=250, reason="It arrived late.")
        assert "waits for approval by group:managers" in asked
        found = re.search(r"Its request is (\w+)\.", asked)
        assert found is not None, asked

        page = open_page(f"{shop.url}/approvals", width=390, height=844, lossy=True)
        page.get_by_label("Key").fill(shop.meg)
        page.keyboard.press("Enter")
        expect(page.get_by_text('"amount": 250')).to_be_visible()
        expect(page.get_by_text("ada", exact=True).first).to_be_visible()
        assert find_layout_problems(page) == []
        page.get_by_role("button", name="Approve shop_refund").click()
        expect(page.get_by_text("No call waits for your approval.")).to_be_visible()
        page.context.close()

        assert (tmp_path / "refunds.csv").read_text() == "6,99\n"
        assert shop.call("get_approved_result", request=found[1]) == "Paid back 250 for order 7."
        assert "no such request" in shop.call("get_approved_result", request=found[1])
    assert (tmp_path / "refunds.csv").read_text() == "6,99\n7,250\n"
    assert shop.audit_lines() == [
        ("tools/call", "ok", "ada", ""),
        ("approval", "requested", "ada", ""),
        ("tools/call", "tool_error", "ada", ""),
        ("approval", "approved", "meg", ""),
        ("tools/call", "ok", "ada", "meg"),
        ("tools/call", "tool_error", "ada", ""),
    ]


def test_operator_sees_how_many_calls_wait_for_approval_and_not_whose(tmp_path: Path, open_page: OpenPage) -> None:
    shop = Shop(tmp_path)
    command = [*COMMAND, "gateway", "refunds.toml", "--port", str(shop.port), "--serve", "web"]
    with start_program(command, shop.port, tmp_path / "log", cwd=tmp_path, env=shop.environment):
        page = open_page(f"{shop.url}/gateway", lossy=True)
        page.get_by_label("Key").fill(shop.operator)
        page.keyboard.press("Enter")
        waiting = page.locator("#approval-count")
        expect(waiting).to_have_text("0")
        for order in ("7", "8"):
            shop.call("shop_refund", order=order, amount=250)
        expect(waiting).to_have_text("2")

        asking = {"authorization": f"Bearer {shop.operator}"}
        report = httpx2.get(f"{shop.url}/gateway/upstreams", headers=asking)
        assert report.json()["approvals"] == 2
        assert "ada" not in report.text
        deciding = {"authorization": f"Bearer {shop.meg}", "accept": "application/json"}
        (first, _) = httpx2.get(f"{shop.url}/approvals", headers=deciding).json()["requests"]
        answer = {"answer": "decline"}
        assert httpx2.post(f"{shop.url}/approvals/{first['id']}", data=answer, headers=deciding).is_success
        expect(waiting).to_have_text("1")
