"""The keys of a server, in code: two from the environment, and a file for everyone else."""

import os

from millstream import Server, auth


# region: named
def named() -> auth.AnyAuthMethod:
    """Two keys with names, from the environment."""
    desk, robot = os.environ["DESK_KEY"], os.environ["ROBOT_KEY"]
    return auth.keys(named_keys={"desk": (desk, ["notes:write"]), "robot": robot})


# endregion


# region: file
def from_file(path: str) -> Server:
    """The keys in a file, and those with names."""
    return Server("archive", auth=[auth.keys(file=path), named()])


# endregion
