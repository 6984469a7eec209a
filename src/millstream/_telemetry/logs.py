"""Structured logs, printed lines as log records, and tracebacks that are shortened to user code.

`configure` installs one handler on the root logger, so the program's own loggers and uvicorn's have the same format:
JSON lines for machines, short lines for a terminal. In these formats, values that a peer can influence aren't trusted:
secrets are replaced by ``***``, recognized by field name and by their form in text, control characters are escaped so
no value can forge a line, and long values are cut. A program that logs to the console keeps its own format. Our handler
writes to standard error, and rejects standard output, because it carries the protocol on stdio. It doesn't wait for a
reader of the log: see `TextOutlet`.
"""

import inspect
import logging
import os
import select
import shutil
import stat
import sys
import sysconfig
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any, TextIO, cast

import msgspec

from millstream._config import Settings
from millstream._override import override
from millstream._protocol.redaction import HIDDEN, MAX_TEXT, is_secret, redact_foreign, redact_text
from millstream._recent import Recent
from millstream._text import escape as escape_invisible
from millstream._text import fit

MAX_DEPTH = 6
MAX_ITEMS = 100

_MESSAGES = "millstream.client.messages"

LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error", "critical")}
UVICORN_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | dict(
    zip(b"\n\r\t", ("\\n", "\\r", "\\t"), strict=True)
)

_MAX_TRACEBACKS = 64
_MAX_FRAMES = 16
"""Maximum number of tracebacks that a formatter caches, and of frames in each."""
_LONG_ERRORS = (AttributeError, BaseExceptionGroup, ImportError, NameError, SyntaxError)
"""Errors to which a traceback adds more than their text, such as a similar name."""
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_COLORS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


def configure_as(settings: Settings, *, level: str = "") -> None:
    """Send log records to the destination in the settings. `level` overrides their level.

    Raises:
        ValueError: The log file can't be written.
    """
    beside: logging.Handler | None = None
    if settings.log_file:
        from logging.handlers import WatchedFileHandler  # noqa: PLC0415  only where there is one

        path = Path(settings.log_file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o640)  # lines contain names of clients and tools
            beside = WatchedFileHandler(path, encoding="utf-8", errors="backslashreplace")
        except OSError as exc:
            raise ValueError(f"The log file {settings.log_file} can't be written: {exc.strerror}.") from exc
    json = None if settings.log_format == "auto" else settings.log_format == "json"
    configure(level or settings.log_level, json=json, beside=beside)


def configure(
    level: str = "info",
    *,
    json: bool | None = None,
    stream: TextIO | None = None,
    beside: logging.Handler | None = None,
) -> None:
    """Send log records to `stream` (standard error by default). Replaces an earlier configuration, unless the program
    has configured logging to standard output or standard error.

    Args:
        level: ``debug``, ``info``, ``warning``, ``error``, or ``critical``.
        json: Whether to write JSON lines. ``None`` writes them unless `stream` is a terminal.
        stream: Any stream except standard output.
        beside: A second stream that gets every record as a JSON line.

    Raises:
        ValueError: The level is unknown, or the stream is standard output.
    """
    number = LEVELS.get(level.lower())
    if number is None:
        raise ValueError(f"Unknown log level {level!r}. Use one of: {', '.join(LEVELS)}.")
    target = stream or sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115  stderr may be closed (2>&-)
    if target is sys.stdout:
        raise ValueError(
            "Logs can't be written to standard output, because it carries the protocol on stdio. Use another stream."
        )
    lines = (not target.isatty()) if json is None else json
    formatter = JsonLines() if lines else HumanLines(color=is_colored(target), wrap=target.isatty())
    handler = _OurHandler(outlet_for(target, formatter))
    handler.stream.formatter = formatter
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _OurHandler)]:
        root.removeHandler(old)
    if beside is not None and beside not in root.handlers:
        beside.setFormatter(JsonLines())
        root.addHandler(beside)
    for name, logger in root.manager.loggerDict.items():
        if name.partition(".")[0] == "millstream" and isinstance(logger, logging.Logger):
            logger.disabled = False  # by default, the program's `dictConfig` disables existing loggers
    if stream is None and any(map(_writes_to_console, root.handlers)):
        return  # the program has its own format, and each line would appear twice
    root.addHandler(handler)
    root.setLevel(number)
    for name in UVICORN_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        # At level "info", uvicorn repeats the start-up panel.
        logger.setLevel(logging.WARNING if number == logging.INFO else number)


