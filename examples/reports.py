"""A server whose calls become tasks."""

# region: server
import asyncio
from dataclasses import dataclass

from millstream import Context, Server

mcp = Server("reports")


@mcp.tool(task="allowed", task_retry=True)
async def make_report(year: int, ctx: Context) -> str:
    """Make the report of a year."""
    for month in range(1, 13):
        await ctx.progress(month, 12, f"Month {month}")
        await asyncio.sleep(0.1)
    return f"The report of {year} is ready."


# endregion


# region: questions
@dataclass
class Approval:
    approved: bool


@mcp.tool(task="required", defer_task=True)
async def publish(year: int, ctx: Context) -> str:
    """Publish the report of a year, if the person approves."""
    approval = await ctx.elicit(f"Publish the report of {year}?", Approval)
    if not approval.approved:
        return "Not published."
    await ctx.start_task()
    await asyncio.sleep(0.1)
    return f"The report of {year} is public."


# endregion
