"""``millstream record``: forward messages between a client and a server, and write them to a file.

The client is on standard input and output, and the server is a process.

A recording is in JSON Lines, each with the time, the sender, and the original message: ``{"at": 0.012, "from":
"client", "message": {…}}``. The first line of each session contains its start and its server. Text that isn't a message
is stored as ``text``. A file may contain several sessions.
"""

import asyncio
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from millstream._app.server_process import CommandError
from millstream._cli.errors import UsageError
from millstream._cli.tables import one_line, safe
from millstream._protocol.jsonrpc import LineSplitter
from millstream._transports.stdio import open_reader
from millstream._version import __version__
from millstream.client._errors import TargetError
from millstream.client._targets import find_server
from millstream.client._transports.stdio import Command


async def record(file: Path, /, *server: str) -> int:
    """Record the messages between a client and a server.

    The recorder is a server on standard input and output that forwards messages to the real one. Put it before
    the server's command in a client's configuration. Only you can read the file, because messages may contain
    secrets.

    **Examples**

    - `millstream call "millstream record shop.jsonl shop.py" order isbn=978-0`: one call

    - `millstream record time.jsonl -- uvx mcp-server-time --local-timezone UTC`: as an application's command

    - `millstream record web.jsonl -- npx mcp-remote https://example.com/mcp`: for a server at a URL

    Args:
        file: The recording, in JSON Lines. An existing file is extended.
        server: A command, a .py or .js file, or FILE.json#NAME.
    """
    if not server:
        raise UsageError("Pass the recording file, then the server: millstream record messages.jsonl shop.py")
    if sys.stdin.isatty():
        print("Waiting for a client on standard input. Press Ctrl-C to stop.", file=sys.stderr)
    place = find_server(server[0] if len(server) == 1 else server, env={}, cwd=None)
    if not isinstance(place, Command):
        remedy = f"For a URL, record a program that connects to it: millstream record {file} -- npx mcp-remote URL"
        raise TargetError("Only commands can be recorded.", remedy=remedy)
    writer = Writer(file, " ".join(server), warn=lambda text: print(one_line(text), file=sys.stderr))
    try:
        return await tap(place, writer)
    finally:
        writer.close()


MAX_LINE = 64 * 1024 * 1024
"""Maximum size of a line, in bytes. Longer ones aren't valid messages."""


async def lines() -> AsyncIterator[bytes]:
    """Yield each line of standard input without its end, skipping blank and overlong lines.

    Works on every system's event loop, with backpressure.
    """
    read, close = await open_reader(0)
    splitter, data = LineSplitter(MAX_LINE), b"-"
    try:
        while data:
            data = await read(65536)
            for line in splitter.feed(data) if data else splitter.end():
                if line is not None:
                    yield line
    finally:
        close()


async def write_stdout(data: bytes) -> None:
    """Write to standard output. A slow reader blocks a thread, not the loop."""

    def write() -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    await asyncio.to_thread(write)


MAX_BYTES = 256 * 1024 * 1024
"""Maximum size of a recording, in bytes. Above it, messages are still forwarded."""


class Writer:
    """Appends a session to a file that only you can read, because messages may contain secrets."""

    def __init__(self, path: Path, server: str, *, max_bytes: int = MAX_BYTES, warn: Callable[[str], None]) -> None:
        """Open the file and write its first line.

        Args:
            path: The file, created if it doesn't exist.
            server: Description of the server for the first line.
            max_bytes: Maximum size of the recording.
            warn: Called with a message when the recording stops.

        Raises:
            CommandError: The file can't be written.
        """
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            if os.name != "nt" and stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.fchmod(descriptor, 0o600)  # if the file already existed
        except OSError as exc:
            raise CommandError(f"{path} can't be written: {exc.strerror}.") from exc
        self._file = os.fdopen(descriptor, "ab")
        self._left = max_bytes
        self._warn = warn
        self._begun = time.monotonic()
        self._write(session={"millstream": __version__, "recorded": round(time.time(), 3), "server": server})

    def line(self, who: str, line: bytes) -> Any:
        """Record one line, and return its message, or None for other text."""
        try:
            message: Any = json.loads(line)
        except (ValueError, RecursionError):
            self.text(who, line.decode("utf-8", "replace"))
            return None
        self._write(**{"from": who, "message": message})
        return message

    def text(self, who: str, text: str) -> None:
        """Record text that isn't a message, such as standard error."""
        self._write(**{"from": who, "text": text})

    def _write(self, **entry: Any) -> None:
        if self._left < 0:
            return
        at = round(time.monotonic() - self._begun, 6)
        data = json.dumps({"at": at, **entry}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        self._left -= len(data)
        if self._left < 0:
            self._warn("The recording has reached its maximum size. Later messages aren't recorded.")
            return
        self._file.write(data)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


_GRACE = 2.0
"""Seconds for a server to exit, and again after SIGTERM."""


async def tap(command: Command, writer: Writer) -> int:
    """Forward between the client and a server process, recording lines. Return the server's exit status.

    It runs until either side ends.

    Raises:
        TargetError: The server can't be started.
    """
    program = shutil.which(command.argv[0])
    if program is None:
        raise TargetError(f"There is no program {command.argv[0]!r}. Check its name, and that it is on the PATH.")
    try:
        # Pass on all variables, because the client chose them for the server.
        process = await asyncio.create_subprocess_exec(
            program,
            *command.argv[1:],
            cwd=command.cwd,
            env={**os.environ, **command.env},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as exc:
        raise TargetError(f"{command.argv[0]} can't be started: {exc.strerror}.") from exc
    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
    assert stdin is not None and stdout is not None and stderr is not None  # noqa: S101, PT018  they are pipes
    inward = asyncio.create_task(_from_client(stdin, writer))
    outward = [asyncio.create_task(_from_server(stdout, writer)), asyncio.create_task(_from_stderr(stderr, writer))]
    try:
        await asyncio.wait((inward, outward[0]), return_when=asyncio.FIRST_COMPLETED)
        for end in (process.terminate, process.kill):
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE):
                    await process.wait()
            if process.returncode is None:
                end()
        await asyncio.gather(*outward)
    finally:
        inward.cancel()
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0


async def _from_client(stdin: asyncio.StreamWriter, writer: Writer) -> None:
    with suppress(ConnectionError):
        async for line in lines():
            writer.line("client", line)
            stdin.write(line + b"\n")
            await stdin.drain()
    stdin.close()


async def _from_server(stdout: asyncio.StreamReader, writer: Writer) -> None:
    splitter = LineSplitter(MAX_LINE)
    while data := await stdout.read(65536):
        for line in splitter.feed(data):
            if line is None:
                writer.text("server", "[a line of more than 64 MiB]")
            else:
                writer.line("server", line)
        await write_stdout(data)


async def _from_stderr(stderr: asyncio.StreamReader, writer: Writer) -> None:
    while data := await stderr.read(65536):
        text = data.decode("utf-8", "replace")
        writer.text("server", text)
        sys.stderr.write(safe(text))
        sys.stderr.flush()
