"""A shop that charges a card once, although a client may repeat its requests."""

# region: charge
import secrets

from millstream import Context, Server

mcp = Server("till")


async def charge(cents: int) -> str:
    """Take the money, and return a receipt."""
    return f"receipt {secrets.token_hex(4)} for {cents} cents"


@mcp.tool
async def pay(cents: int, ctx: Context) -> str:
    """Charge the card, after the person agrees."""
    if not await ctx.elicit(f"Charge {cents} cents?", bool):
        return "Nothing was charged."
    return await ctx.once("charge", lambda: charge(cents), store=True)


# endregion


# region: refund
@mcp.tool(idempotency="10m")
async def refund(cents: int) -> str:
    """Give money back."""
    return f"receipt {secrets.token_hex(4)} for {cents} cents that you get back"


# endregion

if __name__ == "__main__":
    mcp.run()
