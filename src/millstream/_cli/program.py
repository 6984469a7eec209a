"""The ``millstream`` program, with all commands or only the requested one, and the options that several commands share.

The command ``version`` is here, too. Usually, `millstream._cli.main` handles it without loading this module.
"""

import re
from collections.abc import Collection, Sequence
from functools import partial
from importlib import import_module
from inspect import Signature, cleandoc, iscoroutinefunction
from itertools import chain
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any

from cyclopts import App, Parameter

from millstream._cli.errors import join_command, usage_errors
from millstream._cli.help import COMMANDS, print_version, show
from millstream._text import fit_command

MODULES = {
    name: module
    for module, names in {
        "accounts": "audit keys users",
        "chat": "chat",
        "dev": "dev",
        "diagnosis": "doctor info ping tokens watch",
        "gateway": "gateway",
        "install": "install",
        "items": "call list prompt read tasks",
        "lock": "check lock",
        "completion": "completion",
        "program": "version",
        "project": "init",
        "record": "record",
        "run": "run",
    }.items()
    for name in names.split()
}
"""Command -> its module, in `millstream._cli`. Each is imported for its own commands only."""


def program(only: str = "") -> App:
    """Return the program. If `only` is a command other than `completion`, it imports only that one."""
    app = App(
        name="millstream",
        help="Millstream: one server for every MCP client, and one client for every MCP server.",
        default_parameter=Parameter(negative=()),
        help_flags=("--help", "-h"),
        version_flags=(),
    )
    for name in [only] if only in MODULES and only != "completion" else chain(*COMMANDS.values()):
        if name not in MODULES:  # help
            continue
        module = import_module(f"millstream._cli.{MODULES[name]}")
        app.command(getattr(module, "list_" if name == "list" else name), name=name)
    return app


def run_command(app: App, arguments: Sequence[str]) -> None:
    """Run a command. Commands that use a server are coroutine functions.

    Raises:
        SystemExit: With the status of the command, unless it's 0.
    """
    with usage_errors(arguments, _options_of):
        command, bound, _ = app.parse_args(list(join_command(arguments)), exit_on_error=False, print_error=False)
        work = partial(command, *bound.args, **bound.kwargs)
        if iscoroutinefunction(command):
            from millstream._cli.connect_options import run_to_exit  # noqa: PLC0415  only for clients

            run_to_exit(work)
        else:
            work()


def _options_of(command: str) -> Collection[str]:
    return [name for each in program(command)[command].assemble_argument_collection() for name in each.names]


_METAVARS: dict[Any, str] = {bool: "", int: "N", Path: "FILE"}
"""Type of an option -> how help shows its value, by default. Others are shown by the name of the option."""


def print_help(app: App, words: Sequence[str]) -> None:
    """Print the help of a command. cyclopts' own help takes a quarter of a second, because it renders Markdown.

    Args:
        app: The program.
        words: The command with its arguments.
    """
    name, default = "millstream", app.default_parameter
    for word in words:
        if word.startswith("-") or word not in app:
            break
        name, app = f"{name} {word}", app[word]
    commands = {word: app[word].help.partition("\n")[0] for word in app if not word.startswith("-")}
    panels = {"Commands": commands} if commands else {}
    usage = f"{name} COMMAND"
    arguments: Any = ()
    if app.default_command is not None:
        usage = f"{name} [OPTIONS]"
        arguments = app.assemble_argument_collection(default_parameter=default, parse_docstring=True)
    for each in (one for one in arguments if one.show):
        option: Any = each.parameter
        text, choices, group = " ".join(option.help.replace("`", "").split()), each.get_choices(), option.group[0].name
        if choices:
            text += f" [choices: {', '.join(choices)}]"
        value = each.field_info.default
        if option.show_default is None and value not in (None, False, "", (), Signature.empty):
            text += f" [default: {value}]"
        label = " ".join(each.names)
        if label.startswith("-"):
            by_name = each.name.lstrip("-").upper()
            label = f"{label} {option.metavar or _METAVARS.get(each.resolved_hint, by_name)}".rstrip()
        else:
            many = f"{label}..." if each.field_info.kind.name == "VAR_POSITIONAL" else label
            usage += f" {many}" if each.required else f" [{many}]"
        panels.setdefault("Options" if group == "Parameters" else group, {})[label] = text
    # The descriptions of arguments are in the panels.
    text = cleandoc(app.help).partition("\n\nArgs:\n")[0]
    text = re.sub(r"(?<=\S)\n(?=\S)", " ", text).replace("**", "")
    text = re.sub(r"\n\n(?=- `)", "\n", text)
    text = re.sub(r"^- `([^`]*)`(?:: (.*))?$", _show_example, text, flags=re.MULTILINE).replace("`", "")
    show(f"Usage: {usage}\n\n{text}", panels)


def _show_example(found: re.Match[str]) -> str:
    """Return an example as a shell shows it, with its comment behind it, or above if the line were too long."""
    command, comment = found.groups()
    line = f"{command}  # {comment}" if comment else command
    if len(line) > _COLUMNS - 2:
        line = (f"# {comment}\n" if comment else "") + fit_command(command, _COLUMNS - 2)
    return indent(line, "  ")


_COLUMNS = 80
"""Columns of the usual terminal."""
EnvFile = Annotated[Path | None, Parameter(help="Set the variables in this file that aren't already set.")]
Json = Annotated[bool, Parameter(help="Print JSON.")]
Packages = Annotated[
    tuple[str, ...], Parameter(name="--with", metavar="PKG", help="Run with this package; needs uv; repeatable.")
]
Editable = Annotated[
    tuple[str, ...],
    Parameter(name="--with-editable", metavar="DIR", help="Run with the package in this folder; needs uv; repeatable."),
]
Port = Annotated[
    int | None, Parameter(alias="-p", metavar="PORT", help="Port to listen on; 0 picks a free port. [default: 8000]")
]
Yes = Annotated[bool, Parameter(alias="-y", help="Don't ask.")]


def version(*, json: Json = False) -> None:
    """Print the version.

    **Example**

    - `millstream version --json`
    """
    print_version(as_json=json)
