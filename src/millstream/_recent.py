"""A bounded dictionary, for what can be read or computed again."""

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(OrderedDict[K, V]):
    """A dictionary that drops its oldest entries above a maximum: ``seen = Recent[str, bytes](1000)``.

    Its owners have no shares, so losing an entry must cost no more than making it again. For anything else, count
    entries with a `Share`.

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
            self.popitem(last=False)
