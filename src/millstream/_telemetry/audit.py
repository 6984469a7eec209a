"""The audit log: callers, calls, and outcomes as JSON lines in an append-only file.

Every line contains the hash of the previous line, so changing, removing, or inserting a line invalidates all lines
after it. Truncation is detected only by comparison with a hash recorded elsewhere. Each process writes its own file.
Arguments and results aren't logged.
"""

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._protocol.json_schema import is_object

START = "0" * 64
"""The previous hash in the first line."""
_MAX_FILES = 256
_MAX_TEXT = 512
_MARK = b',"hash":"'

_encode = msgspec.json.Encoder().encode


class AuditEntry(Struct, omit_defaults=True):
    """The contents of a line, before it's written."""

    at: str
    method: str
    target: str = ""
    outcome: str = "ok"
    subject: str = ""
    issuer: str = ""
    client: str = ""
    address: str = ""
    transport: str = ""
    session: str = ""
    """A hash of the session id."""


class AuditLog:
    """The audit log of one process."""

    def __init__(self, path: Path) -> None:
        """Open the file, or the first of ``path.1``, ``path.2``… that isn't used by another process.

        Raises:
            LocalError: The file can't be written to, or doesn't end with a line of an audit log.
        """
        self.path, self._fd = _open(path)
        try:
            self.seq, self.hash = _last(self.path)
        except LocalError:
            os.close(self._fd)
            raise

    def write(self, entry: AuditEntry) -> None:
        """Append a line. It has been passed to the operating system on return."""
        for name in ("method", "target", "subject", "issuer", "client", "address"):
            value: str = getattr(entry, name)
            setattr(entry, name, value[:_MAX_TEXT].encode("utf-8", "replace").decode())
        body = _encode({"seq": self.seq + 1, "prev": self.hash, **msgspec.to_builtins(entry)})
        digest = sha256(body).hexdigest()
        line = b'%b%b%b"}\n' % (body[:-1], _MARK, digest.encode())
        written = os.write(self._fd, line)
        if written != len(line):
            # A partial line would merge with the next one and look like tampering.
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise OSError("the disk is full")
        self.seq, self.hash = self.seq + 1, digest

    def sync(self) -> None:
        """Flush written lines to disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _open(path: Path) -> tuple[Path, int]:
    for number in range(_MAX_FILES):
        each = path if number == 0 else path.with_name(f"{path.name}.{number}")
        try:
            handle = os.open(each, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise LocalError(f"The audit log {each} can't be written to: {exc.strerror}.") from exc
        if _is_free(handle):
            return each, handle
        os.close(handle)
    raise LocalError(f"{_MAX_FILES} processes already write audit logs next to {path}. Give each server its own path.")


def _is_free(handle: int) -> bool:
    try:
        import fcntl  # noqa: PLC0415  not on Windows
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _last(path: Path) -> tuple[int, str]:
    """Return the number and hash of a file's last line."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 64 * 1024))
        tail = file.read()
    if not tail:
        return 0, START
    line = tail.rstrip(b"\n").rpartition(b"\n")[2]
    found = _check(line) if tail.endswith(b"\n") else None
    if found is None:
        raise LocalError(
            f"The last line of {path} isn't from an audit log, or was changed. Move the file away and keep it as "
            "evidence."
        )
    return found["seq"], found["hash"]


def _check(line: bytes) -> dict[str, Any] | None:
    """Return a line if its own hash is correct."""
    body, mark, rest = line.rpartition(_MARK)
    if not mark or not rest.endswith(b'"}') or sha256(body + b"}").hexdigest().encode() != rest[:-2]:
        return None
    try:
        found: Any = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return found if is_object(found) else None


class BrokenAuditLog(Exception):
    """A line was changed. The text gives its number."""


def verify(path: Path) -> tuple[int, str]:
    """Return the number of lines in a file and the hash of the last one.

    Raises:
        BrokenAuditLog: A line was changed, removed, inserted, or moved.
        OSError: The file can't be read.
    """
    seq, previous = 0, START
    for number, line in enumerate(_lines(path), 1):
        found = _check(line)
        if found is None:
            raise BrokenAuditLog(f"Line {number} of {path} was changed.")
        if found.get("prev") != previous or found.get("seq") != seq + 1:
            raise BrokenAuditLog(f"Before line {number} of {path}, lines were removed, inserted, or reordered.")
        seq, previous = seq + 1, str(found["hash"])
    return seq, previous


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                raise BrokenAuditLog(f"The last line of {path} is incomplete.")
            yield line[:-1]


def stamp(seconds: float) -> str:
    """Return a time in the format of the log."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


TAIL_BYTES = 512 * 1024
"""Maximum bytes to read from the end of each file."""
MAX_FILES = 64
MAX_LINES = 500
_FIELDS = ("method", "target", "subject", "issuer", "client", "address", "transport", "outcome")
"""Fields that a filter searches."""


def newest(path: Path, *, words: str = "", failed: bool = False, limit: int = 100) -> list[dict[str, Any]]:
    """Return the newest lines without their hashes, newest first.

    They come from all audit logs of the machine: the server's file, and the numbered files of its other workers. The
    lines aren't verified. See `verify`.

    Args:
        path: The file configured for the server.
        words: Return only lines that contain all of these words, ignoring case.
        failed: Return only failed calls.
        limit: Maximum number of lines, up to `MAX_LINES`.
    """
    wanted = words.lower().split()
    found = [
        line
        for each in _files(path)
        for line in _tail(each)
        if not (failed and line.get("outcome", "ok") == "ok") and _has(line, wanted)
    ]
    found.sort(key=lambda line: (str(line.get("at", "")), str(line.get("seq", "")).zfill(12)), reverse=True)
    return [
        {name: value for name, value in line.items() if name not in ("hash", "prev")}
        for line in found[: max(0, min(limit, MAX_LINES))]
    ]


def _files(path: Path) -> list[Path]:
    """Return the file and the numbered files beside it that other processes write."""
    name = re.compile(re.escape(path.name) + r"(\.\d{1,3})?")
    try:
        found = [each for each in path.parent.iterdir() if name.fullmatch(each.name) and each.is_file()]
    except OSError:
        return []
    return sorted(found)[:MAX_FILES]


def _tail(path: Path) -> Iterator[dict[str, Any]]:
    """Return the last lines of a file, without a first line that may be incomplete."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return
    for line in lines[1 if size > TAIL_BYTES else 0 :]:
        try:
            found: Any = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue
        if is_object(found):
            yield found


def _has(line: dict[str, Any], wanted: list[str]) -> bool:
    text = " ".join(str(line.get(name, "")) for name in _FIELDS).lower()
    return all(word in text for word in wanted)
