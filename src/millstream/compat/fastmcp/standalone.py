"""The names of the package fastmcp, with its ways: ``from millstream.compat.fastmcp.standalone import FastMCP``."""

from millstream.compat.fastmcp.context import Context
from millstream.compat.fastmcp.dependencies import CurrentContext, Depends, get_context, get_http_headers
from millstream.compat.fastmcp.exceptions import NotFoundError, PromptError, ResourceError, ToolError, ValidationError
from millstream.compat.fastmcp.media import Audio, File, Image
from millstream.compat.fastmcp.middleware import Middleware, MiddlewareContext
from millstream.compat.fastmcp.prompts import Message, Prompt, PromptResult
from millstream.compat.fastmcp.resources import (
    FileResource,
    FunctionResource,
    Resource,
    ResourceContent,
    ResourceResult,
    ResourceTemplate,
    TextResource,
)
from millstream.compat.fastmcp.server import StandaloneFastMCP as FastMCP
from millstream.compat.fastmcp.tools import Tool, ToolResult

__all__ = [
    "Audio",
    "Context",
    "CurrentContext",
    "Depends",
    "FastMCP",
    "File",
    "FileResource",
    "FunctionResource",
    "Image",
    "Message",
    "Middleware",
    "MiddlewareContext",
    "NotFoundError",
    "Prompt",
    "PromptError",
    "PromptResult",
    "Resource",
    "ResourceContent",
    "ResourceError",
    "ResourceResult",
    "ResourceTemplate",
    "TextResource",
    "Tool",
    "ToolError",
    "ToolResult",
    "ValidationError",
    "get_context",
    "get_http_headers",
]
