"""Validators for numbers. Python parses ``nan`` and ``inf``, but no option supports them."""

import math


def finite(_: type, number: float) -> None:
    """Reject infinity and NaN.

    Raises:
        ValueError: the number isn't finite.
    """
    if not math.isfinite(number):
        raise ValueError(f"{number} isn't a finite number.")


def more_than_nothing(kind: type, number: float) -> None:
    """Reject numbers that aren't positive.

    Raises:
        ValueError: the number isn't above 0.
    """
    finite(kind, number)
    if number <= 0:
        raise ValueError(f"{number:g} isn't greater than 0.")
