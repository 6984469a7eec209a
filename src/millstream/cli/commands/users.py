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
from millstream.cli.showing import print_json
from millstream.protocol.errors import LocalError

DEFAULT = "users.json"

users = typer.Typer(help="Add, list and remove the people who may sign in.", no_args_is_help=True)

File = Annotated[Path, typer.Option("--file", help="The file of users.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
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
    json: Json = False,
) -> None:
    """Add somebody. The password is asked for, or read from the input's first line.

    **Examples**

    - `millstream users add ada`

    - `millstream users add grace --scope orders:write`
    """
    with _told():
        UserFile(file).add(name, _password(), tuple(scope or ()), time.time())
    _say(f"Added {name} to {file}.", {"added": name, "file": str(file)}, json=json)


def _say(text: str, said: dict[str, str], *, json: bool) -> None:
    if json:
        print_json(said)
    else:
        typer.echo(text, err=True)


@users.command("list")
def list_users(*, file: File = Path(DEFAULT), json: Json = False) -> None:
    """List the people: names and scopes. Passwords aren't kept anywhere.

    **Example**

    - `millstream users list --file users.json`
    """
    kept = UserFile(file)
    with _told():
        kept.load()
    if json:
        people = [{"name": each.name, "scopes": each.scopes, "since": each.since} for each in kept.users.values()]
        print_json({"users": people})
        return
    for each in kept.users.values():
        day = datetime.fromtimestamp(each.since, UTC).strftime("%Y-%m-%d %H:%M")
        typer.echo(f"{each.name}  {' '.join(each.scopes) or 'no scopes'}  since {day}")


@users.command()
def remove(name: Name, *, file: File = Path(DEFAULT), json: Json = False) -> None:
    """Remove somebody. Running servers refuse their tokens within a second, and end their streams.

    **Example**

    - `millstream users remove ada`
    """
    with _told():
        UserFile(file).remove(name)
    _say(f"Removed {name}.", {"removed": name}, json=json)


@users.command()
def password(name: Name, *, file: File = Path(DEFAULT), json: Json = False) -> None:
    """Give somebody a new password. Clients that they have allowed have to sign in again.

    **Example**

    - `millstream users password ada`
    """
    with _told():
        UserFile(file).set_password(name, _password(), time.time())
    _say(f"{name} has a new password.", {"changed": name}, json=json)
