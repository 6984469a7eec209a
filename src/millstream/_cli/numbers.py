"""Validators of numbers. Python reads ``nan`` and ``inf`` as numbers, too, but no option can mean them."""

import math


def finite(_: type, number: float) -> None:
    """Refuse infinity and what isn't a number.

    Raises:
        ValueError: it's one of those.
    """
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a finite number.")


def more_than_nothing(kind: type, number: float) -> None:
    """Refuse 0 and less, too.

    Raises:
        ValueError: the number isn't above 0.
    """
    finite(kind, number)
    if number <= 0:
        raise ValueError(f"{number:g} is not more than 0.")
