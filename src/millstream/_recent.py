"""A bounded dictionary for values that can be read or computed again."""

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from millstream._override import override

K = TypeVar("K")
V = TypeVar("V")


class Recent(OrderedDict[K, V]):
    """A dictionary that drops its oldest entries above a maximum: ``seen = Recent[str, bytes](1000)``.

    Owners have no shares, so use it only if a lost entry can simply be created again. Otherwise, count entries with a
    `Share`.

    Args:
        maximum: Maximum number of entries.
    """

    def __init__(self, maximum: int) -> None:
        super().__init__()
        self._maximum = maximum

    def keep(self, key: K, value: V) -> None:
        """Set an entry, which is the newest one from now on.

        Args:
            key: Key of the entry.
            value: Value of the entry.
        """
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._maximum:
            del self[next(iter(self))]


class RecentBytes(Recent[K, V]):
    """A dictionary with a maximum total size: ``pages = RecentBytes[str, bytes](1000, max_bytes=2**20, size_of=len)``.

    Remove entries with ``del``. `pop` and `popitem` of an ordered dictionary don't call `__delitem__`.

    Args:
        maximum: Maximum number of entries.
        max_bytes: Maximum total size of the values, in bytes.
        size_of: Returns the size of a value, which never changes.
    """

    def __init__(self, maximum: int, *, max_bytes: int, size_of: Callable[[V], int]) -> None:
        super().__init__(maximum)
        self._max_bytes = max_bytes
        self._size_of = size_of
        self.held: int = 0
        """Total size of the values."""

    @override
    def keep(self, key: K, value: V) -> None:
        if key in self:
            del self[key]
        self.held += self._size_of(value)
        super().keep(key, value)
        while self.held > self._max_bytes:
            del self[next(iter(self))]

    @override
    def __delitem__(self, key: K) -> None:
        self.held -= self._size_of(self[key])
        super().__delitem__(key)

    @override
    def clear(self) -> None:
        self.held = 0
        super().clear()
