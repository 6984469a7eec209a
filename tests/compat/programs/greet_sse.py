"""The server of a page about how SSE works in MCP."""

from millstream.compat.fastmcp import FastMCP

# 1. FastMCP creates the HTTP server
mcp = FastMCP("Hello Server")


# 2. Registers tools, resources, prompts
@mcp.tool()
def greet(name: str = "world") -> str:
    return f"Hello Hello, {name}!"


# 3. Runs with SSE transport
mcp.run(transport="sse")
