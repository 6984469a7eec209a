import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import http_peer
from cases import for_each
from extensions.tasks.tasks_world import TaskClient, accept, text
from extensions.tasks.test_task_workers import client_of
from fleet import Worker, real_fleet, until
from millstream import Context, Server, Settings
from patience import WAIT
from store_parts import Backing

POLLED = Settings(task_poll=0.001)


@dataclass
class Name:
    name: str


class Shop:
    """An upstream with tasks behind several gateway workers."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.began = 0
        self.cancelled = 0
        self.url = ""
        self.server = server = Server("shop", settings=POLLED)

        @server.tool(task="allowed")
        async def report(year: int, ctx: Context) -> str:
            """Make a report."""
            self.began += 1
            await ctx.progress(1, 2, "Reading")
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            return f"The report of {year}"

        @server.tool(task="required")
        async def asks(ctx: Context) -> str:
            """Ask twice."""
            first = await ctx.elicit("Who?", Name, key="who")
            second = await ctx.elicit("And who else?", Name, key="else")
            return f"{first.name}, {second.name}"

    def gateway(self) -> Server:
        """Return one worker of the gateway."""
        front = Server("front", settings=POLLED)
        front.upstream("shop", self.url, start_timeout=WAIT)
        return front

    @asynccontextmanager
    async def gateways(self, backing: Backing, count: int) -> AsyncIterator[list[Worker]]:
        """Run workers of the gateway for the duration of the block."""
        async with http_peer.serve(self.server) as served:
            self.url = f"http://127.0.0.1:{served.port}/mcp"
            try:
                async with real_fleet(self.gateway, backing, count) as workers:
                    yield workers
            finally:
                await self.server.stop()


@for_each("count", [2, 4])
async def test_any_worker_answers_requests_about_an_upstream_task(backing: Backing, count: int) -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), shop.gateways(backing, count) as workers:
        clients: list[TaskClient] = [client_of(worker) for worker in workers]
        one, *others = clients
        task_id = (await one.call("shop_report", year=2026))["taskId"]
        for each in others:
            state = await each.wait_until(task_id, lambda task: "statusMessage" in task)
            assert (state["status"], state["statusMessage"]) == ("working", "Reading (1 of 2)")
        cancelled = (await one.call("shop_report", year=1999))["taskId"]
        await until(lambda: shop.began == 2)
        await others[-1].cancel(cancelled)
        assert (await one.get(cancelled))["status"] == "cancelled"
        await until(lambda: shop.cancelled == 1)
        asking = (await one.call("shop_asks"))["taskId"]
        for number, (name, key) in enumerate((("Ada", "who"), ("Bob", "else"))):
            task = await clients[-1 - number].wait_until(
                asking, lambda task, key=key: key in task.get("inputRequests", {})
            )  # type: ignore[misc]
            assert list(task["inputRequests"]) == [key]
            await clients[-1 - number].update(asking, **{key: accept(name=name)})
        assert text(await one.wait_for_end(asking)) == "Ada, Bob"
        shop.release.set()
        for each in others:
            assert text(await each.wait_for_end(task_id)) == "The report of 2026"
        assert (shop.began, shop.cancelled) == (2, 1)


async def test_upstream_task_survives_the_death_of_its_worker(backing: Backing) -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), shop.gateways(backing, 3) as workers:
        one, two, three = map(client_of, workers)
        task_id = (await one.call("shop_report", year=2026))["taskId"]
        await two.wait_until(task_id, lambda task: "statusMessage" in task)
        workers[0].runtime.dispatcher.stopping = True
        await backing.kill(workers[0].store.real)
        await until(lambda: any(worker.runtime.dispatcher.calls for worker in workers[1:]))
        shop.release.set()
        assert text(await three.wait_for_end(task_id)) == "The report of 2026"
        assert shop.began == 1
