"""Server objects of other libraries as upstreams: ``mcp`` 1.x and 2.x, and fastmcp 2 to 4.

This module finds their classes and settings without importing them: their objects exist only where the program has
imported them.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

_CLASSES: Mapping[tuple[str, str], str] = {
    ("fastmcp.server", "FastMCP"): "fastmcp",
    ("mcp.server.mcpserver", "MCPServer"): "mcp",
    ("mcp.server.fastmcp", "FastMCP"): "mcp",
    ("mcp.server.lowlevel", "Server"): "mcp",
}
"""Module and name of a class -> distribution."""

_PORT = re.compile(r"(?<=.):(?:\*|\d+)\Z")


class ProgramError(ValueError):
    """A program can't run here. The message explains why and suggests a fix."""


class UnsupportedVersion(ProgramError):
    """The installed version of a program's library can't be run here."""


def library_of(value: object) -> str:
    """Return the library that a server object belongs to, or an empty string for any other object."""
    for (module, name), library in _CLASSES.items():
        found = getattr(sys.modules.get(module), name, None)
        if isinstance(found, type) and isinstance(value, found):
            return library
    return ""


def hosts_and_origins(security: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the hosts, without ports, and origins that the SDK's `TransportSecuritySettings` allow."""
    hosts = tuple(dict.fromkeys(_PORT.sub("", host) for host in security.allowed_hosts))
    return hosts, tuple(each for each in security.allowed_origins if not each.endswith(":*"))
