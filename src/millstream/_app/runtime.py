"""A running server in one event loop, and the replication of its changes to the other workers."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

from millstream._app.definition import SERVABLE, Bind, Definition, make_parts
from millstream._http.hosts import HostPolicy
from millstream._parts import PartHost, order_parts
from millstream._server.address import Address
from millstream._server.calls import agree
from millstream._server.calls.services import ANY_UPDATE, ChangeFeed, ServerChange, Services
from millstream._server.dispatch import Dispatcher
from millstream._server.features import Hooks
from millstream._server.features.tools import NAMES_THAT_WORK, Tool, works_everywhere
from millstream._server.handlers import Handlers, MiddlewareChain
from millstream._server.peers import (
    PAUSE,
    ItemRemoval,
    ItemSwitch,
    MissedMessages,
    ResourceUpdate,
    WorkerGreeting,
    WorkerStart,
)
from millstream._server.sweep import Sweep
from millstream._server.worker_queries import WorkerQueries
from millstream._stores.health import StoreHealth
from millstream._stores.store import Store
from millstream._tasks import Tasks
from millstream._transports.open_streams import OpenStreams
from millstream._transports.streamable import TTL as LOG_TTL
from millstream._troubles import LogOnce

if TYPE_CHECKING:
    from millstream._app.routes import Routes
    from millstream._http.server import Endpoints
    from millstream.auth._guard import AuthGuard
    from millstream.hub import Hub


logger = logging.getLogger("millstream")


class Replicas:
    """This worker's part of the replication: disabled and removed items, resource updates, and the secret.

    A worker has its own registry, filled by its program. When a list changes, workers notify their own clients.
    Messages between workers are therefore needed for changes that a single worker knows about, such as a removed item
    or an updated resource.
    """

    def __init__(self, definition: Definition, services: Services) -> None:
        self._definition = definition
        self._services = services
        self._others: set[str] = set()
        """Known workers."""
        self._added: list[str] = []
        """Items that this worker's program added while it ran alone."""
        self._receiving = False
        """Set while a change from another worker is applied, so that it isn't sent again."""
        self.tasks: Tasks = Tasks()
        peers = services.peers
        self._broadcast_soon = peers.broadcast_soon
        peers.on(
            ResourceUpdate,
            lambda message, worker: services.changes.emit(ServerChange("updated", message.uri)),
            own=True,
        )
        peers.on(ItemRemoval, self._remove)
        peers.on(ItemSwitch, self._switch)
        peers.on(WorkerStart, self._welcome)
        peers.on(MissedMessages, lambda message, worker: self._inform(worker))
        peers.on(WorkerGreeting, lambda message, worker: self._others.add(worker))
        peers.on_workers(self._count)
        peers.on_interruption(partial(self.tasks.spawn_once, self._catch_up))
        peers.on_loss(partial(self.tasks.spawn_once, self._renew))

    async def join(self) -> None:
        """Request the list of removed items from the other workers."""
        if not await self._services.peers.broadcast(WorkerStart()):
            self._broadcast_soon(WorkerStart())

    @property
    def others(self) -> frozenset[str]:
        """The other workers that are known to serve."""
        return frozenset(self._others)

    async def _count(self) -> None:
        for worker in list(self._others):
            if not await self._services.store.workers.alive(worker):
                self._others.discard(worker)

    # Local changes

    def emit(self, change: ServerChange) -> None:
        """Pass a change to the clients of this worker, and a resource update to other workers as well.

        With a shared store, this worker receives the update together with the other workers, after earlier
        subscriptions on other workers.
        """
        if change.uri and self._services.peers.shared:
            self._broadcast_soon(ResourceUpdate(change.uri))
        else:
            self._services.changes.emit(change)

    def on_change(self, kind: str, key: str, how: str) -> None:
        """Make the other workers remove an item or turn it ``on`` or ``off``, and record items that were ``added``."""
        if how == "added":
            self._added.append(key)
        elif self._receiving:
            return
        elif how == "removed":
            self._definition.switched.pop((kind, key), None)
            self._definition.removed[message := ItemRemoval(kind, key)] = None
            self._broadcast_soon(message)
        else:
            known = self._definition.switched.get((kind, key))
            after = 0 if known is None else known.at + 1
            switched = ItemSwitch(kind, key, how == "on", max(self._services.peers.stamp(), after))
            self._broadcast_soon(switched)
            self._apply(switched)  # after the change in a thread, another worker's may have arrived

    # Remote changes

    async def _catch_up(self) -> None:
        """Resynchronize after messages may have been lost: assume that any resource has changed, any item was removed,
        and a worker has joined.
        """
        await asyncio.sleep(PAUSE)  # several parts of a store can report the same loss
        self._services.changes.emit(ANY_UPDATE)
        self._broadcast_removals()
        self._broadcast_soon(MissedMessages())

    def _remove(self, message: ItemRemoval, worker: str) -> None:
        if not self._definition.registry.has(message.kind, message.key):
            return
        self._definition.switched.pop((message.kind, message.key), None)
        self._definition.removed[message] = None
        self._receiving = True
        try:
            self._definition.remove(message.kind, message.key)
        finally:
            self._receiving = False

    def _switch(self, message: ItemSwitch, worker: str) -> None:
        known = self._definition.switched.get((message.kind, message.key))
        if known is None or (known.at, known.on) < (message.at, message.on):
            self._apply(message)

    def _apply(self, message: ItemSwitch) -> None:
        """Record the state of an item and apply it."""
        registry = self._definition.registry
        if not registry.has(message.kind, message.key):
            return
        self._definition.switched[message.kind, message.key] = message
        if message.on != (message.key in registry.disabled[message.kind]):
            return
        self._receiving = True
        try:
            self._definition.switch(message.kind, message.key, on=message.on)
        finally:
            self._receiving = False

    def _welcome(self, message: WorkerStart, worker: str) -> None:
        if self._added:
            logger.warning(
                "Another worker started without the items that this one registered while running: %s. Register them "
                "before the server runs, or in its lifespan.",
                ", ".join(self._added),
            )
        self._inform(worker)

    def _inform(self, worker: str) -> None:
        """Send the missing changes to an outdated worker. All workers receive them, but the others ignore them."""
        self._others.add(worker)
        self._broadcast_soon(WorkerGreeting())
        self._broadcast_removals()

    def _broadcast_removals(self) -> None:
        for removed in self._definition.removed:
            if not self._definition.registry.has(removed.kind, removed.key):
                self._broadcast_soon(removed)
        for switched in self._definition.switched.values():
            self._broadcast_soon(switched)

    # Secret

    async def _renew(self) -> None:
        services = self._services
        trouble = LogOnce(
            services.store.troubles,
            "The secret can't be written to the store, and will be retried",
            "The secret is in the store.",
            catches=Exception,
        )
        while services.store.shared:
            with trouble:
                services.use(await agree(services.store, services.settings.secret_key, services.secrets))
                return
            await asyncio.sleep(PAUSE)


