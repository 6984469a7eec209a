"""What is in memory of a file: all of it, in the classes of the store in memory, and what of it the file lacks."""

import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from millstream._protocol.errors import LocalError
from millstream._stores.base import Entry, Position, StoreFull
from millstream._stores.memory.log import MemoryLog, kind_of
from millstream._stores.memory.store import MemoryKeyValue
from millstream._stores.sqlite.errors import Vanished
from millstream._stores.sqlite.file import File
from millstream._stores.sqlite.rows import Changes, Content, Stream, Value

_ANY: Final = ""
"""Stands for every name."""


class _Saved:
    """What the file has of a stream, or will have after the commit under way."""

    __slots__ = ("floor", "id", "last")

    def __init__(self, number: int, floor: int, last: int) -> None:
        self.id = number
        self.floor = floor
        self.last = last


class Saved:
    """A `Journal` of the data of one store."""

    def __init__(
        self, file: File, max_value_bytes: int, max_log_bytes: int, clock: Callable[[], float] | None = None
    ) -> None:
        # Configuration
        self.file = file
        ahead = time.time() - time.monotonic()
        self._clock = clock or (lambda: time.monotonic() + ahead)  # a clock that is set doesn't end what is held
        self._bounds = (max_value_bytes, max_log_bytes)
        # Process
        self.values = MemoryKeyValue(self._clock, max_value_bytes, self._lost_value)
        self.log = MemoryLog(self._clock, max_log_bytes, "", self._lost_entries)
        self._saved: dict[str, _Saved] = {}
        self._highest: dict[str, int] = {}
        self._next_id = 1
        self._next_place = 1
        # The next commit
        self._streams: dict[str, None] = {}
        self._keys: dict[str, None] = {}
        self._gone: list[int] = []
        # The commit under way
        self._written_streams: dict[str, None] = {}
        self._written_keys: dict[str, None] = {}

    def load(self, content: Content) -> None:
        """Hold what is in the file, and nothing else."""
        listeners = self.log.listeners
        self.values = MemoryKeyValue(self._clock, self._bounds[0], self._lost_value)
        self.log = MemoryLog(self._clock, self._bounds[1], self.file.epoch, self._lost_entries, listeners)
        for part in (self._saved, self._highest, self._streams, self._keys, self._written_streams, self._written_keys):
            part.clear()
        self._gone.clear()
        for kind, highest in content.highest:
            self.log.kind(f"{kind}:" if kind else "").highest = self._highest[kind] = highest
        self._put_back(content)

    def changed_stream(self, name: str) -> None:
        """It isn't what the file has."""
        self._streams[name] = None

    def changed_key(self, key: str) -> None:
        """Its value isn't what the file has."""
        self._keys.pop(key, None)
        self._keys[key] = None  # the last, for the order of what may go

    # as a Journal

    def gather(self) -> Changes | None:
        """What the next commit writes."""
        self._written_streams, self._streams = self._streams, {}
        self._written_keys, self._keys = self._keys, {}
        changes = Changes(gone=self._gone)
        self._gone = []
        for name in self._written_streams:
            self._gather_stream(name, changes)
        for key in self._written_keys:
            self._gather_value(key, changes)
        return changes or None

    def write(self, changes: Changes) -> None:
        self.file.write(changes)

    def recover(self, error: LocalError) -> tuple[bool, Content]:
        """Where the file is full or gone, it's as it was before; after anything else it has to be opened again."""
        if isinstance(error, StoreFull | Vanished):
            try:
                return False, self.file.read(self._written_streams, self._written_keys)
            except Exception as exc:
                raise self.file.named(exc) from exc
        return True, self.file.reopen()

    def restore(self, content: tuple[bool, Content]) -> None:
        everything, found = content
        if everything:
            self.load(found)
            return
        for name in self._written_streams:
            self._saved.pop(name, None)
            self.log.kind(name).forget(name)
        for key in self._written_keys:
            self.values.forget(key)
        self._highest.clear()
        self._put_back(found)

    def dirty(self, name: str) -> bool:
        return name == _ANY or name in self._written_streams or name in self._written_keys

    def _gather_stream(self, name: str, changes: Changes) -> None:
        kind = self.log.kind(name)
        label = kind_of(name)
        if kind.highest != self._highest.get(label):
            self._highest[label] = kind.highest
            changes.highest.append((label, kind.highest))
        held = kind.streams.get(name)
        if held is None:
            return
        saved = self._saved.get(name)
        if saved is None:
            saved = self._saved[name] = _Saved(self._next_id, held.floor, held.floor)
            self._next_id += 1
        elif saved.floor < held.floor:
            saved.floor = held.floor
            changes.cut.append((saved.id, held.floor))
        start = bisect_right(held.entries, saved.last, held.head, key=_offset)
        changes.entries += [(saved.id, each.position.offset, each.data) for each in held.entries[start:]]
        saved.last = held.last
        changes.streams.append(Stream(saved.id, name, held.floor, held.sealed, kind.until(name)))

    def _gather_value(self, key: str, changes: Changes) -> None:
        held = self.values.held(key)
        if held is None:
            changes.removed.append(key)
            return
        value, until, lossy = held
        changes.values.append(Value(key, value, until, self._next_place if lossy else 0))
        self._next_place += lossy

    # what memory tells

    def _lost_entries(self, name: str, forgotten: bool) -> None:
        self._streams[name] = None
        if forgotten:
            saved = self._saved.pop(name, None)
            if saved is not None:
                self._gone.append(saved.id)

    def _lost_value(self, key: str) -> None:
        self.changed_key(key)

    def _put_back(self, content: Content) -> None:
        epoch = self.file.epoch
        for stream, rows in content.streams:
            entries = [Entry(Position(epoch, offset), data) for offset, data in rows]
            self._saved[stream.name] = _Saved(stream.id, stream.floor, entries[-1].position.offset)
            self._next_id = max(self._next_id, stream.id + 1)
            kind = self.log.kind(stream.name)
            kind.restore(stream.name, stream.floor, bool(stream.sealed), stream.until, entries)
        for value in content.values:
            self.values.restore(value.key, value.value, value.until, value.order > 0)
            self._next_place = max(self._next_place, value.order + 1)


def _offset(entry: Entry) -> int:
    return entry.position.offset
