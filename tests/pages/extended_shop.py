"""A shop with tasks, skills, and events."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from millstream import Context, Server, ToolError
from millstream.extensions.events import Events
from millstream.extensions.skills import Skills

mcp = Server("extended", serve="all")
events = mcp.extend(Events(poll_pause=0.2))
skills = mcp.extend(Skills())
skills.add(str(Path(__file__).parents[2] / "examples" / "skills"))
printed = asyncio.Event()


@dataclass
class Approval:
    approved: bool


@events.event("order.paid")
@dataclass
class OrderPaid:
    """A customer paid an order."""

    order: str
    customer: str


@skills.skill(dynamic=True)
def opening_hours() -> str:
    """Say when the shop is open."""
    return "Nine to *five*."


@mcp.tool
async def pay(order: str, customer: str = "ada") -> str:
    """Pay an order."""
    await events.publish(OrderPaid(order, customer))
    return f"Paid {order}"


@mcp.tool(task="allowed")
async def print_catalog(ctx: Context) -> str:
    """Print the catalog, page by page, until the task is canceled."""
    await ctx.progress(1, 2, "First page")
    printed.clear()
    await printed.wait()
    return "The catalog is printed."


@mcp.tool
async def finish_catalog() -> str:
    """Let the press finish."""
    printed.set()
    return "Soon."


@mcp.tool(task="required")
async def reorder(ctx: Context) -> str:
    """Order books again, if the person approves."""
    approval = await ctx.elicit("Order ten of each?", Approval)
    if not approval.approved:
        raise ToolError("Nothing was ordered.")
    return "Ordered."
