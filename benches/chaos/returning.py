"""Thousands of subscribers lose their connections, miss the same events, and come back within seconds.

What that costs the store is read from Redis itself: how often it was asked, by all workers together.
"""

import asyncio
import random
import time

from benches.chaos.clients import Listener, Publisher
from benches.chaos.history import Publication, check
from benches.chaos.own_redis import reads
from benches.chaos.run import PATIENCE, Cluster, Report

SECONDS = 5.0
"""The time within which they come back."""
MISSED = 3_000
"""Events that come meanwhile: more than a worker remembers."""
READS = 100
"""Reads that any number of subscribers may cost: each worker reads for all of its own. Heartbeats, one a second of each
worker, come on top.
"""
_AT_ONCE = 200
"""Connections that are being made at a time, so that the first ones aren't the server's trouble."""


async def return_together(running: Cluster, report: Report, *, subscribers: int, channels: int, redis: str) -> int:
    """One storm; gives how many reads the store had, heartbeats included."""
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
    """Let all come within a time; without one, as fast as they are taken. Gives what keeps them connected."""
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
