"""Work that must not grow with certain sizes: each size is doubled, and one more call must not cost an instruction for
each added session, task, subscriber, tool, or upstream.

An instruction is a bytecode instruction of a function in `src/millstream`. A store operation is a call of a function
of the stores. Neither depends on the machine. What C functions do in one go, such as copying a set, isn't seen.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, Self

import msgspec

import millstream
from extensions.event_shop import OrderPaid, make_shop, run_shop
from extensions.receiver import new_secret, run_receiver
from http_peer import make_listener
from millstream import Server, Settings
from millstream.extensions.events import Events
from millstream.protocol import TASKS
from patience import WAIT
from wire import FakeTransport, Wire, encode_headers, encode_request, per_request, request, routing, run_wire

OURS = str(Path(millstream.__file__).parent)
STORES = str(Path(OURS) / "_stores")
REPEATS = 3
"""Measurements of each size. The smallest counts, because the others may include periodic work."""
SETTINGS = Settings(secret_key="0123456789abcdef" * 4, max_tasks=5_000, max_tasks_per_caller=5_000)


class Work:
    """Instructions and store operations while it is entered."""

    def __init__(self) -> None:
        self.instructions = self.store_operations = 0

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(self._before)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(OURS):
            return None
        self.store_operations += file.startswith(STORES)
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._count

    def _count(self, frame: FrameType, event: str, argument: object) -> Any:
        self.instructions += event == "opcode"
        return self._count


async def measure(act: Callable[[], Awaitable[None]]) -> Work:
    """Return the work of an action, once caches are filled."""
    with Work():  # since Python 3.12, functions count only from their second call
        await act()
    works: list[Work] = []
    for _ in range(REPEATS):
        with Work() as work:
            await act()
        works.append(work)
    return min(works, key=lambda each: each.instructions)


async def check_growth(grow: Callable[[int], Awaitable[None]], act: Callable[[], Awaitable[None]], size: int) -> None:
    """Check that an action costs the same when a size is doubled."""
    await grow(size)
    small = await measure(act)
    await grow(size)
    large = await measure(act)
    assert small.instructions > 100
    assert large.instructions - small.instructions < size, (small.instructions, large.instructions)
    assert large.store_operations <= small.store_operations


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def call(wire: Wire, tool: str, headers: dict[str, str] | None = None) -> Any:
    """Call a tool that adds, in a session or without one, and return the result."""
    params = {"name": tool, "arguments": {"a": 2, "b": 3}}
    if headers is None:
        message, headers = per_request("tools/call", params), routing("tools/call", tool)
    else:
        message = request("tools/call", params)
    reply = await wire.post(message, headers)
    assert reply.message["result"]["content"] == [{"type": "text", "text": "5"}]


async def test_calls_cost_the_same_with_more_tools() -> None:
    server = Server("growing", settings=SETTINGS)
    async with run_wire(server, "asgi") as wire:

        async def grow(count: int) -> None:
            for _ in range(count):
                server.tool(add, name=f"add_{len(server.definition.registry.tools)}")

        await check_growth(grow, lambda: call(wire, "add_7"), 200)


async def test_calls_cost_the_same_with_more_sessions() -> None:
    server = Server("growing", settings=SETTINGS)
    server.tool(add)
    async with run_wire(server, "asgi") as wire:
        sessions: list[dict[str, str]] = []

        async def grow(count: int) -> None:
            sessions.extend([await wire.initialize() for _ in range(count)])
            for each in sessions:
                await call(wire, "add", each)

        async def act() -> None:
            """Call in one session of all, in turn."""
            sessions.append(sessions.pop(0))
            await call(wire, "add", sessions[-1])

        await check_growth(grow, act, 300)


async def test_starting_a_task_costs_the_same_with_more_running_tasks() -> None:
    server = Server("growing", settings=SETTINGS)
    end = asyncio.Event()

    @server.tool(task="required")
    async def wait() -> str:
        await end.wait()
        return "ended"

    async with run_wire(server, "asgi") as wire:

        async def start() -> None:
            message = per_request("tools/call", {"name": "wait", "arguments": {}}, extensions={TASKS: {}})
            reply = await wire.post(message, routing("tools/call", "wait"))
            assert reply.message["result"]["resultType"] == "task", reply.message

        async def grow(count: int) -> None:
            for _ in range(count):
                await start()

        await check_growth(grow, start, 200)
        end.set()


class Paid(msgspec.Struct):
    """A customer paid an order."""

    customer: str
    total: int = 1


class Streams:
    """Event streams of a running server, each on a connection of its own."""

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self._protocols: list[Any] = []

    async def open(self, data: bytes, until: bytes) -> FakeTransport:
        """Send a request, and return when a part of the reply has arrived."""
        protocol, transport = self._listener.make_protocol(), FakeTransport()
        self._protocols.append(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)
        await arrived(transport, until)
        return transport

    async def listen(self, channel: str) -> FakeTransport:
        """Subscribe to a channel of the hub."""
        fields = [(b"host", b"127.0.0.1"), (b"accept", b"text/event-stream")]
        return await self.open(encode_request("GET", f"/events?channel={channel}", fields, b""), b"id: ")

    async def follow(self, customer: str) -> FakeTransport:
        """Open a stream of the events of one customer."""
        message = per_request("events/stream", {"name": "order.paid", "arguments": {"customer": customer}})
        fields = encode_headers(routing("events/stream"))
        return await self.open(encode_request("POST", "/mcp", fields, json.dumps(message).encode()), b"events/active")

    def close(self) -> None:
        """Drop all connections."""
        for protocol in self._protocols:
            protocol.connection_lost(None)


async def arrived(transport: FakeTransport, data: bytes) -> None:
    """Wait until a connection was sent this."""
    async with asyncio.timeout(WAIT):
        while data not in b"".join(transport.written):
            transport.write_event.clear()
            await transport.write_event.wait()


@asynccontextmanager
async def run_streams(server: Server) -> AsyncIterator[Streams]:
    """Run a server, and drop its streams at the end."""
    async with server.running():
        streams = Streams(await make_listener(server))
        yield streams
        streams.close()


def make_events() -> tuple[Server, Events]:
    """Return a server with one event type, whose fields are filters."""
    events = Events(webhooks=False)
    events.event("order.paid")(Paid)
    return Server("growing", serve="hub", settings=SETTINGS, extensions=[events]), events


async def test_publishing_costs_the_same_with_more_event_streams() -> None:
    server, events = make_events()
    async with run_streams(server) as streams:
        own = await streams.follow("ada")

        async def grow(count: int) -> None:
            for number in range(count):
                await streams.follow(f"other-{number}")

        async def act() -> None:
            own.written.clear()
            await events.publish(Paid("ada"))
            await arrived(own, b"notifications/events/event")

        await check_growth(grow, act, 200)


async def test_publishing_costs_the_same_with_more_webhooks(tmp_path: Path) -> None:
    async with run_receiver(tmp_path) as receiver:
        options = {"private_callbacks": True, "tls": receiver.tls, "max_subscriptions_each": 1_000}
        async with run_shop(make_shop(**options)) as world:
            client, url, number = world.client(), f"https://localhost:{receiver.port}/hook", count()

            async def subscribe(customer: str) -> None:
                receiver.secrets.append(secret := new_secret())
                await client.subscribe(url, secret, arguments={"customer": customer})

            async def grow(more: int) -> None:
                for _ in range(more):
                    await subscribe(f"other-{next(number)}")

            async def act() -> None:
                before = len(receiver.messages)
                await world.events.publish(OrderPaid("1", "ada"))
                await receiver.wait_for_messages(before + 1)

            await subscribe("ada")
            await check_growth(grow, act, 100)


async def test_publishing_costs_the_same_with_more_subscribers_to_other_channels() -> None:
    server = Server("growing", serve="hub", settings=SETTINGS)
    async with run_streams(server) as streams:
        own, number = await streams.listen("news"), count()

        async def grow(more: int) -> None:
            for _ in range(more):
                await streams.listen(f"other.{next(number)}&channel=more.*.{next(number)}")

        async def act() -> None:
            own.written.clear()
            await server.hub.publish("news", "extra")
            await arrived(own, b"extra")

        await check_growth(grow, act, 200)


async def test_calls_cost_the_same_with_more_upstreams() -> None:
    works: list[Work] = []
    for size in (10, 20):  # upstreams can't be added to a running gateway
        gateway = Server("gateway", settings=SETTINGS)
        for number in range(size):
            upstream = Server(f"upstream-{number}", settings=SETTINGS)
            upstream.tool(add)
            gateway.upstream(f"u{number}", upstream)
        async with run_wire(gateway, "asgi") as wire:
            works.append(await measure(lambda wire=wire: call(wire, "u3_add")))  # type: ignore[misc]
    small, large = works
    assert large.instructions - small.instructions < 10, (small.instructions, large.instructions)
    assert large.store_operations <= small.store_operations
