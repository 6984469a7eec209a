"""The parts of the ASGI application that run rarely: lifespan, the first request of a loop, other scopes."""

import logging
from collections.abc import MutableMapping
from functools import partial
from typing import Any

from millstream._app.runtime import Runtime
from millstream._app.runtimes import Application
from millstream._http.asgi.adapter import AsgiAdapter, Route
from millstream._http.hosts import EXEMPT, HostPolicy, no_websocket
from millstream._http.lane import GUARD_ONLY, SOCKETS_ONLY, Lane
from millstream._http.limits import HttpLimits
from millstream._http.message import Handler, Request, Response, Sink

logger = logging.getLogger("millstream")


async def serve(application: Application, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """Whatever an application does not do itself."""
    if scope["type"] == "lifespan":
        await _lifespan(application, receive, send)
    elif scope["type"] == "http":
        await _first(application, scope, receive, send)
    elif scope["type"] == "websocket":
        await _websocket(application, scope, receive, send)
    else:
        raise ValueError(f"Unknown ASGI scope type {scope['type']!r}")


async def _first(application: Application, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """The first request of a loop: open the runtime, then serve. A failure is answered 503 and tried again."""
    try:
        runtime = await application.runtimes.start()
        prepare(application, runtime)
    except Exception:
        logger.exception("%s could not start; the next request tries again", application.runtimes.definition.name)
    else:
        await application(scope, receive, send)
        return
    body = b"The server could not start. Its log says why. Try again.\n"
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(application: Application, receive: Any, send: Any) -> None:
    await receive()
    failure = None
    try:
        runtime = await application.runtimes.start(supervised=True)
        prepare(application, runtime)
        look_ahead(runtime)
    except Exception as exc:
        logger.exception("%s could not start", application.runtimes.definition.name)
        failure = str(exc)
    if failure is not None:
        await send({"type": "lifespan.startup.failed", "message": failure})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await application.runtimes.stop()
    await send({"type": "lifespan.shutdown.complete"})


def prepare(application: Application, runtime: Runtime) -> None:
    """Build the HTTP side of what runs, once, and let it answer the requests of its loop."""
    runtimes, definition = application.runtimes, runtime.definition
    if runtime.routes is None:
        if runtime.bind.loopback is None:
            missing = (*GUARD_ONLY, SOCKETS_ONLY) if "hub" in definition.parts else GUARD_ONLY
            logger.warning(
                "%s is served through plain ASGI. Not enforced here: %s.", definition.name, "; ".join(missing)
            )
        if runtime.services.secrets.warning is not None:
            logger.warning(runtime.services.secrets.warning)
        routes, limits = runtime.serve_http(), HttpLimits.of(definition.settings)
        runtime.adapter = AsgiAdapter(
            _with_cors_of_probes(routes.find, runtime.policy),
            limits=limits,
            policy=runtime.policy,
            hot={(method, path): handler for handler, method, path in routes.hot.values()},
        )
        runtimes.lane = Lane(routes.find_hot, limits=limits, policy=runtime.policy, hot=routes.hot)
    runtimes.current = runtime


def look_ahead(runtime: Runtime) -> None:
    """It is served now: ask the issuers of its callers, so that one that can't be asked is noticed at once."""
    if runtime.guard is not None:
        runtime.sweep.beside("issuers", runtime.guard.prefetch())


def _with_cors_of_probes(find: Route, policy: HostPolicy) -> Route:
    """Routes that give pages of allowed Origins the probes, too: the adapters screen all paths but these."""

    def found(method: str, path: str) -> Handler | None:
        handler = find(method, path)
        return handler if handler is None or path not in EXEMPT else partial(_probe, handler, policy)

    return found


async def _probe(handler: Handler, policy: HostPolicy, request: Request) -> Response | Sink | None:
    origin = request.headers.get(b"origin")
    if origin is None or policy.check(request.method, request.headers, request.raw_headers, request.peer) is not None:
        return await handler(request)
    reply = policy.preflight(request) or await handler(request)
    if isinstance(reply, Response):
        reply = Response(reply.body, reply.status, reply.head + policy.cors_head(origin))
    return reply


async def _websocket(application: Application, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    runtime = await application.runtimes.start()
    prepare(application, runtime)
    path, root = scope["path"], scope.get("root_path", "")
    if runtime.websocket is not None and path.removeprefix(root) == "/ws":
        await runtime.websocket(scope, receive, send)
        return
    from millstream._transports.websocket.route import refuse_handshake  # noqa: PLC0415  only where a socket is asked for

    await receive()
    await refuse_handshake(no_websocket(root, served=runtime.websocket is not None), scope, send)
