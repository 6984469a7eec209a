"""Publisher-assigned event ids, for resuming and for deduplication."""

from typing import Any

from msgspec import Struct

MAX_IDS = 10_000
"""Maximum number of ids that a worker keeps. The oldest are dropped first."""
DEDUPLICATION_WINDOW = 120.0
"""Seconds within which an event with the same id on the same channel is a duplicate."""
_MAX_CHANNELS = 16
"""Maximum number of channels per id."""


class KnownEvent(Struct, frozen=True, gc=False):
    """An event with a publisher-assigned id."""

    channel: str
    offset: int
    at: float


class EventIds:
    """The newest events with publisher-assigned ids, as read from the journal by one worker."""

    def __init__(self) -> None:
        self._events: dict[str, tuple[KnownEvent, ...]] = {}
        self._repeated_offsets: dict[int, None] = {}

    def add(self, id: str, event: KnownEvent) -> bool:
        """Add an event. Return False if it repeats an earlier one."""
        earlier = self._events.pop(id, ())
        same = next((each for each in earlier if each.channel == event.channel), event)
        first, second = (same, event) if same.offset <= event.offset else (event, same)
        repeats = second is not first and second.offset != first.offset and second.at - first.at < DEDUPLICATION_WINDOW
        if repeats:
            self._repeated_offsets[second.offset] = None
            _trim(self._repeated_offsets)
        others = tuple(each for each in earlier if each is not same)[-_MAX_CHANNELS + 1 :]
        self._events[id] = (*others, first if repeats else second)
        _trim(self._events)
        return not (repeats and second is event)

    def find(self, id: str) -> tuple[KnownEvent, ...]:
        """Return the newest event with an id on each channel."""
        return self._events.get(id, ())

    def is_repeated(self, offset: int) -> bool:
        """Return whether the event at an offset repeats an earlier one."""
        return offset in self._repeated_offsets

    def forget(self) -> None:
        """Drop all ids, because their offsets have become invalid."""
        self._events.clear()
        self._repeated_offsets.clear()


def _trim(known: dict[Any, Any]) -> None:
    if len(known) > MAX_IDS:
        del known[next(iter(known))]
