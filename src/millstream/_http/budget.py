"""A shared byte budget with a limit per owner."""

from collections import Counter


class ByteBudget:
    """A number of bytes, of which one owner (a principal or an address) can take half.

    Args:
        max_bytes: total bytes.
        largest: the largest single amount. The budget always fits two of it.
    """

    __slots__ = ("_by_owner", "max_bytes", "used")

    def __init__(self, max_bytes: int, largest: int = 0) -> None:
        self.max_bytes: int = max(max_bytes, 2 * largest)
        self.used: int = 0
        self._by_owner: Counter[str] = Counter()

    def fit(self, largest: int) -> None:
        """Grow the budget, if needed, to fit two of this size."""
        self.max_bytes = max(self.max_bytes, 2 * largest)

    def acquire(self, owner: str, size: int) -> bool:
        """Count bytes of an owner. Return False if they exceed the budget. They are counted in either case."""
        self.used += size
        self._by_owner[owner] += size
        return self.used <= self.max_bytes and not (owner and self._by_owner[owner] > self.max_bytes // 2)

    def release(self, owner: str, size: int) -> None:
        """Return bytes to the budget."""
        self.used -= size
        self._by_owner[owner] -= size
        if self._by_owner[owner] <= 0:
            del self._by_owner[owner]
