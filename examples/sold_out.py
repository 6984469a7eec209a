"""A bookshop that logs for its callers and for you. ``millstream dev sold_out.py``."""

# region: both
import logging

from millstream import Context, Server

mcp = Server("bookshop")
logger = logging.getLogger("bookshop")

STOCK = {"9780261103573": 12, "9780141439600": 0}


@mcp.tool
async def remove_sold_out(ctx: Context) -> str:
    """Remove books that are sold out."""
    gone = [isbn for isbn, copies in STOCK.items() if copies == 0]
    for isbn in gone:
        del STOCK[isbn]
    await ctx.info({"removed": gone})
    logger.info("Removed sold-out books", extra={"books": gone})
    return f"Removed {', '.join(gone) or 'nothing'}."


# endregion

if __name__ == "__main__":
    mcp.run()
