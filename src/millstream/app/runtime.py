"""What runs: one `Runtime` for each event loop that a server answers in (design §5).

It opens the store and the user's lifespan, builds services, dispatcher and transports, and owns the one periodic
task: streams are kept alive, silent calls become streams, and a server that nobody shut down closes after it has
been idle.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

from millstream.app.parts import make_feed, make_note, make_observer, make_websocket, open_hub
from millstream.http.hosts import HostPolicy
from millstream.http.message import TEXT_HEAD, Handler, Request, Response, Sink
from millstream.server.calls.call import Call, Progress
from millstream.server.calls.changes import Changes
from millstream.server.calls.context import nudge_progress
from millstream.server.calls.services import Services
from millstream.server.dispatch import Dispatcher
from millstream.server.handlers import install
from millstream.stores import open_store
from millstream.stores.health import StoreHealth
from millstream.transports.open_streams import OpenStreams
from millstream.transports.streamable.line import PostLine

if TYPE_CHECKING:
    from millstream.app.routes import Routes
    from millstream.app.server import Server
    from millstream.hub import Hub
    from millstream.server.observing.observer import Observer
    from millstream.transports.websocket.route import WebSocketRoute
    from millstream.web.live import DashboardFeed

logger = logging.getLogger("millstream")

IDLE_SECONDS = 60.0
_TICK = 1.0
_RECORDS_SECONDS = 60.0
_LOCAL_ONLY = b"This answers only on a server bound to this machine: it has no authentication yet.\n"


class Runtime:
    """One server, running in one event loop."""

    def __init__(self, server: "Server", *, supervised: bool) -> None:
        # Configuration
        self.server = server
        self.supervised = supervised
        """Somebody will call `close`; otherwise it closes itself when idle."""
        self.loop = asyncio.get_running_loop()
        self.thread = get_ident()
        """The thread of the loop: no other loop runs there while this one does."""
        self.clock: Callable[[], float] = time.monotonic
        # Process
        self.draining = False
        self.started = self.clock()
        self._busy = self.started
        self.lag = 0.0
        """Seconds by which the last tick of the sweep came too late: what every call waits for besides its own work."""
        self._requests = 0
        self._stack = contextlib.AsyncExitStack()
        self._sweeper: asyncio.Task[None] | None = None
        self._pending: dict[object, asyncio.Task[None]] = {}
        self._lifespans: dict[Server, Any] = {}
        """What the lifespan of this server, and of each that is mounted on it, yielded."""
        self.parts = server.parts
        self.hub: Hub | None = None
        self.observer: Observer | None = None
        self.websocket: WebSocketRoute | None = None
        self.feed: DashboardFeed | None = None
        self.policy: HostPolicy
        self.store_health: StoreHealth
        self.services: Services
        self.dispatcher: Dispatcher
        self.streams: OpenStreams
        self.routes: Routes | None = None
        self.adapter: Any = None
        """The ASGI adapter, once HTTP is served."""
        self.closing: asyncio.Task[None] | None = None

    async def open(self) -> "Runtime":
        """Open everything; what was opened is closed again when a step fails."""
        server, settings = self.server, self.server.settings
        async with self._stack:
            store = server.stores.get(self.loop)
            if store is None:
                store = server.stores[self.loop] = open_store(server.store)
            await store.open()
            self._stack.push_async_callback(store.close)
            self.store_health = StoreHealth(server.store.partition(":")[0], store)
            self.services = Services(settings, store, Changes())
            self._stack.callback(self.services.threads.close)
            await self.services.records.load()
            self.streams = OpenStreams(
                max_streams=settings.max_streams,
                max_per_owner=settings.max_streams_per_principal,
                max_age=settings.stream_age,
            )
            self.dispatcher = Dispatcher(
                server.registry, self.services, info=server.describe(), instructions=server.instructions
            )
            install(self.dispatcher)
            self.services.lifespan_of = lambda home: home.nearest(self._lifespans)
            await self._open_lifespan(server)
            await self._open_parts()
            server.registry.check_completers()  # now, since the lifespan may register too
            self._sweeper = self.loop.create_task(self._sweep())
            self._stack = self._stack.pop_all()
        return self

    async def _open_lifespan(self, server: "Server") -> None:
        """A server's lifespan, then those of what is mounted on it; they close in the opposite order."""
        if server.lifespan is not None and server not in self._lifespans:
            self._lifespans[server] = await self._stack.enter_async_context(server.lifespan(server))
        for part in server.mounted:
            await self._open_lifespan(part)

    async def _open_parts(self) -> None:
        """The hub and whoever observes, where they are served."""
        self.hub = self.services.hub = await open_hub(self)
        if self.hub is not None:
            self._stack.push_async_callback(self.hub.close)
            from millstream.app.streamed import Streamed  # noqa: PLC0415  only where a hub is served

            self.services.streamed = Streamed(self.hub).attach
        self.observer = observer = make_observer(self)
        if observer is not None:
            self.dispatcher.observe, self.dispatcher.begin = observer, observer.begin
            self.services.note = make_note(observer)
            self._stack.callback(observer.close)
            self._stack.callback(self.loop.create_task(observer.run()).cancel)
        self.feed = feed = make_feed(self)
        if feed is not None:
            logging.getLogger().addHandler(feed.log)
            self._stack.callback(logging.getLogger().removeHandler, feed.log)
            self._stack.callback(self.loop.create_task(feed.run()).cancel)

    def local_only(self, handler: Handler, *, message: str = "") -> Handler:
        """A handler that answers only programs of this machine, until there is authentication.

        `message` names what a refused request would have been, for those who log messages.
        """

        async def guarded(request: Request) -> Response | Sink | None:
            if self.server.reachable_from_outside(request.peer):
                if message:
                    self.services.note(message, "http", status="403")
                return Response(_LOCAL_ONLY, 403, TEXT_HEAD)
            return await handler(request)

        return guarded

    def serve_http(self) -> "Routes":
        """The HTTP side, made when it is first needed: stdio does without."""
        if self.routes is None:
            from millstream.app.routes import Routes  # noqa: PLC0415  stdio does without

            settings, loopback = self.server.settings, self.server.loopback_bind
            self.policy = HostPolicy(settings.allowed_hosts, settings.allowed_origins, loopback_bind=loopback)
            self.websocket = make_websocket(self)
            self.routes = Routes(self)
        return self.routes

    async def close(self) -> None:
        """End every stream and task, then the lifespan and the store."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            pending = list(self._pending.values())
            for task in pending:
                task.cancel()
            await asyncio.gather(self._sweeper, *pending, return_exceptions=True)
            self._sweeper = None
        self._end_subscriptions()
        await self._wait_for((call for call in self.dispatcher.calls if call.method == "subscriptions/listen"), 1.0)
        self.streams.close()
        if self.websocket is not None:
            await self.websocket.close(1.0)
        await self._stack.aclose()

    async def drain(self, seconds: float) -> None:
        """Stop taking work: subscriptions end with their result, calls finish within the time, streams close."""
        self.draining = True
        self._end_subscriptions()
        deadline = self.clock() + seconds
        await self._wait_for(self.dispatcher.calls, seconds)
        self.streams.close()
        if self.websocket is not None:
            await self.websocket.close(max(1.0, deadline - self.clock()))

    async def _wait_for(self, calls: Iterable[Call], seconds: float) -> None:
        owed, deadline = set(calls), self.clock() + seconds
        while not owed.isdisjoint(self.dispatcher.calls) and self.clock() < deadline:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)

    def _end_subscriptions(self) -> None:
        for end in list(self.services.endings):
            end()

    # The sweep

    async def _sweep(self) -> None:
        settings = self.services.settings
        beat = records = self.clock()
        while True:
            asked = self.clock()
            await asyncio.sleep(_TICK)
            now = self.clock()
            self.lag = max(0.0, now - asked - _TICK)
            self._look_at_calls(now)
            if now - beat >= settings.heartbeat:
                beat = now
                self.streams.beat()
                self._beside("logs", self.streams.touch(self.services.store.log, self.services.settings.log_ttl))
                self._report_progress()
            if now - records >= _RECORDS_SECONDS:
                records = now
                self._beside("records", self.services.records.load())
            if self._idle(now):
                self.loop.call_soon(self.server.close_idle, self)
                return

    def _beside(self, key: object, work: Coroutine[Any, Any, None]) -> None:
        """Run what may wait for a peer or a store beside the sweep; one piece of work for each key at a time."""
        if key in self._pending:
            work.close()
            return
        task = self._pending[key] = self.loop.create_task(work)
        task.add_done_callback(partial(self._settle, key))

    def _settle(self, key: object, task: asyncio.Task[None]) -> None:
        del self._pending[key]
        if not task.cancelled() and task.exception() is not None:
            logger.error("A periodic task failed; it is tried again", exc_info=task.exception())

    def _look_at_calls(self, now: float) -> None:
        settings = self.services.settings
        for call in list(self.dispatcher.calls):
            if not call.started:
                call.started = now
            elif now - call.started > settings.call_cap and call.method != "subscriptions/listen":
                call.expire()
            elif now - call.started >= settings.silence and call.line is None:
                line = call.open_line()
                if isinstance(line, PostLine):
                    self._beside(call, line.keep_alive())

    def _report_progress(self) -> None:
        """Where a caller wants progress and the tool was silent since the last beat, tell it that the call is alive."""
        for call in list(self.dispatcher.calls):
            if call.token is None:
                continue
            told = call.progress = call.progress or Progress()
            if call.line is not None and told.reported == told.reported_before:
                self._beside(call, nudge_progress(call))
            told.reported_before = told.reported

    def _idle(self, now: float) -> bool:
        requests = 0 if self.adapter is None else self.adapter.requests
        if self.supervised or self.dispatcher.calls or len(self.streams) or requests != self._requests:
            self._busy, self._requests = now, requests
        return now - self._busy >= IDLE_SECONDS
