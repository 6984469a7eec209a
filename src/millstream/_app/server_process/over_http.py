"""Serving over HTTP with our own connections, for ``millstream run`` and ``Server.run()``.

The server is a single process or a worker. A worker serves on its parent's sockets until the parent stops it or exits.
"""

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from millstream._app.definition import Bind
from millstream._app.lifecycle import Runtimes, ServerApplication
from millstream._app.runtime import Runtime
from millstream._app.server_process import CommandError, check_key, convert_start_errors, report, set_up_logs
from millstream._app.server_process.asgi_application import look_ahead, prepare
from millstream._app.server_process.event_loop import StopSignals, loop_factory, run, waits_for
from millstream._app.server_process.listen_sockets import (
    Certificate,
    address_of,
    check_public,
    chosen_address,
    listen,
    passed_sockets,
)
from millstream._app.server_process.session_forwarder import SessionForwarder
from millstream._app.server_process.startup_message import Facts, facts, show
from millstream._app.server_process.worker_process import (
    BEATS,
    Alive,
    ConfigPrepared,
    ConfigState,
    Departure,
    Drain,
    Force,
    Message,
    NewConfig,
    Ready,
    StartFailure,
    WorkerSlot,
    WorkerStates,
    begin_run,
    claim,
    take_socket,
)
from millstream._config import Settings
from millstream._http.hosts import TrustedProxies, is_loopback
from millstream._http.server import LINGER, DrainTimes, Endpoints
from millstream._http.server.guard import ServerState
from millstream._http.server.listener import TICK, ConnectionDrainer, SocketListener
from millstream._override import override
from millstream._server.calls import load_secrets
from millstream._stores.workers import LeasedWorker, parent_address

RELOAD_LINGER = 0.1
"""Seconds that an idle connection stays open while a developer waits for the new version."""
_OTHER_FILES = 4_000
"""Files to open in addition to the connections: stores, connections to upstreams, and three pipes for each process."""
AFTER_DRAIN = 1
"""Seconds for connections to end after the drain; `drain_timeout` covers the drain itself."""

logger = logging.getLogger("millstream")


