"""Calls of `def` functions that need more threads than there are."""

import asyncio
import inspect
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, current_thread
from typing import Annotated, Any

import pytest

from cases import for_each
from fleet import until
from millstream import Cancelled, Context, Depends, Server, Settings, SyncContext, ToolError
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


def test_def_functions_can_use_the_whole_context() -> None:
    public = {name for name, _ in inspect.getmembers(Context) if not name.startswith("_")}
    assert public <= {name for name, _ in inspect.getmembers(SyncContext)}


async def test_side_effects_run_in_the_thread_of_their_call() -> None:
    mcp = Server("once", settings=Settings(max_threads=2))
    together = Barrier(2, timeout=WAIT)
    threads: set[tuple[str, str]] = set()

    @mcp.tool
    def pay(ctx: SyncContext) -> str:
        """Wait until two calls fill the pool, so both effects overlap."""

        def effect() -> str:
            together.wait()
            threads.add((outside, current_thread().name))
            ctx.progress(1)
            return "paid"

        outside = current_thread().name
        return ctx.once("pay", effect)

    with ThreadPoolExecutor(1) as other:
        asyncio.get_running_loop().set_default_executor(other)
        async with connect(mcp) as client, asyncio.timeout(WAIT):
            results = await asyncio.gather(client.call("pay"), client.call("pay"))
    assert [each.text for each in results] == ["paid", "paid"]
    assert threads == {("millstream_1", "millstream_1"), ("millstream_2", "millstream_2")}


@for_each("revision", ["2025-11-25", "2026-07-28"])
async def test_side_effect_errors_are_raised_at_the_call_site(revision: str) -> None:
    mcp = Server("once", settings=Settings())

    @mcp.tool
    def pay(ctx: SyncContext, stops: bool) -> str:
        def effect() -> str:
            raise StopIteration if stops else ToolError("no money")

        try:
            return ctx.once("pay", effect)
        except RuntimeError as exc:
            return str(exc)

    async with connect(mcp, revision=revision) as client, asyncio.timeout(WAIT):
        assert (await client.call("pay", stops=False, raise_on_error=False)).text == "no money"
        assert (await client.call("pay", stops=True)).text == "the function raised StopIteration"


async def test_cancellation_during_a_side_effect_is_raised_when_it_ends() -> None:
    mcp = Server("once", settings=Settings(max_threads=1))
    begun, go_on = Event(), Event()
    ended: list[str] = []

    @mcp.tool(timeout=0.02)
    def pay(ctx: SyncContext) -> str:
        def effect() -> str:
            begun.set()
            assert go_on.wait(WAIT)
            return "paid"

        try:
            return ctx.once("pay", effect)
        except Cancelled:
            ended.append("cancelled")
            raise

    @mcp.tool
    def free() -> str:
        return "free"

    async with connect(mcp) as client, asyncio.timeout(WAIT):
        while not begun.is_set():  # a thread may begin after the timeout
            assert re.search("didn't finish|busy", (await client.call("pay", raise_on_error=False)).text)
        waiting = asyncio.create_task(client.call("free"))
        go_on.set()
        assert (await waiting).text == "free"
    assert set(ended) == {"cancelled"}
