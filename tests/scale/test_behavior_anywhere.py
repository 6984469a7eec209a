import os
import re
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from clocks import Clocks
from processes import ROOT, TEST_PATH, free_port, run_command, run_server
from proxies import NEEDS_NGINX, nginx
from redis_parts import RedisServer

pytestmark = [pytest.mark.server, pytest.mark.nightly, NEEDS_NGINX]
ELSEWHERE = {
    "test_list_changes_are_announced": "adds a tool at run time, which several workers refuse",
    "test_subscriptions_are_acknowledged_before": "adds a tool at run time",
    "test_subscriptions_stream_even_if": "adds a tool at run time",
    "test_resumed_stand_alone_stream": "adds a tool at run time",
    "test_stopping_server_ends": "stops a server in its own process",
    "test_closing_the_runtime_ends": "stops a server in its own process",
    "test_failures_are_logged": "reads the log of its own process",
    "test_expired_state_is_rejected": "moves the clock of its own process",
    "test_sessions_survive_a_restart": "compares with servers that have another key",
    "test_ids_in_flight_cannot_be_reused": "ids in flight are compared on one worker",
    "test_reply_is_json_unless": "expects a header that nginx keeps for itself",
    "test_deleted_sessions_are_not_found": "the other workers learn of a deletion shortly after the reply",
    "test_sessions_receive_logs_at": "the other workers learn of a log level shortly after the reply",
    "test_timed_out_threads": "checks the threads of its own process",
}
"""Prefix of a test's name -> why it requires a single process."""


def judge(folder: Path, front: int, chosen: str, shared: dict[str, str]) -> int:
    """Run the chosen behavior tests against a port; gives how many have passed."""
    command = [sys.executable, "-m", "pytest", "tests/behavior", "-q", "-k", chosen, "-p", "no:cacheprovider"]
    with (folder / "tests").open("wb") as sink:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **shared, "BEHAVIOR_PORT": str(front), "NIGHTLY": "1"},
            stdout=sink,
            check=False,
        )
    said = (folder / "tests").read_text()
    assert done.returncode == 0, said[-5_000:]
    passed = re.search(r"(\d+) passed", said)
    assert passed is not None
    return int(passed[1])


def board(folder: Path) -> dict[str, str]:
    """The environment that the server and its judges share."""
    (folder / "board").mkdir()
    return {"BEHAVIOR_FOLDER": str(folder / "board"), "PYTHONPATH": TEST_PATH, "BEHAVIOR_THREADS": "40"}


def test_four_workers_behind_nginx_behave_like_one_server(tmp_path: Path) -> None:
    port = free_port()
    shared = board(tmp_path)
    serve = run_command("tests/behavior/world.py:mcp", port, "--workers", "4")
    with run_server(serve, port, tmp_path / "log", **shared), nginx(tmp_path, port) as front:
        assert judge(tmp_path, front, f"(lane or sse) and not ({' or '.join(ELSEWHERE)})", shared) > 600


def test_clock_skew_of_three_minutes_does_not_affect_behavior(tmp_path: Path) -> None:
    shared = board(tmp_path)
    travels = "sessions or resumption or questions or rounds or changes or cancel or endpoint"
    chosen = f"(lane or sse) and ({travels}) and not ({' or '.join(ELSEWHERE)})"
    with ExitStack() as stack:
        redis = stack.enter_context(closing(RedisServer()))
        ports = free_port(), free_port()
        for port, skew in zip(ports, (90, -90), strict=True):
            serve = run_command("tests/behavior/world.py:mcp", port, "--workers", "2", "--store", redis.url)
            clocks = Clocks(tmp_path, str(port))
            clocks.set(skew, [skew])
            stack.enter_context(run_server(serve, port, tmp_path / f"log{port}", **shared, **clocks.environment))
        front = stack.enter_context(nginx(tmp_path, *ports))
        assert judge(tmp_path, front, chosen, shared) > 200
