"""Workers that are killed while clients publish and listen: nothing that was acknowledged is lost, nothing comes twice.

`make chaos` does the same for minutes, with thousands of subscribers; here it is a few kills on every store.
"""

from pathlib import Path

import pytest

from benches.chaos.run import Crowd, Report, cluster, kill_workers, storm
from redis_parts import RedisServer

pytestmark = pytest.mark.server
KILLS = 4


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_subscribers_of_workers_that_are_killed_miss_and_repeat_nothing(tmp_path: Path, kind: str) -> None:
    """Each comes back to some worker with its last id, and gets everything behind it, once and in order."""
    redis = RedisServer() if kind == "redis" else None
    store = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/store.db"}.get(kind) or redis.url  # type: ignore[union-attr]
    report = Report()
    try:
        async with cluster(tmp_path / "log", workers=3, store=store) as running:
            await storm(
                running,
                report,
                Crowd(subscribers=60, rate=100.0, channels=12, proxied=24, speakers=1, proxied_speakers=1),
                until=lambda: report.harm >= KILLS,
                harm=kill_workers(1.0, report),
            )
    finally:
        if redis is not None:
            redis.close()
    assert report.wrong == []
    assert report.acknowledged > 0
    assert report.reconnects
    assert report.gaps == 0
