"""The access log and the audit log: JSON lines about messages and calls.

Access log lines are written in batches, after `FLUSH_SECONDS` or when `MAX_PENDING` lines wait, whichever is first. A
crash loses at most one batch. Text from peers is redacted and escaped as in `logs`. Lines that differ only in time,
duration, and size share a cached `Frame`, except with traces.

The audit log records callers, calls, and outcomes in an append-only file. Every line contains the hash of the previous
line, so changing, removing, or inserting a line invalidates all lines after it. If the end was cut off, or replaced
with new hashes, only comparison with a hash recorded elsewhere detects it. Each process writes its own file. Arguments
and results aren't logged.
"""

import asyncio
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import msgspec
from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._protocol.json_schema import is_object
from millstream._protocol.jsonrpc import Json
from millstream._protocol.redaction import redact_foreign
from millstream._recent import Recent
from millstream._telemetry.logs import HumanLines, JsonLines, escape, is_colored, outlet_for

LOGGER = "millstream.access"
FLUSH_SECONDS = 0.2
MAX_PENDING = 512
MAX_TEXT = 256
"""Maximum characters of a peer's text. Longer text is cut."""
MAX_KIND = 2 * MAX_TEXT
"""Maximum total characters of the strings in a cached kind of line."""
MAX_CACHED = 4096


Frame = tuple[str, str, str]
"""The constant parts of a kind of line: between time and duration, between duration and size, and after the size."""


class AccessRecord(Struct, gc=False):
    """The facts about one message. `status` is empty for success, otherwise an error as one word or number."""

    at: float
    """Seconds since 1970."""
    method: str
    target: str = ""
    """The tool, prompt, or resource, by its name at the main address."""
    status: str = ""
    seconds: float = 0.0
    revision: str = ""
    client: str = ""
    client_version: str = ""
    session: str = ""
    """The session's id, which is written as a hash."""
    principal: str = ""
    size: int = 0
    """The size of the answer in bytes."""
    transport: str = ""
    trace_id: str = ""
    span_id: str = ""
    set: str = ""
    """The set at whose address the call arrived."""


_SLACK = 1e-6
"""Tolerance for rounding errors of sums, in seconds."""
SERVER_FAILURES = frozenset(("server_error", "-32603", "-32000", "-31503"))
"""Statuses of failures caused by this server or one behind it. All others are the caller's, and logged as warnings."""

_encode = msgspec.json.Encoder().encode


def session_hash(session_id: str) -> str:
    """Return an identifier of a session for logs and traces. It can't be used to access the session."""
    if not session_id:
        return ""
    return sha256(session_id.encode(errors="replace")).hexdigest()[:16]


