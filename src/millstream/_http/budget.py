"""Bytes that everybody shares and nobody may take all of: how many there are, and who has them."""

from collections import Counter


class ByteBudget:
    """So many bytes in all, and half of them for one owner: a principal or an address. One without a name is alone.

    Args:
        most: bytes in all.
        largest: what anyone may bring at once, so there is always room for two of it.
    """

    __slots__ = ("_by_owner", "held", "most")

    def __init__(self, most: int, largest: int = 0) -> None:
        self.most: int = max(most, 2 * largest)
        self.held: int = 0
        self._by_owner: Counter[str] = Counter()

    def fit(self, largest: int) -> None:
        """Have room for two of this size, too."""
        self.most = max(self.most, 2 * largest)

    def take(self, owner: str, size: int) -> bool:
        """Count bytes of an owner. False when there is no room for them: they are counted all the same."""
        self.held += size
        self._by_owner[owner] += size
        return self.held <= self.most and not (owner and self._by_owner[owner] > self.most // 2)

    def give(self, owner: str, size: int) -> None:
        """The bytes are gone."""
        self.held -= size
        self._by_owner[owner] -= size
        if self._by_owner[owner] <= 0:
            del self._by_owner[owner]
