"""Fixtures of all client tests: no task outlives its client."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from client.watch_parts import set_waits


@pytest.fixture(autouse=True)
async def no_leaked_tasks() -> AsyncIterator[None]:
    """Check that closed clients leave no tasks behind."""
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert {task.get_name(): task.get_coro() for task in left if "millstream" in repr(task)} == {}


@pytest.fixture
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the delays between reconnection attempts."""
    set_waits(monkeypatch, 0.02)
