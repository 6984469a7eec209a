import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from patience import WAIT
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server
SHOP = """
import resource
from millstream import Server, Settings

resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
mcp = Server("shop", settings=Settings(max_connections=200))
"""
REQUEST = b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


def write_program(folder: Path, hard: int) -> str:
    file = folder / "shop.py"
    file.write_text(SHOP.format(hard=hard))
    return str(file)


def test_low_file_limit_is_raised_for_the_connections(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    with run_server(run_command(write_program(tmp_path, 4_096), port), port, log), ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), WAIT)) for _ in range(150)]
        for each in clients:
            each.sendall(REQUEST)
            assert each.recv(12) == b"HTTP/1.1 200"
        assert "ulimit" not in log.read_text()


def test_file_limit_that_cannot_be_raised_is_logged(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    with run_server(run_command(write_program(tmp_path, 64), port), port, log):
        assert "can open only 64 files" in log.read_text()


def test_upstreams_that_may_need_more_files_are_logged_once(tmp_path: Path) -> None:
    file, port, log = tmp_path / "shop.py", free_port(), tmp_path / "log"
    upstreams = "".join(
        f'mcp.upstream("{name}", "http://127.0.0.1:1/mcp", max_connections=40, start_timeout=0)\n' for name in "ab"
    )
    file.write_text(SHOP.format(hard=64).replace("max_connections=200", "max_connections=20") + upstreams)
    with run_server(run_command(str(file), port), port, log):
        assert log.read_text().count("max_connections of all upstreams is 80 in total") == 1
        assert "closes new connections" not in log.read_text()
