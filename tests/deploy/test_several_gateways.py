"""Two gateways that reach each other, behind proxies that send each request to any of them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

import httpx2
import pytest

from millstream import Client
from patience import WAIT
from processes import ROOT, free_port, run_command, run_server
from proxies import NEEDS_HAPROXY, NEEDS_NGINX, haproxy, nginx_site
from redis_parts import RedisServer

pytestmark = pytest.mark.server

PROGRAM = """
from millstream import Server

mcp = Server("counter")
CALLS = []


@mcp.tool
def count() -> int:
    CALLS.append(1)
    return len(CALLS)


mcp.run()
"""
CLIENT = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
INITIALIZE = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": CLIENT}
PING = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
NAMES = ("ada", "bob", "eve", "kim", "lea", "max", "zoe")


def write_team(folder: Path, settings: str = "") -> Path:
    """Write the program and a file that lists it twice, and return the file."""
    (folder / "counter.py").write_text(PROGRAM)
    command = f'command = [{json.dumps(sys.executable)}, "counter.py"]\n'
    upstreams = f'[upstreams.old]\n{command}revision = "2025-11-25"\n[upstreams.new]\n{command}'
    (folder / "team.toml").write_text(settings + upstreams)
    return folder / "team.toml"


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[tuple[int, int], dict[str, str]]]:
    """Run two gateways with one store and one secret, and yield their ports and the callers' keys."""
    folder = tmp_path_factory.mktemp("gateways")
    write_team(folder, '[settings]\nauth_keys = "keys.json"\n')
    add = [sys.executable, "-m", "millstream", "keys", "add", "--file", str(folder / "keys.json")]
    keys = {
        name: subprocess.run([*add, name], check=True, capture_output=True, text=True, timeout=WAIT).stdout.strip()
        for name in NAMES
    }
    ports = free_port(), free_port()
    with ExitStack() as stack:
        redis = stack.enter_context(closing(RedisServer()))
        for port in ports:
            run = run_command(str(folder / "team.toml"), port, "--store", redis.url)
            env = {"MILLSTREAM_SECRET_KEY": "s" * 40, "MILLSTREAM_PEER": "127.0.0.1"}
            stack.enter_context(run_server(run, port, folder / f"{port}.log", **env))
        yield ports, keys


def on(ports: tuple[int, int], text: str) -> str:
    for old, new in zip((8000, 8001), ports, strict=True):
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    return text


@contextmanager
def nginx_of_the_guide(folder: Path, ports: tuple[int, int]) -> Iterator[int]:
    text = (ROOT / "examples/nginx.conf").read_text("utf-8")
    (first,) = re.findall(r"^ *server 127\.0\.0\.1:8000;$", text, re.MULTILINE)
    with nginx_site(
        folder / "nginx", on(ports, text.replace(first, f"{first}\n{first.replace('8000', '8001')}"))
    ) as port:
        yield port


@contextmanager
def haproxy_of_the_guide(folder: Path, ports: tuple[int, int]) -> Iterator[int]:
    text = (ROOT / "examples/haproxy.cfg").read_text("utf-8")
    assert "    balance roundrobin\n" in text
    with haproxy(folder / "haproxy", on(ports, text)) as port:
        yield port


Proxy = Callable[[Path, tuple[int, int]], AbstractContextManager[int]]


@pytest.mark.parametrize(
    ("proxy", "callers"),
    [
        pytest.param(nginx_of_the_guide, NAMES[:3], marks=NEEDS_NGINX, id="nginx"),
        pytest.param(haproxy_of_the_guide, NAMES[3:6], marks=NEEDS_HAPROXY, id="haproxy"),
    ],
)
async def test_each_caller_keeps_its_state(
    gateways: tuple[tuple[int, int], dict[str, str]], tmp_path: Path, proxy: Proxy, callers: tuple[str, ...]
) -> None:
    ports, keys = gateways
    with proxy(tmp_path, ports) as port:
        for name in callers:
            headers = {"Authorization": f"Bearer {keys[name]}"}
            for revision in ("2025-11-25", "2026-07-28"):
                counts: list[int] = []
                for _ in range(2):
                    async with Client(f"http://127.0.0.1:{port}/mcp", headers=headers, revision=revision) as client:
                        counts += [int((await client.call("old_count")).text) for _ in range(3)]
                assert counts == [*range(counts[0], counts[0] + 6)], (name, revision)


async def test_another_gateway_serves_a_callers_state(gateways: tuple[tuple[int, int], dict[str, str]]) -> None:
    ports, keys = gateways
    one, two = (
        Client(f"http://127.0.0.1:{port}/mcp", headers={"Authorization": f"Bearer {keys['zoe']}"}) for port in ports
    )
    async with one, two:
        for tool in ("old_count", "new_count"):
            assert [int((await each.call(tool)).text) for each in (one, two, one, two)] == [1, 2, 3, 4]
    media = {"Accept": "application/json, text/event-stream", "Authorization": f"Bearer {keys['zoe']}"}
    async with httpx2.AsyncClient(timeout=WAIT, headers=media) as web:
        begun = await web.post(f"http://127.0.0.1:{ports[0]}/mcp", json=INITIALIZE)
        session = {"Mcp-Session-Id": begun.headers["mcp-session-id"]}
        statuses = [(await web.post(f"http://127.0.0.1:{port}/mcp", json=PING, headers=session)) for port in ports]
        assert [each.status_code for each in statuses] == [200, 200]


async def test_sessions_go_on_when_the_gateway_restarts(tmp_path: Path) -> None:
    port, file = free_port(), write_team(tmp_path)
    run = run_command(str(file), port, "--store", f"sqlite:///{tmp_path}/team.db")
    media = {"Accept": "application/json, text/event-stream"}
    statuses: list[int] = []
    for _ in range(2):
        with run_server(run, port, tmp_path / "log", MILLSTREAM_SECRET_KEY="s" * 40):
            async with httpx2.AsyncClient(timeout=WAIT, base_url=f"http://127.0.0.1:{port}") as web:
                if not statuses:
                    begun = await web.post("/mcp", json=INITIALIZE, headers=media)
                    media["Mcp-Session-Id"] = begun.headers["mcp-session-id"]
                statuses.append((await web.post("/mcp", json=PING, headers=media)).status_code)
    assert statuses == [200, 200]
