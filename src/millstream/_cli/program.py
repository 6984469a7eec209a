"""The ``millstream`` program, with all commands or only the requested one."""

from importlib import import_module
from inspect import signature
from typing import Any, get_args

from cyclopts import App, Group, Parameter

from millstream._cli.help import COMMANDS

MODULES = {name: name for group in COMMANDS.values() for name in group if name != "help"} | {
    "list": "offers",
    "call": "offers",
    "read": "offers",
    "prompt": "offers",
    "info": "ping",
}
"""Command -> its module, in `millstream._cli.commands`."""
OPTIONS = Group("Options")


def program(only: str = "") -> App:
    """Return the program. With `only`, it contains and imports only that command."""
    app = App(
        name="millstream",
        help="Millstream: one server for every MCP client, and one client for every MCP server.",
        default_parameter=Parameter(negative=(), show_default=_show_default),
        group_parameters=OPTIONS,
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
            subcommands: list[App] = [command[word] for word in [*command] if not word.startswith("-")]
            for each in (command, *subcommands):
                each.group_parameters = OPTIONS
            app.command(command, name=name)
        else:
            app.command(command, name=name, group=_group(name), usage=_usage(name, command))
    return app


def _usage(name: str, command: Any) -> str | None:
    """Return the usage of a command with optional arguments, which cyclopts would show as ARGS."""
    arguments = [each for each in signature(command).parameters.values() if each.kind is not each.KEYWORD_ONLY]
    if all(each.default is each.empty and each.kind is not each.VAR_POSITIONAL for each in arguments):
        return None
    words = [f"Usage: millstream {name} [OPTIONS]"]
    for each in arguments:
        names = next(part.name for part in get_args(each.annotation) if isinstance(part, Parameter) and part.name)
        label = next(iter(names))
        many = "..." if each.kind is each.VAR_POSITIONAL else ""
        words.append(f"[{label}{many}]" if many or each.default is not each.empty else label)
    return " ".join(words)


def _group(name: str) -> str:
    return next(heading for heading, group in COMMANDS.items() if name in group)


def _show_default(default: Any) -> str | None:
    """Return the text of a default, or None if it's not worth showing."""
    return str(default) if default not in (None, False, "", ()) else None
