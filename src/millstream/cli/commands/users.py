"""``millstream users``: add, list and remove people who may sign in, in a file that running servers follow."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from millstream.app.serving.errors import CommandError
from millstream.auth.issuing.user_file import UserFile
from millstream.protocol.errors import LocalError

DEFAULT = "users.json"

users = typer.Typer(help="Add, list and remove the people who may sign in.", no_args_is_help=True)

File = Annotated[Path, typer.Option("--file", help="The file of users.")]
Name = Annotated[str, typer.Argument(help="Who signs in: tools see it as the caller's subject.")]


@contextmanager
def _told() -> Generator[None, None, None]:
    """What goes wrong is told as the command line tells things."""
    try:
        yield
    except (ValueError, LocalError) as exc:
        raise CommandError(str(exc)) from exc


def _password() -> str:
    """Typed twice at a terminal, which doesn't show it; else the first line of the input."""
    if sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    return sys.stdin.readline().rstrip("\r\n")


@users.command()
def add(
    name: Name,
    *,
    scope: Annotated[
        list[str] | None, typer.Option(help="What they may hand on to a client; repeat it, or '*' for everything.")
    ] = None,
    file: File = Path(DEFAULT),
) -> None:
    """Add somebody. The password is asked for, or read from the input's first line."""
    with _told():
        UserFile(file).add(name, _password(), tuple(scope or ()), time.time())
    typer.echo(f"Added {name} to {file}.", err=True)


@users.command("list")
def list_users(*, file: File = Path(DEFAULT)) -> None:
    """List the people: names and scopes. Passwords aren't kept anywhere."""
    kept = UserFile(file)
    with _told():
        kept.load()
    for each in kept.users.values():
        day = datetime.fromtimestamp(each.since, UTC).strftime("%Y-%m-%d %H:%M")
        typer.echo(f"{each.name}  {' '.join(each.scopes) or 'no scopes'}  since {day}")


@users.command()
def remove(name: Name, *, file: File = Path(DEFAULT)) -> None:
    """Remove somebody. Running servers refuse their tokens within a second, and end their streams."""
    with _told():
        UserFile(file).remove(name)
    typer.echo(f"Removed {name}.", err=True)


@users.command()
def password(name: Name, *, file: File = Path(DEFAULT)) -> None:
    """Give somebody a new password. Clients that they have allowed have to sign in again."""
    with _told():
        UserFile(file).set_password(name, _password(), time.time())
    typer.echo(f"{name} has a new password.", err=True)
