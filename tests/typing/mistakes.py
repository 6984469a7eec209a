"""Forty mistakes that an editor underlines. Each line with a comment ``# wrong`` must be reported, and no other.

It is read by `test_type_mistakes.py` and never run.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, assert_type

from starlette.requests import Request
from starlette.responses import Response

import millstream.testing
from millstream import (
    Annotations,
    Client,
    Context,
    Depends,
    Elicit,
    Field,
    Icon,
    Image,
    Info,
    Message,
    ResourceLink,
    Roots,
    Sample,
    Server,
    Settings,
    SyncContext,
    Text,
    ToolAnnotations,
    ToolError,
    ToolResult,
    auth,
)
from millstream.agent import Limits
from millstream.client import BlockingClient, OAuth, Options

mcp = Server("shop")


@dataclass
class Address:
    """A postal address."""

    street: str


# Servers
Server()  # wrong
Server(5)  # wrong
Server("shop", "1.0")  # wrong
Server("shop", verison="1.0")  # wrong
Server("shop", info={"title": "The shop"})  # wrong
Server("shop", settings={"port": 8000})  # wrong
Server("shop", auth="secret")  # wrong
Server("shop", lifespan=lambda: None)  # wrong
Settings(portt=8000)  # wrong
Settings(log_level="loud")  # wrong
Info(name="The shop")  # wrong
mcp.run("grpc")  # wrong
mcp.run(port="8000")  # wrong
mcp.mount("books")  # wrong
mcp.tols()  # wrong


# Decorators
@mcp.tool(timout=5)  # wrong
def one() -> None: ...


@mcp.tool(timeout="5s")  # wrong
def two() -> None: ...


@mcp.tool(annotations={"readOnly": True})  # wrong
def three() -> None: ...


@mcp.tool(annotations=ToolAnnotations(read_only=True))  # wrong
def four() -> None: ...


@mcp.tool(icons=["tea.png"])  # wrong
def five() -> None: ...


@mcp.tool("six")  # wrong
def six() -> None: ...


@mcp.resource  # wrong
def seven() -> None: ...


@mcp.resource("shop://stock", mimetype="text/plain")  # wrong
def eight() -> None: ...


@mcp.resource("shop://stock", annotations=Annotations(audience=["everybody"]))  # wrong
def nine() -> None: ...


@mcp.prompt(timeout=5)  # wrong
def ten() -> str:
    return ""


@mcp.complete("review", "tone")  # wrong
def eleven() -> list[str]:
    return []


@mcp.complete("review", "title")
def complete_title(value: str, arguments: dict[str, str], found: Annotated[list[str], Depends(eleven)]) -> list[str]:
    return found


assert_type(complete_title("a", {}, []), list[str])


# Functions keep their types
@mcp.tool(title="Add")
def add(a: int, b: Annotated[int, Field(ge=0)] = 1) -> int:
    return a + b


add("1")  # wrong
add(1, c=2)  # wrong
assert_type(add(1), int)


@asynccontextmanager
async def lifespan(server: Server) -> AsyncGenerator[int]:
    yield 1


Server("shop", lifespan=lifespan, serve=["hub", "rest"], auth=[auth.keys("k")])


@mcp.tool
async def talk(ctx: Context) -> ToolResult:
    await ctx.progress("half")  # wrong
    await ctx.log("loud", "hello")  # wrong
    await ctx.sample("Say hello", max_token=5)  # wrong
    assert_type(await ctx.elicit("Where to?", Address), Address)
    assert_type(await ctx.once("order", lambda: 5), int)
    await ctx.ask(where="Where to?")  # wrong
    await ctx.ask(where=Elicit("Where to?", Address), folders=Roots(), hello=Sample("Say hello"))
    return ToolResult(contents=["done"])  # wrong


@mcp.tool
def block(ctx: SyncContext) -> list[Any]:
    ctx.sample("Say hello", temperatur=0.5)  # wrong
    assert_type(ctx.elicit("Where to?", Address), Address)
    return [Image("tea.png"), Text("tea")]  # wrong


# One string where several are meant, and names that nobody knows
@mcp.tool(tags="books")  # wrong
def tagged() -> str:
    return ""


@mcp.resource("shop://books", scopes="books:read")  # wrong
def scoped() -> str:
    return ""


@mcp.route("/pay", methods="POST")  # wrong
async def pay(request: Request) -> Response:
    return Response()


Settings(portt=9000)  # wrong
Settings(allowed_hosts="mcp.example.com")  # wrong
Server("shop", versoin="1.0.0")  # wrong
Options(tmeout=5)  # wrong
OAuth(clientid="desk")  # wrong
BlockingClient("http://127.0.0.1:8000/mcp", tiemout=5)  # wrong
Limits(max_round=3)  # wrong

# Values
Message("system", "hello")  # wrong
ResourceLink("book://1")  # wrong
Icon("tea.png", theme="blue")  # wrong
Field(gte=1)  # wrong
auth.keys(b"secret")  # wrong
auth.oidc("https://id.example.com", audience="https://mcp.example.com/mcp", scops=["a"])  # wrong
auth.oidc("https://id.example.com", audience="https://mcp.example.com/mcp", scopes="a")  # wrong
auth.jwt(issuer="https://id.example.com", audience="https://mcp.example.com/mcp", algorithms="RS256")  # wrong
auth.keys(named_keys={"ada": ("key", "books:read")})  # wrong
auth.issuer("https://mcp.example.com", users="users.json")  # wrong
auth.google("https://mcp.example.com", allow="@example.com")  # wrong
auth.google("https://mcp.example.com", allow=["@example.com"], scops=["a"])  # wrong
auth.github("https://mcp.example.com", allow=["octocat"], scope_includes={"a": "b"})  # wrong
auth.client("desk", redirect_uris="https://desk.example.com/back")  # wrong
auth.oidc("https://id.example.com", audience="https://mcp.example.com/mcp", scopes={"a"}, scope_includes={"a": ["b"]})
auth.google("https://mcp.example.com", allow={"@example.com": ["a"]}, scopes=("b",))
auth.keys(named_keys={"ada": ("key", ["books:read"]), "bob": "other"})
ToolError()


async def clients(client: Client) -> None:
    Client("http://127.0.0.1:8000/mcp", timeout="5s")  # wrong
    with client:  # wrong
        pass
    list(client.tools())  # wrong
    client.list_tool()  # wrong
    (await client.call("add", a=1))["sum"]  # wrong
    async with millstream.testing.connect(mcp) as connected:
        await connected.cal("add", a=1)  # wrong
        assert_type((await connected.call("add", a=1)).is_error, bool)


def scripts(client: BlockingClient) -> None:
    client.cal("add", a=1)  # wrong
    client.watch("shop://stock")  # wrong
    client.call("add", a=1, result_type=int).append(1)  # wrong
    client.tools(frsh=True)  # wrong
    client.read(5)  # wrong
    client.transport()  # wrong
