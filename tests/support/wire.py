"""Raw HTTP access to a test's server, through plain ASGI in process or our own HTTP server on a socket.

`Wire.ask` sends an HTTP request and returns the complete reply. Callers write the JSON-RPC messages; only the headers
of both eras are built in.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

from four_workers import ADMIN_KEY, FOUR, connect_to_four
from http_peer import Peer, RunningServer, serve
from millstream import Server
from millstream._app.runtime import Runtime
from millstream._app.server_process.asgi_application import prepare
from millstream._protocol.sse import Decoder
from millstream._transports.connection import MemoryPipe
from patience import WAIT

__all__ = ["Decoder", "MemoryPipe"]

HOST = {"host": "127.0.0.1"}
POST = {**HOST, "content-type": "application/json", "accept": "application/json, text/event-stream"}
META = "io.modelcontextprotocol/"
LATEST_HANDSHAKE = "2025-11-25"
PER_REQUEST = "2026-07-28"
NAME_PARAMS = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

Json = dict[str, Any]
Headers = Mapping[str, str] | list[tuple[bytes, bytes]]


class Reply(NamedTuple):
    """A complete HTTP reply."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def message(self) -> Any:
        """The JSON of the body, or of its only event."""
        if self.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            return self.messages[-1]
        return json.loads(self.body)

    @property
    def messages(self) -> list[Any]:
        """All messages of an event stream."""
        return [json.loads(line[6:]) for line in self.body.split(b"\n") if line.startswith(b"data: {")]

    @property
    def error(self) -> tuple[int, int, Any]:
        """(status, code, id); the id is "none" when the member is absent."""
        message = self.message
        assert message["jsonrpc"] == "2.0"
        return self.status, message["error"]["code"], message.get("id", "none")


class Wire:
    """A running server and one transport to it."""

    def __init__(self, server: Server, runtime: Runtime, running: RunningServer | None) -> None:
        self.server = server
        self.runtime = runtime
        self.running = running
        self._peer: Peer | None = None

    async def ask(self, method: str, path: str, headers: Headers, body: bytes = b"") -> Reply:
        """Send a request and return the complete reply."""
        fields = encode_headers(headers)
        if self.running is None:
            return await ask_asgi(self.server, method, path, fields, body)
        if self.running.source_address is not None:
            return await self._ask_any_worker(method, path, fields, body)
        peer = self._peer or await self.running.connect()
        self._peer = None
        await peer.send(encode_request(method, path, fields, body))
        status, head, data = await peer.reply(head_only=method == "HEAD")
        if head.get(b"connection") == b"close":
            peer.close()
        else:
            self._peer = peer
        return Reply(status, head, data)

    async def _ask_any_worker(self, method: str, path: str, fields: list[tuple[bytes, bytes]], body: bytes) -> Reply:
        """Send a request with a key on a new connection, which any worker may accept."""
        assert self.running is not None
        if not any(name == b"authorization" for name, _ in fields):
            fields = [*fields, (b"authorization", f"Bearer {ADMIN_KEY}".encode())]
        peer = await self.running.connect()
        await peer.send(encode_request(method, path, fields, body))
        reply = Reply(*await peer.reply(head_only=method == "HEAD"))
        peer.close()
        return reply

    async def post(self, message: Any, headers: Headers | None = None, path: str = "/mcp") -> Reply:
        """POST a message, or bytes as they are."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return await self.ask("POST", path, POST if headers is None else headers, body)

    async def until(self, fact: Callable[[], bool]) -> None:
        """Wait until `fact()` is true."""
        deadline = asyncio.get_running_loop().time() + WAIT
        for _ in iter(fact, True):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0)

    async def initialize(self, revision: str = LATEST_HANDSHAKE, capabilities: Json | None = None) -> dict[str, str]:
        """Open a session and return the headers of its requests."""
        params = {
            "protocolVersion": revision,
            "capabilities": capabilities or {},
            "clientInfo": {"name": "t", "version": "1"},
        }
        reply = await self.post(request("initialize", params, 0))
        assert reply.status == 200, reply
        session = reply.headers[b"mcp-session-id"].decode()
        return {**POST, "mcp-session-id": session, "mcp-protocol-version": revision}


@asynccontextmanager
async def run_wire(server: Server, way: str) -> AsyncIterator[Wire]:
    """Run a server for the length of the block. With `four`, use the shared server with four workers."""
    if way == FOUR:
        running = connect_to_four()
        yield Wire(server, cast("Any", None), running)
        running.drop_connections()
        return
    async with server.running() as runtime:
        prepare(server, runtime)
        if way == "asgi":
            yield Wire(server, runtime, None)
            return
        async with serve(server, lane=True) as running:
            yield Wire(server, runtime, running)


def open_pipe(runtime: Runtime) -> MemoryPipe:
    """Connect to a server in memory."""
    return MemoryPipe(runtime.dispatcher)


class FakeTransport(asyncio.Transport):
    """A transport without a network that records writes and sets an event for each."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written: list[bytes] = []
        self.write_event = asyncio.Event()
        self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))
        self.write_event.set()

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def is_reading(self) -> bool:
        return not self.closed

    def pause_reading(self) -> None:
        return None

    def resume_reading(self) -> None:
        return None

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        return None

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


