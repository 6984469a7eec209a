"""Each store that there is, for the tests that run against every one."""

from collections.abc import AsyncIterator, Iterator

import pytest

from millstream._stores.base import Store
from patience import WAIT
from redis_parts import RedisServer
from store_parts import BACKINGS, Backing, backings

SHARED = [name for name, backing in BACKINGS.items() if backing.shared]  # type: ignore[attr-defined]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stands still with the machine is no silent one."""
    monkeypatch.setattr("millstream._stores.redis.commands.SILENCE", WAIT)


@pytest.fixture(params=backings(BACKINGS))
async def store(request: pytest.FixtureRequest, unhurried: None) -> AsyncIterator[Store]:
    """The only worker of each store."""
    backing = BACKINGS[request.param]()
    yield await backing.worker()
    await backing.close()


@pytest.fixture(params=backings(SHARED))
async def backing(request: pytest.FixtureRequest, unhurried: None) -> AsyncIterator[Backing]:
    """Each store that several workers can share."""
    backing = BACKINGS[request.param]()
    yield backing
    await backing.close()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    server = RedisServer()
    yield server
    server.close()
