"""Settings of property tests: a few fixed inputs by default, many random ones in `make nightly`."""

import os

from hypothesis import HealthCheck, settings

NIGHTLY = os.environ.get("NIGHTLY") == "1"
_TIMES = 40


def examples(count: int) -> int:
    """Return `max_examples` for a test that generates `count` inputs by default."""
    return count * _TIMES if NIGHTLY else count


# The duration of an example depends on the machine.
_QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("day", max_examples=examples(20), derandomize=not NIGHTLY, database=None, **_QUIET)
settings.load_profile("day")
