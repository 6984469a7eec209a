"""``millstream run``: serve a file or module over HTTP, or over standard input and output.

The command-line library and the panel are imported here and nowhere else, so that a stdio server, which a desktop
client starts and waits for, does without them (`millstream.cli.main`).
"""

import logging
import socket
import sys
from enum import StrEnum
from typing import Annotated

import msgspec
import typer

import millstream
from millstream.app import Server, serve
from millstream.cli import panel
from millstream.cli.errors import CommandError, report
from millstream.cli.load import load
from millstream.cli.stdio import serve_stdio
from millstream.telemetry import logs

MAX_PORT = 65_535

app = typer.Typer(
    name="millstream",
    help="Millstream: one server for every MCP client.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


class Transport(StrEnum):
    http = "http"
    stdio = "stdio"


class LogLevel(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"millstream {millstream.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Millstream: one server for every MCP client."""


@app.command()
def run(
    target: Annotated[
        str,
        typer.Argument(metavar="FILE[:OBJECT]", help="A Python file or module; OBJECT when it has several servers."),
    ],
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any that is free.")] = 8000,
    transport: Annotated[
        Transport, typer.Option(help="http serves /mcp and /sse; stdio talks to the parent program.")
    ] = (Transport.http),
    no_sessions: Annotated[bool, typer.Option("--no-sessions", help="HTTP: serve every request by itself.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="HTTP: answer calls with JSON only, never an event stream.")
    ] = False,
    path: Annotated[str, typer.Option(help="HTTP: where MCP is served.", show_default="/mcp")] = "",
    log_level: Annotated[LogLevel | None, typer.Option(help="How much is logged.", show_default="info")] = None,
) -> None:
    """Serve the MCP server in a file or module.

    The server is the object you name, else the only `Server` there, else `mcp`, `server` or `app`.

    **Examples**

    - `millstream run shop.py`: http://127.0.0.1:8000/mcp

    - `millstream run shop.py:admin --port 9000`: one of several servers

    - `millstream run shop.py --transport stdio`: what a desktop client starts

    Every other setting is an environment variable, such as MILLSTREAM_ALLOWED_HOSTS=mcp.example.com.
    """
    if transport is Transport.stdio:
        serve_stdio(target, log_level or "")
    else:
        serve_http(target, host, port, sessions=not no_sessions, json_only=json, path=path, log_level=log_level or "")


def serve_http(
    target: str, host: str, port: int, *, sessions: bool, json_only: bool, path: str, log_level: str
) -> None:
    """Load the server, put the options over its settings, and serve it until it is stopped.

    Raises:
        CommandError: the server cannot be found, or the address cannot be used.
    """
    server = load(target)
    override(server, sessions=sessions, json_only=json_only, path=path, log_level=log_level)
    logs.configure(server.settings.log_level)
    _serve(server, host, port)


def serve_with_panel(server: Server, host: str, port: int) -> None:
    """`Server.run()` over HTTP: as the command does it, for a program that may have its own logging.

    Raises:
        SystemExit: the address cannot be used; standard error says why.
    """
    if not logging.getLogger().handlers:
        logs.configure(server.settings.log_level)
    try:
        _serve(server, host, port)
    except CommandError as exc:
        report(exc)
        sys.exit(1)


def _serve(server: Server, host: str, port: int) -> None:
    listener = listen(host, port)
    bound = listener.getsockname()[1]
    serve(
        server, host, bound, listener=listener, started=lambda: panel.show(panel.facts(server, host=host, port=bound))
    )


def override(server: Server, *, sessions: bool, json_only: bool, path: str, log_level: str) -> None:
    """Put what was said on the command line over the server's own settings."""
    changes: dict[str, object] = {}
    if not sessions:
        changes["sessions"] = False
    if json_only:
        changes["json_only"] = True
    if path:
        changes["path"] = "/" + path.strip("/")
    if log_level:
        changes["log_level"] = log_level
    server.settings = msgspec.structs.replace(server.settings, **changes)


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
            f"{host} is no address of this machine.", why=str(exc), fix="Use --host 127.0.0.1, or 0.0.0.0 for all."
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
