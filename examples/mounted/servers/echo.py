"""EchoServer."""

from millstream import Server

mcp = Server("EchoServer")


@mcp.tool(description="A simple echo tool")
def echo(message: str) -> str:
    return f"Echo: {message}"
