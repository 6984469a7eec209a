"""Restarting every worker under load: nobody's request fails, and nobody's connection is refused."""

import signal
from collections import Counter
from pathlib import Path

import pytest

from workers_world import Load, call, pids_by_new_connections, until_async, workers

pytestmark = pytest.mark.server

REQUESTS = 3_000


async def test_no_request_fails_while_every_worker_is_replaced(tmp_path: Path) -> None:
    """SIGHUP, again and again, under keep-alive calls, slow ones among them."""
    with workers(tmp_path, 2) as served:
        first = set(served.pids)
        load = Load(served.port, 12, [call("who"), call("slow", seconds=0.05), call("who"), call("who")])
        await until_async(lambda: load.replies > 100)
        for round_ in range(1, 4):
            served.process.send_signal(signal.SIGHUP)
            await until_async(lambda n=round_: served.said("Every worker is new") == n)  # type: ignore[misc]
        await until_async(lambda: load.replies >= REQUESTS)
        await load.stop()
        after = await pids_by_new_connections(served.port, 40)
        assert load.failures == Counter()
        assert not first & set(after)
        assert len(after) == 2
