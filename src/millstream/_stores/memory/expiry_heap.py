"""Expiry of values and streams in memory: a heap, so expired names are found without a scan."""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

SWEEP: Final = 16
"""Deadlines looked at in one call: enough to outrun what one call adds, too few to be felt."""
SLACK: Final = 64

Name = TypeVar("Name", str, int)


class ExpiryHeap(Generic[Name]):
    """Which names end when. A heap finds what is due without a walk over the living.

    A moved deadline leaves its heap item where it is: when that comes up, it is put back at the true time. Items of
    names that are gone are thrown out together once they outnumber the living, so the heap stays in proportion.
    """

    __slots__ = ("_heap", "_until")

    def __init__(self) -> None:
        self._until: dict[Name, float] = {}
        self._heap: list[tuple[float, Name]] = []

    def set(self, name: Name, deadline: float) -> None:
        """Give a name its deadline, or another one."""
        known = self._until.get(name)
        self._until[name] = deadline
        if known is None or deadline < known:
            heappush(self._heap, (deadline, name))
            self._compact()

    def has_expired(self, name: Name, now: float) -> bool:
        """Return whether the time of a name is over."""
        return self._until[name] <= now

    def expires_at(self, name: Name) -> float:
        """Return the expiry time of a name."""
        return self._until[name]

    def forget(self, name: Name) -> None:
        """The name is gone."""
        del self._until[name]
        if not self._until:
            self._until.clear()  # an emptied dict keeps its table, a cleared one does not
        self._compact()

    def due(self, now: float, look: int = SWEEP) -> Iterable[Name]:
        """Return the names that ended, as far as `look` heap items show them. The caller forgets each of them."""
        heap = self._heap
        if not heap or heap[0][0] > now:
            return ()
        names: dict[Name, None] = {}  # a name may have several heap items
        while heap and heap[0][0] <= now and look > 0:
            look -= 1
            name = heappop(heap)[1]
            deadline = self._until.get(name)
            if deadline is None:
                continue
            if deadline <= now:
                names[name] = None
            else:
                heappush(heap, (deadline, name))
        return names

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._until) + SLACK:
            self._heap = [(deadline, name) for name, deadline in self._until.items()]
            heapify(self._heap)
