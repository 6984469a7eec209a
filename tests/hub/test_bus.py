import asyncio
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import msgspec
import pytest
from faststream import Context
from faststream.kafka import KafkaBroker, TestKafkaBroker
from faststream.nats import JStream, NatsBroker
from faststream.nats.message import NatsMessage
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue
from faststream.redis import RedisBroker, StreamSub
from nats.js.api import ConsumerConfig

from millstream import Server
from millstream._stores.base import StoreUnavailable
from millstream.hub import Forbidden, Hub
from millstream.hub._bus import LineLimit, message_id
from nats_parts import shared_server
from patience import WAIT
from rabbit_parts import shared_rabbit
from redis_parts import RedisServer, until

BUSES: Final = ("nats", "rabbit", "redis")
pytestmark = [pytest.mark.server]


class Bus:
    """A broker, a stream of its own there, and what a program outside does with both."""

    def __init__(self, kind: str, make: Callable[[], Any]) -> None:
        self.kind = kind
        self.name = f"s{secrets.token_hex(4)}"
        self.make = make
        self.outside = make()
        self.options: dict[str, Any] = (
            {"stream": JStream(self.name, subjects=[f"{self.name}.>"])} if kind == "nats" else {}
        )
        self.sent: dict[str, Any] = {"stream": self.name} if kind == "nats" else {}

    @property
    def subject(self) -> str:
        """What to read: Redis has no wildcards."""
        return self.name if self.kind == "redis" else f"{self.name}.*"

    @property
    def channel(self) -> str:
        """The template of the channel for one message with the key 7."""
        return "orders.7" if self.kind == "redis" else "orders.{key}"

    async def send(self, data: Any, *, id: str = "") -> None:
        """Send a message with the key 7, as another program would."""
        if self.kind == "nats":
            headers = {"Nats-Msg-Id": id} if id else {}
            await self.outside.publish(data, f"{self.name}.7", stream=self.name, headers=headers, timeout=WAIT)
        elif self.kind == "rabbit":
            await self.outside.publish(
                data, routing_key=f"{self.name}.7", exchange="amq.topic", message_id=id or None, mandatory=False
            )
        else:
            await self.outside.publish(data, stream=self.name)


@asynccontextmanager
async def bus_of(kind: str) -> AsyncIterator[Bus]:
    """A real broker."""
    redis = RedisServer() if kind == "redis" else None
    if redis is not None:
        bus = Bus(kind, lambda: RedisBroker(redis.url))
    elif kind == "nats":
        await (node := shared_server()).wait()
        bus = Bus(kind, lambda: NatsBroker(f"nats://127.0.0.1:{node.port}", logger=None))
    else:
        await (rabbit := shared_rabbit()).wait()
        bus = Bus(kind, lambda: RabbitBroker(rabbit.url, logger=None))
    try:
        await bus.outside.start()
        if kind == "nats":
            await bus.outside.connection.jetstream(timeout=WAIT).add_stream(name=bus.name, subjects=[f"{bus.name}.>"])
        yield bus
        await bus.outside.stop()
    finally:
        if redis is not None:
            redis.close()


async def data_of(server: Server, channel: str, count: int) -> list[str]:
    """The events of a channel, once there are so many."""

    async def there() -> bool:
        return len(await server.hub.history(channel)) >= count

    await until(there)
    return [(each.data or b"").decode() for each in await server.hub.history(channel)]


@pytest.mark.parametrize("kind", BUSES)
async def test_bus_messages_become_events_in_order(kind: str) -> None:
    async with bus_of(kind) as bus:
        server = Server("shop", serve="hub")
        broker = bus.make()
        server.hub.from_bus(broker, bus.subject, to=bus.channel, **bus.options)
        async with server.running() as running:
            await _connected(running)
            for number in range(50):
                await bus.send({"n": number})
            found = await data_of(server, "orders.7", 50)
            assert [json.loads(each) for each in found] == [{"n": number} for number in range(50)]


@pytest.mark.parametrize("kind", BUSES)
async def test_messages_sent_during_downtime_arrive_later(kind: str) -> None:
    async with bus_of(kind) as bus:
        async with _shop(bus) as first:
            await bus.send("before")
            assert await data_of(first, "orders.7", 1) == ["before"]
        await bus.send("meanwhile")
        async with _shop(bus) as second:
            assert await data_of(second, "orders.7", 1) == ["meanwhile"]


