import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from fleet import until
from millstream import Client, Context, ProtocolError, Server, Settings
from millstream.client import ClientError, ServerError
from millstream.protocol import TASKS
from patience import WAIT
from wire import LATEST_HANDSHAKE, PER_REQUEST

POLLED = Settings(task_poll=0.001)


@dataclass
class Name:
    name: str


class Shop:
    """An upstream with tasks behind a gateway."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.notes: list[str] = []
        self.server = server = Server("shop", settings=POLLED)
        self.gateway = Server("front", settings=POLLED)
        self.gateway.upstream("shop", server, start_timeout=WAIT)

        @server.tool(task="allowed")
        async def report(year: int, ctx: Context) -> str:
            """Make a report."""
            self.notes.append("began")
            await ctx.progress(1, 2, "Reading")
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.notes.append("cancelled")
                raise
            return f"The report of {year}"

        @server.tool(task="required")
        async def asks(ctx: Context) -> str:
            """Ask twice."""
            first = await ctx.elicit("Who?", Name, key="who")
            second = await ctx.elicit("And who else?", Name, key="else")
            return f"{first.name}, {second.name}"

        @server.tool(task="required")
        async def fails() -> str:
            """Fail."""
            raise ProtocolError(-32001, "No.", {"why": 7})

        @server.tool
        async def plain() -> str:
            """Answer at once."""
            return "plain"

    @asynccontextmanager
    async def client(self, revision: str = PER_REQUEST) -> AsyncIterator[Client]:
        """Return a client of the gateway."""
        answers = iter(({"name": "Ada"}, {"name": "Bob"}))
        async with (
            asyncio.timeout(WAIT),
            Client(self.gateway, revision=revision, elicit=lambda _: next(answers)) as client,
        ):
            yield client


async def test_upstream_task_becomes_a_gateway_task() -> None:
    shop = Shop()
    async with shop.client() as client:
        assert client.server_extensions == {TASKS: {}}
        heard: list[str | None] = []
        started = await client.tasks.start("shop_report", {"year": 2026})
        assert started.task_id
        waiting = asyncio.create_task(
            client.tasks.wait(started, progress=lambda value, total, message: heard.append(message))
        )
        await until(lambda: bool(heard))
        shop.release.set()
        assert (await waiting).text == "The report of 2026"
        assert heard == ["Reading (1 of 2)"]
        assert (await client.call("shop_asks", task=True)).text == "Ada, Bob"
        with pytest.raises(ServerError, match="No") as failure:
            await client.call("shop_fails", task=True)
        assert (failure.value.code, failure.value.data) == (-32001, {"why": 7})
        plain = await client.tasks.start("shop_plain")
        assert (plain.task_id, plain.outcome().text) == ("", "plain")


async def test_gateway_awaits_tasks_for_clients_without_tasks() -> None:
    for revision in (PER_REQUEST, LATEST_HANDSHAKE):
        shop = Shop()
        shop.release.set()
        async with shop.client(revision) as client:
            assert (await client.call("shop_report", year=2026)).text == "The report of 2026"
            assert (await client.call("shop_asks")).text == "Ada, Bob"
            with pytest.raises(ServerError, match="No"):
                await client.call("shop_fails")


async def test_canceling_a_gateway_task_cancels_the_upstream_task() -> None:
    shop = Shop()
    async with shop.client() as client:
        started = await client.tasks.start("shop_report", {"year": 2026})
        await until(lambda: shop.notes == ["began"])
        await client.tasks.cancel(started.task_id)
        with pytest.raises(ClientError, match="canceled"):
            await client.tasks.wait(started)
        await until(lambda: shop.notes == ["began", "cancelled"])


async def test_gateway_without_task_upstreams_announces_no_tasks() -> None:
    shop, gateway = Server("shop"), Server("front")

    @shop.tool
    async def plain() -> str:
        """Answer at once."""
        return "plain"

    gateway.upstream("shop", shop, start_timeout=WAIT)
    async with Client(gateway) as client:
        assert TASKS not in client.server_extensions
        assert (await client.call("shop_plain", task=True)).text == "plain"
