"""Fixtures for the behavior tests: clients, and the shared stdio servers."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from behavior.client_setup import Processes, open_client
from behavior.combinations import Combination
from behavior.harness import Client

Connect = Callable[..., Awaitable[Client]]


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """The stdio servers, which stop after the last test."""
    found = Processes(tmp_path_factory.mktemp("stdio"))
    yield found
    found.end()


@pytest.fixture
async def connect(processes: Processes) -> AsyncIterator[Connect]:
    """A function that opens clients, which close after the test."""
    async with AsyncExitStack() as stack:

        async def opened(combination: Combination, **options: Any) -> Client:
            return await stack.enter_async_context(open_client(combination, processes, **options))

        yield opened
