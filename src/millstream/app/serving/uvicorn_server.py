"""Serving HTTP with uvicorn and the lane."""

import logging
import socket
import sys
from collections.abc import Callable

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from millstream.app.here_only import Bind
from millstream.app.runtimes import Application, Runtimes
from millstream.app.serving.stopping import StopSignals
from millstream.http.hosts import is_loopback
from millstream.http.lane import GUARD_ONLY, load_lane

WEBSOCKET = "millstream.http.websocket.uvicorn:WebSocketProtocol"
"""By name, so that a server without a hub does not load it."""

AFTER_DRAIN = 1
"""Seconds that uvicorn waits for connections once `_Uvicorn.shutdown` has drained them: the grace time counts once."""

logger = logging.getLogger("millstream")


class _Uvicorn(uvicorn.Server):
    """uvicorn, which tells when it listens and lets the server drain before connections are shut."""

    def __init__(
        self, config: uvicorn.Config, runtimes: Runtimes, *, loopback: bool, started: Callable[[], None] | None
    ) -> None:
        super().__init__(config)
        self._runtimes = runtimes
        self._on_started = started
        runtimes.bind = Bind(loopback, self.server_state.connections)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """With our signals instead of uvicorn's, which end the process by the same signal again: neither what follows
        `run` in the user's program nor its `atexit` would run.
        """
        signals = StopSignals(self._runtimes, self._stop)
        with signals.heard():
            try:
                await self._serve(sockets)
            finally:
                if signals.forced:
                    if self._runtimes.here is not None:
                        self._runtimes.here.dispatcher.stopping = True
                    for task in self.server_state.tasks:
                        task.cancel()
                    await self.lifespan.shutdown()

    def _stop(self) -> None:
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_started is not None:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self.servers:
            listener.close()
        runtime = self._runtimes.here
        if runtime is not None:
            await runtime.drain(self._runtimes.definition.settings.drain_timeout)
        await super().shutdown(sockets)

    def _log_started_message(self, listeners: object) -> None:
        """The panel says it better."""


def serve(
    application: Application,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    listener: socket.socket | None = None,
    started: Callable[[], None] | None = None,
    lane: bool = True,
) -> None:
    """Serve over HTTP until stopped by a signal.

    Args:
        application: the server.
        host: address to listen on; decides whether loopback Origins are allowed.
        port: port to listen on.
        listener: a bound socket instead of host and port.
        started: called once when the server listens.
        lane: False serves through plain ASGI, without the guard.
    """
    definition = application.runtimes.definition
    settings = definition.settings
    loaded = load_lane()
    protocol = loaded.protocol if lane and settings.lane else None
    if protocol is None:
        why = loaded.reason or "it was switched off"
        logger.warning("Serving through plain ASGI (%s). Not enforced: %s.", why, "; ".join(GUARD_ONLY))
    config = uvicorn.Config(
        application,
        host=host,
        port=port,
        http=protocol or "httptools",
        ws=WEBSOCKET if "hub" in definition.parts else "none",
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
    running = _Uvicorn(config, application.runtimes, loopback=is_loopback(host), started=started)
    try:
        running.run(sockets=[listener] if listener is not None else None)
    except SystemExit as exc:
        if exc.code == STARTUP_FAILURE:  # uvicorn's own status; ours for what can't be done is 1
            sys.exit(1)
        raise
