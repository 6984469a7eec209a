# pyright: strict
# mypy: disallow-any-generics, disallow-untyped-calls, disallow-untyped-defs, disallow-untyped-decorators
# mypy: warn-return-any, warn-unused-ignores, no-implicit-reexport, strict-equality
"""Documented signatures of a server, once each. Type checkers find no mistake."""

import contextlib
import datetime as dt
import enum
import logging
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypedDict

from millstream import (
    Annotations,
    Audio,
    Cancelled,
    Context,
    Declined,
    Depends,
    Elicit,
    ElicitUrl,
    EmbeddedResource,
    Field,
    Icon,
    Image,
    Info,
    Message,
    Principal,
    ProtocolError,
    ResourceContents,
    ResourceLink,
    Roots,
    Sample,
    SampleResult,
    Server,
    Settings,
    SyncContext,
    Text,
    ToolAnnotations,
    ToolError,
    ToolResult,
    auth,
)
from millstream.middleware import ListRequest, MessageRequest, Middleware, Next, Request
from millstream.stores import Gap

logger = logging.getLogger("shop")


@dataclass
class Pool:
    db: sqlite3.Connection


@contextlib.asynccontextmanager
async def lifespan(server: Server) -> AsyncGenerator[Pool]:
    db = sqlite3.connect(":memory:", check_same_thread=False)

    async def farewell() -> None:
        await server.hub.publish("news", {"closing": True})

    server.hub.on_stop(farewell)
    try:
        yield Pool(db)
    finally:
        db.close()


def may(principal: Principal | None, action: Literal["publish", "subscribe"], channel: str) -> bool:
    return principal is not None or action == "subscribe" or channel.startswith("public.")


class Hooks(Middleware):
    async def on_call(self, request: Request, next: Next) -> Any:
        request.context.state["name"] = request.name
        try:
            return await next(request)
        except OSError as error:
            raise ToolError("Later.") from error

    async def on_read(self, request: Request, next: Next) -> Any:
        return await next(request)

    async def on_prompt(self, request: Request, next: Next) -> Any:
        return await next(request)

    async def on_list(self, request: ListRequest, next: Next) -> list[dict[str, Any]]:
        items = await next(request)
        return [item for item in items if item["name"] != "hidden" or request.kind != "tools"]

    async def on_message(self, request: MessageRequest, next: Next) -> Any:
        logger.info("%s %s", request.method, request.params)
        return await next(request)


mcp = Server(
    "shop",
    version="1.0",
    instructions="Ask.",
    info=Info(
        title="Shop",
        description="Books",
        website_url="https://example.com",
        icons=[Icon(src="https://example.com/i.png", mime_type="image/png")],
    ),
    serve=["hub", "rest"],
    auth=[auth.keys(file=Path("keys.json"))] if Path("keys.json").exists() else None,
    authorize_channel=may,
    store="memory://",
    lifespan=lifespan,
    middleware=[Hooks()],
    extensions=[],
    settings=Settings(page_size=50, tool_timeout=30),
)


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass
class Address:
    street: str
    city: Annotated[str, Field(min_length=1)] = "Bree"


class Line(TypedDict):
    isbn: str
    copies: int


def connection(ctx: SyncContext) -> Iterator[sqlite3.Connection]:
    pool: Pool = ctx.lifespan
    yield pool.db
    pool.db.commit()


Database = Annotated[sqlite3.Connection, Depends(connection)]


async def customer(ctx: Context, db: Database) -> str:
    return ctx.principal.subject if ctx.principal is not None else "anonymous"


def options() -> dict[str, str]:
    return {"a": "b"}


class Clock:
    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC)


class Session:
    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