def _writes_to_console(handler: logging.Handler) -> bool:
    """Return whether a handler writes to standard output or standard error. Rich's doesn't count, because the official
    SDK's `FastMCP` installs it, and it wraps lines.
    """
    stream: object = getattr(handler, "stream", None)
    return stream is not None and stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)


MAX_KEPT = 256 * 1024
"""Maximum bytes to keep for a slow reader. Further lines are dropped."""
_PIECE = 4096
"""Bytes that a writable pipe accepts without blocking (`PIPE_BUF` of POSIX)."""
LAST_SECONDS = 1.0
"""Seconds that an exiting process waits for a slow reader."""


class TextOutlet:
    """Writes lines to a stream without waiting for a slow or stalled reader. Any thread can use it.

    Lines that the stream can't accept immediately are kept, up to `MAX_KEPT` bytes, and written later by a thread.
    Further lines are dropped, and the next line reports how many.

    Args:
        stream: The stream. formatter: The format of that report.
    """

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        self.stream: TextIO = stream
        self.formatter: logging.Formatter = formatter
        self.lost: int = 0
        """Number of lines that the stream didn't accept."""
        self.unsent: bytearray = bytearray()
        self._unreported = 0
        self._lock = threading.RLock()
        self._sending = self._waiting = self._given_up = False
        self._descriptor: int | None = None
        """None for files and in-memory streams, which don't block, and on Windows, where blocking can't be checked.
        """
        with suppress(OSError, ValueError, AttributeError):
            descriptor = stream.fileno()
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                descriptor = self._reopen(descriptor)
                self._poll = _poll(descriptor)
                self._descriptor = descriptor

    def write(self, text: str) -> None:
        """Write complete lines, keep them for later, or drop them."""
        if self._descriptor is None:
            try:
                self.stream.write(text)
                self.stream.flush()
            except (OSError, ValueError):  # ValueError: the stream is closed
                self.lost += text.count("\n")
            return
        data = text.encode(errors="backslashreplace")
        with self._lock:
            room = MAX_KEPT - len(self.unsent)
            end = len(data) if len(data) <= room else data.rfind(b"\n", 0, room) + 1
            self.unsent += data[:end]
            self._drop(data[end:])
            self._send()
            if self.unsent and not self._waiting:
                self._waiting = True
                with suppress(RuntimeError):  # the interpreter is shutting down
                    threading.Thread(target=self._send_later, name="millstream_log", daemon=True).start()

    def finish(self) -> None:
        """Wait up to `LAST_SECONDS` until all lines are written. Call it before the process exits."""
        end = time.monotonic() + LAST_SECONDS
        while self._descriptor is not None and self.unsent and not self._given_up:
            self._given_up = not _poll(self._descriptor).poll(max(0.0, end - time.monotonic()) * 1000)
            with self._lock:
                self._send()

    def _reopen(self, descriptor: int) -> int:
        """Return a descriptor of a pipe that other processes can't block by writing to the same pipe at the same time.

        Setting the original one to non-blocking would also change it for them.
        """
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            with suppress(OSError):  # the pipe belongs to another user, or this isn't Linux
                descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                weakref.finalize(self, os.close, descriptor).atexit = False  # lines may be written until then
        return descriptor

    def _send(self) -> None:
        """Write as much as the stream accepts without blocking."""
        if self._sending or self._descriptor is None:  # interrupted by a signal handler that logs
            return
        self._sending = True
        try:
            while self._has_more() and self._poll.poll(0):
                piece = bytes(self.unsent[:_PIECE])
                piece = piece[: piece.rfind(b"\n") + 1] or piece  # lines from several processes stay whole
                del self.unsent[: os.write(self._descriptor, piece)]
        except BlockingIOError:
            pass
        except OSError:  # the reader has disconnected
            self._drop(self.unsent)
            self.unsent.clear()
            self._unreported = 0
        finally:
            self._sending = False

    def _has_more(self) -> bool:
        if not self.unsent and self._unreported:
            count, self._unreported = self._unreported, 0
            lines = "1 line of this log was" if count == 1 else f"{count} lines of this log were"
            record = logging.LogRecord(
                "millstream", logging.WARNING, "", 0, "%s dropped, because standard error wasn't read.", (lines,), None
            )
            self.unsent += f"{self.formatter.format(record)}\n".encode(errors="backslashreplace")
        return bool(self.unsent)

    def _drop(self, data: bytes | bytearray) -> None:
        lines = data.count(b"\n")
        self.lost += lines
        self._unreported += lines

    def _send_later(self) -> None:
        """Write kept lines when the stream accepts them. Runs in its own thread."""
        poll = _poll(self._descriptor or 0)
        while True:
            poll.poll()
            with self._lock:
                self._send()
                if not self.unsent:
                    self._waiting = False
                    return


