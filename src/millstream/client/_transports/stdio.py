"""A server process with one message per line on its standard input and output.

https://modelcontextprotocol.io/specification/2026-07-28/basic/transports/stdio. Its standard error is passed to
`Options.stderr`, by default to the terminal, so that tracebacks aren't lost. If the process exits, error messages
contain its last lines.
"""

import asyncio
import errno
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

from msgspec import Struct

from millstream._confidential import Confidential
from millstream._http.client.connection import too_large
from millstream._http.client.pool import RAISE_FILE_LIMIT
from millstream._override import override
from millstream._protocol.jsonrpc import Envelope, LineSplitter, LineStart
from millstream._protocol.redaction import (
    environment_secrets,
    find_argument_secrets,
    find_secrets,
    redact,
    redact_bytes,
)
from millstream._tasks import Tasks, is_canceled
from millstream._text import INVISIBLE
from millstream.client._errors import ClientError, ConnectFailed, ConnectionLost, InvalidResponse, TargetError
from millstream.client._transports import DuplexTransport, Listener, TransportRequest, one_line

_START = re.compile(r"Failed to validate request: \d+\b")
_REST = re.compile(r"$|\w+Request(\.\S*)?$|\s+(?!\s|(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b)")


class ProbeErrors(Struct):
    """The report that servers with the official SDK 1.x write about `server/discover`: up to 200 lines.

    It isn't shown, because the connection continues with the handshake.
    """

    _started: bool = False
    _ended: bool = False

    def contain(self, line: str) -> bool:
        """Return whether the next line of standard error belongs to the report."""
        if not self._started:
            self._started = _START.search(line) is not None
            return self._started
        self._ended = self._ended or _REST.match(line) is None
        return not self._ended


def line_printer(chosen: Callable[[str], object] | bool | None) -> Callable[[str], object] | None:
    """Return the function that receives each line, or None to drop the output.

    Args:
        chosen: The value of `Options.stderr`.
    """
    if chosen is None:
        chosen = _is_watched()
    if isinstance(chosen, bool):
        return print_line if chosen else None
    return chosen


def print_line(line: str) -> None:
    """Print one line to our standard error, replacing a progress line on the terminal."""
    out = sys.stderr
    if out is None:  # pyright: ignore[reportUnnecessaryComparison]  it may be closed (2>&-)
        return
    with suppress(OSError, ValueError):
        clean = INVISIBLE.sub(chr(0xFFFD), line) if out.isatty() else line
        moves = out.isatty() and os.environ.get("TERM") != "dumb"
        out.write(f"\r\x1b[K{clean}\n" if moves else f"{clean}\n")


def _is_watched() -> bool:
    """Return whether a person reads our standard error: on a terminal, or in the output of a failed pytest test."""
    if "PYTEST_CURRENT_TEST" in os.environ:
        return True
    with suppress(AttributeError, ValueError):  # it may be closed
        return sys.stderr.isatty()
    return False


_GRACE = 2.0
"""Seconds for the server to exit after its input closes, and again after SIGTERM."""
_SHORT_GRACE = 1.0
"""The same after Ctrl-C, because a person is waiting."""
_MAX_SHOWN = 400
_OUTPUT_TIMEOUT = 1.0
LAST_OUTPUT = " Its last output: "
_NEVER_SERVED = "It exited without serving MCP on its standard input and output."
_START_IT = " Start it with `millstream run FILE --transport stdio`, or call mcp.run() in it."
"""Addition for Python."""
_MAX_STDERR = 4096
"""Maximum bytes of standard error to keep."""
_MAX_NOISE = 1000
"""Maximum lines on standard output that aren't JSON, before the first message, until the client gives up."""
_OPENINGS = b"{", b"\xef\xbb\xbf{"
"""Starts of a message, the second with the byte order mark that some .NET servers write."""

INHERITED_VARIABLES = (
    "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "SSL_CERT_DIR", "SSL_CERT_FILE", "TERM", "TMPDIR",
    "TZ", "USER", "VIRTUAL_ENV", "XDG_RUNTIME_DIR",
    # Windows
    "APPDATA", "COMSPEC", "HOMEDRIVE", "HOMEPATH", "LOCALAPPDATA", "PATHEXT", "PROGRAMDATA", "PROGRAMFILES",
    "SYSTEMDRIVE", "SYSTEMROOT", "TEMP", "TMP", "USERNAME", "USERPROFILE",
)  # fmt: skip
"""Environment variables that a server inherits. Other variables may contain secrets."""


