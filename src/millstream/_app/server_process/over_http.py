"""Serving over HTTP, shared by ``millstream run`` and ``Server.run()``, with one or several workers."""

import logging
import socket
import sys
from collections.abc import Callable

from millstream._app.runtimes import ServerApplication
from millstream._app.server_process.errors import CommandError, check_key, report, set_up_logs
from millstream._app.server_process.facts import Facts, facts
from millstream._app.server_process.http_server import serve, serve_here
from millstream._app.server_process.listen_sockets import check_public, chosen_address, listen, passed_sockets
from millstream._app.server_process.panel import show
from millstream._app.server_process.workers.slot import begin_run, claim
from millstream._app.server_process.workers.supervisor import can_supervise, supervise
from millstream._app.server_process.workers.worker import serve_worker

logger = logging.getLogger("millstream")


def run_program(application: ServerApplication, host: str | None, port: int | None, *, workers: int = 1) -> None:
    """Serve `Server.run()` over HTTP, for a program that may have its own logging.

    Raises:
        SystemExit: The address can't be used; standard error says why.
    """
    number, place = begin_run(), claim()
    if place is not None and place.hello.run != number:
        return  # the parent is in another `run()` of this program
    try:
        if not logging.getLogger().handlers:
            set_up_logs(application.runtimes.definition.settings)
        if place is not None:
            serve_worker(place, application)
            sys.exit(0)  # the code after the run() call belongs to the parent
        elif is_supervisor(workers):
            supervise(*chosen_address(host, port), workers, run=number)
        else:
            serve_with_panel(application, *chosen_address(host, port))
    except CommandError as exc:
        report(exc)
        sys.exit(1)


def is_supervisor(workers: int, *, reload: bool = False) -> bool:
    """Return whether this process supervises workers."""
    if workers > 1 or reload:
        if can_supervise():
            return True
        logger.warning("This platform can't pass a socket to another process, so only one process serves.")
    return False


def serve_with_panel(
    application: ServerApplication,
    host: str,
    port: int,
    *,
    descriptor: int | None = None,
    told: Callable[[Facts], None] = show,
) -> None:
    """Listen, show the panel, and serve until stopped.

    Args:
        application: The server.
        host: Address to listen on.
        port: Port to listen on.
        descriptor: Descriptor of a socket to listen on instead.
        told: Called when it serves.

    Raises:
        CommandError: The address or the key for session ids can't be used.
    """
    host, port, listeners = _bind_sockets(application, host, port, descriptor)
    definition = application.runtimes.definition
    # A gateway knows only when it listens what its upstreams offer.
    serve(application, host, listeners=listeners, on_listen=lambda _: told(facts(definition, host=host, port=port)))


async def serve_here_with_panel(application: ServerApplication, host: str, port: int) -> None:
    """Listen, show the panel, and serve in the running loop, until the task is canceled.

    Raises:
        CommandError: The address or the key for session ids can't be used.
    """
    definition = application.runtimes.definition
    if not logging.getLogger().handlers:
        set_up_logs(definition.settings)
    host, port, listeners = _bind_sockets(application, host, port, None)
    await serve_here(
        application, host, listeners=listeners, on_listen=lambda _: show(facts(definition, host=host, port=port))
    )


def _bind_sockets(
    application: ServerApplication, host: str, port: int, descriptor: int | None
) -> tuple[str, int, list[socket.socket]]:
    """Return the actual address, and its sockets, which are bound but don't listen yet."""
    definition = application.runtimes.definition
    check_key(definition.settings)
    passed = passed_sockets(descriptor)
    listeners = passed or [listen(host, port)]
    name = listeners[0].getsockname()
    host, port = name[0] if passed else host, name[1]
    try:
        check_public(definition, host)
    except CommandError:
        for each in listeners:
            each.close()
        raise
    return host, port, listeners
