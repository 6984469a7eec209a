import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest

from patience import WAIT
from workers_world import Client, call, run_workers

pytestmark = pytest.mark.server


async def test_limits_are_shared_by_four_processes(tmp_path: Path) -> None:
    with run_workers(tmp_path, 4, env=os.environ | {"MILLSTREAM_LIMIT_CALLS": "12/day"}) as served:

        async def one() -> tuple[int, int | None]:
            client = Client(served.port)
            reply = await client.request(call("who"))
            await client.close()
            return reply.status, reply.value if reply.status == 200 else None

        replies = [await one() for _ in range(6)] + list(await asyncio.gather(*(one() for _ in range(40))))
        assert Counter(status for status, _ in replies) == {200: 12, 429: 34}
        assert {pid for _, pid in replies if pid is not None} <= set(served.pids)


async def test_unreadable_messages_use_up_the_limit_of_four_processes(tmp_path: Path) -> None:
    with run_workers(tmp_path, 4, env=os.environ | {"MILLSTREAM_LIMIT_ADDRESS": "12/day"}) as served:

        async def status(message: bytes) -> int:
            client = Client(served.port)
            reply = await client.request(message)
            await client.close()
            return reply.status

        async with asyncio.timeout(WAIT):
            unreadable = [await status(b'{"jsonrpc')]
            while unreadable[-1] != 429:
                unreadable.append(await status(b'{"jsonrpc'))
        assert unreadable[:12] == [400] * 12
        assert await status(call("who")) == 429
