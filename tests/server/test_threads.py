"""Calls of `def` functions that need more threads than there are."""

import asyncio
from collections.abc import Callable
from threading import Barrier, Event
from typing import Annotated, Any

import pytest

from cases import for_each
from fleet import until
from millstream import Depends, Server, Settings, SyncContext
from millstream.compat.fastmcp import FastMCP
from millstream.testing import ToolFailed, connect
from patience import WAIT

THREADS = 40
"""The default of `max_threads`."""


def make_server(block: Callable[[], str]) -> Server:
    """Return a server whose functions block."""
    mcp = Server("threads")

    @mcp.tool
    def tool(n: int) -> str:
        return block()

    @mcp.tool
    def tool_with_context(n: int, ctx: SyncContext) -> str:
        return block()

    @mcp.tool
    async def tool_with_dependency(n: int, done: Annotated[str, Depends(block)]) -> str:
        return done

    @mcp.resource("block://{n}")
    def resource(n: int) -> str:
        return block()

    @mcp.prompt
    def prompt(n: int) -> str:
        return block()

    @mcp.complete("prompt", argument="n")
    def completer(value: str, arguments: dict[str, str]) -> list[str]:
        return [block()]

    return mcp


def make_program(block: Callable[[], str]) -> Server:
    """Return a program of another library with a tool that blocks."""
    mcp = FastMCP("threads")

    @mcp.tool()
    def tool(n: int) -> str:
        return block()

    return mcp.engine


OPERATIONS: dict[str, Callable[[Any, int], Any]] = {
    "tool": lambda client, n: client.call("tool", n=n),
    "tool of a program": lambda client, n: client.call("tool", n=n),
    "tool with a context": lambda client, n: client.call("tool_with_context", n=n),
    "tool with a dependency": lambda client, n: client.call("tool_with_dependency", n=n),
    "resource": lambda client, n: client.read(f"block://{n}"),
    "prompt": lambda client, n: client.prompt("prompt", n=str(n)),
    "completion": lambda client, n: client.complete("n", str(n), prompt="prompt"),
}


@for_each("operation", list(OPERATIONS))
async def test_blocking_calls_wait_if_all_threads_are_busy(operation: str) -> None:
    together = Barrier(THREADS, timeout=WAIT)

    def block() -> str:
        together.wait()
        return "done"

    server = make_program(block) if operation == "tool of a program" else make_server(block)
    async with connect(server) as client:
        async with asyncio.timeout(WAIT):
            replies = await asyncio.gather(*(OPERATIONS[operation](client, n) for n in range(3 * THREADS)))
    assert all("done" in str(each) for each in replies)


async def test_calls_that_get_no_thread_in_time_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.pool.WAIT_TIMEOUT", 0.01)
    mcp, started, end = Server("threads", settings=Settings(max_threads=1)), Event(), Event()

    @mcp.tool
    def block() -> str:
        started.set()
        end.wait(WAIT)
        return "done"

    async with connect(mcp) as client, asyncio.timeout(WAIT):
        first = asyncio.create_task(client.call("block"))
        try:
            await until(started.is_set)
            with pytest.raises(ToolFailed, match="The worker threads are busy: your calls use 1 of 1"):
                await client.call("block")
        finally:
            end.set()
        assert (await first).text == "done"
