"""Serving HTTP with uvicorn and the lane."""

import contextlib
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from millstream.http.hosts import is_loopback
from millstream.http.lane import GUARD_ONLY, load_lane

if TYPE_CHECKING:
    from millstream.app.server import Server

WEBSOCKET = "millstream.http.websocket.uvicorn:WebSocketProtocol"
"""By name, so that a server without a hub does not load it."""

AFTER_DRAIN = 1
"""Seconds that uvicorn waits for connections once `_Uvicorn.shutdown` has drained them: the grace time counts once."""

logger = logging.getLogger("millstream")


class _Uvicorn(uvicorn.Server):
    """uvicorn, which tells when it listens and lets the server drain before connections are shut."""

    def __init__(self, config: uvicorn.Config, server: "Server", started: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._server = server
        server.connections = self.server_state.connections
        self._on_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_started is not None:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self.servers:
            listener.close()
        await self._server.drain()
        await super().shutdown(sockets)

    def _log_started_message(self, listeners: object) -> None:
        """The panel says it better."""


def serve(
    server: "Server",
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    listener: socket.socket | None = None,
    started: Callable[[], None] | None = None,
    lane: bool = True,
) -> None:
    """Serve over HTTP until stopped by a signal.

    Args:
        server: the server.
        host: address to listen on; decides whether loopback Origins are allowed.
        port: port to listen on.
        listener: a bound socket instead of host and port.
        started: called once when the server listens.
        lane: False serves through plain ASGI, without the guard.
    """
    server.loopback_bind = is_loopback(host)
    loaded = load_lane()
    protocol = loaded.protocol if lane and server.settings.lane else None
    if protocol is None:
        why = loaded.reason or "it was switched off"
        logger.warning("Serving through plain ASGI (%s). Not enforced: %s.", why, "; ".join(GUARD_ONLY))
    config = uvicorn.Config(
        server,
        host=host,
        port=port,
        http=protocol or "httptools",
        ws=WEBSOCKET if "hub" in server.parts else "none",
        ws_max_size=server.settings.max_message,
        ws_per_message_deflate=False,
        ws_ping_interval=server.settings.heartbeat,
        ws_ping_timeout=20.0,
        access_log=False,
        server_header=False,
        log_config=None,
        lifespan="on",
        timeout_keep_alive=int(server.settings.keep_alive),
        timeout_graceful_shutdown=AFTER_DRAIN,
    )
    with contextlib.suppress(KeyboardInterrupt):
        _Uvicorn(config, server, started).run(sockets=[listener] if listener is not None else None)
