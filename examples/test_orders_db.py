"""Tests of the orders, with another database in the place of the real one."""

# region: override
import sqlite3

import pytest
from orders_db import database, mcp

from millstream.testing import connect


@pytest.mark.asyncio
async def test_you_see_what_you_ordered() -> None:
    db = sqlite3.connect(":memory:", check_same_thread=False)
    db.execute("create table orders (isbn text, customer text)")
    mcp.dependency_overrides[database] = lambda: db
    try:
        async with connect(mcp) as client:
            await client.call("order", isbn="9780261103573")
            assert (await client.call("my_orders")).data == ["9780261103573"]
    finally:
        mcp.dependency_overrides.clear()


# endregion
