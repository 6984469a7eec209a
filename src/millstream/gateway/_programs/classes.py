"""Server classes of other libraries.

This module doesn't import any of them: their objects exist only where the program has imported them.
"""

import sys
from collections.abc import Mapping

_CLASSES: Mapping[tuple[str, str], str] = {
    ("fastmcp.server", "FastMCP"): "fastmcp",
    ("mcp.server.mcpserver", "MCPServer"): "mcp",
    ("mcp.server.fastmcp", "FastMCP"): "mcp",
    ("mcp.server.lowlevel", "Server"): "mcp",
}
"""Module and name of a class -> distribution."""


class ProgramError(ValueError):
    """A program can't run here; the message says why and what to do."""


class UnsupportedVersion(ProgramError):
    """The installed version of a program's library can't be run here."""


def library_of(value: object) -> str:
    """Return the library that a server object belongs to; empty for any other object."""
    for (module, name), library in _CLASSES.items():
        found = getattr(sys.modules.get(module), name, None)
        if isinstance(found, type) and isinstance(value, found):
            return library
    return ""
