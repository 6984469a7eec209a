import asyncio
import inspect
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, current_thread

from cases import for_each
from millstream import Cancelled, Context, Server, Settings, SyncContext, ToolError
from millstream.testing import connect
from patience import WAIT


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
