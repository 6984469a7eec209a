"""A server of a team, whose members each have a key."""

import os

from millstream import Server, auth

people = auth.keys(
    named_keys={
        "Ada": (os.environ["ADA_KEY"], ["millstream:publish"]),
        "Bob": (os.environ["BOB_KEY"], ["millstream:publish"]),
    }
)
mcp = Server("team", serve="all", auth=people)
