"""An extension of MCP, on a server and on a client. It uses public names only, so it could be a package of its own."""

# region: extension
from msgspec import Struct

from millstream import Client, Context, Server
from millstream.extensions import Extension, ListRequest, Next, method, notification
from millstream.protocol import Json


class Query(Struct):
    isbn: str


class Amount(Struct):
    copies: int


class Stock(Extension):
    """Answer how many copies of a book are left, and count what clients say they sold."""

    name = "com.example/stock"
    settings = {"unit": "copy"}

    def __init__(self) -> None:
        self.copies = {"9780261103573": 7}

    @method("com.example/stock")
    async def stock(self, query: Query, ctx: Context) -> Amount:
        return Amount(self.copies.get(query.isbn, 0))

    @notification("com.example/sold")
    async def sold(self, query: Query, ctx: Context) -> None:
        self.copies[query.isbn] -= 1

    async def on_list(self, request: ListRequest, next: Next) -> list[Json]:
        items: list[Json] = await next(request)
        return [{**item, "_meta": {**item.get("_meta", {}), "com.example/stock": True}} for item in items]


mcp = Server("bookshop", extensions=[Stock()])


@mcp.tool
async def order(isbn: str, ctx: Context) -> str:
    """Order a book."""
    if "com.example/stock" in ctx.client.extensions:
        await ctx.notify("com.example/ordered", {"isbn": isbn})
    return f"Ordered {isbn}"


# endregion


# region: client
class Orders(Extension):
    """Declare the extension, mark each request, and collect what the server says."""

    name = "com.example/stock"

    def __init__(self) -> None:
        self.ordered: list[str] = []

    @notification("com.example/ordered", side="client")
    async def note(self, query: Query) -> None:
        self.ordered.append(query.isbn)


async def restock(url: str) -> int:
    async with Client(url, extensions=[Orders()]) as client:
        if "com.example/stock" not in client.server_extensions:
            return 0
        await client.notify("com.example/sold", {"isbn": "9780261103573"})
        left = await client.request("com.example/stock", {"isbn": "9780261103573"})
        return int(left["copies"])


# endregion

if __name__ == "__main__":
    mcp.run()
