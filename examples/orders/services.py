"""Where the services are, and how they reach each other. Every address and the key come from the environment."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed

from millstream import Client

HUB = os.environ.get("HUB_URL", "http://127.0.0.1:8000")
USERS = os.environ.get("USERS_URL", "http://127.0.0.1:8001")
HEADERS = {"Authorization": f"Bearer {os.environ.get('MCP_SERVER_AUTH_KEY', '')}"}

Order = dict[str, str | int]
Consumer = Callable[[Order], Awaitable[None]]


def connect(url: str) -> Client:
    """Return a client of another service."""
    return Client(f"{url}/mcp", headers=HEADERS)


def consuming(consumer: Callable[[], Consumer]) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Return a lifespan that passes each order on the hub to a consumer, while the service runs."""

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        task = asyncio.create_task(consume(consumer()))
        try:
            yield
        finally:
            task.cancel()

    return lifespan


async def consume(consumer: Consumer) -> None:
    """Pass orders on, each once: after an interruption, the hub goes on behind the last one."""
    last = ""
    # `async for` connects again when a connection ends or the hub isn't there yet.
    async for socket in open_socket(f"ws{HUB.removeprefix('http')}/ws", additional_headers=HEADERS):
        try:
            place = {"last_event_id": last} if last else {"history": 100}
            await socket.send(json.dumps({"type": "subscribe", "channel": "orders.created", **place}))
            async for text in socket:
                message = json.loads(text)
                if message["type"] == "event":
                    await consumer(json.loads(message["data"]))
                if message["type"] in ("event", "position"):
                    last = message["id"]
        except ConnectionClosed:
            continue
