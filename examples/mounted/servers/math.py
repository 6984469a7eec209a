"""MathServer."""

from millstream import Server

mcp = Server("MathServer")


@mcp.tool(description="A simple add tool")
def add_two(n: int) -> int:
    return n + 2
