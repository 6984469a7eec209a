import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from cases import for_each
from millstream import Client
from millstream.client import ClientError
from patience import WAIT
from processes import free_port, run_command, wait_for_port

pytestmark = pytest.mark.server
PROGRAMS = Path(__file__).resolve().parent / "programs"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the programs to a folder for their logs, and return it."""
    return shutil.copytree(PROGRAMS, tmp_path_factory.mktemp("compat") / "programs")


@contextmanager
def started(folder: Path, name: str, *arguments: str, by_command: bool = False) -> Iterator[int]:
    """Run a program, directly or with `millstream run`, and yield its port."""
    port, log = free_port(), folder / f"{name}.log"
    environment = {**os.environ, "FASTMCP_PORT": str(port)}
    command = run_command(name, port) if by_command else [sys.executable, name, *arguments]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    try:
        wait_for_port(process, port, log)
        yield port
    finally:
        process.terminate()
        process.wait(WAIT)


async def test_programs_run_directly_serve_stdio(programs: Path) -> None:
    async with Client([sys.executable, str(programs / "direct.py")], timeout=WAIT) as client:
        assert client.server.name == "My App"
        assert (await client.call("add", a="3", b=4)).text == "7"


@for_each("name", ["stateful.py", "stateless.py"])
async def test_programs_serve_streamable_http(programs: Path, name: str) -> None:
    with started(programs, name) as port:
        async with Client(f"http://127.0.0.1:{port}/mcp", timeout=WAIT) as client:
            assert (await client.call("greet")).text == "Hello, world!"
        opening = httpx2.post(
            f"http://127.0.0.1:{port}/mcp",
            json={
                "jsonrpc": "2.0",
                "id": 1,
                "method": "initialize",
                "params": {
                    "protocolVersion": "2025-03-26",
                    "capabilities": {},
                    "clientInfo": {"name": "t", "version": "1"},
                },
            },
            headers={"accept": "application/json, text/event-stream"},
            timeout=WAIT,
        )
    assert ("mcp-session-id" in opening.headers) == (name == "stateful.py")


async def test_two_servers_can_be_mounted_in_one_application(programs: Path) -> None:
    with started(programs, "mounted.py") as port:
        async with Client(f"http://127.0.0.1:{port}/echo/mcp", timeout=WAIT) as client:
            assert (await client.call("echo", message="hi")).text == "Echo: hi"
        async with Client(f"http://127.0.0.1:{port}/math/mcp", timeout=WAIT) as client:
            assert (await client.call("add_two", n=40)).text == "42"


async def test_programs_serve_http_sse(programs: Path) -> None:
    with started(programs, "greet_sse.py") as port:
        async with Client(f"http://127.0.0.1:{port}/sse", timeout=WAIT) as client:
            assert client.transport == "http+sse"
            assert (await client.call("greet", name="Azure OpenAI")).text == "Hello Hello, Azure OpenAI!"


@for_each("by_command", [False, True], ids=["run()", "millstream run"])
async def test_program_routes_replace_ours(programs: Path, by_command: bool) -> None:
    with started(programs, "own_routes.py", by_command=by_command) as port:
        url = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=url, timeout=WAIT) as http:
            health = await http.get("/health")
            hook = await http.post("/hooks/paid", content="42")
            foreign = await http.post("/hooks/paid", content="42", headers={"host": "evil.example"})
            assert (health.json(), hook.json()) == ({"of": "the program"}, {"paid": "42"})
            assert (await http.get("/hooks/paid")).status_code == 405
        assert foreign.status_code in (403, 421)
        async with Client(f"{url}/mcp", timeout=WAIT) as client:
            assert (await client.call("add", a=1, b=2)).text == "3"


async def test_program_middleware_wraps_the_application(programs: Path) -> None:
    with started(programs, "keyed.py", "--auth-key", "ma_cle") as port:
        url = f"http://127.0.0.1:{port}/sse"
        with pytest.raises(ClientError):
            async with Client(url, timeout=WAIT):
                pass
        async with Client(url, headers={"Authorization": "Bearer ma_cle"}, timeout=WAIT) as client:
            assert "T" in (await client.call("get_current_time")).text


async def test_program_provider_identifies_tokens(programs: Path) -> None:
    with started(programs, "signed_in.py") as port:
        url = f"http://127.0.0.1:{port}/mcp"
        for token in ("wrong", "narrow"):
            with pytest.raises(ClientError):
                async with Client(url, headers={"Authorization": f"Bearer {token}"}, timeout=WAIT):
                    pass
        async with Client(url, headers={"Authorization": "Bearer good"}, timeout=WAIT) as client:
            assert (await client.call("secret")).text == "You may know it."
