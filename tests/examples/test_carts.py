"""The carts of the guide: each user has one, concurrent additions are kept, and a full cart is reported."""

import asyncio
from pathlib import Path

import pytest

from examples import carts
from millstream import Principal, Server
from millstream.client import ToolFailed
from millstream.stores import OwnerQuotaExceeded
from millstream.testing import connect


async def test_each_user_has_a_cart_that_keeps_concurrent_additions() -> None:
    async with connect(carts.mcp, principal="ada") as ada:
        await asyncio.gather(*(ada.call("add_to_cart", isbn=str(number)) for number in range(8)))
        found = (await ada.call("add_to_cart", isbn="last")).data
        assert sorted(found) == sorted([*map(str, range(8)), "last"])
    async with connect(carts.mcp, principal="bob") as bob:
        assert (await bob.call("add_to_cart", isbn="1")).data == ["1"]
    async with connect(carts.mcp) as anonymous:
        with pytest.raises(ToolFailed, match="Sign in to use a cart"):
            await anonymous.call("add_to_cart", isbn="1")


async def test_a_restart_keeps_carts_in_a_shared_store(tmp_path: Path) -> None:
    for number in (1, 2):
        kept = carts.Carts()
        server = Server("bookshop", extensions=[kept], store=f"sqlite:///{tmp_path / 'shop.db'}")
        async with connect(server):
            assert len(await kept.add("ada", "1")) == number


async def fill(user: str) -> None:
    while True:
        await carts.carts.add(Principal(user).id, "9" * 3_000_000)


async def test_full_cart_is_an_error_and_does_not_affect_others() -> None:
    async with connect(carts.mcp, principal="ada") as ada, connect(carts.mcp, principal="bob") as bob:
        with pytest.raises(OwnerQuotaExceeded):
            await fill("ada")
        with pytest.raises(ToolFailed, match="Your cart is full"):
            await ada.call("add_to_cart", isbn="9" * 3_900_000)
        assert (await bob.call("add_to_cart", isbn="1")).data == ["1"]