class Command(Confidential, Struct, frozen=True):
    """How to start a server: ``Command(("uvx", "mcp-server-time"))``."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = {}
    cwd: str | None = None
    ours: bool = False
    """Whether the command runs a Millstream program, which also reads Millstream's variables."""
    advice: str = ""
    """What to do if it exits without serving."""


def _find_folder(command: Command) -> Path | None:
    """Return the working directory.

    Raises:
        TargetError: It doesn't exist.
    """
    if command.cwd is None:
        return None
    folder = Path(command.cwd).expanduser().absolute()
    if not folder.is_dir():
        raise TargetError(f"{command.argv[0]} can't be started in {folder}, because there's no such folder.")
    return folder


class StdioTransport(DuplexTransport, asyncio.SubprocessProtocol):
    """One process, started by `open` and ended by `close`: ``StdioTransport(command, listener, tasks, 2**20)``.

    Args:
        command: How to start the server.
        listener: Receives what the server sends outside of responses.
        background: Owns the tasks of the transport.
        max_bytes: Maximum bytes of one message.
        show: Called with each line of standard error.
    """

    name = "stdio"

    def __init__(
        self,
        command: Command,
        listener: Listener,
        background: Tasks,
        max_bytes: int,
        *,
        show: Callable[[str], object] | None = None,
    ) -> None:
        super().__init__(listener, background)
        self._command = command
        known = environment_secrets(os.environ)
        self._secrets = find_secrets(command.env, known) | find_argument_secrets(command.argv, known)
        self._max = max_bytes
        self._show = show
        self.process: asyncio.SubprocessTransport | None = None
        """The process, or None before its start."""
        self._lines = LineSplitter(max_bytes, clip=True)
        self._stderr = ""
        self._partial_line = b""
        self._probe_errors = ProbeErrors()
        self._noise = 0
        self.has_served: bool = False
        """Whether it has sent a message."""
        self.exited: asyncio.Event = asyncio.Event()
        self.output_ended: asyncio.Event = asyncio.Event()
        """Set when the output of the process has ended."""
        self.writable: asyncio.Event = asyncio.Event()
        self.writable.set()

    @property
    @override
    def secrets(self) -> Collection[str]:
        """The credentials in its variables and arguments."""
        return self._secrets

    @property
    def last_stderr(self) -> str:
        """The last text that the process wrote to standard error."""
        return (self._stderr + redact(self._partial_line.decode("utf-8", "replace"), self._secrets)).strip()

    @override
    async def open(self) -> None:
        """Start the process.

        Raises:
            TargetError: The program doesn't exist.
            ConnectFailed: The system couldn't start it.
        """
        command = self._command
        environment = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ} | dict(command.env)
        name, folder = command.argv[0], _find_folder(command)
        if folder is not None and Path(name).name != name:  # it isn't looked up on the PATH
            name = str(folder / name)
        program = shutil.which(name, path=environment.get("PATH"))
        if program is None:
            fix = "Check its name, and that it is on the PATH."
            if "=" in name and name.partition("=")[0].isidentifier():
                fix = f"Pass the variable as an option: --env {name}"
            words = name.split()
            if len(words) > 1 and shutil.which(words[0], path=environment.get("PATH")):
                fix += f' Separate its arguments: "command": {json.dumps(words[0])}, "args": {json.dumps(words[1:])}'
            raise TargetError(f"There is no program {name!r}. {fix}")
        loop = asyncio.get_running_loop()
        try:
            await loop.subprocess_exec(
                lambda: self,
                program,
                *command.argv[1:],
                env=environment,
                cwd=folder,
                start_new_session=sys.platform != "win32",  # so the process's children end with it
            )
        except OSError as exc:
            if exc.errno in (-1, errno.EMFILE, errno.ENFILE):  # uvloop's own number for pipes that can't be created
                raise ConnectFailed(
                    f"{name} couldn't be started: too many open files.", remedy=RAISE_FILE_LIMIT
                ) from exc
            raise ConnectFailed(f"{name} couldn't be started: {exc.strerror or exc}.") from exc
        except NotImplementedError as exc:
            raise ConnectFailed(
                f"{name} couldn't be started, because this event loop can't start processes.",
                remedy="On Windows, use the default loop, asyncio.ProactorEventLoop.",
            ) from exc

    @override
    async def exchange(self, request: TransportRequest) -> Envelope:
        """Send a request and wait for the response."""
        if not self.writable.is_set():  # before it counts as sent, so a canceled one isn't written
            await self.wait_until_writable()
        return await super().exchange(request)

    async def wait_until_writable(self) -> None:
        """Wait until the process reads, so that messages of canceled callers don't fill the buffer."""
        while not self.writable.is_set():
            await self.writable.wait()

    @override
    async def _write(self, message: bytes) -> None:
        if not self.writable.is_set():
            await self.wait_until_writable()
        assert self.process is not None  # noqa: S101  set in `open`
        stdin = cast("asyncio.WriteTransport", self.process.get_pipe_transport(0))
        if stdin.is_closing():
            await self.exited.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(_OUTPUT_TIMEOUT):  # wait for the last output; a child may keep the pipe open
                    await self.output_ended.wait()
            raise self.report_exit()
        stdin.write(one_line(message) + b"\n")

    # Events of the process

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the process, before any of its output arrives.

        Args:
            transport: The process.
        """
        self.process = cast("asyncio.SubprocessTransport", transport)

    @override
    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Process a chunk of standard output or standard error.

        Args:
            fd: 1 for standard output, or 2.
            data: Bytes of the output.
        """
        if fd == 1:
            self.feed_stdout(data)
        else:
            self.feed_stderr(data)

    def feed_stdout(self, data: bytes) -> None:
        """Process a chunk of standard output.

        Args:
            data: Bytes of its standard output.
        """
        for line in self._lines.feed(data):
            if line is None or (type(line) is LineStart and not self.refuse(line, too_large(self._max))):
                self.end(too_large(self._max))
            elif type(line) is LineStart:
                self.has_served = True
            elif line.startswith(_OPENINGS) or (line[:1] == b"[" and line[1:].lstrip()[:1] == b"{"):  # not "[INFO]"
                self.has_served = True
                self.receive(line)
            else:  # many programs print greetings, and some log here
                self.skip("Not JSON", redact_bytes(line[:_MAX_STDERR], self._secrets))
                self._noise += not self.has_served
                if self._noise > _MAX_NOISE:
                    self.end(
                        InvalidResponse(
                            "The server writes text to its standard output, which is reserved for messages. "
                            "Make it log to standard error."
                        )
                    )
        if self.fault is not None:
            self.kill(signal.SIGTERM)

    def feed_stderr(self, data: bytes) -> None:
        """Process a chunk of standard error.

        Args:
            data: Bytes of its standard error.
        """
        *lines, rest = (self._partial_line + data).split(b"\n")
        if len(rest) > _MAX_STDERR:
            line, space, rest = rest.rpartition(b" ")  # a secret isn't divided
            lines.append(line if space else rest)
            rest = rest if space else b""
        self._partial_line = rest
        for line in lines:
            text = redact(line.decode("utf-8", "replace").rstrip("\r"), self._secrets)
            self._stderr = f"{self._stderr}{text}\n"[-_MAX_STDERR:]
            if self._show is not None and not self._probe_errors.contain(text):
                self._show(text)

    @override
    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Wait for the exit code and last output after the end of standard output: the process is probably exiting.

        Args:
            fd: 1 for standard output.
            exc: Why the pipe broke, if it did.
        """
        if fd == 1 and not self.lost:
            asyncio.get_running_loop().call_later(_OUTPUT_TIMEOUT, self.report_exit)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Show a last line without a newline and end the connection.

        Args:
            exc: The reason why the pipes broke, if they did.
        """
        if self._show is not None and self._partial_line:
            self._show(redact(self._partial_line.decode("utf-8", "replace"), self._secrets))
        self.output_ended.set()
        self.report_exit()
        if self.process is not None:
            self.process.close()

    def report_exit(self) -> ClientError:
        """End the connection and return its error."""
        code = self.process.get_returncode() if self.process is not None else None
        ended = "The server has closed its standard output" if code is None else f"The server exited with code {code}"
        last = _last_sentence(self.last_stderr)
        text = f"{ended}.{LAST_OUTPUT}{last[:_MAX_SHOWN].rstrip('.')}." if last else f"{ended}."
        fault = ConnectionLost(text, remedy="" if self.has_served else self._hint(code, last))
        self.end(fault)
        self.writable.set()
        return fault

    @override
    def pause_writing(self) -> None:
        """Stop writing while the process reads slowly."""
        self.writable.clear()

    @override
    def resume_writing(self) -> None:
        """Allow writing again. Called by asyncio when the buffer has room."""
        self.writable.set()

    def _hint(self, code: int | None, last: str) -> str:
        """Return a hint about a process that exited without sending a message."""
        command = self._command
        if command.argv[0] == sys.executable and not command.ours and "No module named" in last:
            return f"Install the module into the environment of {sys.executable}."
        is_python = Path(command.argv[0]).name.startswith("python")
        return command.advice or _NEVER_SERVED + _START_IT * is_python if code == 0 or not last else ""

    @override
    def process_exited(self) -> None:
        """Kill the rest of the process group."""
        self.kill(signal.SIGKILL)
        self.exited.set()
        self.pipe_connection_lost(1, None)  # a process outside the group may keep the pipes open

    # Shutdown: https://modelcontextprotocol.io/specification/2025-11-25/basic/lifecycle#shutdown

    @override
    async def close(self) -> None:
        """Close standard input, and terminate the process if it doesn't exit."""
        self.end(ConnectionLost("The client was closed."))
        self.writable.set()
        process = self.process
        if process is None:
            return
        try:
            stdin = process.get_pipe_transport(0)
            if stdin is not None:
                stdin.close()
            grace = _SHORT_GRACE if is_canceled() else _GRACE
            if not await self._wait_for_exit(grace) and sys.platform != "win32":
                self.kill(signal.SIGTERM)
                await self._wait_for_exit(grace)
        finally:
            # Kill its child processes as well, even if `close` is canceled.
            self.kill(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
            process.close()
        await self.exited.wait()

    async def _wait_for_exit(self, grace: float) -> bool:
        try:
            async with asyncio.timeout(grace):
                await self.exited.wait()
        except TimeoutError:
            return False
        return True

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children, if it's running. On Windows, kill the process.

        Args:
            number: The signal.
        """
        process = self.process
        if process is None or self.exited.is_set():  # the id may have been reused
            return
        with suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                process.kill()
            else:
                os.killpg(process.get_pid(), number)


_SENTENCE_STARTS = ("Cause:", "Fix:")
"""Prefixes of lines that begin a new sentence, even if the previous line doesn't end with a period."""
_DETAILS = re.compile(r"^(?:goroutine \d|stack backtrace:|note: run with|Require stack:)", re.MULTILINE)
"""Beginning of the details after a message."""
_GROUP = re.compile(r"^ +[|+] ?", re.MULTILINE)
_NOISE = re.compile(r"\W*$|\s+at |Node\.js v\d|npm \S+ A complete log|Run 'docker|exit status \d")
_NPM = re.compile(r"npm \S+ ")


def _last_sentence(output: str) -> str:
    """Return the last unindented line and the lines after it: an error message, or the end of a traceback. The
    additional output of Node, npm, Go, Rust, and exception groups is left out.
    """
    report = _GROUP.sub("", _DETAILS.split(output.strip())[0])
    lines = [line for line in report.splitlines() if not _NOISE.match(line)]
    begin = next((at for at in reversed(range(len(lines))) if not lines[at][0].isspace()), 0)
    prefix = _NPM.match(lines[begin]) if lines else None
    while prefix and begin and lines[begin - 1].startswith(prefix[0]):
        begin -= 1
    sentence = ""
    for line in lines[begin:]:
        between = ". " if line.lstrip().startswith(_SENTENCE_STARTS) and sentence[-1:].isalnum() else " "
        text = line.removeprefix(prefix[0] if prefix and sentence else "")
        sentence += f"{between if sentence else ''}{' '.join(text.split())}"
    return sentence
