"""The life of a server: one `Runtime` for each event loop it answers in, opened when it is needed.

What starts a server also stops it (our own HTTP server, a host's lifespan, an ``async with``). One that merely
answers, because it is mounted in another application, closes after a minute without work. It does not where it has
a lifespan or a hub: those live until the loop ends or the server is stopped.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from millstream._app.definition import Definition
from millstream._app.here_only import Bind
from millstream._stores.base import Store

if TYPE_CHECKING:
    from millstream._app.runtime import Runtime
    from millstream._http.server import Endpoints
    from millstream.hub import Hub


class Runtimes:
    """The runtimes of one server."""

    __slots__ = ("_by_loop", "_closing", "_living", "_opening", "_stores", "bind", "current", "definition", "endpoints")

    def __init__(self, definition: Definition) -> None:
        # Configuration
        self.definition: Definition = definition
        self.bind: Bind = Bind()
        """Where the server listens, set before it starts."""
        # Process
        self._by_loop: dict[asyncio.AbstractEventLoop, Runtime] = {}
        """Those that are open."""
        self._living: dict[asyncio.AbstractEventLoop, Runtime] = {}
        """Those, and what opens or closes now: their lifespans may publish already, and still."""
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Task[Runtime]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._stores: dict[asyncio.AbstractEventLoop, Store] = {}
        """The store of each loop: it outlives a runtime that closes when idle, and with it what sessions have."""
        self.current: Runtime | None = None
        """The one whose HTTP side answers."""
        self.endpoints: Endpoints | None = None
        """Those of `current`, for our own server."""

    async def start(self, *, supervised: bool = False) -> "Runtime":
        """The runtime of this event loop, opened when there is none yet (single flight; a failure is tried again).

        Args:
            supervised: the caller will call `stop`; until then it does not close by itself.

        Raises:
            LocalError: the key for session ids must not be used.
            ValueError: something registered cannot work.
        """
        loop = asyncio.get_running_loop()
        runtime = self._by_loop.get(loop)
        if runtime is None:
            task = self._opening.get(loop)
            if task is None:
                task = self._opening[loop] = loop.create_task(self._open(loop))
                task.add_done_callback(lambda _: self._opening.pop(loop, None))
            runtime = await asyncio.shield(task)
        if supervised:
            runtime.on_idle = None
        return runtime

    async def _open(self, loop: asyncio.AbstractEventLoop) -> "Runtime":
        self._forget_closed_loops()
        definition = self.definition
        from millstream._app.runtime import Runtime  # noqa: PLC0415  a program that only registers does without
        from millstream._stores import open_store  # noqa: PLC0415

        store = self._stores.get(loop)
        if store is None:
            store = self._stores[loop] = open_store(definition.store)
        runtime = self._living[loop] = Runtime(definition, store, bind=self.bind, on_idle=self.close_idle)
        try:
            await runtime.open()
        except BaseException:
            self._forget(runtime)
            raise
        if runtime.host.lives_on:
            runtime.on_idle = None
        self._by_loop[loop] = runtime
        definition.listeners.add(runtime)
        return runtime

    def _forget(self, runtime: "Runtime") -> None:
        if self._living.get(runtime.loop) is runtime:
            del self._living[runtime.loop]

    def _forget_closed_loops(self) -> None:
        """A loop that ended without `stop` left its runtime behind."""
        for loop in [each for each in self._stores if each.is_closed()]:
            del self._stores[loop]
            self._living.pop(loop, None)
            runtime = self._by_loop.pop(loop, None)
            if runtime is not None:
                self.definition.listeners.discard(runtime)

    async def stop(self) -> None:
        """Close the runtime of this event loop, if there is one."""
        runtime = self._by_loop.pop(asyncio.get_running_loop(), None)
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
        """Close a runtime that has been idle; the next request opens another."""
        if self._by_loop.get(runtime.loop) is runtime:
            task = runtime.loop.create_task(self.stop())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    @asynccontextmanager
    async def running(self) -> "AsyncGenerator[Runtime, None]":
        """The server runs inside the ``async with`` block, in this event loop."""
        runtime = await self.start(supervised=True)
        try:
            yield runtime
        finally:
            await self.stop()

    @property
    def here(self) -> "Runtime | None":
        """The runtime of this loop, or the one that runs when this isn't a loop's thread."""
        try:
            return self._living.get(asyncio.get_running_loop())
        except RuntimeError:
            return self.current or next(iter(self._living.values()), None)

    @property
    def calls(self) -> int:
        """How many calls run."""
        return sum(runtime.dispatcher.load.running for runtime in self._by_loop.values())

    @property
    def streams(self) -> int:
        """How many event streams are open."""
        return sum(len(runtime.streams) for runtime in self._by_loop.values())

    @property
    def hub(self) -> "Hub | None":
        """The hub of `here`, once it is open."""
        runtime = self.here
        return None if runtime is None else runtime.hub


class Application(Protocol):
    """An ASGI application with runtimes: what `Server` is to the modules that serve it."""

    runtimes: Runtimes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3."""
