"""Serving HTTP with uvicorn and the lane."""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractContextManager
from typing import Any, Protocol

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from millstream._app.here_only import Bind
from millstream._app.runtime import Runtime
from millstream._app.runtimes import Application, Runtimes
from millstream._app.serving.entry import look_ahead, prepare
from millstream._app.serving.errors import CommandError, starting
from millstream._app.serving.leaving import TICK, Dismissal, Leaving
from millstream._app.serving.left_behind import run_to_end
from millstream._app.serving.stopping import StopSignals
from millstream._app.serving.tls import Certificate
from millstream._http.hosts import is_loopback
from millstream._http.lane import GUARD_ONLY, load_lane

WEBSOCKET = "millstream._http.websocket.uvicorn:WebSocketProtocol"
"""By name, so that a server without a hub does not load it."""

AFTER_DRAIN = 1
"""Seconds that uvicorn waits for connections once `_Uvicorn.shutdown` has drained them: the grace time counts once."""

logger = logging.getLogger("millstream")


Accept = Callable[[socket.socket], Awaitable[Callable[[], None]]]
"""Accept from one more socket; gives what ends that."""


class Stops(Protocol):
    """Who tells a server to stop: signals, or the parent of a worker."""

    forced: bool
    """Somebody did not want to wait: the task was cancelled."""

    def heard(self) -> AbstractContextManager[None]:
        """Hear it inside the block."""
        ...


class Told(Protocol):
    """Callbacks for the steps of a server's life. Each runs once, in the loop."""

    def started(self, accept: Accept) -> None:
        """It listens; `accept` makes it accept from one more socket."""

    def left(self) -> None:
        """It takes no new connections any more."""