def _poll(descriptor: int) -> "select.poll":
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll


def outlet_for(stream: TextIO, formatter: logging.Formatter) -> TextOutlet:
    """Return the outlet through which `configure` writes to a stream, or else a new one.

    Args:
        formatter: The format of lines about dropped ones.
    """
    for each in logging.getLogger().handlers:
        if isinstance(each, _OurHandler) and each.stream.stream is stream:
            return each.stream
    return TextOutlet(stream, formatter)


class _OurHandler(logging.StreamHandler[TextOutlet]):
    """A handler installed by `configure`, which it may replace."""

    @override
    def close(self) -> None:
        self.stream.finish()
        super().close()


def capture_logs(listener: logging.Handler) -> Callable[[], None]:
    """Pass records that reach the root logger to a handler, too. Return a function that stops it.

    If a program hasn't configured logging, Python shows warnings and errors on standard error, but only those that
    reach no handler. A capturing handler must not suppress that.
    """
    handler = _CaptureHandler(listener)
    root = logging.getLogger()
    root.addHandler(handler)
    return lambda: root.removeHandler(handler)


class _CaptureHandler(logging.Handler):
    def __init__(self, listener: logging.Handler) -> None:
        super().__init__()
        self._listener = listener

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._listener.handle(record)
        last = logging.lastResort
        if last and record.levelno >= last.level and self._shows() and not _is_shown(record.name):
            last.handle(record)

    def _shows(self) -> bool:
        """Return whether this handler shows records that no other handler does. Each server in this process has a
        capturing handler.
        """
        return next((each for each in logging.getLogger().handlers if isinstance(each, _CaptureHandler)), self) is self


def _is_shown(name: str) -> bool:
    """Return whether records of a logger reach a handler other than ours. Then `lastResort` isn't used."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        if any(not isinstance(each, _CaptureHandler) for each in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


class _ErrorFormatter(logging.Formatter):
    """A formatter that describes errors. It formats the frames of a traceback once, because finding their columns takes
    longer than a call, and many callers can make a function fail at the same place.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frames: Recent[tuple[tuple[CodeType, int], ...], str] = Recent(_MAX_TRACEBACKS)

    def describe_error(self, record: logging.LogRecord) -> dict[str, str] | None:
        """Return the type, text, and traceback of a record's exception, without secrets."""
        if not record.exc_info or record.exc_info[0] is None:
            return None
        kind, error, trace = record.exc_info
        message, stack = redact_foreign(str(error)), ""
        if not (error.__cause__ or error.__context__ or hasattr(error, "__notes__") or isinstance(error, _LONG_ERRORS)):
            where = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
            stack = f"{self._format_frames(trace)}{where}{kind.__qualname__}{message and ': '}{message}"
        if not 0 < len(stack) <= MAX_TEXT:
            stack = self.formatException(record.exc_info)
            # The useful part is the end of a traceback, not the middle of a deep recursion.
            stack = redact_foreign(f"…{stack[-MAX_TEXT:]}" if len(stack) > MAX_TEXT else stack)
        return {"type": kind.__name__, "message": message, "stack": stack}

    def _format_frames(self, trace: TracebackType | None) -> str:
        links = _links(trace)
        key = tuple((each.tb_frame.f_code, each.tb_lasti) for each in links)
        text = self._frames.get(key) if links else ""
        if text is None:
            text = "Traceback (most recent call last):\n" + "".join(traceback.format_tb(trace))
            if len(text) <= MAX_TEXT:
                text = redact_foreign(text)
            if len(links) <= _MAX_FRAMES:
                self._frames.keep(key, text)
        return text


def stamp(seconds: float) -> str:
    """Format a time as in RFC 3339, with milliseconds."""
    second, rest = divmod(round(seconds * 1e6), 1_000_000)
    return f"{_format_second(second)}.{rest // 1000:03d}Z"


