"""State that a command keeps for a person, behind several workers."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from millstream import Client
from patience import WAIT
from redis_monitor import Monitor
from redis_parts import RedisServer
from workers_world import Program, kill, run_workers, until_async

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
import os, sys
from contextlib import asynccontextmanager
from pathlib import Path
from starlette.responses import PlainTextResponse
from millstream import Server, auth


@asynccontextmanager
async def lifespan(server):
    if Path("broken").exists():
        raise RuntimeError("the disk is full")
    yield


KEYS = {name: f"the-key-of-{name}-0123456789" for name in ("ada", "bob", "cleo", "dan", "eve")}
gateway = Server("front", auth=auth.keys(named_keys=KEYS), serve="rest", lifespan=lifespan)
gateway.upstream("desk", [sys.executable, "desk.py"], prefix="")


@gateway.route("/acceptor", public=True)
async def acceptor(request):
    return PlainTextResponse(str(os.getpid()))
"""
NAMES = "ada", "bob", "cleo", "dan", "eve"
PER_REQUEST = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": PER_REQUEST,
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@contextmanager
def run(folder: Path, workers: int, store: str = "memory://") -> Iterator[Program]:
    folder.mkdir(exist_ok=True)
    (folder / "desk.py").write_text(COMMAND)
    env = {**os.environ, "MILLSTREAM_STORE": store, "MILLSTREAM_SECRET_KEY": "the-secret-of-both-machines-0123456789"}
    with run_workers(folder, workers, program=PROGRAM, cwd=folder, env=env) as program:
        yield program


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with run(tmp_path_factory.mktemp("workers"), 2) as program:
        yield program


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with closing(RedisServer()) as server:
        yield server


async def post(served: Program, person: str, path: str, body: Any, **headers: str) -> httpx2.Response:
    """Send a request on a connection of its own, which any worker can accept."""
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", timeout=WAIT) as http:
        return await post_with(http, person, path, body, **headers)


async def post_with(http: httpx2.AsyncClient, person: str, path: str, body: Any, **headers: str) -> httpx2.Response:
    headers["authorization"] = f"Bearer the-key-of-{person}-0123456789"
    return await http.post(path, json=body, headers=headers)


async def call(served: Program, person: str, tool: str, /, **arguments: Any) -> str:
    """Call a tool without a session and return its text."""
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", timeout=WAIT) as http:
        return await call_with(http, person, tool, **arguments)


async def call_with(http: httpx2.AsyncClient, person: str, tool: str, /, **arguments: Any) -> str:
    params = {"name": tool, "arguments": arguments, "_meta": META}
    head = {"mcp-protocol-version": PER_REQUEST, "mcp-method": "tools/call", "mcp-name": tool}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    accept = "application/json, text/event-stream"
    reply = await post_with(http, person, "/mcp", message, accept=accept, **head)
    return str(json.loads(reply.text.rpartition("data: ")[2])["result"]["content"][0]["text"])


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


async def test_killed_workers_state_is_lost_once_and_stays_at_the_next_worker(served: Program) -> None:
    await call(served, "bob", "keep", value="of bob")
    pid = int(await call(served, "bob", "worker"))
    broken = served.folder / "broken"
    broken.touch()  # it can't be replaced for now
    kill(pid)
    await until_async(lambda: pid not in served.children())
    assert "lost its state" in await attempt(served, "bob", "read")
    assert await call(served, "bob", "keep", value="again") == "again"
    broken.unlink()
    await until_both_accept(served)
    assert [await call(served, "bob", "read") for _ in range(20)] == ["again"] * 20


async def test_pings_and_lists_do_not_use_up_the_message_about_a_loss(served: Program) -> None:
    await call(served, "dan", "keep", value="of dan")
    pid = int(await call(served, "dan", "worker"))
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    opening = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    accept = "application/json, text/event-stream"
    session = (await post(served, "dan", "/mcp", opening, accept=accept)).headers["mcp-session-id"]
    head = {"accept": accept, "mcp-session-id": session}
    kill(pid)
    await until_async(lambda: pid not in served.children())
    for method in ("ping", "tools/list"):
        reply = await post(served, "dan", "/mcp", {"jsonrpc": "2.0", "id": 2, "method": method}, **head)
        assert (reply.status_code, "error" in reply.text) == (200, False)
    read = {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "read", "arguments": {}}}
    found = [(await post(served, "dan", "/mcp", read, **head)).text for _ in range(2)]
    assert ["lost its state" in each for each in found] == [True, False]
    await until_both_accept(served)


async def attempt(served: Program, person: str, tool: str) -> str:
    """Call a tool and return what the caller reads, even if it failed."""
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", timeout=WAIT) as http:
            return await call_with(http, person, tool)
    except (httpx2.HTTPError, KeyError, ValueError) as exc:
        return repr(exc)