HALT_SECONDS = 1.0
"""Seconds for stopped calls to end."""


class Runtime:
    """One server, running in one event loop.

    It opens the store, the dispatcher, and the parts of a server, and owns all of their tasks. It can open, drain, and
    close. `lifecycle` decides when.
    """

    def __init__(self, definition: Definition, store: Store, *, bind: Bind) -> None:
        """Create the runtime; `open` starts it.

        Args:
            definition: Definition of the server.
            store: Store for this loop, opened and closed here.
            bind: The server's listen address.
        """
        self.definition = definition
        self.bind = bind
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.thread: int = get_ident()
        """The thread of the loop. No other loop runs in it at the same time."""
        self.draining: bool = False
        self.store = store
        self.store_health: StoreHealth = StoreHealth(definition.store.partition(":")[0], store, troubles=store.troubles)
        self.services: Services
        self.replicas: Replicas
        self.dispatcher: Dispatcher
        self.streams: OpenStreams
        self.sweep: Sweep
        self.host: PartHost
        self.policy: HostPolicy
        self.routes: Routes | None = None
        self.adapter: Any = None
        """The ASGI adapter, once HTTP is served."""
        self.endpoints: Endpoints | None = None
        """The endpoints for our own server, once HTTP is served."""
        self._stack = contextlib.AsyncExitStack()

    async def open(self) -> "Runtime":
        """Open everything. If a step fails, close everything that was already opened.

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
            self._stack.push_async_callback(self.replicas.tasks.close)
            self.services.open()
            self.services.overrides_of = lambda home: home.all_overrides()
            self.streams = OpenStreams(self.services.streams, max_age=settings.max_stream_seconds)
            self.services.addresses = definition.addresses
            self.services.server_name = definition.name
            self.dispatcher = Dispatcher(
                definition.registry,
                self.services,
                info=definition.describe(),
                instructions=definition.instructions,
                address=Address.main(settings),
            )
            for address in self.services.addresses:
                if address.name:
                    self.dispatcher.branch(definition.make_registry(), address)
            _warn_unclear(definition.registry.tools.values(), each=settings.show_errors)
            if definition.mounted:  # otherwise, registering each name has already warned
                _warn_of_names([name for name in definition.registry.tools if not works_everywhere(name)])
            self.sweep = Sweep(self.dispatcher)
            self.sweep.beats += (self.streams.beat, self._extend_logs)
            self.host = host = PartHost(
                self.dispatcher,
                self.streams,
                self.sweep,
                self.store_health,
                draining=lambda: self.draining,
                queries=WorkerQueries(self.services.peers, lambda: self.replicas.others),
            )
            host.has_one_client = self.bind.one_client
            host.sets_change = definition.live is not None
            hooks = (definition.hooks or Hooks(definition)) if definition.has_wide_hooks() else None

            def set_up(dispatcher: Dispatcher) -> None:
                Handlers(dispatcher)
                dispatcher.around = None if hooks is None else MiddlewareChain(hooks, dispatcher.registry)

            host.at_each_address(set_up)
            self._stack.push_async_callback(host.close)
            await self._stack.enter_async_context(host.stack)
            self._stack.push_async_callback(host.background.close, settings.drain_timeout)
            for part in parts:
                await part.open(host)
                host.stack.push_async_callback(part.close)
            self.sweep.ticks.append(lambda now: self.streams.end_expired())
            self.sweep.ticks.append(lambda now: self.store.troubles.end_old())
            await self.replicas.join()
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
            from millstream._app.routes import LocalOnly, Routes  # noqa: PLC0415

            host, settings, bind = self.host, self.definition.settings, self.bind
            here_only = LocalOnly(bind.loopback, self.services.note)
            host.is_local = here_only.allows
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
                    text = "Connections closed because the client left too many bytes of replies unread."
                    host.metrics.read("counter", "millstream_connections_cut_total", text, lambda: {(): state.cut})
            host.report("workers", lambda: list(bind.workers) or None)
            for register in host.http:
                register()
            if host.guard is not None:
                host.guard.limits = self.services.request_limits
            self.routes = Routes(
                host.routes,
                guard=host.guard,
                here_only=here_only,
                limits=self.services.request_limits,
                sockets=bool(host.sockets),
                addresses=self.services.addresses,
                title=self.definition.title,
            )
            self.policy.show = self.routes.refusal_for
            host.routes.watchers.append(self.routes.update)
        return self.routes

    @property
    def hub(self) -> "Hub | None":
        """The hub, if it's served and open."""
        return self.host.hub if hasattr(self, "host") else None

    @property
    def lifespan(self) -> asyncio.Task[None] | None:
        """The task of the program's lifespans, once they open."""
        return self.host.lifespan if hasattr(self, "host") else None

    @property
    def guard(self) -> "AuthGuard | None":
        """The guard in front of paths that aren't public, if callers have to sign in."""
        return self.host.guard

    @property
    def shared(self) -> bool:
        """Whether other workers are known to serve the same clients."""
        return self.store.shared and bool(self.replicas.others)

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
        """End streams and tasks, then the lifespan and the store."""
        self.dispatcher.stop()
        await self.dispatcher.notification_tasks.close(1.0)
        await self.sweep.close()
        self._end_subscriptions()
        calls, clock = self.dispatcher.calls, self.sweep.clock
        ending, until = [call for call in calls if call.long_lived], clock() + HALT_SECONDS
        while any(each in calls for each in ending) and clock() < until:  # noqa: ASYNC110  no event signals it
            await asyncio.sleep(0.01)
        await self._close_streams(clock())
        await self._stack.aclose()

    async def drain(self, seconds: float) -> None:
        """Stop accepting work: end subscriptions with their result, let calls finish within `seconds`, and close
        streams.

        Calls that don't finish are stopped with an error.
        """
        self.draining = True
        self.dispatcher.stop()
        calls, clock = self.dispatcher.calls, self.sweep.clock
        deadline = clock() + seconds
        self._end_subscriptions()
        await self.services.parked.drain(min(1.0, seconds))
        while (
            calls or self.services.idempotent or self.streams.lines
        ) and clock() < deadline:  # the last answers may wait for the store
            # The last request of a connection may have been another subscription.
            await asyncio.sleep(0.01)
            self._end_subscriptions()
        until = clock() + HALT_SECONDS
        while calls and clock() < until:  # a call that doesn't end, or whose answer can't be written, is abandoned
            for call in list(calls):
                call.halt()
            await asyncio.sleep(0.01)
        await self._close_streams(deadline)

    async def _close_streams(self, deadline: float) -> None:
        clock = self.sweep.clock
        if self.hub is not None:
            await self.hub.run_stop_hooks(max(1.0, deadline - clock()))
        self.streams.close()
        for drain in self.host.drains:
            await drain(max(1.0, deadline - clock()))

    def _end_subscriptions(self) -> None:
        for end in list(self.services.endings):
            end()

    def _extend_logs(self) -> None:
        self.sweep.run_in_background(self._touch_logs)

    async def _touch_logs(self) -> None:
        await self.streams.touch(self.store.log, LOG_TTL)


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
            f"; the same applies to {more} other {'tool' if more == 1 else 'tools'} (--log-level debug)" if more else ""
        )
        logger.info("%s: %s%s", name, text, others)


def _warn_of_names(names: Sequence[str]) -> None:
    """Log tool names, with the prefixes of mounted servers, that some clients reject."""
    if names:
        others = f", and {len(names) - 1:,} more," if len(names) > 1 else ""
        logger.warning(
            "The tool name %r%s won't work with every client: %s, including the prefix of a mounted server",
            names[0],
            others,
            NAMES_THAT_WORK,
        )
