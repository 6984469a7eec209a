"""Questions of a command at the terminal."""

from collections.abc import Generator
from contextlib import contextmanager

import typer

from millstream._cli.ending import INTERRUPTED


@contextmanager
def asking() -> Generator[None, None, None]:
    """Ctrl-C at the question inside ends the command as it does anywhere else. (By itself, typer gives it status 1.)"""
    try:
        yield
    except typer.Abort as exc:
        if not isinstance(exc.__context__, KeyboardInterrupt):
            raise
        typer.echo(err=True)
        raise typer.Exit(INTERRUPTED) from None
