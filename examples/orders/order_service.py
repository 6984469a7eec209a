"""The order service: it asks the user service, and publishes each order on the hub."""

from uuid import uuid4

from services import HUB, USERS, connect

from millstream import Server, ToolError
from millstream.client import ToolFailed

mcp = Server("orders")


@mcp.tool
async def place_order(user: str, item: str, copies: int = 1) -> dict[str, str | int]:
    """Order copies of an item for a user."""
    try:
        async with connect(USERS) as users:
            found = (await users.call("get_user", user=user)).data
    except ToolFailed as exc:  # its text is for the caller, too
        raise ToolError(str(exc)) from exc
    order = {"order": uuid4().hex, "user": user, "name": found["name"], "item": item, "copies": copies}
    async with connect(HUB) as hub:
        await hub.call("publish_order", order=order)
    return order


if __name__ == "__main__":
    mcp.run(transport="http")
