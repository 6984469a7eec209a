"""Tests of the tool, in memory: no port, no process, no bank."""

import pytest
from prices import dollars_per_euro, mcp

from millstream.client import ToolFailed
from millstream.testing import connect


@pytest.fixture(autouse=True)
def fixed_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a rate of 1.10."""
    monkeypatch.setitem(mcp.dependency_overrides, dollars_per_euro, lambda: 1.1)


async def test_price_is_in_dollars() -> None:
    async with connect(mcp) as client:
        assert (await client.call("price", title="Momo")).data == 13.2


async def test_unknown_books_are_refused_in_words() -> None:
    async with connect(mcp) as client:
        with pytest.raises(ToolFailed, match="We don't sell 'Emma'"):
            await client.call("price", title="Emma")
