"""The access log: one JSON line for each message, written in batches.

`add` only keeps the message; lines are made and written together, after `FLUSH_SECONDS` or when `MAX_PENDING` wait,
whichever is first: that bound is what a crash can lose. A stream that fails, or whose reader stands still, loses its
lines and stops nobody; `lost` counts them. Texts of peers go through the redaction and escaping of `logs`, remembered
for those that come again.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from millstream._telemetry.logs import escape, redact_text
from millstream._telemetry.outlet import LAST_MS, TextOutlet

LOGGER = "millstream.access"
FLUSH_SECONDS = 0.2
MAX_PENDING = 512
MAX_TEXT = 256
"""Characters of one text of a peer; longer ones are cut."""
_REMEMBERED = 4096


class AccessRecord(Struct, gc=False):
    """What is known of one message. `status` is empty for success, else what went wrong in one word or number."""

    at: float
    """Seconds since 1970."""
    method: str
    target: str = ""
    """The tool, prompt or resource it is about."""
    status: str = ""
    seconds: float = 0.0
    revision: str = ""
    client: str = ""
    client_version: str = ""
    session: str = ""
    """The session's id; written as a hash."""
    principal: str = ""
    size: int = 0
    """Bytes of the answer."""
    transport: str = ""
    trace_id: str = ""
    span_id: str = ""


class _Line(Struct, gc=False, omit_defaults=True):
    ts: str
    level: str
    logger: str
    method: str
    target: str
    status: str
    duration_ms: float
    revision: str
    client: str
    session: str
    principal: str
    bytes: int
    transport: str
    worker: str
    trace_id: str = ""
    span_id: str = ""


_TRACED = ("trace_id", "span_id")
"""What a line ends with, if there's a trace."""
_LEVELS = {"ok": "info", "-32603": "error"}
"""Status -> level; every other failure is the caller's, and a warning."""

_encode = msgspec.json.Encoder().encode


def session_hash(session_id: str) -> str:
    """What stands for a session in logs and traces: it tells sessions apart and opens none. Empty for none."""
    if not session_id:
        return ""
    return hashlib.sha256(session_id.encode(errors="replace")).hexdigest()[:16]


