"""``millstream audit``: verify an audit log."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from millstream._app.server_process.errors import CommandError
from millstream._cli.options import Json
from millstream._cli.tables import print_json
from millstream._telemetry.audit import BrokenAuditLog
from millstream._telemetry.audit import verify as verify_file

audit = App(name="audit", help="Check audit logs.")


@audit.command
def verify(
    file: Annotated[Path, Parameter(name="FILE", help="The audit log.")],
    /,
    *,
    last: Annotated[
        str, Parameter(metavar="HASH", help="The expected hash of the last line, which you noted earlier.")
    ] = "",
    json: Json = False,
) -> None:
    """Check that no line was changed, removed, or inserted, and print the hash of the last one.

    To detect lines removed from the end, note the hash of the last line elsewhere, and pass it with `--last`.

    **Example**

    - `millstream audit verify audit.jsonl --last HASH`
    """
    try:
        count, found = verify_file(file)
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
        print_json({"lines": count, "hash": found})
        return
    print(f"{count} lines, none changed. The last one has the hash {found}")
