"""A server with tools of all kinds, and an ASGI application with only its REST routes and pages."""

from asyncio import Event
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

from millstream import Context, Field, Image, Server, ToolError, ToolResult
from millstream._http.asgi import AsgiAdapter
from millstream._http.hosts import HostPolicy
from millstream._http.message import Handler, HttpLimits, HttpRequest, Response
from millstream._http.server import Endpoints
from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._transports.rest import RestRoutes
from millstream._web.pages import pages

PNG = b"\x89PNG\r\n\x1a\n"
PARCEL = {
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}, "minItems": 1, "maxItems": 3},
        "phone": {"type": "string", "pattern": "^[0-9]{3,9}$"},
        "email": {"type": "string", "minLength": 3},
    },
    "required": ["items"],
    "anyOf": [{"required": ["phone"]}, {"required": ["email"]}],
    "additionalProperties": False,
    "$defs": {"item": {"type": "object", "properties": {"isbn": {"type": "string"}}, "required": ["isbn"]}},
}


@dataclass
class Order:
    isbn: Annotated[str, Field(min_length=1, max_length=13)]
    copies: Annotated[int, Field(ge=1, le=99)] = 1
    wrap: Literal["none", "gift"] = "none"


@dataclass
class Folder:
    name: str
    inside: "list[Folder] | None" = None


@dataclass
class Answer:
    city: str


def world() -> Server:
    """Return a new server."""
    mcp = Server("world", version="2.1", instructions="Try them all.")
    add_typed_tools(mcp)
    add_unusual_tools(mcp)
    return mcp


def add_typed_tools(mcp: Server) -> None:
    """Add tools that take and return values of all types."""

    @mcp.tool
    async def add(a: Annotated[int, Field(ge=-1000, le=1000)], b: Annotated[int, Field(ge=-1000, le=1000)] = 0) -> int:
        """Add two numbers."""
        return a + b

    @mcp.tool
    async def greet(name: str = "world") -> str:
        """Greet a person."""
        return f"Hello, {name}!"

    @mcp.tool
    async def order(order: Order, when: date | None = None) -> dict[str, int]:
        """Order copies of a book."""
        return {"copies": order.copies}

    @mcp.tool
    async def count(folder: Folder) -> int:
        """Count the folders in a folder, itself included."""
        return 1 + sum([await count(each) for each in folder.inside or []])

    @mcp.tool
    async def nothing() -> None:
        """Do nothing."""

    @mcp.tool
    async def picture() -> Image:
        """Draw."""
        return Image(PNG, "image/png")

    @mcp.tool
    async def loose(value: Any = None) -> Any:
        """Return the argument as a structured value."""
        return ToolResult(structured=value)


def add_unusual_tools(mcp: Server) -> None:
    """Add tools that fail, ask the user, or use MCP features that REST lacks."""

    @mcp.tool(input_schema=PARCEL)
    async def parcel(arguments: dict[str, Any]) -> int:
        """Count the arguments that the handwritten schema accepts."""
        return len(arguments["items"])

    @mcp.tool
    async def refuse(reason: str = "closed") -> str:
        """Always fail."""
        raise ToolError(f"Not today: {reason}")

    @mcp.tool
    async def ask(ctx: Context) -> str:
        """Asks where."""
        return (await ctx.elicit("Where?", Answer)).city

    @mcp.tool
    async def whisper(ctx: Context) -> str:
        """Report progress and log, which REST discards, and return the revision."""
        await ctx.progress(1, 2, "half")
        await ctx.info("done")
        return f"{ctx.revision} {ctx.headers.get('x-from', '')}"

    @mcp.tool
    async def region(name: Annotated[str, Field(header="Region")]) -> str:
        """Take an argument that is also an MCP header."""
        return name

    @mcp.tool(timeout=0.01)
    async def sleep() -> str:
        """Wait forever."""
        await Event().wait()
        return "awake"

    @mcp.tool(requires={"sampling": {}})
    async def needs_model() -> str:
        """Refused before it runs."""
        raise AssertionError("a client without sampling must not reach this tool")


def add_failing_tools(mcp: Server) -> None:
    """Add tools that fail unexpectedly."""

    @mcp.tool
    async def crash() -> str:
        """Fail with a secret in the message."""
        raise RuntimeError("the password is hunter2")

    @mcp.tool
    async def lie() -> int:
        """Return a value that doesn't match the output type."""
        answer: Any = "many"
        return answer

    @mcp.tool
    async def object_() -> str:
        """Raise a protocol error."""
        raise ProtocolError(INVALID_PARAMS, "Not these arguments together")


def make_router(rest: RestRoutes) -> Callable[[str, str], Handler | None]:
    """Return a route lookup for REST and pages only."""
    fixed: dict[tuple[str, str], Handler] = {
        ("POST", "/mcp/tools/list"): rest.list_tools,
        ("POST", "/mcp/tools/call"): rest.call_tool,
        ("GET", "/openapi.json"): rest.describe,
    }
    fixed |= {("GET", path): route.handlers["GET"] for path, route in pages().items()}

    async def not_allowed(request: HttpRequest) -> Response:
        return Response(b"Method not allowed.\n", 405, b"content-type: text/plain\r\nallow: POST\r\n")

    def find(method: str, path: str) -> Handler | None:
        if path.startswith("/tools/"):
            return rest.run_tool if method == "POST" else not_allowed
        return fixed.get((method, path))

    return find


class RestApp:
    """The ASGI application. Its runtime starts with the first request of an event loop."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._adapter: AsgiAdapter | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle an HTTP request."""
        if scope["type"] != "http":
            return
        if self._adapter is None:
            runtime = await self.server.start(supervised=True)
            policy = HostPolicy((), (), loopback_bind=True)
            find = make_router(RestRoutes(runtime.dispatcher, events=False))
            self._adapter = AsgiAdapter(Endpoints(find, limits=HttpLimits.of(self.server.settings), policy=policy))
        await self._adapter(scope, receive, send)


app = RestApp(world())


@asynccontextmanager
async def routes(server: Server) -> AsyncIterator[RestRoutes]:
    """Run a server and yield its REST routes."""
    async with server.running() as runtime:
        yield RestRoutes(runtime.dispatcher, events=False)


def post(path: str, body: bytes, root: str = "", **headers: str) -> HttpRequest:
    """Return a POST request with JSON, unless `content_type` differs. If that's empty, there is no such header."""
    named = {"content_type": "application/json", **headers}
    lines = [(key.replace("_", "-").encode(), value.encode()) for key, value in named.items() if value]
    return HttpRequest("POST", path, lines, dict(lines), body, root_path=root)
