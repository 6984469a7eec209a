"""What the tests of several workers share."""

from redis_parts import patient  # noqa: F401  for every test
