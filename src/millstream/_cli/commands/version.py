"""``millstream version``. Without options other than ``--json``, `millstream._cli.main` answers by itself."""

from typing import Annotated

import typer

import millstream


def version(*, json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the version.

    **Example**

    - `millstream version --json`
    """
    typer.echo(f'{{"version": "{millstream.__version__}"}}' if json else f"millstream {millstream.__version__}")
