"""The message bus examples, served by two workers: no message is lost or repeated."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import httpx2
import pytest
from faststream import Context
from faststream.kafka import KafkaBroker, TestKafkaBroker
from faststream.nats import NatsBroker
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue
from faststream.redis import RedisBroker, StreamSub

from kafka_parts import KafkaServer
from millstream import Client
from nats_parts import NatsServer
from patience import WAIT
from processes import ROOT, free_port, run_command, run_server
from rabbit_parts import shared_rabbit
from redis_parts import RedisServer, until

pytestmark = [pytest.mark.server]
BUSES = ("nats", "rabbit", "redis", pytest.param("kafka", marks=pytest.mark.nightly))
COUNT = 60
PROGRAM = """
import asyncio
from contextlib import asynccontextmanager

from examples import bus_brokers
from millstream import Server


@asynccontextmanager
async def lifespan(server):
    sending = asyncio.create_task(bus_brokers.send_to_{kind}())
    await bus_brokers.{kind}.start()
    yield
    sending.cancel()
    await bus_brokers.{kind}.stop()


mcp = bus_brokers.mcp = Server("shop", serve="hub", lifespan=lifespan)


@mcp.tool
async def cancel(order: str) -> str:
    await mcp.hub.publish(f"requests.{{order}}", {{"do": "cancel"}})
    return "Requested."
"""
TOPIC = RabbitExchange("amq.topic", type=ExchangeType.TOPIC, declare=False)


class Bus:
    """A program outside of the server, on a real broker."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url
        self.outside: Any = (
            NatsBroker(url, logger=None) if kind == "nats"
            else RabbitBroker(url, logger=None) if kind == "rabbit"
            else KafkaBroker(url, logger=None) if kind == "kafka"
            else RedisBroker(url, logger=None)
        )  # fmt: skip
        self.received: list[Any] = []

    async def open(self) -> None:
        async def receive(body: Any, message: Any) -> None:
            self.received.append(message.message_id if self.kind == "rabbit" else message.headers["id"])

        receive.__annotations__ = {"body": Any, "message": Annotated[Any, Context("message")]}
        if self.kind == "nats":
            await self.outside.start()
            stream = self.outside.connection.jetstream()
            await stream.add_stream(name="ORDERS", subjects=["orders.*"])
            await stream.add_stream(name="REQUESTS", subjects=["requests.*"])
            await self.outside.stop()

            async def receive_raw(message: Any) -> None:
                self.received.append(message.raw_message.headers["Nats-Msg-Id"])

            receive_raw.__annotations__ = {"message": Annotated[Any, Context("message")]}
            self.outside.subscriber("requests.*", stream="REQUESTS")(receive_raw)
        elif self.kind == "rabbit":
            self.outside.subscriber(RabbitQueue("test-requests", routing_key="requests.*"), TOPIC)(receive)
        elif self.kind == "kafka":
            self.outside.subscriber("requests", group_id="test", auto_offset_reset="earliest")(receive)
        else:
            self.outside.subscriber(stream=StreamSub("requests", last_id="0"))(receive)
        await self.outside.start()
        if self.kind == "nats":
            # Starting the server blocks this loop. Without a subscription, NATS drops the consumer after five seconds.
            await self.outside.connection.flush()

    async def send(self, data: Any, number: int) -> None:
        """Send a message about order 7."""
        if self.kind == "nats":
            await self.outside.publish(data, "orders.7", stream="ORDERS")
        elif self.kind == "rabbit":
            await self.outside.publish(data, "orders.7", TOPIC, message_id=f"m{number}", mandatory=True)
        elif self.kind == "kafka":
            await self.outside.publish(data, "orders", key=b"7")
        else:
            await self.outside.publish(data, stream="orders")


@asynccontextmanager
async def bus_of(kind: str, folder: Path) -> AsyncIterator[Bus]:
    """A real broker."""
    close: Callable[[], None] = lambda: None  # noqa: E731
    if kind == "redis":
        redis = RedisServer()
        url, close = redis.url, redis.close
    elif kind == "nats":
        node = NatsServer(folder, "bus")
        await node.wait()
        url, close = f"nats://127.0.0.1:{node.port}", node.kill
    elif kind == "kafka":
        kafka = KafkaServer("orders", "requests")
        url, close = kafka.address, kafka.close
        await kafka.wait()
    else:
        await (rabbit := shared_rabbit()).wait()
        url = rabbit.url
    try:
        bus = Bus(kind, url)
        await bus.open()
        yield bus
        await bus.outside.stop()
    finally:
        close()


@asynccontextmanager
async def two_workers(bus: Bus, folder: Path) -> AsyncIterator[str]:
    """The example, with two workers. Yields its address."""
    target = ROOT / "examples" / "bus.py"
    if bus.kind != "nats":
        target = folder / "program.py"
        target.write_text(PROGRAM.format(kind=bus.kind))
    port = free_port()
    name = "KAFKA_SERVERS" if bus.kind == "kafka" else f"{bus.kind.upper()}_URL"
    variables = {name: bus.url, "PYTHONPATH": str(ROOT)}
    with run_server(run_command(str(target), port, "--workers", "2"), port, folder / "log", **variables):
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def events_of(url: str) -> AsyncIterator[list[str]]:
    """The data of all orders, as a page receives them."""
    found: list[str] = []
    opened = asyncio.Event()

    async def read() -> None:
        async with (
            httpx2.AsyncClient(timeout=None) as http,
            http.stream("GET", f"{url}/events", params={"channel": "orders.*", "history": "1"}) as reply,
        ):
            opened.set()
            async for line in reply.aiter_lines():
                if line.startswith("data: "):
                    found.append(line.removeprefix("data: "))  # noqa: PERF401  as they arrive

    task = asyncio.create_task(read())
    async with asyncio.timeout(WAIT):
        await opened.wait()
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("kind", BUSES)
async def test_two_workers_connect_hub_and_bus_without_loss_or_repetition(kind: str, tmp_path: Path) -> None:
    async with bus_of(kind, tmp_path) as bus, two_workers(bus, tmp_path) as url:
        async with events_of(url) as events:
            for number in range(COUNT):
                await bus.send({"n": number}, number)
            await bus.send(b"\xff\xfe", COUNT)  # rejected
            await until(lambda: len(events) >= COUNT)
            await bus.send("end", COUNT + 1)
            await until(lambda: "end" in events)
            assert Counter(events) == Counter([*(f'{{"n":{each}}}' for each in range(COUNT)), "end"])
        async with Client(f"{url}/mcp") as client:
            for number in range(COUNT):
                await client.call("cancel", order=str(number))
        await until(lambda: len(bus.received) >= COUNT)
        assert len(set(bus.received)) == len(bus.received) == COUNT


async def test_kafka_message_keys_become_channels() -> None:
    brokers = import_module("examples.bus_brokers")
    async with TestKafkaBroker(brokers.kafka) as kafka, brokers.mcp.running():
        await kafka.publish("refused", topic="orders", key=b"a b")
        await kafka.publish({"n": 1}, topic="orders", key=b"7")
        (event,) = await brokers.mcp.hub.history("orders.7")
        assert (event.data, event.id) == (b'{"n":1}', "orders/0/0")
