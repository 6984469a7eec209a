"""``millstream run``: serve a file or module over HTTP, or over standard input and output.

For a quick start, `millstream._cli.main` starts servers without this module and the command-line library, unless an
option needs them. Help is quick, because it doesn't import a server.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from millstream._cli import serve_stdio
from millstream._cli.program import Editable, EnvFile, Packages, Port

LISTEN, MCP, SECURITY = (Group(name, sort_key=at) for at, name in enumerate(("Listening", "HTTP", "Security"), start=2))


TransportChoice = StrEnum("TransportChoice", "http stdio sse streamable_http")
LogLevel = StrEnum("LogLevel", "debug info warning error")


Inspect = Annotated[
    tuple[str, ...], Parameter(metavar="URL", help="HTTP: URL of another server that /inspect may reach; repeatable.")
]
_STDIO_OPTIONS = ("options", "transport", "dev", "log_level", "env_file", "packages", "editable")
"""Options that also apply to stdio."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, repr=False)
class ServeOptions:
    """Options of commands that start a server. Each field becomes an option of the command.

    Help shows the docstrings of the fields.
    """

    host: Annotated[str | None, Parameter(metavar="ADDRESS", group=LISTEN)] = None
    """Address to listen on; 0.0.0.0 means every address of this machine. [default: 127.0.0.1]"""
    port: Annotated[Port, Parameter(group=LISTEN)] = None
    uds: Annotated[Path | None, Parameter(metavar="PATH", group=LISTEN)] = None
    """UNIX socket to listen on instead, for a proxy on this machine."""
    transport: Annotated[TransportChoice, Parameter(metavar="NAME", group=LISTEN)] = TransportChoice.http
    """http, sse, streamable-http: serve /mcp and /sse. stdio: communicate with the parent program."""
    workers: Annotated[int, Parameter(group=LISTEN, validator=Number(gte=1, lte=1000))] = 1
    """Number of processes."""
    store: Annotated[str, Parameter(metavar="URL", group=MCP)] = ""
    """Where to store streams and records. [default: as in the program, else memory://]"""
    serve: Annotated[str, Parameter(metavar="PARTS", group=MCP)] = ""
    """What to serve in addition to MCP: hub, rest, web, metrics (separated by commas), or all."""
    auth_keys: Annotated[str | None, Parameter(metavar="FILE", group=SECURITY)] = None
    """A file of keys, created by `millstream keys add`."""
    allow_anonymous: Annotated[bool, Parameter(group=SECURITY)] = False
    """Listen without sign-in, so that anyone who reaches the address can call the tools."""
    log_level: Annotated[LogLevel | None, Parameter(metavar="LEVEL")] = None
    """Minimum log level. [default: info]"""
    env_file: EnvFile = None

    def start(
        self,
        target: str,
        *,
        own: Mapping[str, object] = {},
        settings: Mapping[str, object] = {},
        dev: bool = False,
        **more: Any,
    ) -> None:
        """Serve until stopped.

        Args:
            target: The server.
            own: Values of the command's other options. Those of `run` that stdio ignores cause a warning.
            settings: Settings for HTTP.
            dev: Whether to use the settings for development.
            more: Other arguments of `serve_http`.
        """
        from millstream._cli.serve import serve_http, use_file  # noqa: PLC0415  help does without a server
        from millstream._config import DEV_SETTINGS  # noqa: PLC0415

        use_file(self.env_file)
        always: Mapping[str, object] = DEV_SETTINGS if dev else {}
        if self.transport is TransportChoice.stdio:
            given = {**own, **vars(self)}
            for name, default in {**(run.__kwdefaults__ or {}), **vars(DEFAULTS)}.items():
                if name not in _STDIO_OPTIONS and given.get(name, default) != default:
                    sys.stderr.write(f"Warning: {_option(name)} has no effect with --transport stdio.\n")
            serve_stdio(target, self.log_level or "", settings=always)
            return
        serve_http(
            target,
            self.host if self.uds is None else f"unix:{self.uds}",
            self.port,
            workers=self.workers,
            serve=self.serve,
            store=self.store,
            settings={
                "auth_keys": self.auth_keys,
                "allow_anonymous": self.allow_anonymous or None,
                "log_level": self.log_level,
                **settings,
                **always,
            },
            **more,
        )


