"""A server at the path of a UNIX socket, alone, with workers, and behind proxies."""

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from fronted import PROGRAM as SHOP
from fronted import Fronted, check_events, check_sessions_and_paths
from patience import WAIT
from processes import ROOT, run_command
from proxies import NEEDS_HAPROXY, NEEDS_NGINX, haproxy, nginx_site
from workers_world import LAUNCHER, PROGRAM, Program, start_program

pytestmark = pytest.mark.server

HERE = "http://localhost"
POST = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


@contextmanager
def served(folder: Path, *options: str, program: str = PROGRAM, **environment: str) -> Iterator[tuple[Program, Path]]:
    """The program at a socket in the folder."""
    (folder / "shop.py").write_text(program)
    path = folder / "server.sock"
    command = run_command(str(folder / "shop.py"), 8000, "--uds", str(path), *options)
    with start_program(command, 0, folder / "log", env={**os.environ, **environment}) as found:
        yield found, path


def client(path: Path, **headers: str) -> httpx2.Client:
    return httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), base_url=HERE, headers=headers, timeout=WAIT)


def who(path: Path) -> int:
    """The process that answers on a new connection."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "who", "arguments": {}}}
    with client(path, **POST) as found:
        return int(found.post("/mcp", json=message).json()["result"]["content"][0]["text"])


async def test_official_client_calls_a_tool_at_a_socket(tmp_path: Path) -> None:
    with served(tmp_path) as (program, path):
        transport = httpx2.AsyncHTTPTransport(uds=str(path))
        async with (
            httpx2.AsyncClient(transport=transport, timeout=WAIT) as http,
            streamable_http_client(f"{HERE}/mcp", http_client=http) as (reader, writer, *_),
            ClientSession(reader, writer) as session,
        ):
            await session.initialize()
            result = await session.call_tool("who", {})
        assert str(program.process.pid) in str(result.content)


def test_logged_curl_command_works(tmp_path: Path) -> None:
    with served(tmp_path) as (program, path):
        (told,) = [record for record in program.records if "url" in record]
        assert told["url"] == f"unix:{path}"
        done = subprocess.run(["sh", "-c", told["curl"]], capture_output=True, check=True, timeout=WAIT)
        assert json.loads(done.stdout)["result"]["content"][0]["text"] == str(program.process.pid)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_socket_file_is_limited_to_owner_and_group_and_removed_at_the_end(tmp_path: Path, workers: str) -> None:
    with served(tmp_path, "--workers", workers) as (program, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert {who(path) for _ in range(4)} <= set(program.children() or [program.process.pid])
    assert not path.exists()


def test_rolling_restart_keeps_the_socket_file(tmp_path: Path) -> None:
    with served(tmp_path, "--workers", "2") as (program, path):
        inode, before = path.stat().st_ino, set(program.pids)
        program.process.send_signal(signal.SIGHUP)
        program.wait_for_line("The new version is serving")
        assert path.stat().st_ino == inode
        assert who(path) not in before


def test_socket_file_left_by_a_killed_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
    with served(tmp_path) as (program, _):
        assert who(path) == program.process.pid


@pytest.mark.parametrize("what", ["a server", "a starting server", "a file"])
def test_socket_paths_in_use_are_not_replaced(tmp_path: Path, what: str) -> None:
    path = tmp_path / "server.sock"
    slow = PROGRAM.replace("yield", "await asyncio.Event().wait()\n    yield")
    (tmp_path / "shop.py").write_text(slow if what == "a starting server" else PROGRAM)
    command = run_command(str(tmp_path / "shop.py"), 8000, "--uds", str(path))
    if what == "a file":
        path.write_text("mine")
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
        assert path.read_text() == "mine"
    else:
        with start_program(command, 0, tmp_path / "log", ready=what == "a server") as program:
            while not path.exists():
                assert program.process.poll() is None, program.log
            inode = path.stat().st_ino
            done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
            assert path.stat().st_ino == inode
            program.process.send_signal(signal.SIGKILL)
            program.process.wait()
    assert done.returncode == 1
    assert f"Can't listen on the UNIX socket {path}." in done.stderr


@pytest.mark.parametrize("options", [[], ["--workers", "2"]], ids=["alone", "with workers"])
def test_systemd_socket_is_used_and_kept(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    path = tmp_path / "passed.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        command = run_command(str(tmp_path / "shop.py"), 8000, *options)
        launched = [command[0], "-c", LAUNCHER, str(listener.fileno()), "listen", *command[1:]]
        with start_program(launched, 0, tmp_path / "log", pass_fds=[listener.fileno()]) as program:
            assert who(path) in (program.children() or [program.process.pid])
    assert path.exists()


@pytest.mark.parametrize("headers", [{}, {"x-forwarded-for": "127.0.0.1"}], ids=["direct", "forwarded"])
def test_private_pages_require_sign_in_at_a_socket(tmp_path: Path, headers: dict[str, str]) -> None:
    with served(tmp_path, "--serve", "all") as (_, path), client(path, **headers) as found:
        assert {found.get(page).status_code for page in ("/dashboard", "/chat", "/inspect", "/metrics")} == {403}
        assert found.get("/docs").status_code == 200


def test_host_names_are_checked_at_a_socket(tmp_path: Path) -> None:
    expected = {"mcp.example.com": 200, "localhost": 200, "evil.example": 421}
    with (
        served(tmp_path, "--serve", "rest", MILLSTREAM_ALLOWED_HOSTS="mcp.example.com") as (_, path),
        client(path) as found,
    ):
        assert {name: found.get("/docs", headers={"host": name}).status_code for name in expected} == expected


LIMITED = """
from millstream import Server
mcp = Server("shop", serve="hub")


