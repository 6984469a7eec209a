"""``millstream keys``: create, list, revoke, and rotate API keys in a file that running servers reload."""

import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from millstream._app.server_process.errors import CommandError
from millstream._cli.options import Json, finite
from millstream._cli.tables import print_json, print_rows, report
from millstream._config import PREFIX
from millstream._protocol.errors import LocalError
from millstream.auth._key_file import KeyFile, StoredKey

DEFAULT = "millstream-keys.json"
_DAY = 86_400

keys = App(name="keys", help="Create, list, revoke, and rotate API keys.")

File = Annotated[
    Path | None,
    Parameter(
        name="--file",
        metavar="FILE",
        help="The file of keys.",
        show_default=lambda _: f"{PREFIX}AUTH_KEYS, or {DEFAULT}",
    ),
]
Name = Annotated[str, Parameter(name="NAME", help="Owner of the key: the caller's subject in tools.")]


def _file(given: Path | None) -> KeyFile:
    return KeyFile(given or Path(os.environ.get(f"{PREFIX}AUTH_KEYS") or DEFAULT))


@contextmanager
def convert_errors() -> Generator[None, None, None]:
    """Convert errors to errors of the command line."""
    try:
        yield
    except (ValueError, LocalError) as exc:
        raise CommandError(str(exc)) from exc


@keys.command
def add(
    name: Name,
    /,
    *,
    scope: Annotated[
        list[str] | None, Parameter(metavar="SCOPE", help="Scope of the key; repeat it, or use '*' for all.")
    ] = None,
    days: Annotated[
        float,
        Parameter(
            metavar="DAYS",
            help="Days until it expires; 0 means never.",
            validator=(finite, Number(gte=0, lte=36_500)),
        ),
    ] = 0,
    file: File = None,
    json: Json = False,
) -> None:
    """Create a key, and print it once.

    **Examples**

    - `millstream keys add ada`

    - `millstream keys add robot --scope orders:write --days 30`
    """
    key_file, now = _file(file), time.time()
    with convert_errors():
        key = key_file.add(name, tuple(scope or ()), now, now + days * _DAY if days else None)
    if json:
        print_json({"name": name, "key": key, "file": str(key_file.path)})
        return
    print(f"Added {name} to {key_file.path}. The key won't be shown again:", file=sys.stderr)
    print(key)


@keys.command(name="list")
def list_keys(*, file: File = None, json: Json = False) -> None:
    """List the keys: names, scopes, and times. Only hashes of the keys are stored.

    **Example**

    - `millstream keys list --file keys.json`
    """
    key_file = _file(file)
    with convert_errors():
        key_file.load()
    if json:
        found = [
            {"name": each.name, "scopes": each.scopes, "created": each.created, "expires": each.expires}
            for each in key_file.records
        ]
        print_json({"keys": found})
        return
    rows = [
        [each.name, " ".join(each.scopes) or "no scopes", day(each.created), _end(each)] for each in key_file.records
    ]
    print_rows(rows, ["NAME", "SCOPES", "SINCE", "EXPIRES"])


@keys.command
def revoke(name: Name, /, *, file: File = None, json: Json = False) -> None:
    """Revoke a key. Running servers refuse it within a second, and close its streams.

    **Example**

    - `millstream keys revoke ada`
    """
    key_file = _file(file)
    with convert_errors():
        key_file.revoke(name)
    report(f"Revoked {name}.", {"revoked": name}, json=json)


@keys.command
def rotate(
    name: Name,
    /,
    *,
    grace: Annotated[
        float,
        Parameter(
            metavar="HOURS",
            help="Hours for which the old key still works.",
            validator=(finite, Number(gte=0, lte=87_600)),
        ),
    ] = 24,
    file: File = None,
    json: Json = False,
) -> None:
    """Replace a key with a new one with the same scopes, and print it once.

    **Example**

    - `millstream keys rotate ada --grace 2`
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


def day(at: float) -> str:
    """Return a Unix time as text, to the minute."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _end(key: StoredKey) -> str:
    if key.expires is None:
        return "never"
    return f"{day(key.expires)}{'' if key.valid(time.time()) else ' (expired)'}"
