"""A server of one test, asked byte by byte: through plain ASGI in this process, or through the lane on a socket.

`Wire.ask` sends one HTTP request and gives the whole reply; messages are JSON-RPC as the caller wrote it. It knows the
two eras' headers and nothing else of MCP.
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
from millstream._app.server_process.entry import prepare
from patience import WAIT

HOST = {"host": "127.0.0.1"}
POST = {**HOST, "content-type": "application/json", "accept": "application/json, text/event-stream"}
META = "io.modelcontextprotocol/"
LATEST_HANDSHAKE = "2025-11-25"
PER_REQUEST = "2026-07-28"
NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

Json = dict[str, Any]
Headers = Mapping[str, str] | list[tuple[bytes, bytes]]


class Reply(NamedTuple):
    """A whole HTTP reply."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def message(self) -> Any:
        """The JSON of the body, or of the one event that it is."""
        if self.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            return self.messages[-1]
        return json.loads(self.body)

    @property
    def messages(self) -> list[Any]:
        """Every message of an event stream."""
        return [json.loads(line[6:]) for line in self.body.split(b"\n") if line.startswith(b"data: {")]

    @property
    def error(self) -> tuple[int, int, Any]:
        """(status, code, id); the id is "none" when the member is absent."""
        message = self.message
        assert message["jsonrpc"] == "2.0"
        return self.status, message["error"]["code"], message.get("id", "none")


class Wire:
    """One running server, and one way to it."""

    def __init__(self, server: Server, runtime: Runtime, running: RunningServer | None) -> None:
        self.server = server
        self.runtime = runtime
        self.running = running
        self._peer: Peer | None = None

    async def ask(self, method: str, path: str, headers: Headers, body: bytes = b"") -> Reply:
        """One request and its whole reply."""
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
        """By a connection of its own, so that another worker may get it, and signed in."""
        assert self.running is not None
        if not any(name == b"authorization" for name, _ in fields):
            fields = [*fields, (b"authorization", f"Bearer {ADMIN_KEY}".encode())]
        peer = await self.running.connect()
        await peer.send(encode_request(method, path, fields, body))
        reply = Reply(*await peer.reply(head_only=method == "HEAD"))
        peer.close()
        return reply

    async def post(self, message: Any, headers: Headers | None = None, path: str = "/mcp") -> Reply:
        """POST a message, or a body as it stands."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return await self.ask("POST", path, POST if headers is None else headers, body)

    async def until(self, fact: Callable[[], bool]) -> None:
        """Give the loop turns until something is so."""
        deadline = asyncio.get_running_loop().time() + WAIT
        for _ in iter(fact, True):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0)

    async def initialize(self, revision: str = LATEST_HANDSHAKE, capabilities: Json | None = None) -> dict[str, str]:
        """A session, as the headers of its requests."""
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
    """Run a server for the length of the block; by the way `four`, ask the one that serves by four workers."""
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


class FakeTransport(asyncio.Transport):
    """A socket without a network: what is written is kept, and each write is told."""

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
    """A request of the handshake era."""
    message: Json = {"jsonrpc": "2.0", "id": id, "method": method}
    return message if params is None else {**message, "params": params}


def envelope(version: str = PER_REQUEST, **capabilities: Any) -> Json:
    """The `_meta` of the per-request era."""
    return {f"{META}protocolVersion": version, f"{META}clientCapabilities": capabilities}


def per_request(method: str, params: Json | None = None, id: int | str = 1, **capabilities: Any) -> Json:
    """A request of the per-request era."""
    return request(method, {"_meta": envelope(**capabilities), **(params or {})}, id)


def routing(method: str, name: str = "") -> dict[str, str]:
    """The headers of the per-request era."""
    fields = {**POST, "mcp-protocol-version": PER_REQUEST, "mcp-method": method}
    return {**fields, "mcp-name": name} if name else fields


def encode_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Headers as they stand on the wire."""
    if isinstance(headers, list):
        return headers
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


def encode_request(method: str, path: str, fields: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """A request in HTTP/1.1."""
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
    leave: Callable[[bytes], bool] | None = None,
    peer: str = "127.0.0.1",
) -> Reply:
    """One request as ASGI messages, from an address.

    The reply must be complete, unless `leave` says, by what has come of a stream, that the client goes away.
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
        if leave is not None and message.get("more_body", False) and leave(bytes(data)):
            gone.set()

    async with asyncio.timeout(WAIT):
        await app(scope, receive, send)
    assert sent[0]["type"] == "http.response.start"
    assert gone.is_set() or not sent[-1].get("more_body", False)
    return Reply(sent[0]["status"], dict(sent[0]["headers"]), bytes(data))


async def open_sse(wire: Wire) -> tuple[str, "asyncio.Task[Reply]"]:
    """The stream of a client of HTTP+SSE: where its messages go, and what has been said on it when it ends."""
    path: list[str] = []

    def heard(data: bytes) -> bool:
        if not path and b"\ndata: " in data:
            path.append(data.split(b"\ndata: ")[1].split(b"\n")[0].strip().decode())
        return False

    fields = encode_headers({"host": "127.0.0.1", "accept": "text/event-stream"})
    stream = asyncio.create_task(ask_asgi(wire.server, "GET", "/sse", fields, b"", leave=heard))
    await wire.until(lambda: bool(path))
    return path[0], stream
