"""``millstream users``: add, list, and remove users in a file that running servers reload."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from millstream._app.server_process.errors import CommandError
from millstream._cli.commands.keys import convert_errors, day
from millstream._cli.options import Json
from millstream._cli.tables import ask_password, print_json, print_rows, report

if TYPE_CHECKING:
    from millstream.auth._authorization_server.users import UserFile

DEFAULT = "users.json"

users = App(name="users", help="Add, list, and remove users.")

File = Annotated[Path, Parameter(name="--file", metavar="FILE", help="The file of users.")]
Name = Annotated[str, Parameter(name="NAME", help="Name of the user: the caller's subject in tools.")]


def _people(file: Path) -> "UserFile":
    from millstream.auth._authorization_server.users import UserFile  # noqa: PLC0415  loads cryptography

    return UserFile(file)


def _password() -> str:
    """Read a password: twice without echo from a terminal, or else from the first line of standard input."""
    if sys.stdin.isatty():
        return ask_password()
    line = sys.stdin.readline()
    if not line:
        raise CommandError(
            "There is no password: the input is empty.", fix="Run this on a terminal, or pipe a password to it."
        )
    return line.rstrip("\r\n")


@users.command
def add(
    name: Name,
    /,
    *,
    scope: Annotated[
        list[str] | None,
        Parameter(metavar="SCOPE", help="Scope that they may grant to clients; repeat it, or use '*' for all."),
    ] = None,
    file: File = Path(DEFAULT),
    json: Json = False,
) -> None:
    """Add a user. The password is read from the terminal, or from the first line of standard input.

    **Examples**

    - `millstream users add ada`

    - `millstream users add grace --scope orders:write`
    """
    with convert_errors():
        _people(file).add(name, _password(), tuple(scope or ()), time.time())
    report(f"Added {name} to {file}.", {"added": name, "file": str(file)}, json=json)


@users.command(name="list")
def list_users(*, file: File = Path(DEFAULT), json: Json = False) -> None:
    """List the users: names and scopes.

    **Example**

    - `millstream users list --file users.json`
    """
    user_file = _people(file)
    with convert_errors():
        user_file.load()
    if json:
        people = [{"name": each.name, "scopes": each.scopes, "since": each.since} for each in user_file.users.values()]
        print_json({"users": people})
        return
    rows = [[each.name, " ".join(each.scopes) or "no scopes", day(each.since)] for each in user_file.users.values()]
    print_rows(rows, ["NAME", "SCOPES", "SINCE"])


@users.command
def remove(name: Name, /, *, file: File = Path(DEFAULT), json: Json = False) -> None:
    """Remove a user. Running servers refuse their tokens within a second, and close their streams.

    **Example**

    - `millstream users remove ada`
    """
    with convert_errors():
        _people(file).remove(name)
    report(f"Removed {name}.", {"removed": name}, json=json)


@users.command
def password(name: Name, /, *, file: File = Path(DEFAULT), json: Json = False) -> None:
    """Change a user's password. Clients that the user has approved have to sign in again.

    **Example**

    - `millstream users password ada`
    """
    with convert_errors():
        _people(file).set_password(name, _password(), time.time())
    report(f"{name} has a new password.", {"changed": name}, json=json)
