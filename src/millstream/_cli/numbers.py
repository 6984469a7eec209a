"""Numbers of options. Python reads ``nan`` and ``inf`` as numbers, too, but nobody can wait for so long."""

import math

import typer


def finite(number: float) -> float:
    """For the `callback` of an option.

    Raises:
        BadParameter: it's infinite, or not a number.
    """
    if not math.isfinite(number):
        raise typer.BadParameter(f"{number} is not a finite number.")
    return number


def more_than_nothing(number: float) -> float:
    """The same for what has to be above 0."""
    if finite(number) <= 0:
        raise typer.BadParameter(f"{number:g} is not more than 0.")
    return number