@mcp.tool
async def who() -> int:
    return 1
"""


def test_limits_distinguish_the_clients_behind_a_proxy(tmp_path: Path) -> None:
    environment = {"MILLSTREAM_LIMIT_REQUESTS": "1/minute", "FORWARDED_ALLOW_IPS": "10.0.0.5"}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    with served(tmp_path, program=LIMITED, **environment) as (_, path), client(path, **POST) as found:
        ada, bob = ({"x-forwarded-for": address} for address in ("192.0.2.1", "192.0.2.2"))
        assert [found.post("/mcp", json=message, headers=each).status_code for each in (ada, bob, ada)] == [
            200,
            200,
            429,
        ]


def of_the_guide(file: str, old: str, start: str, path: Path) -> str:
    """The example of a proxy with the line that the guide has for a socket."""
    guide = (ROOT / "docs" / "guides" / "behind-a-proxy.md").read_text("utf-8")
    line = next(each for each in guide.splitlines() if each.startswith(start))
    text = (ROOT / "examples" / file).read_text("utf-8")
    assert old in text
    return text.replace(old, line.strip().replace("/run/millstream/server.sock", str(path)))


@contextmanager
def nginx_of_the_guide(folder: Path, path: Path) -> Iterator[int]:
    site = of_the_guide("nginx.conf", "server 127.0.0.1:8000;", "server unix:", path)
    with nginx_site(folder / "nginx", site) as port:
        yield port


@contextmanager
def haproxy_of_the_guide(folder: Path, path: Path) -> Iterator[int]:
    text = of_the_guide("haproxy.cfg", "server one 127.0.0.1:8000 check", "server one unix@", path)
    with haproxy(folder / "haproxy", text.replace("    server two 127.0.0.1:8001 check\n", "")) as port:
        yield port


@pytest.mark.parametrize(
    "proxy",
    [pytest.param(nginx_of_the_guide, marks=NEEDS_NGINX), pytest.param(haproxy_of_the_guide, marks=NEEDS_HAPROXY)],
)
async def test_proxies_in_the_guide_reach_workers_at_a_socket(tmp_path: Path, proxy: Any) -> None:
    with served(tmp_path, "--workers", "2", program=SHOP) as (_, path), proxy(tmp_path, path) as port:
        await check_sessions_and_paths(Fronted(port, (0, 0)))
        await check_events(Fronted(port, (0, 0)))


def test_long_paths_are_explained(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    command = run_command(str(tmp_path / "shop.py"), 8000, "--uds", str(tmp_path / ("x" * 120)))
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 1
    assert "fewer than 100 characters" in done.stderr
