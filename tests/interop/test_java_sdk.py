import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from http_peer import serve
from millstream import Client, Server
from patience import WAIT
from processes import ROOT
from programs import MISSING, find_program

pytestmark = [pytest.mark.server, pytest.mark.nightly]

FOLDER = ROOT / ".bench" / "java-sdk"


@asynccontextmanager
async def gateway() -> AsyncIterator[tuple[str, list[str]]]:
    """Run a gateway with a server of the SDK. Yield its URL, and the command of that server."""
    java = find_program("java")
    if java is None or not (FOLDER / ".ready").exists():
        pytest.skip(f"{MISSING}java-sdk")
    command = [java, "-cp", f"{FOLDER}/*", str(Path(__file__).parent / "JavaPeer.java")]
    mcp = Server("gateway")
    mcp.upstream("java", command, prefix="", connect_timeout=WAIT, start_timeout=WAIT)
    async with mcp.running(), serve(mcp) as running:
        yield f"http://127.0.0.1:{running.port}", command


async def test_java_client_uses_a_java_server_through_the_gateway() -> None:
    async with gateway() as (url, command):
        process = await asyncio.create_subprocess_exec(*command, url, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
    assert json.loads(output) == {
        "revision": "2025-11-25", "ask": "Ada", "sample": "Good day", "roots": "file:///work", "work": "7",
        "log": "working", "progress": "half", "add": "ok", "changed": True, "resource": "first",
        "prompt": "Hello Bob", "completion": ["Ada"],
    }  # fmt: skip


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_java_server_asks_clients_from_each_era_through_the_gateway(revision: str) -> None:
    reports: list[float] = []
    async with (
        gateway() as (url, _),
        Client(
            f"{url}/mcp", revision=revision, timeout=WAIT, elicit=lambda _: {"name": "Ada"},
            sample=lambda _: "Good day", roots=["file:///work"],
        ) as client,
    ):  # fmt: skip
        said = [(await client.call(tool)).text for tool in ("ask", "sample", "roots")]
        assert said == ["Ada", "Good day", "file:///work"]
        result = await client.call("work", progress=lambda progress, *_: reports.append(progress))
        assert (result.data, reports) == ({"n": 7}, [1.0])
