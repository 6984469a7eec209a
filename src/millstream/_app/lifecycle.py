"""The life cycle of a server: one `Runtime` for each event loop, opened on demand, and ``mcp.hub``, which opens one."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from msgspec import Struct, field

from millstream._app.definition import LIFESPANS, Bind, Definition
from millstream._protocol.errors import LocalError
from millstream._server.calls.services import Publisher
from millstream._stores.store import Store
from millstream._suggestions import no_attribute
from millstream._tasks import SingleFlight, Tasks

if TYPE_CHECKING:
    from millstream._app.runtime import Runtime
    from millstream.hub import Event, Hub, HubStats


logger = logging.getLogger("millstream")
P = ParamSpec("P")
T = TypeVar("T")

_ISOLATED = (
    "The processes of %r can't share a store (%s), so broadcasts and streamed calls in one don't reach clients of "
    "another, and /readyz reports degraded. Serve with `millstream run --workers N`, whose workers share a store "
    "automatically, or configure one for all: MILLSTREAM_STORE=redis://…"
)


REQUEST, SUPERVISOR = "request", "supervisor"
"""Holders outside of `running` blocks: a request or a publication, and a starter that will call `stop`."""


class LoopRecord(Struct, eq=False):
    """A server in one event loop."""

    store: Store | None = None
    """The store, which outlives stopped runtimes along with session state."""
    isolated: bool = False
    """Whether the server's processes can't share the store."""
    runtime: "Runtime | None" = None
    """The open runtime."""
    living: "Runtime | None" = None
    """The runtime, also while it opens or closes: its lifespan can publish at any time."""
    holders: set[object] = set()
    """Reasons to keep the runtime open: `REQUEST`, `SUPERVISOR`, and an object for each `running` block."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a runtime opens or closes, because two of them can't use a store."""


