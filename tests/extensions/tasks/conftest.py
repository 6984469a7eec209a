"""The stores for tests of tasks."""

from redis_parts import long_redis_timeouts  # noqa: F401  for every test
from store_parts import shared_backing  # noqa: F401  the fixture `backing`
