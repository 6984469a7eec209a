import asyncio
import logging
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import pytest

from auth_world import BOB
from fleet import Worker, fleet, real_fleet, settle, until
from millstream import Server, Settings, auth
from patience import WAIT
from store_parts import BACKINGS, Backing, backings
from wire import POST, request


@pytest.fixture(params=backings(["local", "redis"]))
async def backing(request: pytest.FixtureRequest) -> AsyncIterator[Backing]:
    """A store of each kind that decides: in a parent, and in Redis."""
    backing = BACKINGS[request.param]()
    yield backing
    await backing.close()


def limited(**settings: Any) -> Server:
    """Tools with limits, one of which waits until it may end."""
    server = Server("limited", serve="metrics", settings=Settings(**settings))
    server.go = asyncio.Event()  # type: ignore[attr-defined]

    @server.tool
    async def plain() -> str:
        """Nothing."""
        return "plain"

    @server.tool(cost=4)
    async def dear() -> str:
        """Counts as four."""
        return "dear"

    @server.tool(concurrency=2)
    async def waits() -> str:
        """Waits."""
        await server.go.wait()  # type: ignore[attr-defined]
        return "waited"

    return server


async def ask(worker: Worker, tool: str, id: int = 1) -> tuple[int, Any]:
    """Status and error of a call."""
    reply = await worker.ask("tools/call", {"name": tool}, POST, id)
    return reply["status"], reply.get("error")


async def count(workers: list[Worker], tool: str, times: int) -> int:
    """How many of so many calls at once are answered; all others are refused."""
    done = await asyncio.gather(*(ask(workers[number % len(workers)], tool, number) for number in range(times)))
    assert {status for status, _ in done} <= {200, 429}
    return sum(status == 200 for status, _ in done)


async def test_four_workers_share_a_rate_limit(backing: Backing) -> None:
    async with real_fleet(lambda: limited(limit_calls="24/day"), backing, 4) as workers:
        assert await count(workers, "dear", 4) == 4
        assert await count(workers, "plain", 40) == 8
        assert await count(workers, "dear", 4) == 0
        status, error = await ask(workers[0], "plain")
        assert (status, error["code"], error["data"]["policy"]) == (429, -31429, "calls")
        assert 0 < error["data"]["retryAfterMs"] <= 3_600_000


async def test_quotas_apply_to_all_workers(backing: Backing) -> None:
    async with real_fleet(lambda: limited(limit_quota="10/month", limit_calls="500/day"), backing, 4) as workers:
        assert await count(workers, "plain", 30) == 10
        reply = await workers[0].post(request("tools/call", {"name": "plain"}), POST)
        assert (reply.status, reply.headers["ratelimit-policy"][:14]) == (429, '"quota";q=10;w')
        assert int(reply.headers["retry-after"]) <= 31 * 86400 + 1


async def test_concurrency_limits_apply_across_workers(backing: Backing) -> None:
    made: list[Server] = []

    def make() -> Server:
        made.append(limited(limit_concurrency=3))
        return made[-1]

    async with real_fleet(make, backing, 3) as workers:
        running = [asyncio.ensure_future(ask(workers[number], "waits")) for number in range(2)]
        await until(lambda: sum(len(worker.runtime.dispatcher.calls) for worker in workers) == 2)
        await until(lambda: sum(call.release is not None for w in workers for call in w.runtime.dispatcher.calls) == 2)
        status, error = await ask(workers[2], "waits")
        assert (status, error["code"], error["data"]["policy"]) == (429, -31429, "concurrency:waits")
        assert error["data"]["retryAfterMs"] == 1000
        assert (await ask(workers[2], "plain"))[0] == 200
        for server in made:
            server.go.set()  # type: ignore[attr-defined]
        assert [status for status, _ in await asyncio.gather(*running)] == [200, 200]
        async with asyncio.timeout(WAIT):
            while (await ask(workers[2], "waits"))[0] != 200:
                await settle()


async def test_canceled_call_releases_its_slot() -> None:
    async with fleet(limited, 2, turns=lambda: 5) as (first, second):
        reply = asyncio.ensure_future(ask(first, "waits"))
        await until(lambda: first.store.operations["take"] == 1)
        (call,) = first.runtime.dispatcher.calls
        call.cancel()
        reply.cancel()
        await asyncio.gather(reply, return_exceptions=True)
        await until(lambda: not first.store._shared.tally._slots and not first.runtime.dispatcher.calls)
        second.server.go.set()  # type: ignore[attr-defined]
        assert await count([second], "waits", 2) == 2


async def test_workers_use_their_share_during_a_store_outage(caplog: pytest.LogCaptureFixture) -> None:
    async with fleet(lambda: limited(limit_calls="40/day"), 4) as workers:
        assert await count(workers, "plain", 4) == 4
        for worker in workers:
            worker.store.down = True
        with caplog.at_level(logging.WARNING, "millstream"):
            assert await count(workers, "plain", 60) == 40
            assert await count(workers, "waits", 0) == 0
        assert sum("each worker enforces its own share" in record.message for record in caplog.records) == 4
        assert b"\nmillstream_rate_limits_degraded 1.0\n" in await metrics(workers[0])
        assert b'millstream_rate_limited_total{policy="calls"} 5.0\n' in await metrics(workers[0])
        for worker in workers:
            worker.store.down = False
            worker.runtime.host.open_pool.clock = lambda: monotonic() + 10  # type: ignore[union-attr]
        assert await count(workers, "plain", 4) == 4  # one call of each worker finds that the store is back
        assert await count(workers, "plain", 60) == 32
        assert b"\nmillstream_rate_limits_degraded 0.0\n" in await metrics(workers[0])


async def metrics(worker: Worker) -> bytes:
    """What a worker shows."""
    return await (await worker.http.fetch("GET", "/metrics", {"host": "127.0.0.1"})).body()


async def test_denials_are_cached_until_their_retry_time() -> None:
    async with fleet(lambda: limited(limit_calls="2/day"), 2) as workers:
        assert await count(workers, "plain", 2) == 2
        for worker in workers:
            await ask(worker, "plain")
            worker.store.operations.clear()
        assert await count(workers, "plain", 50) == 0
        assert [worker.store.operations["take"] for worker in workers] == [0, 0]


async def test_frequent_callers_prefetch_tokens_from_the_store() -> None:
    async with fleet(lambda: limited(limit_calls="1000/day"), 2) as workers:
        done = 0
        for _ in range(150):
            done += await count(workers, "plain", 8)
        trips = sum(worker.store.operations["take"] for worker in workers)
        assert 980 <= done <= 1000
        assert trips < done / 4


async def test_wrong_keys_are_counted_across_workers() -> None:
    def make() -> Server:
        return Server("s", auth=auth.keys(BOB), settings=Settings())

    async with fleet(make, 4) as workers:
        statuses = []
        for number in range(60):
            headers = {**POST, "authorization": f"Bearer guess-number-{number}"}
            reply = await workers[number % 4].post(request("ping"), headers)
            statuses.append(reply.status)
            await settle(20)
        assert 30 <= statuses.count(401) + statuses.count(403) <= 34
        assert statuses[-20:] == [429] * 20