@dataclass(eq=False)
class HttpServer:
    """The server of one process: starts the application, listens, and drains when stopped."""

    application: ServerApplication
    host: str
    """Address to listen on. Determines whether loopback Origins are allowed."""
    port: int = 0
    """Port to listen on."""
    listeners: Sequence[socket.socket] = ()
    """Bound sockets."""
    on_ready: Callable[[Facts], None] = show
    """Called when the server is listening."""
    worker: WorkerSlot | None = None
    """Role of this process among several workers."""

    def __post_init__(self) -> None:
        """Load the certificate.

        Raises:
            CommandError: The certificate can't be used.
        """
        self._runtimes = self.application.runtimes
        self._definition = self._runtimes.definition
        self._certificate = _certificate(self._definition.settings)
        self._state = ServerState()
        self._times = DrainTimes()
        self._over = asyncio.Event()
        self._is_started = False
        self._runtimes.bind = Bind(
            is_loopback(self.host), self._state, () if self.worker is None else self.worker.workers
        )

    def run(self) -> None:
        """Serve until stopped.

        Raises:
            CommandError: The configuration can't work.
        """
        run(self.serve(), loop_factory())

    async def run_here(self) -> None:
        """Serve in the running loop, until stopped or until the task is canceled, which also drains it."""
        serving = asyncio.create_task(self.serve())
        try:
            await asyncio.shield(serving)
        finally:
            if not serving.done():
                self._over.set()
                if not self._is_started:  # there's nothing to drain
                    serving.cancel()
                await asyncio.wait([serving])
                if not serving.cancelled():
                    serving.result()

    async def serve(self) -> None:
        """Serve until stopped."""
        kind = StopSignals if self.worker is None else partial(WorkerStops, self.worker)
        stops = kind(self._runtimes, self._stop)
        with stops.handle(), contextlib.ExitStack() as closing:
            for each in self.listeners:
                closing.callback(each.close)  # no context manager, which would skip a socket that uvloop has detached
            with convert_start_errors(self._definition.name):
                runtime = await self._runtimes.start_supervised()
                stops.set_ready()
                self._is_started = True
                endpoints = prepare(self.application, runtime)
                look_ahead(runtime)
            try:
                await self._serve(runtime, endpoints)
            finally:
                if stops.forced:
                    runtime.dispatcher.stop()
                    for task in list(self._state.tasks):
                        task.cancel()
                try:
                    await self._runtimes.stop()
                except Exception:
                    logger.exception("%s couldn't be closed cleanly.", self._definition.name)

    async def _serve(self, runtime: Runtime, endpoints: Endpoints) -> None:
        upstreams = sum(each.max_connections for each in self._definition.upstreams)
        _raise_file_limit(self._definition.settings.max_connections, upstreams)
        tls = None
        if self._certificate is not None:
            tls = self._certificate.context
            runtime.host.run(self._certificate.watch(runtime.store.troubles))
        if self.worker is not None and (live := self._definition.live) is not None:
            # Others may use a newer version by now, and clients mustn't see an older one after it.
            self.worker.line.send(ConfigPrepared(live.version.number, ""))
            await live.agreed.wait()
        forwarder = None
        if runtime.services.holds_state and isinstance(workers := runtime.store.workers, LeasedWorker):
            parent = parent_address()
            folder = None if parent is None else Path(parent).parent
            live = self._definition.live
            forwarder = SessionForwarder(
                runtime.services,
                workers,
                endpoints,
                folder,
                lambda: "" if live is None else live.version.digest,
                guard=runtime.guard,
            )
            runtime.host.routes.watchers.append(forwarder.update)
            endpoints = forwarder.endpoints
            await forwarder.listen()
        listener = SocketListener(endpoints, tls=tls, proxies=TrustedProxies.from_environment(), state=self._state)
        for each in self.listeners:
            await listener.listen(each)

        async def accept(sock: socket.socket) -> Callable[[], None]:
            server = await listener.listen(sock.dup())
            if self._over.is_set():
                server.close()
            return server.close

        if self.worker is not None:
            self.worker.takeover.begin(accept)
        # A gateway doesn't know what its upstreams offer until it listens.
        self.on_ready(facts(self._definition, host=self.host, port=self.port))
        await self._over.wait()
        await self._shut_down(runtime, listener, forwarder)

    def _stop(self, times: DrainTimes) -> None:
        self._times = times
        if (live := self._definition.live) is not None:
            live.agreed.set()
        self._over.set()

    async def _shut_down(self, runtime: Runtime, listener: SocketListener, forwarder: SessionForwarder | None) -> None:
        """Fail readiness checks, stop accepting connections, announce that in the last responses, then end calls and
        streams.
        """
        clock, linger = asyncio.get_running_loop().time, self._times.linger
        runtime.draining = True
        await asyncio.sleep(self._times.delay)
        drainer = ConnectionDrainer(self._state, listener.guard, clock)
        drainer.announce()
        await listener.accept_backlog()
        listener.close()
        if forwarder is not None:
            await forwarder.leave()
        if self.worker is not None:
            self.worker.takeover.close()
            self.worker.line.send(Departure())
        until, going = clock() + self._definition.settings.drain_timeout, True
        # Wait for calls and other requests, and close idle connections. Repeat, because a client may send one
        # more request.
        while going:
            while drainer.close_idle(linger) and clock() < until:  # noqa: ASYNC110  nothing signals it
                await asyncio.sleep(TICK)
            await runtime.drain(max(0.0, until - clock()))
            going = (drainer.close_idle(linger) or drainer.is_answering()) and clock() < until
            if going:
                await asyncio.sleep(TICK)
        if forwarder is not None:
            await forwarder.close()
        drainer.abort_closed()
        await asyncio.sleep(0)  # closed connections are removed
        if self._state.connections or self._state.tasks:
            await listener.shut_down(AFTER_DRAIN)


