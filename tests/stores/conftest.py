"""Fixtures that run a test on all stores."""

from collections.abc import AsyncIterator, Iterator

import pytest

from millstream._stores.store import Store
from redis_parts import RedisServer, long_redis_timeouts  # noqa: F401  for every test
from store_parts import BACKINGS, Backing, backings

SHARED = [name for name, backing in BACKINGS.items() if backing.shared]  # type: ignore[attr-defined]


@pytest.fixture(params=backings(BACKINGS))
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """One worker on each store."""
    backing = BACKINGS[request.param]()
    yield await backing.worker()
    await backing.close()


@pytest.fixture(params=backings(SHARED))
async def backing(request: pytest.FixtureRequest) -> AsyncIterator[Backing]:
    """Each store that several workers can share."""
    backing = BACKINGS[request.param]()
    yield backing
    await backing.close()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis server that isn't shared."""
    server = RedisServer()
    yield server
    server.close()
