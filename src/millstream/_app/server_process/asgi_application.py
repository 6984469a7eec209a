"""The rarely used parts of the ASGI application: lifespan, the first request of a loop, and other scopes."""

import asyncio
import logging
import signal
from collections.abc import MutableMapping
from functools import partial
from typing import Any

from millstream._app.lifecycle import ServerApplication
from millstream._app.runtime import Runtime
from millstream._http.asgi import AsgiAdapter
from millstream._http.hosts import no_websocket
from millstream._http.message import HttpLimits
from millstream._http.server import Endpoints
from millstream._http.websocket import AsgiSocket, Socket, asgi_handshake

logger = logging.getLogger("millstream")

_OWN_SERVER = (
    "time limits for headers and stalled writes",
    "caps on header count and size, on URLs and on pipelined requests",
    "exactly one Host header (except for health probes)",
    "caps on connections and on unsent replies",
)
"""Protections that only our own server provides. They're logged under another server."""
STOP_POLL = 0.2
"""Seconds between checks whether uvicorn is stopping."""
_OWN_SOCKETS = "caps on unfinished WebSocket messages, their time and their fragments, and on frames handled at a time"


async def serve(application: ServerApplication, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """Handle messages that the application's fast path doesn't."""
    if scope["type"] == "lifespan":
        await _lifespan(application, receive, send)
    elif scope["type"] == "http":
        await _first(application, scope, receive, send)
    elif scope["type"] == "websocket":
        settings = application.runtimes.definition.settings
        await receive()
        socket = AsgiSocket(
            receive, send, scope.get("extensions") or {}, request=asgi_handshake(scope, settings.root_path),
            limit=settings.stream_buffer, grace=settings.write_timeout,
        )  # fmt: skip
        await _websocket(application, socket)
    else:
        raise ValueError(f"Unknown ASGI scope type {scope['type']!r}.")


async def _first(application: ServerApplication, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """Handle the first request in a loop: open the runtime, then serve. A failure returns 503, and the next request
    retries."""
    try:
        runtime = await application.runtimes.start()
        prepare(application, runtime)
    except Exception:
        logger.exception(
            "%s couldn't start. It will try again on the next request.", application.runtimes.definition.name
        )
    else:
        await application(scope, receive, send)
        return
    body = b"The server couldn't start. See its log for the reason, then try again.\n"
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(application: ServerApplication, receive: Any, send: Any) -> None:
    await receive()
    failure = None
    try:
        runtime = await application.runtimes.start_supervised()
        prepare(application, runtime)
        look_ahead(runtime)
    except Exception as exc:
        logger.exception("%s couldn't start.", application.runtimes.definition.name)
        failure = str(exc)
    if failure is not None:
        await send({"type": "lifespan.startup.failed", "message": failure})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await application.runtimes.stop()
    await send({"type": "lifespan.shutdown.complete"})


def prepare(application: ServerApplication, runtime: Runtime) -> Endpoints:
    """Build the HTTP side of a runtime, register it for the requests of its loop, and return its endpoints."""
    definition = runtime.definition
    if runtime.endpoints is None:
        routes = runtime.serve_http()
        if runtime.bind.loopback is None:
            missing = (*_OWN_SERVER, _OWN_SOCKETS) if runtime.host.sockets else _OWN_SERVER
            logger.warning(
                "%s is served through plain ASGI. Not enforced here: %s.", definition.name, "; ".join(missing)
            )
            server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
            if hasattr(server, "should_exit"):
                runtime.sweep.run_in_background(_drain_with_uvicorn, runtime, server)
        if runtime.services.secrets.warning is not None:
            logger.warning(runtime.services.secrets.warning)
        runtime.endpoints = Endpoints(
            routes.find,
            limits=HttpLimits.of(definition.settings),
            policy=runtime.policy,
            hot=routes.hot,
            websocket=partial(_websocket, application) if runtime.host.sockets else None,
            max_message=definition.settings.max_message,
            heartbeat=definition.settings.heartbeat,
            root_path=definition.settings.root_path,
            header_lines=None if runtime.guard is None else runtime.guard.header_lines,
        )
        runtime.adapter = AsgiAdapter(runtime.endpoints)
        runtime.host.routes.watchers.append(partial(_update, runtime))
    application.runtimes.current = runtime
    return runtime.endpoints


def _update(runtime: Runtime) -> None:
    """Serve routes that have changed."""
    assert runtime.endpoints is not None  # noqa: S101  HTTP is served
    runtime.endpoints.use(runtime.serve_http().hot)
    runtime.adapter.use(runtime.endpoints)


async def _drain_with_uvicorn(runtime: Runtime, server: Any) -> None:
    """End calls and streams when uvicorn starts to stop, because it closes the application only after all connections.

    Args:
        server: The `uvicorn.Server` whose method receives SIGTERM.
    """
    while True:  # uvicorn still accepts for a moment, so clients that come back at once open streams again
        await asyncio.sleep(STOP_POLL)
        if server.should_exit:
            await runtime.drain(runtime.definition.settings.drain_timeout)


def look_ahead(runtime: Runtime) -> None:
    """Fetch issuers' metadata in advance, so that an unreachable issuer is noticed immediately."""
    if runtime.guard is not None:
        runtime.sweep.run_in_background(runtime.guard.prefetch)


async def _websocket(application: ServerApplication, socket: Socket) -> None:
    runtime = await application.runtimes.start()
    prepare(application, runtime)
    serve_socket = runtime.host.sockets.get(socket.request.path)
    if serve_socket is not None:
        await serve_socket(socket)
    else:
        await socket.refuse(no_websocket(socket.request.root_path, served=bool(runtime.host.sockets)))
