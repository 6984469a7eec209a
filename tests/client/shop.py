"""A small server with every feature for clients, for tests in memory and, as a file, over stdio."""

from dataclasses import dataclass

from millstream import Context, Server

mcp = Server("shop", instructions="Sell books.")


@dataclass
class Order:
    """An order."""

    isbn: str
    copies: int


@dataclass
class Address:
    """A shipping address."""

    street: str
    copies: int = 3


@mcp.tool
async def order(isbn: str, copies: int = 1) -> Order:
    """Order a book."""
    return Order(isbn, copies)


@mcp.tool
async def count(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@mcp.tool
async def fail() -> str:
    """Always fails."""
    raise ValueError("sold out")


@mcp.tool
async def slowly(steps: int, ctx: Context) -> str:
    """Report each step."""
    for step in range(steps):
        await ctx.progress(step + 1, steps)
    return "done"


@mcp.tool
async def say(text: str, ctx: Context) -> str:
    """Log a line."""
    await ctx.info(text)
    return text


@mcp.tool
async def deliver(ctx: Context) -> str:
    """Ask for the address."""
    address = await ctx.elicit("Where to?", Address)
    return f"{address.street}, {address.copies}"


@mcp.tool
async def review(ctx: Context) -> str:
    """Ask a model."""
    return (await ctx.sample("Review it.", max_tokens=10)).text


@mcp.tool
async def folders(ctx: Context) -> list[str]:
    """Ask for the roots."""
    return [root.uri for root in await ctx.roots()]


@mcp.resource("book://{isbn}")
async def book(isbn: str) -> str:
    """One book."""
    return f"Book {isbn}"


@mcp.resource("shop://news")
async def news() -> str:
    """The news."""
    return "Nothing"


@mcp.tool
async def publish() -> str:
    """Change the news."""
    await mcp.resource_updated("shop://news")
    return "published"


@mcp.prompt
def pitch(title: str, tone: str = "warm") -> str:
    """Praise a book."""
    return f"Praise {title}, {tone}."


def passing_by() -> str:
    """Comes and goes."""
    return "Goodbye"


@mcp.tool
async def rearrange() -> str:
    """Add a tool and remove it again."""
    mcp.tool(name="passing")(passing_by)
    mcp.remove_tool("passing")
    return "rearranged"
