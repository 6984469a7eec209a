"""stdio: one JSON-RPC message per line on stdin and stdout. Nothing else is written to stdout.

While the server runs, file descriptor 1 points to stderr, so that a `print` in a tool can't break the protocol.
Messages use a private copy of stdout. The event loop's pipe transports serve pipes, terminals, and sockets; threads
serve files and other devices, and Windows.

https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#stdio
"""

import asyncio
import contextlib
import io
import os
import socket
import stat
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any

from millstream._override import override
from millstream._protocol.errors import PARSE_ERROR
from millstream._protocol.jsonrpc import LineSplitter, error_message
from millstream._server.dispatch import Dispatcher
from millstream._tasks import run_in_thread
from millstream._transports.connection import ClientConnection

_CHUNK = 256 * 1024
_LAST_SECONDS = 1.0
"""Time for canceled calls to end."""
_TOO_LONG = "Parse error: a line is longer than {} bytes"


class _Output(asyncio.Protocol):
    """Messages to stdout, batched per iteration of the event loop. Pipes are written under flow control."""

    def __init__(self, fd: int, *, max_buffered: int) -> None:
        self._fd = fd
        self._max_buffered = max_buffered
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._waiting: list[bytes] = []
        self._gone = self._is_shared = False
        self._room = asyncio.Event()
        self._room.set()

    async def open(self, stdin: int) -> None:
        """Use a transport of the event loop if stdout is a pipe or socket. Files and terminals are written directly."""
        if os.isatty(self._fd):
            return
        try:
            status = os.fstat(self._fd)
            if stat.S_ISSOCK(status.st_mode) and os.path.samestat(status, os.fstat(stdin)):
                # inetd, socat, and some others pass one socket. A pipe transport would take input as the peer's end.
                self._is_shared = True
                one = socket.socket(fileno=os.dup(self._fd))
                one.setblocking(False)
                self._transport, _ = await self._loop.create_connection(lambda: self, sock=one)
                return
            self._transport, _ = await self._loop.connect_write_pipe(
                lambda: self, os.fdopen(self._fd, "wb", buffering=0, closefd=False)
            )
        except (ValueError, NotImplementedError, OSError):  # a file, or a loop without pipes (on Windows)
            self._transport = None

    def write(self, message: bytes) -> bool:
        """Queue a message. Return False if the reader has disconnected or is too slow."""
        if self._gone:
            return False
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append(message)
        return self._transport is None or self._transport.get_write_buffer_size() < self._max_buffered

    def flush(self) -> None:
        """Write the queued messages."""
        if not self._waiting or self._gone:
            return
        data = b"\n".join(self._waiting) + b"\n"
        self._waiting.clear()
        if self._transport is not None:
            self._transport.write(data)
            return
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            self._gone = True

    async def drain(self) -> None:
        """Wait until stdout accepts more."""
        await self._room.wait()

    async def make_room(self) -> None:
        """Wait while too much is unread, so the server doesn't read from a client that doesn't read."""
        self.flush()
        transport = self._transport
        if transport is not None and transport.get_write_buffer_size() >= self._max_buffered:
            await self._room.wait()

    async def finish(self) -> None:
        """Wait until everything is written or the reader has disconnected."""
        self.flush()
        transport = self._transport
        if transport is not None and not self._gone:
            transport.set_write_buffer_limits(0)
            await self._room.wait()

    def close(self) -> None:
        """Stop writing. Unread data is dropped, because the descriptor is closed next."""
        if self._transport is not None:
            self._transport.abort()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._is_shared and isinstance(transport, asyncio.Transport):
            transport.pause_reading()

    @override
    def pause_writing(self) -> None:
        self._room.clear()

    @override
    def resume_writing(self) -> None:
        self._room.set()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._transport = None
        self._room.set()


