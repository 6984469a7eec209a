"""One walk through all client features with `shop.py`, for every transport and revision."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client import shop
from millstream import Client
from millstream._protocol.notifications import CreateMessageRequestParams
from millstream._protocol.revisions import BY_DATE
from millstream.client._errors import ServerError
from millstream.client._questions import Question
from millstream.client._server_messages import Change
from millstream.client._targets import Target
from patience import WAIT

FILE = Path(__file__).with_name("shop.py")
SUBSCRIBED = "shop://news"


@dataclass
class Order:
    isbn: str
    copies: int


def fill_in(question: Question) -> dict[str, Any]:
    """Act as a user who types a street and keeps the other defaults."""
    return {**question.defaults, "street": "1 Mill Lane"}


async def review(params: CreateMessageRequestParams) -> str:
    """Act as a slow model."""
    await asyncio.sleep(0)
    return f"{params.max_tokens} words"


async def walk(target: Target, revision: str | None, transport: str) -> None:
    """Use every feature once.

    Raises:
        AssertionError: a result is wrong.
    """
    async with (
        asyncio.timeout(WAIT),
        Client(target, revision=revision, elicit=fill_in, sample=review, roots=["file:///work"]) as client,
    ):
        assert client.transport == transport
        assert client.server.name == "shop"
        assert client.instructions == "Sell books."
        assert revision in (None, client.revision)
        await tools(client)
        await questions(client)
        await resources(client)
        await changes(client)
        await client.ping()


async def tools(client: Client) -> None:
    assert {"order", "count", "slowly"} <= {tool.name for tool in await client.tools()}
    assert await client.call("order", isbn="978-0", copies=2, result_type=Order) == Order("978-0", 2)
    assert await client.call("count", {"a": 2}, b=3, result_type=int) == 5
    assert (await client.call("fail", raise_on_error=False)).is_error
    if BY_DATE[client.revision].argument_errors_in_result:
        assert (await client.call("count", a="x", b=3, raise_on_error=False)).is_error
    else:
        with pytest.raises(ServerError, match="must be an integer"):
            await client.call("count", a="x", b=3)
    steps: list[tuple[float, float | None]] = []
    result = await client.call("slowly", steps=3, progress=lambda value, total, text: steps.append((value, total)))
    assert (result.text, steps) == ("done", [(1, 3), (2, 3), (3, 3)])
    many = await asyncio.gather(*(client.call("count", a=number, b=1, result_type=int) for number in range(20)))
    assert many == list(range(1, 21))


async def questions(client: Client) -> None:
    spoken = BY_DATE[client.revision]
    delivered = await client.call("deliver", raise_on_error=False)
    if "elicitation/create" in spoken.asks:
        # Older revisions have no number defaults, so the tool applies its own.
        assert delivered.text == "1 Mill Lane, 3"
    else:
        assert delivered.is_error
    assert (await client.call("review")).text == "10 words"
    assert await client.call("folders", result_type=list[str]) == ["file:///work"]


async def resources(client: Client) -> None:
    assert (await client.read("book://978-0"))[0].text == "Book 978-0"
    assert [item.uri for item in await client.resources()] == [SUBSCRIBED]
    assert [item.uri_template async for item in client.templates()] == ["book://{isbn}"]
    assert [prompt.name for prompt in await client.prompts()] == ["pitch"]
    assert "Praise Emma, cool." in str((await client.prompt("pitch", title="Emma", tone="cool")).messages[0])


async def changes(client: Client) -> None:
    async with client.watch(SUBSCRIBED, tools=True) as news:
        assert (await client.call("publish")).text == "published"
        assert await anext(news) == Change("resource", SUBSCRIBED)
        await client.call("rearrange")
        assert await anext(news) == Change("tools")


__all__ = ["FILE", "shop", "walk"]
