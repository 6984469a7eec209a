"""A server with sessions, started as on the page."""

from millstream.compat.fastmcp import FastMCP

# Stateful server (maintains session state)
mcp = FastMCP("StatefulServer")


@mcp.tool()
def greet(name: str = "world") -> str:
    return f"Hello, {name}!"


# Run server with streamable_http transport
mcp.run(transport="streamable-http")