@contextlib.contextmanager
def off_stdout(stdout: int = 1) -> Generator[int, None, None]:
    """Point a descriptor to stderr inside the block and yield a private copy of the original."""
    _fill_standard_descriptors()
    private = os.dup(stdout)
    os.dup2(2, stdout)
    _flush()
    # Like stderr: visible immediately, whatever the system's encoding.
    before = _configure_prints(line_buffering=True, errors="backslashreplace")
    try:
        yield private
    finally:
        _flush()
        _configure_prints(**before)
        os.dup2(private, stdout)
        os.close(private)


def _fill_standard_descriptors() -> None:
    """Open missing standard descriptors. Otherwise, files opened later would get their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _configure_prints(**options: Any) -> dict[str, Any]:
    """Change options of the program's printed output, and return the former ones."""
    out = sys.stdout
    if not isinstance(out, io.TextIOWrapper):
        return {}
    before = {"line_buffering": out.line_buffering, "errors": out.errors}
    with contextlib.suppress(OSError, ValueError):  # the reader has disconnected, or the stream is closed
        out.reconfigure(**options)
    return before


def _flush() -> None:
    """Flush printed output while the descriptor points to stderr, so it can't reach the protocol later."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):  # the reader has disconnected, or the stream is closed
            sys.stdout.flush()


async def serve_stdio(
    dispatcher: Dispatcher, *, stdin: int = 0, stdout: int = 1, stop: asyncio.Event | None = None
) -> None:
    """Serve one client until stdin ends or `stop` is set. Earlier requests are still answered, within the shutdown
    timeout.
    """
    services, stop = dispatcher.services, stop or asyncio.Event()
    settings, stop_reading = services.settings, None
    with off_stdout(stdout) as private:
        output = _Output(private, max_buffered=settings.stream_buffer)
        connection = ClientConnection(dispatcher, output.write, output.drain, transport="stdio")
        try:
            await output.open(stdin)
            read, stop_reading = await open_reader(stdin)
            await _unless(stop, _read_all(read, connection, output, settings.max_body))
            connection.asks = False
            (services.questions.withdraw if stop.is_set() else services.questions.end)(connection.id)
            for end in list(services.endings):
                end()
            if not await _last_words(connection, output, settings.drain_timeout):
                for call in list(dispatcher.calls):
                    call.halt()
                await _last_words(connection, output, _LAST_SECONDS)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_SECONDS):
                    await connection.close()
            output.close()
            if stop_reading is not None:
                stop_reading()


async def _last_words(connection: ClientConnection, output: _Output, seconds: float) -> bool:
    """Wait until every call is answered and written. Return False after a timeout."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await connection.settle()
            await output.finish()
            return True
    return False


async def _read_all(
    read: Callable[[int], Awaitable[bytes]], connection: ClientConnection, output: _Output, max_line: int
) -> None:
    """Process lines until the input ends."""
    splitter = LineSplitter(max_line)
    data = b"-"
    while data:
        data = await read(_CHUNK)
        for line in splitter.feed(data) if data else splitter.end():
            if line is None:
                output.write(error_message(None, PARSE_ERROR, _TOO_LONG.format(max_line)))
            else:
                connection.receive(line)
        await output.make_room()


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until it's done or `stop` is set."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working


async def open_reader(fd: int) -> tuple[Callable[[int], Awaitable[bytes]], Callable[[], None]]:
    """Return a function that reads a descriptor, and one that stops reading."""
    stream = os.fdopen(fd, "rb", buffering=0, closefd=False)
    mode = os.fstat(fd).st_mode
    # epoll can't poll every descriptor that asyncio accepts, such as /dev/null.
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd):
        reader = asyncio.StreamReader(limit=_CHUNK)
        with contextlib.suppress(NotImplementedError):  # a loop without pipes (on Windows)
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), stream
            )
            return reader.read, transport.close
    # The program exits without waiting for the thread.
    return lambda size: run_in_thread(partial(stream.read, size), "millstream_stdin"), lambda: None
