"""Sessions of a stateful program behind several workers. The program uses the official SDK."""

import asyncio
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from patience import WAIT
from workers_world import Program, kill, run_workers, until_async

pytestmark = pytest.mark.server

PROGRAM = """
import asyncio, os
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from millstream import Server, auth
from pydantic import BaseModel

program = MCPServer("cart")
values = {}
KEYS = {"ada": "the-key-of-ada-0123456789", "bob": "the-key-of-bob-0123456789"}


class Answer(BaseModel):
    name: str


@program.tool()
def pid() -> str:
    return str(os.getpid())


@program.tool()
def put(value: int, ctx: Context) -> str:
    values[id(ctx.session._connection)] = value
    return "ok"


@program.tool()
def take(ctx: Context) -> str:
    return str(values.get(id(ctx.session._connection)))


@program.tool()
async def grow(ctx: Context) -> str:
    program.add_tool(lambda: "x", name="grown")
    await ctx.session.send_tool_list_changed()
    return "grown"


@program.tool()
async def ask(ctx: Context) -> str:
    answer = await ctx.elicit("Who?", Answer)
    return answer.data.name


@program.tool()
async def hang(ctx: Context) -> str:
    await ctx.report_progress(1, 2)
    with open("running", "w"):
        pass
    try:
        await asyncio.sleep(3600)
    finally:
        with open("canceled", "w"):
            pass


gateway = Server("cart", auth=auth.keys(named_keys=KEYS))
gateway.upstream("cart", program, prefix="")
"""
ADA, BOB = "the-key-of-ada-0123456789", "the-key-of-bob-0123456789"
REVISION = "2025-11-25"


class Caller:
    """A client with one connection of its own, which stays at one worker."""

    def __init__(self, port: int, key: str = ADA, address: str = "127.0.0.1") -> None:
        limits = httpx2.Limits(max_connections=2, keepalive_expiry=None)  # a new connection can reach another worker
        transport = httpx2.AsyncHTTPTransport(limits=limits, local_address=address)
        headers = {"authorization": f"Bearer {key}", "accept": "application/json, text/event-stream"}
        url = f"http://127.0.0.1:{port}"
        self.http = httpx2.AsyncClient(transport=transport, base_url=url, headers=headers, timeout=WAIT)

    async def initialize(self) -> dict[str, str]:
        """Begin a session, and return its headers."""
        params = {"protocolVersion": REVISION, "capabilities": {"elicitation": {}}}
        params["clientInfo"] = {"name": "test", "version": "1"}
        reply = await self.http.post("/mcp", json=message("initialize", params))
        return {"mcp-session-id": reply.headers["mcp-session-id"], "mcp-protocol-version": REVISION}

    async def call(self, session: dict[str, str], tool: str, **arguments: Any) -> httpx2.Response:
        """Call a tool, in a session or without one."""
        return await self.http.post("/mcp", json=tool_call(tool, **arguments), headers=session)

    async def take(self, session: dict[str, str]) -> tuple[int, str]:
        """Return the status, and the session's value."""
        reply = await self.call(session, "take")
        return reply.status_code, text_of(reply) if reply.status_code == 200 else ""


_ids = itertools.count(1)


