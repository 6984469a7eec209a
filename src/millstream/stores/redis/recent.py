"""What this worker has seen of the streams of the hub's slot: a server that takes over from another one may lack the
newest entries, and gets them from here. No I/O.
"""

from collections.abc import Iterator
from typing import Final

_ENTRIES: Final = 4_000
_BYTES: Final = 4 * 1024 * 1024
_STREAMS: Final = 64


class Recent:
    """The newest entries of each stream."""

    __slots__ = ("_sizes", "_streams")

    def __init__(self) -> None:
        self._streams: dict[str, dict[int, tuple[bytes, bytes]]] = {}
        self._sizes: dict[str, int] = {}

    def add(self, stream: str, offset: int, about: bytes, data: bytes) -> None:
        """An entry was read or appended, perhaps both."""
        entries = self._streams.get(stream)
        if entries is None:
            if len(self._streams) >= _STREAMS:
                oldest = next(iter(self._streams))
                del self._streams[oldest], self._sizes[oldest]
            entries = self._streams[stream] = {}
            self._sizes[stream] = 0
        if offset in entries:
            return
        entries[offset] = (about, data)
        self._sizes[stream] += len(data)
        while len(entries) > _ENTRIES or (self._sizes[stream] > _BYTES and len(entries) > 1):
            _, dropped = entries.pop(next(iter(entries)))
            self._sizes[stream] -= len(dropped)

    def streams(self) -> list[str]:
        """Those of which something is kept."""
        return list(self._streams)

    def pages(self, stream: str, count: int) -> Iterator[list[tuple[int, bytes, bytes]]]:
        """What is kept of a stream, in order, so many at a time."""
        entries = self._streams.get(stream, {})
        offsets = sorted(entries)
        for start in range(0, len(offsets), count):
            yield [(offset, *entries[offset]) for offset in offsets[start : start + count]]

    def forget(self, stream: str) -> None:
        """The stream is gone."""
        self._streams.pop(stream, None)
        self._sizes.pop(stream, None)

    def clear(self) -> None:
        """Forget everything."""
        self._streams.clear()
        self._sizes.clear()
