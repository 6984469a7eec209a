"""A cart for each user, which all workers share and a restart keeps: an extension with values in the store."""

# region: carts
from msgspec.json import decode, encode

from millstream import Context, Server, ToolError
from millstream.extensions import Extension, Host
from millstream.stores import StoreFull, share_for

WEEK = 7 * 86400.0


class Carts(Extension):
    name = "com.example/cart"

    async def open(self, host: Host) -> None:
        self.map = host.map

    async def add(self, owner: str, isbn: str) -> list[str]:
        key = f"{self.name}:{share_for(owner)}.books"
        while True:
            before = await self.map.get(key)
            books = [*decode(before or b"[]", type=list[str]), isbn]
            if await self.map.compare_and_set(key, before, encode(books), WEEK):
                return books


carts = Carts()
mcp = Server("bookshop", extensions=[carts])


@mcp.tool
async def add_to_cart(isbn: str, ctx: Context) -> list[str]:
    """Put a book into the caller's cart."""
    if ctx.principal is None:
        raise ToolError("Sign in to use a cart.")
    try:
        return await carts.add(ctx.principal.id, isbn)
    except StoreFull:
        raise ToolError("Your cart is full.") from None


# endregion
