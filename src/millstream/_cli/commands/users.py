"""``millstream users``: add, list, and remove users in a file that running servers follow."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from millstream._app.server_process.errors import CommandError
from millstream._cli.console import ask_password
from millstream._cli.tables import print_json, print_rows
from millstream._protocol.errors import LocalError

if TYPE_CHECKING:
    from millstream.auth._authorization_server.user_file import UserFile

DEFAULT = "users.json"

users = App(name="users", help="Add, list, and remove users.")

File = Annotated[Path, Parameter(name="--file", metavar="FILE", help="The file of users.")]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON.")]
Name = Annotated[str, Parameter(name="NAME", help="Name of the user, which tools see as the caller's subject.")]


@contextmanager
def _convert_errors() -> Generator[None, None, None]:
    """Show errors in the style of the command line."""
    try:
        yield
    except (ValueError, LocalError) as exc:
        raise CommandError(str(exc)) from exc


def _people(file: Path) -> "UserFile":
    from millstream.auth._authorization_server.user_file import UserFile  # noqa: PLC0415  help needs no cryptography

    return UserFile(file)


def _password() -> str:
    """Read a password: twice from a terminal, without showing it, or else the first line of standard input."""
    if sys.stdin.isatty():
        return ask_password()
    line = sys.stdin.readline()
    if not line:
        raise CommandError("There is no password: the input is empty.", fix="Run this at a terminal, or pipe one in.")
    return line.rstrip("\r\n")


@users.command
def add(
    name: Name,
    /,
    *,
    scope: Annotated[
        list[str] | None,
        Parameter(metavar="SCOPE", help="What they may hand on to a client; repeat it, or '*' for everything."),
    ] = None,
    file: File = Path(DEFAULT),
    json: Json = False,
) -> None:
    """Add a user. The password is read from the terminal, or from the first line of standard input.

    **Examples**

    - `millstream users add ada`

    - `millstream users add grace --scope orders:write`
    """
    with _convert_errors():
        _people(file).add(name, _password(), tuple(scope or ()), time.time())
    _say(f"Added {name} to {file}.", {"added": name, "file": str(file)}, json=json)


def _say(text: str, said: dict[str, str], *, json: bool) -> None:
    if json:
        print_json(said)
    else:
        print(text, file=sys.stderr)


@users.command(name="list")
def list_users(*, file: File = Path(DEFAULT), json: Json = False) -> None:
    """List the users: names and scopes. Passwords aren't stored.

    **Example**

    - `millstream users list --file users.json`
    """
    kept = _people(file)
    with _convert_errors():
        kept.load()
    if json:
        people = [{"name": each.name, "scopes": each.scopes, "since": each.since} for each in kept.users.values()]
        print_json({"users": people})
        return
    rows = [[each.name, " ".join(each.scopes) or "no scopes", _day(each.since)] for each in kept.users.values()]
    print_rows(rows, ["NAME", "SCOPES", "SINCE"])


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


@users.command
def remove(name: Name, /, *, file: File = Path(DEFAULT), json: Json = False) -> None:
    """Remove a user. Running servers refuse their tokens within a second, and close their streams.

    **Example**

    - `millstream users remove ada`
    """
    with _convert_errors():
        _people(file).remove(name)
    _say(f"Removed {name}.", {"removed": name}, json=json)


@users.command
def password(name: Name, /, *, file: File = Path(DEFAULT), json: Json = False) -> None:
    """Change a user's password. Clients that they have approved have to sign in again.

    **Example**

    - `millstream users password ada`
    """
    with _convert_errors():
        _people(file).set_password(name, _password(), time.time())
    _say(f"{name} has a new password.", {"changed": name}, json=json)
