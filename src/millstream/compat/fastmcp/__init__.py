"""`FastMCP` and what stands beside it in the official SDK's server module and in fastmcp.

In a program for the SDK, ``from mcp.server.fastmcp import FastMCP`` becomes ``from millstream.compat.fastmcp import
FastMCP``. A program for fastmcp imports from `millstream.compat.fastmcp.standalone` instead, which differs where the
two libraries do.
"""

from millstream.compat._types import Annotations, Icon, ToolAnnotations
from millstream.compat.fastmcp import _prompts as base
from millstream.compat.fastmcp._calling import ReadResourceContents
from millstream.compat.fastmcp._context import Context, RequestContext
from millstream.compat.fastmcp._dependencies import (
    CurrentAccessToken,
    CurrentContext,
    CurrentFastMCP,
    CurrentHeaders,
    CurrentRequest,
    Depends,
    get_access_token,
    get_context,
    get_http_headers,
    get_http_request,
)
from millstream.compat.fastmcp._elicitation import (
    AcceptedElicitation,
    AcceptedUrlElicitation,
    CancelledElicitation,
    DeclinedElicitation,
    ElicitationResult,
)
from millstream.compat.fastmcp._exceptions import (
    FastMCPError,
    InvalidSignature,
    McpError,
    NotFoundError,
    PromptError,
    ResourceError,
    ToolError,
    UrlElicitationRequiredError,
    ValidationError,
)
from millstream.compat.fastmcp._lifespans import Lifespan, lifespan
from millstream.compat.fastmcp._media import Audio, File, Image
from millstream.compat.fastmcp._middleware import CallNext, Middleware, MiddlewareContext
from millstream.compat.fastmcp._prompts import AssistantMessage, Message, Prompt, PromptResult, UserMessage
from millstream.compat.fastmcp._provider import (
    AuthorizationCode,
    AuthorizationParams,
    AuthorizeError,
    OAuthAuthorizationServerProvider,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthToken,
    RefreshToken,
    RegistrationError,
    TokenError,
    construct_redirect_uri,
)
from millstream.compat.fastmcp._resolving import Elicit, ListRoots, Resolve, Sample
from millstream.compat.fastmcp._resources import (
    BinaryResource,
    DirectoryResource,
    FileResource,
    FunctionResource,
    HttpResource,
    Resource,
    ResourceContent,
    ResourceResult,
    TextResource,
)
from millstream.compat.fastmcp._server import FastMCP, MCPServer
from millstream.compat.fastmcp._session import ServerSession
from millstream.compat.fastmcp._settings import Settings, TransportSecuritySettings
from millstream.compat.fastmcp._sign_in import (
    AccessToken,
    AuthSettings,
    ClientRegistrationOptions,
    ProviderTokenVerifier,
    RevocationOptions,
    TokenVerifier,
)
from millstream.compat.fastmcp._templates import ResourceTemplate
from millstream.compat.fastmcp._tools import Tool, ToolResult

MCPError = McpError
"""What SDK 2.x calls it."""
FunctionTool = Tool
"""What fastmcp calls a tool that is made of a function, as all of ours are."""

__all__ = [
    "AcceptedElicitation",
    "AcceptedUrlElicitation",
    "AccessToken",
    "Annotations",
    "AssistantMessage",
    "Audio",
    "AuthSettings",
    "AuthorizationCode",
    "AuthorizationParams",
    "AuthorizeError",
    "BinaryResource",
    "CallNext",
    "CancelledElicitation",
    "ClientRegistrationOptions",
    "Context",
    "CurrentAccessToken",
    "CurrentContext",
    "CurrentFastMCP",
    "CurrentHeaders",
    "CurrentRequest",
    "DeclinedElicitation",
    "Depends",
    "DirectoryResource",
    "Elicit",
    "ElicitationResult",
    "FastMCP",
    "FastMCPError",
    "File",
    "FileResource",
    "FunctionResource",
    "FunctionTool",
    "HttpResource",
    "Icon",
    "Image",
    "InvalidSignature",
    "Lifespan",
    "ListRoots",
    "MCPError",
    "MCPServer",
    "McpError",
    "Message",
    "Middleware",
    "MiddlewareContext",
    "NotFoundError",
    "OAuthAuthorizationServerProvider",
    "OAuthClientInformationFull",
    "OAuthClientMetadata",
    "OAuthToken",
    "Prompt",
    "PromptError",
    "PromptResult",
    "ProviderTokenVerifier",
    "ReadResourceContents",
    "RefreshToken",
    "RegistrationError",
    "RequestContext",
    "Resolve",
    "Resource",
    "ResourceContent",
    "ResourceError",
    "ResourceResult",
    "ResourceTemplate",
    "RevocationOptions",
    "Sample",
    "ServerSession",
    "Settings",
    "TextResource",
    "TokenError",
    "TokenVerifier",
    "Tool",
    "ToolAnnotations",
    "ToolError",
    "ToolResult",
    "TransportSecuritySettings",
    "UrlElicitationRequiredError",
    "UserMessage",
    "ValidationError",
    "base",
    "construct_redirect_uri",
    "get_access_token",
    "get_context",
    "get_http_headers",
    "get_http_request",
    "lifespan",
]
