"""A running shop, through the lane on a socket and through plain ASGI."""

from collections.abc import AsyncIterator

import pytest

from bad_input.shop import make_shop
from wire import Wire, wired


@pytest.fixture(params=["lane", "asgi"])
async def wire(request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
    """Both ways give the same answers."""
    async with wired(make_shop(), request.param) as wire:
        yield wire
