"""How many inputs a property test generates: few by day, and the same ones; many, and new ones, in `make nightly`."""

import os

from hypothesis import HealthCheck, settings

NIGHTLY = os.environ.get("NIGHTLY") == "1"
_TIMES = 40


def examples(count: int) -> int:
    """Return `max_examples` for a test that generates `count` inputs by day."""
    return count * _TIMES if NIGHTLY else count


# How long an example takes says something about the machine and nothing about the code.
_QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("day", max_examples=examples(20), derandomize=not NIGHTLY, database=None, **_QUIET)
settings.load_profile("day")
