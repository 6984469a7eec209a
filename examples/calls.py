"""What a tool learns about its call. ``millstream dev calls.py``."""

# region: caller
import hashlib
import time
from dataclasses import dataclass

from millstream import Context, Server, SyncContext, ToolError

mcp = Server("calls")


@dataclass
class Caller:
    user: str
    client: str
    revision: str
    request: str


@mcp.tool
async def who_am_i(ctx: Context) -> Caller:
    """Say who calls, and how."""
    return Caller(
        user=ctx.principal.subject if ctx.principal else "anyone",
        client=f"{ctx.client.name} {ctx.client.version}",
        revision=ctx.revision,
        request=str(ctx.request_id),
    )


# endregion


# region: sync
@mcp.tool
def checksum(text: str, ctx: SyncContext, rounds: int = 3) -> str:
    """Hash text several times."""
    for number in range(1, rounds + 1):
        if ctx.cancelled:
            raise ToolError("Stopped.")
        text = hashlib.sha256(text.encode()).hexdigest()
        ctx.progress(number, rounds)
    return text


# endregion


# region: admins
@mcp.tool
async def delete_logs(ctx: Context) -> str:
    """Delete the logs."""
    if ctx.principal is None or not ctx.principal.has(["admin"]):
        raise ToolError("Only administrators can delete the logs.")
    return "Deleted."


# endregion


# region: helper
async def load(ctx: Context, names: list[str]) -> list[str]:
    """Load several files, and tell the caller how far we are."""
    for number, name in enumerate(names, 1):
        await ctx.progress(number, len(names), f"Loading {name}")
    return names


@mcp.tool
async def load_all(ctx: Context) -> list[str]:
    """Load every file."""
    return await load(ctx, ["a.csv", "b.csv"])


# endregion


# region: resource
@mcp.resource("clock://now")
async def now() -> float:
    """Seconds since 1970."""
    return time.time()


@mcp.tool
async def hours_since(moment: float, ctx: Context) -> float:
    """Hours that have passed since a moment."""
    seconds: float = await ctx.read_resource("clock://now")
    return round((seconds - moment) / 3600, 1)


# endregion

if __name__ == "__main__":
    mcp.run()
