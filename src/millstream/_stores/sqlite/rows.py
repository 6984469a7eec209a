"""What goes to the file and comes from it, as values that a thread can have for itself."""

from msgspec import Struct


class Stream(Struct, frozen=True, array_like=True):
    """A stream, without its entries."""

    id: int
    name: str
    floor: int
    """A reader at this offset has missed nothing."""
    sealed: bool
    until: float
    """Unix time."""


class Value(Struct, frozen=True, array_like=True):
    key: str
    value: bytes
    until: float
    order: int
    """Of two lossy values, the one with the lower number goes first. 0 for what must not go."""


class Changes(Struct):
    """Everything that one commit writes. Each list may be empty."""

    streams: list[Stream] = []
    """New ones, and those that are different now."""
    entries: list[tuple[int, int, bytes]] = []
    """(id of the stream, offset, data)."""
    cut: list[tuple[int, int]] = []
    """(id of a stream, its floor): entries up to it go."""
    gone: list[int] = []
    """Streams that are forgotten."""
    highest: list[tuple[str, int]] = []
    """(kind of stream, highest offset that it gave out)."""
    values: list[Value] = []
    removed: list[str] = []
    """Keys."""

    def __bool__(self) -> bool:
        return any((self.streams, self.entries, self.cut, self.gone, self.highest, self.values, self.removed))


class Content(Struct):
    """What is in the file, or the part of it that was asked for."""

    streams: list[tuple[Stream, list[tuple[int, bytes]]]]
    """With (offset, data) of their entries, in order; at least one."""
    values: list[Value]
    """In their order."""
    highest: list[tuple[str, int]]
