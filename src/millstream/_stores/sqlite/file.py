"""The database file: its URL, opening, checks, transactions, and errors with advice. Runs in the writer's thread.

One process owns the file through SQLite's exclusive lock, which ends with the process. A damaged or foreign file isn't
overwritten.
"""

import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._stores.base import StoreFull, StoreUnavailable

_logger = logging.getLogger("millstream.stores")

_CALM_SECONDS = 60.0
"""Seconds without a failed write until a file counts as working, because small writes may fit on a full disk."""
_AWAY = "Restore a backup, or move the file away (with its -wal file) to start with an empty store"
_TEXTS: Final[dict[str, str]] = {
    "SQLITE_FULL": (
        "can't grow: the disk is full, or the file has reached its maximum size. Nothing was changed. Free some space."
    ),
    "SQLITE_BUSY": """is in use by another process, or another event loop of this one. A SQLite store has one owner. To
        serve with several processes, start one with --workers N; for several machines or programs, use redis://. If
        another program has opened the file, close it there.""",
    "SQLITE_NOTADB": """isn't a SQLite database, or its beginning is damaged. Nothing in it was changed. Use another
        file, or restore a backup of this one.""",
    "SQLITE_CORRUPT": f"""is damaged. Nothing in it was changed. {_AWAY}; `sqlite3 FILE .recover` may save
        its data.""",
    "ValueError": f"is damaged. Nothing in it was changed. {_AWAY}.",
    "SQLITE_READONLY": """can't be written. Allow this process's user to write to the file and its folder, where
        SQLite keeps a second file.""",
    "SQLITE_IOERR_LOCK": """can't be locked. Allow this process's user to write to the file. Some network file systems
        don't support locks: use a local disk, or redis://.""",
    "SQLITE_CANTOPEN": """can't be opened. The folder must exist, and the user of this process must be allowed to write
        to it, because SQLite keeps a second file there.""",
    "SQLITE_PERM": "can't be opened: this process's user has no permission.",
    "PermissionError": "can't be created: this process's user has no permission to write to the folder.",
    "FileNotFoundError": "can't be created: the folder doesn't exist. Create it first.",
    "NotADirectoryError": "can't be created: a part of the path is a file.",
    "IsADirectoryError": "is a folder. Use the path of a file.",
}
"""Error text after the path, by prefix of the error's name."""


class FileVanished(StoreUnavailable):
    """The file is missing from its path. New data would be lost, so nothing was changed."""


def translate_error(path: Path, exc: Exception) -> LocalError:
    """Return the error to show for a failed operation on a file."""
    code = getattr(exc, "sqlite_errorname", "") or type(exc).__name__
    for prefix, text in _TEXTS.items():
        if code.startswith(prefix):
            kind = StoreFull if prefix == "SQLITE_FULL" else LocalError
            return kind(f"{path} {' '.join(text.split())} ({code})")
    return StoreUnavailable(
        f"{path} can't be read or written: {exc} ({code}). Check the disk. Acknowledged data is safe. "
        "Operations that fail now aren't retried automatically."
    )


_SHAPE = "Use sqlite:///file.db for a file in the working directory, or sqlite:////folder/file.db for an absolute path."


class Location(Struct, frozen=True):
    """The parts of a URL."""

    path: Path
    """The absolute path of the file."""
    full: bool = False
    """Whether acknowledged writes survive a power loss. If not, they survive only a crash of the process."""

    @property
    def url(self) -> str:
        """The normalized URL, independent of the working directory."""
        return f"sqlite:///{self.path.as_posix().replace('%', '%25').replace('?', '%3F').replace('#', '%23')}" + (
            "?durability=full" if self.full else ""
        )


def locate(url: str) -> Location:
    """Parse a URL.

    Raises:
        LocalError: The URL is invalid. The message doesn't repeat parts that may be a password.
    """
    parts = urlsplit(url)
    if parts.netloc:
        raise LocalError(f"The URL of a SQLite file must have three slashes. {_SHAPE}")
    name = unquote(parts.path[1:])
    if not name or name.endswith("/") or "\0" in name:
        raise LocalError(f"The URL has no file name. {_SHAPE}")
    full = False
    for option, value in parse_qsl(parts.query, keep_blank_values=True):
        if option != "durability" or value not in ("normal", "full"):
            raise LocalError(
                "The only option of a SQLite store is ?durability=normal (acknowledged data survives a crash of "
                "the program) or ?durability=full (it survives a power loss)."
            )
        full = value == "full"
    return Location(Path(name).absolute(), full)


