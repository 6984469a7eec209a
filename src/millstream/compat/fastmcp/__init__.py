"""`FastMCP` and related names of the official SDK, version 1.

To port a program, replace ``mcp.server.fastmcp`` with ``millstream.compat.fastmcp`` in its imports. This module has
the names of ``mcp.server.auth``, ``mcp.server.session``, ``mcp.server.elicitation``, and ``mcp.shared``, too. Those of
``mcp.types`` are in `millstream.compat.types`.
"""

from millstream.compat.fastmcp import _prompts as base
from millstream.compat.fastmcp._auth import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    AuthorizeError,
    AuthSettings,
    ClientRegistrationOptions,
    OAuthAuthorizationServerProvider,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthToken,
    ProviderTokenVerifier,
    RefreshToken,
    RegistrationError,
    RevocationOptions,
    TokenError,
    TokenVerifier,
    construct_redirect_uri,
    get_access_token,
)
from millstream.compat.fastmcp._content import Audio, Image
from millstream.compat.fastmcp._context import (
    AcceptedElicitation,
    AcceptedUrlElicitation,
    CancelledElicitation,
    Context,
    DeclinedElicitation,
    ElicitationResult,
    RequestContext,
    ServerSession,
)
from millstream.compat.fastmcp._exceptions import (
    FastMCPError,
    InvalidSignature,
    McpError,
    ResourceError,
    ToolError,
    UrlElicitationRequiredError,
    ValidationError,
)
from millstream.compat.fastmcp._prompts import AssistantMessage, Message, Prompt, UserMessage
from millstream.compat.fastmcp._resources import (
    BinaryResource,
    DirectoryResource,
    FileResource,
    FunctionResource,
    ReadResourceContents,
    Resource,
    ResourceTemplate,
    TextResource,
)
from millstream.compat.fastmcp._server import FastMCP
from millstream.compat.fastmcp._settings import Settings, TransportSecuritySettings
from millstream.compat.fastmcp._tools import Tool
from millstream.compat.types import Annotations, Icon, ToolAnnotations

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
    "CancelledElicitation",
    "ClientRegistrationOptions",
    "Context",
    "DeclinedElicitation",
    "DirectoryResource",
    "ElicitationResult",
    "FastMCP",
    "FastMCPError",
    "FileResource",
    "FunctionResource",
    "Icon",
    "Image",
    "InvalidSignature",
    "McpError",
    "Message",
    "OAuthAuthorizationServerProvider",
    "OAuthClientInformationFull",
    "OAuthClientMetadata",
    "OAuthToken",
    "Prompt",
    "ProviderTokenVerifier",
    "ReadResourceContents",
    "RefreshToken",
    "RegistrationError",
    "RequestContext",
    "Resource",
    "ResourceError",
    "ResourceTemplate",
    "RevocationOptions",
    "ServerSession",
    "Settings",
    "TextResource",
    "TokenError",
    "TokenVerifier",
    "Tool",
    "ToolAnnotations",
    "ToolError",
    "TransportSecuritySettings",
    "UrlElicitationRequiredError",
    "UserMessage",
    "ValidationError",
    "base",
    "construct_redirect_uri",
    "get_access_token",
]
