"""The names of the package fastmcp, with its ways: ``from millstream.compat.fastmcp.standalone import FastMCP``.

What both packages have is what `millstream.compat.fastmcp` has.
"""

from millstream.compat import fastmcp
from millstream.compat.fastmcp import *  # noqa: F403  the list of names stands in one place
from millstream.compat.fastmcp._behind import ProxyClient, StatefulProxyClient
from millstream.compat.fastmcp._guarding import (
    ErrorHandlingMiddleware,
    RateLimitError,
    RateLimitingMiddleware,
    RetryMiddleware,
    SlidingWindowRateLimitingMiddleware,
)
from millstream.compat.fastmcp._marking import prompt, resource, tool
from millstream.compat.fastmcp._openapi import MCPType, OpenAPIResource, OpenAPIResourceTemplate, OpenAPITool, RouteMap
from millstream.compat.fastmcp._openapi_routes import HTTPRoute
from millstream.compat.fastmcp._providers import OpenAPIProvider, ProxyProvider
from millstream.compat.fastmcp._server import FastMCPProxy, create_proxy
from millstream.compat.fastmcp._server import StandaloneFastMCP as FastMCP
from millstream.compat.fastmcp._transforming import ArgTransform, TransformedTool, forward, forward_raw
from millstream.compat.fastmcp._transforming import StandaloneTool as FunctionTool
from millstream.compat.fastmcp._transforming import StandaloneTool as Tool
from millstream.compat.fastmcp._watching import (
    DetailedTimingMiddleware,
    LoggingMiddleware,
    StructuredLoggingMiddleware,
    TimingMiddleware,
)

__all__ = [
    "ArgTransform",
    "DetailedTimingMiddleware",
    "ErrorHandlingMiddleware",
    "FastMCP",
    "FastMCPProxy",
    "FunctionTool",
    "HTTPRoute",
    "LoggingMiddleware",
    "MCPType",
    "OpenAPIProvider",
    "OpenAPIResource",
    "OpenAPIResourceTemplate",
    "OpenAPITool",
    "ProxyClient",
    "ProxyProvider",
    "RateLimitError",
    "RateLimitingMiddleware",
    "RetryMiddleware",
    "RouteMap",
    "SlidingWindowRateLimitingMiddleware",
    "StatefulProxyClient",
    "StructuredLoggingMiddleware",
    "TimingMiddleware",
    "Tool",
    "TransformedTool",
    "create_proxy",
    "forward",
    "forward_raw",
    "prompt",
    "resource",
    "tool",
]
__all__ += fastmcp.__all__
# ruff: noqa: PYI056  pyright and mypy understand `remove`
# Names of the SDK that fastmcp doesn't have:
__all__.remove("AcceptedUrlElicitation")
__all__.remove("AuthSettings")
__all__.remove("Elicit")
__all__.remove("ListRoots")
__all__.remove("MCPServer")
__all__.remove("ReadResourceContents")
__all__.remove("Resolve")
__all__.remove("Sample")
