"""Clients that record what they received: subscribers that resume, and publishers that retry until they get a
response."""

import asyncio
import json
import random
import time
from collections.abc import Callable
from typing import NamedTuple

from benches.chaos.history import Event, Publication, Subscriber, Told

RECONNECT = (0.02, 0.2)
"""Seconds until a subscriber comes back, at random between the two."""
ANSWER_SECONDS = 30.0
"""Seconds after which a publisher gives up. The publication then counts as not acknowledged."""


_HEAD = b"POST /publish HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


class Listening(asyncio.Protocol):
    """One connection of a subscriber to `GET /events`."""

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._buffer = b""
        self._head = True
        self.lost = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        # HTTP/1.0, so there are no chunks to parse.
        head = f"GET /events?channel={self._listener.log.channel} HTTP/1.0\r\nhost: 127.0.0.1\r\n"
        head += "accept: text/event-stream\r\n"
        if self._listener.last_id:
            head += f"last-event-id: {self._listener.last_id}\r\n"
        transport.write(f"{head}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        if self._head:
            head, end, buffer = buffer.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            self._head = False
            if b" 200 " not in head[:16]:
                self.transport.abort()
                return
            self._listener.connected()
        *frames, self._buffer = buffer.split(b"\n\n")
        for frame in frames:
            self._listener.take(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


class Reconnect(NamedTuple):
    """The time from losing a connection to the head of the next response."""

    lost_at: float
    """By the monotonic clock."""
    seconds: float


class Listener:
    """A subscriber, over all of its connections."""

    def __init__(self, port: int, channel: str) -> None:
        self.log = Subscriber(channel)
        self.last_id = ""
        self.reconnects: list[Reconnect] = []
        self.waiting: dict[str, asyncio.Event] = {}
        """Events that are awaited, by data."""
        self._port = port
        self._lost_at = 0.0

    def connected(self) -> None:
        """The server has answered."""
        if self._lost_at:
            self.reconnects.append(Reconnect(self._lost_at, time.monotonic() - self._lost_at))
            self._lost_at = 0.0

    def take(self, frame: bytes) -> None:
        """Record one event, gap, or position."""
        name, data, id = "", "", ""
        for line in frame.split(b"\n"):
            field, _, value = line.decode().partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data = value
            elif field == "id":
                id = value
        if id:
            self.last_id = id
            self.log.first = self.log.first or id
        if name == "gap":
            self.log.got.append(Told(data))
        elif data and not name:
            self.log.got.append(Event(id, data))
            if data in self.waiting:
                self.waiting[data].set()

    async def run(self) -> None:
        """Stay connected until canceled."""
        loop = asyncio.get_running_loop()
        while True:
            protocol = None
            try:
                _, protocol = await loop.create_connection(lambda: Listening(self), "127.0.0.1", self._port)
                await protocol.lost
            except OSError:
                pass
            finally:
                if protocol is not None:
                    protocol.transport.abort()
            self._lost_at = self._lost_at or time.monotonic()
            await asyncio.sleep(random.uniform(*RECONNECT))


class Publisher:
    """Publishes one event after the other on one connection, and comes back when it breaks."""

    def __init__(self, port: int, name: str, log: list[Publication]) -> None:
        self._port = port
        self._name = name
        self._log = log
        self._count = 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def publish(self, channel: str) -> Publication:
        """Try to publish one event, once."""
        self._count += 1
        publication = Publication(channel, f"{self._name}-{self._count}")
        self._log.append(publication)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                status, body = await self._post({"channel": channel, "data": publication.data})
        except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError):
            self.close()
            await asyncio.sleep(random.uniform(*RECONNECT))
            return publication
        if status == 200:
            publication.place = json.loads(body)["id"]
        return publication

    async def _post(self, message: object) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        body = json.dumps(message).encode()
        writer.write(_HEAD % len(body) + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
        answer = await reader.readexactly(length)
        if b"connection: close" in lines:
            self.close()
        return int(lines[0].split()[1]), answer

    def close(self) -> None:
        """Break the connection."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def paced(publisher: Publisher, rate: float, channel: Callable[[], str]) -> None:
    """Publish at a rate per second, as far as the server keeps up, until canceled."""
    due = time.monotonic()
    while True:
        due = max(due + 1 / rate, time.monotonic() - 1.0)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await publisher.publish(channel())
