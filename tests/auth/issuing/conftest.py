"""The authorization server of each test: in memory, or with `every_store` on each kind of store."""

from collections.abc import AsyncIterator

import pytest

from issuing_world import Desk
from millstream._stores.store import Store
from store_parts import BACKINGS, Backing, backings


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    """Yield an authorization server in memory."""
    backing = BACKINGS["memory"]()
    yield Desk(await backing.worker())
    await backing.close()


@pytest.fixture(params=backings(["memory", "sqlite", "local", "redis"]))
async def every_store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Yield each kind of store."""
    backing = BACKINGS[request.param]()
    yield await backing.worker()
    await backing.close()


@pytest.fixture(params=backings(["local", "redis"]))
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Backing]:
    """Yield each kind of store that workers can share."""
    backing = BACKINGS[request.param]()
    yield backing
    await backing.close()