@lru_cache
def _format_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class JsonLines(_ErrorFormatter):
    """One JSON object per line: ``ts``, ``level``, ``logger``, ``message``, and the record's extra fields."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": stamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact_message(record),
        }
        for name, value in extra_fields(record).items():
            line.setdefault(name, value)
        if error := self.describe_error(record):
            line["error"] = error
        text = msgspec.json.encode(line, enc_hook=repr).decode()
        # JSON escapes C0 itself. The others are valid in a string, but some readers break lines there.
        return text if text.isascii() and "\x7f" not in text else escape_invisible(text)


def is_colored(stream: TextIO) -> bool:
    """Return whether a stream is a terminal with colors, and they're wanted (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class HumanLines(_ErrorFormatter):
    """``12:00:00 INFO  logger: message  field=value``. Continuation lines (tracebacks) are indented."""

    def __init__(self, *, color: bool, wrap: bool = False) -> None:
        super().__init__()
        self.color = color
        self._wraps = wrap

    @override
    def format(self, record: logging.LogRecord) -> str:
        clock = self.formatTime(record, "%H:%M:%S")
        level = f"{record.levelname:<8}"
        said = record.getMessage()
        fields = extra_fields(record).items()
        shown = "".join(
            f"  {escape(name)}={escape(_plain(value))}"
            for name, value in fields
            if name != "incident" or str(value) not in said
        )
        text = f"{clock} {level} {record.name}: {escape(redact_message(record))}{shown}"
        if self._wraps:
            text = fit("    ", text, shutil.get_terminal_size().columns).lstrip()
        if self.color:
            text = text.replace(level, f"\x1b[{_COLORS.get(record.levelname, '0')}m{level}\x1b[0m", 1)
        if error := self.describe_error(record):
            text += "".join(f"\n    {escape(line)}" for line in error["stack"].split("\n"))
        return text


def extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of ``extra={…}``, with secrets hidden."""
    return {name: redact(value, name) for name, value in vars(record).items() if name not in _OWN_FIELDS}


def redact(value: Any, name: str = "", depth: int = 0) -> Any:
    """Return `value` with secrets hidden. They're recognized by field name, at any depth, and by their form in text."""
    if name and value is not None and not isinstance(value, bool) and is_secret(name):
        return HIDDEN
    if isinstance(value, str):
        return redact_foreign(value)
    if isinstance(value, bytes):
        return redact_foreign(value[: MAX_TEXT + 1].decode(errors="backslashreplace"))
    if isinstance(value, Mapping | list | tuple) and depth >= MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        return {redact_foreign(str(key)): redact(item, str(key), depth + 1) for key, item in _first(value.items())}
    if isinstance(value, list | tuple):
        return [redact(item, "", depth + 1) for item in _first(value)]
    if value is None or isinstance(value, int | float):
        return value
    return redact_foreign(repr(value))


def redact_message(record: logging.LogRecord) -> str:
    """Return a record's text without credentials.

    Our own loggers' texts name tools and headers, so what follows a name such as ``token:`` isn't a credential there.
    Whoever logs the text of a peer passes it to `redact_foreign`, unless it's an exception.
    """
    if str(record.name).partition(".")[0] != "millstream" or record.name == _MESSAGES:
        return redact_foreign(record.getMessage())
    if isinstance(record.args, tuple) and any(isinstance(each, Exception) for each in record.args):
        args = [redact_foreign(str(each)) if isinstance(each, Exception) else each for each in record.args]
        return redact_text(str(record.msg) % tuple(args))
    return redact_text(record.getMessage())


def escape(text: str) -> str:
    """Return `text` on one line, with control characters and invisible ones escaped."""
    return escape_invisible(text.translate(_ESCAPES))


def _first(items: Any) -> list[Any]:
    return list(islice(items, MAX_ITEMS))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


_MAX_LINE = 8192
"""Maximum characters of a line. The rest becomes another line."""


def capture_prints(listener: logging.Handler) -> Callable[[], None]:
    """Pass each line printed to standard output and standard error to a handler. Return a function that stops it.

    Records have the level INFO, and ``stdout`` or ``stderr`` as the logger name. The original streams also get the
    lines. Existing log handlers keep these streams, so their lines don't appear twice. For development, because it
    slows down each print.
    """
    before = sys.stdout, sys.stderr
    after = cast("TextIO", _Tee(before[0], "stdout", listener)), cast("TextIO", _Tee(before[1], "stderr", listener))
    sys.stdout, sys.stderr = after

    def restore() -> None:
        if sys.stdout is after[0]:
            sys.stdout = before[0]
        if sys.stderr is after[1]:
            sys.stderr = before[1]

    return restore


