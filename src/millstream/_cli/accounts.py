"""``millstream keys``, ``users``, and ``audit``: API keys and users in files, and the check of audit logs.

Running servers reload both files, so a change needs no restart.
"""

import os
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from millstream._app.server_process import CommandError
from millstream._cli.errors import finite
from millstream._cli.program import Json
from millstream._cli.tables import ask_password, print_json, print_rows, report
from millstream._config import PREFIX
from millstream._protocol.errors import LocalError
from millstream._telemetry.messages import BrokenAuditLog
from millstream._telemetry.messages import verify as verify_file
from millstream._text import pluralize
from millstream.auth._key_file import KeyFile, StoredKey

if TYPE_CHECKING:
    from millstream.auth._authorization_server.users import StoredUser, UserFile


KEY_FILE = "millstream-keys.json"
_DAY = 86_400

keys = App(name="keys", help="Create, list, change, revoke, and rotate API keys.")

KeyFileOption = Annotated[
    Path | None,
    Parameter(help=f"The file of keys. [default: {PREFIX}AUTH_KEYS, or {KEY_FILE}]"),
]
Owner = Annotated[str, Parameter(name="NAME", help="Owner of the key: the caller's subject in tools.")]


def _file(given: Path | None) -> KeyFile:
    return KeyFile(given or Path(os.environ.get(f"{PREFIX}AUTH_KEYS") or KEY_FILE))


@contextmanager
def convert_errors() -> Generator[None]:
    """Convert errors to command-line errors."""
    try:
        yield
    except (ValueError, LocalError) as exc:
        raise CommandError(str(exc)) from exc


@keys.command(name="add")
def add_key(
    name: Owner,
    /,
    *,
    scope: tuple[str, ...] = (),
    group: tuple[str, ...] = (),
    days: Annotated[float, Parameter(validator=(finite, Number(gte=0, lte=36_500)))] = 0,
    file: KeyFileOption = None,
    json: Json = False,
) -> None:
    """Create a key and print it once.

    **Examples**

    - `millstream keys add ada`

    - `millstream keys add robot --scope orders:write --days 30`

    - `millstream keys add ian --group interns`

    Args:
        scope: Scope of the key; repeat it, or use '*' for all.
        group: Group for policies of a gateway; repeat it for several.
        days: Days until it expires. 0 means never.
    """
    key_file, now = _file(file), time.time()
    with convert_errors():
        key = key_file.add(name, scope, now, now + days * _DAY if days else None, group)
    if json:
        print_json({"name": name, "key": key, "file": str(key_file.path)})
        return
    print(f"Added {name} to {key_file.path}. The key won't be shown again:", file=sys.stderr)
    print(key)


@keys.command(name="list")
def list_keys(*, file: KeyFileOption = None, json: Json = False) -> None:
    """List each key's name, scopes, groups, creation time, and expiration time. Only hashes of the keys are stored.

    **Example**

    - `millstream keys list --file keys.json`
    """
    key_file = _file(file)
    with convert_errors():
        key_file.load()
    if json:
        _print_as_json("keys", key_file.records, "created", "expires")
        return
    rows = [[*_rights(each), day(each.created), _end(each)] for each in key_file.records]
    print_rows(rows, [*_COLUMNS, "EXPIRES"])


@keys.command(name="change")
def change_key(
    name: Owner,
    /,
    *,
    scope: tuple[str, ...] = (),
    group: tuple[str, ...] = (),
    file: KeyFileOption = None,
    json: Json = False,
) -> None:
    """Replace a key's scopes and groups. Those you don't list are removed. The key itself stays the same.

    **Example**

    - `millstream keys change bob --scope orders:write --group staff`

    Args:
        scope: Scope of the key; repeat it, or use '*' for all.
        group: Group for policies of a gateway; repeat it for several.
    """
    _set_rights(_file(file), name, scope, group, json=json)


@keys.command
def revoke(name: Owner, /, *, file: KeyFileOption = None, json: Json = False) -> None:
    """Revoke a key. Running servers reject it within a second, and close its streams.

    **Example**

    - `millstream keys revoke ada`
    """
    with convert_errors():
        _file(file).remove(name)
    report(f"Revoked {name}.", {"revoked": name}, json=json)


@keys.command
def rotate(
    name: Owner,
    /,
    *,
    grace: Annotated[float, Parameter(metavar="HOURS", validator=(finite, Number(gte=0, lte=87_600)))] = 24,
    file: KeyFileOption = None,
    json: Json = False,
) -> None:
    """Replace a key with a new one with the same scopes and groups and print it once.

    **Example**

    - `millstream keys rotate ada --grace 2`

    Args:
        grace: Hours for which the old key still works.
    """
    key_file = _file(file)
    with convert_errors():
        key = key_file.rotate(name, time.time(), grace * 3600)
    if json:
        print_json({"name": name, "key": key, "graceHours": grace})
        return
    print(
        f"Rotated {name}. The old key works for {grace:g} more hours. The new one won't be shown again:",
        file=sys.stderr,
    )
    print(key)


def _set_rights(
    file: "KeyFile | UserFile", name: str, scopes: tuple[str, ...], groups: tuple[str, ...], *, json: bool
) -> None:
    with convert_errors():
        file.set_rights(name, scopes, groups)
    text = f"{name} now has {_write_list('scope', scopes)} and {_write_list('group', groups)}."
    report(text, {"changed": name, "scopes": scopes, "groups": groups}, json=json)


