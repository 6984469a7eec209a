"""The life cycle of a server: one `Runtime` for each event loop, opened on demand, and ``mcp.hub``, which opens one."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from millstream._app.definition import Bind, Definition
from millstream._protocol.errors import LocalError, no_attribute
from millstream._stores.base import Store
from millstream._tasks import SingleFlight, Tasks

if TYPE_CHECKING:
    from millstream._app.runtime import Runtime
    from millstream._protocol.principal import Principal
    from millstream.hub import Event, Hub, HubStats, Member, PublishResult


class Runtimes:
    """A server's runtimes.

    A starter also stops its runtime: our HTTP server, a host's lifespan, or an ``async with``. A runtime that was
    opened by a request, because the server is mounted in another application, closes after an idle minute. With a
    lifespan or a hub, it lives until the loop ends or the server is stopped.
    """

    def __init__(self, definition: Definition) -> None:
        self.definition: Definition = definition
        self.bind: Bind = Bind()
        """Where the server listens, set before it starts."""
        self._by_loop: dict[asyncio.AbstractEventLoop, Runtime] = {}
        """Open runtimes."""
        self._living: dict[asyncio.AbstractEventLoop, Runtime] = {}
        """Runtimes that are open, opening, or closing: their lifespans can publish at any time."""
        self._opening: SingleFlight[Runtime] = SingleFlight()
        self._closing = Tasks()
        self._stores: dict[asyncio.AbstractEventLoop, Store] = {}
        """The store of each loop, which outlives idle runtimes along with session state."""
        self._blocks: dict[asyncio.AbstractEventLoop, int] = {}
        """Number of `running` blocks that keep a loop's runtime open. The last one closes it."""
        self._started: dict[asyncio.AbstractEventLoop, bool] = {}
        """Loops whose runtime was started outside these blocks, which don't close it, and whether `stop` will."""
        self.current: Runtime | None = None
        """The runtime that serves HTTP."""

    async def start(self, *, supervised: bool = False, private: bool = False) -> "Runtime":
        """Return the runtime of this event loop, opening it if necessary. Concurrent callers share the attempt.
        Failures are retried.

        Args:
            supervised: Whether the caller will call `stop`. Until then it doesn't close on its own.
            private: Whether other processes can't serve its clients, so it shares no store with them.

        Raises:
            LocalError: The key for session ids is invalid.
            ValueError: A registered item can't work.
        """
        loop = asyncio.get_running_loop()
        if supervised or loop not in self._blocks:
            self._started[loop] = supervised or self._started.get(loop, False)
        try:
            return await self._get(loop, private)
        except BaseException:
            if not self._opening.runs(""):  # otherwise, another caller waits for it
                self._started.pop(loop, None)
            raise

    async def _get(self, loop: asyncio.AbstractEventLoop, private: bool) -> "Runtime":
        return self._by_loop.get(loop) or await self._opening.run("", lambda: self._open(loop, private))

    async def _open(self, loop: asyncio.AbstractEventLoop, private: bool) -> "Runtime":
        self._forget_closed_loops()
        definition = self.definition
        from millstream._app.runtime import Runtime  # noqa: PLC0415  a program that only registers does without
        from millstream._stores import open_store  # noqa: PLC0415  as above

        store = self._stores.get(loop)
        if store is None:
            store = None if private or self.bind.loopback is not None else await asyncio.to_thread(self._find_siblings)
            store = self._stores[loop] = store or open_store(definition.store)
        runtime = self._living[loop] = Runtime(definition, store, bind=self.bind, on_idle=self.close_idle)
        try:
            await runtime.open()
        except BaseException:
            self._forget(runtime)
            raise
        if runtime.host.runs_while_idle:
            runtime.on_idle = None
        self._by_loop[loop] = runtime
        definition.listeners.add(runtime)
        return runtime

    def _find_siblings(self) -> Store | None:
        """Return the store that this process shares with other worker processes of a foreign server, if there are
        any."""
        from millstream._stores import open_with_siblings  # noqa: PLC0415  as above

        return open_with_siblings(self.definition.store, self.definition.name)

    def _forget(self, runtime: "Runtime") -> None:
        if self._living.get(runtime.loop) is runtime:
            del self._living[runtime.loop]

    def _forget_closed_loops(self) -> None:
        """Remove the runtimes of loops that ended without `stop`."""
        for loop in [each for each in self._stores if each.is_closed()]:
            del self._stores[loop]
            self._started.pop(loop, None)
            self._blocks.pop(loop, None)
            self._living.pop(loop, None)
            runtime = self._by_loop.pop(loop, None)
            if runtime is not None:
                self.definition.listeners.discard(runtime)

    async def stop(self) -> None:
        """Close the runtime of this event loop, if there is one."""
        loop = asyncio.get_running_loop()
        self._started.pop(loop, None)
        runtime = self._by_loop.pop(loop, None)
        if runtime is None:
            return
        self.definition.listeners.discard(runtime)
        if self.current is runtime:
            self.current = None
        try:
            await runtime.close()
        finally:
            self._forget(runtime)

    def close_idle(self, runtime: "Runtime") -> None:
        """Close an idle runtime. The next request opens a new one."""
        loop = runtime.loop
        if self._by_loop.get(loop) is runtime and loop not in self._blocks and not self._started.get(loop):
            self._closing.spawn(self.stop())

    @asynccontextmanager
    async def running(self, *, private: bool = True) -> "AsyncGenerator[Runtime, None]":
        """Run the server inside the ``async with`` block, in this event loop. For `private`, see `start`.

        Blocks may be nested or concurrent. A runtime that was started in another way isn't closed at the end: a tool
        can use a `Client` of the server that it runs in. But a host's lifespan closes one that a request or a
        publication has started.
        """
        loop = asyncio.get_running_loop()
        if not private and not self._started.get(loop):
            self._started.pop(loop, None)
        self._blocks[loop] = self._blocks.get(loop, 0) + 1
        try:
            yield await self._get(loop, private)
        finally:
            self._blocks[loop] -= 1
            if not self._blocks[loop]:
                del self._blocks[loop]
                if loop not in self._started:
                    await self.stop()

    @property
    def calls(self) -> int:
        """Return the number of running calls."""
        return sum(runtime.dispatcher.load.running for runtime in self._by_loop.values())

    @property
    def streams(self) -> int:
        """Return the number of open event streams."""
        return sum(len(runtime.streams) for runtime in self._by_loop.values())

    @property
    def hub(self) -> "Hub | None":
        """Return the hub of this loop, or of the running loop if this isn't a loop's thread, when it's open."""
        try:
            runtime = self._living.get(asyncio.get_running_loop())
        except RuntimeError:
            runtime = self.current or next(iter(self._living.values()), None)
        return None if runtime is None else runtime.hub