async def until_both_accept(served: Program) -> None:
    """Wait until both workers accept connections."""
    found: set[str] = set()
    async with asyncio.timeout(WAIT), httpx2.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as http:
        while len(found & {str(each) for each in served.children()}) < 2:
            found.add((await http.get("/acceptor", headers={"connection": "close"})).text)


@asynccontextmanager
async def connect_to_another(served: Program, pid: int) -> AsyncIterator[httpx2.AsyncClient]:
    """Open a connection to a worker with another pid."""
    async with asyncio.timeout(WAIT):
        while True:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", timeout=WAIT) as http:
                if (await http.get("/acceptor")).text != str(pid):
                    yield http
                    return


async def test_frozen_workers_callers_go_on_without_it_and_its_state_does_not_return(
    tmp_path: Path, redis: RedisServer
) -> None:
    with run(tmp_path, 2, redis.url) as served:
        await call(served, "bob", "keep", value="old")
        frozen = int(await call(served, "bob", "worker"))
        async with connect_to_another(served, frozen) as http:
            kill(frozen, signal.SIGSTOP)
            try:
                reply = await post_with(http, "bob", "/tools/read", {})
                assert (reply.status_code, "may have taken effect" in reply.text) == (502, True)
                assert "lost its state" in (await post_with(http, "bob", "/tools/read", {})).text
                assert await call_with(http, "bob", "keep", value="new") == "new"
            finally:
                kill(frozen, signal.SIGCONT)
        await until_both_accept(served)
        assert [await call(served, "bob", "read") for _ in range(20)] == ["new"] * 20
        (tmp_path / "broken").touch()
        kill(pid := int(await call(served, "bob", "worker")))
        await until_async(lambda: pid not in served.children())
        assert "lost its state" in await attempt(served, "bob", "read")
        assert [await call(served, "bob", "read") for _ in range(4)] == ["nothing"] * 4


async def test_two_machines_do_not_serve_two_states_of_one_caller_in_silence(
    tmp_path: Path, redis: RedisServer
) -> None:
    with run(tmp_path / "1", 1, redis.url) as one, run(tmp_path / "2", 1, redis.url) as two:
        await call(one, "ada", "keep", value="first")
        assert "lost its state" in await attempt(two, "ada", "keep")
        assert await call(two, "ada", "keep", value="second") == "second"
        async with asyncio.timeout(WAIT):
            while (text := await attempt(one, "ada", "read")) == "first":  # until it hears of the other machine
                pass
        assert "lost its state" in text
        assert await call(one, "ada", "keep", value="third") == "third"
        for _ in range(3):  # a caller who alternates doesn't lose the state each time
            assert await call(two, "ada", "read") == "second"
            assert await call(one, "ada", "read") == "third"
        one.wait_for_line("come to several machines")


async def test_calls_of_a_known_caller_do_not_ask_the_store_who_holds_their_state(
    tmp_path: Path, redis: RedisServer
) -> None:
    with run(tmp_path, 2, redis.url) as served:
        for _ in range(20):  # until both workers know
            await call(served, "ada", "read")
        with closing(Monitor(redis)) as monitor:
            for _ in range(20):
                await call(served, "ada", "read")
            await call(served, "bob", "read")
            redis.ask("PING", "the end")
            commands = monitor.until("the end")
        assert sum("holder:" in each for each in commands) in (2, 3)  # a read and a write for the new caller


async def test_new_callers_are_served_while_the_store_is_down_and_known_ones_keep_their_state(
    tmp_path: Path, redis: RedisServer
) -> None:
    with run(tmp_path, 2, redis.url) as served:
        await call(served, "ada", "keep", value="of ada")
        for _ in range(20):  # until both workers know
            await call(served, "ada", "read")
        redis.stop()
        assert await call(served, "bob", "keep", value="of bob") == "of bob"
        for person in ("ada", "bob"):
            assert [await call(served, person, "read") for _ in range(8)] == [f"of {person}"] * 8


async def test_workers_choose_the_same_one_for_new_callers_while_the_store_is_full(
    tmp_path: Path, redis: RedisServer
) -> None:
    with run(tmp_path, 2, redis.url) as served:
        await call(served, "ada", "read")
        redis.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        redis.ask("CONFIG", "SET", "maxmemory", "1mb")
        await call(served, "bob", "keep", value="of bob")
        assert [await call(served, "bob", "read") for _ in range(16)] == ["of bob"] * 16


async def test_caller_has_one_state_after_the_store_has_lost_its_data(tmp_path: Path, redis: RedisServer) -> None:
    with run(tmp_path, 2, redis.url) as served:
        for person in NAMES:
            await call(served, person, "keep", value=f"of {person}")
        redis.ask("FLUSHALL")
        for person in NAMES:
            async with asyncio.timeout(WAIT):  # until the workers have noticed
                while len({await attempt(served, person, "process") for _ in range(12)}) != 1:
                    pass
