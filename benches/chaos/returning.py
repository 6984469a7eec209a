"""Thousands of subscribers lose their connections, miss the same events, and reconnect within seconds.

The cost for the store is read from Redis: the number of requests from all workers together.
"""

import asyncio
import random
import time

from benches.chaos.clients import Listener, Publisher
from benches.chaos.history import Publication, check
from benches.chaos.own_redis import reads
from benches.chaos.run import PATIENCE, Cluster, Report

SECONDS = 5.0
"""Seconds within which they reconnect."""
MISSED = 3_000
"""Events published in the meantime, more than a worker caches."""
READS = 100
"""Maximum reads for any number of subscribers, because each worker reads for all of its own. Heartbeats, one per second
and worker, are extra.
"""
_AT_ONCE = 200
"""Maximum connections opened at a time, so opening them isn't the bottleneck."""


async def return_together(running: Cluster, report: Report, *, subscribers: int, channels: int, redis: str) -> int:
    """Run one reconnect storm, and return the number of store reads, including heartbeats."""
    names = [f"chaos.{number}" for number in range(channels)]
    listeners = [Listener(running.port, names[number % channels]) for number in range(subscribers)]
    log: list[Publication] = []
    publisher = Publisher(running.port, "p", log)
    tasks = await _connect(listeners, 0.0)
    for number in range(channels):
        await publisher.publish(names[number])
    await _end(tasks)
    for number in range(MISSED):
        await publisher.publish(names[number % channels])
    before, began = await reads(redis), time.monotonic()
    tasks = await _connect(listeners, SECONDS)
    newest = {each.channel: each.data for each in log}
    async with asyncio.timeout(PATIENCE):
        for each in listeners:
            while not any(getattr(item, "data", "") == newest[each.log.channel] for item in each.log.got[-1:]):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    report.seconds = time.monotonic() - began
    asked = await reads(redis) - before
    await _end(tasks)
    publisher.close()
    report.published, report.acknowledged = len(log), sum(bool(each.place) for each in log)
    for each in listeners:
        report.received += sum(hasattr(item, "place") for item in each.log.got)
        report.gaps += sum(not hasattr(item, "place") for item in each.log.got)
    report.wrong += check(log, [each.log for each in listeners])
    if asked - running.count * report.seconds > READS:
        report.wrong.append(f"More than {READS} reads without heartbeats")
    return asked


async def _connect(listeners: list[Listener], seconds: float) -> list[asyncio.Task[None]]:
    """Connect all within a time, or without one, as fast as they're accepted. Return the tasks that keep them
    connected."""
    tasks: list[asyncio.Task[None]] = []
    if seconds:

        async def come(each: Listener) -> None:
            await asyncio.sleep(random.uniform(0.0, seconds))
            await each.run()

        return [asyncio.create_task(come(each)) for each in listeners]
    async with asyncio.timeout(PATIENCE):
        for start in range(0, len(listeners), _AT_ONCE):
            some = listeners[start : start + _AT_ONCE]
            tasks += [asyncio.create_task(each.run()) for each in some]
            while not all(each.last_id for each in some):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    return tasks


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
