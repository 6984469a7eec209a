"""The same bridge on the other brokers."""

from faststream.kafka import KafkaBroker
from faststream.rabbit import RabbitBroker, RabbitQueue
from faststream.redis import RedisBroker

from millstream import Server

mcp = Server("shop", serve="hub")

# region: kafka
kafka = KafkaBroker("localhost:9092")
mcp.hub.from_bus(kafka, "orders", to="orders.{key}")
# endregion

# region: rabbit
rabbit = RabbitBroker("amqp://guest:guest@localhost/")
mcp.hub.from_bus(rabbit, "orders.*", to="orders.{key}", exchange="shop")
# endregion

# region: letters
orders = RabbitQueue(
    "shop-orders",
    durable=True,
    routing_key="orders.*",
    arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "refused"},
)
mcp.hub.from_bus(rabbit, "orders.*", to="orders.{key}", queue=orders, exchange="shop")
# endregion

# region: redis
redis = RedisBroker("redis://localhost:6379")
mcp.hub.from_bus(redis, "orders", to="orders")
# endregion
