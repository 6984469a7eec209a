"""The ``millstream`` program: its commands put together, its help and its version."""

from typing import Annotated

import typer

import millstream
from millstream.cli.commands.audit import audit
from millstream.cli.commands.keys import keys
from millstream.cli.commands.run import run

app = typer.Typer(
    name="millstream",
    help="Millstream: one server for every MCP client.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command()(run)
app.add_typer(keys, name="keys")
app.add_typer(audit, name="audit")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"millstream {millstream.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Millstream: one server for every MCP client."""
