import math
import signal
from collections import Counter
from pathlib import Path

import pytest

from benches.chaos.restarts import Restarts
from benches.chaos.run import Crowd, Report, cluster, storm
from benches.processes import raise_file_limit
from workers_world import Client, call, run_workers, until_async

pytestmark = [pytest.mark.server, pytest.mark.nightly]

CALLS = 100_000
STREAMS = 2_000


async def test_no_call_fails_and_no_event_is_lost_while_every_worker_is_replaced(tmp_path: Path) -> None:
    raise_file_limit()
    report = Report()
    async with cluster(tmp_path / "log", workers=4) as running:
        first = set(running.workers())
        restarts = Restarts(running.port, report, requests=CALLS, rate=math.inf, restarts=3)
        await storm(
            running,
            report,
            Crowd(subscribers=STREAMS, rate=50.0, channels=200),
            until=lambda: restarts.done,
            harm=restarts.harm(),
        )
        assert not first & set(running.workers())
    assert restarts.failures == Counter()
    assert restarts.calls >= CALLS
    assert report.wrong == []
    assert report.gaps == 0
    assert len(report.reconnects) >= STREAMS
    assert report.harm == 3


async def test_connections_are_spread_evenly_after_a_restart(tmp_path: Path) -> None:
    with run_workers(tmp_path, 2) as served:
        clients = [Client(served.port) for _ in range(90)]
        old = {(await client.request(call("who"))).value for client in clients}
        served.process.send_signal(signal.SIGHUP)
        await until_async(lambda: served.count_lines("The new version is serving") == 1)
        found = Counter[int]()
        for client in clients:
            while (pid := (await client.request(call("who"))).value) in old:
                pass
            found[pid] += 1
        assert len(found) == 2
        assert min(found.values()) > 20
        for client in clients:
            await client.close()
