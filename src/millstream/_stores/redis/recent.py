"""What this worker has seen of the streams of the hub's slot: a server that takes over from another one may lack the
newest entries, and gets them from here. No I/O.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from typing import Final

REMEMBERED: Final = 10_000
"""Entries of each stream: as many as the hub's journal has by default."""
_BYTES: Final = 8 * 1024 * 1024
_STREAMS: Final = 64


class _Newest:
    """The newest entries of one stream, in whatever order they come: who reads what is old drops nothing new."""

    __slots__ = ("_offsets", "_size", "entries")

    def __init__(self) -> None:
        self.entries: dict[int, tuple[bytes, bytes]] = {}
        self._offsets: list[int] = []
        """A heap: the lowest one is first."""
        self._size = 0

    def add(self, offset: int, about: bytes, data: bytes) -> None:
        entries = self.entries
        known = entries.get(offset)
        if known is None:
            heappush(self._offsets, offset)
        else:
            self._size -= len(known[1])
        entries[offset] = (about, data)
        self._size += len(data)
        while len(entries) > REMEMBERED or (self._size > _BYTES and len(entries) > 1):
            _, dropped = entries.pop(heappop(self._offsets))
            self._size -= len(dropped)


class Recent:
    """The newest entries of each stream."""

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams: dict[str, _Newest] = {}

    def add(self, stream: str, offset: int, about: bytes, data: bytes) -> None:
        """An entry was appended, heard or read, perhaps all three. What came last counts."""
        newest = self._streams.get(stream)
        if newest is None:
            if len(self._streams) >= _STREAMS:
                del self._streams[next(iter(self._streams))]
            newest = self._streams[stream] = _Newest()
        newest.add(offset, about, data)

    def streams(self) -> list[str]:
        """Those of which something is kept."""
        return list(self._streams)

    def pages(self, stream: str, after: int, count: int) -> Iterator[list[tuple[int, bytes, bytes]]]:
        """What is kept of a stream behind an offset, in order, so many at a time."""
        newest = self._streams.get(stream)
        entries = {} if newest is None else dict(newest.entries)
        offsets = sorted(offset for offset in entries if offset > after)
        for start in range(0, len(offsets), count):
            yield [(offset, *entries[offset]) for offset in offsets[start : start + count]]

    @contextmanager
    def replaced(self, stream: str) -> Generator[None]:
        """What is read meanwhile stands in place of what was kept, unless the reading fails."""
        before = self._streams.pop(stream, None)
        try:
            yield
        except BaseException:
            newer = self._streams.get(stream)
            if before is not None:
                self._streams[stream] = before
                for offset, kept in () if newer is None else newer.entries.items():
                    before.add(offset, *kept)
            raise

    def forget(self, stream: str) -> None:
        """The stream is gone."""
        self._streams.pop(stream, None)

    def clear(self) -> None:
        """Forget everything."""
        self._streams.clear()
