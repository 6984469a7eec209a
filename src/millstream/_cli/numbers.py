"""Validators for numbers. Python accepts ``nan`` and ``inf``, but no option supports them."""

import math


def finite(_: type, number: float) -> None:
    """Reject infinity and NaN.

    Raises:
        ValueError: the number isn't finite.
    """
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a finite number.")


def more_than_nothing(kind: type, number: float) -> None:
    """Reject numbers that aren't positive.

    Raises:
        ValueError: the number isn't above 0.
    """
    finite(kind, number)
    if number <= 0:
        raise ValueError(f"{number:g} is not more than 0.")
