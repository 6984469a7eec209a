"""The HTTP server with our own connections."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Collection

from millstream._app.definition import Bind
from millstream._app.runtime import Runtime
from millstream._app.runtimes import Runtimes, ServerApplication
from millstream._app.server_process.entry import look_ahead, prepare
from millstream._app.server_process.errors import CommandError, convert_start_errors
from millstream._app.server_process.listen_sockets import Certificate
from millstream._app.server_process.runner import StopSignals, loop_factory, run
from millstream._config import Settings
from millstream._http.hosts import TrustedProxies, is_loopback
from millstream._http.server import DrainTimes, Endpoints
from millstream._http.server.guard import ServerState
from millstream._http.server.listener import TICK, ConnectionDrainer, SocketListener

AFTER_DRAIN = 1
"""Seconds for connections to end after the drain; `drain_timeout` covers the drain itself."""

logger = logging.getLogger("millstream")

Accept = Callable[[socket.socket], Awaitable[Callable[[], None]]]
"""Accepts from one more socket; returns a function that stops it."""


class HttpServer:
    """The server of one process: starts the application, listens, and drains when stopped."""

    def __init__(
        self,
        application: ServerApplication,
        host: str,
        *,
        on_listen: Callable[[Accept], None] | None = None,
        on_drain: Callable[[], None] | None = None,
        stops: Callable[[Runtimes, Callable[[DrainTimes], None]], StopSignals] = StopSignals,
        workers: Collection[object] = (),
    ) -> None:
        """Create the server; `run` or `run_here` serves.

        Args:
            application: The server.
            host: Address that it listens on; decides whether loopback Origins are allowed.
            on_listen: Called when the server listens, with a function that makes it accept from one more socket.
            on_drain: Called when it stops accepting connections.
            stops: Source of stop requests.
            workers: State of the workers of this address, for `/health`.

        Raises:
            CommandError: The certificate can't be used.
        """
        # Configuration
        self._application = application
        self._runtimes = application.runtimes
        self._certificate = _certificate(self._runtimes.definition.settings)
        self._on_listen = on_listen
        self._on_drain = on_drain
        self._stops = stops
        # State
        self._state = ServerState()
        self._times = DrainTimes()
        self._over = asyncio.Event()
        self._runtimes.bind = Bind(is_loopback(host), self._state, workers)

    def run(self, listeners: list[socket.socket]) -> None:
        """Serve on bound sockets until stopped.

        Raises:
            CommandError: The configuration can't work.
        """
        run(self.serve(listeners), loop_factory())

    async def run_here(self, listeners: list[socket.socket]) -> None:
        """Serve in the running loop, until stopped or until the task is canceled, which drains, too."""
        serving = asyncio.create_task(self.serve(listeners))
        try:
            await asyncio.shield(serving)
        finally:
            if not serving.done():
                self._over.set()
                await serving

    async def serve(self, sockets: list[socket.socket]) -> None:
        """Serve on bound sockets until stopped."""
        stops = self._stops(self._runtimes, self._stop)
        watch = None if self._certificate is None else asyncio.create_task(self._certificate.watch())
        with stops.handle():
            with convert_start_errors(self._runtimes.definition.name):
                runtime = await self._runtimes.start(supervised=True)
                endpoints = prepare(self._application, runtime)
                look_ahead(runtime)
            try:
                await self._serve(endpoints, sockets)
            finally:
                if watch is not None:
                    watch.cancel()
                if stops.forced:
                    if self._runtimes.here is not None:
                        self._runtimes.here.dispatcher.stopping = True
                    for task in list(self._state.tasks):
                        task.cancel()
                try:
                    await self._runtimes.stop()
                except Exception:
                    logger.exception("%s couldn't be closed cleanly.", self._runtimes.definition.name)

    async def _serve(self, endpoints: Endpoints, sockets: list[socket.socket]) -> None:
        listener = SocketListener(
            endpoints,
            tls=None if self._certificate is None else self._certificate.context,
            proxies=TrustedProxies.from_environment(),
            state=self._state,
        )
        for each in sockets:
            await listener.listen(each)

        async def accept(sock: socket.socket) -> Callable[[], None]:
            server = await listener.listen(sock.dup())
            if self._over.is_set():
                server.close()
            return server.close

        if self._on_listen is not None:
            self._on_listen(accept)
        await self._over.wait()
        await self._shut_down(listener)

    def _stop(self, times: DrainTimes) -> None:
        self._times = times
        self._over.set()

    async def _shut_down(self, listener: SocketListener) -> None:
        """Fail readiness checks, stop accepting connections, announce that in the last responses, then end calls and
        streams.
        """
        runtime, clock = self._runtimes.here, asyncio.get_running_loop().time
        if runtime is not None:
            runtime.draining = True
        await asyncio.sleep(self._times.delay)
        drainer = ConnectionDrainer(self._state, listener.guard, clock)
        drainer.announce()
        await listener.accept_backlog()
        listener.close()
        if self._on_drain is not None:
            self._on_drain()
        until = clock() + self._runtimes.definition.settings.drain_timeout
        await self._drain(runtime, drainer, until)
        drainer.abort_closed()
        await asyncio.sleep(0)  # closed connections are removed
        if self._state.connections or self._state.tasks:
            await listener.shut_down(AFTER_DRAIN)

    async def _drain(self, runtime: Runtime | None, drainer: ConnectionDrainer, until: float) -> None:
        """Wait for calls and other requests, and close idle connections; repeat, because a client may send one more
        request.
        """
        clock, linger, going = asyncio.get_running_loop().time, self._times.linger, True
        while going:
            while drainer.close_idle(linger) and clock() < until:  # noqa: ASYNC110  nothing signals it
                await asyncio.sleep(TICK)
            if runtime is not None:
                await runtime.drain(max(0.0, until - clock()))
            going = (drainer.close_idle(linger) or drainer.is_answering()) and clock() < until
            if going:
                await asyncio.sleep(TICK)


def _certificate(settings: Settings) -> Certificate | None:
    if settings.tls_key and not settings.tls_cert:
        raise CommandError(
            "The TLS certificate is missing.",
            why=(
                "There is a TLS key, but without a certificate the server would use plain http, which anyone on the "
                "network could read."
            ),
            fix="Add the certificate: --tls-cert FILE",
        )
    return Certificate(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
