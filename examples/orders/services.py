"""Where the services are, and how they reach each other. Every address and the key come from the environment."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from millstream import Client, hub
from millstream.client import ClientError

HUB = os.environ.get("HUB_URL", "http://127.0.0.1:8000")
USERS = os.environ.get("USERS_URL", "http://127.0.0.1:8001")
KEY = os.environ.get("MCP_SERVER_AUTH_KEY", "")
HEADERS = {"Authorization": f"Bearer {KEY}"}
STATE = Path(os.environ.get("STATE_FOLDER", "state"))
"""Folder in which a service keeps its position."""

logger = logging.getLogger("orders")


class Order(msgspec.Struct):
    """An order, as the order service publishes it."""

    order: str
    user: str
    name: str
    item: str
    copies: int


Consumer = Callable[[Order], Awaitable[None]]
Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]


def connect(url: str) -> Client:
    """Return a client of another service."""
    return Client(f"{url}/mcp", headers=HEADERS)


def consuming(consumer: Callable[[], Consumer], *, name: str = "") -> Lifespan:
    """Return a lifespan that passes each order on the hub to a consumer, while the service runs.

    Args:
        consumer: Returns the consumer.
        name: Name of the file that keeps the position, for a consumer that must not see an order again after a
            restart. Without one, it starts with the newest 1,000 orders.
    """

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        # In a task group, an error of the consumer isn't lost: the service logs it, and `/health` says 503.
        async with asyncio.TaskGroup() as group:
            task = group.create_task(consume(consumer(), name))
            yield
            task.cancel()

    return lifespan


def read_position(name: str) -> str:
    """Return the id of the last order that a consumer has handled; an empty string before the first one."""
    file = STATE / f"{name}.position"
    return file.read_text() if name and file.exists() else ""


def save_position(name: str, position: str) -> None:
    """Keep the id for the next start."""
    if name:
        STATE.mkdir(exist_ok=True)
        (STATE / f"{name}.position").write_text(position)


async def consume(consumer: Consumer, name: str) -> None:
    """Pass orders on. After an interruption or a restart, the hub goes on behind the last one."""
    last = read_position(name)
    async with (
        hub.connect(HUB, token=KEY) as feed,
        feed.subscribe("orders.created", history=1000, last_event_id=last) as orders,
    ):
        async for event in orders:
            if isinstance(event, hub.EventGap):
                logger.warning("Orders are missing: %s", event.reason)
            else:
                await pass_on(event.data, consumer)
            save_position(name, orders.position)


async def pass_on(data: str, consumer: Consumer) -> None:
    """Decode an event for the consumer. What isn't an order is logged and skipped, or it would stop all others."""
    try:
        order = msgspec.json.decode(data, type=Order)
    except msgspec.DecodeError as exc:
        logger.warning("Skipped an event on orders.created that isn't an order: %s", exc)
        return
    while True:
        try:
            await consumer(order)
        except ClientError:
            logger.exception("The order is retried in a second")
            await asyncio.sleep(1)
        else:
            return
