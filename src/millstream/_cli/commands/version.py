"""``millstream version``. Usually, `millstream._cli.main` handles it without loading this module."""

from typing import Annotated

from cyclopts import Parameter

from millstream._version import __version__


def version(*, json: Annotated[bool, Parameter(help="Print JSON.")] = False) -> None:
    """Print the version.

    **Example**

    - `millstream version --json`
    """
    print(f'{{"version": "{__version__}"}}' if json else f"millstream {__version__}")
