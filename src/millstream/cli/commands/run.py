"""``millstream run``: serve a file or module over HTTP, or over standard input and output.

A stdio server, which a desktop client starts and waits for, does without the command-line library and the panel
(`millstream.cli.main`).
"""

from enum import StrEnum
from typing import Annotated

import typer

from millstream.app.serving.errors import CommandError, set_up_logs
from millstream.app.serving.listening import serve_with_panel
from millstream.cli.load import load
from millstream.cli.stdio import serve_stdio


class Transport(StrEnum):
    http = "http"
    stdio = "stdio"


class LogLevel(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def run(
    target: Annotated[
        str,
        typer.Argument(metavar="FILE[:OBJECT]", help="A Python file or module; add OBJECT if it has several servers."),
    ],
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 means every address of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free port.")] = 8000,
    transport: Annotated[
        Transport, typer.Option(help="http serves /mcp and /sse; stdio talks to the parent program.")
    ] = (Transport.http),
    no_sessions: Annotated[bool, typer.Option("--no-sessions", help="HTTP: serve every request by itself.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="HTTP: answer calls with JSON only, never an event stream.")
    ] = False,
    path: Annotated[str, typer.Option(help="HTTP: where to serve MCP.", show_default="/mcp")] = "",
    store: Annotated[
        str, typer.Option(metavar="URL", help="HTTP: where streams and records live.", show_default="memory://")
    ] = "",
    serve: Annotated[
        str, typer.Option(help="HTTP: what runs beside MCP: hub, rest, web, metrics (with commas), or all.")
    ] = "",
    log_level: Annotated[LogLevel | None, typer.Option(help="How much to log.", show_default="info")] = None,
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
        serve_http(
            target,
            host,
            port,
            serve=serve,
            sessions=not no_sessions,
            json_only=json,
            path=path,
            store=store,
            log_level=log_level or "",
        )


def serve_http(
    target: str,
    host: str,
    port: int,
    *,
    serve: str,
    sessions: bool,
    json_only: bool,
    path: str,
    store: str,
    log_level: str,
) -> None:
    """Load the server, put the options over its settings, and serve it until it is stopped.

    Raises:
        CommandError: the server cannot be found, or the address or an option cannot be used.
    """
    server = load(target)
    changes: dict[str, object] = {}
    if not sessions:
        changes["sessions"] = False
    if json_only:
        changes["json_only"] = True
    if path:
        changes["path"] = "/" + path.strip("/")
    if store:
        server.definition.store = store
    if log_level:
        changes["log_level"] = log_level
    try:
        server.definition.configure(serve=serve, **changes)
    except ValueError as exc:
        raise CommandError(str(exc), fix="Use --serve all, or some of them: --serve hub,rest") from exc
    set_up_logs(server.settings)
    serve_with_panel(server, host, port)
