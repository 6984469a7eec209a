import math

from bad_input.shop import make_shop
from millstream import Context
from wire import per_request, routing, run_wire


async def test_progress_must_be_finite() -> None:
    mcp = make_shop()

    @mcp.tool
    async def counts(ctx: Context) -> str:
        """Report valid and invalid progress."""
        await ctx.progress(math.nan, 3)
        await ctx.progress(1, math.inf)
        await ctx.progress(math.inf)
        await ctx.progress(2, 3)
        return "counted"

    async with run_wire(mcp, "asgi") as wire:
        call = per_request("tools/call", {"name": "counts"})
        call["params"]["_meta"]["progressToken"] = "t"
        reply = await wire.post(call, routing("tools/call", "counts"))
        *reports, answer = reply.messages
        assert [report["params"] for report in reports] == [
            {"progressToken": "t", "progress": 1},
            {"progressToken": "t", "progress": 2, "total": 3},
        ]
        assert answer["result"]["content"][0]["text"] == "counted"
