"""``millstream port``: see whether a program for another library runs here, and change its imports."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from millstream._app.serving.errors import CommandError
from millstream._cli.showing import print_json, print_rows
from millstream._protocol.errors import MissingExtra

if TYPE_CHECKING:
    from millstream.compat._porting.survey import Survey


def port(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A program for the official SDK's FastMCP, or fastmcp.")],
    *,
    write: Annotated[bool, typer.Option("--write", help="Change the imports, unless something is missing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a program uses from the official SDK's server module or fastmcp, and what Millstream has of it.

    It runs nothing. The exit status is 0 if Millstream has everything, 1 if something is missing, and 2 if the
    program uses neither library.

    **Examples**

    - `millstream port server.py`

    - `millstream port server.py --write`
    """
    source = _read(file)
    found = _survey(source, file)
    if json:
        print_json({"uses": list(found.uses), "missing": len(found.missing)})
    else:
        _show(found, file)
    if not found.uses:
        raise typer.Exit(2)
    if write and found.missing:
        sys.stderr.write(
            f"{file.name} stays as it is: it wouldn't run, because of what's missing. Change that first.\n"
        )
    elif write and found.changes:
        _write(file, source, found)
    raise typer.Exit(1 if found.missing else 0)


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it isn't UTF-8"
        raise CommandError(f"{file} can't be read: {why}.", fix="Give a Python file.") from error


def _survey(source: str, file: Path) -> "Survey":
    try:
        from millstream.compat._porting.survey import survey  # noqa: PLC0415  it needs an extra
    except MissingExtra as error:
        raise CommandError(error.what, fix=f"Run: {error.remedy}") from error
    try:
        return survey(source, str(file))
    except SyntaxError as error:
        raise CommandError(f"{file} is not Python: {error}.", fix="Correct that line.") from error


def _show(found: "Survey", file: Path) -> None:
    rows = [
        [f"{file.name}:{use.line}", "here" if use.there else "MISSING", use.what, use.differs] for use in found.uses
    ]
    if rows:
        print_rows(rows, ["LINE", "", "WHAT", "DIFFERENCE"])
    else:
        sys.stderr.write(f"{file.name} imports neither mcp.server.fastmcp nor fastmcp.\n")


def _write(file: Path, source: str, found: "Survey") -> None:
    from millstream.compat._porting.rewriting import difference, rewritten  # noqa: PLC0415  only where it is asked for

    after = rewritten(source, found.changes)
    sys.stdout.write(difference(source, after, file.name))
    file.write_text(after, "utf-8")
