"""``millstream audit``: look whether an audit log is whole."""

from pathlib import Path
from typing import Annotated

import typer

from millstream._app.serving.errors import CommandError
from millstream._cli.showing import print_json
from millstream._telemetry.audit import Broken
from millstream._telemetry.audit import verify as verify_file

audit = typer.Typer(help="Check audit logs.", no_args_is_help=True)


@audit.callback()
def about() -> None:
    """Check audit logs."""


@audit.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The audit log.")],
    *,
    last: Annotated[
        str, typer.Option(help="The hash that the last line has to have, as you noted it earlier.", metavar="HASH")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check that no line was changed, removed or inserted, and print the hash of the last one.

    That lines were cut off at the end shows only if you noted the hash of the last line elsewhere, and give it here.

    **Example**

    - `millstream audit verify audit.jsonl --last HASH`
    """
    try:
        count, found = verify_file(file)
    except OSError as exc:
        raise CommandError(f"{file} can't be read: {exc.strerror}.") from exc
    except Broken as exc:
        raise CommandError(
            str(exc), why="Each line has the hash of the one before.", fix="Compare with a copy."
        ) from exc
    if last and last != found:
        raise CommandError(
            f"{file} ends with another line than you noted.",
            why=f"Its last line has the hash {found}.",
            fix="If lines were added since, give a copy of the file as it was then.",
        )
    if json:
        print_json({"lines": count, "hash": found})
        return
    typer.echo(f"{count} lines, none changed. The last one has the hash {found}")
