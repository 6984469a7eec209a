"""Tables of routes that the documents contain: what rate limits count, and which paths are public.

The rows come from requests to running servers. `scripts/docs.py` writes the tables into the pages.
"""

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from auth_world import GuardedServer, run_guarded
from http_peer import Peer, RunningServer, behind_proxy
from millstream import Server, Settings, auth
from millstream.gateway import per_user_oauth
from patience import WAIT
from wire import POST, encode_headers, encode_request, request

LIMITS = ("limit_requests", "limit_address")
COUNTED, NEVER_REJECTED, FREE = "yes", "yes, but it isn't rejected", "no"
MCP = Subprotocol("mcp")
_MOST = 3
"""Requests that each caller may send in a minute."""
_CALLERS = 400
_URL = "http://127.0.0.1:8000"
_INITIALIZE = request(
    "initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
)
_NOTIFICATION = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}}
_MESSAGES: Mapping[str, Any] = {
    "a tool call": request("tools/call", {"name": "echo"}),
    "a call of an unknown tool": request("tools/call", {"name": "nothing"}),
    "another request, such as `tools/list`": request("ping"),
    "a request for an unknown method": request("nothing/here"),
    "`initialize`": _INITIALIZE,
    "a message that isn't JSON": b'{"jsonrpc',
    "a message that isn't JSON-RPC": {"jsonrpc": "1.0", "id": 1, "method": "ping"},
    "a notification": _NOTIFICATION,
    "a response to a question": {"jsonrpc": "2.0", "id": "unknown", "result": {}},
}
"""What a client sends over MCP, with an example."""
_STATIC = "a file of `mcp.static`"
_SILENT = ("a notification", "a response to a question")
"""Messages without a reply."""
_JSON = {name.replace("-", "_"): value for name, value in POST.items() if name != "host"}
Send = Callable[[str, Any], Awaitable[bool]]
"""Sends something of a kind. Returns whether `limit_requests` or `limit_address` rejected it."""


