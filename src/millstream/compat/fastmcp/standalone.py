"""The names of the package fastmcp, with its ways: ``from millstream.compat.fastmcp.standalone import FastMCP``.

Beside `FastMCP`, everything is what `millstream.compat.fastmcp` has.
"""

from millstream.compat import fastmcp
from millstream.compat.fastmcp import *  # noqa: F403  the list of names stands in one place
from millstream.compat.fastmcp._behind import ProxyClient
from millstream.compat.fastmcp._openapi import MCPType, OpenAPIResource, OpenAPIResourceTemplate, OpenAPITool, RouteMap
from millstream.compat.fastmcp._openapi_routes import HTTPRoute
from millstream.compat.fastmcp._providers import OpenAPIProvider, ProxyProvider
from millstream.compat.fastmcp._server import FastMCPProxy, create_proxy
from millstream.compat.fastmcp._server import StandaloneFastMCP as FastMCP

__all__ = [
    "FastMCP",
    "FastMCPProxy",
    "HTTPRoute",
    "MCPType",
    "OpenAPIProvider",
    "OpenAPIResource",
    "OpenAPIResourceTemplate",
    "OpenAPITool",
    "ProxyClient",
    "ProxyProvider",
    "RouteMap",
    "create_proxy",
]
__all__ += fastmcp.__all__
