"""The order service: it asks the user service, and publishes each order on the hub."""

import logging
from typing import Annotated
from uuid import uuid4

from services import HUB, USERS, connect

from millstream import Field, Server, ToolError
from millstream.client import ClientError, ToolFailed

mcp = Server("orders")
logger = logging.getLogger("orders")


@mcp.tool
async def place_order(user: str, item: str, copies: Annotated[int, Field(ge=1)] = 1) -> dict[str, str | int]:
    """Order copies of an item for a user."""
    try:
        async with connect(USERS) as users:
            found = (await users.call("get_user", user=user)).data
        order = {"order": uuid4().hex, "user": user, "name": found["name"], "item": item, "copies": copies}
        async with connect(HUB) as hub:
            await hub.call("publish_order", order=order)
    except ToolFailed as exc:  # its text is for the caller, too
        raise ToolError(str(exc)) from exc
    except ClientError as exc:  # its text has addresses, which are for the log
        logger.warning("An order couldn't be placed: %s", exc)
        raise ToolError("Another service doesn't respond. Check whether the order was placed, or order later.") from exc
    return order


if __name__ == "__main__":
    mcp.run(transport="http")
