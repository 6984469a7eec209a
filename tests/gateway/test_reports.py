import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from benches.chaos.upstream import __file__ as upstream
from millstream._gateway.part import merge_reports
from patience import WAIT
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server

PROGRAM = f"""
from millstream import Server
from millstream.gateway import UpstreamPolicy

mcp = Server("office")
mcp.upstream("printer", [{sys.executable!r}, "-I", "-S", {upstream!r}, "steady"], start_timeout={WAIT},
             policy=UpstreamPolicy(allow=("echo",)))
"""


def test_worker_counts_are_summed_for_offered_items_only(tmp_path: Path) -> None:
    (tmp_path / "office.py").write_text(PROGRAM)
    port = free_port()
    command = run_command(str(tmp_path / "office.py"), port, "--serve", "web", "--workers", "2")
    with run_server(command, port, tmp_path / "log"):
        end = time.monotonic() + WAIT
        report: dict[str, Any] = {}
        while (report.get("workers"), report.get("links")) != ({"ready": 2}, 2):
            assert time.monotonic() < end, report
            with urlopen(f"http://127.0.0.1:{port}/gateway/upstreams") as reply:
                (report,) = json.load(reply)["upstreams"]
    assert (report["name"], report["items"]["tools"], report["listed"]["tools"]) == ("printer", 1, 2)
    assert (report["processes"]["running"], report["processes"]["limit"]) == (2, 2 * 64)
    assert report["tokens"] > 0


KINDS = dict.fromkeys(("tools", "resources", "templates", "prompts"), 0)
ONE: dict[str, Any] = {
    "name": "printer", "state": "ready", "reason": "", "since": 1.0, "failed_reads": 0, "processes": None,
    "changes": 0, "quarantined": 0,
    "revision": "", "transport": "", "needs_account": False, "p50_ms": 2.0, "p99_ms": 3.0,
    "listed_at": 1.0, "changed_at": 0.0, "links": 1, "refused": 0, "calls": 5, "unanswered": 0,
    "items": KINDS, "listed": {**KINDS, "tools": 2},
}  # fmt: skip


def test_merged_report_shows_the_worst_state() -> None:
    other = {**ONE, "state": "degraded", "reason": "out of paper", "refused": 4}
    (report,) = merge_reports([[ONE], [other]])
    assert (report["state"], report["reason"]) == ("degraded", "out of paper")
    assert (report["refused"], report["calls"]) == (4, 10)
    assert report["workers"] == {"ready": 1, "degraded": 1}
    (report,) = merge_reports([[ONE], [other]], silent=1)
    assert report["workers"] == {"ready": 1, "degraded": 1, "silent": 1}


def test_the_newest_error_from_any_worker_is_shown() -> None:
    older, newer = ({**ONE, "last_error": {"at": at, "text": f"error {at}"}} for at in (1.0, 2.0))
    for workers in ([newer, older], [older, newer], [newer, {**ONE, "last_error": None}], [ONE, newer]):
        (report,) = merge_reports([[each] for each in workers])
        assert report["last_error"]["text"] == "error 2.0", workers
    assert merge_reports([[ONE], [ONE]])[0]["last_error"] is None
