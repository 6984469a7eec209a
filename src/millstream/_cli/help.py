"""The output of ``millstream --help``, which lists all commands by purpose, and of ``millstream COMMAND --help``.

It loads rich only for a terminal, so plain help is fast.
"""

import os
import sys
from collections.abc import Mapping
from functools import partial
from textwrap import fill

from millstream._version import __version__

COMMANDS = {
    "Serve": {
        "init": "Create a new project: a server, a test, and their dependencies.",
        "run": "Serve the MCP server in a file or module.",
        "gateway": "Serve other MCP servers and APIs at one address.",
        "dev": "Serve a file while you write it, with an inspector.",
        "install": "Add a server to an application's configuration.",
        "keys": "Create, list, change, revoke, and rotate API keys.",
        "users": "Add, list, change, and remove users.",
        "audit": "Check audit logs.",
    },
    "Use a server (URL, command, script, or file)": {
        "list": "Show its tools, resources, and prompts.",
        "call": "Call a tool.",
        "read": "Print a resource.",
        "prompt": "Print a prompt's messages.",
        "tasks": "Show, wait for, or cancel the tasks that you started.",
        "watch": "Print changes and log messages as they happen.",
        "chat": "Talk to a model that uses its tools.",
    },
    "Inspect a server": {
        "info": "Show its identity, protocol, capabilities, and response time.",
        "ping": "Check whether it responds, and how fast.",
        "doctor": "Diagnose why a connection fails.",
        "tokens": "Show the cost of its tools in tokens.",
        "lock": "Save the definitions that clients see.",
        "check": "Show which changes to its definitions break clients.",
        "record": "Record the messages between a client and a server.",
    },
    "Millstream": {
        "completion": "Complete commands and options in your shell.",
        "version": "Print the version.",
        "help": "Print this help, or help for a command.",
    },
}
"""Heading -> command -> description."""

OVERVIEW = (
    """\
Millstream: one MCP server for every client, and one client for every server.

Usage: millstream COMMAND [OPTIONS]""",
    COMMANDS,
    """
Examples
  millstream dev shop.py
  millstream run shop.py
  millstream list http://127.0.0.1:8000/mcp
  millstream call shop.py order isbn=978-0 copies=2
  millstream call "uvx mcp-server-time" get_current_time
  millstream info https://example.com/mcp --auth KEY

For details of a command: millstream COMMAND --help
""",
)
"""All commands, as arguments of `show`."""


def print_version(*, as_json: bool) -> None:
    """Print the version."""
    sys.stdout.write(f'{{"version": "{__version__}"}}\n' if as_json else f"millstream {__version__}\n")


def show(before: str, panels: Mapping[str, Mapping[str, str]], after: str = "") -> None:
    """Print help, in panels on a terminal or else as plain text.

    Args:
        before: Text above the panels.
        panels: Heading -> name of a command or option -> description.
        after: Text below the panels.
    """
    if not sys.stdout.isatty():
        sys.stdout.write(as_text(before, panels, after))
        return
    from rich.console import Console  # noqa: PLC0415  only on a terminal
    from rich.panel import Panel  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False)
    text = Text(wrap_prose(before, console.width))
    text.highlight_regex("(?m)^Usage: .*|^Examples?$", "bold")
    text.highlight_regex("`[^`]+`", "cyan")
    console.print(text, soft_wrap=True)
    for heading, rows in panels.items():
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=_width(panels))
        table.add_column()
        for name, what in rows.items():
            table.add_row(Text(name, style="cyan"), Text(what))
        console.print(Panel(table, title=heading, title_align="left"))
    console.print(Text(after), end="")


def as_text(before: str, panels: Mapping[str, Mapping[str, str]], after: str = "") -> str:
    """Return help as plain text, wrapped at ``COLUMNS`` or 80 columns."""
    columns, width = os.environ.get("COLUMNS", ""), _width(panels) + 4
    limit = max((int(columns) if columns.isdigit() else 0) or 80, width + 20)
    wrap, lines = partial(fill, width=limit, break_on_hyphens=False), [wrap_prose(before, limit)]
    for heading, rows in panels.items():
        lines += ["", wrap(heading)]
        indent = " " * width
        lines += [
            wrap(what, initial_indent=f"  {name}".ljust(width), subsequent_indent=indent) for name, what in rows.items()
        ]
    return "\n".join([*lines, after])


def wrap_prose(text: str, width: int) -> str:
    """Wrap text, but not its indented lines, which are commands to copy."""
    return "\n".join(
        line
        if line.startswith("  ")
        else fill(line, width, subsequent_indent="  " * line.startswith("- "), break_on_hyphens=False)
        for line in text.splitlines()
    )


def _width(panels: Mapping[str, Mapping[str, str]]) -> int:
    return max(len(name) for rows in panels.values() for name in rows)
