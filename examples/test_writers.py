"""Tests of what a caller of the archive may do, signed in as Ada or Bob, without a key."""

# region: test
import pytest
from archive import mcp

from millstream.client import ServerError
from millstream.testing import connect


async def test_notes_have_their_author() -> None:
    async with connect(mcp, principal="ada", scopes=["notes:write"]) as client:
        await client.call("write", name="list", text="Milk")
        assert (await client.call("read", name="list")).text == "Milk (ada)"


async def test_readers_cannot_write() -> None:
    async with connect(mcp, principal="bob") as client:
        assert [tool.name for tool in await client.tools()] == ["read"]
        with pytest.raises(ServerError, match="notes:write"):
            await client.call("write", name="list", text="Tea")


# endregion
