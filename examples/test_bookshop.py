"""How you test a server: in memory, at any revision, without a network.

Run it with ``pytest examples/test_bookshop.py``; `pytest.ini` beside it is its configuration.
"""

# region: test
import pytest
from bookshop import mcp

from millstream.testing import connect


@pytest.mark.parametrize("revision", ["2025-06-18", "2026-07-28"])
async def test_an_order_asks_for_the_address(revision: str) -> None:
    """The person is asked once, and the order goes through."""
    answers = {"street": "Hobbit Lane 1", "city": "Oxford"}
    async with connect(mcp, revision=revision, elicit=lambda question: answers) as client:
        result = await client.call("order", isbn="9780261103573", copies=2)
    assert result.data == {"ordered": 2}
    assert len(client.questions) == 1


# endregion
