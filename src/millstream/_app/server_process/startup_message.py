"""Start-up messages: the facts about a listening server, as a panel on a terminal or else as one log record.

Both go to standard error, like all logs. The facts are the addresses, items, and protections, and an example call.
"""

import logging
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Struct

from millstream._app.definition import KINDS, Definition
from millstream._config import Settings
from millstream._http.hosts import UNIX, is_loopback
from millstream._protocol.jsonrpc import Json, encode
from millstream._server.features.tools import Tool
from millstream._text import fit_command
from millstream._transports.openapi import example_of
from millstream._version import __version__

if TYPE_CHECKING:
    from rich.console import Console

EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - shown, not bound
NO_AUTH = (
    "There is no authentication: anyone who reaches this address can call every tool. Bind to 127.0.0.1, or let only "
    "an authenticating proxy reach it."
)
NO_TLS = (
    "Keys and tokens are sent unencrypted. Let only a proxy that terminates TLS reach this address, or use "
    "--tls-cert and --tls-key."
)


class Facts(Struct, frozen=True, kw_only=True):
    """Facts about a listening server."""

    name: str
    version: str
    url: str
    sse_url: str
    sets: list[str]
    """URLs of sets of items."""
    pages: list[str]
    """Pages to open in a browser."""
    counts: dict[str, int]
    protections: list[str]
    curl: str
    call: str
    """The same call with `millstream call`."""
    warning: str
    workers: list[int] = []
    """Process ids of several workers."""


def facts(definition: Definition, *, host: str, port: int) -> Facts:
    """Collect the facts of a server that listens on an address."""
    shown = EVERY_ADDRESS.get(host, host)
    registry, settings = definition.registry, definition.settings
    scheme = "https" if settings.tls_cert else "http"
    origin = f"{scheme}://[{shown}]:{port}" if ":" in shown else f"{scheme}://{shown}:{port}"
    local = host.startswith(UNIX)
    url, public = host if local else origin + settings.path, not (local or is_loopback(host))
    if local:  # curl needs a host name, and the server accepts this one
        origin = f"{scheme}://localhost"
    variable = _variable(definition)
    login = variable == "TOKEN" and any(getattr(each, "issuers", None) != () for each in definition.auth)
    curl, call = example_calls(origin + settings.path, registry.tools, signed_in=variable, login=login)
    if local:
        curl = call = curl.replace("curl", f"curl --unix-socket {shlex.quote(host.removeprefix(UNIX))}", 1)
    warned = public and not definition.protected
    clear = NO_TLS if public and not settings.tls_cert else ""
    elsewhere = "" if public or local else _sign_in_elsewhere(definition, origin, port)
    pages = ["docs"] if "rest" in definition.parts else []
    if local:
        pages = []
    elif "web" in definition.parts and not warned:  # without sign-in, private pages require a loopback address
        pages = ["", "dashboard", *(["gateway"] if definition.upstreams else []), "chat", "inspect", "docs"]
    return Facts(
        name=definition.name,
        version=definition.version,
        url=url,
        sse_url=origin + settings.sse_path if settings.sessions and not local else "",
        sets=[] if local else [origin + each.path for each in definition.addresses[1:]],
        pages=[f"{origin}/{page}" for page in pages],
        counts={
            **({"upstreams": len(definition.upstreams)} if definition.upstreams else {}),
            **{kind: len(registry.items[kind]) for kind in KINDS},
        },
        protections=protections(settings, signed_in=definition.protected),
        curl=curl,
        call=call,
        warning=NO_AUTH if warned else clear or elsewhere,
    )


def _sign_in_elsewhere(definition: Definition, origin: str, port: int) -> str:
    """Return a warning if clients are sent to another port of this machine to sign in."""
    for each in definition.auth:
        url = urlsplit(getattr(each, "resource", ""))
        if url.hostname and is_loopback(url.hostname) and url.port != port:
            return (
                f"Clients are sent to {url.scheme}://{url.netloc} to sign in, but this server listens at {origin}. "
                "Unless a proxy is there, write this address in the sign-in options."
            )
    return ""


def protections(settings: Settings, *, signed_in: bool = False) -> list[str]:
    """Return the limits that apply to every client, according to the settings."""
    names = [("Host", "*" not in settings.allowed_hosts), ("Origin", "*" not in settings.allowed_origins)]
    checked = " and ".join(name for name, on in names if on)
    return [
        *(["sign-in required for all callers"] if signed_in else []),
        *([f"{checked} checked"] if checked else []),
        f"bodies ≤ {settings.max_body / 1024 / 1024:g} MiB",
        f"headers ≤ {settings.header_timeout:g} s",
        *(["sealed sessions"] if settings.sessions else ["no sessions"]),
    ]


