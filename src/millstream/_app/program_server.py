"""A server for one program of another library: its name, items, paths, and token check."""

import logging
import os
import sys
from typing import Any

from millstream._app.gateway_server import START_TIMEOUT
from millstream._app.server import Server
from millstream._app.user_routes import application_at
from millstream._config import Settings
from millstream.gateway._programs import hosts_and_origins, library_of
from millstream.gateway._programs.auth import ProgramAuth
from millstream.gateway._programs.program import SIGN_IN, HttpSide, program_of


def server_of(value: Any) -> Server:
    """Return a server that offers the items of another library's server object, under the same names and paths.

    The program's token check protects every path, its own paths stay public, and pages may read responses only from
    origins that the program allows with CORS.

    Args:
        value: Server object; see `millstream.gateway._programs.library_of`.

    Raises:
        ProgramError: It can't run this way; the message says why and what to do.
    """
    program = program_of(value)
    side = program.side
    _quiet_logs()
    server = Server(
        program.name,
        version=program.version,
        settings=_settings_of(value, side),
        auth=ProgramAuth(program, side) if side is not None and side.protected else None,
    )
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


def _settings_of(value: Any, side: HttpSide | None) -> Settings:
    """Return the settings from the environment, with the program's HTTP settings as defaults."""
    changed: dict[str, Any] = {}
    cors_origins = () if side is None else side.cors_origins
    manager = None if side is None else side.session_manager
    shared = getattr(sys.modules.get(library_of(value)), "settings", None)  # of all servers of fastmcp
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
