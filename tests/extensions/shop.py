"""A server with an extension that uses every feature of extensions, for all transports."""

import asyncio
from typing import Any

from msgspec import Struct

from millstream import Client, Context, ProtocolError, Server
from millstream.extensions import (
    CallContext,
    ClientHost,
    CustomResult,
    Extension,
    Host,
    ListenSubscription,
    ListRequest,
    MessageRequest,
    Next,
    Outgoing,
    OutgoingRequest,
    method,
    notification,
)

NAME = "com.example/stock"


class Query(Struct):
    """The ISBN of a book."""

    isbn: str


class Amount(Struct):
    """The number of copies in stock."""

    copies: int


class Stock(Extension):
    """The stock of a shop."""

    name = NAME
    settings = {"unit": "copy"}
    client_settings = {"push": True}

    def __init__(self) -> None:
        self.copies = {"1": 7}
        self.host: Host
        self.closed = 0
        self.subscriptions: list[ListenSubscription] = []
        self.open_streams = 0
        self.heard = asyncio.Event()
        """Set when a client's notification has been handled."""
        self.ended = asyncio.Event()
        """Set when a stream or subscription has ended."""
        self.methods: list[str] = []

    def register(self, server: Server) -> None:
        """Add tools."""

        @server.tool
        async def order(isbn: str, ctx: Context) -> str:
            """Order a book."""
            if NAME in ctx.client.extensions:
                await ctx.notify("com.example/ordered", {"isbn": isbn})
            return f"Ordered {isbn}"

        @server.tool
        async def slip(isbn: str, ctx: Context) -> str:
            """Order a book. The result has a custom type."""
            raise CustomResult({"resultType": "slip", "isbn": isbn, "_meta": {"com.example/n": 1}})

    async def open(self, host: Host) -> None:
        """Register a filter of subscriptions, which has no decorator."""
        self.host = host
        host.listen("isbns", self.watch)

    async def close(self) -> None:
        """Count the calls."""
        self.closed += 1

    @method("com.example/stock")
    async def stock(self, query: Query, ctx: Context) -> Amount:
        """Return the number of copies."""
        if query.isbn == "0":
            raise ProtocolError(-31000, "No such book")
        await ctx.progress(1, 2)
        await ctx.notify("com.example/looking", {"isbn": query.isbn, "by": str(ctx.meta.get("com.example/by"))})
        return Amount(self.copies.get(query.isbn, 0))

    @method("com.example/reserve", header="isbn", declared=True)
    async def reserve(self, query: Query) -> dict[str, Any]:
        """Reserve a copy; only for clients with the extension."""
        return {"reserved": query.isbn, "_meta": {"com.example/n": 2}}

    @method("com.example/follow")
    async def follow(self, ctx: CallContext) -> None:
        """Stream until the client disconnects."""
        self.open_streams += 1
        try:
            async with ctx.stream() as stream:
                stream.push("com.example/looking", {"isbn": "followed", "by": ""})
                await stream.wait_closed()
        finally:
            self.open_streams -= 1
            self.ended.set()

    @method("com.example/tell")
    async def tell(self) -> None:
        """Broadcast a notification to all sessions."""
        self.host.broadcast("com.example/looking", {"isbn": "all", "by": ""})

    @method("com.example/name")
    async def ask_name(self, ctx: Context) -> dict[str, Any]:
        """Ask the user for a name."""
        found = await ctx.elicit("Name?", {"type": "object", "properties": {"name": {"type": "string"}}})
        return {"name": found["name"]}

    @notification("com.example/sold")
    async def sold(self, query: Query, ctx: Context) -> None:
        """Reduce the stock for clients that declared `push`."""
        self.copies[query.isbn] -= 1 if ctx.client.extensions[NAME]["push"] else 0
        self.heard.set()

    async def watch(self, wanted: Any, subscription: ListenSubscription, ctx: CallContext) -> Any:
        """Accept the known ISBNs of a subscription."""
        self.subscriptions.append(subscription)
        subscription.closes.append(lambda: self.subscriptions.remove(subscription))
        subscription.closes.append(self.ended.set)
        return [each for each in wanted if each in self.copies]

    async def on_list(self, request: ListRequest, next: Next) -> list[dict[str, Any]]:
        """Mark the listed items."""
        return [{**item, "_meta": {NAME: request.kind}} for item in await next(request)]

    async def on_message(self, request: MessageRequest, next: Next) -> dict[str, Any]:
        """Record the methods of requests."""
        self.methods.append(request.method)
        result: dict[str, Any] = await next(request)
        return result


class Peer(Extension):
    """The client side of the extension."""

    name = NAME
    client_settings = {"push": True}

    def __init__(self) -> None:
        self.looking: list[tuple[str, str]] = []
        self.ordered: list[str] = []
        self.came = asyncio.Event()
        """Set when a notification arrives."""

    @notification("com.example/looking", side="client")
    async def on_the_way(self, params: dict[str, str], client: Client) -> None:
        """Record the params."""
        assert client.server.name in ("shop", "front")
        self.looking.append((params["isbn"], params["by"]))
        self.came.set()

    def connect(self, client: ClientHost) -> None:
        """Register a handler without a decorator."""
        client.notification("com.example/ordered", self.note)

    async def note(self, query: Query) -> None:
        """Record an order."""
        self.ordered.append(query.isbn)
        self.came.set()

    async def wrap_request(self, request: OutgoingRequest, next: Outgoing) -> dict[str, Any]:
        """Mark each request and each result."""
        request.params.setdefault("_meta", {})["com.example/by"] = "peer"
        requests = {request}  # a wrapper may remember requests
        result = await next(request)
        assert request in requests
        return {**result, "com.example/seen": True}


stock = Stock()
mcp = Server("shop", extensions=[stock], serve="hub")


@mcp.tool
async def left(isbn: str) -> int:
    """Return the number of copies left."""
    return stock.copies[isbn]


if __name__ == "__main__":
    mcp.run()
