from contextlib import ExitStack
from pathlib import Path

import pytest

from conformance.official import SELECTIONS, run_suite
from processes import free_port, run_command, run_server

pytestmark = [pytest.mark.server, pytest.mark.nightly]

TASK = "tasks-required-task-error"
"""A task of the upstream is one of the relay's, which waits for it if the client has no tasks."""


def test_official_suite_passes_through_a_relay(tmp_path: Path) -> None:
    with ExitStack() as stack:
        upstream, relay = free_port(), free_port()
        for target, port in (("examples/everything.py", upstream), (f"http://127.0.0.1:{upstream}/mcp", relay)):
            stack.enter_context(run_server(run_command(target, port), port, tmp_path / f"{port}.log"))
        for name, expected in (("scored-2025-11-25", set()), ("scored-2026-07-28", {TASK})):
            report = run_suite(f"http://127.0.0.1:{relay}/mcp", SELECTIONS[name], tmp_path / name)
            assert {check.scenario for check in report.having("FAILURE")} == expected
            assert len(report.scenarios) == SELECTIONS[name].scenarios
