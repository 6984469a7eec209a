import asyncio
import contextlib
import gc

import pytest
from prometheus_client.parser import text_string_to_metric_families

from millstream._telemetry import process
from millstream._telemetry.process import INTERVAL, LoopLag
from patience import WAIT
from telemetry_parts import Metrics, render


async def test_lag_is_the_excess_sleep_time() -> None:
    registry = Metrics()
    late = iter([0.0, 0.3, 0.0, 0.004])
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        try:
            now += seconds + next(late)
        except StopIteration:
            raise asyncio.CancelledError from None

    lag = LoopLag(registry, clock=lambda: now, sleep=sleep)
    assert (lag.last, lag.worst_of(60.0)) == (0.0, 0.0)
    with contextlib.suppress(asyncio.CancelledError):
        await lag.run()
    assert lag.last == pytest.approx(0.004)
    assert lag.worst_of(60.0) == pytest.approx(0.3)
    text = render(registry)
    assert b"millstream_event_loop_lag_seconds_count 4.0\n" in text
    assert b'millstream_event_loop_lag_seconds_bucket{le="0.2"} 3.0\n' in text


async def lag_with(*late: float) -> tuple[LoopLag, list[float]]:
    """Return a lag with these samples, and its clock."""
    now, left = [0.0], iter(late)

    async def sleep(seconds: float) -> None:
        for lag in left:
            now[0] += seconds + lag
            return
        raise asyncio.CancelledError

    lag = LoopLag(Metrics(), clock=lambda: now[0], sleep=sleep)
    with contextlib.suppress(asyncio.CancelledError):
        await lag.run()
    return lag, now


async def test_loop_stalls_are_summed_over_a_minute() -> None:
    lag, now = await lag_with(0.0, 1.25, 0.1, 0.5, 0.19)
    assert lag.blocked == pytest.approx(1.75)  # shorter delays are ignored
    now[0] += 59.0
    assert lag.blocked == pytest.approx(0.5)
    now[0] += 60.0
    assert (lag.blocked, lag.worst_of(60.0)) == (0.0, 0.0)


async def test_stall_window_is_a_minute_despite_late_samples() -> None:
    lag, _ = await lag_with(9.0, *[1.0] * 100)
    assert lag.worst_of(60.0) == pytest.approx(1.0)
    assert lag.worst_of(2.0) == pytest.approx(1.0)
    assert 45.0 < lag.blocked <= 60.0
    assert (await lag_with(100.0))[0].blocked == 60.0


async def test_sampler_runs_until_canceled() -> None:
    registry = Metrics()
    sampled = asyncio.Event()

    async def sleep(seconds: float) -> None:
        assert seconds == INTERVAL
        await asyncio.sleep(0)
        sampled.set()

    task = asyncio.create_task(LoopLag(registry, sleep=sleep).run())
    await asyncio.wait_for(sampled.wait(), WAIT)
    task.cancel()
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)


async def test_process_values_match_the_operating_system() -> None:
    figures = process.process_figures()
    assert figures["tasks"] == 1
    assert (figures["open_descriptors"] or 0) > 2
    assert figures["resident_bytes"] is not None
    assert 2**20 < figures["resident_bytes"] < 2**36


async def test_process_metrics_have_the_usual_names() -> None:
    text = render(Metrics())
    names = {family.name: family.type for family in text_string_to_metric_families(text.decode())}
    assert names["process_cpu_seconds"] == "counter"
    assert {"process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"} <= set(names)
    assert names["python_gc_collections"] == "counter"
    assert text.count(b"python_gc_collections_total{") == len(gc.get_stats())


def test_task_count_is_none_outside_a_loop() -> None:
    assert process.tasks() == 0