class MessageLog:
    """Writes messages to a stream. For one event loop. Call `flush` at the end."""

    def __init__(self, stream: TextIO, *, worker: str = "", json: bool | None = None) -> None:
        """Write to `stream`.

        Args:
            stream: Any stream except standard output.
            worker: The name of this process in the log. The process id by default.
            json: Whether to write JSON lines or short ones. ``None`` writes short ones if `stream` is a terminal.
        """
        self._worker = worker or str(os.getpid())
        self._json = (not stream.isatty()) if json is None else json
        color = is_colored(stream)
        self._outlet = outlet_for(stream, JsonLines() if self._json else HumanLines(color=color))
        self._dim = ("\x1b[2m", "\x1b[0m") if color else ("", "")
        self._pending: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._texts: Recent[str, str] = Recent(MAX_CACHED)
        self._frames: Recent[tuple[str, ...], Frame] = Recent(MAX_CACHED)
        self._from = self._until = 0.0
        """The current millisecond."""
        self._stamp = ""
        """The start of lines in this millisecond."""

    @property
    def lost(self) -> int:
        """Number of lines that the stream didn't accept, including other loggers' lines."""
        return self._outlet.lost

    def add(self, message: AccessRecord) -> None:
        """Queue one message."""
        key = (
            message.method,
            message.target,
            message.status,
            message.revision,
            message.client,
            message.client_version,
            message.session,
            message.principal,
            message.transport,
            message.set,
        )
        frame = None if message.trace_id else self._frames.get(key)
        if frame is None:
            frame = self.frame(message)
            if not message.trace_id and sum(map(len, key)) <= MAX_KIND:
                self._frames.keep(key, frame)
        self.write(frame, message.at, message.seconds, message.size)

    def write(self, frame: Frame, at: float, seconds: float, size: int) -> None:
        """Queue a message of a cached kind. Runs for every call on a server with an access log."""
        if not self._from <= at < self._until:
            self._begin(at)
        first, second, third = frame
        pending = self._pending
        if self._json:
            pending.append(f"{self._stamp}{first}{seconds * 1000:.3f}{second}{size}{third}")
        else:
            pending.append(f"{self._stamp}{first}{round(seconds * 1000, 3):g}{second}{third}")
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        elif len(pending) >= MAX_PENDING:
            self.flush()

    def flush(self, *, last: bool = False) -> None:
        """Write queued lines. If `last` is true, wait briefly for a slow reader."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, []
        if pending:
            self._outlet.write("".join(pending))
        if last:
            self._outlet.finish()

    def frame(self, message: AccessRecord) -> Frame:
        """Return the constant parts of lines of this kind."""
        line = self._line(message)
        if not self._json:
            dim, plain = self._dim
            who = " ".join(each for each in (line["client"] or line["transport"], line["principal"]) if each)
            about = f"{line['method']} {line['target']}" if line["target"] else line["method"]
            mark = f"\x1b[{_COLORS[line['level']]}m" if dim else ""
            return f"{mark}{line['status']:<12}{plain} {about}  ", f" ms  {dim}{who}{plain}\n", ""
        text = "".join(f',"{name}":{_encode(value).decode()}' for name, value in line.items())
        before, mark, rest = text.partition(',"duration_ms":null')
        between, size_mark, after = rest.partition(',"bytes":null')
        return before + mark[:-4], between + size_mark[:-4], after + "}\n"

    def _begin(self, at: float) -> None:
        """Start a new millisecond."""
        millisecond = int((at + _SLACK) * 1000)
        self._from, self._until = millisecond / 1000 - _SLACK, (millisecond + 1) / 1000 - _SLACK
        moment = datetime.fromtimestamp(millisecond / 1000, UTC)
        if self._json:
            self._stamp = f'{{"ts":"{moment:%Y-%m-%dT%H:%M:%S}.{millisecond % 1000:03}Z"'
        else:
            dim, plain = self._dim
            self._stamp = f"{dim}{moment.astimezone():%H:%M:%S}{plain} "

    def _line(self, message: AccessRecord) -> Json:
        """Return a line with null as its duration and size. Text can't look like these members, because in JSON its
        quotes are escaped.
        """
        status = message.status or "ok"
        client = f"{message.client}/{message.client_version}" if message.client_version else message.client
        trace = {"trace_id": message.trace_id, "span_id": message.span_id} if message.trace_id else {}
        return {
            "level": "error" if status in SERVER_FAILURES else "warning" if message.status else "info",
            "logger": LOGGER,
            "method": self._text(message.method),
            "target": self._text(message.target),
            "status": self._text(status),
            "duration_ms": None,
            "revision": message.revision,
            "client": self._text(client),
            "session": session_hash(message.session),
            "principal": self._text(message.principal),
            "bytes": None,
            "transport": message.transport,
            "worker": self._worker,
            **({"set": message.set} if message.set else {}),
            **trace,
        }

    def _text(self, text: str) -> str:
        """Return a peer's text in a form that is safe for the log."""
        if (known := self._texts.get(text)) is not None:
            return known
        clean = escape(redact_foreign(text))
        if len(clean) > MAX_TEXT:
            clean = f"{clean[:MAX_TEXT]}…"
        if len(text) <= MAX_TEXT:
            self._texts.keep(text, clean)
        return clean


_COLORS = {"info": "32", "warning": "33", "error": "31"}
"""Colors of outcomes, for terminals."""


START = "0" * 64
"""The previous hash in the first line."""
_MAX_FILES = 256
_MAX_AUDITED = 512
"""Maximum characters of a peer's text in the audit log."""
_MARK = b',"hash":"'
LOST = "lost"
"""`method` of a line about entries that couldn't be written."""


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
    set: str = ""
    """The set at whose address the call arrived."""
    program: str = ""
    """Name and version of the client's program, as it says."""
    trace: str = ""
    call: str = ""
    """Id that the rounds of a call share."""
    approver: str = ""
    """Subject of another person who approved the call."""
    read: str = ""
    """What a tool such as `read_resource` read: a URI, or the name of a prompt."""


