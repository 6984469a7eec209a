"""A running shop, on a socket of our own HTTP server and through plain ASGI."""

from collections.abc import AsyncIterator

import pytest

from bad_input.shop import make_shop
from millstream import Server
from wire import Wire, run_wire


@pytest.fixture(scope="session")
def shop() -> Server:
    """What is registered stays as it is, so its schemas are made once. Each test runs it anew, on a new store."""
    return make_shop()


@pytest.fixture(params=["lane", "asgi"])
async def wire(request: pytest.FixtureRequest, shop: Server) -> AsyncIterator[Wire]:
    """Both ways give the same answers."""
    async with run_wire(shop, request.param) as wire:
        yield wire
