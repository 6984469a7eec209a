import os
import re
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from clocks import Clocks
from processes import ROOT, free_port, run_command, run_server
from proxies import NEEDS_NGINX, nginx
from redis_parts import RedisServer

pytestmark = [pytest.mark.server, pytest.mark.nightly, NEEDS_NGINX]
ELSEWHERE = {
    "test_a_list_that_changes_is_announced": "adds a tool at run time, which several workers refuse",
    "test_a_subscription_is_acknowledged_first": "adds a tool at run time",
    "test_a_subscription_is_a_stream_even_where": "adds a tool at run time",
    "test_a_standing_stream_that_comes_back": "adds a tool at run time",
    "test_a_server_that_stops_ends": "stops a server in its own process",
    "test_a_runtime_that_is_closed_ends": "stops a server in its own process",
    "test_what_broke_stands_in_the_log": "reads the log of its own process",
    "test_a_state_that_expired_is_refused": "moves the clock of its own process",
    "test_a_session_outlives_a_restart": "compares with servers that have another key",
    "test_an_id_in_flight_cannot_be_used_again": "ids in flight are compared on one worker",
    "test_a_reply_is_json_until": "expects a header that nginx keeps for itself",
    "test_a_deleted_session_is_not_found": "the other workers hear of a deletion a moment after its answer",
    "test_a_session_hears_logs_from": "the other workers hear of a log level a moment after its answer",
    "test_a_thread_that_takes_too_long": "looks at the threads of its own process",
}
"""Beginnings of the names of tests that need one process, and why."""


def judge(folder: Path, front: int, chosen: str, shared: dict[str, str]) -> int:
    """Run the chosen behaviour tests against a port; gives how many have passed."""
    command = [sys.executable, "-m", "pytest", "tests/behaviour", "-q", "-k", chosen, "-p", "no:cacheprovider"]
    with (folder / "tests").open("wb") as sink:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **shared, "BEHAVIOUR_PORT": str(front), "NIGHTLY": "1"},
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
    return {"BEHAVIOUR_FOLDER": str(folder / "board"), "PYTHONPATH": str(ROOT / "tests"), "BEHAVIOUR_THREADS": "40"}


def test_four_workers_behind_nginx_behave_like_one(tmp_path: Path) -> None:
    port = free_port()
    shared = board(tmp_path)
    serve = run_command("tests/behaviour/world.py:mcp", port, "--workers", "4")
    with run_server(serve, port, tmp_path / "log", **shared), nginx(tmp_path, port) as front:
        assert judge(tmp_path, front, f"(lane or sse) and not ({' or '.join(ELSEWHERE)})", shared) > 900


def test_clock_skew_of_three_minutes_changes_nothing(tmp_path: Path) -> None:
    shared = board(tmp_path)
    travels = "sessions or resumption or questions or rounds or changes or cancel or endpoint"
    chosen = f"(lane or sse) and ({travels}) and not ({' or '.join(ELSEWHERE)})"
    with ExitStack() as stack:
        redis = stack.enter_context(closing(RedisServer()))
        ports = free_port(), free_port()
        for port, skew in zip(ports, (90, -90), strict=True):
            serve = run_command("tests/behaviour/world.py:mcp", port, "--workers", "2", "--store", redis.url)
            clocks = Clocks(tmp_path, str(port))
            clocks.set(skew, [skew])
            stack.enter_context(run_server(serve, port, tmp_path / f"log{port}", **shared, **clocks.environment))
        front = stack.enter_context(nginx(tmp_path, *ports))
        assert judge(tmp_path, front, chosen, shared) > 300
