"""Chat rooms on the hub: a page, tools that talk and listen, and a rule about who may use which channel.

Run it with ``millstream run examples/rooms.py``, and open ``http://127.0.0.1:8000/`` in two tabs.
"""

# region: imports
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

# endregion
# region: server
from millstream import Context, Principal, Server


def may_use(principal: Principal | None, action: str, channel: str) -> bool:
    """Anybody may listen, and talk in rooms; announcements come from the program."""
    return action == "subscribe" or channel.startswith("room.")


mcp = Server("rooms", serve="hub", authorize_channel=may_use)
# endregion


# region: say
@mcp.tool
async def say(room: str, text: str, ctx: Context, name: str = "a guest") -> str:
    """Say something in a room."""
    sent = await ctx.hub.publish(f"room.{room}", {"name": name, "text": text}, publisher=ctx.principal)
    return f"Sent to {sent.subscribers} on this worker."


# endregion


# region: page
@mcp.route("/")
def show_lobby(request: Request) -> Response:
    """Show the page of the room "lobby"."""
    return HTMLResponse(Path(__file__).with_name("rooms.html").read_text("utf-8"))


# endregion


# region: whisper
@mcp.tool
async def whisper(client_id: str, text: str) -> str:
    """Send a message to one client. The hub keeps it while the client is offline."""
    await mcp.hub.send(client_id, {"text": text})
    return "Sent."


# endregion


# region: who
@mcp.tool
async def who(room: str) -> list[str]:
    """The names of those in a room."""
    return [member.name or member.client_id for member in await mcp.hub.presence(f"room.{room}")]


@mcp.tool
async def recent(room: str, count: int = 10) -> list[str]:
    """What was said last in a room."""
    return [(event.data or b"").decode() for event in await mcp.hub.history(f"room.{room}", count)]


# endregion


# region: announce
@mcp.tool
async def announce(text: str) -> str:
    """Tell every listener of announcements."""
    await mcp.hub.publish("announcements", text, event="announcement")
    return "Announced."


# endregion

if __name__ == "__main__":
    mcp.run()
