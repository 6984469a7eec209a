"""Readers of Redis connections, when redis-py swallows a cancellation."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager, suppress
from types import coroutine
from typing import Any

import pytest

from millstream._stores.redis.address import parse_address
from millstream._stores.redis.client import RedisClient
from millstream._stores.redis.store import PushReader
from millstream._tasks import cancel_all
from millstream._troubles import Troubles
from redis_parts import until


class Connection:
    """A connection whose pending command completes although it's canceled, as with `asyncio.wait_for` of 3.11."""

    def __init__(self) -> None:
        self.sends = asyncio.Event()

    async def read_response(self, timeout: float) -> None:
        """Receive nothing."""
        await asyncio.sleep(timeout)

    async def send_command(self, *command: str | bytes, check_health: bool) -> None:
        """Send until canceled, and don't pass the cancellation on."""
        del command, check_health
        self.sends.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)


class Client:
    """Opens such connections."""

    def __init__(self) -> None:
        self.troubles = Troubles()
        self.connections: list[Connection] = []
        self.ignores = False

    @asynccontextmanager
    async def connection(self, key: str) -> AsyncIterator[Connection]:
        """Open a connection to the server that has a key."""
        del key
        connection = Connection()
        self.connections.append(connection)
        if self.ignores:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(0.2)
        yield connection


async def test_a_stopped_reader_leaves_no_task() -> None:
    client: Any = Client()
    reader = PushReader(client, "key", "marks")
    before = asyncio.all_tasks()
    task = asyncio.create_task(reader.run())
    await until(lambda: client.connections)
    await client.connections[0].sends.wait()
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before


async def test_a_reader_that_is_stopped_while_it_connects_does_not_read() -> None:
    client: Any = Client()
    client.ignores = True
    reader = PushReader(client, "key", "marks")
    before = asyncio.all_tasks()
    task = asyncio.create_task(reader.run())
    await until(lambda: client.connections)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # a second one ends `run` before the connection
    await asyncio.wait([task])
    await until(lambda: asyncio.all_tasks() == before)
    assert not client.connections[0].sends.is_set()


class Keys:
    """A Redis whose list of keys completes although it's canceled."""

    def __init__(self) -> None:
        self.lists = asyncio.Event()

    async def scan_iter(self, **options: object) -> AsyncIterator[bytes]:
        """Yield one key when the task is canceled."""
        del options
        self.lists.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        yield b"key"


async def test_a_canceled_list_of_keys_stays_canceled() -> None:
    client = RedisClient(parse_address("redis://127.0.0.1"), "key")
    client._redis = keys = Keys()
    listing = asyncio.create_task(client.scan("*", 10))
    await keys.lists.wait()
    await cancel_all(listing)
    assert listing.cancelled()


class Answering(Connection):
    """A connection that confirms each channel, one in each iteration of the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.channels: asyncio.Queue[Any] = asyncio.Queue()

    async def read_response(self, timeout: float) -> Any:
        del timeout
        await asyncio.sleep(0)
        return [b"ssubscribe", await self.channels.get(), 1]

    async def send_command(self, *command: str | bytes, check_health: bool) -> None:
        del check_health
        for channel in command[1:]:
            self.channels.put_nowait(channel)


async def test_waiting_for_many_channels_takes_linear_time() -> None:
    class AnsweringClient:
        troubles = Troubles()

        @asynccontextmanager
        async def connection(self, key: str) -> AsyncGenerator[Connection]:
            del key
            yield Answering()

    steps = 0

    @coroutine
    def follow_steps() -> Generator[Any, None, None]:
        nonlocal steps
        for pending in reader.wait_until_followed().__await__():
            steps += 1
            yield pending

    async def wait() -> None:
        await follow_steps()

    client: Any = AnsweringClient()
    reader = PushReader(client, "key", "marks")
    running = asyncio.create_task(reader.run())
    for number in range(200):
        reader.follow(f"channel {number}", lambda data: None)
    await asyncio.gather(*(wait() for _ in range(50)))
    assert steps <= 50 * 3  # each begins, and is woken for the connection and for the last channel
    reader.follow("another", lambda data: None)
    await reader.wait_until_followed()
    await cancel_all(running)


class Silent(Connection):
    """A connection that sends nothing at first, and then what it's asked for."""

    is_silent = True

    async def read_response(self, timeout: float) -> Any:
        del timeout
        if self.is_silent:
            self.is_silent = False
            return None
        await self.sends.wait()
        await asyncio.sleep(60)
        return [b"pong", b""]

    async def send_command(self, *command: str | bytes, check_health: bool) -> None:
        del check_health
        if command == ("PING",):
            self.sends.set()


async def test_silent_connection_is_pinged_before_it_is_replaced() -> None:
    class SilentClient(Client):
        @asynccontextmanager
        async def connection(self, key: str) -> AsyncIterator[Connection]:
            del key
            self.connections.append(Silent())
            yield self.connections[-1]

    client: Any = SilentClient()
    running = asyncio.create_task(PushReader(client, "key", "marks").run())
    await until(lambda: client.connections)
    await until(client.connections[0].sends.is_set)
    assert len(client.connections) == 1
    await cancel_all(running)


async def test_trouble_of_a_reader_ends_when_it_is_connected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.redis.store._PAUSE", 0.0)

    class ReturningClient:
        troubles = Troubles()
        failures = 3
        back = asyncio.Event()

        @asynccontextmanager
        async def connection(self, key: str) -> AsyncGenerator[Connection]:
            del key
            if self.failures:
                self.failures -= 1
                raise ConnectionError("refused")
            await self.back.wait()
            yield Answering()

    client: Any = ReturningClient()
    reader = PushReader(client, "key", "marks")
    running = asyncio.create_task(reader.run())
    await until(client.troubles.describe)
    (found,) = client.troubles.describe()
    assert found.reason == "refused"
    client.back.set()
    await reader.wait_until_followed()
    assert not client.troubles.describe()
    await cancel_all(running)