@mcp.tool(
    name="order",
    title="Order",
    description="Order.",
    annotations=ToolAnnotations(
        read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
    ),
    icons=[Icon(src="https://example.com/i.png")],
    meta={"com.example/a": 1},
    timeout=10,
    coerce=True,
    requires={"elicitation": {}},
    scopes=["orders:write"],
    limit="10/minute",
    cost=2,
    concurrency=3,
    tags=["beta"],
    enabled=True,
    visible=lambda principal: principal is None or principal.in_group(["staff"]),
    groups=["staff"],
)
async def order(  # noqa: PLR0917  a signature of every kind
    isbn: Annotated[str, Field(pattern="^[0-9]+$", description="ISBN", examples=["978"])],
    lines: list[Line],
    ctx: Context,
    db: Database,
    settings: Annotated[dict[str, str], Depends(options, thread=False)],
    size: Size = Size.SMALL,
    copies: Annotated[int, Field(ge=1, le=10)] = 1,
    who: str = Depends(customer),
    clock: Clock = Depends(Clock),
    session: Session = Depends(Session),
) -> dict[str, int]:
    """Order copies of a book."""
    address = await ctx.elicit("Where?", Address)
    text: str = await ctx.elicit("Name?", str, key="name")
    day = await ctx.elicit("When?", dt.date)
    sure = await ctx.elicit("Sure?", bool)
    color = await ctx.elicit("Which?", ["red", "blue"])
    titled = await ctx.elicit("Which?", {"a": {"title": "An A"}})
    way = await ctx.elicit("How?", Size)
    literal = await ctx.elicit("How?", Literal["x", "y"])
    logger.info(
        "%s %s %s %s %s %s %s", address.city.upper(), text.upper(), day.isoformat(), sure, color, titled, way.value
    )
    logger.info(literal)
    try:
        await ctx.elicit_url("Pay", "https://example.com/pay", key="pay")
    except (Declined, Cancelled):
        return {"ordered": 0}
    answer: SampleResult = await ctx.sample("Hi", max_tokens=10, system="Short.")
    await ctx.sample([Message(role="user", content=Text("hi"))], max_tokens=10)
    for root in await ctx.roots():
        logger.info(root.uri)
    found = await ctx.ask(
        a=Elicit("Where?", Address), b=Sample("Hi", max_tokens=5), c=Roots(), d=ElicitUrl("Pay", "https://example.com")
    )
    logger.info(found["a"].city)
    paid = await ctx.once("pay", charge)
    await ctx.once("pay2", charge, store=True)
    contents = await ctx.read_resource("shop://about")
    logger.info("%s %s", contents, paid)
    await ctx.progress(1, copies, "Packed")
    await ctx.report_progress(1, copies)
    await ctx.log("info", {"a": 1}, logger="x")
    await ctx.debug("a")
    await ctx.info("a")
    await ctx.warning("a")
    await ctx.error("a")
    if ctx.session_state:
        n = await ctx.session_state.get("n", 0)
        await ctx.session_state.set("n", n + 1)
        await ctx.session_state.delete("n")
        await ctx.session_state.update("n", lambda value: value + 1, 0)
    if ctx.user_state:
        await ctx.user_state.update("n", lambda value: value + 1, 0)
    token = await ctx.provider_token()
    logger.info("%s %s %s", token.access_token, token.scopes, token.expires_at)
    await ctx.close_stream(retry_ms=100)
    await ctx.notify("com.example/sold", {"a": 1})
    logger.info(
        "%s %s %s %s %s",
        ctx.meta.get("a"),
        ctx.headers.get("x"),
        ctx.client.name,
        ctx.client.version,
        ctx.client.capabilities,
    )
    logger.info(
        "%s %s %s %s %s %s",
        ctx.session,
        ctx.request_id,
        ctx.revision,
        ctx.cancelled,
        ctx.set_name,
        ctx.client.extensions,
    )
    ctx.state["a"] = 1
    if ctx.principal is not None:
        logger.info(
            "%s %s %s %s %s",
            ctx.principal.subject,
            ctx.principal.issuer,
            ctx.principal.client,
            ctx.principal.scopes,
            ctx.principal.claims["x"],
        )
    published = await ctx.hub.publish("news", {"a": 1}, event="sold", id="7")
    logger.info("%s %s", published.id, published.subscribers)
    return {"ordered": copies + len(answer.text)}


async def charge() -> int:
    return 1


@mcp.tool(thread=False)
def quick(
    a: int | None = None, b: float = 1.0, c: bytes = b"", d: tuple[int, str] = (1, "a"), e: Any = None
) -> list[Text | Image]:
    """Quick."""
    return [Text("a", annotations=Annotations(audience=["user"], priority=1.0)), Image(b"", "image/png")]


@mcp.tool
def blocking(ctx: SyncContext) -> ToolResult:
    """Block."""
    address = ctx.elicit("Where?", Address)
    ctx.progress(1)
    ctx.info("a")
    ctx.hub.publish("news", "a")
    state = ctx.session_state.get("a", 0)
    return ToolResult(
        content=[Text(address.city), ResourceLink(uri="a://b", name="b"), Audio(b"", "audio/wav")],
        structured={"a": state},
        meta={"a": 1},
    )


@mcp.tool(input_schema={"type": "object", "properties": {"a": {"type": "integer"}}}, output_schema={"type": "object"})
def raw(arguments: dict[str, Any]) -> dict[str, Any]:
    """Raw."""
    return arguments


