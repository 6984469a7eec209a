"""Lifespans are entered and exited in one task, and a failure while the server runs is reported."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest

from app_peer import ask
from millstream import Server


async def test_anyio_task_group_stays_open_while_the_server_runs() -> None:
    ended: list[str] = []

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield
            group.cancel_scope.cancel()
        ended.append(server.name)

    mcp = Server("shop", lifespan=lifespan)
    for _ in range(2):
        async with mcp.running():
            pass
    assert ended == ["shop", "shop"]


@pytest.mark.parametrize("mounted", [False, True])
async def test_failed_lifespan_task_is_logged_and_makes_the_server_unhealthy(
    mounted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    odd = asyncio.Event()

    async def consume() -> None:
        await odd.wait()
        raise KeyError("an odd event")

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(consume())
            yield
            task.cancel()

    mcp = Server("shop", lifespan=lifespan)
    if mounted:
        outer = Server("mall")
        outer.mount(mcp, "shop")
        mcp = outer
    async with mcp.running():
        assert (await ask(mcp, "GET", "/readyz")).body == b"ok\n"
        odd.set()
        while not (errors := [each for each in caplog.records if each.levelno == logging.ERROR]):  # noqa: ASYNC110
            await asyncio.sleep(0)
        health = await ask(mcp, "GET", "/health")
        assert health.status == 503
        assert json.loads(health.body)["reasons"] == ["the lifespan ended with an error"]
        assert (await ask(mcp, "GET", "/readyz")).body == b"degraded: the lifespan ended with an error\n"
    [record] = errors
    assert "ended while the server was running" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ExceptionGroup)
    assert str(record.exc_info[1].exceptions[0]) == "'an odd event'"
