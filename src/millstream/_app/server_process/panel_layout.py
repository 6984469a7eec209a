"""The start-up panel on a terminal."""

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from millstream._app.server_process.facts import Facts
from millstream._version import __version__


def draw(told: Facts, console: Console) -> None:
    """Draw the panel, followed by the command on unbroken lines for copying."""
    has = " · ".join(_count(number, kind) for kind, number in told.counts.items() if number) or "nothing yet"
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("MCP", Text(told.url, style="bold cyan"))
    if told.sse_url:
        table.add_row("HTTP+SSE", Text(told.sse_url, style="cyan"))
    if told.pages:
        first, *more = told.pages
        table.add_row(
            "pages", Text(" · ".join([first, *("/" + page.rsplit("/", 1)[1] for page in more)]), style="cyan")
        )
    table.add_row("has", has)
    table.add_row("guard", " · ".join(told.protections))
    if len(told.workers) > 1:
        table.add_row("workers", f"{len(told.workers)} (processes {', '.join(map(str, told.workers))})")
    if told.warning:
        table.add_row(Text("warning", style="bold yellow"), Text(told.warning, style="yellow"))
    title = Text.assemble((told.name, "bold"), (f" {told.version}" if told.version else "", "dim"))
    panel = Panel(table, title=title, title_align="left", subtitle_align="right", padding=(0, 1), expand=False)
    panel.subtitle = Text(f"millstream {__version__}", style="dim")
    panel.border_style = "yellow" if told.warning else "green"
    console.print(panel)
    console.print(Text("Try it in another window; Ctrl-C stops the server.", style="dim"))
    console.print(Text(told.call), soft_wrap=True)


def _count(number: int, kind: str) -> str:
    return f"{number} {kind if number != 1 else kind[:-1]}"


__all__ = ["Console", "draw"]
