"""The database file: opened, checked, read as a whole, and written one commit at a time. Runs in the writer's thread.

One process owns it, by SQLite's own exclusive lock, which ends with the process. Nothing in a file that isn't ours, or
that can't be read, is ever overwritten.
"""

import logging
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from msgspec.structs import astuple

from millstream._protocol.errors import LocalError
from millstream._stores.base import StoreUnavailable
from millstream._stores.sqlite import sums
from millstream._stores.sqlite.errors import Vanished, named
from millstream._stores.sqlite.location import Location
from millstream._stores.sqlite.rows import Changes, Content, Stream, Value
from millstream._stores.sqlite.wal import lost_commits

_logger = logging.getLogger("millstream.stores")

APPLICATION: Final = 0x4D53_5452
"""Marks the file as ours."""
VERSION: Final = 2
"""Of the tables below; the file has it as its `user_version`."""
_TABLES: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE kinds (name TEXT PRIMARY KEY, highest INTEGER NOT NULL, sum INTEGER) WITHOUT ROWID;
CREATE TABLE streams (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, floor INTEGER NOT NULL, sealed INTEGER NOT NULL, until REAL NOT NULL,
    sum INTEGER
);
CREATE TABLE entries (
    stream INTEGER NOT NULL, offset INTEGER NOT NULL, sum INTEGER, data BLOB NOT NULL, PRIMARY KEY (stream, offset)
) WITHOUT ROWID;
CREATE TABLE keys (
    name TEXT PRIMARY KEY, value BLOB NOT NULL, until REAL NOT NULL, place INTEGER NOT NULL, sum INTEGER
) WITHOUT ROWID;
"""
_MIGRATIONS: Final[dict[int, str]] = {
    1: """
