"""An inventory that logs for its callers and for you. ``millstream dev inventory.py``."""

# region: both
import logging

from millstream import Context, Server

mcp = Server("inventory")
logger = logging.getLogger("inventory")

BOXES = {"A1": 12, "A2": 0, "B1": 7}


@mcp.tool
async def tidy(ctx: Context) -> str:
    """Remove empty boxes."""
    empty = [box for box, items in BOXES.items() if items == 0]
    for box in empty:
        del BOXES[box]
    await ctx.info({"removed": empty})
    logger.info("Removed empty boxes", extra={"boxes": empty})
    return f"Removed {', '.join(empty) or 'nothing'}."


# endregion

if __name__ == "__main__":
    mcp.run()
