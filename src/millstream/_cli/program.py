"""The ``millstream`` program: all commands, or only the one that is needed."""

from importlib import import_module
from typing import Any

from cyclopts import App, Parameter

from millstream._cli.help import COMMANDS

MODULES = {
    "run": "run",
    "dev": "dev",
    "gateway": "gateway",
    "init": "init",
    "install": "install",
    "publish": "publish",
    "list": "offers",
    "call": "offers",
    "read": "offers",
    "prompt": "offers",
    "tasks": "tasks",
    "watch": "watch",
    "channel": "channel",
    "chat": "chat",
    "info": "ping",
    "ping": "ping",
    "doctor": "doctor",
    "tokens": "tokens",
    "bench": "bench",
    "record": "record",
    "replay": "replay",
    "keys": "keys",
    "users": "users",
    "audit": "audit",
    "completion": "completion",
    "version": "version",
}
"""Command -> its module, in `millstream._cli.commands`."""


def program(only: str = "") -> App:
    """Return the program. With the name of a command, it contains and imports only that one."""
    app = App(
        name="millstream",
        help="Millstream: one server for every MCP client, and one client for every MCP server.",
        default_parameter=Parameter(negative=(), show_default=_shown),
        help_flags=("--help", "-h"),
        help_format="markdown",
        result_action="return_value",
        version_flags=(),
    )
    for name in [only] if only in MODULES and only != "completion" else MODULES:
        module = import_module(f"millstream._cli.commands.{MODULES[name]}")
        command: Any = getattr(module, "list_" if name == "list" else name)
        if isinstance(command, App):
            command.group = _group(name)
            app.command(command, name=name)
        else:
            app.command(command, name=name, group=_group(name))
    return app


def _group(name: str) -> str:
    return next(heading for heading, group in COMMANDS.items() if name in group)


def _shown(default: Any) -> str | None:
    """Return a default only if it's informative."""
    return str(default) if default not in (None, False, "", ()) else None