ALTER TABLE kinds ADD COLUMN sum INTEGER; UPDATE kinds SET sum=kind_sum(name, highest);
ALTER TABLE streams ADD COLUMN sum INTEGER; UPDATE streams SET sum=stream_sum(id, name, floor, sealed, until);
ALTER TABLE entries ADD COLUMN sum INTEGER; UPDATE entries SET sum=entry_sum(stream, offset, data);
ALTER TABLE keys ADD COLUMN sum INTEGER; UPDATE keys SET sum=key_sum(name, value, until, place)
"""
}
"""For each older version, the statements that make the next one of it."""
_AT_ONCE: Final = (512, 64, 8, 1)
"""Rows of one statement: each statement takes turns with the event loop, and each new text has to be compiled."""
_PRAGMAS: Final = (
    "locking_mode=EXCLUSIVE",
    "synchronous=FULL",
    "wal_autocheckpoint=4000",  # pages: 16 MiB of writing between two synchronizations of the database itself
    f"journal_size_limit={64 * 1024 * 1024}",  # bytes of a write-ahead log that was larger for a while
)


class File:
    """An open database."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._database: sqlite3.Connection | None = None
        self.epoch = ""
        self._owned: tuple[int, int] | None = None
        """Which file it is, whatever lies at its path by now."""
        self._log: tuple[int, int] | None = None
        """The same of the write-ahead log, once it's there."""

    def open(self) -> Content:
        """Open, make or mend the file, and read it.

        Raises:
            LocalError: it can't be used.
        """
        try:
            _create(self.location.path)
            lost = lost_commits(self.location.path)
            self._connect()
            content = self.read()  # what can't be read stays as it is
            self._begin_life(lost=lost)
            self._remember()
            return content
        except (sqlite3.Error, OSError, ValueError) as exc:
            self.drop()
            raise self.named(exc) from exc
        except BaseException:
            self.drop()
            raise

    def reopen(self) -> Content:
        """After a write that failed: the kernel may have forgotten what it couldn't write, so everything that is in the
        write-ahead log goes into the database, and the log begins again, before anything is acknowledged again.

        Raises:
            LocalError: it can't be used.
        """
        _look_for(self.location.path, self._owned)
        self.drop()
        try:
            self._connect()
            self._run("PRAGMA wal_checkpoint(TRUNCATE)")
            self._remember()
            return self.read()
        except (sqlite3.Error, OSError, ValueError) as exc:
            self.drop()
            raise self.named(exc) from exc

    def close(self) -> None:
        """Note that nothing is missing, and let go of the file."""
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._run("PRAGMA synchronous=FULL")
                self._run("UPDATE meta SET value='' WHERE name='boot'")
        self.drop()

    def drop(self) -> None:
        """Let go of the file as it is."""
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                database.close()

    def write(self, changes: Changes) -> None:
        """One commit: everything or nothing.

        Raises:
            StoreFull, Vanished: the disk or the file is full, or the file is gone. Nothing was written, and the file
                stays open.
            StoreUnavailable: it isn't known what was written; `reopen` comes next.
        """
        _look_for(self.location.path, self._owned, self._log)
        try:
            self._run("BEGIN IMMEDIATE")
            self._write(changes)
            self._run("COMMIT")
            self._log = self._log or _identity(_log_of(self.location.path))
        except sqlite3.Error as exc:
            if self._database is not None and self._database.in_transaction:
                with suppress(sqlite3.Error):
                    self._run("ROLLBACK")
            raise self.named(exc) from exc

    def _remember(self) -> None:
        self._owned, self._log = _identity(self.location.path), _identity(_log_of(self.location.path))

    def _write(self, changes: Changes) -> None:
        if changes.gone:
            gone = [(number,) for number in changes.gone]
            self._rows("DELETE FROM entries WHERE stream IN (VALUES {})", gone)
            self._rows("DELETE FROM streams WHERE id IN (VALUES {})", gone)
        for stream, floor in changes.cut:
            self._run("DELETE FROM entries WHERE stream=? AND offset<=?", (stream, floor))
        self._rows(
            "INSERT OR REPLACE INTO streams (id, name, floor, sealed, until, sum) VALUES {}",
            [(*row, sums.of_stream(*row)) for row in map(astuple, changes.streams)],
        )
        self._rows(
            "INSERT OR REPLACE INTO entries (stream, offset, data, sum) VALUES {}",
            [(*row, sums.of_entry(*row)) for row in changes.entries],
        )
        self._rows(
            "INSERT OR REPLACE INTO kinds (name, highest, sum) VALUES {}",
            [(*row, sums.of_kind(*row)) for row in changes.highest],
        )
        self._rows("DELETE FROM keys WHERE name IN (VALUES {})", [(key,) for key in changes.removed])
        self._rows(
            "INSERT OR REPLACE INTO keys (name, value, until, place, sum) VALUES {}",
            [(*row, sums.of_key(*row)) for row in map(astuple, changes.values)],
        )

    def _rows(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """A statement for many rows, in few steps."""
        start = 0
        for size in _AT_ONCE:
            while len(rows) - start >= size:
                part = rows[start : start + size]
                one = f"({','.join('?' * len(part[0]))})"
                self._run(statement.format(",".join([one] * size)), [field for row in part for field in row])
                start += size

    def read(self, streams: Iterable[str] | None = None, keys: Iterable[str] | None = None) -> Content:
        """Everything, or what is there of some streams and keys.

        Raises:
            ValueError: what is there can't be.
        """
        select = "SELECT id, name, floor, sealed, until, sum FROM streams"
        found = [Stream(*row) for row in _whole(self._some(select, "name", streams), sums.of_stream)]
        entries: dict[int, list[tuple[int, bytes]]] = {}
        if streams is None:
            rows = self._run("SELECT stream, offset, data, sum FROM entries ORDER BY stream, offset")
            for number, group in groupby(_whole(rows, sums.of_entry), itemgetter(0)):
                entries[number] = [(offset, data) for _, offset, data in group]
        else:
            for each in found:
                rows = self._run(
                    "SELECT stream, offset, data, sum FROM entries WHERE stream=? ORDER BY offset", (each.id,)
                )
                entries[each.id] = [(offset, data) for _, offset, data in _whole(rows, sums.of_entry)]
        select = "SELECT name, value, until, place, sum FROM keys"
        values = [Value(*row) for row in _whole(self._some(select, "name", keys), sums.of_key)]
        values.sort(key=lambda each: each.order)
        _check(found, entries)
        rows = self._run("SELECT name, highest, sum FROM kinds")
        highest = [(name, offset) for name, offset in _whole(rows, sums.of_kind)]
        return Content([(each, entries[each.id]) for each in found], values, highest)

    def _some(self, select: str, column: str, names: Iterable[str] | None) -> Iterable[tuple[Any, ...]]:
        if names is None:
            return self._run(select)
        return [row for name in names for row in self._run(f"{select} WHERE {column}=?", (name,))]

    def _run(self, statement: str, fields: Sequence[Any] = ()) -> sqlite3.Cursor:
        if self._database is None:
            raise StoreUnavailable("The SQLite store is closed.")
        return self._database.execute(statement, fields)

    def _one(self, statement: str) -> Any:
        row = self._run(statement).fetchone()
        if row is None:
            raise ValueError
        return row[0]

    # opening

    def _connect(self) -> None:
        """Connect, own the file, and have the tables of this version in it."""
        self._database = sqlite3.connect(
            self.location.path, timeout=0.0, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        sums.provide(self._database)
        for pragma in _PRAGMAS:
            self._run(f"PRAGMA {pragma}")
        self._look()
        self._run("PRAGMA journal_mode=WAL")
        self._run("BEGIN EXCLUSIVE")  # takes the lock, which this process then keeps
        self._make()
        self._run("COMMIT")  # writes nothing where there was nothing to make
        self.epoch = self._one("SELECT value FROM meta WHERE name='epoch'")
        if not self.location.full:
            self._run("PRAGMA synchronous=NORMAL")

    def _look(self) -> None:
        """Look whether the file is ours, before anything in it is touched."""
        path = self.location.path
        application, version = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
        if self._one("SELECT count(*) FROM sqlite_schema") == 0 and application == version == 0:
            return
        if application != APPLICATION:
            raise LocalError(
                f"{path} is the database of another program. Nothing in it was changed. Name a file of its own for "
                "the store of Millstream; it's made when it isn't there."
            )
        if version > VERSION:
            raise LocalError(
                f"{path} was written by a newer version of Millstream (its format is {version}, this version knows "
                f"up to {VERSION}). Nothing in it was changed. Install that version again, or name another file."
            )

    def _make(self) -> None:
        version = self._one("PRAGMA user_version")
        if version == VERSION:
            return
        if version == 0:
            for statement in _TABLES.split(";"):
                self._run(statement)
            self._run("INSERT INTO meta VALUES ('epoch', ?), ('boot', '')", (secrets.token_hex(6),))
            self._run(f"PRAGMA application_id={APPLICATION}")
        for old in range(version or VERSION, VERSION):
            for statement in _MIGRATIONS[old].split(";"):
                self._run(statement)
        self._run(f"PRAGMA user_version={VERSION}")

    def _begin_life(self, *, lost: bool) -> None:
        """Say that the file is in use. Where it was when the machine stopped, its tail may be lost: a new epoch tells
        everybody who reads on. So it does where the tail is known to be `lost`.
        """
        before, now = self._one("SELECT value FROM meta WHERE name='boot'"), _boot()
        self._run("PRAGMA synchronous=FULL")
        self._run("BEGIN IMMEDIATE")
        if lost:
            _logger.error(
                "%s was damaged: what was written last is lost. Clients that resume get a gap.", self.location.path
            )
        elsewhere = before and before not in (f"full {now}", f"normal {now}") and not before.startswith("full")
        if lost or elsewhere:
            self.epoch = secrets.token_hex(6)
            self._run("UPDATE meta SET value=? WHERE name='epoch'", (self.epoch,))
        self._run("UPDATE meta SET value=? WHERE name='boot'", (f"{'full' if self.location.full else 'normal'} {now}",))
        self._run("COMMIT")
        if not self.location.full:
            self._run("PRAGMA synchronous=NORMAL")

    def named(self, exc: Exception) -> LocalError:
        """What happened, why, and what to do."""
        return named(self.location.path, exc)


def _create(path: Path) -> None:
    """Make the file so that only its owner reads it: what is in it can forge sessions. One that is there stays as it
    is: whoever opens and closes it here would take the locks that this process may have on it.
    """
    if path.is_dir():
        raise IsADirectoryError
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _whole(rows: Iterable[tuple[Any, ...]], sum_of: Callable[..., int]) -> Iterator[tuple[Any, ...]]:
    """Rows without their sums, which have to be right."""
    for *row, sum in rows:
        try:
            right = sum == sum_of(*row)
        except (TypeError, AttributeError, UnicodeEncodeError):
            right = False  # what was a number or a text is none any more
        if not right:
            raise ValueError
        yield tuple(row)


def _check(streams: list[Stream], entries: dict[int, list[tuple[int, bytes]]]) -> None:
    if len({each.name for each in streams}) != len(streams) or {each.id for each in streams} != entries.keys():
        raise ValueError
    for each in streams:
        rows = entries[each.id]
        if not rows or rows[0][0] <= each.floor:
            raise ValueError


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file lies at a path; None where there's none."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _look_for(path: Path, owned: tuple[int, int] | None, log: tuple[int, int] | None = None) -> None:
    """Look whether a file is still at its path: one that was deleted takes whatever is written, until its process ends.

    Raises:
        Vanished: it isn't.
        StoreUnavailable: its write-ahead log isn't. What is in that, `reopen` brings into the database.
    """
    if _identity(path) != owned:
        raise Vanished(
            f"{path} was deleted, moved or replaced while it was in use. Nothing is stored, because it would be lost "
            "with this process. Put the file back where it was, or start the server again to go on with what is there "
            "now."
        )
    if log is not None and _identity(_log_of(path)) != log:
        raise StoreUnavailable(f"{_log_of(path)} was deleted or replaced while it was in use. It's made again.")


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _boot() -> str:
    """What is different after each start of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return secrets.token_hex(16)  # unknown: every start of this process may be one of the machine
