"""Expiry of values and streams in memory."""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

SWEEP = 16
"""Heap items examined per call: more than one call adds, few enough to be cheap."""
SLACK = 64

Name = TypeVar("Name", str, int)


class ExpiryHeap(Generic[Name]):
    """Deadlines by name, in a heap that finds expired names without a scan.

    Moving a deadline leaves its heap item in place; the item is reinserted with the new deadline when it comes up.
    Stale items are removed together once they outnumber the live ones, which bounds the size of the heap.
    """

    def __init__(self) -> None:
        self._until: dict[Name, float] = {}
        self._heap: list[tuple[float, Name]] = []

    def set(self, name: Name, deadline: float) -> None:
        """Set or change the deadline of a name."""
        known = self._until.get(name)
        self._until[name] = deadline
        if known is None or deadline < known:
            heappush(self._heap, (deadline, name))
            self._compact()

    def has_expired(self, name: Name, now: float) -> bool:
        """Return whether the deadline of a name has passed."""
        return self._until[name] <= now

    def expires_at(self, name: Name) -> float:
        """Return the expiry time of a name."""
        return self._until[name]

    def forget(self, name: Name) -> None:
        """Remove a name."""
        del self._until[name]
        if not self._until:
            self._until.clear()  # frees the table, which an emptied dict keeps
        self._compact()

    def due(self, now: float, look: int = SWEEP) -> Iterable[Name]:
        """Return expired names among the first `look` heap items. The caller must `forget` each of them."""
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