class _Tee(msgspec.Struct, eq=False):
    """A text stream that also turns written lines into log records."""

    _stream: TextIO
    _name: str
    _listener: logging.Handler
    _rest: str = ""

    def write(self, text: str) -> int:
        """Write and pass on complete lines."""
        written = self._stream.write(text)
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > _MAX_LINE:
            lines.append(self._rest)
            self._rest = ""
        for line in lines:
            if line.strip():
                self._listener.handle(logging.LogRecord(self._name, logging.INFO, "", 0, line, None, None))
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


PROGRAM = Path(__file__).parents[1]
"""The folder of Millstream's own code."""
_MAX_CHAIN = 64
"""Maximum number of exceptions in a chain or group to shorten. Others are left unchanged."""


def user_frames(exc: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of user code, or all frames if there are none, because the user's file may be anywhere."""
    shown = [each for each in traceback.extract_tb(exc.__traceback__) if not each.filename.startswith("<frozen")]
    own = [each for each in shown if not is_foreign(each.filename)]
    return own if own or isinstance(exc, SyntaxError) else shown  # a SyntaxError contains its own location


def with_user_frames(exc: BaseException, *, explained: tuple[type[BaseException], ...] = ()) -> BaseException:
    """Shorten the tracebacks of an exception and its causes to the frames in user code. Return the exception.

    To find the failing line in their own file, users don't need the frames between the socket and that line, or those
    of libraries that it called. A traceback without user code keeps the frames outside of Millstream, or else all
    frames. For types in `explained`, whose messages are sufficient, it keeps none.
    """
    for each in _chain(exc):
        each.__traceback__ = _cut(each.__traceback__, whole=not isinstance(each, explained))
    return exc


def advise(exc: BaseException) -> None:
    """Add advice to an error caused by a coroutine that isn't awaited."""
    if isinstance(exc, RuntimeError) and str(exc).startswith("asyncio.run() cannot be called"):
        exc.add_note("An `async def` function already runs in an event loop. Write `await function()` instead.")
    if not isinstance(exc, AttributeError | TypeError) or "'coroutine'" not in str(exc):
        return
    forgotten = getattr(exc, "obj", None)
    if inspect.iscoroutine(forgotten):
        forgotten.close()  # otherwise Python warns again, about a line in Millstream
    exc.add_note("An `async def` function returns a coroutine. Write `await` before the call to get its result.")


def shown_error(exc: BaseException) -> str:
    """Return the full text of an error for development: the user's frames, then the exception."""
    text = "".join(traceback.format_exception(with_user_frames(exc))).rstrip()
    return text if len(text) <= MAX_TEXT else f"…{text[-MAX_TEXT:]}"


@lru_cache(maxsize=1024)
def is_foreign(filename: str) -> bool:
    """Return whether code belongs to Python, an installed package, or Millstream, or was generated by one of them."""
    if filename.startswith("<frozen") or filename == "<string>":  # generated code, such as a dataclass's `__init__`
        return True
    paths = sysconfig.get_paths()
    path = Path(filename)
    return any(path.is_relative_to(each) for each in (paths["stdlib"], paths["purelib"], paths["platlib"], PROGRAM))


def _chain(exc: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exc]
    while waiting and len(seen) < _MAX_CHAIN:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, None if each.__suppress_context__ else each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += cast("BaseExceptionGroup[BaseException]", each).exceptions


def _links(trace: TracebackType | None) -> list[TracebackType]:
    links: list[TracebackType] = []
    while trace is not None:
        links.append(trace)
        trace = trace.tb_next
    return links


def _cut(trace: TracebackType | None, *, whole: bool) -> TracebackType | None:
    links = _links(trace)
    kept = (
        [each for each in links if not is_foreign(each.tb_frame.f_code.co_filename)]
        or [each for each in links if not Path(each.tb_frame.f_code.co_filename).is_relative_to(PROGRAM)]
        or (links if whole else [])
    )
    cut: TracebackType | None = None
    for each in reversed(kept):
        cut = TracebackType(cut, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return cut
