"""A running server: one `Runtime` for each event loop.

It opens the store, the dispatcher, and the parts of a server, and owns all of their tasks. It can open, drain, and
close; `runtimes` decides when.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import TYPE_CHECKING, Any

from millstream._app.definition import Definition
from millstream._app.local_only import Bind, LocalOnly
from millstream._app.part_table import SERVABLE, make_parts
from millstream._app.replicas import Replicas
from millstream._http.hosts import HostPolicy
from millstream._parts import Host, order_parts
from millstream._server.call_log import TTL as LOG_TTL
from millstream._server.calls.keys import agree
from millstream._server.calls.services import ChangeFeed, ServerChange, Services
from millstream._server.dispatch import Dispatcher
from millstream._server.features.hooks import Hooks
from millstream._server.features.tools import Tool
from millstream._server.handlers import MiddlewareChain
from millstream._server.listen import install
from millstream._server.load import stop_calls, wait_for
from millstream._server.sweep import Sweep
from millstream._stores.base import Store
from millstream._stores.health import StoreHealth
from millstream._transports.open_streams import OpenStreams

if TYPE_CHECKING:
    from millstream._app.routes import Routes
    from millstream._server.observability.observer import Observer
    from millstream.auth._guard import AuthGuard
    from millstream.hub import Hub

logger = logging.getLogger("millstream")

IDLE_SECONDS = 60.0
HALT_SECONDS = 1.0
"""Seconds for calls to end once they are stopped."""


class Runtime:
    """One server, running in one event loop."""

    def __init__(
        self, definition: Definition, store: Store, *, bind: Bind, on_idle: "Callable[[Runtime], None] | None" = None
    ) -> None:
        """Create the runtime; `open` starts it.

        Args:
            definition: Definition of the server.
            store: Store for this loop, opened and closed here.
            bind: Where the server listens.
            on_idle: Called when the server was idle for a minute; None if its starter closes it.
        """
        # Configuration
        self.definition = definition
        self.bind = bind
        self.on_idle = on_idle
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.thread: int = get_ident()
        """The thread of the loop, in which no other loop runs at the same time."""
        # State
        self.draining: bool = False
        self.store = store
        self.store_health: StoreHealth = StoreHealth(definition.store.partition(":")[0], store)
        self.services: Services
        self.replicas: Replicas
        self.dispatcher: Dispatcher
        self.streams: OpenStreams
        self.sweep: Sweep
        self.host: Host
        self.policy: HostPolicy
        self.routes: Routes | None = None
        self.adapter: Any = None
        """The ASGI adapter, once HTTP is served."""
        self._stack = contextlib.AsyncExitStack()
        self._busy = 0.0
        self._requests = 0

    async def open(self) -> "Runtime":
        """Open everything. If a step fails, what was opened is closed again.

        Raises:
            LocalError: The key for session ids is invalid.
            ValueError: A registered item can't work.
        """
        definition, settings = self.definition, self.definition.settings
        parts = order_parts(make_parts(definition), selectable=SERVABLE)
        async with self._stack:
            await self.store.open()
            self._stack.push_async_callback(self.store.close)
            secrets = await agree(self.store, settings.secret_key) if self.store.shared else None
            self.services = Services(settings, self.store, ChangeFeed(), secrets)
            self._stack.push_async_callback(self.services.close)
            self.replicas = Replicas(definition, self.services)
            self._stack.push_async_callback(self.replicas.close)
            self.services.open()
            self.services.overrides_of = lambda home: home.all_overrides()
            self.streams = OpenStreams(
                max_streams=settings.max_streams,
                max_per_owner=self.services.streams.each,
                max_age=settings.max_stream_seconds,
            )
            self.dispatcher = Dispatcher(
                definition.registry, self.services, info=definition.describe(), instructions=definition.instructions
            )
            install(self.dispatcher)
            _warn_unclear(definition.registry.tools.values(), each=settings.show_errors)
            self.dispatcher.around = _wide_middleware(definition)
            self.sweep = Sweep(
                self.dispatcher,
                beat=self.streams.beat,
                touch=lambda: self.streams.touch(self.store.log, LOG_TTL),
                each_tick=self._each_second,
            )
            self.host = host = Host(
                self.dispatcher, self.streams, self.sweep, self.store_health, draining=lambda: self.draining
            )
            self._stack.push_async_callback(host.close)
            await self._stack.enter_async_context(host.stack)
            for part in parts:
                await part.open(host)
                host.stack.push_async_callback(part.close)
            await self.replicas.join()
            self._busy = self.sweep.clock()
            self.sweep.open()
            self._stack = self._stack.pop_all()
        return self

    def serve_http(self) -> "Routes":
        """Return the routes, created on first use because stdio doesn't need them.

        Raises:
            LocalError: A mounted server requires sign-in, but this one has none.
            ValueError: Two routes have the same path.
        """
        if self.routes is None:
            from millstream._app.routes import Routes  # noqa: PLC0415

            host, settings, bind = self.host, self.definition.settings, self.bind
            here_only = LocalOnly(bind, self.services.note)
            host.is_local, host.own_server = here_only.allows, bind.loopback is not None
            self.policy = host.policy = HostPolicy(
                settings.allowed_hosts,
                settings.allowed_origins,
                loopback_bind=bind.loopback,
                shared=host.shared_paths,
                cors=settings.cors,
                note=lambda status: self.services.note("", "http", status=str(status)),
            )
            state = bind.state
            if state is not None:
                host.report("connections", lambda: len(state.connections))
                if host.metrics is not None:
                    text = "Connections cut because the client left too many bytes of replies unread."
                    host.metrics.read("counter", "millstream_connections_cut_total", text, lambda: {(): state.cut})
            host.report("workers", lambda: list(bind.seats) or None)
            for register in host.http:
                register()
            self.routes = Routes(
                host.routes,
                guard=host.guard,
                here_only=here_only,
                gates=host.request_gates,
                sockets=bool(host.sockets),
                mcp_path=settings.path,
                title=self.definition.title,
            )
            self.policy.show = self.routes.refusal_for
        return self.routes

    @property
    def hub(self) -> "Hub | None":
        """The hub, if it's served and open."""
        return self.host.hub if hasattr(self, "host") else None

    @property
    def guard(self) -> "AuthGuard | None":
        """The guard in front of every path, if callers have to sign in."""
        return self.host.guard

    @property
    def observer(self) -> "Observer | None":
        """The observer of calls, if there's one."""
        return self.host.observer

    @property
    def shared(self) -> bool:
        """Whether other workers are known to serve the same clients."""
        return self.store.shared and not self.replicas.alone

    def emit(self, change: ServerChange) -> None:
        """Pass a change to the clients of this loop, from any thread, and to other workers."""
        if not change.uri:
            for listener in self.host.changes:
                listener(change.kind)
        self._here(self.replicas.emit, change)

    def on_change(self, kind: str, key: str, how: str) -> None:
        """Have other workers remove or switch an item as well."""
        self._here(self.replicas.on_change, kind, key, how)

    def _here(self, work: Callable[..., None], *arguments: object) -> None:
        if get_ident() == self.thread and self.loop.is_running():
            work(*arguments)
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(work, *arguments)

    async def close(self) -> None:
        """End every stream and task, then the lifespan and the store."""
        self.dispatcher.stopping = True
        self.dispatcher.notifications.close()
        await self.sweep.close()
        self._end_subscriptions()
        calls = self.dispatcher.calls
        listening = [call for call in calls if call.long_lived or call.method == "subscriptions/listen"]
        await wait_for(listening, calls, self.sweep.clock, 1.0)
        self.streams.close()
        for drain in self.host.drains:
            await drain(1.0)
        await self._stack.aclose()

    async def drain(self, seconds: float) -> None:
        """Stop accepting work: end subscriptions with their result, let calls finish within `seconds`, and close
        streams.

        Calls that don't finish are stopped with an error.
        """
        self.draining = self.dispatcher.stopping = True
        clock = self.sweep.clock
        deadline = clock() + seconds
        self._end_subscriptions()
        while self.dispatcher.calls and clock() < deadline:
            # The last request of a connection may have been another subscription.
            await asyncio.sleep(0.01)
            self._end_subscriptions()
        await stop_calls(self.dispatcher.calls, clock, HALT_SECONDS)
        self.streams.close()
        for drain in self.host.drains:
            await drain(max(1.0, deadline - self.sweep.clock()))

    def _end_subscriptions(self) -> None:
        for end in list(self.services.endings):
            end()

    def _each_second(self, now: float) -> None:
        for work in self.host.sweeps:
            work(now)
        self.streams.end_expired()
        self._watch_idleness(now)

    def _watch_idleness(self, now: float) -> None:
        requests = 0 if self.adapter is None else self.adapter.requests
        if self.on_idle is None or self.dispatcher.calls or len(self.streams) or requests != self._requests:
            self._busy, self._requests = now, requests
        elif now - self._busy >= IDLE_SECONDS:
            self.loop.call_soon(self.on_idle, self)


def _warn_unclear(tools: Iterable[Tool], *, each: bool) -> None:
    """Log tools without types or a docstring, which models can't use well.

    Args:
        tools: Tools of the server.
        each: Whether to log one warning per tool, as in development, instead of one for all.
    """
    unclear = [(tool.name, tool.unclear) for tool in tools if tool.unclear]
    for name, text in unclear if each else unclear[1:]:
        logger.log(logging.WARNING if each else logging.DEBUG, "%s: %s", name, text)
    if unclear and not each:
        (name, text), more = unclear[0], len(unclear) - 1
        others = (
            f"; the same goes for {more} other {'tool' if more == 1 else 'tools'} (--log-level debug)" if more else ""
        )
        logger.info("%s: %s%s", name, text, others)


def _wide_middleware(definition: Definition) -> MiddlewareChain | None:
    """Return the middleware for messages and lists; None if neither this server nor one mounted on it has any."""
    if not definition.has_wide_hooks():
        return None
    return MiddlewareChain(definition.hooks or Hooks(definition), definition.registry)
