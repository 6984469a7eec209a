"""Programs of other libraries look the same alone and behind `millstream run`, to a client of the official SDK."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from websockets.asyncio.client import connect

from gateway.observed import Observer
from patience import WAIT
from processes import ROOT, SharedServer, share_server

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")]

FILE = str(Path(__file__).parent / "programs" / "whole.py")
PYTHONS = {
    "mcp 1": str(ROOT / ".venv-mcp1" / "bin" / "python"),
    "mcp 2": sys.executable,
    "fastmcp": str(ROOT / ".venv-foreign" / "bin" / "python"),
}
ERAS = ("2025-11-25", "2026-07-28")
RUN = ("-c", "from millstream._cli import main; main()", "run")


def eras(library: str) -> tuple[str, ...]:
    """Return the eras that a program of a library speaks itself."""
    return ERAS[:1] if library == "mcp 1" else ERAS


@pytest.fixture(scope="module", params=PYTHONS)
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def alone(library: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """The program by itself, over HTTP."""
    folder = tmp_path_factory.mktemp("alone")
    with share_server(lambda port: [PYTHONS[library], FILE, str(port)], folder) as running:
        yield running


def over_http(server: SharedServer) -> AbstractAsyncContextManager[Any]:
    return streamable_http_client(f"http://127.0.0.1:{server.port()}/mcp")


def over_stdio(command: list[str], log: Any) -> AbstractAsyncContextManager[Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MILLSTREAM_")}
    return stdio_client(StdioServerParameters(command=command[0], args=command[1:], env=environment), errlog=log)


async def check_looks_the_same(era: str, alone: Any, relayed: Any) -> None:
    """Observe a program by itself and behind the gateway, each through a new connection."""
    one, other = await Observer(alone, era).observe(), await Observer(relayed, era).observe()
    assert len(one) > 40  # it has seen much
    assert not {each: (one.get(each), other.get(each)) for each in one | other if one.get(each) != other.get(each)}


@pytest.mark.parametrize("by_url", [False, pytest.param(True, marks=pytest.mark.nightly)])
async def test_program_looks_the_same_over_http(
    library: str, alone: SharedServer, tmp_path: Path, *, by_url: bool
) -> None:
    def command(port: int) -> list[str]:
        url = f"http://127.0.0.1:{alone.port()}/mcp"
        return [*([sys.executable, *RUN, url] if by_url else [PYTHONS[library], *RUN, FILE]), "--port", str(port)]

    with share_server(command, tmp_path) as relayed:
        for era in eras(library):
            await check_looks_the_same(era, lambda: over_http(alone), lambda: over_http(relayed))


@pytest.mark.parametrize("at", ["command", "url"])
async def test_callers_without_mcp_reach_a_relayed_program(
    library: str, alone: SharedServer, tmp_path: Path, at: str
) -> None:
    """REST sends no `_meta`, which newer servers require."""
    upstream = shlex.join([PYTHONS[library], FILE]) if at == "command" else f"http://127.0.0.1:{alone.port()}/mcp"

    def command(port: int) -> list[str]:
        return [sys.executable, *RUN, upstream, "--serve", "all", "--port", str(port)]

    with share_server(command, tmp_path) as relayed:
        url = f"http://127.0.0.1:{relayed.port()}"
        async with httpx2.AsyncClient(base_url=url, timeout=WAIT) as http:
            for _ in range(2):
                assert (await http.post("/tools/find", json={"title": "Emma"})).json() == {"title": "Emma", "pages": 1}
                reply = await http.post("/mcp/tools/call", json={"name": "find", "arguments": {"title": "Emma"}})
                assert reply.json()["result"]["structuredContent"] == {"title": "Emma", "pages": 1}
        async with connect(f"ws://127.0.0.1:{relayed.port()}/ws") as socket:
            await socket.send('{"type": "mcp_call", "tool": "find", "arguments": {"title": "Emma"}}')
            replies = [json.loads(await socket.recv()) for _ in range(2)]
        assert replies[-1]["result"]["structuredContent"] == {"title": "Emma", "pages": 1}


@pytest.mark.nightly
@pytest.mark.parametrize("way", ["in process", "command", "url"])
async def test_program_looks_the_same_over_stdio(library: str, alone: SharedServer, tmp_path: Path, way: str) -> None:
    program = [PYTHONS[library], FILE]
    relayed = {
        "in process": [PYTHONS[library], *RUN, FILE],
        "command": [sys.executable, *RUN, " ".join(program)],
        "url": [sys.executable, *RUN, f"http://127.0.0.1:{alone.port()}/mcp"],
    }[way] + ["--transport", "stdio"]
    with (tmp_path / "log").open("w") as log:
        for era in eras(library):
            original = (lambda: over_http(alone)) if way == "url" else (lambda: over_stdio(program, log))
            await check_looks_the_same(era, original, lambda: over_stdio(relayed, log))


async def test_stdio_command_runs_in_one_process_that_sees_the_client(tmp_path: Path) -> None:
    starts, file = tmp_path / "starts", tmp_path / "program.py"
    run = f"runpy.run_path({FILE!r}, run_name='__main__')"
    file.write_text(f"import runpy\nopen({str(starts)!r}, 'a').write('x')\n{run}")
    command = [sys.executable, *RUN, f"{sys.executable} {file}", "--transport", "stdio"]
    for era in ERAS:
        observer = Observer(lambda: over_stdio(command, log), era)
        starts.unlink(missing_ok=True)
        with (tmp_path / "log").open("w") as log:
            async with observer.client() as client:
                await observer.note("who", client.call_tool("who", {}))
                await observer.note("tools", client.list_tools())
        assert "ada" in observer.lines["who"]
        assert "find" in observer.lines["tools"]
        assert starts.read_text() == "x"
