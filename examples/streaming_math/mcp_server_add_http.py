"""All of it over HTTP: POST /mcp, GET /mcp/sse/{client_id}, /health and /docs, for any HTTP client.

``python mcp_server_add_http.py`` serves on port 8000; `app` is for other ASGI servers.
"""

import argparse

from millstream import Context, Server

# region: server
mcp = app = Server("streaming-math", version="1.0.0", serve="all")
Number = int | float


@mcp.tool
async def add_numbers(a: Number, b: Number, ctx: Context, stream: bool = False) -> Number:
    """Add two numbers; with stream=true, report each step."""
    if stream:
        await steps(ctx, a, b, "Adding")
    return a + b


@mcp.tool
async def multiply_numbers(a: Number, b: Number, ctx: Context, stream: bool = False) -> Number:
    """Multiply two numbers; with stream=true, report each step."""
    if stream:
        await steps(ctx, a, b, "Multiplying")
    return a * b


async def steps(ctx: Context, a: Number, b: Number, what: str) -> None:
    """Tell the client how far the call is."""
    await ctx.progress(1, 3, f"First number: {a}")
    await ctx.progress(2, 3, f"Second number: {b}")
    await ctx.progress(3, 3, what)


# endregion


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Numbers over HTTP.")
    options.add_argument("--port", type=int, default=8000)
    mcp.run("http", port=options.parse_args().port)