class _Uvicorn(uvicorn.Server):
    """uvicorn, which tells when it listens and lets the server drain before connections are shut."""

    def __init__(
        self,
        config: uvicorn.Config,
        application: Application,
        *,
        loopback: bool,
        told: Told | None = None,
        stops: Callable[[Runtimes, Callable[[Leaving], None]], Stops] = StopSignals,
        seats: Collection[object] = (),
        certificate: Certificate | None = None,
    ) -> None:
        super().__init__(config)
        self._certificate = certificate
        self._application = application
        self._runtimes = application.runtimes
        self._told = told
        self._stops = stops
        self._leaving = Leaving()
        self._over = asyncio.Event()
        self._runtimes.bind = Bind(loopback, self.server_state.connections, seats)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """In a loop that ends, whatever goes on in it."""
        run_to_end(self.serve(sockets), self.config.get_loop_factory())

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """With our signals instead of uvicorn's, which end the process by the same signal again: neither what follows
        `run` in the user's program nor its `atexit` would run.
        """
        stops = self._stops(self._runtimes, self._stop)
        watch = None if self._certificate is None else asyncio.create_task(self._certificate.watch())
        with stops.heard():
            with starting(self._runtimes.definition.name):
                runtime = await self._runtimes.start(supervised=True)
                prepare(self._application, runtime)
                look_ahead(runtime)
            try:
                await self._serve(sockets)
            finally:
                if watch is not None:
                    watch.cancel()
                if stops.forced:
                    if self._runtimes.here is not None:
                        self._runtimes.here.dispatcher.stopping = True
                    for task in self.server_state.tasks:
                        task.cancel()
                    await self.lifespan.shutdown()

    def _stop(self, leaving: Leaving) -> None:
        self._leaving = leaving
        self.stop()

    def stop(self) -> None:
        """End in order."""
        self.should_exit = True
        self._over.set()

    async def main_loop(self) -> None:
        """uvicorn would look ten times a second whether it's over, and wake an idle machine for it."""
        while not await self.on_tick(0):  # keeps the date of replies
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._over.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn has no setting for how long a TLS handshake may take.
        ours = [] if self._certificate is None or sockets is None else sockets
        await super().startup([] if ours else sockets)
        if self.started:
            for each in ours:
                await self._listen(each)
            if self._told is not None:
                self._told.started(self._accept)

    async def _listen(self, listener: socket.socket) -> asyncio.Server:
        """Accept from a socket, as uvicorn does it."""
        # The type that it declares is any protocol's.
        make: Any = self.config.http_protocol_class
        limits = self._runtimes.definition.settings
        server = await asyncio.get_running_loop().create_server(
            lambda: make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state),
            sock=listener,
            ssl=self.config.ssl,
            ssl_handshake_timeout=limits.header_timeout if self.config.ssl else None,
            backlog=self.config.backlog,
        )
        self.servers.append(server)
        return server

    async def _accept(self, listener: socket.socket) -> Callable[[], None]:
        """Accept from one more socket, which stays open; gives what ends that."""
        server = await self._listen(listener.dup())

        def stop() -> None:
            server.close()
            self.servers.remove(server)

        if self.should_exit:  # since
            server.close()

        return stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Not ready any more, then no new connections, then last replies, then the end of calls and streams."""
        runtime, clock = self._runtimes.here, asyncio.get_running_loop().time
        if runtime is not None:
            runtime.draining = True
        until = clock() + self._leaving.delay
        while clock() < until:
            await self.on_tick(0)  # keeps the date of replies
            await asyncio.sleep(min(1.0, max(0.0, until - clock())))
        dismissal = Dismissal(self.server_state, clock)
        dismissal.announce()
        await asyncio.sleep(0)  # whoever waits to be accepted is
        for listener in self.servers:
            listener.close()
        if self._told is not None:
            self._told.left()
        until = clock() + self._runtimes.definition.settings.drain_timeout
        await self._drain(runtime, dismissal, until)
        dismissal.cut_off()
        await asyncio.sleep(0)  # what was closed is gone
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        # uvicorn would wait for a tenth of a second, though nobody is there.
        for each in sockets or []:
            each.close()
        await self.lifespan.shutdown()

    async def _drain(self, runtime: Runtime | None, dismissal: Dismissal, until: float) -> None:
        """Calls and other requests end, and what is idle is let go; again, because what was busy may ask for one thing
        more.
        """
        clock, linger, going = asyncio.get_running_loop().time, self._leaving.linger, True
        while going:
            while dismissal.look(linger) and clock() < until:  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(TICK)
            if runtime is not None:
                await runtime.drain(max(0.0, until - clock()))
            going = (dismissal.look(linger) or dismissal.answering()) and clock() < until
            if going:
                await asyncio.sleep(TICK)

    def _log_started_message(self, listeners: object) -> None:
        """The panel says it better."""


def serve(
    application: Application,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    listeners: list[socket.socket] | None = None,
    told: Told | None = None,
    stops: Callable[[Runtimes, Callable[[Leaving], None]], Stops] = StopSignals,
    seats: Collection[object] = (),
    lane: bool = True,
) -> None:
    """Serve over HTTP until stopped.

    Args:
        application: the server.
        host: address to listen on; decides whether loopback Origins are allowed.
        port: port to listen on.
        listeners: bound sockets instead of host and port.
        told: told when the server listens, and when it takes no new connections any more.
        stops: who stops it.
        seats: the workers of this address, as they're now and for `/health`.
        lane: False serves through plain ASGI, without the guard.
    """
    running = _made(application, host, port, told=told, stops=stops, seats=seats, lane=lane)
    try:
        running.run(sockets=listeners)
    except SystemExit as exc:
        if exc.code == STARTUP_FAILURE:  # uvicorn's own status; ours for what can't be done is 1
            sys.exit(1)
        raise


async def serve_here(
    application: Application, host: str, port: int, *, listeners: list[socket.socket], told: Told
) -> None:
    """Serve over HTTP in the loop that runs, until stopped, or until the task is cancelled: then in order, too."""
    running = _made(application, host, port, told=told)
    serving = asyncio.create_task(running.serve(listeners))
    try:
        await asyncio.shield(serving)
    finally:
        if not serving.done():
            running.stop()
            await serving


def _made(
    application: Application,
    host: str,
    port: int,
    *,
    told: Told | None = None,
    stops: Callable[[Runtimes, Callable[[Leaving], None]], Stops] = StopSignals,
    seats: Collection[object] = (),
    lane: bool = True,
) -> _Uvicorn:
    definition = application.runtimes.definition
    settings = definition.settings
    loaded = load_lane()
    protocol = loaded.protocol if lane and settings.lane else None
    if protocol is None:
        why = loaded.reason or "it was switched off"
        logger.warning("Serving through plain ASGI (%s). Not enforced: %s.", why, "; ".join(GUARD_ONLY))
    if settings.tls_key and not settings.tls_cert:
        raise CommandError(
            "There is a key for TLS, but no certificate.",
            why="Without the certificate, the server would speak http, and everybody on the way could read it.",
            fix="Give the certificate, too: --tls-cert FILE",
        )
    certificate = Certificate(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
    config = _config(application, host, port, protocol or "httptools", certificate)
    return _Uvicorn(
        config, application,
        loopback=is_loopback(host), told=told, stops=stops, seats=seats, certificate=certificate,
    )  # fmt: skip


def _config(
    application: Application, host: str, port: int, protocol: Any, certificate: Certificate | None
) -> uvicorn.Config:
    settings, parts = application.runtimes.definition.settings, application.runtimes.definition.parts
    return uvicorn.Config(
        application,
        ssl_context_factory=None if certificate is None else certificate.given,
        host=host,
        port=port,
        http=protocol,
        ws=WEBSOCKET if "hub" in parts else "none",
        ws_max_size=settings.max_message,
        ws_per_message_deflate=False,
        ws_ping_interval=settings.heartbeat,
        ws_ping_timeout=20.0,
        access_log=False,
        server_header=False,
        log_config=None,
        lifespan="on",
        timeout_keep_alive=int(settings.keep_alive),
        timeout_graceful_shutdown=AFTER_DRAIN,
    )
