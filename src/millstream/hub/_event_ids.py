"""Publisher-assigned event ids, for resuming and for deduplication."""

from typing import Any, Final

from msgspec import Struct

MOST: Final = 10_000
"""Maximum number of ids that a worker remembers. The oldest are dropped first."""
WINDOW: Final = 120.0
"""Seconds within which the same id on the same channel counts as a repetition."""
_CHANNELS: Final = 16
"""Maximum number of channels remembered per id."""


class KnownEvent(Struct, frozen=True, gc=False):
    """An event with a publisher-assigned id."""

    channel: str
    offset: int
    at: float


class EventIds:
    """The newest events with publisher-assigned ids, as read from the journal by one worker."""

    __slots__ = ("_known", "_repeats")

    def __init__(self) -> None:
        self._known: dict[str, tuple[KnownEvent, ...]] = {}
        self._repeats: dict[int, None] = {}

    def add(self, id: str, event: KnownEvent) -> bool:
        """Remember an event. Return False if it repeats an earlier one."""
        earlier = self._known.pop(id, ())
        same = next((each for each in earlier if each.channel == event.channel), event)
        first, second = (same, event) if same.offset <= event.offset else (event, same)
        repeats = second is not first and second.offset != first.offset and second.at - first.at < WINDOW
        if repeats:
            self._repeats[second.offset] = None
            _trim(self._repeats)
        others = tuple(each for each in earlier if each is not same)[-_CHANNELS + 1 :]
        self._known[id] = (*others, first if repeats else second)
        _trim(self._known)
        return not (repeats and second is event)

    def find(self, id: str) -> tuple[KnownEvent, ...]:
        """Return the newest event of each channel with an id."""
        return self._known.get(id, ())

    def repeats(self, offset: int) -> bool:
        """Return whether the event at an offset repeats an earlier one."""
        return offset in self._repeats

    def forget(self) -> None:
        """Forget all ids, because their offsets have become invalid."""
        self._known.clear()
        self._repeats.clear()


def _trim(known: dict[Any, Any]) -> None:
    if len(known) > MOST:
        del known[next(iter(known))]
