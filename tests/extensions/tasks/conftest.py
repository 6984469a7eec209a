"""The stores for tests of tasks."""

from collections.abc import AsyncIterator

import pytest

from redis_parts import long_redis_timeouts  # noqa: F401  for every test
from store_parts import BACKINGS, Backing, backings

SHARED = [name for name, backing in BACKINGS.items() if backing.shared]  # type: ignore[attr-defined]


@pytest.fixture(params=backings(SHARED))
async def backing(request: pytest.FixtureRequest) -> AsyncIterator[Backing]:
    """Return a store that workers can share."""
    backing = BACKINGS[request.param]()
    yield backing
    await backing.close()
