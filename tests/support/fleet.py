"""Several workers of one server in one process and on one store, each called through ASGI."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from behavior.exchanges import AsgiHttp, Event, Exchange
from millstream import Server
from millstream._app.definition import Bind
from millstream._app.runtime import Runtime
from millstream._app.server_process.asgi_application import prepare
from millstream._stores.store import Store
from patience import WAIT
from shared_store import SharedStore
from store_parts import Backing
from wire import LATEST_HANDSHAKE, POST, Json, request

__all__ = ["Bind", "Runtime"]

STREAM = {"accept": "text/event-stream"}


class Worker:
    """One worker."""

    def __init__(self, server: Server, runtime: Runtime, store: Any) -> None:
        self.server = server
        self.runtime = runtime
        self.store = store
        self.http = AsgiHttp(server)

    async def post(self, message: Any, headers: dict[str, str]) -> Exchange:
        """Send a message, and return once the head of the reply arrives."""
        return await self.http.fetch("POST", "/mcp", headers, json.dumps(message).encode())

    async def ask(self, method: str, params: Json | None, headers: dict[str, str], id: int | str = 1) -> Json:
        """Return the response to a request with one message, or the last message of its stream."""
        reply = await self.post(request(method, params, id), headers)
        body = await reply.body()
        if reply.streaming:
            body = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")][-1]
        return {"status": reply.status, **json.loads(body)}

    async def call(self, tool: str, headers: dict[str, str], **arguments: Any) -> str:
        """Return the text of a tool's result."""
        reply = await self.ask("tools/call", {"name": tool, "arguments": arguments}, headers)
        return str(reply["result"]["content"][0]["text"])

    async def initialize(self, capabilities: Json | None = None, revision: str = LATEST_HANDSHAKE) -> dict[str, str]:
        """Start a session, and return the headers of its requests."""
        params = {
            "protocolVersion": revision,
            "capabilities": capabilities or {},
            "clientInfo": {"name": "t", "version": "1"},
        }
        reply = await self.post(request("initialize", params, 0), POST)
        await reply.body()
        return {**POST, "mcp-session-id": reply.headers["mcp-session-id"], "mcp-protocol-version": revision}

    async def get(self, headers: dict[str, str], last: str | None = None) -> "EventStream":
        """Open the stand-alone stream of a session, or resume one after an event."""
        given = {**headers, **STREAM} if last is None else {**headers, **STREAM, "last-event-id": last}
        return EventStream(await self.http.fetch("GET", "/mcp", given))

    async def delete(self, headers: dict[str, str]) -> int:
        """End a session, and return the status."""
        return (await self.http.fetch("DELETE", "/mcp", headers)).status

    async def die(self, *, noticed: bool = True) -> None:
        """Simulate kill -9: nothing from this worker reaches the others any more."""
        self.store.die(noticed=noticed)
        await self.http.close()


class EventStream:
    """An event stream, read in the background."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.status = exchange.status
        self.events: list[Event] = []
        self.ended = False
        self._task = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        with suppress(ValueError, OSError):  # a connection may break between two events
            async for event in self.exchange.events():
                self.events.append(event)
        self.ended = True

    @property
    def messages(self) -> list[Json]:
        """Messages received so far."""
        return [json.loads(event.data) for event in self.events if event.data]

    @property
    def last_id(self) -> str:
        """The id to resume after."""
        return [event.id for event in self.events if event.id][-1]  # type: ignore[return-value]

    async def until(self, count: int) -> list[Json]:
        """Wait for `count` messages."""
        await until(lambda: len(self.messages) >= count)
        return self.messages

    async def end(self) -> list[Json]:
        """Wait for the end of the stream."""
        await until(lambda: self.ended)
        return self.messages

    def close(self) -> None:
        """Disconnect."""
        self.exchange.close()


async def until(condition: Callable[[], Any]) -> None:
    """Wait until `fact()` is true."""
    deadline = asyncio.get_running_loop().time() + WAIT
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "The condition didn't become true"
        await asyncio.sleep(0.001)


def open_records_at(worker: Worker, now: float) -> None:
    """Let a worker know the records of all sessions that began since a time, as if it had started then."""
    records = worker.runtime.services.records
    clock, records.clock = records.clock, lambda: now
    records.open()
    records.clock = clock


async def settle(turns: int = 200) -> None:
    """Let all pending messages arrive."""
    for _ in range(turns):
        await asyncio.sleep(0)


@asynccontextmanager
async def fleet(
    make: Callable[[], Server],
    count: int = 2,
    *,
    turns: Callable[[], int] = lambda: 1,
    store: SharedStore | None = None,
) -> AsyncIterator[list[Worker]]:
    """Run workers in the block."""
    shared = store or SharedStore(turns)
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(one_worker(make, shared)) for _ in range(count)]
        await settle()
        yield workers


@asynccontextmanager
async def real_fleet(make: Callable[[], Server], backing: Backing, count: int = 4) -> AsyncIterator[list[Worker]]:
    """Run workers on a real store in the block."""
    async with AsyncExitStack() as stack:
        stores = [_OpenStore(await backing.worker()) for _ in range(count)]
        yield [await stack.enter_async_context(_running(make(), store)) for store in stores]


class _OpenStore:
    """A store that is already open."""

    def __init__(self, store: Store) -> None:
        self.real = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    async def open(self) -> None:
        """Do nothing: the store is open."""


@asynccontextmanager
async def one_worker(make: Callable[[], Server], shared: SharedStore) -> AsyncIterator[Worker]:
    """Add a worker."""
    async with _running(make(), shared.worker()) as worker:
        yield worker


@asynccontextmanager
async def _running(server: Server, store: Any) -> AsyncIterator[Worker]:
    server.runtimes.record().store = store
    async with server.running() as runtime:
        prepare(server, runtime)
        worker = Worker(server, runtime, store)
        try:
            yield worker
        finally:
            await worker.http.close()
