"""Servers with items from elsewhere: a configuration file, one upstream, or a server object of another library.

A configuration file is a ``gateway.toml``, or the `mcpServers` of another application.
"""

import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from millstream._app.server import Server
from millstream._config import ConfigVersion, Settings, VariableError
from millstream._gateway.files.live import LiveConfig
from millstream._gateway.files.values import ConfigError, GatewayConfig
from millstream._gateway.part import check
from millstream._gateway.programs.libraries import hosts_and_origins, library_of

if TYPE_CHECKING:
    from millstream._gateway.programs.program import ProgramApplication

logger = logging.getLogger("millstream.gateway")
START_TIMEOUT = 30.0
"""Seconds to wait at startup for the lists of a command or program, because there's nothing else to offer."""


def server_of_upstream(target: str | list[str]) -> Server:
    """Return a server that offers the items of one other server, under their own names.

    A command inherits the operator's environment variables, except for Millstream's.

    Args:
        target: A URL, a script, or a command as text or list.

    Raises:
        ValueError: The target isn't a server.
        VariableError: An environment variable is invalid.
    """
    name = _name_of(target)
    made = Server(name)
    made.definition.named = False
    if "://" in target:
        made.upstream(name, target, prefix="")
    else:
        ours = ("MILLSTREAM_", "MCP_SERVER_AUTH_KEY")
        env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        made.upstream(name, target, prefix="", env=env, start_timeout=START_TIMEOUT)
    check(made.definition.upstreams)
    return made


def _name_of(target: str | list[str]) -> str:
    """Return a name for a server: its host, or its program."""
    if isinstance(target, str) and "://" in target:
        return urlsplit(target).hostname or "server"
    words = re.findall(r""""[^"]*"|'[^']*'|\S+""", target) if isinstance(target, str) else target
    names = [Path(word.strip("\"'")).name for word in words]
    return next((name for name in names[1:] if re.fullmatch(r"[@\w][@\w.-]*", name)), names[0])


def server_of_file(path: Path, only: str = "", version: ConfigVersion | None = None) -> Server:
    """Return the server that a file describes, with its upstreams.

    Args:
        path: Path of a ``gateway.toml``, or of a JSON file with `mcpServers` or `servers`.
        only: Name of the one upstream to offer, under its own names, or of the only set. By default, all of them.
        version: The version to use, in a worker whose parent process watches the file. By default, the file as it is.

    Raises:
        ConfigError: The file can't be used. The message identifies the line.
        VariableError: An environment variable is invalid.
    """
    live = LiveConfig(path, only, version)
    config = live.config
    try:
        settings = Settings.load(**config.settings)
        made = Server(
            config.name,
            version=config.version,
            instructions=config.instructions,
            store=config.store,
            serve=config.serve,
            settings=settings,
            auth=list(config.auth) or None,
        )
    except VariableError:
        raise
    except ValueError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    made.definition.named = config.name != GatewayConfig().name
    if not config.upstreams and path.suffix == ".toml":
        raise ConfigError(f"{path} has no upstreams. Add a table such as [upstreams.files].")
    if not config.upstreams:
        logger.warning("%s lists no servers that are enabled, so the gateway offers nothing.", path)
    for each in live.choose(config):
        made.definition.add_upstream(each)
    for some in live.choose_sets(config, settings.path):
        try:
            made.definition.add_set(some)
        except ValueError as exc:
            raise ConfigError(f"{path}: {exc}") from exc
    made.definition.live = live
    return made


def server_of(value: Any) -> Server:
    """Return a server that offers the items of another library's server object, under the same names and paths.

    The program's token check protects all paths but the program's own, which stay public. Pages of other origins can
    read responses if the program allows CORS.

    Args:
        value: Server object. See `millstream._gateway.programs.libraries.library_of`.

    Raises:
        ProgramError: It can't run this way. The message explains why and suggests a fix.
    """
    from millstream._app.user_routes import application_at  # noqa: PLC0415  only for other libraries
    from millstream._gateway.programs.auth import ProgramAuth  # noqa: PLC0415
    from millstream._gateway.programs.program import SIGN_IN, program_of  # noqa: PLC0415

    program = program_of(value)
    side = program.side
    _quiet_logs()
    server = Server(
        program.name,
        version=program.version,
        settings=_settings_of(value, side),
        auth=ProgramAuth(program, side) if side is not None and side.protected else None,
    )
    server.definition.named = False  # it gets the upstream's name
    if side is not None:
        if side.mcp_path and not os.environ.get("MILLSTREAM_PATH"):
            server.definition.configure(path=side.mcp_path)
        for each in side.own_paths():
            if not each.path.startswith(SIGN_IN):
                server.definition.add_path(
                    application_at(each.path, side.application, methods=each.methods, below=each.below)
                )
    server.upstream(program.name, program, prefix="", start_timeout=START_TIMEOUT)
    return server


def _quiet_logs() -> None:
    """Remove the root handler that the SDK's FastMCP installs, so that each log record is written once.

    Its request log duplicates this server's.
    """
    root = logging.getLogger()
    for handler in [each for each in root.handlers if type(each).__name__ == "RichHandler"]:
        root.removeHandler(handler)
    library = logging.getLogger("mcp")
    if library.level == logging.NOTSET:
        library.setLevel(logging.WARNING)


def _settings_of(value: Any, side: "ProgramApplication | None") -> Settings:
    """Return the settings from the environment, with the program's HTTP settings as defaults."""
    changed: dict[str, Any] = {}
    cors_origins = () if side is None else side.cors_origins
    manager = None if side is None else side.session_manager
    shared = getattr(sys.modules.get(library_of(value)), "settings", None)  # settings of all fastmcp servers
    if getattr(manager, "stateless", False) or getattr(shared, "stateless_http", False):
        changed["sessions"] = False
    if getattr(manager, "json_response", False) or getattr(shared, "json_response", False):
        changed["json_only"] = True
    security: Any = None
    if library_of(value) == "mcp":  # in fastmcp, `settings` is something else
        security = getattr(getattr(value, "settings", None), "transport_security", None)
    origins: tuple[str, ...] = cors_origins
    if security is not None and security.enable_dns_rebinding_protection:
        changed["allowed_hosts"], allowed_origins = hosts_and_origins(security)
        origins = origins or allowed_origins
    if origins:
        changed["allowed_origins"] = origins
    changed["cors"] = bool(cors_origins)
    return Settings.load(
        **{name: each for name, each in changed.items() if f"MILLSTREAM_{name.upper()}" not in os.environ}
    )