def message(method: str, params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": next(_ids), "method": method, "params": params}


def tool_call(name: str, **arguments: Any) -> dict[str, Any]:
    return message("tools/call", {"name": name, "arguments": arguments})


def text_of(reply: httpx2.Response) -> str:
    return str(reply.json()["result"]["content"][0]["text"])


async def events(reply: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """Yield the messages of an event stream."""
    async for line in reply.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with serve(tmp_path_factory.mktemp("workers")) as program:
        yield program


@contextmanager
def serve(folder: Path) -> Iterator[Program]:
    settings = {**os.environ, "MILLSTREAM_AUDIT_LOG": str(folder / "audit")}
    with run_workers(folder, 2, program=PROGRAM, cwd=folder, env=settings) as program:
        yield program


@asynccontextmanager
async def two_workers(served: Program, **options: Any) -> AsyncIterator[tuple[Caller, dict[str, str], Caller]]:
    """Return a client with a session, and another client whose connection another worker has accepted."""
    async with AsyncExitStack() as stack:

        async def connect(**options: Any) -> tuple[Caller, str]:
            caller = Caller(served.port, **options)
            await stack.enter_async_context(caller.http)
            return caller, text_of(await caller.call({}, "pid"))

        holder, first = await connect()
        session = await holder.initialize()
        while True:
            other, pid = await connect(**options)
            if pid != first:
                break
        yield holder, session, other


async def test_sessions_keep_their_state_whichever_worker_gets_the_request(served: Program) -> None:
    async with two_workers(served) as (holder, session, other):
        await other.call(session, "put", value=7)
        assert [await each.take(session) for each in (other, holder, other)] == [(200, "7")] * 3
        assert text_of(await other.call(session, "pid")) == text_of(await holder.call({}, "pid"))


async def test_sessions_of_two_callers_have_separate_state_on_one_worker(served: Program) -> None:
    async with two_workers(served) as (holder, session, other):
        own = await other.initialize()
        await asyncio.gather(other.call(session, "put", value=7), other.call(own, "put", value=8))
        assert await asyncio.gather(other.take(session), other.take(own), holder.take(own)) == [
            (200, "7"), (200, "8"), (200, "8"),
        ]  # fmt: skip


async def test_another_principals_session_is_unknown_on_another_worker(served: Program) -> None:
    async with two_workers(served, key=BOB) as (holder, session, other):
        await holder.call(session, "put", value=7)
        assert (await other.take(session))[0] == 404
        holder.http.headers["authorization"] = other.http.headers["authorization"] = "Bearer of-nobody"
        assert (await holder.take(session))[0] == (await other.take(session))[0] == 403
        holder.http.headers["authorization"] = f"Bearer {ADA}"
        assert await holder.take(session) == (200, "7")


async def test_stand_alone_stream_on_another_worker_gets_its_sessions_messages(served: Program) -> None:
    async with (
        two_workers(served) as (holder, session, other),
        other.http.stream("GET", "/mcp", headers=session) as stream,
    ):
        assert stream.status_code == 200
        await holder.call(session, "grow")
        assert (await anext(events(stream)))["method"] == "notifications/tools/list_changed"


async def test_question_and_answer_pass_through_another_worker(served: Program) -> None:
    async with (
        two_workers(served) as (_, session, other),
        other.http.stream("POST", "/mcp", json=tool_call("ask"), headers=session) as stream,
    ):
        heard = events(stream)
        question = await anext(heard)
        answer = {"action": "accept", "content": {"name": "ada"}}
        reply = {"jsonrpc": "2.0", "id": question["id"], "result": answer}
        assert (await other.http.post("/mcp", json=reply, headers=session)).status_code == 202
        assert (await anext(heard))["result"]["content"][0]["text"] == "ada"


async def test_call_is_canceled_through_another_worker(served: Program) -> None:
    canceled = served.folder / "canceled"
    call = tool_call("hang")
    call["params"]["_meta"] = {"progressToken": "t"}
    async with (
        two_workers(served) as (_, session, other),
        other.http.stream("POST", "/mcp", json=call, headers=session) as stream,
    ):
        await anext(events(stream))  # it runs
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": call["id"]}}
        await other.http.post("/mcp", json=cancel, headers=session)
        await until_async(canceled.exists)


async def test_session_deleted_through_another_worker_ends_everywhere(served: Program) -> None:
    async with two_workers(served) as (holder, session, other):
        await other.call(session, "put", value=7)
        assert (await other.http.delete("/mcp", headers=session)).status_code == 204
        assert [(await each.take(session))[0] for each in (other, holder)] == [404, 404]


async def test_audit_log_has_each_call_once_with_the_client_address(served: Program) -> None:
    async with two_workers(served, address="127.0.0.9") as (_, session, other):
        await other.call({**session, "millstream-client": "http 203.0.113.9"}, "put", value=1)

    def lines() -> list[dict[str, Any]]:
        found = [json.loads(line) for path in served.folder.glob("audit*") for line in path.read_text().splitlines()]
        return [each for each in found if each.get("target") == "put" and each["address"] not in ("", "127.0.0.1")]

    await until_async(lambda: bool(lines()))
    assert [each["address"] for each in lines()] == ["127.0.0.9"]


async def test_session_on_a_killed_worker_goes_on_and_its_loss_of_state_is_reported(served: Program) -> None:
    async with two_workers(served) as (holder, session, other):
        await other.call(session, "put", value=7)
        pid = int(text_of(await holder.call(session, "pid")))
        kill(pid)
        await until_async(lambda: pid not in served.children())
        assert await until_taken_over(other, session) <= 2


async def until_taken_over(caller: Caller, session: dict[str, str]) -> int:
    """Read the session's value until another worker has it, and return how often a loss of state was reported."""
    found: list[tuple[int, str]] = []
    while found[-2:] != [(200, "None")] * 2:
        found.append(await caller.take(session))
        assert found[-1][0] == 200
    reported = [text for _, text in found if text != "None"]
    assert reported
    assert all("This gateway has restarted" in text for text in reported)
    return len(reported)


async def test_call_in_a_killed_worker_fails_with_the_reason_and_its_session_goes_on(served: Program) -> None:
    running = served.folder / "running"
    async with two_workers(served) as (holder, session, other):
        pid = int(text_of(await holder.call(session, "pid")))
        running.unlink(missing_ok=True)
        call = asyncio.create_task(other.call(session, "hang"))
        await until_async(running.exists)
        kill(pid)
        reply = await call
        assert (reply.status_code, "may have taken effect" in reply.text) == (502, True)
        assert isinstance(reply.json()["id"], int)
        await until_async(lambda: pid not in served.children())
        await until_taken_over(other, session)


def listening_socket(pid: int) -> Path:
    """Return the path of the only Unix socket on which a process listens."""
    open_files = {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    (path,) = [row[7] for row in rows if len(row) == 8 and row[3] == "00010000" and f"socket:[{row[6]}]" in open_files]
    return Path(path)


async def test_requests_that_a_killed_worker_may_have_taken_are_not_repeated(tmp_path: Path) -> None:
    with serve(tmp_path) as served:  # its workers have no connections to each other yet
        async with two_workers(served) as (holder, session, other):
            pid = int(text_of(await holder.call(session, "pid")))
            path = listening_socket(pid)
            kill(pid, signal.SIGSTOP)
            path.unlink()
            dying = await asyncio.start_unix_server(lambda _, writer: writer.close(), path)
            async with dying:
                assert [(await other.take(session))[0] for _ in range(2)] == [502, 502]
            kill(pid)
            await until_taken_over(other, session)


async def test_session_goes_on_when_all_workers_are_replaced(served: Program) -> None:
    async with two_workers(served) as (_, session, other):
        await other.call(session, "put", value=7)
        async with other.http.stream("POST", "/mcp", json=tool_call("ask"), headers=session) as stream:
            heard = events(stream)
            question = await anext(heard)
            served.process.send_signal(signal.SIGHUP)
            await until_async(lambda: served.count_lines("The new version is serving") == 1)
            replies: list[tuple[int, str]] = []
            while (200, "None") not in replies:
                late = Caller(served.port)
                async with late.http:
                    replies.append(await late.take(session))
            told = [each for each in replies if each not in ((200, "7"), (200, "None"))]
            assert len(told) == 1
            assert "This gateway has restarted" in told[0][1]
            answer = {"action": "accept", "content": {"name": "ada"}}
            reply = {"jsonrpc": "2.0", "id": question["id"], "result": answer}
            await other.http.post("/mcp", json=reply, headers=session)
            assert (await anext(heard))["result"]["content"][0]["text"] == "ada"
