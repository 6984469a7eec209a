"""What a worker holds while it's suspended for longer than its lease, as on a laptop that sleeps."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from patience import WAIT
from redis_parts import RedisServer
from wire import per_request, routing
from workers_world import Program, kill, run_workers

pytestmark = pytest.mark.server

PROGRAM = """
from millstream import Context, Server

mcp = Server("shop")


@mcp.tool
async def order(ctx: Context) -> str:
    return await ctx.elicit("Which?", str)
"""


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with closing(RedisServer()) as server:
        yield server


async def send(machine: Program, **members: Any) -> Any:
    message = per_request("tools/call", {"name": "order", "arguments": {}, **members}, elicitation={"form": {}})
    async with httpx2.AsyncClient(timeout=WAIT) as http:
        url = f"http://127.0.0.1:{machine.port}/mcp"
        reply = await http.post(url, json=message, headers={**dict(routing("tools/call", "order"))})
    return json.loads(reply.text.rpartition("data: ")[2])


async def answer(machine: Program, asked: Any) -> str:
    """Answer a question and return the text of the reply."""
    result = asked["result"]
    answers = {key: {"action": "accept", "content": {"value": "tea"}} for key in result["inputRequests"]}
    return json.dumps(await send(machine, requestState=result["requestState"], inputResponses=answers))


async def test_call_that_waits_at_a_worker_is_found_under_its_new_name(tmp_path: Path, redis: RedisServer) -> None:
    env = {**os.environ, "MILLSTREAM_STORE": redis.url, "MILLSTREAM_SECRET_KEY": "the-secret-of-both-0123456789abcdef"}
    for folder in (tmp_path / "1", tmp_path / "2"):
        folder.mkdir()
    with (
        run_workers(tmp_path / "1", 1, program=PROGRAM, env=env) as one,
        run_workers(tmp_path / "2", 1, program=PROGRAM, env=env) as two,
    ):
        waiting, lost = await send(one), await send(one)
        worker = one.process.pid
        kill(worker, signal.SIGSTOP)
        try:
            async with asyncio.timeout(WAIT):
                while "may have taken effect" not in await answer(two, lost):
                    pass
        finally:
            kill(worker, signal.SIGCONT)
        async with asyncio.timeout(WAIT):
            while "tea" not in await answer(two, await send(one)):  # until it has its new name
                pass
        assert "tea" in await answer(two, waiting)
        assert "has ended" in await answer(one, waiting) or "tea" in await answer(one, waiting)