DEFAULTS = ServeOptions()


def _option(name: str) -> str:
    return "--auth" if name == "auth_key" else f"--{name.replace('_', '-')}"


def run(  # noqa: PLR0913  the options of the command
    target: Annotated[str, Parameter(name="FILE[:OBJECT]")],
    /,
    *,
    options: ServeOptions = DEFAULTS,
    no_sessions: Annotated[bool, Parameter(group=MCP)] = False,
    json_response: Annotated[bool, Parameter(group=MCP)] = False,
    path: Annotated[str, Parameter(group=LISTEN)] = "",
    reload: bool = False,
    dev: bool = False,
    fd: Annotated[int | None, Parameter(group=LISTEN, validator=Number(gte=0))] = None,
    auth_key: Annotated[str | None, Parameter(name="--auth", group=SECURITY, metavar="KEY")] = None,
    tls_cert: Annotated[str | None, Parameter(group=SECURITY, metavar="FILE")] = None,
    tls_key: Annotated[str | None, Parameter(group=SECURITY, metavar="FILE")] = None,
    packages: Packages = (),
    editable: Editable = (),
    inspect: Inspect = (),
) -> None:
    """Serve the MCP server in a file or module.

    The server is the object you name, or the only `Server`, or the one called `mcp`, `server`, or `app`.

    **Examples**

    - `millstream run shop.py`: http://127.0.0.1:8000/mcp

    - `millstream run shop.py:admin --port 9000`: one of several servers

    - `millstream run shop.py --transport stdio`: for a desktop client

    - `millstream run shop.py --host 0.0.0.0 --auth KEY`: for callers with a key, from anywhere

    - `millstream run shop.py --with pandas`: with a package that isn't installed

    - `millstream run -- uvx mcp-server-git --repository .`: another server, for clients of every revision

    All other settings are environment variables, such as MILLSTREAM_ALLOWED_HOSTS=mcp.example.com.

    Args:
        target: A Python file or module, with OBJECT if it has several servers; or a command or URL of another server.
        no_sessions: Handle each request separately, without sessions.
        json_response: Respond to calls with JSON only, never an event stream.
        path: Path of the MCP endpoint. [default: /mcp]
        reload: Restart when a Python file in the program's folder changes.
        dev: Send errors of your code to callers, and log a line for each message.
        fd: A listening socket to use instead of --host and --port.
        auth_key: Key that callers must send. MCP_SERVER_AUTH_KEY also sets it.
        tls_cert: Serve https with this certificate chain.
        tls_key: The key of the certificate.
    """
    own = locals()
    from millstream._app.server_process import CommandError  # noqa: PLC0415  help does without a server
    from millstream._cli.serve import run_with  # noqa: PLC0415

    secured = {"auth_key": auth_key, "tls_cert": tls_cert, "tls_key": tls_key}
    for name, value in {**secured, "auth_keys": options.auth_keys}.items():
        if value == "":  # perhaps from an unset variable
            option = _option(name)
            raise CommandError(
                f"{option} is empty.",
                why="The server would be less protected than you intend. Perhaps a variable isn't set.",
                fix=f"Set a value for {option}, or leave it out.",
            )
    for name, enabled in {"workers": options.workers > 1, "reload": reload}.items():
        if enabled and options.transport is TransportChoice.stdio:
            raise CommandError(
                f"--{name} requires HTTP: on stdio, each client starts its own process.",
                fix=f"Leave out --{name}, or --transport stdio.",
            )
    run_with(packages, editable)
    options.start(
        target,
        own=own,
        settings={
            "sessions": False if no_sessions else None,
            "json_only": json_response or None,
            "path": "/" + path.strip("/") if path else None,
            "inspect_urls": inspect or None,
            **secured,
        },
        dev=dev,
        descriptor=fd,
        reload=reload,
        web=bool(inspect),
    )
