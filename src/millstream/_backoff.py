"""The delay between attempts, so that a failing server isn't flooded, and its clients don't all return at once."""

from random import uniform


def retry_delay(attempt: int, first: float, most: float, *, jitter: float = 0.25) -> float:
    """Return the seconds before the next attempt. They double each time, up to a maximum.

    Args:
        attempt: Number of delays before this one.
        first: The first delay.
        most: Maximum delay.
        jitter: Part of the delay that is random, from 0 to 1.
    """
    return min(first * 2.0 ** min(attempt, 99), most) * uniform(1 - jitter, 1)  # noqa: S311  no secret
