"""The behaviour tests of both HTTP transports against four workers behind nginx: each request may reach another one."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from patience import WAIT
from processes import ROOT, free_port, millstream, wait_for_port

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed; make test installs it where it may"),
]
# Without connections that are kept: each request is a new one, and the kernel gives it to any worker.
SITE = """
server {
    listen 127.0.0.1:%d;
    client_max_body_size 16m;
    location / {
        proxy_pass http://127.0.0.1:%d;
        proxy_http_version 1.1;
        proxy_set_header Host $host;
        proxy_set_header Connection "";
        proxy_buffering off;
        proxy_request_buffering off;
        proxy_read_timeout 1h;
    }
}
"""
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
    "test_a_thread_that_takes_too_long": "looks at the threads of its own process",
}
"""Beginnings of the names of tests that need one process, and why."""


@contextmanager
def running(command: list[str], port: int, log: Path, **environment: str) -> Iterator[None]:
    """A process, until it is not needed any more."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env={**os.environ, **environment}
        )
    try:
        wait_for_port(process, port, log)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(WAIT)


@contextmanager
def nginx(folder: Path, backend: int) -> Iterator[int]:
    """nginx in front of a port; gives its own."""
    assert NGINX is not None
    port = free_port()
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{each}_temp_path {folder}/{each};\n" for each in places)
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{ worker_connections 4096; }}\n"
        f"http {{ access_log off;\n{temporary}{SITE % (port, backend)}}}\n"
    )
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with running(command, port, folder / "nginx.log"):
        yield port


def test_the_behaviour_of_four_workers_behind_nginx_is_that_of_one(tmp_path: Path) -> None:
    """Our choice: any worker serves any session, so a client cannot tell that there are several."""
    board = tmp_path / "board"
    board.mkdir()
    port = free_port()
    shared = {"BEHAVIOUR_FOLDER": str(board), "PYTHONPATH": str(ROOT / "tests")}
    serve = millstream("tests/behaviour/world.py:mcp", port, "--workers", "4")
    with running(serve, port, tmp_path / "log", **shared), nginx(tmp_path, port) as front:
        chosen = f"(lane or sse) and not ({' or '.join(ELSEWHERE)})"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "tests/behaviour",
            "-q",
            "-n2",
            "-k",
            chosen,
            "-p",
            "no:cacheprovider",
        ]
        with (tmp_path / "tests").open("wb") as sink:
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **shared, "BEHAVIOUR_PORT": str(front)}, stdout=sink, check=False
            )
    said = (tmp_path / "tests").read_text()
    assert done.returncode == 0, said[-5_000:]
    passed = re.search(r"(\d+) passed", said)
    assert passed is not None
    assert int(passed[1]) > 900
