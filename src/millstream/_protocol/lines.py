"""Newline-delimited messages of a byte stream, without I/O, for stdio in both directions.

MCP 2025-11-25, basic/transports#stdio: messages end with a newline and don't contain one.
"""


class LineSplitter:
    """A splitter of bytes into complete lines.

    A line over the limit is reported once and skipped to its end. Memory is bounded by the limit, for any input.
    """

    __slots__ = ("_limit", "_parts", "_size", "_skipping")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._skipping = False

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
            self._parts.clear()
            self._size = 0
            self._skipping = False
        self._keep(rest, lines)
        return lines

    def end(self) -> list[bytes | None]:
        """Return the bytes after the last newline as a line. Call it at the end of the input."""
        return self.feed(b"\n")

    def _keep(self, piece: bytes, lines: list[bytes | None]) -> None:
        if self._skipping or not piece:
            return
        self._size += len(piece)
        if self._size > self._limit:
            self._parts.clear()
            self._skipping = True
            lines.append(None)
        else:
            self._parts.append(piece)
