import asyncio
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from cases import for_each
from millstream import Server, Settings
from millstream.testing import connect
from socket_world import WAIT, ask, recv_json, send_json, world
from wire import LATEST_HANDSHAKE, per_request, request

MAX_RECORD = 128 * 1024
"""Maximum size of a session's record, in bytes."""

LARGE = 900_000
"""Bytes of a message, of which a socket that waits for the next one must hold next to nothing."""


class Quiet:
    """A peer that sends some messages and then nothing; what is held when the server waits for the next."""

    def __init__(self, *messages: str) -> None:
        self.messages = list(messages)
        self.waits = asyncio.Event()
        self.held = 0

    async def receive(self) -> dict[str, Any]:
        """The next message."""
        if self.messages:
            text = self.messages.pop(0)
            return {"type": "websocket.receive", "text": text + " " * LARGE} if text else {"type": "websocket.connect"}
        self.held = tracemalloc.get_traced_memory()[0]
        self.waits.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Any) -> None:
        """What is answered is of no interest."""


@pytest.fixture
def traced() -> Iterator[None]:
    """Count what is allocated."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
@for_each(
    "message",
    [
        '{"type":"ping"}',
        '{"type":"subscribe","channel":"a"}',
        '{"type":"mcp_call","tool":"waits","id":1}',
        '{"type":"nonsense"}',
        json.dumps(request("ping", {}, 1)),
    ],
    ids=["ping", "subscribe", "a call that runs", "refused", "json-rpc"],
)
async def test_handled_messages_are_not_kept_until_the_next(message: str) -> None:
    async with world() as app:
        scope = {"type": "websocket", "path": "/ws", "headers": [(b"host", b"127.0.0.1")], "subprotocols": []}
        before = tracemalloc.get_traced_memory()[0]
        peer = Quiet("", message)
        task = asyncio.create_task(app(scope, peer.receive, peer.send))
        await asyncio.wait_for(peer.waits.wait(), WAIT)
        assert peer.held - before < LARGE // 4
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_subscribed_resources_are_bounded_in_bytes() -> None:
    server = Server("notes", version="1", settings=Settings(secret_key="the one key of the tests of sockets' memory"))

    @server.resource("note://{text}")
    async def note(text: str) -> str:
        return text

    async with connect(server, revision=LATEST_HANDSHAKE) as client:
        length = 2000
        fits = MAX_RECORD // (length + 20)
        for number in range(fits + 1):
            await client.request("resources/subscribe", {"uri": f"note://{number:03}{'x' * length}"})
        with pytest.raises(Exception, match="Unsubscribe"):
            await client.request("resources/subscribe", {"uri": f"note://more{'x' * length}"})
        await client.request("resources/unsubscribe", {"uri": f"note://{0:03}{'x' * length}"})
        await client.request("resources/subscribe", {"uri": "note://short"})


async def test_open_subscriptions_do_not_count_as_dialect_calls() -> None:
    async with world(max_calls=1) as app, app.client("mcp") as listener, app.client() as socket:  # type: ignore[arg-type]
        params = {"notifications": {"toolsListChanged": True}}
        await ask(listener, per_request("subscriptions/listen", params, 1))
        await recv_json(socket)
        add = {"type": "mcp_call", "tool": "add", "arguments": {"a": 1, "b": 2}}
        assert (await ask(socket, add))["type"] == "mcp_result"
        await send_json(socket, {"type": "mcp_call", "tool": "forever"})
        await app.until(lambda: app.runtime.dispatcher.load.running == 1)
        assert "Too many calls" in (await ask(socket, add))["error"]["message"]
