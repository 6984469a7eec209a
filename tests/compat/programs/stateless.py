"""A server without sessions and streams, started as on the page."""

from millstream.compat.fastmcp import FastMCP

# Stateless server (no session persistence, no sse stream with supported client)
mcp = FastMCP("StatelessServer", stateless_http=True, json_response=True)


@mcp.tool()
def greet(name: str = "world") -> str:
    return f"Hello, {name}!"


# Run server with streamable_http transport
mcp.run(transport="streamable-http")