class ServerApplication(Protocol):
    """An ASGI application with runtimes: `Server`, from the perspective of the modules that serve it."""

    runtimes: Runtimes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3."""


_HUB_NAMES = dict.fromkeys(("subscribe", "on", "receive"), "Use `async with mcp.hub.listen(channel) as events`.") | {
    "broadcast": "Use `await mcp.hub.publish(channel, data)`.",
    "emit": "Use `await mcp.hub.publish(channel, data)`.",
    "members": "Use `await mcp.hub.presence(channel)`.",
}
"""Name in other libraries -> its replacement."""


class HubAccess:
    """The hub for programs (``mcp.hub``). Its methods take the same arguments and raise the same errors as `Hub`.

    It's usable at any time: before the first request, in the lifespan of the server or the host application, and after
    a long idle time. The first use opens the hub.
    """

    def __init__(self, runtimes: Runtimes) -> None:
        self._runtimes = runtimes

    if not TYPE_CHECKING:  # type checkers would accept any attribute name

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, _HUB_NAMES)

    async def _open(self) -> "Hub":
        hub = self._runtimes.hub or (await self._runtimes.start()).hub
        if hub is None:
            raise no_hub(self._runtimes.definition.name)
        return hub

    async def publish(
        self,
        channel: str,
        data: Any,
        *,
        event: str | None = None,
        id: str | None = None,
        publisher: "Principal | None" = None,
    ) -> "PublishResult":
        """Publish to a channel (see `Hub.publish`)."""
        return await (await self._open()).publish(channel, data, event=event, id=id, publisher=publisher)

    async def send(
        self,
        client_id: str,
        data: Any,
        *,
        event: str | None = None,
        id: str | None = None,
        principal: "Principal | None" = None,
        publisher: "Principal | None" = None,
    ) -> "PublishResult":
        """Publish to one client (see `Hub.send`)."""
        hub = await self._open()
        return await hub.send(client_id, data, event=event, id=id, principal=principal, publisher=publisher)

    async def presence(self, channel: str) -> "list[Member]":
        """Return the clients on a channel (see `Hub.presence`)."""
        return await (await self._open()).presence(channel)

    async def history(self, channel: str, count: int = 50) -> "list[Event]":
        """Return the newest events of a channel (see `Hub.history`)."""
        return await (await self._open()).history(channel, count)

    async def listen(self, pattern: str, *, name: str = "") -> "AsyncGenerator[Event, None]":
        """Yield the events of a channel or pattern (see `Hub.listen`)."""
        async with aclosing((await self._open()).listen(pattern, name=name)) as events:
            async for event in events:
                yield event

    def stats(self) -> "HubStats":
        """Return the statistics of this worker's part of the hub.

        Raises:
            LocalError: The hub hasn't been opened yet.
        """
        hub = self._runtimes.hub
        if hub is None:
            raise LocalError("The hub isn't open here yet. The first request or publication opens it.")
        return hub.stats()


def no_hub(name: str) -> LocalError:
    """Return the error for a program that uses the hub of a server without one."""
    return LocalError(f'{name!r} serves no hub. Write Server({name!r}, serve="hub"), or run it with --serve hub.')