def _raise_file_limit(connections: int, upstreams: int) -> None:
    """Let this process open a file for each connection and warn if it can't.

    Many systems limit a process to 256 or 1,024 files. Above the limit, the event loop closes new connections silently.

    Args:
        connections: Maximum connections of clients.
        upstreams: Maximum connections to upstreams.
    """
    try:
        import resource  # noqa: PLC0415  not on Windows
    except ImportError:
        return
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if each == resource.RLIM_INFINITY else each for each in limits)
    wanted = min(connections + upstreams + _OTHER_FILES, hard)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS allows fewer than the hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, limits[1]))
            soft = wanted
    if soft < connections:
        logger.warning(
            "This process can open only %d files. Beyond that, it closes new connections without a response, although "
            "max_connections is %d. Raise the limit: `ulimit -n`, or LimitNOFILE of systemd.", soft, connections,
        )  # fmt: skip
    if soft < upstreams:
        logger.warning(
            "This process can open only %d files, although max_connections of all upstreams is %d in total. Beyond "
            "that, upstreams can't be reached. Raise the limit: `ulimit -n`, or LimitNOFILE of systemd.",
            soft,
            upstreams,
        )


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


def serve_worker(place: WorkerSlot, application: ServerApplication) -> None:
    """Serve until stopped.

    Raises:
        SystemExit: It can't start; the parent shows why.
    """
    hello, definition = place.hello, application.runtimes.definition
    place.mark_logs()
    with place.report_errors():
        check_key(definition.settings)
        check_public(definition, hello.host)
        secrets = load_secrets(definition.settings.secret_key)
        if secrets.source == "process":
            definition.configure(secret_key=hello.key)
            if hello.worker == 1:
                logger.warning("%s", secrets.warning)
        listeners = [take_socket(each) for each in hello.listeners]
        settings, send = definition.settings, place.line.send

        def report_ready(found: Facts) -> None:
            patience = settings.drain_delay + settings.drain_timeout + LINGER + AFTER_DRAIN
            send(Ready(found, patience, settings.watchdog))
            if settings.watchdog:
                beat()

        def beat() -> None:
            send(Alive())
            asyncio.get_running_loop().call_later(settings.watchdog / BEATS, beat)

        HttpServer(application, hello.host, hello.port, listeners, on_ready=report_ready, worker=place).run()


