"""How often somebody may fail, counting those who are still trying: many at once get no more tries than one by one."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from millstream._limits.gcra import Limiter, Rate


class Attempts:
    """One rate of failures, for every key by itself."""

    __slots__ = ("_failures", "_trying")

    def __init__(self, name: str, rate: Rate) -> None:
        self._failures = Limiter(name, rate)
        self._trying: Counter[str] = Counter()

    def may(self, key: str) -> bool:
        """Whether somebody may try now, even if all who are trying fail."""
        return self._failures.left(key) > self._trying[key] if key in self._trying else self._failures.wait(key) <= 0

    @contextmanager
    def trying(self, key: str) -> Generator[None, None, None]:
        """Somebody tries inside the block."""
        self._trying[key] += 1
        try:
            yield
        finally:
            self._trying[key] -= 1
            if not self._trying[key]:
                del self._trying[key]

    def failed(self, key: str) -> None:
        """It was wrong."""
        self._failures.take(key)
