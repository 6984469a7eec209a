import asyncio
import logging
from typing import Any

import pytest

from millstream import Client, Server
from millstream.client import ServerError
from millstream.extensions import LocalError
from millstream.stores import StoreFull, StoreUnavailable

FAILURES = [(StoreUnavailable("10.1.2.3 is away"), "Try again later"), (StoreFull("10.1.2.3 is full"), "is full")]


def shop() -> Server:
    """Return a server whose functions publish."""
    server = Server("shop", serve="hub")

    @server.tool
    async def sell() -> str:
        await server.hub.publish("news", 1)
        return "sold"

    @server.resource("shop://news")
    async def news() -> str:
        await server.hub.publish("news", 1)
        return "none"

    return server


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
@pytest.mark.parametrize(("failure", "says"), FAILURES)
async def test_tool_error_suggests_a_retry_if_the_store_rejected_an_event(
    revision: str, failure: LocalError, says: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = shop()
    async with server.running() as runtime, Client(server, revision=revision) as client:

        async def refuse(*_: Any, **__: Any) -> Any:
            await asyncio.sleep(0)
            raise failure

        monkeypatch.setattr(type(runtime.store.log), "append", refuse)
        with caplog.at_level(logging.ERROR):
            result = await client.call("sell", raise_on_error=False)
            with pytest.raises(ServerError) as refused:
                await client.read("shop://news")
        monkeypatch.undo()
        assert result.is_error
        assert says in result.text
        assert says in refused.value.message
        assert "10.1.2.3" not in result.text + refused.value.message
        assert caplog.text.count("10.1.2.3") == 2
        assert (await client.call("sell")).text == "sold"
