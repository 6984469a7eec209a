"""Each store that there is, for the tests that run against every one."""

from collections.abc import AsyncIterator

import pytest

from millstream.stores.base import Store
from store_parts import STORES


@pytest.fixture(params=list(STORES))
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    store = STORES[request.param]()
    await store.open()
    yield store
    await store.close()
