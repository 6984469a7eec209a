"""The keys of a server, in code: two from the environment, and a file for everyone else."""

import os
from typing import Any

from millstream import Server, auth

DESK_KEY = os.environ.get("DESK_KEY", "a-key-of-the-desk-for-trials")
ROBOT_KEY = os.environ.get("ROBOT_KEY", "a-key-of-the-robot-for-trials")


# region: named
def named() -> Any:
    """Two keys with names, from the environment."""
    return auth.keys(named_keys={"desk": (DESK_KEY, ["notes:write"]), "robot": ROBOT_KEY})


# endregion


# region: file
def from_file(path: str) -> Server:
    """The keys in a file, and those with names."""
    return Server("archive", auth=[auth.keys(file=path), named()])


# endregion
