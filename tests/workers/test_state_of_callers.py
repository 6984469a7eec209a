"""State that a command keeps for a person, behind several workers."""

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from millstream import Client
from patience import WAIT
from workers_world import Program, run_workers, until_async

pytestmark = pytest.mark.server

COMMAND = r"""
import json, os, sys
TOOLS = "keep", "read", "worker", "process"
kept = "nothing"
for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params", {})
    result = {}
    if method == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "desk"}}
    elif method == "tools/list":
        result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]}
    elif method == "tools/call":
        kept = params.get("arguments", {}).get("value", kept)
        text = {"worker": os.getppid(), "process": os.getpid()}.get(params["name"], kept)
        result = {"content": [{"type": "text", "text": str(text)}]}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
PROGRAM = """
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from millstream import Server, auth


@asynccontextmanager
async def lifespan(server):
    if Path("broken").exists():
        raise RuntimeError("the disk is full")
    yield


KEYS = {name: f"the-key-of-{name}-0123456789" for name in ("ada", "bob", "cleo", "dan", "eve")}
gateway = Server("front", auth=auth.keys(named_keys=KEYS), serve="rest", lifespan=lifespan)
gateway.upstream("desk", [sys.executable, "desk.py"], prefix="")
"""
NAMES = "ada", "bob", "cleo", "dan", "eve"
PER_REQUEST = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": PER_REQUEST,
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("workers")
    (folder / "desk.py").write_text(COMMAND)
    with run_workers(folder, 2, program=PROGRAM, cwd=folder, env=dict(os.environ)) as program:
        yield program


async def post(served: Program, person: str, path: str, body: Any, **headers: str) -> httpx2.Response:
    """Send a request on a connection of its own, which any worker can accept."""
    headers["authorization"] = f"Bearer the-key-of-{person}-0123456789"
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", timeout=WAIT) as http:
        return await http.post(path, json=body, headers=headers)


async def call(served: Program, person: str, tool: str, **arguments: Any) -> str:
    """Call a tool without a session and return its text."""
    params = {"name": tool, "arguments": arguments, "_meta": META}
    head = {"mcp-protocol-version": PER_REQUEST, "mcp-method": "tools/call", "mcp-name": tool}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    accept = "application/json, text/event-stream"
    reply = await post(served, person, "/mcp", message, accept=accept, **head)
    return str(reply.json()["result"]["content"][0]["text"])


async def test_one_persons_calls_reach_one_process_whichever_worker_accepts_them(served: Program) -> None:
    for name in NAMES:
        await call(served, name, "keep", value=f"of {name}")
    for name in NAMES:
        found = await asyncio.gather(*(call(served, name, "read") for _ in range(8)))
        assert set(found) == {f"of {name}"}
    assert len({await call(served, name, "worker") for name in NAMES}) == 2


async def test_rest_calls_reach_the_same_process(served: Program) -> None:
    await call(served, "ada", "keep", value="of ada for REST")
    for _ in range(8):
        reply = await post(served, "ada", "/tools/read", {})
        assert "of ada for REST" in reply.text


async def test_sessions_of_one_person_reach_the_same_process(served: Program) -> None:
    await call(served, "ada", "keep", value="of ada in a session")
    for _ in range(8):
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        accept = "application/json, text/event-stream"
        opening = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
        session = (await post(served, "ada", "/mcp", opening, accept=accept)).headers["mcp-session-id"]
        message = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "read", "arguments": {}}}
        reply = await post(served, "ada", "/mcp", message, accept=accept, **{"mcp-session-id": session})
        assert "of ada in a session" in reply.text


async def test_streams_of_earlier_revisions_reach_the_same_process(served: Program) -> None:
    await call(served, "ada", "keep", value="of ada on a stream")
    for _ in range(8):
        headers = {"authorization": "Bearer the-key-of-ada-0123456789"}
        async with Client(f"http://127.0.0.1:{served.port}/sse", headers=headers, timeout=WAIT) as client:
            assert client.transport == "http+sse"
            assert (await client.call("read")).text == "of ada on a stream"


async def test_wrong_key_is_refused_once(served: Program) -> None:
    reply = await post(served, "mallory", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert reply.status_code == 403


async def test_requests_with_the_id_of_an_ended_session_reach_the_same_process(served: Program) -> None:
    await call(served, "ada", "keep", value="of ada with an old id")
    params = {"name": "read", "arguments": {}, "_meta": META}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    head = {"mcp-protocol-version": PER_REQUEST, "mcp-method": "tools/call", "mcp-name": "read"}
    head |= {"accept": "application/json, text/event-stream", "mcp-session-id": "from-an-earlier-server"}
    for _ in range(8):
        assert "of ada with an old id" in (await post(served, "ada", "/mcp", message, **head)).text


async def test_next_worker_serves_until_a_killed_one_is_replaced_and_each_loss_of_state_is_reported(
    served: Program,
) -> None:
    await call(served, "bob", "keep", value="of bob")
    pid = int(await call(served, "bob", "worker"))
    broken = served.folder / "broken"
    broken.touch()  # it can't be replaced for now
    os.kill(pid, signal.SIGKILL)
    await until_async(lambda: pid not in served.children())
    assert "lost its state" in await attempt(served, "bob", "read")
    assert await call(served, "bob", "keep", value="again") == "again"
    assert [await call(served, "bob", "read") for _ in range(8)] == ["again"] * 8
    broken.unlink()
    while (reply := await attempt(served, "bob", "read")) == "again":
        pass
    assert "lost its state" in reply
    assert await call(served, "bob", "read") == "nothing"


async def attempt(served: Program, person: str, tool: str) -> str:
    """Call a tool and return what the caller reads, even if it failed."""
    try:
        return await call(served, person, tool)
    except (httpx2.HTTPError, KeyError, ValueError) as exc:
        return repr(exc)
