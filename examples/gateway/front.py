"""A gateway in code: the tools of another server beside one of its own."""

import sys
from pathlib import Path

from millstream import Server

mcp = Server("front")
mcp.upstream("shop", [sys.executable, str(Path(__file__).with_name("shop.py"))])


@mcp.tool
def opening_hours() -> str:
    """Return when the shop is open."""
    return "9 to 5"
