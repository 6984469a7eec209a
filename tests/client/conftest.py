"""Fixtures of all client tests: no task outlives its client, and no cached era its test."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from client.watch_parts import set_waits
from millstream.client import _connector as connector


@pytest.fixture(autouse=True)
async def no_leaked_tasks() -> AsyncIterator[None]:
    """Check that closed clients leave no tasks behind."""
    connector.forget_eras()
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert {task.get_name(): task.get_coro() for task in left if "millstream" in repr(task)} == {}


@pytest.fixture
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the delays between reconnection attempts."""
    set_waits(monkeypatch, 0.02)
