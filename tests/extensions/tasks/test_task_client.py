import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from fleet import until
from http_peer import serve
from millstream import Client, Context, ProtocolError, Server, Settings, ToolError
from millstream.client import ClientError, NotSupported, RequestTimeout, ServerError, ToolFailed
from millstream.testing import connect
from processes import free_port, run_command, run_server
from wire import LATEST_HANDSHAKE

PROGRAM = """
import asyncio
from pathlib import Path
from millstream import Server

HERE = Path(__file__).parent
mcp = Server("shop")


@mcp.tool(task="allowed", task_retry=True)
async def waits(word: str) -> str:
    (HERE / "began").touch()
    while not (HERE / "go").exists():
        await asyncio.sleep(0.05)
    return word
"""


@dataclass
class Name:
    name: str


def make_shop() -> tuple[Server, asyncio.Event]:
    """Return a server with a short poll interval, and an event that releases its tools."""
    mcp, release = Server("shop", settings=Settings(task_poll=0.001)), asyncio.Event()

    @mcp.tool(task="allowed")
    async def report(year: int, ctx: Context) -> str:
        """Make a report."""
        await ctx.progress(1, 2, "Reading")
        await release.wait()
        return f"The report of {year}"

    @mcp.tool(task="required")
    async def fails(how: str) -> str:
        """Fail."""
        if how == "tool":
            raise ToolError("There is no such book.")
        raise ProtocolError(-32001, "No.", {"why": 7})

    @mcp.tool(task="required")
    async def asks(ctx: Context) -> str:
        """Ask twice."""
        first = await ctx.elicit("Who?", Name, key="who")
        second = await ctx.elicit("And who else?", Name, key="else")
        return f"{first.name}, {second.name}"

    @mcp.tool
    async def plain() -> str:
        """Answer at once."""
        return "plain"

    return mcp, release


async def test_call_as_task_reports_progress_and_returns_the_result() -> None:
    mcp, release = make_shop()
    heard: list[tuple[float, float | None, str | None]] = []

    def progress(value: float, total: float | None, message: str | None) -> None:
        heard.append((value, total, message))
        release.set()

    async with connect(mcp) as client:
        result = await client.call("report", {"year": 2026}, task=True, progress=progress)
        assert result.text == "The report of 2026"
        assert heard == [(1, None, "Reading (1 of 2)")]
        assert await client.call("report", year=2025, task=True, result_type=str) == "The report of 2025"
        assert (await client.call("plain", task=True)).text == "plain"


async def test_call_as_task_is_a_plain_call_without_task_support() -> None:
    mcp, release = make_shop()
    release.set()
    async with connect(mcp, revision=LATEST_HANDSHAKE) as client:
        assert (await client.call("report", year=2026, task=True)).text == "The report of 2026"
        with pytest.raises(NotSupported, match="tasks extension"):
            await client.tasks.start("report", {"year": 2026})
        with pytest.raises(NotSupported):
            await client.tasks.get("id")


async def test_task_questions_reach_the_client_handlers() -> None:
    mcp, _ = make_shop()
    asked: list[str] = []

    def elicit(question: Any) -> dict[str, str]:
        asked.append(question.message)
        return {"name": f"Nr. {len(asked)}"}

    async with Client(mcp, elicit=elicit) as client:
        assert (await client.call("asks", task=True)).text == "Nr. 1, Nr. 2"
    assert asked == ["Who?", "And who else?"]


async def test_failed_tasks_raise_like_calls() -> None:
    mcp, _ = make_shop()
    async with connect(mcp) as client:
        with pytest.raises(ToolFailed, match="no such book"):
            await client.call("fails", how="tool", task=True)
        assert (await client.call("fails", how="tool", task=True, raise_on_error=False)).is_error
        with pytest.raises(ServerError, match="No") as failure:
            await client.call("fails", how="else", task=True)
        assert (failure.value.code, failure.value.data) == (-32001, {"why": 7})


async def test_task_can_be_resumed_by_its_id() -> None:
    mcp, release = make_shop()
    async with serve(mcp, lane=True) as running:
        url = f"http://127.0.0.1:{running.port}/mcp"
        async with Client(url) as client:
            kept = await client.tasks.start("report", {"year": 2026})
            lost = await client.tasks.start("report", {"year": 1066})
            assert (kept.status, kept.over, kept.ttl_ms) == ("working", False, 3_600_000)
            with pytest.raises(ClientError, match="hasn't ended"):
                kept.outcome()
            with pytest.raises(RequestTimeout, match="continues"):
                await client.call("report", year=7, task=True, timeout=0.01)
        async with Client(url) as client:
            await client.tasks.cancel(lost.task_id)
            with pytest.raises(ClientError, match="canceled"):
                await client.tasks.wait(lost.task_id)
            release.set()
            assert (await client.tasks.wait(kept.task_id)).text == "The report of 2026"
            assert (await client.tasks.get(kept.task_id)).outcome().text == "The report of 2026"
            with pytest.raises(ServerError, match="Unknown task"):
                await client.tasks.wait("nothing")


@pytest.mark.server
async def test_waiting_for_a_task_survives_a_server_restart(tmp_path: Path) -> None:
    program, port = tmp_path / "shop.py", free_port()
    program.write_text(PROGRAM)
    command = run_command(str(program), port, "--store", f"sqlite:///{tmp_path}/store.db")
    url = f"http://127.0.0.1:{port}/mcp"
    async with _ServerProcess(command, port, tmp_path / "log") as started, Client(url) as client:
        waiting = asyncio.create_task(client.call("waits", word="Dune", task=True))
        await until((tmp_path / "began").exists)
        await started.kill()
        (tmp_path / "go").touch()
        await started.start()
        assert (await waiting).text == "Dune"


class _ServerProcess:
    """A server that can be killed and restarted without blocking the event loop."""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self._open: Callable[[], Any] = lambda: run_server(command, port, log)
        self._block: Any = None

    async def start(self) -> None:
        self._block = self._open()
        self._process = await asyncio.to_thread(self._block.__enter__)

    async def kill(self) -> None:
        self._process.kill()
        await asyncio.to_thread(self._block.__exit__, None, None, None)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.kill()


@pytest.mark.server
async def test_example_runs_as_tasks() -> None:
    async with Client("examples/reports.py", elicit=lambda _: {"approved": True}) as client:
        assert (await client.call("make_report", year=2026, task=True)).text == "The report of 2026 is ready."
        assert (await client.call("publish", year=2026, task=True)).text == "The report of 2026 is public."
