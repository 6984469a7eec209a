from collections.abc import Iterator
from pathlib import Path

import pytest

from benches.chaos.own_redis import flush
from benches.chaos.returning import return_together
from benches.chaos.run import Crowd, Report, cluster, half_a_core, kill_workers, storm, together
from redis_parts import RedisServer

pytestmark = [pytest.mark.server, pytest.mark.nightly]
KILLS = 12
"""As many as in a minute of `make chaos`."""
HALVES = 75
"""Tenths of a second: more than a lease lasts."""


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    server = RedisServer()
    yield server
    server.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_subscribers_miss_and_repeat_nothing_when_workers_are_killed(tmp_path: Path, kind: str) -> None:
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


async def test_redis_data_loss_is_reported_to_every_subscriber_as_a_gap(tmp_path: Path, redis: RedisServer) -> None:
    report = Report()
    async with cluster(tmp_path / "log", workers=3, store=redis.url) as running:
        await storm(
            running,
            report,
            Crowd(subscribers=30, rate=200.0, channels=6),
            until=lambda: report.harm >= KILLS,
            harm=together(kill_workers(1.0, report), flush(redis.url, 1.0)),
        )
    assert report.wrong == []
    assert report.acknowledged > 0
    assert report.gaps > 0


async def test_workers_on_half_a_core_are_not_considered_dead(tmp_path: Path, redis: RedisServer) -> None:
    report = Report()
    async with cluster(tmp_path / "log", workers=4, store=redis.url) as running:
        before = running.workers()
        assert redis.process is not None
        await storm(
            running,
            report,
            Crowd(subscribers=60, rate=100.0, channels=12, speakers=1),
            until=lambda: report.harm >= HALVES,
            harm=half_a_core(report, redis.process.pid),
        )
        assert running.workers() == before
    assert "starting another" not in (tmp_path / "log").read_text()
    assert report.wrong == []
    assert report.gaps == 0
    assert not report.reconnects
    assert report.again.total() == 0


async def test_reconnecting_subscribers_cause_few_redis_commands(tmp_path: Path, redis: RedisServer) -> None:
    report = Report()
    async with cluster(tmp_path / "log", workers=4, store=redis.url) as running:
        await return_together(running, report, subscribers=400, channels=20, redis=redis.url)
    assert report.wrong == []
    assert report.gaps == 0
    assert report.received > 400 * 3_000 / 20
