"""``millstream run``: serve a file or module over HTTP, or over standard input and output.

Without options that only this module knows, servers start without it and the command-line library, to be quick
(`millstream._cli.main`).

``millstream dev``: serve a file while you write it, with an inspector.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Mapping
from enum import StrEnum
from typing import Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from millstream._app.server_process.errors import CommandError, report
from millstream._app.server_process.facts import Facts, show
from millstream._app.server_process.supervisor import can_supervise, changes
from millstream._cli.load import folder_of
from millstream._cli.program import Editable, EnvFile, Packages, Port
from millstream._cli.serve import run_with, serve_http, use_file
from millstream._cli.stdio import serve_stdio
from millstream._config import DEV_SETTINGS

LISTEN, MCP, SECURITY = (Group(name, sort_key=at) for at, name in enumerate(("Listening", "HTTP", "Security"), start=2))


class TransportChoice(StrEnum):
    http = "http"
    stdio = "stdio"
    sse = "sse"
    streamable_http = "streamable-http"


LogLevel = StrEnum("LogLevel", "debug info warning error")


Inspect = Annotated[
    list[str] | None,
    Parameter(name="--inspect", metavar="URL", help="HTTP: allow /inspect to reach this server. Repeat it."),
]


def run(  # noqa: PLR0913  the options of the command
    target: Annotated[
        str,
        Parameter(
            name="FILE[:OBJECT]",
            help=(
                "A Python file or module, with OBJECT if it has several servers; or a command or URL of another server."
            ),
        ),
    ],
    /,
    *,
    host: Annotated[
        str | None,
        Parameter(
            metavar="ADDRESS",
            group=LISTEN,
            help="Address to listen on; 0.0.0.0 means every address of this machine.",
            show_default=lambda _: "127.0.0.1",
        ),
    ] = None,
    port: Annotated[Port, Parameter(group=LISTEN)] = None,
    transport: Annotated[
        TransportChoice,
        Parameter(
            metavar="NAME",
            group=LISTEN,
            help="http, sse, streamable-http: serve /mcp and /sse. stdio: communicate with the parent program.",
        ),
    ] = (TransportChoice.http),
    no_sessions: Annotated[
        bool, Parameter(group=MCP, help="Handle each request separately, without sessions.")
    ] = False,
    json_response: Annotated[
        bool, Parameter(group=MCP, help="Respond to calls with JSON only, never an event stream.")
    ] = False,
    path: Annotated[
        str, Parameter(metavar="PATH", group=LISTEN, help="Path of the MCP endpoint.", show_default=lambda _: "/mcp")
    ] = "",
    store: Annotated[
        str,
        Parameter(
            group=MCP, metavar="URL", help="Where to store streams and records.", show_default=lambda _: "memory://"
        ),
    ] = "",
    serve: Annotated[
        str,
        Parameter(
            metavar="PARTS",
            group=MCP,
            help=("What to serve in addition to MCP: hub, rest, web, metrics (separated by commas), or all."),
        ),
    ] = "",
    workers: Annotated[
        int, Parameter(group=LISTEN, metavar="N", help="Number of processes.", validator=Number(gte=1))
    ] = 1,
    reload: Annotated[bool, Parameter(help="Restart when a Python file in the program's folder changes.")] = False,
    dev: Annotated[
        bool, Parameter(help="Send errors of your code to callers, and log a line for each message.")
    ] = False,
    fd: Annotated[
        int | None,
        Parameter(
            group=LISTEN,
            metavar="N",
            help="A listening socket to use instead of --host and --port.",
            validator=Number(gte=0),
        ),
    ] = None,
    auth_key: Annotated[
        str | None,
        Parameter(
            name="--auth",
            group=SECURITY,
            metavar="KEY",
            help="Key that callers must send. MCP_SERVER_AUTH_KEY also sets it.",
        ),
    ] = None,
    auth_keys: Annotated[
        str | None, Parameter(group=SECURITY, metavar="FILE", help="A file of keys, created by `millstream keys add`.")
    ] = None,
    tls_cert: Annotated[
        str | None, Parameter(group=SECURITY, metavar="FILE", help="Serve https with this certificate chain.")
    ] = None,
    tls_key: Annotated[
        str | None, Parameter(group=SECURITY, metavar="FILE", help="The key of the certificate.")
    ] = None,
    allow_anonymous: Annotated[
        bool,
        Parameter(
            group=SECURITY,
            help="Let anyone who can reach the address call every tool.",
        ),
    ] = False,
    log_level: Annotated[
        LogLevel | None,
        Parameter(
            metavar="LEVEL",
            help="Minimum log level: debug, info, warning, or error.",
            show_default=lambda _: "info",
        ),
    ] = None,
    env_file: EnvFile = None,
    packages: Packages = None,
    editable: Editable = None,
    inspect: Inspect = None,
) -> None:
    """Serve the MCP server in a file or module.

    The server is the object you name, or the only `Server`, or the one called `mcp`, `server`, or `app`.

    **Examples**

    - `millstream run shop.py`: http://127.0.0.1:8000/mcp

    - `millstream run shop.py:admin --port 9000`: one of several servers

    - `millstream run shop.py --transport stdio`: for a desktop client

    - `millstream run shop.py --host 0.0.0.0 --auth KEY`: for callers with a key, from anywhere

    - `millstream run shop.py --with pandas`: with a package that isn't installed

    - `millstream run "uvx mcp-server-git"`: another server, for clients of every revision and transport

    All other settings are environment variables, such as MILLSTREAM_ALLOWED_HOSTS=mcp.example.com.
    """
    secured = {"auth_key": auth_key, "auth_keys": auth_keys, "tls_cert": tls_cert, "tls_key": tls_key}
    _check_not_empty(secured)
    run_with(packages or (), editable or ())
    use_file(env_file)
    if transport is TransportChoice.stdio:
        _check_alone(workers=workers > 1, reload=reload)
        serve_stdio(target, log_level or "", settings=DEV_SETTINGS if dev else {})
    else:
        serve_http(
            target,
            host,
            port,
            descriptor=fd,
            workers=workers,
            reload=reload,
            serve=serve,
            store=store,
            web=bool(inspect),
            settings={
                "sessions": False if no_sessions else None,
                "json_only": json_response or None,
                "path": "/" + path.strip("/") if path else None,
                **secured,
                "allow_anonymous": allow_anonymous or None,
                "log_level": log_level,
                "inspect_urls": tuple(inspect) if inspect else None,
                **(DEV_SETTINGS if dev else {}),
            },
        )


def _check_alone(**options: bool) -> None:
    """Reject options that only work with HTTP, instead of ignoring them."""
    for name in (name for name, enabled in options.items() if enabled):
        raise CommandError(
            f"--{name} requires HTTP: on stdio, each client starts its own process.",
            fix=f"Leave out --{name}, or --transport stdio.",
        )


def _check_not_empty(secured: Mapping[str, str | None]) -> None:
    """Reject empty values, for example from unset variables, which would leave the server unprotected."""
    for name, value in secured.items():
        if value == "":
            option = "--auth" if name == "auth_key" else f"--{name.replace('_', '-')}"
            raise CommandError(
                f"{option} is empty.",
                why="The server would be less protected than you intend. Perhaps a variable isn't set.",
                fix=f"Set a value for {option}, or leave it out.",
            )


INSPECTOR = "@modelcontextprotocol/inspector"
NODE = 22
"""Oldest major version of Node.js that the MCP Inspector supports."""


def dev(
    target: Annotated[
        str,
        Parameter(name="FILE[:OBJECT]", help="A Python file or module; add OBJECT if it has several servers."),
    ],
    /,
    *,
    port: Port = None,
    no_open: Annotated[bool, Parameter(help="Don't open a browser.")] = False,
    mcp_inspector: Annotated[
        bool, Parameter(help=f"Start the MCP Inspector ({INSPECTOR}) instead; requires Node.js.")
    ] = False,
    packages: Packages = None,
    editable: Editable = None,
    env_file: EnvFile = None,
    inspect: Inspect = None,
) -> None:
    """Serve a file while you write it.

    The server restarts when a Python file in the folder changes. If your change fails, it shows the error and keeps the
    last working version running. It opens `/inspect`, a page for trying your tools. Only this machine can reach it.

    **Examples**

    - `millstream dev shop.py`

    - `millstream dev shop.py --with pandas --no-open`

    - `millstream dev shop.py --mcp-inspector`: with the MCP Inspector
    """
    command = npx() if mcp_inspector else ""
    run_with(packages or (), editable or ())
    use_file(env_file)
    beside = _Beside(command, opens=not no_open)
    try:
        while not _serve(target, port, beside, inspect):
            pass
    finally:
        beside.close()


def _serve(target: str, port: int | None, beside: "_Beside", inspect: list[str] | None) -> bool:
    """Serve until stopped. If the file can't be served, wait for a change, and return False.

    Raises:
        CommandError: The error isn't in the program.
    """
    changed = changes(folder_of(target))  # watches from before the import
    try:
        serve_http(
            target,
            "127.0.0.1",
            port,
            reload=True,
            told=beside.on_ready,
            web=True,
            settings={"inspect_urls": tuple(inspect) if inspect else None, "show_errors": True},
        )
    except CommandError as exc:
        if not exc.detail or not can_supervise():
            raise
        report(exc)
        sys.stderr.write("Waiting for a change …\n")
        asyncio.run(_first(changed))
        return False
    return True


async def _first(changed: AsyncIterator[None]) -> None:
    async for _ in changed:
        return


def npx() -> str:
    """Return the program that starts Node packages.

    Raises:
        CommandError: Node.js isn't installed, or is too old.
    """
    found = shutil.which("npx")
    if found is None:
        raise CommandError(
            "--mcp-inspector requires Node.js, which isn't installed: there is no npx on the PATH.",
            why=f"The MCP Inspector is a Node package, {INSPECTOR}.",
            fix="Install Node.js 22 or newer, or use /inspect, without --mcp-inspector.",
        )
    _check_node()
    return found


def _check_node() -> None:
    """Check that Node.js is new enough for the MCP Inspector, which exits silently on older versions.

    Raises:
        CommandError: Node.js is too old.
    """
    node = shutil.which("node")
    if node is None:
        return
    try:
        output = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return
    major = output.strip().removeprefix("v").partition(".")[0]
    if major.isdigit() and int(major) < NODE:
        raise CommandError(
            f"--mcp-inspector requires Node.js {NODE} or newer, but this is {output.strip()}.",
            why=f"The MCP Inspector, {INSPECTOR}, doesn't run on older versions.",
            fix="Install a newer Node.js, or use /inspect, without --mcp-inspector.",
        )


class _Beside:
    """The inspector: a page in the browser, or the MCP Inspector."""

    def __init__(self, npx: str, *, opens: bool) -> None:
        self._npx = npx
        self._opens = opens
        self._inspector: subprocess.Popen[bytes] | None = None

    def on_ready(self, facts: Facts) -> None:
        """Open it, once the server is ready."""
        show(facts)
        if self._npx:
            words = [self._npx, "-y", INSPECTOR, "--transport", "http", "--server-url", facts.url]
            environment = {**os.environ, "MCP_AUTO_OPEN_ENABLED": "true" if self._opens else "false"}
            self._inspector = subprocess.Popen(words, env=environment)  # noqa: S603  no shell, and no user input
            return
        page = next(each for each in facts.pages if each.endswith("/inspect"))
        if sys.stderr.isatty():
            sys.stderr.write(f"Try your tools at {page}\n")
        if self._opens and has_browser():
            threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()

    def close(self) -> None:
        """Stop the MCP Inspector."""
        if self._inspector is not None:
            self._inspector.terminate()
            self._inspector.wait()


def has_browser() -> bool:
    """Return whether there's a graphical browser. Otherwise, Python would open a text browser in this terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
