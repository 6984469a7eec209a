"""``millstream record``: forward messages between a client and a server, and write them to a file.

The client is on standard input and output, and the server is a process (`tap`) or at a URL (`Bridge`).

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

import msgspec

from millstream._app.server_process import CommandError
from millstream._cli.connect_options import Header, auth_for, pairs
from millstream._cli.errors import UsageError
from millstream._cli.tables import one_line, safe
from millstream._http.client import Body
from millstream._http.client.connection import HttpReply
from millstream._http.client.pool import ConnectionPool
from millstream._protocol.errors import INTERNAL_ERROR
from millstream._protocol.json_schema import members, value_at
from millstream._protocol.jsonrpc import MALFORMED, Json, LineSplitter
from millstream._protocol.metadata import VERSION_KEY, encode_value
from millstream._protocol.notifications import ToolDescription
from millstream._protocol.revisions import HANDSHAKE
from millstream._tasks import Tasks
from millstream._transports.stdio import open_reader
from millstream._version import __version__
from millstream.client._endpoint import Auth, Endpoint, problem_detail
from millstream.client._errors import ClientError, InvalidResponse, NotMcp, TargetError
from millstream.client._requests import ToolHeaders
from millstream.client._targets import Remote, find_server
from millstream.client._transports import EventReader
from millstream.client._transports.http import check_method
from millstream.client._transports.stdio import Command


async def record(file: Path, /, *server: str, header: Header = (), login: bool = False) -> int:
    """Record the messages between a client and a server.

    The recorder is a server on standard input and output that forwards messages to the real one. Put it before
    the server's command in a client's configuration, or use it with a URL. Only you can read the file, because messages
    may contain secrets.

    **Examples**

    - `millstream call "millstream record shop.jsonl shop.py" order isbn=978-0`: one call

    - `millstream record time.jsonl -- uvx mcp-server-time --local-timezone UTC`: as an application's command

    - `millstream record web.jsonl https://example.com/mcp`: for a server at a URL

    Args:
        file: The recording, in JSON Lines. An existing file is extended.
        server: A command, a URL, a .py or .js file, or FILE.json#NAME.
        header: Send a header with each HTTP request: "Name: value".
        login: Sign in with a browser if the server requires it, and store the tokens.
    """
    if not server:
        raise UsageError("Pass the recording file, then the server: millstream record messages.jsonl shop.py")
    if sys.stdin.isatty():
        print("Waiting for a client on standard input. Press Ctrl-C to stop.", file=sys.stderr)
    place = find_server(server[0] if len(server) == 1 else server, env={}, cwd=None)
    if isinstance(place, Remote) and (place.url.scheme in ("ws", "wss") or place.kind == "sse"):
        raise TargetError("Only Streamable HTTP can be recorded. Use an http:// or https:// URL.")
    writer = Writer(file, " ".join(server), warn=lambda text: print(one_line(text), file=sys.stderr))
    try:
        if isinstance(place, Remote):
            headers = pairs(header, ":", '--header must be "Name: value"')
            await Bridge(place, headers, writer, auth_for(login)).run()
            return 0
        if not isinstance(place, Command):
            raise TargetError("Only commands and URLs can be recorded.")
        return await tap(place, writer)
    finally:
        writer.close()


MAX_LINE = 64 * 1024 * 1024
"""Maximum size of a line, in bytes. Longer ones aren't valid messages."""


