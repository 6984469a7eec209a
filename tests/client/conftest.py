"""What every test of the client shares: no task outlives its client, and no verdict its test."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from client.watch_parts import set_waits
from millstream.client import _connector as connector


@pytest.fixture(autouse=True)
async def nothing_is_left_behind() -> AsyncIterator[None]:
    """A client that is closed has no tasks."""
    connector.forget_eras()
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert {task.get_name(): task.get_coro() for task in left if "millstream" in repr(task)} == {}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt to connect again is never far."""
    set_waits(monkeypatch, 0.02)
