"""Presence changes as events, in a separate stream, so they can't displace published events from the journal.

Each change is stored with the journal position it was delivered after. A subscriber that resumes from a journal event
gets the changes after it, although the two streams are numbered separately.
"""

from collections import deque
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from millstream._stores.base import CoAppend, Entry, Position, Store
from millstream.hub._event import Event, StoredEvent, pack, position_id, unpack

STREAM: Final = "presence:events"
_TTL: Final = 86400.0
_KEPT: Final = 1_000


class PresenceChange(Struct, frozen=True, gc=False):
    """The arrival or departure of a client."""

    behind: int
    """The offset of the journal at delivery."""
    number: int
    """The change's own offset."""
    event: Event

    def after(self, offset: int, number: int | None) -> bool:
        """Return whether the change comes after a journal position, or after the change with a number."""
        return self.behind >= offset if number is None else self.number > number


class PresenceChanges:
    """The newest presence changes, as delivered by one worker."""

    __slots__ = ("_dropped", "_held", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: deque[PresenceChange] = deque()
        self._dropped = PresenceChange(-1, 0, Event("", None))
        """The newest change that has been dropped."""

    async def open(self, epoch: str) -> Position | None:
        """Load the stored changes and return the position of the last one."""
        entries = await self._store.log.newest(STREAM, _KEPT)
        for entry in entries:
            self.take(entry, epoch, None)
        if entries and entries[0].position.offset > 1:  # earlier ones are gone
            self._dropped = replace(self._held[0], number=entries[0].position.offset - 1)
        return entries[-1].position if entries else None

    @property
    def last(self) -> PresenceChange:
        """The newest change."""
        return self._held[-1] if self._held else self._dropped

    @staticmethod
    def entry_for(record: StoredEvent) -> CoAppend:
        """Return the log entry for a change. The `id` of its record is the journal position it comes after."""
        return CoAppend(STREAM, pack(record), _TTL, _KEPT)

    def take(self, entry: Entry, epoch: str, offset: int | None) -> Event:
        """Store a change delivered after a journal position (None: before this worker started), and return its
        event.
        """
        event, number = unpack(entry.data, "", 0), entry.position.offset
        behind = int(event.id) if offset is None else offset
        event = replace(event, id=f"{position_id(epoch, behind)}-{number}", offset=number)
        self._held.append(PresenceChange(behind, number, event))
        if len(self._held) > _KEPT:
            self._dropped = self._held.popleft()
        return event

    def forget(self, offset: int) -> None:
        """Forget all changes, because some were lost. The journal is at `offset`."""
        self._dropped = replace(self.last, behind=offset)
        self._held.clear()

    def mark(self, place: str, offset: int) -> str:
        """Return the id of a journal position, with the number of the last change after it, if any."""
        last = self.last
        return f"{place}-{last.number}" if last.behind == offset else place

    def since(self, offset: int, number: int | None) -> tuple[deque[PresenceChange], bool]:
        """Return the changes after an event id, and whether they are complete."""
        held = deque(visit for visit in self._held if visit.after(offset, number))
        return held, not self._dropped.after(offset, number)
