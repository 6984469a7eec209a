"""Listening, the panel, and serving: what ``millstream run`` and ``Server.run()`` both do over HTTP."""

import logging
import socket
import sys

from millstream.app.runtimes import Application
from millstream.app.serving.errors import CommandError, check_key, report, set_up_logs
from millstream.app.serving.facts import facts
from millstream.app.serving.panel import show
from millstream.app.serving.uvicorn_server import serve

MAX_PORT = 65_535


def run_program(application: Application, host: str, port: int) -> None:
    """`Server.run()` over HTTP, for a program that may have its own logging.

    Raises:
        SystemExit: the address cannot be used; standard error says why.
    """
    try:
        if not logging.getLogger().handlers:
            set_up_logs(application.runtimes.definition.settings)
        serve_with_panel(application, host, port)
    except CommandError as exc:
        report(exc)
        sys.exit(1)


def serve_with_panel(application: Application, host: str, port: int) -> None:
    """Listen, say so, and serve until stopped.

    Raises:
        CommandError: the address cannot be used, or the key for session ids.
    """
    definition = application.runtimes.definition
    check_key(definition.settings)
    listener = listen(host, port)
    bound = listener.getsockname()[1]
    serve(application, host, bound, listener=listener, started=lambda: show(facts(definition, host=host, port=bound)))


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, or a message about why there is none. It listens when the server is ready.

    Raises:
        CommandError: the name does not resolve, or the address or port cannot be used.
    """
    if not 0 <= port <= MAX_PORT:
        raise CommandError(f"{port} is not a port.", why=f"Ports go from 0 to {MAX_PORT}.", fix="Use --port 8000.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as exc:
        raise CommandError(
            f"{host} isn't an address of this machine.",
            why=str(exc),
            fix="Use --host 127.0.0.1, or 0.0.0.0 for every address of this machine.",
        ) from exc
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as exc:
        listener.close()
        raise _address_failure(host, port, exc) from exc
    listener.setblocking(False)
    return listener


def _address_failure(host: str, port: int, exc: OSError) -> CommandError:
    if isinstance(exc, PermissionError):
        return CommandError(
            f"Port {port} is not allowed.", why="Ports below 1024 need a privilege.", fix="Use --port 8000."
        )
    if "in use" in str(exc):
        return CommandError(
            f"Port {port} on {host} is in use.",
            why="Another program listens there, perhaps this server in another window.",
            fix=f"Stop that one, or use another port: --port {port + 1 if port < MAX_PORT else 8000}",
        )
    return CommandError(
        f"Cannot listen on {host} port {port}.",
        why=exc.strerror or str(exc),
        fix="Use --host 127.0.0.1, or 0.0.0.0 for every address of this machine.",
    )
