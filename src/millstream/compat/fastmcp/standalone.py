"""The names of the package fastmcp, with its ways: ``from millstream.compat.fastmcp.standalone import FastMCP``.

Beside `FastMCP`, everything is what `millstream.compat.fastmcp` has.
"""

from millstream.compat.fastmcp import *  # noqa: F403  the names are those of the door
from millstream.compat.fastmcp import __all__ as _names

__all__ = sorted({*_names, "FastMCP"})
