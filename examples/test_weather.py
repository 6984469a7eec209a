"""Tests of the weather server, with a mock in the place of the service."""

# region: mock
from collections.abc import Iterator
from unittest.mock import Mock

import pytest
from weather import Forecasts, mcp

from millstream.client import ToolFailed
from millstream.testing import connect


@pytest.fixture
def forecasts() -> Iterator[Mock]:
    mock = Mock(spec=Forecasts)
    mcp.dependency_overrides[Forecasts] = lambda: mock
    yield mock
    mcp.dependency_overrides.clear()


async def test_cold_days_need_a_coat(forecasts: Mock) -> None:
    forecasts.temperature.return_value = -3.0
    async with connect(mcp) as client:
        assert (await client.call("what_to_wear", city="Oslo")).text == "a coat"
    forecasts.temperature.assert_called_once_with("Oslo")


async def test_models_are_asked_to_retry(forecasts: Mock) -> None:
    forecasts.temperature.side_effect = TimeoutError
    async with connect(mcp) as client:
        with pytest.raises(ToolFailed, match="Try again in a minute"):
            await client.call("what_to_wear", city="Oslo")


# endregion
