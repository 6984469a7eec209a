"""What runs: one `Runtime` for each event loop that a server answers in.

It opens the user's lifespan, builds services, dispatcher and what is served beside MCP, and owns every task of these.
It knows how to open, drain and close; when, is the business of `runtimes`.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any

from millstream._app.definition import Definition, on_each_worker
from millstream._app.here_only import Bind, HereOnly
from millstream._app.limited import Limited
from millstream._app.parts import make_around, make_note, make_observer, metrics_of_machine, open_feed
from millstream._app.replicas import Replicas
from millstream._app.sign_in_methods import make_guard
from millstream._http.hosts import HostPolicy
from millstream._server.calls.changes import Change, Changes
from millstream._server.calls.keys import agree
from millstream._server.calls.services import Services
from millstream._server.dispatch import Dispatcher
from millstream._server.features.finding import check_completers
from millstream._server.handlers import install
from millstream._server.load import halt, wait_for
from millstream._server.sweep import Sweep
from millstream._stores.base import Store
from millstream._stores.health import StoreHealth
from millstream._transports.open_streams import OpenStreams

if TYPE_CHECKING:
    from millstream._app.looking import Live
    from millstream._app.routes import Routes
    from millstream._server.observing.observer import Observer
    from millstream._transports.websocket.route import WebSocketRoute
    from millstream.auth._guard import Guard
    from millstream.hub import Hub

IDLE_SECONDS = 60.0
HALT_SECONDS = 1.0
"""What calls that are stopped at the end of their time have to end."""


class Runtime:
    """One server, running in one event loop."""

    def __init__(
        self, definition: Definition, store: Store, *, bind: Bind, on_idle: "Callable[[Runtime], None] | None" = None
    ) -> None:
        """Nothing runs before `open`.

        Args:
            definition: what the server is.
            store: of this loop; opened and closed here.
            bind: where it listens.
            on_idle: called when nobody has used it for a minute; None where somebody else closes it.
        """
        # Configuration
        self.definition = definition
        self.bind = bind
        self.on_idle = on_idle
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.thread: int = get_ident()
        """The thread of the loop: no other loop runs there while this one does."""
        # Process
        self.draining: bool = False
        self.store = store
        self.store_health: StoreHealth = StoreHealth(definition.store.partition(":")[0], store)
        self.services: Services
        self.replicas: Replicas
        self.dispatcher: Dispatcher
        self.streams: OpenStreams
        self.sweep: Sweep
        self.hub: Hub | None = None
        self.observer: Observer | None = None
        self.render_metrics: Callable[[], Awaitable[bytes]] | None = None
        self.websocket: WebSocketRoute | None = None
        self.live: Live | None = None
        self.policy: HostPolicy
        self.guard: Guard | None = None
        """In front of every path, where callers sign in."""
        self.limited: Limited = Limited(definition, store)
        self.routes: Routes | None = None
        self.adapter: Any = None
        """The ASGI adapter, once HTTP is served."""
        self._lifespans: dict[Definition, Any] = {}
        """What the lifespan of this server, and of each that is mounted on it, yielded."""
        self._stack = contextlib.AsyncExitStack()
        self._busy = 0.0
        self._requests = 0

    async def open(self) -> "Runtime":
        """Open everything; what was opened is closed again when a step fails.

        Raises:
            LocalError: the key for session ids must not be used.
            ValueError: something registered cannot work.
        """
        definition, settings = self.definition, self.definition.settings
        async with self._stack:
            await self.store.open()
            self._stack.push_async_callback(self.store.close)
            self._stack.push_async_callback(self.limited.close)
            secrets = await agree(self.store, settings.key) if self.store.shared else None
            self.services = Services(settings, self.store, Changes(), secrets)
            self._stack.push_async_callback(self.services.close)
            self._open_guard()
            self.replicas = Replicas(definition, self.services)
            self._stack.push_async_callback(self.replicas.close)
            self.services.open()
            self.streams = OpenStreams(
                max_streams=settings.max_streams,
                max_per_owner=settings.max_streams_per_principal,
                max_age=settings.stream_age,
            )
            self.dispatcher = Dispatcher(
                definition.registry, self.services, info=definition.describe(), instructions=definition.instructions
            )
            install(self.dispatcher)
            self.limited.gate(self.dispatcher)
            self.dispatcher.around = make_around(definition)
            self.services.lifespan_of = lambda home: home.nearest(self._lifespans)
            self.services.overrides_of = lambda home: home.overriding()
            self.sweep = Sweep(
                self.dispatcher,
                beat=self.streams.beat,
                touch=lambda: self.streams.touch(self.store.log, settings.log_ttl),
                each_tick=self._each_second,
            )
            await self._open_hub()  # around the lifespan, which may publish
            await self._open_lifespan(definition)
            self.dispatcher.instruct(definition.instructions)  # the lifespan may have set them
            check_completers(definition.registry)  # now, since the lifespan may register too
            await self._open_parts()
            await self.replicas.join()
            self._busy = self.sweep.clock()
            self.sweep.open()
            self._stack = self._stack.pop_all()
        return self

    def _open_guard(self) -> None:
        guard = self.guard = make_guard(self.definition, self.services)
        if guard is not None:
            self._stack.callback(guard.close)
            self.services.lacking = guard.challenges.refuse
            self.limited.guard(guard)

    async def _open_lifespan(self, definition: Definition) -> None:
        """A server's lifespan, then those of what is mounted on it; they close in the opposite order."""
        if definition.lifespan is not None and definition not in self._lifespans:
            with on_each_worker():
                self._lifespans[definition] = await self._stack.enter_async_context(definition.lifespan())
        for part in definition.mounted:
            await self._open_lifespan(part)

    async def _open_hub(self) -> None:
        if "hub" not in self.definition.parts:
            return
        from millstream._app.streamed import Streamed  # noqa: PLC0415  only where a hub is served
        from millstream.hub import Hub, HubLimits  # noqa: PLC0415

        hub = Hub(self.store, HubLimits.of(self.definition.settings), authorize=self.definition.authorize_channel)
        await hub.open()
        self.hub = self.services.hub = hub
        self._stack.push_async_callback(hub.close)
        self.services.streamed = Streamed(hub).attach

    async def _open_parts(self) -> None:
        """Whoever observes, where they are served."""
        await self._open_observer()
        if self.definition.settings.audit_log:
            from millstream._app.auditing import Audit  # noqa: PLC0415  only where somebody wants it

            self._stack.callback(Audit.open(self.definition.settings.audit_log, self.dispatcher, self.guard).close)

    async def _open_observer(self) -> None:
        self.observer = observer = make_observer(
            self.definition, streams=self.streams, health=self.store_health, hub=self.hub
        )
        if observer is None:
            return
        self.limited.show(observer)
        self.dispatcher.observe, self.dispatcher.begin = observer.__call__, observer.begin
        self.services.note = make_note(observer)
        self._stack.callback(observer.close)
        self._stack.callback(self.loop.create_task(observer.run()).cancel)
        if "metrics" in self.definition.parts:
            self.render_metrics = await metrics_of_machine(observer.registry, self._stack)
        if self.hub is not None and "web" in self.definition.parts:
            self.live = open_feed(
                self.definition, self.dispatcher, observer, self.hub, self._stack,
                streams=self.streams, health=self.store_health,
            )  # fmt: skip

    def serve_http(self) -> "Routes":
        """The HTTP side, made when it is first needed: stdio does without."""
        if self.routes is None:
            from millstream._app.probes import Probes  # noqa: PLC0415
            from millstream._app.protection import Protection, added_paths, own_paths  # noqa: PLC0415
            from millstream._app.routes import Routes  # noqa: PLC0415

            definition, settings = self.definition, self.definition.settings
            here_only, hooked = HereOnly(self.bind, self.services.note), definition.authorize_channel is not None
            own, added = own_paths(self.guard, definition, self.services), added_paths(definition)
            protection = Protection(self.guard, here_only, settings.mcp_paths, hooked=hooked, own=own, added=added)
            self.policy = protection.policy(settings, loopback_bind=self.bind.loopback)
            if self.hub is not None:
                from millstream._transports.websocket.route import WebSocketRoute  # noqa: PLC0415

                self.websocket = WebSocketRoute(
                    self.dispatcher, self.hub, self.policy, self.streams,
                    guard=self.guard, may_publish=protection.may_publish,
                )  # fmt: skip
            probes = Probes(
                definition, self.dispatcher, self.streams, self.sweep, self.store_health,
                connections=self.bind.connections, seats=self.bind.seats, hub=self.hub, observer=self.observer,
                draining=lambda: self.draining,
            )  # fmt: skip
            self.routes = Routes(
                definition.parts, self.dispatcher, self.streams, self.store_health, protection, probes,
                hub=self.hub, render_metrics=self.render_metrics, websocket=self.websocket, live=self.live,
            )  # fmt: skip
        return self.routes

    @property
    def shared(self) -> bool:
        """Other workers serve the same clients, and this one has heard of them."""
        return self.store.shared and not self.replicas.alone

    def emit(self, change: Change) -> None:
        """Tell a change to whoever listens in this loop, from whatever thread, and to the other workers."""
        if change.kind == "tools":
            self.limited.gate(self.dispatcher)
        self._here(self.replicas.emit, change)

    def altered(self, kind: str, key: str, how: str) -> None:
        """Have the other workers remove or switch an item, too."""
        self._here(self.replicas.altered, kind, key, how)

    def _here(self, work: Callable[..., None], *arguments: object) -> None:
        if get_ident() == self.thread and self.loop.is_running():
            work(*arguments)
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(work, *arguments)

    async def close(self) -> None:
        """End every stream and task, then the lifespan and the store."""
        self.dispatcher.stopping = True
        await self.sweep.close()
        self._end_subscriptions()
        calls = self.dispatcher.calls
        listening = [call for call in calls if call.method == "subscriptions/listen"]
        await wait_for(listening, calls, self.sweep.clock, 1.0)
        self.streams.close()
        if self.websocket is not None:
            await self.websocket.close(1.0)
        await self._stack.aclose()

    async def drain(self, seconds: float) -> None:
        """Stop taking work: subscriptions end with their result, calls finish within the time, streams close.

        Calls that don't finish are stopped, and answered with an error.
        """
        self.draining = self.dispatcher.stopping = True
        clock = self.sweep.clock
        deadline = clock() + seconds
        self._end_subscriptions()
        while self.dispatcher.calls and clock() < deadline:
            # A last request of a connection may have been another subscription.
            await asyncio.sleep(0.01)
            self._end_subscriptions()
        await halt(self.dispatcher.calls, clock, HALT_SECONDS)
        self.streams.close()
        if self.websocket is not None:
            await self.websocket.close(max(1.0, deadline - self.sweep.clock()))

    def _end_subscriptions(self) -> None:
        for end in list(self.services.endings):
            end()

    def _each_second(self, now: float) -> None:
        if self.guard is not None and self.guard.refresh(self.streams.end_opened):
            holds = self.guard.holds
            self.streams.end_of(lambda owner: not holds(owner))
        self.streams.end_expired()
        self._watch_idleness(now)

    def _watch_idleness(self, now: float) -> None:
        requests = 0 if self.adapter is None else self.adapter.requests
        if self.on_idle is None or self.dispatcher.calls or len(self.streams) or requests != self._requests:
            self._busy, self._requests = now, requests
        elif now - self._busy >= IDLE_SECONDS:
            self.loop.call_soon(self.on_idle, self)
