"""A program that serves with two workers: `python examples/several_workers.py`."""

# region: run
import os

from millstream import Server

mcp = Server("several-workers")


@mcp.tool
async def answered_by() -> int:
    """The number of the process that answers."""
    return os.getpid()


if __name__ == "__main__":
    mcp.run(port=8000, workers=2)
# endregion
