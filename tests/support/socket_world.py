"""A WebSocket server on a real socket, our own or plain ASGI, and clients: `websockets`, or raw bytes."""

import asyncio
import base64
import json
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from backend_stores import MemoryStore
from four_workers import ADMIN_KEY, FOUR, connect_to_four
from http_peer import Peer, RunningServer, serve, serve_asgi
from millstream import Context, Server, Settings
from millstream._app.runtime import Runtime
from millstream._http.hosts import HostPolicy
from millstream._http.message import HttpLimits
from millstream._http.server import Endpoints
from millstream._http.websocket import AsgiSocket, asgi_handshake
from millstream._transports.websocket import WebSocketRoute
from millstream.hub import Hub, HubLimits
from patience import WAIT

TRANSPORTS = ("lane", "plain")
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
UPGRADE = b"Host: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"

GATES: WeakKeyDictionary[Server, asyncio.Event] = WeakKeyDictionary()


def make_server(**settings: Any) -> Server:
    """Return a server with the tests' tools. `waits` runs until the server's gate is set."""
    server = Server(
        "socket", version="1", settings=Settings(secret_key="the one key of all the socket tests", **settings)
    )

    GATES[server] = asyncio.Event()

    @server.tool
    async def add(a: int, b: int) -> int:
        return a + b

    @server.tool
    async def waits(ctx: Context) -> str:
        await GATES[server].wait()
        return "through"

    add_tools(server)
    return server


def add_tools(server: Server) -> None:
    """Add the tools that work in any process."""

    @server.tool
    async def text(size: int) -> str:
        return "x" * size

    @server.tool
    async def name(ctx: Context) -> str:
        return str(await ctx.elicit("Your name?", {"type": "object", "properties": {"name": {"type": "string"}}}))

    @server.tool
    async def steps(ctx: Context) -> str:
        for n in range(3):
            await ctx.progress(n, 3)
        return "done"

    @server.tool
    async def forever(ctx: Context) -> str:
        await asyncio.Event().wait()
        return "never"

    @server.tool
    def fails() -> str:
        raise ValueError("the secret")


class World:
    """A running server and access to it."""

    def __init__(self, server: Server, runtime: Runtime, hub: Hub, route: WebSocketRoute) -> None:
        self.server = server
        self.runtime = runtime
        self.hub = hub
        self.route = route
        self.running: RunningServer
        self.signed_in = b""
        """A header line for each handshake, if callers need a key."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle the one path of the ASGI application."""
        assert scope["type"] == "websocket"
        await receive()
        settings, request = self.server.settings, asgi_handshake(scope, "")
        limit, grace = settings.stream_buffer, settings.write_timeout
        extensions = scope.get("extensions") or {}
        await self.route(AsgiSocket(receive, send, extensions, request=request, limit=limit, grace=grace))

    @asynccontextmanager
    async def client(self, *protocols: Any, path: str = "/ws", **options: Any) -> AsyncIterator[ClientConnection]:
        """Connect a client that offers subprotocols."""
        uri = f"ws://127.0.0.1:{self.running.port}{path}"
        options = {"compression": None, "proxy": None, "open_timeout": WAIT, "close_timeout": 1, **options}
        if self.signed_in:
            name, _, value = self.signed_in.decode().strip().partition(": ")
            options |= {"additional_headers": {name: value}}
        async with connect(uri, subprotocols=list(protocols) or None, **options) as socket:
            yield socket

    async def handshake(self, extra: bytes = b"", head: bytes = UPGRADE, *, small_buffer: bool = False) -> Peer:
        """Send an opening handshake. The caller reads the reply."""
        peer = await self.running.connect(small_buffer=small_buffer)
        key = base64.b64encode(os.urandom(16))
        await peer.send(b"GET /ws HTTP/1.1\r\n%bSec-WebSocket-Key: %b\r\n%b%b\r\n" % (head, key, self.signed_in, extra))
        return peer

    @staticmethod
    async def opened(peer: Peer) -> tuple[int, dict[bytes, bytes]]:
        """Return the status and headers of the handshake reply, names in lower case."""
        status, headers = await peer.head()
        return status, {name.lower(): value for name, value in headers.items()}

    async def raw(self, *, small_buffer: bool = False) -> "RawSocket":
        """Open a socket for raw frames, without a subprotocol."""
        peer = await self.handshake(small_buffer=small_buffer)
        status, _ = await peer.head()
        assert status == 101
        socket = RawSocket(peer)
        assert json.loads((await socket.frame())[1])["type"] == "connected"
        return socket

    async def until(self, fact: Callable[[], bool]) -> None:
        """Wait until `fact()` is true."""
        async with asyncio.timeout(WAIT):
            for _ in iter(fact, True):
                await asyncio.sleep(0)