@asynccontextmanager
async def running(
    *, parts: str = "all", tokens: bool = True, issuer: bool = True, accounts: bool = True, **options: Any
) -> AsyncIterator[GuardedServer]:
    """Run a server that requires a key, behind a proxy that names the client's address. Each caller has every scope."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("page.html", "users.json"):
            Path(folder, name).write_text("{}", "utf-8")  # noqa: ASYNC240  a few bytes
        keys = {f"caller{number}": (key_of(number), ["*"]) for number in range(_CALLERS)}
        methods: list[Any] = [auth.keys(named_keys=keys)]
        if tokens:
            methods.append(auth.jwt(issuer="https://issuer.example.com", audience=_URL, secret="s" * 40))
        if issuer:
            methods.append(auth.issuer(_URL, users=auth.users(file=Path(folder, "users.json"))))
        server = Server("everything", serve=parts, auth=methods, settings=Settings(**options))
        server.tool(name="echo", description="Echo.")(lambda: "echo")
        server.static("/files", folder)
        server.route("/own")(_own_page)
        if accounts:
            server.upstream("notes", "https://notes.example.com/mcp", auth=per_user_oauth())
        async with run_guarded(server, proxies=behind_proxy()) as world:
            yield world


async def _own_page(request: Any) -> Any:
    from starlette.responses import PlainTextResponse  # noqa: PLC0415

    return PlainTextResponse("own")


def key_of(number: int) -> str:
    """Return the key of a caller."""
    return f"key-of-caller-{number}-0123456789"


class Caller(NamedTuple):
    """A client with a key and an address of its own."""

    served: RunningServer
    number: int

    @property
    def headers(self) -> dict[str, str]:
        return {
            "host": "127.0.0.1:8000",
            "authorization": f"Bearer {key_of(self.number)}",
            "x-forwarded-for": f"198.51.{self.number // 250}.{self.number % 250 + 1}",
        }

    async def open(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[Peer, int, Mapping[bytes, bytes]]:
        """Send a request, and return the connection, the status, and the headers of the reply."""
        peer = await self.served.connect()
        fields = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        await peer.send(encode_request(method, path, encode_headers(fields), body))
        return peer, *await peer.head()

    async def rejects(self, method: str, path: str, body: bytes = b"", **headers: str) -> bool:
        """Send a request. Return whether a limit of the settings rejected it."""
        peer, status, head = await self.open(method, path, body, **headers)
        peer.close()
        return status == 429 and head.get(b"ratelimit-policy", b"").startswith((b'"requests"', b'"address"'))

    async def initialize(self) -> str:
        """Open a session, and return its id."""
        peer, _, head = await self.open("POST", "/mcp", _encode(_INITIALIZE), **_JSON)
        peer.close()
        return head[b"mcp-session-id"].decode()


def _encode(message: Any) -> bytes:
    return message if isinstance(message, bytes) else json.dumps(message).encode()


async def _over_http(caller: Caller, stack: AsyncExitStack) -> Send:
    session: dict[str, str] = {}

    async def send(kind: str, message: Any) -> bool:
        if kind in _SILENT and not session:
            session["mcp_session_id"] = await caller.initialize()
        return await caller.rejects("POST", "/mcp", _encode(message), **_JSON, **session)

    return send


async def _over_sse(caller: Caller, stack: AsyncExitStack) -> Send:
    stream, status, _ = await caller.open("GET", "/sse", accept="text/event-stream")
    stack.callback(stream.close)
    assert status == 200

    async def event() -> str:
        while not (found := re.search(r"^data: (.*?)\r?$", (await stream.chunk()).decode(), re.MULTILINE)):
            pass
        return found[1]

    path = await event()

    async def send(kind: str, message: Any) -> bool:
        peer, status, _ = await caller.open("POST", path, _encode(message), content_type="application/json")
        peer.close()
        return status == 429 or (status == 202 and kind not in _SILENT and "-31429" in await event())

    return send


async def _over_socket(caller: Caller, stack: AsyncExitStack, *, speaks: Sequence[Subprotocol] = (MCP,)) -> Send:
    headers = {name: value for name, value in caller.headers.items() if name != "host"}
    url = f"ws://127.0.0.1:{caller.served.port}/ws"
    socket = await stack.enter_async_context(
        connect(
            url,
            additional_headers=headers,
            subprotocols=speaks or None,
            compression=None,
            proxy=None,
            open_timeout=WAIT,
        )
    )
    if not speaks:
        await socket.recv()

    async def send(kind: str, message: Any) -> bool:
        await socket.send(_encode(message).decode())
        return kind not in _SILENT and "-31429" in str(await asyncio.wait_for(socket.recv(), WAIT))

    return send


_in_dialect = partial(_over_socket, speaks=())


async def _as_request(caller: Caller, stack: AsyncExitStack) -> Send:
    async def send(kind: str, message: Any) -> bool:
        if isinstance(message, tuple):
            method, path, body, headers = message
            return await caller.rejects(method, path, body, **headers)
        return await caller.rejects("POST", "/mcp", _encode(message), **_JSON)

    return send


async def _end_sessions(caller: Caller, stack: AsyncExitStack) -> Send:
    sessions = [await caller.initialize() for _ in range(_MOST - 1)]

    async def send(kind: str, message: Any) -> bool:
        if message is not None:
            return await caller.rejects("POST", "/mcp", _encode(message), **_JSON)
        return bool(sessions) and await caller.rejects("DELETE", "/mcp", mcp_session_id=sessions.pop())

    return send


async def _open_sockets(caller: Caller, stack: AsyncExitStack) -> Send:
    async def send(kind: str, message: Any) -> bool:
        if message is not None:
            return await caller.rejects("POST", "/mcp", _encode(message), **_JSON)
        await _over_socket(caller, stack)
        return False

    return send


_TRANSPORTS = {"Streamable HTTP": _over_http, "HTTP+SSE": _over_sse, "WebSocket": _over_socket}
_OTHERS: Mapping[Any, Mapping[str, Any]] = {
    _as_request: {
        "a message with a media type other than JSON": ("POST", "/mcp", b"{}", {"content_type": "text/plain"}),
        "a message whose `Accept` header excludes all replies": (
            ("POST", "/mcp", b"{}", {"content_type": "application/json", "accept": "image/png"})
        ),
        "a tool call by REST": ("POST", "/tools/echo", b"{}", _JSON),
        "a REST call of an unknown tool": ("POST", "/tools/nothing", b"{}", _JSON),
        "a REST call with unreadable arguments": ("POST", "/tools/echo", b"{", _JSON),
        "`POST /mcp/tools/call`": ("POST", "/mcp/tools/call", b'{"params":{"name":"echo"}}', _JSON),
        "the same, with an unreadable message": ("POST", "/mcp/tools/call", b"{", _JSON),
        "a request with a wrong key": ("POST", "/mcp", b"{}", {**_JSON, "authorization": f"Bearer {'x' * 20}"}),
        "`OPTIONS` for a known path, such as a browser's preflight request": (
            ("OPTIONS", "/mcp", b"", {"origin": _URL, "access_control_request_method": "POST"})
        ),
    },
    _end_sessions: {"the end of a session": None},
    _open_sockets: {"opening a WebSocket": None},
    _in_dialect: {
        "`mcp_call` on a WebSocket": {"type": "mcp_call", "tool": "echo"},
        "`subscribe`, `unsubscribe`, `publish`, and `ping` on a WebSocket": {"type": "ping"},
        "an unknown type on a WebSocket": {"type": "nothing"},
        "an unreadable message of the JSON dialect": b"{",
    },
}
"""Function that opens a way to send them -> further things to send."""


async def _judge(served: RunningServer, numbers: Iterator[int], begin: Any, kind: str, message: Any) -> str:
    """Return whether a limit counts something."""
    async with AsyncExitStack() as stack:
        send = await begin(Caller(served, next(numbers)), stack)
        if [await send(kind, message) for _ in range(_MOST + 1)][-1]:
            return COUNTED
        ping: Any = {"type": "ping"} if begin is _in_dialect else request("ping")
        return NEVER_REJECTED if await send("a ping", ping) else FREE


async def judge_messages(limit: str) -> dict[tuple[str, str], str]:
    """Return whether a limit counts each kind of message, by kind and transport."""
    found: dict[tuple[str, str], str] = {}
    async with running(**{limit: f"{_MOST}/minute"}) as world:
        served, numbers = world.running, count()
        for kind, message in _MESSAGES.items():
            for transport, begin in _TRANSPORTS.items():
                found[kind, transport] = await _judge(served, numbers, begin, kind, message)
        for begin, messages in _OTHERS.items():
            for kind, message in messages.items():
                found[kind, ""] = await _judge(served, numbers, begin, kind, message)
    return found


async def judge_routes(limit: str) -> dict[tuple[str, str], str]:
    """Return whether a limit counts requests, by method and path. Unknown paths have an empty one."""
    found: dict[tuple[str, str], str] = {}
    options = {"card_url": "https://mcp.example.com/mcp", "show_errors": True}
    async with running(**options, **{limit: f"{_MOST}/minute"}) as world:
        served, numbers = world.running, count()
        wanted = [(method, path) for path, route in routes_of(world).items() for method in route.handlers]
        wanted += [(method, "") for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS")] + [("PATCH", "/health")]
        for method, path in wanted:
            caller = Caller(served, next(numbers))
            headers = (
                {"accept": "text/event-stream"} if path.endswith("/sse") else {}
            )  # a stream of the hub hides the 429
            at = path.replace("*", "page.html") or "/nothing/here"
            rejected = [await caller.rejects(method, at, **headers) for _ in range(_MOST + 1)]
            place = (method, re.sub(r"^.*/assets/.*", "/assets/*", path))
            judged = COUNTED if rejected[-1] else FREE
            assert found.setdefault(place, judged) == judged, (method, path)
    return found


def routes_of(world: GuardedServer) -> dict[str, Any]:
    """Return the routes of a server by path, or by prefix with a star."""
    world.runtime.serve_http()
    table = world.runtime.host.routes
    return {**table.exact, **{f"{prefix}*": route for prefix, route in table.prefixes.items()}}


async def limits_table() -> str:
    """Return the table of what the limits don't count, or don't reject."""
    messages = [await judge_messages(limit) for limit in LIMITS]
    lines = ["| what | " + " | ".join(f"`{limit}`" for limit in LIMITS) + " |", "|---|---|---|"]
    kinds: dict[str, dict[tuple[str, ...], list[str]]] = {}
    for kind, transport in messages[0]:
        outcome = tuple(judged[kind, transport] for judged in messages)
        kinds.setdefault(kind, {}).setdefault(outcome, []).append(transport)
    counted = (COUNTED,) * len(LIMITS)
    for kind, outcomes in kinds.items():
        for outcome, transports in outcomes.items():
            if outcome == counted:
                continue
            where = "" if len(outcomes) == 1 else f", over {' and '.join(transports)}"
            lines.append(f"| {kind}{where} | {' | '.join(outcome)} |")
    paths = [await judge_routes(limit) for limit in LIMITS]
    for method, path in paths[0]:
        outcome = tuple(judged[method, path] for judged in paths)
        label = _STATIC if path.startswith("/files") else f"`{method} {path.replace('*', '…')}`"
        row = f"| {label} | {' | '.join(outcome)} |"
        if outcome != counted and row not in lines:
            lines.append(row)
    others = "any other request, including wrong keys, unreadable messages, and unknown paths"
    lines.append(f"| {others} | {' | '.join(counted)} |")
    return "\n".join(lines) + "\n"


_PUBLIC_WITH: Mapping[str, Mapping[str, Any]] = {
    "always": {"parts": "", "tokens": False, "issuer": False, "accounts": False},
    "`rest`": {"parts": "rest", "tokens": False, "issuer": False, "accounts": False},
    "`hub`": {"parts": "rest,hub", "tokens": False, "issuer": False, "accounts": False},
    "`web`": {"tokens": False, "issuer": False, "accounts": False},
    "`card_url`": {"tokens": False, "issuer": False, "accounts": False, "card_url": "https://mcp.example.com/mcp"},
    "accounts at upstreams": {"tokens": False, "issuer": False, "card_url": "https://mcp.example.com/mcp"},
    "tokens from an issuer": {"issuer": False, "card_url": "https://mcp.example.com/mcp"},
    "`auth.issuer(…)`": {"card_url": "https://mcp.example.com/mcp"},
}
"""What a server has, each with everything before it."""


async def public_paths() -> dict[str, tuple[str, str]]:
    """Return the paths without sign-in, with their methods and what they come with."""
    found: dict[str, tuple[str, str]] = {}
    for reason, options in _PUBLIC_WITH.items():
        async with running(**options) as world:
            for path, route in routes_of(world).items():
                if route.public and not route.own:
                    label = re.sub(r"/assets/.*", "/assets/…", path).replace("*", "…")
                    found.setdefault(label, (", ".join(f"`{each}`" for each in route.handlers), reason))
    return found


async def public_table() -> str:
    """Return the table of paths that need no credential."""
    rows = [f"| {methods} | `{path}` | {reason} |" for path, (methods, reason) in (await public_paths()).items()]
    return "\n".join(["| methods | path | with |", "|---|---|---|", *rows]) + "\n"


TABLES: Mapping[str, Callable[[], Awaitable[str]]] = {"limits": limits_table, "public-paths": public_table}
"""Name in the pages -> function that returns the table."""
