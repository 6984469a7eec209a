"""Our server for the benchmarks: the tool `add`, and BENCH_TOOLS more."""

import os
from collections.abc import Awaitable, Callable

from benches import wire
from millstream import Context, Server, auth

tokens = os.environ.get("BENCH_AUTH") == "jwt"
mcp = Server(
    "bench",
    version="1",
    auth=auth.jwt(issuer=wire.ISSUER, audience=wire.AUDIENCE, secret=wire.SECRET) if tokens else None,
)


@mcp.tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


if "BENCH_LOGGED" in os.environ:

    @mcp.tool
    async def add_logged(a: int, b: int, ctx: Context) -> int:
        """Add two numbers, and log five messages."""
        for number in range(5):
            await ctx.info(f"message {number}")
        return a + b


def another(number: int) -> Callable[[int, int], Awaitable[int]]:
    """A tool of the same shape under another name."""

    async def more(a: int, b: int) -> int:
        return a + b + number

    more.__name__ = f"add_{number}"
    more.__doc__ = f"Add two numbers and {number}."
    return more


for number in range(1, int(os.environ.get("BENCH_TOOLS", "1"))):
    mcp.tool(another(number))
