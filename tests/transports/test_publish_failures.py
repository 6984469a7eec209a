import asyncio
import json
from typing import Any

import pytest

from app_peer import ask
from millstream import Server
from millstream.extensions import LocalError
from millstream.stores import StoreFull, StoreUnavailable


@pytest.mark.parametrize(
    ("failure", "said"),
    [(StoreUnavailable("10.1.2.3 is away"), "didn't respond in time"), (StoreFull("10.1.2.3 is full"), "is full")],
)
async def test_publish_error_suggests_a_retry_if_the_store_rejected_the_event(
    failure: LocalError, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server("shop", serve="hub")
    async with server.running() as runtime:

        async def refuse(*_: Any, **__: Any) -> Any:
            await asyncio.sleep(0)
            raise failure

        monkeypatch.setattr(type(runtime.store.log), "append", refuse)
        body = json.dumps({"channel": "news", "data": 1}).encode()
        reply = await ask(server, "POST", "/publish", body, content_type="application/json")
        told = json.loads(reply.body)
        assert reply.status == 503
        assert said in told["detail"]
        assert "10.1.2.3" not in told["detail"]
        assert reply.headers[b"retry-after"] == b"5"
        monkeypatch.undo()
