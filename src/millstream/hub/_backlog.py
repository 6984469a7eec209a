"""The bytes that all subscribers of one worker have not read yet: a bound for all of them together.

Each outlet has a bound of its own, but there may be thousands. Where they exceed the bound together, those that are
furthest behind are cut, and can resume.
"""

from collections.abc import Callable, Iterable

from millstream._http.message import Outlet

_PARTS = 4
"""Unread bytes are counted after every so much of the bound was written."""


class UnreadBacklog:
    """The unread bytes of one worker.

    Args:
        most: the bound.
        outlets: returns all outlets.
        cut: ends an outlet.
    """

    __slots__ = ("_cut", "_most", "_outlets", "_since", "_waiting", "_waiting_bytes")

    def __init__(self, most: int, outlets: Callable[[], Iterable[Outlet]], cut: Callable[[Outlet], None]) -> None:
        self._most = most
        self._outlets = outlets
        self._cut = cut
        self._since = 0
        """Bytes written since unread bytes were counted."""
        self._waiting: dict[Outlet, int] = {}
        """Outlets that catch up and wait for room, the one that waits longest first, and their unread bytes."""
        self._waiting_bytes = 0

    def add(self, size: int) -> None:
        """Count bytes written, and cut the outlets that are furthest behind when there is too much unread."""
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
        """Wait until an outlet that catches up has room. Those that wait longest are cut when there is too much."""
        unread = outlet.buffered
        if outlet in self._waiting:  # another subscription of this outlet waits already
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
