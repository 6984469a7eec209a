"""Newline-delimited messages of a byte stream, without I/O, for stdio in both directions.

MCP 2025-11-25, basic/transports#stdio: messages end with a newline and don't contain one.
"""

_MAX_CLIPPED = 200
_MAX_EXCESS = 4
"""Lines that are longer than this multiple of the limit have probably no end."""


class LineStart(bytes):
    """The start and the end of a line over the limit."""


class LineSplitter:
    """A splitter of bytes into complete lines.

    A line over the limit is reported once and skipped to its end. Memory is bounded by the limit, for any input. With
    `clip`, it's reported at its end, as `LineStart`, unless it's much longer.
    """

    __slots__ = ("_clip", "_end", "_limit", "_parts", "_size", "_skipping", "_start")

    def __init__(self, limit: int, *, clip: bool = False) -> None:
        self._limit = limit
        self._clip = clip
        self._parts: list[bytes] = []
        self._size = 0
        self._skipping = False
        self._start = self._end = b""

    def feed(self, data: bytes) -> list[bytes | None]:
        """Return the lines completed by `data`, without line ends. None stands for a line over the limit."""
        lines: list[bytes | None] = []
        *complete, rest = data.split(b"\n")
        for piece in complete:
            self._keep(piece, lines)
            if not self._skipping:
                line = b"".join(self._parts).strip(b" \t\r")
                if line:
                    lines.append(line)
            elif self._clip:
                lines.append(LineStart(self._start + self._end.rstrip(b" \t\r")))
            self._parts.clear()
            self._size = 0
            self._skipping = False
        self._keep(rest, lines)
        return lines

    def end(self) -> list[bytes | None]:
        """Return the bytes after the last newline as a line. Call it at the end of the input."""
        return self.feed(b"\n")

    def _keep(self, piece: bytes, lines: list[bytes | None]) -> None:
        if not piece or (self._skipping and not self._clip):
            return
        self._size += len(piece)
        if self._size <= self._limit:
            self._parts.append(piece)
            return
        if not self._skipping:
            self._skipping = True
            self._start = self._end = b""
            for each in (*self._parts, piece):
                self._start += each[: _MAX_CLIPPED - len(self._start)]
            self._parts.clear()
        self._end = (self._end + piece[-_MAX_CLIPPED:])[-_MAX_CLIPPED:]
        if not self._clip or self._size > _MAX_EXCESS * self._limit:
            self._clip = False  # report it only once
            lines.append(None)