APPLICATION = 0x4D53_5452
"""The SQLite application id that identifies files of this store."""
VERSION = 4
"""The schema version, stored in the file as `user_version`."""
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE kinds (name TEXT PRIMARY KEY, highest INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE streams (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, floor INTEGER NOT NULL,
    last INTEGER NOT NULL, entries INTEGER NOT NULL, size INTEGER NOT NULL, sealed INTEGER NOT NULL,
    until REAL NOT NULL
);
CREATE TABLE entries (
    stream INTEGER NOT NULL, offset INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (stream, offset)
) WITHOUT ROWID;
CREATE TABLE items (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, share TEXT NOT NULL, value BLOB NOT NULL, size INTEGER NOT NULL,
    until REAL NOT NULL, place INTEGER
) WITHOUT ROWID;
CREATE TABLE once (stream TEXT NOT NULL, id TEXT NOT NULL, until REAL NOT NULL, PRIMARY KEY (stream, id)) WITHOUT ROWID;
"""
_INDEXES = {
    "largest": "streams (kind, size)",
    "lossy": "items (kind, place) WHERE place IS NOT NULL",
    "lossy_shares": "items (kind, share, place) WHERE place IS NOT NULL",
    "old_items": "items (until)",
    "old_streams": "streams (until)",
    "old_once": "once (until)",
}
"""Indexes by name. Without one, each write to a full store would read all of it."""
_PRAGMAS = (
    "locking_mode=EXCLUSIVE",
    "wal_autocheckpoint=4000",  # pages: 16 MiB between checkpoints
    f"journal_size_limit={64 * 1024 * 1024}",  # bytes kept of a write-ahead log that grew larger
)


class Database:
    """An open database."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.epoch = ""
        self._failed_at = 0.0
        """Time of the last write that failed, or 0."""
        self._database: sqlite3.Connection | None = None
        self._owned: tuple[int, int] | None = None
        """The identity of the open file, even if another one is at its path by now."""
        self._log: tuple[int, int] | None = None
        """The identity of the write-ahead log, when it exists."""

    @property
    def is_open(self) -> bool:
        return self._database is not None

    def open(self) -> None:
        """Open or create the file. Recover data that an earlier failure left in the write-ahead log.

        Raises:
            LocalError: The file can't be used. Nothing in it was changed.
        """
        path = self.location.path
        if self._owned is None:
            try:
                _create(path)
            except OSError as exc:
                raise translate_error(path, exc) from exc
        else:
            self._look_for()
        try:
            self._connect()
            self._owned, self._log = _identity(path), _identity(_log_of(path))
        except (sqlite3.Error, ValueError) as exc:
            self.drop()
            raise translate_error(path, exc) from exc
        except BaseException:
            self.drop()
            raise

    def close(self) -> None:
        """Close the file permanently."""
        self.drop()
        self._owned = None

    def drop(self) -> None:
        """Close the connection. The file can be opened again."""
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                database.close()

    def run(self, statement: str, fields: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Execute a statement."""
        if self._database is None:
            raise StoreUnavailable("The SQLite store is closed.")
        return self._database.execute(statement, fields)

    def one(self, statement: str, fields: Sequence[Any] = ()) -> Any:
        """Return the first row, or None."""
        return self.run(statement, fields).fetchone()

    def transact(self, work: Callable[[], None]) -> None:
        """Run statements in one transaction: all or none of them take effect.

        Raises:
            StoreFull, FileVanished: The disk is full, or the file is gone. Nothing was written. The file stays open.
            StoreUnavailable: The outcome is unknown. The file is closed. Call `open` next.
        """
        self._look_for()
        try:
            self.run("BEGIN IMMEDIATE")
            work()
            self.run("COMMIT")
        except sqlite3.Error as exc:
            error = translate_error(self.location.path, exc)
            if self._database is not None and self._database.in_transaction:
                with suppress(sqlite3.Error):
                    self.run("ROLLBACK")
            if not self._failed_at:
                _logger.error("A write to the store failed: %s", error)
            self._failed_at = time.monotonic()
            if not isinstance(error, StoreFull):
                # After a failed fsync, the kernel may discard unwritten pages, and the next fsync may succeed.
                self.drop()
            raise error from exc
        self._log = self._log or _identity(_log_of(self.location.path))
        if self._failed_at and time.monotonic() - self._failed_at > _CALM_SECONDS:
            _logger.warning("%s can be written again.", self.location.path)
            self._failed_at = 0.0

    def explain(self, exc: Exception) -> LocalError:
        """Translate an error to one that the store contract allows, with its cause and advice."""
        if isinstance(exc, sqlite3.Error | OSError):
            exc = translate_error(self.location.path, exc)
        if isinstance(exc, StoreFull | StoreUnavailable):
            return exc
        return StoreUnavailable(str(exc) if isinstance(exc, LocalError) else f"The SQLite store failed: {exc!r}")

    def make_room(self) -> None:
        """Checkpoint and truncate the write-ahead log, which may be what fills a full disk.

        Raises:
            sqlite3.Error: The checkpoint failed for a reason other than a full disk.
        """
        try:
            self.run("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as exc:
            if not isinstance(translate_error(self.location.path, exc), StoreFull):
                self.drop()
                raise

    def _connect(self) -> None:
        """Connect, lock and check the file, and create missing tables."""
        self._database = sqlite3.connect(
            self.location.path, timeout=0.0, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        for pragma in _PRAGMAS:
            self.run(f"PRAGMA {pragma}")
        self._look()
        if self.one("PRAGMA quick_check(1)")[0] != "ok":
            raise ValueError
        self.run("PRAGMA journal_mode=WAL")
        self.run("BEGIN EXCLUSIVE")  # takes the lock, which this process then keeps
        if self.one("PRAGMA user_version")[0] == 0:
            for statement in _TABLES.split(";"):
                self.run(statement)
            self.run("INSERT INTO meta VALUES ('epoch', ?)", (secrets.token_hex(6),))
            self.run(f"PRAGMA application_id={APPLICATION}")
            self.run(f"PRAGMA user_version={VERSION}")
        for name, columns in _INDEXES.items():
            self.run(f"CREATE INDEX IF NOT EXISTS {name} ON {columns}")
        self.run("COMMIT")  # writes nothing if all of them exist
        self.run("PRAGMA synchronous=FULL")
        self.make_room()
        found = self.one("SELECT value FROM meta WHERE name='epoch'")
        if found is None:
            raise ValueError
        self.epoch = found[0]
        if not self.location.full:
            self.run("PRAGMA synchronous=NORMAL")

    def _look(self) -> None:
        """Check that the file belongs to this store before changing it."""
        path = self.location.path
        application, version = self.one("PRAGMA application_id")[0], self.one("PRAGMA user_version")[0]
        if self.one("SELECT count(*) FROM sqlite_schema")[0] == 0 and application == version == 0:
            return
        if application != APPLICATION:
            raise LocalError(
                f"{path} is another program's database. Nothing in it was changed. Use the path of a new "
                "file, which is created when the store is opened."
            )
        if version != VERSION:
            raise LocalError(
                f"{path} was written by another version of Millstream (format {version}; this version supports "
                f"{VERSION}). Nothing in it was changed. Install that version again, or use another file."
            )

    def _look_for(self) -> None:
        """Check that the file is still at its path. Writes to a deleted file succeed, but are lost later.

        Raises:
            FileVanished: The file was deleted or replaced.
            StoreUnavailable: Its write-ahead log was deleted or replaced. The log's content is moved to the database.
        """
        path = self.location.path
        if _identity(path) != self._owned:
            raise FileVanished(
                f"{path} was deleted, moved, or replaced while it was in use. Nothing is stored, because it "
                "would be lost when this process ends. Put the file back, or restart the server to use the "
                "file that is there now."
            )
        if self._database is not None and self._log is not None and _identity(_log_of(path)) != self._log:
            self.drop()  # writes the log into the database
            raise StoreUnavailable(f"{_log_of(path)} was deleted or replaced while it was in use. It's created again.")


def _create(path: Path) -> None:
    """Create the file with owner-only permissions, because its contents could be used to forge sessions.

    An existing file isn't opened here: closing it would release POSIX locks that this process can hold on it.
    """
    if path.is_dir():
        raise IsADirectoryError
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the identity of the file at a path, or None if there is no file."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")
