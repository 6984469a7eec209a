"""Who came and who left, as events: a stream beside the journal, so that no crowd pushes published events out of it.

Each is held with the place in the journal that it was delivered behind. So a subscriber that resumes behind an event
of the journal gets the arrivals and departures that came after it, though the two streams are numbered apart.
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
    """An arrival or a departure."""

    behind: int
    """The offset of the journal when it was delivered."""
    number: int
    """Its own offset."""
    event: Event

    def after(self, offset: int, number: int | None) -> bool:
        """Whether it is behind a place in the journal, or behind the visit with a number."""
        return self.behind >= offset if number is None else self.number > number


class PresenceChanges:
    """The newest arrivals and departures, as one worker has delivered them."""

    __slots__ = ("_dropped", "_held", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: deque[PresenceChange] = deque()
        self._dropped = PresenceChange(-1, 0, Event("", None))
        """The newest one that is not held any more."""

    async def open(self, epoch: str) -> Position | None:
        """Load what is kept; gives the place of the last one."""
        entries = await self._store.log.newest(STREAM, _KEPT)
        for entry in entries:
            self.take(entry, epoch, None)
        if entries and entries[0].position.offset > 1:  # there were others before
            self._dropped = replace(self._held[0], number=entries[0].position.offset - 1)
        return entries[-1].position if entries else None

    @property
    def last(self) -> PresenceChange:
        """The newest one."""
        return self._held[-1] if self._held else self._dropped

    @staticmethod
    def entry_for(record: StoredEvent) -> CoAppend:
        """One to be kept. The `id` of its record is the place in the journal that it comes after."""
        return CoAppend(STREAM, pack(record), _TTL, _KEPT)

    def take(self, entry: Entry, epoch: str, offset: int | None) -> Event:
        """Hold one that is delivered behind a place in the journal (None: before this worker began); its event."""
        event, number = unpack(entry.data, "", 0), entry.position.offset
        behind = int(event.id) if offset is None else offset
        event = replace(event, id=f"{position_id(epoch, behind)}-{number}", offset=number)
        self._held.append(PresenceChange(behind, number, event))
        if len(self._held) > _KEPT:
            self._dropped = self._held.popleft()
        return event

    def forget(self, offset: int) -> None:
        """Some are lost; the journal stands at `offset`."""
        self._dropped = replace(self.last, behind=offset)
        self._held.clear()

    def mark(self, place: str, offset: int) -> str:
        """The id of a place in the journal, with the number of the last visit if one followed it."""
        last = self.last
        return f"{place}-{last.number}" if last.behind == offset else place

    def since(self, offset: int, number: int | None) -> tuple[deque[PresenceChange], bool]:
        """Those behind an event id, and whether these are all."""
        held = deque(visit for visit in self._held if visit.after(offset, number))
        return held, not self._dropped.after(offset, number)