async def test_unacknowledged_message_is_published_once(monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledge, acknowledged = NatsMessage.ack, []

    async def lose_the_first(self: NatsMessage) -> None:
        acknowledged.append(self)
        if len(acknowledged) > 1:
            await acknowledge(self)

    monkeypatch.setattr(NatsMessage, "ack", lose_the_first)
    async with bus_of("nats") as bus, _shop(bus, config=ConsumerConfig(ack_wait=0.5)) as server:
        await bus.send("once")
        await until(lambda: len(acknowledged) > 1)
        await bus.send("next")
        assert await data_of(server, "orders.7", 2) == ["once", "next"]


async def test_messages_with_equal_ids_are_one_event() -> None:
    async with bus_of("rabbit") as bus, _shop(bus) as server:
        for text in ("first", "first", "second"):
            await bus.send(text, id=text)
        assert [each.id for each in await _events(server, 2)] == ["first", "second"]


@pytest.mark.parametrize("kind", ["nats", "rabbit"])
async def test_rejected_messages_are_redelivered(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.hub._bus.ATTEMPTS", 1)
    publish, failures = Hub.publish, iter([True, True])

    async def fail_twice(self: Hub, *args: Any, **named: Any) -> Any:
        if next(failures, False):
            raise StoreUnavailable("The store didn't answer.")
        return await publish(self, *args, **named)

    monkeypatch.setattr(Hub, "publish", fail_twice)
    async with bus_of(kind) as bus, _shop(bus) as server:
        await bus.send("kept", id="kept")
        assert await data_of(server, "orders.7", 1) == ["kept"]
        assert next(failures, False) is False


@pytest.mark.parametrize("kind", BUSES)
async def test_invalid_messages_are_rejected_and_the_next_arrives(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with bus_of(kind) as bus, _shop(bus) as server:
        await bus.send(b"\xff\xfe")
        await bus.send("x" * 400_000)
        await bus.send("good")
        assert await data_of(server, "orders.7", 1) == ["good"]
    lines = [each.getMessage() for each in caplog.records if "Rejected a message" in each.getMessage()]
    assert len(lines) == 2
    assert max(map(len, lines)) < 500


async def test_rejected_messages_reach_the_rabbitmq_dead_letter_queue() -> None:
    async with bus_of("rabbit") as bus:
        letters = await bus.outside.declare_queue(RabbitQueue(f"{bus.name}-dead"))
        queue = RabbitQueue(
            f"{bus.name}-orders",
            routing_key=bus.subject,
            arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": letters.name},
        )
        async with _shop(bus, queue=queue):
            await bus.send(b"\xff\xfe")

            async def dead() -> bool:
                message = await letters.get(fail=False)
                return message is not None and message.body == b"\xff\xfe"

            await until(dead)


@pytest.mark.parametrize("kind", BUSES)
async def test_events_reach_the_bus_with_their_ids(kind: str) -> None:
    async with bus_of(kind) as bus:
        received: asyncio.Queue[tuple[Any, str]] = asyncio.Queue()
        target = bus.name if kind == "redis" else f"{bus.name}.{{key}}"
        server = Server("shop", serve="hub")
        server.hub.to_bus(bus.make(), "paid.*", to=target, **bus.sent, **_exchange(kind))
        await _listen(bus, received)
        async with server.running() as running:
            await _connected(running)
            await server.hub.publish("other", "not this one")
            first = await server.hub.publish("paid.7", {"sum": 3})
            await server.hub.publish("paid.7", "text", id="mine")
            async with asyncio.timeout(WAIT):
                assert [await received.get(), await received.get()] == [({"sum": 3}, first.id), ("text", "mine")]


async def test_events_published_during_a_bus_outage_are_sent_later(tmp_path: Any) -> None:
    async with bus_of("nats") as bus:
        received: asyncio.Queue[tuple[Any, str]] = asyncio.Queue()
        store = f"sqlite:///{tmp_path}/hub.db"
        await _listen(bus, received)
        for number, joined in enumerate([True, False, True]):
            server = Server("shop", serve="hub", store=store)
            if joined:
                server.hub.to_bus(bus.make(), "paid.*", to=f"{bus.name}.{{key}}", **bus.sent)
            async with server.running():  # its bus may be connected later
                if number == 0:
                    await server.hub.publish("paid.7", "n0")
                    async with asyncio.timeout(WAIT):
                        assert (await received.get())[0] == "n0"
                elif number == 1:
                    await server.hub.publish("paid.7", "n1")
                else:
                    await server.hub.publish("paid.7", "n2")
                    async with asyncio.timeout(WAIT):
                        assert [(await received.get())[0] for _ in range(2)] == ["n1", "n2"]


async def test_server_starts_without_its_bus(caplog: pytest.LogCaptureFixture) -> None:
    server = Server("shop", serve="hub")
    broker = RedisBroker("redis://127.0.0.1:1")
    server.hub.from_bus(broker, "orders", to="orders")
    async with server.running() as running:
        await server.hub.publish("news", "works")
        await until(lambda: any("can't connect" in each.getMessage() for each in caplog.records))
        assert running.host.degraded_reasons() == ["not connected to the message bus (RedisBroker)"]


async def test_kafka_channels_come_from_keys_or_topics(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = KafkaBroker(logger=None)
    server = Server("shop", serve="hub")
    server.hub.from_bus(broker, "orders", to="orders.{key}")
    server.hub.from_bus(broker, "stock.*", to="stock.{key}", group="other")
    async with TestKafkaBroker(broker), server.running() as running:
        await _connected(running)
        await broker.publish({"n": 1}, topic="orders", key=b"7")
        await broker.publish("low", topic="stock.books")
        await broker.publish("refused", topic="orders", key=b"a.b")
        assert await data_of(server, "orders.7", 1) == ['{"n":1}']
        assert await data_of(server, "stock.books", 1) == ["low"]
    assert any("contains a dot" in each.getMessage() for each in caplog.records)


async def test_events_reach_kafka_topics() -> None:
    broker = KafkaBroker(logger=None)
    server = Server("shop", serve="hub")
    server.hub.to_bus(broker, "paid.*", to="paid-{key}")
    received: asyncio.Queue[Any] = asyncio.Queue()
    broker.subscriber("paid-7")(received.put)
    async with TestKafkaBroker(broker), server.running() as running:
        await _connected(running)
        await server.hub.publish("paid.not a topic".replace(" ", "/"), "left out")
        await server.hub.publish("paid.7", {"sum": 3})
        async with asyncio.timeout(WAIT):
            assert await received.get() == {"sum": 3}


async def test_events_published_in_the_lifespan_reach_the_bus() -> None:
    broker = KafkaBroker(logger=None)
    received: asyncio.Queue[Any] = asyncio.Queue()
    broker.subscriber("paid-7")(received.put)

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        await server.hub.publish("paid.7", "first")
        yield

    server = Server("shop", serve="hub", lifespan=lifespan)
    server.hub.to_bus(broker, "paid.*", to="paid-{key}")
    async with TestKafkaBroker(broker), server.running():
        await server.hub.publish("paid.7", "second")
        async with asyncio.timeout(WAIT):
            assert [await received.get(), await received.get()] == ["first", "second"]


async def test_own_messages_are_not_received_again() -> None:
    broker = KafkaBroker(logger=None)
    server = Server("shop", serve="hub")
    server.hub.from_bus(broker, "orders", to="orders")
    async with TestKafkaBroker(broker), server.running() as running:
        await _connected(running)
        await broker.publish("mine", topic="orders", headers={"millstream-hub": "shop"})
        await broker.publish("other", topic="orders", headers={"millstream-hub": "store"})
        assert await data_of(server, "orders", 1) == ["other"]


def test_bridge_names_are_checked_at_declaration() -> None:
    declare: Callable[[], None]
    hub = Server("shop", serve="hub").hub
    kafka, nats, redis = KafkaBroker(), NatsBroker(), RedisBroker()
    for declare, message in (
        (lambda: hub.from_bus(object(), "orders", to="orders"), "must be a broker"),
        (lambda: hub.from_bus(kafka, "orders", to="orders.{id}"), "not {id}"),
        (lambda: hub.from_bus(kafka, "orders", to="orders.{key!r}"), "not {key}"),
        (lambda: hub.from_bus(kafka, "orders", to="orders.{"), "isn't a valid name"),
        (lambda: hub.from_bus(redis, "orders", to="orders.{key}"), "needs a wildcard"),
        (lambda: hub.from_bus(kafka, "orders.>.x", to="orders"), "must be at the end"),
        (lambda: hub.from_bus(kafka, "orders", to="$client.{key}"), "aren't allowed to publish"),
        (lambda: hub.from_bus(kafka, "orders", to="*.{key}"), "allowed only in subscriptions"),
        (lambda: hub.from_bus(nats, "orders.*", to="orders.{key}"), 'stream="ORDERS"'),
        (lambda: hub.from_bus(redis, "orders.*", to="orders.{key}"), "no wildcards"),
        (lambda: hub.to_bus(kafka, "$presence.*", to="seen"), "are reserved for the hub"),
        (lambda: hub.to_bus(kafka, "paid", to="paid.{key}"), "needs a wildcard"),
    ):
        with pytest.raises((ValueError, TypeError, Forbidden), match=re.escape(message)):
            declare()


def test_circular_bridges_are_refused() -> None:
    hub, broker = Server("shop", serve="hub").hub, KafkaBroker()
    hub.from_bus(broker, "orders.*", to="orders.{key}")
    hub.to_bus(broker, "paid.*", to="paid.{key}")
    with pytest.raises(ValueError, match="would loop"):
        hub.to_bus(broker, "orders.>", to="{channel}")


def test_logging_of_invalid_messages_is_limited(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    limit = LineLimit(lambda: now[0])
    for _ in range(1000):
        limit.log("%r: %s", "orders", "x" * 5000)
    now[0] = 61.0
    limit.log("%r: %s", "orders", "again")
    lines = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(lines) == 22
    assert lines[20] == "Omitted 980 more lines about 'orders'."
    assert max(map(len, lines)) < 400


def test_invalid_event_ids_are_hashed() -> None:
    raw = msgspec.defstruct("Raw", ["message_id"])
    message = msgspec.defstruct("Message", ["raw_message"])
    assert message_id("rabbit", message(raw("one"))) == "one"
    assert message_id("rabbit", message(raw(None))) is None
    assert len(message_id("rabbit", message(raw("a\nb"))) or "") == 64


# Helpers


async def _connected(running: Any) -> None:
    await until(lambda: not running.host.degraded_reasons())


def _exchange(kind: str) -> dict[str, Any]:
    return {"mandatory": False} if kind == "rabbit" else {}


@asynccontextmanager
async def _shop(bus: Bus, **options: Any) -> AsyncIterator[Server]:
    server = Server("shop", serve="hub")
    server.hub.from_bus(bus.make(), bus.subject, to=bus.channel, **bus.options | options)
    async with server.running() as running:
        await _connected(running)
        yield server


async def _events(server: Server, count: int) -> list[Any]:
    await data_of(server, "orders.7", count)
    return await server.hub.history("orders.7")


async def _listen(bus: Bus, received: "asyncio.Queue[tuple[Any, str]]") -> None:
    """Receive what is sent to the bus, with the id that it has there."""
    await bus.outside.stop()

    async def receive(body: Any, message: Any) -> None:
        await received.put((body, message.headers["millstream-event-id"]))

    receive.__annotations__ = {"body": Any, "message": Annotated[Any, Context("message")]}
    if bus.kind == "nats":
        bus.outside.subscriber(f"{bus.name}.*", stream=bus.name)(receive)
    elif bus.kind == "rabbit":
        exchange = RabbitExchange("amq.topic", type=ExchangeType.TOPIC, declare=False)
        bus.outside.subscriber(RabbitQueue(f"{bus.name}-out", routing_key=f"{bus.name}.*"), exchange)(receive)
    else:
        bus.outside.subscriber(stream=StreamSub(bus.name, last_id="0"))(receive)  # it begins to read after `start`
    await bus.outside.start()
