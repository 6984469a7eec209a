"""A proxy for two programs at once, mounted on a server."""

import os

from fastmcp import FastMCP
from fastmcp.server import create_proxy

command, *arguments = os.environ["BEHIND"].split()
entry = {"command": command, "args": arguments}
mcp = FastMCP("outer")
mcp.mount(create_proxy({"mcpServers": {"one": entry, "two": entry}}), namespace="all")

if __name__ == "__main__":
    mcp.run(show_banner=False)
