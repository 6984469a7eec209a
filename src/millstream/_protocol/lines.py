"""Lines of a byte stream, without I/O: how messages are told apart on stdio, in both directions.

MCP 2025-11-25, basic/transports#stdio: messages end with a newline and hold none. It does not know what a line says.
"""


class LineSplitter:
    """Bytes in, whole lines out. A line over the limit is reported once and skipped to its end.

    The memory it takes is bounded by the limit, whatever the peer sends.
    """

    __slots__ = ("_limit", "_parts", "_size", "_skipping")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that are complete now, without their ends; None stands for one that was too long."""
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
        """Take the bytes after the last newline as a line, since the input has ended."""
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
