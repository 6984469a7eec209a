"""A bound on the bytes that all subscribers of a worker haven't read yet.

Each outlet has its own bound, but there can be thousands. If they exceed the common bound, the slowest outlets are cut
and can resume.
"""

from collections.abc import Callable, Iterable

from millstream._http.message import Outlet

_COUNTS_PER_LIMIT = 4
"""How often the unread bytes are counted while as many bytes as the bound are written."""


class UnreadBacklog:
    """The unread bytes of one worker.

    Args:
        max_bytes: The bound.
        outlets: Returns all outlets.
        cut: Closes a slow outlet.
    """

    def __init__(self, max_bytes: int, outlets: Callable[[], Iterable[Outlet]], cut: Callable[[Outlet], None]) -> None:
        self._max_bytes = max_bytes
        self._outlets = outlets
        self._cut = cut
        self._bytes_since_count = 0
        """Bytes written since the unread bytes were last counted."""
        self._waiting: dict[Outlet, int] = {}
        """Unread bytes of the outlets that wait for space while catching up, longest wait first."""
        self._waiting_bytes = 0

    def add(self, size: int) -> None:
        """Count written bytes, and cut the slowest outlets if too much is unread."""
        self._bytes_since_count += size
        if self._bytes_since_count * _COUNTS_PER_LIMIT < self._max_bytes:
            return
        self._bytes_since_count = 0
        behind = [(outlet.buffered, number, outlet) for number, outlet in enumerate(self._outlets())]
        unread = sum(each for each, _, _ in behind)
        if unread <= self._max_bytes:
            return
        behind.sort(reverse=True)
        for buffered, _, outlet in behind:
            self._cut(outlet)
            unread -= buffered
            if unread <= self._max_bytes:
                return

    async def drain(self, outlet: Outlet) -> None:
        """Wait until an outlet that is catching up has space. Cut the longest waiting outlets if too much is unread."""
        unread = outlet.buffered
        if outlet in self._waiting:  # another subscription of this outlet already waits
            await outlet.drain()
            return
        self._waiting[outlet] = unread
        self._waiting_bytes += unread
        try:
            while self._waiting_bytes * 2 > self._max_bytes and len(self._waiting) > 1:
                longest = next(iter(self._waiting))
                self._forget(longest)
                self._cut(longest)
            await outlet.drain()
        finally:
            self._forget(outlet)

    def _forget(self, outlet: Outlet) -> None:
        self._waiting_bytes -= self._waiting.pop(outlet, 0)
