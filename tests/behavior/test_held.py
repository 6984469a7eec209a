import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bad_input.shop import make_shop
from millstream._app.runtime import Runtime
from millstream._protocol.principal import Share
from millstream._server.calls.sessions import OTHERS, YOURS, SessionRecord
from millstream._transports.connection import ClientConnection
from patience import WAIT
from wire import LATEST_HANDSHAKE, per_request, request

ROOM = 20_000
OPENING = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}


class Client:
    """One connection of an address, as in stdio, HTTP+SSE, and WebSockets."""

    def __init__(self, runtime: Runtime, peer: str) -> None:
        self._heard = asyncio.Queue[Any]()
        self.connection = ClientConnection(runtime.dispatcher, self._hear, self._drain, peer=peer)

    def _hear(self, message: bytes) -> bool:
        self._heard.put_nowait(json.loads(message))
        return True

    async def _drain(self) -> None:
        """Do nothing, because no data is buffered."""

    async def ask(self, message: Any) -> Any:
        """Send a request and return the next message."""
        self.connection.receive(json.dumps(message).encode())
        async with asyncio.timeout(WAIT):
            return await self._heard.get()

    async def subscribe(self, name: str, how: str = "subscribe") -> str:
        """Subscribe, and return the error message, or an empty string."""
        answer = await self.ask(request(f"resources/{how}", {"uri": f"shop://books/{name}{'x' * 2_000}"}))
        return str(answer.get("error", {}).get("message", ""))


@asynccontextmanager
async def room_for_little() -> AsyncIterator[Runtime]:
    """Run a server whose clients can use 20 kB."""
    mcp = make_shop()

    @mcp.resource("shop://books/{title}")
    def book(title: str) -> str:
        """A book."""
        return title

    async with mcp.running() as runtime:
        runtime.services.client_memory.bytes = Share(ROOM)
        yield runtime


async def open_session(runtime: Runtime, peer: str) -> Client:
    """Return a connection with a session."""
    client = Client(runtime, peer)
    await client.ask(request("initialize", OPENING, 0))
    return client


async def test_one_address_gets_at_most_half_of_the_watch_quota() -> None:
    async with room_for_little() as runtime:
        one, two = [await open_session(runtime, "203.0.113.1") for _ in range(2)]
        other = await open_session(runtime, "198.51.100.1")
        assert [await each.subscribe(name) for name in "ab" for each in (one, two)] == [""] * 4
        assert await one.subscribe("c") == await two.subscribe("c") == YOURS
        assert await one.subscribe("a") == await other.subscribe("a") == ""
        assert await one.subscribe("a", "unsubscribe") == await two.subscribe("c") == ""
        for client in (one, two, other):
            await client.connection.close()
        assert runtime.services.client_memory.bytes.used == 0


async def test_watch_quota_limits_all_callers_together() -> None:
    async with room_for_little() as runtime:
        clients = [await open_session(runtime, f"203.0.113.{number}") for number in range(5)]
        said = [await client.subscribe(name) for name in "ab" for client in clients]
        assert set(said) == {"", OTHERS}
        assert runtime.services.client_memory.bytes.used <= ROOM
        for client in clients:
            await client.connection.close()
        assert runtime.services.client_memory.bytes.used == 0


async def test_open_subscriptions_count_toward_the_watch_quota() -> None:
    listen = {"notifications": {"resourceSubscriptions": [f"shop://books/{'x' * 6_000}"]}}
    async with room_for_little() as runtime:
        client = Client(runtime, "203.0.113.1")
        first = await client.ask(per_request("subscriptions/listen", listen, 1))
        assert first["method"] == "notifications/subscriptions/acknowledged"
        second = await client.ask(per_request("subscriptions/listen", listen, 2))
        assert second["error"]["message"] == YOURS
        await client.connection.close()
        assert runtime.services.client_memory.bytes.used == 0


async def test_watches_on_a_closed_connection_are_not_counted() -> None:
    async with room_for_little() as runtime:
        client = await open_session(runtime, "203.0.113.1")
        session = client.connection.session
        assert session is not None
        await client.connection.close()
        await runtime.services.records.change(session, lambda _: SessionRecord(subscriptions={"shop://books/late": ""}))
        assert runtime.services.client_memory.bytes.used == 0


async def test_caller_without_an_address_gets_the_whole_watch_quota() -> None:
    async with room_for_little() as runtime:
        client = await open_session(runtime, "")
        assert [await client.subscribe(str(number)) for number in range(6)] == [""] * 6
        await client.connection.close()