class MessageLog:
    """Writes messages to a stream. For one event loop; `flush` at the end writes what still waits."""

    __slots__ = (
        "_format", "_frames", "_hashes", "_millisecond", "_outlet", "_pending", "_stamp", "_texts", "_timer", "_worker",
        "lost",
    )  # fmt: skip

    def __init__(self, stream: TextIO, *, worker: str = "", json: bool | None = None) -> None:
        """Write to `stream`.

        Args:
            stream: where to write; anything but standard output.
            worker: what tells this process from others; its number by default.
            json: JSON lines or short ones for people; ``None`` decides by whether `stream` is a terminal.
        """
        # Configuration
        self._outlet = TextOutlet(stream)
        self._worker = worker or str(os.getpid())
        lines = (not stream.isatty()) if json is None else json
        self._format: Callable[[AccessRecord], str] = self._json_line if lines else self._human_lines(stream)
        # Process
        self.lost: int = 0
        """Lines that the stream did not take."""
        self._pending: list[AccessRecord] = []
        self._timer: asyncio.TimerHandle | None = None
        self._texts: dict[str, str] = {}
        self._hashes: dict[str, str] = {}
        self._frames: dict[tuple[str, ...], tuple[str, str, str]] = {}
        """What lines have in common, around the time, the duration and the size."""
        self._millisecond = -1
        self._stamp = ""

    def add(self, message: AccessRecord) -> None:
        """Log one message soon."""
        pending = self._pending
        pending.append(message)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        elif len(pending) >= MAX_PENDING:
            self.flush()

    def flush(self, *, last: bool = False) -> None:
        """Write what waits; the `last` time, give a slow reader a moment."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, []
        if not pending and not self._outlet.kept:
            return
        text = "".join([self._format(message) for message in pending])
        try:
            taken = self._outlet.write(text, wait_ms=LAST_MS if last else 0)
        except (OSError, ValueError):  # ValueError: the stream is closed
            taken = False
        if not taken:
            self.lost += len(pending)
        if self._outlet.kept and not last:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def _json_line(self, message: AccessRecord) -> str:
        if message.trace_id:
            return f"{_encode(self._line(message)).decode()}\n"
        key = (
            message.method, message.target, message.status, message.revision, message.client, message.client_version,
            message.session, message.principal, message.transport,
        )  # fmt: skip
        frame = self._frames.get(key)
        if frame is None:
            frame = self._frame(key, message)
        duration = int(message.seconds * 1_000_000) / 1000
        return f'{{"ts":"{self._time(message.at)}"{frame[0]}{duration}{frame[1]}{message.size}{frame[2]}'

    def _frame(self, key: tuple[str, ...], message: AccessRecord) -> tuple[str, str, str]:
        """A line in three pieces: it's encoded once, and most calls differ in three figures only."""
        if len(self._frames) >= _REMEMBERED:
            self._frames.clear()
        fields = {name: _encode(value).decode() for name, value in asdict(self._line(message)).items()}
        members = [f',"{name}":{value}' for name, value in fields.items() if name not in _TRACED]
        duration, size = (list(fields).index(name) for name in ("duration_ms", "bytes"))
        first = "".join(members[1:duration]) + ',"duration_ms":'
        second = "".join(members[duration + 1 : size]) + ',"bytes":'
        third = "".join(members[size + 1 :]) + "}\n"
        if sum(map(len, key)) <= MAX_TEXT * 2:
            self._frames[key] = (first, second, third)
        return first, second, third

    def _human_lines(self, stream: TextIO) -> Callable[[AccessRecord], str]:
        write = _human_lines(stream)
        return lambda message: write(self._line(message))

    def _line(self, message: AccessRecord) -> _Line:
        known, hashes, status = self._texts, self._hashes, message.status or "ok"
        client = f"{message.client}/{message.client_version}" if message.client_version else message.client
        return _Line(
            self._time(message.at),
            _LEVELS.get(status, "warning"),
            LOGGER,
            known[message.method] if message.method in known else self._text(message.method),
            known[message.target] if message.target in known else self._text(message.target),
            known[status] if status in known else self._text(status),
            int(message.seconds * 1_000_000) / 1000,
            message.revision,
            known[client] if client in known else self._text(client),
            hashes[message.session] if message.session in hashes else self._hash(message.session),
            known[message.principal] if message.principal in known else self._text(message.principal),
            message.size,
            message.transport,
            self._worker,
            message.trace_id,
            message.span_id,
        )

    def _time(self, at: float) -> str:
        millisecond = int(at * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            moment = datetime.fromtimestamp(millisecond / 1000, UTC)
            self._stamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return self._stamp

    def _text(self, text: str) -> str:
        """A text of a peer as it may stand in the log."""
        clean = escape(redact_text(text))
        if len(clean) > MAX_TEXT:
            clean = f"{clean[:MAX_TEXT]}…"
        if len(text) <= MAX_TEXT:
            if len(self._texts) >= _REMEMBERED:
                self._texts.clear()
            self._texts[text] = clean
        return clean

    def _hash(self, session: str) -> str:
        if len(self._hashes) >= _REMEMBERED:
            self._hashes.clear()
        hashed = self._hashes[session] = session_hash(session)
        return hashed


def _human_lines(stream: TextIO) -> Callable[[_Line], str]:
    """Short lines: when, how it ended, what it was, how long it took, and who asked."""
    color = stream.isatty() and "NO_COLOR" not in os.environ
    dim, plain = ("\x1b[2m", "\x1b[0m") if color else ("", "")

    def format_line(line: _Line) -> str:
        clock = datetime.fromisoformat(line.ts).astimezone().strftime("%H:%M:%S")
        who = " ".join(each for each in (line.client or line.transport, line.principal) if each)
        about = f"{line.method} {line.target}" if line.target else line.method
        mark = f"\x1b[{_COLORS[line.level]}m" if color else ""
        return (
            f"{dim}{clock}{plain} {mark}{line.status:<10}{plain} {about}  {line.duration_ms:g} ms  {dim}{who}{plain}\n"
        )

    return format_line


_COLORS = {"info": "32", "warning": "33", "error": "31"}
"""Of the outcome, on a terminal."""
