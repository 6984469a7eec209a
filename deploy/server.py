"""What the image runs unless you give it a server of your own."""

from datetime import UTC, datetime

from millstream import Context, Server

mcp = Server("millstream", instructions="Tell the time and pass messages on.", serve=["hub", "metrics", "rest"])


@mcp.tool
def get_current_time() -> str:
    """The time now, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@mcp.tool
async def send_message(text: str, ctx: Context, channel: str = "broadcast") -> str:
    """Send a message to everybody who listens to a channel."""
    sent = await mcp.hub.publish(channel, text)
    return f"Message {sent.id} is on its way."
