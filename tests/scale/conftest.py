"""What the tests of several workers share."""

from redis_parts import long_redis_timeouts  # noqa: F401  for every test
