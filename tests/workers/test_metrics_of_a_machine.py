from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from workers_world import Client, call, kill, run_workers, until_async

pytestmark = pytest.mark.server


def value(text: bytes, name: str) -> float:
    """The sum of all samples of a name."""
    families = text_string_to_metric_families(text.decode())
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


COUNT = "mcp_server_operation_duration_seconds_count"


async def counted(port: int, name: str) -> Counter[float]:
    """What new connections, each to some worker, are told."""
    found: Counter[float] = Counter()
    for _ in range(12):
        client = Client(port)
        reply = await client.request(path="/metrics")
        assert reply.status == 200
        found[value(reply.body, name)] += 1
        await client.close()
    return found


async def test_metrics_are_summed_across_workers(tmp_path: Path) -> None:
    with run_workers(tmp_path, 3, "--serve", "metrics") as served:
        pids: Counter[int] = Counter()
        while len(pids) < 3:
            client = Client(served.port)
            pids[(await client.request(call("who"))).value] += 1
            await client.close()
        calls = pids.total()
        seen: Counter[float] = Counter()

        async def all_know() -> bool:
            nonlocal seen
            seen = await counted(served.port, COUNT)
            return set(seen) == {calls}

        while not await all_know():
            assert max(seen) <= calls
        dead = next(iter(pids))
        kill(dead)
        await until_async(lambda: served.count_lines("is ready") > 0)
        assert set(await counted(served.port, COUNT)) == {calls}, "left with the parent within a second"
        client = Client(served.port)
        await client.request(call("who"))
        await client.close()
        calls += 1
        while not await all_know():
            assert max(seen) <= calls
        assert set(await counted(served.port, "process_start_time_seconds")) != {0.0}
