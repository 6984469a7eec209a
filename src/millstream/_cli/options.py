"""Options of several commands, and validators for numbers."""

import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

EnvFile = Annotated[
    Path | None,
    Parameter(name="--env-file", metavar="FILE", help="Set the variables in this file that aren't already set."),
]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON.")]
Packages = Annotated[
    list[str] | None, Parameter(name="--with", metavar="PKG", help="Run with this package; needs uv. Repeat it.")
]
Editable = Annotated[
    list[str] | None,
    Parameter(name="--with-editable", metavar="DIR", help="Run with the package in this folder; needs uv. Repeat it."),
]
Port = Annotated[
    int | None,
    Parameter(
        name=("--port", "-p"),
        metavar="PORT",
        help="Port to listen on; 0 picks a free port.",
        show_default=lambda _: "8000",
    ),
]
Yes = Annotated[bool, Parameter(name=("--yes", "-y"), help="Don't ask.")]


def finite(_: type, number: float) -> None:
    """Reject infinity and NaN, which Python parses.

    Raises:
        ValueError: The number isn't finite.
    """
    if not math.isfinite(number):
        raise ValueError(f"{number} isn't a finite number.")


def more_than_nothing(kind: type, number: float) -> None:
    """Reject numbers that aren't positive.

    Raises:
        ValueError: The number isn't above 0.
    """
    finite(kind, number)
    if number <= 0:
        raise ValueError(f"{number:g} isn't greater than 0.")
