"""The health of a store is measured, briefly and not too often."""

import asyncio
import logging
from typing import Any

import pytest

from millstream._protocol.errors import LocalError
from millstream._stores.health import StoreHealth
from millstream._stores.memory.store import MemoryStore


class Values:
    """Values that can fail, or keep everybody waiting."""

    def __init__(self) -> None:
        self.asked = 0
        self.failure: BaseException | None = None
        self.silent = False

    async def get(self, key: str) -> bytes | None:
        """As a store's."""
        self.asked += 1
        if self.silent:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return None


def health_of(values: Values, **options: Any) -> StoreHealth:
    """The health of a store with these values."""
    store: Any = MemoryStore()
    store.kv = values
    return StoreHealth("memory", store, **options)


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("failure", [LocalError("gone"), ConnectionRefusedError("refused"), TimeoutError()])
async def test_a_store_that_fails_is_down_until_it_answers_again(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The metric `hub_backend_up{kind}`. The log says it once, not at each look."""
    values, clock = Values(), Clock()
    health = health_of(values, clock=clock)
    assert health.up
    for failing, up in ((None, True), (failure, False), (failure, False), (None, True)):
        values.failure = failing
        clock.now += 1
        assert await health.look() == health.up == up
    assert [record.levelno for record in caplog.records if record.name == "millstream"] == [logging.ERROR]


async def test_a_store_that_keeps_silent_is_down() -> None:
    """A probe waits for about a second; whoever asks of it must be answered before."""
    values = Values()
    values.silent = True
    assert await health_of(values, bound=0.0).look() is False


async def test_many_who_ask_ask_the_store_once_a_second() -> None:
    """`/health` answers anybody: a flood of requests must not become one of look-ups."""
    values, clock = Values(), Clock()
    health = health_of(values, clock=clock)
    assert await asyncio.gather(*(health.look() for _ in range(100))) == [True] * 100
    assert values.asked == 1
    clock.now += 1
    await health.look()
    assert values.asked == 2