async def lines() -> AsyncIterator[bytes]:
    """Yield each line of standard input without its end, skipping blank and overlong lines.

    Works with each system's default event loop, with backpressure.
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
"""Seconds for a server to end its session, or to exit, and again after SIGTERM."""
_TAKES = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


class Bridge:
    """A bridge between a client on stdio and a server at a URL: each line becomes a POST, and responses become lines.

    It only handles the parts of MCP that Streamable HTTP repeats in headers
    (https://modelcontextprotocol.io/specification/2026-07-28/basic/transports): session, revision, method, name, and
    tool arguments. A broken stream isn't resumed.
    """

    def __init__(self, place: Remote, headers: dict[str, str], writer: Writer, auth: Auth | None = None) -> None:
        pool = ConnectionPool(place.url, max_connections=100, max_body=MAX_LINE, connect_timeout=10.0, tls=None)
        self._endpoint = Endpoint(place.url, {**place.headers, **headers}, pool, auth)
        self._writer = writer
        self._session = ""
        self._revision = ""
        self._tools = ToolHeaders()
        self._tasks = Tasks()

    async def run(self) -> None:
        """Run until the client disconnects."""
        try:
            async for line in lines():
                await self._take(line)
        finally:
            await self._tasks.close()
            if self._session:
                with suppress(ClientError, TimeoutError):
                    async with asyncio.timeout(_GRACE):
                        await self._endpoint.send("DELETE", self._about(self._revision), repeatable=False)
            await self._endpoint.close()

    async def _take(self, line: bytes) -> None:
        message = members(self._writer.line("client", line))
        posting = self._post(line, message)
        if message.get("method") in ("initialize", "notifications/initialized"):
            await posting  # later messages depend on this one
        else:
            self._tasks.spawn(posting)
        if message.get("method") == "notifications/initialized":
            self._tasks.spawn(self._listen())

    async def _post(self, line: bytes, message: Json) -> None:
        try:
            reply = await self._endpoint.send("POST", self._headers(message), line, repeatable=False)
            if message.get("method") == "initialize":
                self._session = reply.header(b"mcp-session-id")
            await self._answer(reply)
        except ClientError as exc:
            if "id" in message and "method" in message:
                error = {"code": INTERNAL_ERROR, "message": str(exc)}
                answer = {"jsonrpc": "2.0", "id": message["id"], "error": error}
                await self._pass_on(json.dumps(answer, ensure_ascii=False).encode())

    def _headers(self, message: Json) -> dict[str, str]:
        method = str(message.get("method") or "")
        fields = members(message.get("params"))
        headers: dict[str, str] = {**_TAKES, "Mcp-Method": check_method(method)} if method else {**_TAKES}
        name = fields.get("name") or fields.get("uri")
        if isinstance(name, str):
            headers["Mcp-Name"] = encode_value(name)
        if method == "tools/call":
            headers |= self._tools.of(str(name), members(fields.get("arguments")))
        version = value_at(fields, ("_meta", VERSION_KEY))
        headers |= self._about(str(version or self._revision))
        return headers

    def _about(self, version: str) -> dict[str, str]:
        about = {"MCP-Protocol-Version": encode_value(version)} if version else {}
        return {**about, "Mcp-Session-Id": self._session} if self._session else about

    async def _answer(self, reply: HttpReply) -> None:
        if reply.stream is not None:
            await self._follow(reply.stream)
        elif reply.media_type == "application/json" and reply.body.lstrip()[:1] in (b"{", b"["):
            await self._pass_on(reply.body)
        elif reply.status >= 300 or reply.body:
            why = problem_detail(reply) or f" and {reply.media_type or 'nothing'}"
            raise NotMcp(f"{self._endpoint.url} isn't an MCP endpoint: it responded with {reply.status}{why}.")

    async def _follow(self, stream: Body) -> None:
        reader = EventReader(MAX_LINE)
        reader.attach(stream)
        try:
            while (event := await reader.event()) is not None:
                if event.data and event.event == "message":
                    await self._pass_on(event.data.encode())
        finally:
            reader.close()

    async def _listen(self) -> None:
        """Read the stand-alone stream of the handshake era. Servers without one respond with 405."""
        try:
            headers = {"Accept": "text/event-stream", **self._about(self._revision)}
            reply = await self._endpoint.send("GET", headers, repeatable=True)
            if reply.stream is not None:
                await self._follow(reply.stream)
        except (ClientError, InvalidResponse):
            return

    async def _pass_on(self, message: bytes) -> None:
        """Forward a message in one line, and store the revision and header annotations for later requests."""
        line = b" ".join(message.splitlines())
        result = members(members(self._writer.line("server", line)).get("result"))
        version = str(result.get("protocolVersion"))
        if version in HANDSHAKE and HANDSHAKE[version].header:
            self._revision = version
        with suppress(*MALFORMED):
            self._tools.learn(msgspec.convert(result.get("tools", []), list[ToolDescription]))
        await write_stdout(line + b"\n")


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