class Runtimes:
    """A server's runtimes.

    A starter also stops its runtime: our HTTP server, a host's lifespan, or an ``async with``. A runtime that was
    opened by a request, because the server is mounted in another application, lives until the loop ends or the server
    is stopped.
    """

    def __init__(self, definition: Definition) -> None:
        self.definition: Definition = definition
        self.bind: Bind = Bind()
        """Where the server listens, set before it starts."""
        self._records: dict[asyncio.AbstractEventLoop, LoopRecord] = {}
        self._opening: SingleFlight[Runtime] = SingleFlight()
        self._closing = Tasks()
        self.current: Runtime | None = None
        """The runtime that serves HTTP."""

    def record(self) -> LoopRecord:
        """Return the record of this event loop."""
        loop = asyncio.get_running_loop()
        record = self._records.get(loop)
        if record is None:
            record = self._records[loop] = LoopRecord()
        return record

    async def start_supervised(self) -> "Runtime":
        """Return the runtime of this event loop for a caller that will call `stop`. If the caller is canceled before
        the server is ready, nothing else keeps it starting. Raises like `start`.
        """
        is_ready = False
        try:
            runtime = await self.start(supervised=True)
            is_ready = True
            return runtime
        finally:
            if not is_ready:
                await self._opening.cancel("")
                await self.stop()

    async def start(self, *, supervised: bool = False) -> "Runtime":
        """Return the runtime of this event loop, opening it if necessary. Concurrent callers share the attempt.
        Failures are retried.

        Args:
            supervised: Whether the caller will call `stop`. Otherwise, the end of a host's lifespan also closes it.

        Raises:
            LocalError: The key for session ids is invalid, or this is the server's own lifespan.
            ValueError: A registered item can't work.
        """
        record = self.record()
        try:
            while True:
                if supervised or not record.holders:
                    record.holders.add(SUPERVISOR if supervised else REQUEST)
                runtime = await self._get(record)
                if record.runtime is runtime:  # otherwise, the caller that opened it has given up
                    return runtime
        except BaseException:
            if not self._opening.runs(""):  # otherwise, another caller waits for it
                record.holders -= {REQUEST, SUPERVISOR}
            raise

    async def _get(self, record: LoopRecord, *, private: bool = False) -> "Runtime":
        if record.runtime is not None:
            return record.runtime
        # A task of the lifespan can wait until the server is open, but not until it's closed.
        living = self._find_enclosing(record)
        if living is not None and (living.dispatcher.stopping or asyncio.current_task() in LIFESPANS.get()):
            raise LocalError(
                f"{self.definition.name!r} is starting or stopping, and waits for this lifespan. Call your functions "
                "directly, or use the client in a task that the lifespan starts and doesn't wait for."
            )
        return await self._opening.run("", lambda: self._open(record, private))

    def _find_enclosing(self, record: LoopRecord) -> "Runtime | None":
        """Return this loop's runtime if the caller runs in its lifespan, or in a task that the lifespan started."""
        living = record.living
        return living if living is not None and living.lifespan in LIFESPANS.get() else None

    async def _open(self, record: LoopRecord, private: bool) -> "Runtime":
        self._forget_closed_loops()
        definition = self.definition
        from millstream._app.runtime import Runtime  # noqa: PLC0415  a program that only registers does without
        from millstream._stores import open_store, open_with_siblings  # noqa: PLC0415  as above

        # The store outlives a runtime that can't open, so the next attempt finds what was saved. Siblings may take a
        # while to respond, so they're looked for in a thread.
        async with record.lock:
            if record.store is None:
                store = None
                if not private and self.bind.loopback is None:
                    try:
                        store = await asyncio.to_thread(open_with_siblings, definition.store, definition.name)
                    except OSError as exc:
                        record.isolated = True
                        logger.error(_ISOLATED, definition.name, exc)
                record.store = store or open_store(definition.store)
            runtime = record.living = Runtime(definition, record.store, bind=self.bind)
            try:
                await runtime.open()
            except BaseException:
                record.living = None
                raise
        if record.isolated:
            runtime.host.check_ready(lambda: "the server's processes can't share a store", serves=False)
        record.runtime = runtime
        definition.listeners.add(runtime)
        # Each caller may have been canceled.
        runtime.loop.call_soon(self._close_unused, record, runtime)
        return runtime

    def _forget_closed_loops(self) -> None:
        """Remove the runtimes of loops that ended without `stop`."""
        for loop in [each for each in list(self._records) if each.is_closed()]:
            record = self._records.pop(loop, None)
            if record is not None and record.runtime is not None:
                self.definition.listeners.discard(record.runtime)

    async def stop(self) -> None:
        """Close the runtime of this event loop, if there is one."""
        record = self.record()
        record.holders -= {REQUEST, SUPERVISOR}
        if record.runtime is not None:
            await self._close(record, record.runtime)

    def _close(self, record: LoopRecord, runtime: "Runtime") -> Coroutine[Any, Any, None]:
        """Close a runtime, which no caller gets from now on."""
        record.runtime = None
        runtime.dispatcher.stop()
        record.holders -= {REQUEST, SUPERVISOR}
        self.definition.listeners.discard(runtime)
        if self.current is runtime:
            self.current = None
        return self._finish(record, runtime)

    async def _finish(self, record: LoopRecord, runtime: "Runtime") -> None:
        async with record.lock:
            try:
                await runtime.close()
            finally:
                record.living = None

    def _close_unused(self, record: LoopRecord, runtime: "Runtime") -> None:
        """Close a runtime without holders."""
        if record.runtime is runtime and not record.holders:
            self._closing.spawn(self._close(record, runtime))

    @asynccontextmanager
    async def running(self, *, private: bool = True) -> "AsyncGenerator[Runtime, None]":
        """Run the server inside the ``async with`` block, in this event loop. If it's `private`, other processes can't
        serve its clients, so it shares no store with them.

        Blocks may be nested or concurrent. A runtime that was started in another way isn't closed at the end: a tool
        can use a `Client` of the server that it runs in. But a host's lifespan closes one that a request or a
        publication has started. A block in a task of the server's lifespan doesn't keep the server open.
        """
        record = self.record()
        if self._find_enclosing(record) is not None:
            yield await self._get(record, private=private)
            return
        if not private:
            record.holders.discard(REQUEST)
        record.holders.add(block := object())
        try:
            yield await self._get(record, private=private)
        finally:
            record.holders.discard(block)
            if not record.holders:
                await self.stop()

    def _open_runtimes(self) -> "list[Runtime]":
        return [each.runtime for each in list(self._records.values()) if each.runtime is not None]

    @property
    def calls(self) -> int:
        """Return the number of running calls."""
        return sum(runtime.dispatcher.load.running for runtime in self._open_runtimes())

    @property
    def streams(self) -> int:
        """Return the number of open event streams."""
        return sum(len(runtime.streams) for runtime in self._open_runtimes())

    @property
    def hub(self) -> "Hub | None":
        """Return the hub of this loop, or of the running loop if this isn't a loop's thread, when it's open."""
        try:
            record = self._records.get(asyncio.get_running_loop())
            runtime = None if record is None else record.living
        except RuntimeError:
            living = (each.living for each in list(self._records.values()))
            runtime = self.current or next(filter(None, living), None)
        return None if runtime is None else runtime.hub