class WorkerStops(StopSignals):
    """Stops a worker when its parent sends a message or exits, or on SIGTERM."""

    _numbers = (signal.SIGTERM,)

    def __init__(self, place: WorkerSlot, runtimes: Runtimes, on_stop: Callable[[DrainTimes], None]) -> None:
        """Prepare the handlers, which `handle` installs."""
        super().__init__(runtimes, on_stop)
        self._place = place

    @override
    @contextlib.contextmanager
    def handle(self) -> Generator[None]:
        """Handle stop requests inside the block. The parent handles Ctrl-C and a closed terminal.

        Raises:
            SystemExit: A second signal stopped it without draining.
        """
        end = self._place.line.end
        self._place.die_with_parent(False)
        end.setblocking(False)
        threading.Thread(target=self._watch_start, name="millstream-parent", daemon=True).start()
        self._loop.add_reader(end, self._hear)
        for message in self._place.early:
            self._take(message)
        try:
            with super().handle():
                yield
        finally:
            self._loop.remove_reader(end)

    @override
    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._limit_start(signal.SIGTERM)
        self._loop.call_soon_threadsafe(self._take, Drain())

    def _watch_start(self) -> None:
        """Notice in a thread that the parent stops this worker or exits, because a starting program may block the event
        loop. The parent sends nothing else before the worker is ready.
        """
        poller = select.poll()
        poller.register(self._place.line.end, select.POLLIN)
        while not self._is_over.is_set():
            if poller.poll(1000) and not self._is_over.is_set():
                self._limit_start(signal.SIGTERM)
                return

    def _hear(self) -> None:
        messages = self._place.line.read()
        if messages is None:  # the next server needs the address immediately
            self._loop.remove_reader(self._place.line.end)
            logger.warning("The parent process has exited. Stopping this worker")
            self._drain(DrainTimes())
        for message in messages or ():
            self._take(message)

    def _take(self, message: Message) -> None:
        delay = self._runtimes.definition.settings.drain_delay
        if isinstance(message, Drain):
            linger = RELOAD_LINGER if self._place.hello.reloads else LINGER
            self._drain(DrainTimes(0.0, linger) if message.replaced else DrainTimes.for_stop(delay))
        elif isinstance(message, Force):
            self._force()
        elif isinstance(message, WorkerStates):
            self._place.workers[:] = message.workers
            self._place.takeover.look(message.workers)
        elif isinstance(message, NewConfig) and (live := self._runtimes.definition.live) is not None:
            number, send = message.version.number, self._place.line.send
            live.prepare(message.version, lambda error: send(ConfigPrepared(number, error)))
        elif isinstance(message, ConfigState) and (live := self._runtimes.definition.live) is not None:
            live.settle(message.number, message.refusal)
        elif isinstance(message, StartFailure):
            self._place.failure = message if message.what else None

    def _drain(self, times: DrainTimes) -> None:
        if not self._stopping:
            self._stopping = True
            if self._cancel_start(signal.SIGTERM):
                return
            waits = waits_for(self._runtimes)
            if waits:
                logger.info("Waiting before shutdown: %s", waits)
            self._place.takeover.end()
            self._on_stop(times)


def run_program(application: ServerApplication, host: str | None, port: int | None, *, workers: int = 1) -> None:
    """Serve `Server.run()` over HTTP, for a program that may have its own logging.

    Raises:
        SystemExit: The address can't be used. The reason is on standard error.
    """
    number, place = begin_run(), claim()
    if place is not None and place.hello.run != number:
        return  # the parent is in another of this program's `run()` calls
    try:
        if not logging.getLogger().handlers:
            set_up_logs(application.runtimes.definition.settings)
        if place is not None:
            serve_worker(place, application)
            sys.exit(0)  # the code after the run() call belongs to the parent
        elif is_supervisor(workers):
            from millstream._app.server_process.supervisor import supervise  # noqa: PLC0415  only for several workers

            supervise(*chosen_address(host, port), workers, run=number)
        else:
            bind_address(application, *chosen_address(host, port)).run()
    except CommandError as exc:
        report(exc)
        sys.exit(1)


def is_supervisor(workers: int, *, reload: bool = False) -> bool:
    """Return whether this process supervises workers."""
    if workers > 1 or reload:
        if os.name == "posix":  # sockets can be passed to another process by their descriptors
            return True
        logger.warning("This platform can't pass a socket to another process, so only one process serves.")
    return False


def bind_address(
    application: ServerApplication,
    host: str,
    port: int,
    *,
    descriptor: int | None = None,
    on_ready: Callable[[Facts], None] = show,
) -> HttpServer:
    """Return the server for an address. Its sockets are bound, but don't listen yet.

    Args:
        application: The server.
        host: Address to listen on.
        port: Port to listen on.
        descriptor: Descriptor of a socket to listen on instead.
        on_ready: Called when it's serving.

    Raises:
        CommandError: The address or the key for session ids can't be used.
    """
    definition = application.runtimes.definition
    check_key(definition.settings)
    passed = passed_sockets(descriptor)
    listeners = passed or [listen(host, port)]
    bound, port = address_of(listeners[0])
    host = bound if passed else host
    try:
        check_public(definition, host)
        return HttpServer(application, host, port, listeners, on_ready=on_ready)
    except CommandError:
        for each in listeners:
            each.close()
        raise