@asynccontextmanager
async def world(way: str = "lane", *, limits: HubLimits | None = None, guard: Any = None,
                authorize: Any = None, config: Any = None, table_options: Any = None,
                **settings: Any) -> AsyncIterator[World]:  # fmt: skip
    """Run a server. `config` is for uvicorn, `table_options` is for our own server, and `four` uses neither."""
    if way == FOUR:
        assert not settings
        missing: Any = None
        app = World(missing, missing, missing, missing)
        app.running, app.signed_in = connect_to_four(), b"Authorization: Bearer %b\r\n" % ADMIN_KEY.encode()
        yield app
        app.running.drop_connections()
        return
    server = make_server(**settings)
    hub = Hub(MemoryStore(), limits or HubLimits(), authorize=authorize)
    await hub.open()
    try:
        async with server.running() as runtime:
            policy = HostPolicy(server.settings.allowed_hosts, server.settings.allowed_origins, loopback_bind=True)
            route = WebSocketRoute(runtime.dispatcher, hub, policy, runtime.streams, guard=guard)
            app = World(server, runtime, hub, route)
            table = Endpoints(
                lambda method, path: None,
                limits=HttpLimits.of(server.settings),
                policy=policy,
                websocket=route,
                max_message=server.settings.max_message,
                **(table_options or {}),
            )
            options: dict[str, Any] = {
                "ws": "websockets-sansio",
                "ws_max_size": server.settings.max_message,
                "ws_per_message_deflate": False,
                **(config or {}),
            }
            async with serve(table) if way == "lane" else serve_asgi(app, **options) as running:
                app.running = running
                yield app
    finally:
        await hub.close()


class RawSocket:
    """A raw client of RFC 6455."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    async def send(self, *frames: bytes) -> None:
        """Send frames in one write."""
        await self.peer.send(b"".join(frames))

    async def frame(self) -> tuple[int, bytes]:
        """Read a frame and return (opcode, payload)."""
        async with asyncio.timeout(WAIT):
            first, second = await self.peer.reader.readexactly(2)
            assert first & 0x70 == 0, "no extension was negotiated"
            assert second & 0x80 == 0, "servers must not mask frames"
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", await self.peer.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.peer.reader.readexactly(8))
            return first & 0x0F, await self.peer.reader.readexactly(size)

    async def message(self) -> Any:
        """Read a text frame and return its JSON."""
        opcode, payload = await self.frame()
        assert opcode == TEXT, (opcode, payload)
        return json.loads(payload)

    async def wait_for_close(self) -> tuple[int, str]:
        """Read up to the close frame and return (code, reason): 1005 without a code, 1006 without a frame."""
        try:
            while True:
                opcode, payload = await self.frame()
                if opcode == CLOSE:
                    return (int.from_bytes(payload[:2]), payload[2:].decode()) if payload else (1005, "")
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return 1006, ""


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True,
          length: bytes | None = None) -> bytes:  # fmt: skip
    """Encode a frame, valid or not."""
    size = len(payload)
    if length is None and size < 126:
        length = bytes((size,))
    elif length is None:
        length = b"\x7e" + struct.pack("!H", size) if size < 65536 else b"\x7f" + struct.pack("!Q", size)
    key = b"\x11\x22\x33\x44" if mask else b""
    head = bytes((fin << 7 | rsv << 4 | opcode, length[0] | (mask << 7))) + length[1:]
    if mask:
        pad = (key * (size // 4 + 1))[:size]
        payload = (int.from_bytes(payload) ^ int.from_bytes(pad)).to_bytes(size)
    return head + key + payload


async def send_json(socket: ClientConnection, message: Any) -> None:
    """Send a message as JSON."""
    await socket.send(message if isinstance(message, str | bytes) else json.dumps(message))


async def recv_json(socket: ClientConnection) -> Any:
    """Receive a message and decode its JSON."""
    return json.loads(await asyncio.wait_for(socket.recv(), WAIT))


async def ask(socket: ClientConnection, message: Any) -> Any:
    """Send a message and return the next one."""
    await send_json(socket, message)
    return await recv_json(socket)


async def wait_for_close(socket: ClientConnection) -> tuple[int | None, str | None]:
    """Wait for the close frame and return (code, reason)."""
    try:
        async with asyncio.timeout(WAIT):
            while True:
                await socket.recv()
    except ConnectionClosed:
        return socket.close_code, socket.close_reason