@mcp.tool(task="allowed", task_ttl=60, task_retry=True)
async def report(ctx: Context) -> str:
    """Report."""
    return "a"


@mcp.tool(task="allowed", defer_task=True)
async def deferred(ctx: Context) -> AsyncIterator[str]:
    """Deferred."""
    await ctx.start_task()
    yield "a"


@mcp.resource(
    "shop://about",
    name="about",
    title="About",
    description="A",
    mime_type="text/plain",
    annotations=Annotations(priority=0.5),
    icons=[],
    size=3,
    meta={},
    thread=False,
    scopes=[],
    tags=["x"],
    enabled=True,
    visible=lambda principal: True,
    groups=None,
)
def about() -> str:
    return "abc"


@mcp.resource("shop://books/{isbn}")
async def book(isbn: str, ctx: Context, db: Database) -> dict[str, str]:
    return {"isbn": isbn}


@mcp.resource("shop://files/{path*}")
def shop_file(path: str) -> bytes:
    return path.encode()


@mcp.resource("shop://many")
def many() -> list[ResourceContents]:
    return [ResourceContents(uri="shop://many", text="a", mime_type="text/plain")]


@mcp.live("shop://stock")
def stock(db: Database) -> dict[str, int]:
    return {"a": 1}


@mcp.prompt(
    name="review",
    title="Review",
    description="R",
    icons=[],
    meta={},
    thread=False,
    scopes=[],
    tags=[],
    enabled=True,
    visible=lambda principal: True,
    groups=["staff"],
)
async def review(title: str, ctx: Context, db: Database, style: Literal["a", "b"] = "a") -> list[Message]:
    return [Message("user", Text(title)), Message(role="assistant", content=EmbeddedResource("a://b", text="x"))]


@mcp.prompt
def short(title: str) -> str:
    return title


@mcp.complete("review", argument="title")
async def titles(value: str, arguments: dict[str, str], db: Database, ctx: Context) -> list[str]:
    return [value]


@mcp.complete("review", argument="style")
def styles(value: str, arguments: dict[str, str], ctx: SyncContext, db: Database) -> list[str]:
    return [value]


@mcp.complete("shop://books/{isbn}", argument="isbn")
def isbns(value: str, arguments: dict[str, str], who: str = Depends(customer)) -> list[str]:
    return [value]


@mcp.tool
async def news(ctx: Context) -> str:
    """News."""
    await mcp.hub.publish("news", "a", publisher=ctx.principal)
    await mcp.hub.send("c1", {"a": 1}, event="x", id="1", principal=ctx.principal, publisher=ctx.principal)
    for member in await mcp.hub.presence("news"):
        logger.info("%s %s %s %s", member.client_id, member.name, member.since, member.user)
    listed = await mcp.hub.members("news")
    logger.info("%s %s", listed.members, listed.event)
    for event in await mcp.hub.history("news", count=5):
        logger.info("%s %s %s %s %s", event.id, (event.data or b"").decode(), event.event, event.timestamp, event.user)
        logger.info(event.visible_user(ctx.principal))
    stats = mcp.hub.stats()
    await mcp.resource_updated("shop://stock")
    try:
        async for item in mcp.hub.listen("news.>", name="worker"):
            return f"{item.data!r} {stats.subscribers} {stats.channels} {stats.transports} {stats.published}"
    except Gap:
        raise ProtocolError(-32000, "Gap") from None
    return ""


@mcp.route("/hello", methods=["GET", "POST"], public=True)
async def hello(request: Any) -> Any:
    return "a"


mcp.static("/static", Path(__file__).parent, max_age=60, public=True)
mcp.files("docs://", Path(__file__).parent)
other = Server("other")
mcp.mount(other, prefix="stock", scopes=["a"], groups=["b"], tags=["c"], limit="3/second")
mcp.add_set("/mcp/interns", allow=["quick"])
overrides: dict[Callable[..., Any], Callable[..., Any]] = mcp.dependency_overrides
mcp.dependency_overrides[options] = lambda: {"c": "d"}
mcp.disable("tool", "quick")
mcp.enable("tool", "quick")
mcp.disable(tag="beta")
mcp.enable(tag="beta")


def plain(a: int) -> int:
    """Plain."""
    return a


mcp.add_tool(plain)
mcp.remove_tool("plain")
mcp.remove_prompt("short")
mcp.remove_resource("shop://many")

if __name__ == "__main__":
    mcp.run(transport="http", host="127.0.0.1", port=8000, workers=1)
