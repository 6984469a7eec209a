"""Presence changes as events, in a separate stream, so they can't displace published events from the journal.

The two streams are numbered separately. Each change records the journal position at its delivery, so a subscriber that
resumes from a journal event gets the later changes.
"""

from collections import deque

from msgspec import Struct
from msgspec.structs import replace

from millstream._stores.base import CoAppend, Entry, Position, Store
from millstream.hub._event import Event, StoredEvent, pack, position_id, unpack

STREAM = "presence:events"
_TTL = 86400.0
_MAX_CHANGES = 1_000


class PresenceChange(Struct, frozen=True, gc=False):
    """The arrival or departure of a client."""

    journal_offset: int
    """The offset of the journal at delivery."""
    number: int
    """The change's own offset."""
    event: Event

    def after(self, offset: int, number: int | None) -> bool:
        """Return whether the change comes after a journal position, or after the change with a number."""
        return self.journal_offset >= offset if number is None else self.number > number


class PresenceChanges:
    """The newest presence changes, as delivered by one worker."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changes: deque[PresenceChange] = deque()
        self._last_dropped = PresenceChange(-1, 0, Event("", None))
        """The newest dropped change."""

    async def open(self, epoch: str) -> Position | None:
        """Load the stored changes and return the position of the last one."""
        entries = await self._store.log.newest(STREAM, _MAX_CHANGES)
        for entry in entries:
            self.add(entry, epoch, None)
        if entries and entries[0].position.offset > 1:  # earlier changes were trimmed
            self._last_dropped = replace(self._changes[0], number=entries[0].position.offset - 1)
        return entries[-1].position if entries else None

    @property
    def last(self) -> PresenceChange:
        """The newest change."""
        return self._changes[-1] if self._changes else self._last_dropped

    @staticmethod
    def entry_for(record: StoredEvent) -> CoAppend:
        """Return the log entry for a change. The `id` of its record is the journal position before it."""
        return CoAppend(STREAM, pack(record), _TTL, _MAX_CHANGES)

    def add(self, entry: Entry, epoch: str, offset: int | None) -> Event:
        """Add a change delivered at a journal offset, or before this worker started if None, and return its event."""
        event, number = unpack(entry.data, "", 0), entry.position.offset
        journal_offset = int(event.id) if offset is None else offset
        event = replace(event, id=f"{position_id(epoch, journal_offset)}-{number}", offset=number)
        self._changes.append(PresenceChange(journal_offset, number, event))
        if len(self._changes) > _MAX_CHANGES:
            self._last_dropped = self._changes.popleft()
        return event

    def forget(self, offset: int) -> None:
        """Drop all changes, because some were lost. The journal is at `offset`."""
        self._last_dropped = replace(self.last, journal_offset=offset)
        self._changes.clear()

    def resume_id(self, place: str, offset: int) -> str:
        """Return the id of a journal position, with the number of the last change after it, if any."""
        last = self.last
        return f"{place}-{last.number}" if last.journal_offset == offset else place

    def since(self, offset: int, number: int | None) -> tuple[deque[PresenceChange], bool]:
        """Return the changes after an event id, and whether they are complete."""
        changes = deque(change for change in self._changes if change.after(offset, number))
        return changes, not self._last_dropped.after(offset, number)
