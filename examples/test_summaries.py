"""A test with a function in the place of the client's model."""

# region: test
from typing import Any

import pytest
from summaries import mcp

from millstream.testing import connect


def model(request: dict[str, Any]) -> str:
    """Answer as a model might."""
    assert request["maxTokens"] == 100
    return "Readers like the book, but not the mail."


@pytest.mark.asyncio
@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_reviews_are_summarized(revision: str) -> None:
    async with connect(mcp, revision=revision, sample=model) as client:
        result = await client.call("summarize_reviews")
    assert result.text == "Readers like the book, but not the mail."


# endregion
