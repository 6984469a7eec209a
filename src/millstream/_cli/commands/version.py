"""``millstream version``. Usually, `millstream._cli.main` handles it without loading this module."""

from millstream._cli.options import Json
from millstream._version import __version__


def version(*, json: Json = False) -> None:
    """Print the version.

    **Example**

    - `millstream version --json`
    """
    print(f'{{"version": "{__version__}"}}' if json else f"millstream {__version__}")
