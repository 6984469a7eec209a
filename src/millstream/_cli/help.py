"""What ``millstream --help`` prints: every command, by what it is for. It loads nothing, so it is there at once."""

import sys

COMMANDS = {
    "Serve": {
        "init": "Make a new project: a server, a test, and what they need.",
        "run": "Serve the MCP server in a file or module.",
        "gateway": "Serve other MCP servers and APIs at one address.",
        "dev": "Serve it while you write it, with its inspector open.",
        "install": "Write a server into the configuration of an application.",
        "publish": "Print the entry of a server for the MCP registry.",
        "keys": "Make, list, revoke and rotate API keys.",
        "users": "Add, list and remove the people who may sign in.",
        "audit": "Check audit logs.",
    },
    "Use a server (a URL, a command, a script or a configuration file)": {
        "list": "Show its tools, resources and prompts.",
        "call": "Call a tool.",
        "read": "Print a resource.",
        "prompt": "Print the messages of a prompt.",
        "tasks": "Show, wait for, or cancel the tasks that you started.",
        "watch": "Print changes and log messages as they happen.",
        "channel": "Forward its events to a session of Claude Code.",
        "chat": "Talk to a model that uses its tools.",
    },
    "Look into a server": {
        "info": "What it is, what it speaks, what it offers, how fast it answers.",
        "ping": "See whether it answers, and how fast.",
        "doctor": "Find out why a connection fails, and what to do.",
        "tokens": "What its tools cost a model, tool by tool.",
        "bench": "Call it from many connections, and show how fast it answers.",
        "record": "Record what a client and a server say to each other.",
        "replay": "Answer a client from a recording.",
    },
    "Millstream": {
        "completion": "Complete commands and options in your shell.",
        "version": "Print the version.",
        "help": "Print this, or the help of a command.",
    },
}
"""Heading -> command -> what it does."""

_EXAMPLES = """\
Examples
  millstream dev shop.py
  millstream run shop.py
  millstream list http://127.0.0.1:8000/mcp
  millstream call shop.py order isbn=978-0 copies=2
  millstream call "uvx mcp-server-time" get_current_time timezone=Europe/Berlin
  millstream info https://example.com/mcp --header "Authorization: Bearer …"
"""


def print_overview() -> None:
    """Print every command: in the boxes that the help of a command has at a terminal, else as plain text."""
    if not sys.stdout.isatty():
        sys.stdout.write(overview())
        return
    from rich.console import Console  # noqa: PLC0415  only a terminal needs it
    from rich.panel import Panel  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False)
    console.print(Text.assemble(("Usage: ", ""), ("millstream COMMAND [OPTIONS]", "bold")))
    console.print("\nMillstream: one MCP server for every client, and one client for every server.\n")
    width = max(len(name) for group in COMMANDS.values() for name in group)
    for heading, group in COMMANDS.items():
        table = Table.grid(padding=(0, 2))
        table.add_column(style="cyan", min_width=width, no_wrap=True)
        table.add_column()
        for name, what in group.items():
            table.add_row(name, Text(what))
        console.print(Panel(table, title=heading, title_align="left"))
    console.print(Text(_EXAMPLES.rstrip(), style=""))
    console.print("\nEach command explains itself: [bold]millstream COMMAND --help[/bold]")


def overview() -> str:
    """The text."""
    width = max(len(name) for group in COMMANDS.values() for name in group) + 2
    lines = ["Millstream: one MCP server for every client, and one client for every server.", ""]
    lines += ["Usage: millstream COMMAND [OPTIONS]", ""]
    for heading, group in COMMANDS.items():
        lines.append(heading)
        lines += [f"  {name.ljust(width)}{what}" for name, what in group.items()]
        lines.append("")
    return "\n".join(lines) + "\n" + _EXAMPLES + "\nEach command explains itself: millstream COMMAND --help\n"
