"""A server that broadcasts: two tools, an event stream at /events, a WebSocket at /ws, REST, and pages.

``pip install -r requirements.txt``, then ``python main.py`` or ``uvicorn main:app`` serves it on
127.0.0.1:8000.
"""

from typing import Annotated

from millstream import Context, Field, Server

mcp = app = Server("broadcast", version="1.0.0", serve="all")


@mcp.tool(
    title="",
    description="Get information about the SSE MCP server",
    input_schema={"type": "object", "properties": {}, "required": []},
)
async def get_server_info(ctx: Context) -> str:
    """Say what this server is, and how many clients listen."""
    return f"{mcp.name} {mcp.version}, revision {ctx.revision}, {ctx.hub.stats().subscribers} listeners on this worker"


@mcp.tool(
    title="",
    description="Send a message via Server-Sent Events",
    input_schema={
        "type": "object",
        "properties": {"message": {"type": "string", "description": "The message to send"}},
        "required": ["message"],
    },
)
async def send_sse_message(message: Annotated[str, Field(description="The message to send")], ctx: Context) -> str:
    """Broadcast to all listeners."""
    sent = await ctx.hub.publish("broadcast", message, publisher=ctx.principal)
    return f"Sent to {sent.subscribers} listeners on this worker."


if __name__ == "__main__":
    mcp.run(transport="http")
