"""A bound on the bytes that all subscribers of a worker haven't read yet.

Each outlet has its own bound, but there can be thousands. If they exceed the common bound, the outlets furthest behind
are cut and can resume.
"""

from collections.abc import Callable, Iterable

from millstream._http.message import Outlet

_PARTS = 4
"""The unread bytes are counted after each such fraction of the bound was written."""


class UnreadBacklog:
    """The unread bytes of one worker.

    Args:
        most: The bound.
        outlets: Returns all outlets.
        cut: Ends an outlet.
    """

    __slots__ = ("_cut", "_most", "_outlets", "_since", "_waiting", "_waiting_bytes")

    def __init__(self, most: int, outlets: Callable[[], Iterable[Outlet]], cut: Callable[[Outlet], None]) -> None:
        self._most = most
        self._outlets = outlets
        self._cut = cut
        self._since = 0
        """Bytes written since the unread bytes were last counted."""
        self._waiting: dict[Outlet, int] = {}
        """Outlets that are catching up and wait for space, longest wait first -> their unread bytes."""
        self._waiting_bytes = 0

    def add(self, size: int) -> None:
        """Count written bytes, and cut the outlets furthest behind if too much is unread."""
        self._since += size
        if self._since * _PARTS < self._most:
            return
        self._since = 0
        behind = [(outlet.buffered, number, outlet) for number, outlet in enumerate(self._outlets())]
        unread = sum(each for each, _, _ in behind)
        if unread <= self._most:
            return
        behind.sort(reverse=True)
        for buffered, _, outlet in behind:
            self._cut(outlet)
            unread -= buffered
            if unread <= self._most:
                return

    async def drain(self, outlet: Outlet) -> None:
        """Wait until an outlet that is catching up has space. If too much is unread, the longest waits are cut."""
        unread = outlet.buffered
        if outlet in self._waiting:  # another subscription of this outlet already waits
            await outlet.drain()
            return
        self._waiting[outlet] = unread
        self._waiting_bytes += unread
        try:
            while self._waiting_bytes * 2 > self._most and len(self._waiting) > 1:
                longest = next(iter(self._waiting))
                self._forget(longest)
                self._cut(longest)
            await outlet.drain()
        finally:
            self._forget(outlet)

    def _forget(self, outlet: Outlet) -> None:
        self._waiting_bytes -= self._waiting.pop(outlet, 0)