def _write_list(kind: str, names: tuple[str, ...]) -> str:
    return f"the {kind}{'' if len(names) == 1 else 's'} {', '.join(names)}" if names else f"no {kind}s"


_COLUMNS = ["NAME", "SCOPES", "GROUPS", "SINCE"]


def _print_as_json(kind: str, owners: Iterable["StoredKey | StoredUser"], *times: str) -> None:
    members = ("name", "scopes", "groups", *times)
    print_json({kind: [{member: getattr(each, member) for member in members} for each in owners]})


def _rights(owner: "StoredKey | StoredUser") -> list[str]:
    """Return a name, its scopes, and its groups, as shown in a row."""
    return [owner.name, " ".join(owner.scopes) or "no scopes", " ".join(owner.groups) or "no groups"]


def day(at: float) -> str:
    """Return a Unix time as text, to the minute."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _end(key: StoredKey) -> str:
    if key.expires is None:
        return "never"
    return f"{day(key.expires)}{'' if key.valid(time.time()) else ' (expired)'}"


USER_FILE = Path("users.json")

users = App(name="users", help="Add, list, change, and remove users.")

UserFileOption = Annotated[Path, Parameter(help="The file of users.")]
UserName = Annotated[str, Parameter(name="NAME", help="Name of the user: the caller's subject in tools.")]


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
            "There is no password: the input is empty.", fix="Run this in a terminal, or pipe a password to it."
        )
    return line.rstrip("\r\n")


@users.command(name="add")
def add_user(
    name: UserName,
    /,
    *,
    scope: tuple[str, ...] = (),
    group: tuple[str, ...] = (),
    file: UserFileOption = USER_FILE,
    json: Json = False,
) -> None:
    """Add a user. The password is read from the terminal, or from the first line of standard input.

    **Examples**

    - `millstream users add ada`

    - `millstream users add grace --scope orders:write --group staff`

    Args:
        scope: Scope that they can grant to clients; repeat it, or use '*' for all.
        group: Group for policies of a gateway; repeat it for several.
    """
    from millstream.auth._authorization_server.users import check_user_name  # noqa: PLC0415  loads cryptography

    with convert_errors():
        check_user_name(name)  # before the password is typed
        _people(file).add(name, _password(), scope, time.time(), group)
    report(f"Added {name} to {file}.", {"added": name, "file": str(file)}, json=json)


@users.command(name="list")
def list_users(*, file: UserFileOption = USER_FILE, json: Json = False) -> None:
    """List each user's name, scopes, groups, and creation time.

    **Example**

    - `millstream users list --file users.json`
    """
    user_file = _people(file)
    with convert_errors():
        user_file.load()
    people = user_file.users.values()
    if json:
        _print_as_json("users", people, "since")
        return
    print_rows([[*_rights(each), day(each.since)] for each in people], _COLUMNS)


@users.command(name="change")
def change_user(
    name: UserName,
    /,
    *,
    scope: tuple[str, ...] = (),
    group: tuple[str, ...] = (),
    file: UserFileOption = USER_FILE,
    json: Json = False,
) -> None:
    """Replace a user's scopes and groups. Those you don't list are removed.

    It applies to new tokens, which clients get within fifteen minutes. For more scopes, users have to sign in again.

    **Example**

    - `millstream users change grace --scope orders:write --group staff`

    Args:
        scope: Scope that they can grant to clients; repeat it, or use '*' for all.
        group: Group for policies of a gateway; repeat it for several.
    """
    _set_rights(_people(file), name, scope, group, json=json)


@users.command
def remove(name: UserName, /, *, file: UserFileOption = USER_FILE, json: Json = False) -> None:
    """Remove a user. Running servers reject their tokens within a second, and close their streams.

    **Example**

    - `millstream users remove ada`
    """
    with convert_errors():
        _people(file).remove(name)
    report(f"Removed {name}.", {"removed": name}, json=json)


@users.command
def password(name: UserName, /, *, file: UserFileOption = USER_FILE, json: Json = False) -> None:
    """Change a user's password. Clients that the user has approved have to sign in again.

    **Example**

    - `millstream users password ada`
    """
    with convert_errors():
        _people(file).set_password(name, _password(), time.time())
    report(f"Changed the password of {name}.", {"changed": name}, json=json)


audit = App(name="audit", help="Check audit logs.")


@audit.command
def verify(file: Path, /, *, last: Annotated[str, Parameter(metavar="HASH")] = "", json: Json = False) -> None:
    """Check that no line was changed, removed, or inserted, and print the hash of the last one.

    To detect lines removed from the end, note the hash of the last line elsewhere, and pass it with `--last`.

    **Example**

    - `millstream audit verify audit.jsonl --last HASH`

    Args:
        file: The audit log.
        last: The expected hash of the last line, which you noted earlier.
    """
    try:
        count, found, lost = verify_file(file)
    except OSError as exc:
        raise CommandError(f"{file} can't be read: {exc.strerror}.") from exc
    except BrokenAuditLog as exc:
        raise CommandError(
            str(exc), why="Each line contains the hash of the previous line.", fix="Compare the file with a copy."
        ) from exc
    if last and last != found:
        raise CommandError(
            f"The last line of {file} doesn't have the expected hash.",
            why=f"Its last line has the hash {found}.",
            fix="If lines were added since you noted it, check a copy from that time.",
        )
    if json:
        print_json({"lines": count, "hash": found, "lost": lost})
        return
    print(f"Checked {count} lines. None were changed. The last line has the hash {found}")
    if lost:
        print(f"{pluralize(lost, 'record')} couldn't be written. The lines with the method lost say when.")