class ServerApplication(Protocol):
    """An ASGI application with runtimes: `Server`, from the perspective of the modules that serve it."""

    runtimes: Runtimes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3."""


_HUB_NAMES = dict.fromkeys(("subscribe", "on", "receive"), "Use `async with mcp.hub.listen(channel) as events`.") | {
    "broadcast": "Use `await mcp.hub.publish(channel, data)`.",
    "emit": "Use `await mcp.hub.publish(channel, data)`.",
}
"""Name in other libraries -> its replacement."""


def _when_open(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return a method with the same arguments and docstring that opens the hub and calls its method."""

    @wraps(method)
    async def call(self: "HubAccess", /, *args: P.args, **options: P.kwargs) -> T:
        hub = await self._open()  # pyright: ignore[reportPrivateUsage]  it's a method of that class
        found: T = await getattr(hub, method.__name__)(*args, **options)
        return found

    return call


class HubAccess:
    """The hub for programs (``mcp.hub``). Its methods take the same arguments and raise the same errors as `Hub`.

    It's also usable before the first request, and in the lifespan of the server or the host application. The first use
    opens the hub.
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

    publish: Final = _when_open(Publisher.publish)
    send: Final = _when_open(Publisher.send)
    presence: Final = _when_open(Publisher.presence)
    members: Final = _when_open(Publisher.members)
    history: Final = _when_open(Publisher.history)

    async def listen(self, pattern: str, *, name: str = "") -> "AsyncGenerator[Event, None]":
        """Yield the events of a channel or pattern (see `Hub.listen`)."""
        async with aclosing((await self._open()).listen(pattern, name=name)) as events:
            async for event in events:
                yield event

    def on_stop(self, hook: Callable[[], Awaitable[object]]) -> None:
        """Await a function before the hub's streams close (see `Hub.on_stop`). Call this in the lifespan.

        Raises:
            LocalError: The hub hasn't been opened yet.
        """
        self._require_open().on_stop(hook)

    def stats(self) -> "HubStats":
        """Return the statistics of this worker's part of the hub.

        Raises:
            LocalError: The hub hasn't been opened yet.
        """
        return self._require_open().stats()

    def _require_open(self) -> "Hub":
        hub = self._runtimes.hub
        if hub is None:
            raise LocalError("The hub isn't open here yet. The first request or publication opens it.")
        return hub


def no_hub(name: str) -> LocalError:
    """Return the error for a program that uses the hub of a server without one."""
    return LocalError(f'{name!r} serves no hub. Write Server({name!r}, serve="hub"), or run it with --serve hub.')
