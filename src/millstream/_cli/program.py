"""The ``millstream`` program: its commands put together, or the one that is needed."""

from importlib import import_module
from typing import Annotated

import typer

from millstream._cli.commands.version import version
from millstream._cli.help import COMMANDS

MODULES = {
    "run": "run",
    "dev": "dev",
    "init": "init",
    "install": "install",
    "list": "offers",
    "call": "offers",
    "read": "offers",
    "prompt": "offers",
    "watch": "watching",
    "chat": "chat",
    "info": "probing",
    "ping": "probing",
    "doctor": "doctor",
    "tokens": "tokens",
    "bench": "bench",
    "record": "record",
    "replay": "replay",
    "keys": "keys",
    "users": "users",
    "audit": "audit",
    "port": "port",
    "completion": "completion",
    "version": "version",
}
"""Command -> its module, in `millstream._cli.commands`."""


def program(only: str = "") -> typer.Typer:
    """The program; with the name of a command, it has only that one, and loads only what it needs."""
    app = typer.Typer(
        name="millstream",
        help="Millstream: one server for every MCP client, and one client for every MCP server.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(_root)
    for name in [only] if only in MODULES and only != "completion" else MODULES:
        module = import_module(f"millstream._cli.commands.{MODULES[name]}")
        command = getattr(module, "list_" if name == "list" else name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=_panel(name))
        else:
            app.command(name, rich_help_panel=_panel(name))(command)
    return app


def _panel(name: str) -> str:
    return next(heading for heading, group in COMMANDS.items() if name in group)


def _print_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Millstream: one server for every MCP client, and one client for every MCP server."""
