"""A server of a team, whose members each have a key."""

import os

from millstream import Principal, Server, auth

people = auth.keys(
    named_keys={
        "Ada": (os.environ["ADA_KEY"], ["millstream:publish"]),
        "Bob": (os.environ["BOB_KEY"], ["millstream:publish"]),
    }
)
mcp = Server("team", serve="all", auth=people)


@mcp.tool
async def tell(person: str, text: str) -> str:
    """Send a message to the phone of a member of the team."""
    await mcp.hub.send("phone", {"text": text}, principal=Principal(person, client=person))
    return "Sent."