def _variable(definition: Definition) -> str:
    """Return the variable for the caller's credential: a key if keys are accepted, or else a token, or empty without
    sign-in.
    """
    if not definition.protected:
        return ""
    settings = definition.settings
    keys = (
        settings.auth_key or settings.auth_keys or any(getattr(each, "issuers", None) == () for each in definition.auth)
    )
    return "MCP_SERVER_AUTH_KEY" if keys else "TOKEN"


def _command() -> str:
    """Return the command that starts this program in another window."""
    if shutil.which("millstream"):
        return "millstream"
    path = Path(sys.executable).with_name("millstream")
    if not path.is_file():
        return f"{shlex.quote(sys.executable)} -m millstream"
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def example_calls(url: str, tools: Mapping[str, Tool], *, signed_in: str = "", login: bool = False) -> tuple[str, str]:
    """Return commands that call the first tool that every caller sees and that has an example, or list tools if there's
    none: with curl and with this program.

    The credential comes from a variable, `signed_in`, because the commands appear in logs and on screens. With `login`,
    this program signs in instead.
    """
    message: Json = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    words = [f"{_command()} list", url]
    visible = (each for each in tools.values() if each.enabled and each.visible is None and not each.scopes)
    examples = ((each.name, example_of(each.describe()["inputSchema"])) for each in visible)
    name, arguments = next((each for each in examples if each[1] is not UNSET), ("", Json()))
    if name:
        message |= {"method": "tools/call", "params": {"name": name, "arguments": arguments}}
        given = (f"{key}={each if isinstance(each, str) else encode(each).decode()}" for key, each in arguments.items())
        words = [f"{_command()} call", url, shlex.join([name, *given])]
    body, key = shlex.quote(encode(message).decode()), ""
    if signed_in:
        key = f' --oauth2-bearer "${signed_in}"'
        words.append("--login" if login else f'--auth "${signed_in}"')
    return f"curl -s {url}{key} -H content-type:application/json -d {body}", " ".join(words)


def draw(startup: Facts, console: "Console") -> None:
    """Draw the panel, followed by the command on unbroken lines for copying."""
    from rich.panel import Panel  # noqa: PLC0415  only a terminal needs the drawing library
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    items = (f"{number} {kind if number != 1 else kind[:-1]}" for kind, number in startup.counts.items() if number)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("MCP", Text(startup.url, style="bold cyan"))
    if startup.sse_url:
        table.add_row("HTTP+SSE", Text(startup.sse_url, style="cyan"))
    if startup.sets:
        table.add_row("sets", Text("\n".join(startup.sets), style="cyan"))
    if startup.pages:
        table.add_row("pages", Text("\n".join(startup.pages), style="cyan"))
    table.add_row("has", " · ".join(items) or "nothing yet")
    table.add_row("guard", " · ".join(startup.protections))
    if len(startup.workers) > 1:
        table.add_row("workers", f"{len(startup.workers)} (processes {', '.join(map(str, startup.workers))})")
    if startup.warning:
        table.add_row(Text("warning", style="bold yellow"), Text(startup.warning, style="yellow"))
    title = Text.assemble((startup.name, "bold"), (f" {startup.version}" if startup.version else "", "dim"))
    panel = Panel(table, title=title, title_align="left", subtitle_align="right", padding=(0, 1), expand=False)
    panel.subtitle = Text(f"millstream {__version__}", style="dim")
    panel.border_style = "yellow" if startup.warning else "green"
    console.print(panel)
    console.print(Text("Try it in another window; Ctrl-C stops the server.", style="dim"))
    console.print(Text(fit_command(startup.call, console.width)), soft_wrap=True)


logger = logging.getLogger("millstream")


def show(startup: Facts, *, stream: TextIO | None = None) -> None:
    """Write the facts to standard error: a panel on a terminal, or else one log record (and one for the warning)."""
    target = stream or sys.stderr
    if target.isatty():
        from rich.console import Console  # noqa: PLC0415  see `draw`

        draw(startup, Console(file=target, highlight=False))
        return
    fields = {
        key: value for key, value in msgspec.structs.asdict(startup).items() if key not in ("call", "name", "warning")
    }
    for name in ("workers", "sets"):
        if not fields[name]:
            del fields[name]
    logger.info("%s is serving on %s", startup.name, startup.url, extra={"server": startup.name, **fields})
    if startup.warning:
        logger.warning(startup.warning)
