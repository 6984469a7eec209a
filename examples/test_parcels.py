"""Tests of the parcels server, whose functions may run again."""

# region: replay
from typing import Literal

import parcels
import pytest

from millstream.testing import connect


@pytest.mark.parametrize("replay", [None, "always"])
async def test_items_are_paid_once(replay: Literal["always"] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "PAID", [])
    address = {"street": "Hobbit Lane 1", "city": "Oxford"}
    async with connect(parcels.mcp, replay=replay, elicit=lambda question: address) as client:
        await client.call("buy", item="Pen")
    assert parcels.PAID == ["Pen"]


# endregion