def request(method: str, params: Json | None = None, id: int | str = 1) -> Json:
    """Return a handshake-era request."""
    message: Json = {"jsonrpc": "2.0", "id": id, "method": method}
    return message if params is None else {**message, "params": params}


def envelope(version: str = PER_REQUEST, **capabilities: Any) -> Json:
    """Return the `_meta` of the per-request era."""
    return {f"{META}protocolVersion": version, f"{META}clientCapabilities": capabilities}


def per_request(method: str, params: Json | None = None, id: int | str = 1, **capabilities: Any) -> Json:
    """Return a per-request-era request."""
    return request(method, {"_meta": envelope(**capabilities), **(params or {})}, id)


def routing(method: str, name: str = "") -> dict[str, str]:
    """Return the headers of the per-request era."""
    fields = {**POST, "mcp-protocol-version": PER_REQUEST, "mcp-method": method}
    return {**fields, "mcp-name": name} if name else fields


def encode_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Encode headers as bytes."""
    if isinstance(headers, list):
        return headers
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


def encode_request(method: str, path: str, fields: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """Encode an HTTP/1.1 request."""
    lines = b"".join(b"%b: %b\r\n" % field for field in fields)
    length = b"content-length: %d\r\n" % len(body)
    return b"%b %b HTTP/1.1\r\n%b%b\r\n%b" % (method.encode(), path.encode(), lines, length, body)


async def ask_asgi(
    app: Any,
    method: str,
    path: str,
    fields: list[tuple[bytes, bytes]],
    body: bytes,
    *,
    stop_when: Callable[[bytes], bool] | None = None,
    peer: str = "127.0.0.1",
) -> Reply:
    """Send a request as ASGI messages.

    The reply must be complete. If `stop_when` returns True for the data so far, the client disconnects instead.
    """
    plain, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": plain, "raw_path": plain.encode(), "query_string": query.encode(), "root_path": "",
        "headers": fields, "client": (peer, 1), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    sent: list[dict[str, Any]] = []
    data = bytearray()
    gone = asyncio.Event()
    given = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in given:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if gone.is_set():
            return
        sent.append(message)
        data.extend(message.get("body", b""))
        if stop_when is not None and message.get("more_body", False) and stop_when(bytes(data)):
            gone.set()

    async with asyncio.timeout(WAIT):
        await app(scope, receive, send)
    assert sent[0]["type"] == "http.response.start"
    assert gone.is_set() or not sent[-1].get("more_body", False)
    return Reply(sent[0]["status"], dict(sent[0]["headers"]), bytes(data))


async def open_sse(wire: Wire) -> tuple[str, "asyncio.Task[Reply]"]:
    """Open an HTTP+SSE stream. Return the path for messages, and a task with the reply when the stream ends."""
    path: list[str] = []

    def heard(data: bytes) -> bool:
        if not path and b"\ndata: " in data:
            path.append(data.split(b"\ndata: ")[1].split(b"\n")[0].strip().decode())
        return False

    fields = encode_headers({"host": "127.0.0.1", "accept": "text/event-stream"})
    stream = asyncio.create_task(ask_asgi(wire.server, "GET", "/sse", fields, b"", stop_when=heard))
    await wire.until(lambda: bool(path))
    return path[0], stream
