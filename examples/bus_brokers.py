"""The same on the other brokers: `python -c "import examples.bus_brokers"` declares all three."""

import os
from typing import Any

from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka.annotations import KafkaMessage
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue
from faststream.rabbit.annotations import RabbitMessage
from faststream.redis import RedisBroker, StreamSub
from faststream.redis.annotations import RedisStreamMessage

from millstream import Server, ToolError

mcp = Server("shop", serve="hub")

# region: kafka
kafka = KafkaBroker(os.environ.get("KAFKA_SERVERS", "localhost:9092"))


@kafka.subscriber("orders", group_id="shop", auto_offset_reset="earliest", ack_policy=AckPolicy.NACK_ON_ERROR)
async def receive_from_kafka(message: KafkaMessage) -> None:
    """Publish a message of the topic on the channel of its key."""
    raw: Any = message.raw_message
    try:
        id = f"{raw.topic}/{raw.partition}/{raw.offset}"
        await mcp.hub.publish(f"orders.{raw.key.decode()}", message.body.decode(), id=id)
    except (ToolError, ValueError):
        await message.reject()


async def send_to_kafka() -> None:
    """Send events to a topic, with the channel as the key."""
    async for event in mcp.hub.listen("requests.*", name="kafka"):
        await kafka.publish(event.data, topic="requests", key=event.channel.encode(), headers={"id": event.id})


# endregion

# region: rabbit
rabbit = RabbitBroker(os.environ.get("RABBIT_URL", "amqp://guest:guest@localhost/"))
topic = RabbitExchange("amq.topic", type=ExchangeType.TOPIC, declare=False)
orders = RabbitQueue(
    "shop-orders",
    durable=True,
    routing_key="orders.*",
    arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "refused"},
)


@rabbit.subscriber(orders, topic, ack_policy=AckPolicy.NACK_ON_ERROR)
async def receive_from_rabbit(message: RabbitMessage) -> None:
    """Publish a message on the channel of its routing key. Rejected ones go to the queue `refused`."""
    try:
        raw: Any = message.raw_message
        await mcp.hub.publish(raw.routing_key, message.body.decode(), id=message.message_id)
    except (ToolError, ValueError):
        await message.reject()


async def send_to_rabbit() -> None:
    """Send events to the exchange."""
    async for event in mcp.hub.listen("requests.*", name="rabbit"):
        await rabbit.publish(event.data, event.channel, topic, message_id=event.id, persist=True)


# endregion

# region: redis
redis = RedisBroker(os.environ.get("REDIS_URL", "redis://localhost:6379"))


@redis.subscriber(
    stream=StreamSub("orders", group="shop", consumer=f"shop-{os.getpid()}"), ack_policy=AckPolicy.NACK_ON_ERROR
)
async def receive_from_redis(message: RedisStreamMessage) -> None:
    """Publish an entry of the stream. Redis would deliver a rejected entry again, so it's acknowledged."""
    try:
        raw: Any = message.raw_message
        id = raw["message_ids"][0].decode()
        await mcp.hub.publish("orders.all", message.body.decode(), id=id)
    except (ToolError, ValueError):
        await message.ack()


async def send_to_redis() -> None:
    """Send events to a stream."""
    async for event in mcp.hub.listen("requests.*", name="redis"):
        await redis.publish(event.data, stream="requests", headers={"id": event.id})


# endregion