class AuditLog:
    """The audit log of one process. A line says how many others couldn't be written before it."""

    lost: int = 0
    """Number of entries that couldn't be written and that no line mentions yet."""
    _lost_at: tuple[str, str] = "", ""
    """Times of the first and the last of them."""

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
        """Append a line and pass it to the operating system before returning.

        Raises:
            OSError: It can't be written.
        """
        for name in ("method", "target", "subject", "issuer", "client", "address", "program", "read"):
            value: str = getattr(entry, name)
            setattr(entry, name, value[:_MAX_AUDITED].encode("utf-8", "replace").decode())
        try:
            self.report_lost()
            self._append(msgspec.to_builtins(entry))
        except OSError:
            self.lost, self._lost_at = self.lost + 1, (self._lost_at[0] or entry.at, entry.at)
            raise

    def report_lost(self) -> None:
        """Append a line about entries that couldn't be written, if there are any.

        Raises:
            OSError: It can't be written either.
        """
        if self.lost:
            first, last = self._lost_at
            self._append({"at": last, "method": LOST, "lost": self.lost, "from": first, "to": last})
            self.lost, self._lost_at = 0, ("", "")

    def _append(self, line_members: Json) -> None:
        body = _encode({"seq": self.seq + 1, "prev": self.hash, **line_members})
        digest = sha256(body).hexdigest()
        line = b'%b%b%b"}\n' % (body[:-1], _MARK, digest.encode())
        written = os.write(self._fd, line)
        if written != len(line):
            # A partial line would merge with the next one and look like tampering.
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise OSError("the disk is full")
        self.seq, self.hash = self.seq + 1, digest

    def close(self) -> None:
        """Flush written lines to disk and close the file."""
        try:
            with suppress(OSError):
                self.report_lost()
            os.fsync(self._fd)
        finally:
            os.close(self._fd)


def _open(path: Path) -> tuple[Path, int]:
    for number in range(_MAX_FILES):
        each = path if number == 0 else path.with_name(f"{path.name}.{number}")
        try:
            handle = os.open(each, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                os.close(handle)
                raise OSError(0, "it isn't a regular file, so its last line can't be read")
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


def _read_end(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read()


def _last(path: Path) -> tuple[int, str]:
    """Return the number and hash of a file's last line."""
    tail = _read_end(path, 64 * 1024)
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


def _check(line: bytes) -> Json | None:
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


class Verification(NamedTuple):
    """What a file contains."""

    lines: int
    hash: str
    """The hash of the last line."""
    lost: int = 0
    """Number of entries that couldn't be written."""


def verify(path: Path) -> Verification:
    """Return what a file contains, if no line was changed. Lines that were cut off at the end can't be noticed.

    Raises:
        BrokenAuditLog: A line was changed, removed, inserted, or moved, or the last one is incomplete.
        OSError: The file can't be read.
    """
    number, previous, lost = 0, START, 0
    for number, line in enumerate(_lines(path), 1):
        found = _check(line)
        if found is None:
            raise BrokenAuditLog(f"Line {number} of {path} was changed.")
        if found.get("prev") != previous or found.get("seq") != number:
            raise BrokenAuditLog(f"Before line {number} of {path}, lines were removed, inserted, or reordered.")
        previous = str(found["hash"])
        lost += found.get("lost", 0) if found.get("method") == LOST else 0
    return Verification(number, previous, lost)


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                raise BrokenAuditLog(f"The last line of {path} is incomplete.")
            yield line[:-1]


TAIL_BYTES = 512 * 1024
"""Maximum bytes to read from the end of each file."""
MAX_FILES = 64
MAX_LINES = 500
_FIELDS = ("method", "target", "read", "subject", "issuer", "client", "address", "transport", "outcome")
"""Fields that a filter searches."""


def newest(path: Path, *, words: str = "", failed: bool = False, limit: int = 100) -> list[Json]:
    """Return the newest lines without their hashes, newest first.

    They come from all audit logs of the machine: the server's file, and the numbered files of its other workers. The
    lines aren't verified. See `verify`.

    Args:
        path: The file configured for the server.
        words: Return only lines whose `_FIELDS` contain all of these words, ignoring case.
        failed: Return only failed calls and refusals.
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


def _tail(path: Path) -> Iterator[Json]:
    """Return the last lines of a file."""
    try:
        lines = _read_end(path, TAIL_BYTES).split(b"\n")
    except OSError:
        return
    for line in lines:
        try:
            found: Any = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue  # The first line may be incomplete.
        if is_object(found):
            yield found


def _has(line: Json, wanted: list[str]) -> bool:
    text = " ".join(str(line.get(name, "")) for name in _FIELDS).lower()
    return all(word in text for word in wanted)
