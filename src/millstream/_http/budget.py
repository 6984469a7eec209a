"""A shared byte budget with a limit per owner."""

from collections import Counter


class ByteBudget:
    """A number of bytes, of which one owner (a principal or an address) can take half.

    Args:
        most: total bytes.
        largest: the largest single amount. The budget always fits two of it.
    """

    __slots__ = ("_by_owner", "held", "most")

    def __init__(self, most: int, largest: int = 0) -> None:
        self.most: int = max(most, 2 * largest)
        self.held: int = 0
        self._by_owner: Counter[str] = Counter()

    def fit(self, largest: int) -> None:
        """Grow the budget, if needed, to fit two of this size."""
        self.most = max(self.most, 2 * largest)

    def take(self, owner: str, size: int) -> bool:
        """Count bytes of an owner. Return False if they exceed the budget. They are counted in either case."""
        self.held += size
        self._by_owner[owner] += size
        return self.held <= self.most and not (owner and self._by_owner[owner] > self.most // 2)

    def give(self, owner: str, size: int) -> None:
        """Return bytes to the budget."""
        self.held -= size
        self._by_owner[owner] -= size
        if self._by_owner[owner] <= 0:
            del self._by_owner[owner]
