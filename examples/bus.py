"""A server between browsers and agents on one side and a message bus on the other."""

# region: server
import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from faststream import AckPolicy
from faststream.nats import NatsBroker, PullSub
from faststream.nats.annotations import NatsMessage

from millstream import Server, ToolError

logger = logging.getLogger(__name__)
broker = NatsBroker(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))


@asynccontextmanager
async def lifespan(server: Server) -> AsyncGenerator[None, None]:
    """Run the broker while the server runs."""
    sending = asyncio.create_task(send())
    try:
        await broker.start()
        yield
    finally:
        sending.cancel()
        await broker.stop()


mcp = Server("shop", serve="hub", lifespan=lifespan)
# endregion


# region: from
@broker.subscriber(
    "orders.*",
    stream="ORDERS",
    durable="shop",
    pull_sub=PullSub(batch_size=32),
    ack_policy=AckPolicy.NACK_ON_ERROR,
    no_reply=True,
)
async def receive(message: NatsMessage) -> None:
    """Publish a message on the hub. It's acknowledged once the hub has stored it."""
    raw: Any = message.raw_message
    try:
        id = f"{raw.metadata.stream}/{raw.metadata.sequence.stream}"
        await mcp.hub.publish(raw.subject, message.body.decode(), id=id)
    except (ToolError, ValueError):  # not text, or too large: it would fail again
        await message.reject()


# endregion


# region: to
async def send() -> None:
    """Send events to the bus, and try again until it accepts them."""
    while True:
        try:
            async for event in mcp.hub.listen("requests.*", name="bus"):
                headers = {"Nats-Msg-Id": event.id}
                await broker.publish(event.data, event.channel, stream="REQUESTS", headers=headers)
        except Exception:
            logger.exception("The bus didn't accept an event. Retrying in a second.")
            await asyncio.sleep(1)


@mcp.tool
async def cancel(order: str) -> str:
    """Ask the order service to cancel an order."""
    await mcp.hub.publish(f"requests.{order}", {"do": "cancel"})
    return "Requested."


# endregion
