import asyncio
from contextlib import closing

import pytest

from bad_input.shop import make_shop
from fleet import Worker, open_records_at, real_fleet
from millstream import Context, Server
from millstream._stores.redis.keys import script
from millstream._stores.workers import ROSTER
from redis_monitor import Monitor
from redis_parts import RedisBacking, shared_servers

pytestmark = pytest.mark.server
SESSIONS = 1_000
BY_THEMSELVES = {"PING", *(script(name).digest for name in ("mark", "read", "renew"))}
"""What idle workers run now and then, beside the renewals of the table."""
APPEND = script("append").digest


def make_talking() -> Server:
    """A shop with a tool that logs."""
    mcp = make_shop()

    @mcp.tool
    async def says(ctx: Context) -> str:
        for word in ("one", "two", "three"):
            await ctx.info(word)
        return "said"

    return mcp


async def asked(workers: list[Worker], monitor: Monitor) -> list[str]:
    """What was asked since the last time, but for what workers ask by themselves: names of commands, or of scripts."""
    await workers[0].store.kv.get("session:the-last")
    lines = [line.split('"') for line in monitor.until("session:the-last")[:-1] if ROSTER not in line]
    names = [parts[3] if parts[1] == "EVALSHA" else parts[1] for parts in lines]
    return [name for name in names if name not in BY_THEMSELVES]


async def test_calls_and_sessions_need_no_redis_commands() -> None:
    backing = RedisBacking()
    try:
        async with real_fleet(make_talking, backing) as workers:
            for worker in workers:
                open_records_at(worker, 0)  # they run for a while: no session is older than they are
            server = shared_servers(backing.servers)
            first = await workers[0].initialize()
            assert await workers[1].call("says", first) == "said"
            with closing(Monitor(server)) as monitor:
                keys = {key for key in server.ask("KEYS", "*") if b":i:" not in key}
                await asked(workers, monitor)
                for start in range(0, SESSIONS, 50):
                    opened = await asyncio.gather(*(workers[n % 4].initialize() for n in range(start, start + 50)))
                    told = await asyncio.gather(
                        *(workers[(n + 1) % 4].call("add", headers, a=n, b=1) for n, headers in enumerate(opened))
                    )
                    assert told == [str(n + 1) for n in range(50)]
                assert await asked(workers, monitor) == []
                assert {key for key in server.ask("KEYS", "*") if b":i:" not in key} == keys
                await asked(workers, monitor)
                assert await workers[2].call("says", first) == "said"
                assert await asked(workers, monitor) == [APPEND] * 5, "the beginning, three messages, the answer"
    finally:
        await backing.close()
