"""A server whose parts all require keys, on a real socket, and requests of several users."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from four_workers import FOUR, connect_to_four
from http_peer import Peer, RunningServer, serve
from millstream import Context, Server, Settings, auth
from millstream._app.runtime import Runtime
from millstream._app.server_process.asgi_application import prepare
from patience import WAIT
from wire import LATEST_HANDSHAKE, POST, Reply, encode_headers, encode_request, per_request, request, routing

ALICE = "key-of-alice-0123456789"
BOB = "key-of-bob-0123456789"
ROOT = "key-of-root-0123456789"
STREAM = {"host": "127.0.0.1", "accept": "text/event-stream"}


def make_server(methods: Any = None, **options: Any) -> Server:
    """Create the server, whose tools may require scopes. Alice may write orders; Bob has no special scopes."""
    server = Server("guarded", serve="all", auth=methods or make_key_auth(), settings=Settings(**options))
    add_features(server)
    return server


def make_key_auth() -> Any:
    """Return authentication by the keys of Alice, Bob, and root."""
    return auth.keys(ROOT, named_keys={"alice": (ALICE, ["orders:write", "secrets"]), "bob": BOB})


def add_features(server: Server) -> None:
    """Add the tools, resources, and prompts."""

    @server.tool
    async def who(ctx: Context) -> str:
        """Return the caller."""
        principal = ctx.principal
        return "nobody" if principal is None else principal.subject

    @server.tool(scopes=["orders:write"])
    async def order(isbn: str) -> str:
        """Order a book."""
        return f"ordered {isbn}"

    @server.tool
    async def asks(ctx: Context) -> str:
        """Ask the user."""
        return await ctx.elicit("How many?", {"type": "object", "properties": {"n": {"type": "integer"}}}) and "asked"

    @server.tool
    async def counts(ctx: Context, stream: bool = False) -> int:
        """Count, and report progress."""
        await ctx.progress(1, 2, "half")
        return 2

    @server.resource("secret://plan", scopes=["secrets"])
    async def plan() -> str:
        """The plan."""
        return "the plan"

    @server.resource("secret://{name}", scopes=["secrets"])
    async def secret(name: str) -> str:
        """A secret."""
        return name

    @server.resource("open://news")
    async def news() -> str:
        """News."""
        return "news"

    @server.prompt(scopes=["secrets"])
    async def whisper(word: str) -> str:
        """Whisper."""
        return word


class GuardedServer:
    """The running server."""

    def __init__(self, server: Server, runtime: Runtime, running: RunningServer) -> None:
        self.server = server
        self.runtime = runtime
        self.running = running

    async def send(self, key: str | None, method: str, path: str, body: bytes = b"", **headers: str) -> Peer:
        """Send a request on a new connection, without reading the reply."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            fields["authorization"] = f"Bearer {key}"
        peer = await self.running.connect()
        await peer.send(encode_request(method, path, encode_headers({"host": "127.0.0.1", **fields}), body))
        return peer

    async def ask(self, key: str | None, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        """Send a request, and return its reply."""
        peer = await self.send(key, method, path, body, **headers)
        reply = Reply(*await peer.reply(head_only=method == "HEAD"))
        peer.close()
        return reply

    async def post(self, key: str | None, message: Any, **headers: str) -> Reply:
        """POST a handshake-era message."""
        given = {name.replace("-", "_"): value for name, value in POST.items()}
        return await self.ask(key, "POST", "/mcp", json.dumps(message).encode(), **{**given, **headers})

    async def call(self, key: str | None, tool: str, arguments: Any = None, **more: Any) -> Reply:
        """Call a tool in the per-request era."""
        headers = {name.replace("-", "_"): value for name, value in routing("tools/call", tool).items()}
        params = {"name": tool, "arguments": arguments or {}, **more}
        body = json.dumps(per_request("tools/call", params, elicitation={})).encode()
        return await self.ask(key, "POST", "/mcp", body, **headers)

    async def modern(self, key: str | None, method: str, params: Any = None, name: str = "") -> Reply:
        """Send a request of the per-request era."""
        headers = {field.replace("-", "_"): value for field, value in routing(method, name).items()}
        return await self.ask(key, "POST", "/mcp", json.dumps(per_request(method, params)).encode(), **headers)

    async def initialize(self, key: str | None, revision: str = LATEST_HANDSHAKE) -> str:
        """Start a session."""
        about = {"name": "t", "version": "1"}
        params = {"protocolVersion": revision, "capabilities": {"elicitation": {}}, "clientInfo": about}
        reply = await self.post(key, request("initialize", params, 0))
        assert reply.status == 200, reply
        return reply.headers[b"mcp-session-id"].decode()

    @asynccontextmanager
    async def socket(self, key: str | None, speaks: str = "", **headers: str) -> AsyncIterator[ClientConnection]:
        """Open a WebSocket with a subprotocol."""
        given = {"authorization": f"Bearer {key}"} if key is not None else {}
        uri = f"ws://127.0.0.1:{self.running.port}/ws"
        somewhere = self.running.source_address
        come = {} if somewhere is None else {"local_addr": (somewhere(), 0)}
        options: Any = {**come, "compression": None, "proxy": None, "open_timeout": WAIT, "close_timeout": 1}
        if speaks:
            options["subprotocols"] = [Subprotocol(speaks)]
        async with connect(uri, additional_headers={**given, **headers}, **options) as socket:
            yield socket


@asynccontextmanager
async def run_guarded(
    server: Server | None = None,
    *,
    lane: bool = True,
    port: int = 0,
    way: str = "",
    proxies: Any = None,
    **options: Any,
) -> AsyncIterator[GuardedServer]:
    """Run a server for the length of the block. With `four`, use the shared server with four workers."""
    if way == FOUR:
        running = connect_to_four()
        yield GuardedServer(cast("Any", None), cast("Any", None), running)
        running.drop_connections()
        return
    server = server or make_server(**options)
    async with server.running() as runtime:
        prepare(server, runtime)
        async with serve(server, lane=lane, port=port, proxies=proxies) as running:
            yield GuardedServer(server, runtime, running)
