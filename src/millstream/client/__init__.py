"""The MCP client, for servers of all revisions, over each of MCP's transports. See `Client`.

``from millstream.client import Options, OAuth`` imports only the modules that define those names, and the errors.
"""

from typing import TYPE_CHECKING, Any

from millstream._lazy import import_name
from millstream.client._errors import (
    AccessDenied,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    NotMcp,
    NotSupported,
    RequestTimeout,
    ServerError,
    SessionLost,
    SkillMismatch,
    TargetError,
    TlsFailed,
    TooLarge,
    ToolFailed,
    TooManyMessages,
    TooMuchArriving,
    UnknownVersion,
    UnsendableRequest,
)

if TYPE_CHECKING:
    from millstream._http.client.url import Url, parse_url
    from millstream._protocol.handlers import NotificationFilters
    from millstream.client._blocking_client import BlockingClient
    from millstream.client._client import Client
    from millstream.client._endpoint import Auth
    from millstream.client._events import ClientEvents, EventDescription, EventSubscription, ServerEvent, Webhook
    from millstream.client._extensions import ClientExtension
    from millstream.client._oauth import (
        FileTokenStore,
        MemoryTokenStore,
        Registration,
        StoredCredentials,
        Tokens,
        TokenStore,
    )
    from millstream.client._oauth.endpoints import IssuerMetadata, Outbound
    from millstream.client._oauth.flow import (
        GrantSource,
        IdentityProvider,
        OAuth,
        PendingAuthorization,
        WorkloadIdentity,
    )
    from millstream.client._questions import ElicitAnswer, Question, Roots
    from millstream.client._requests import ServerInfo
    from millstream.client._results import PaginatedList, Result
    from millstream.client._targets import Target, mcp_servers
    from millstream.client._tasks import ClientTasks, Task, TaskError
    from millstream.client._transports import Listener, Options, Transport, TransportFactory, TransportRequest
    from millstream.client._watches import Changes

_HOMES = {
    "Auth": "_endpoint",
    "BlockingClient": "_blocking_client",
    "Changes": "_watches",
    "Client": "_client",
    "ClientEvents": "_events",
    "ClientExtension": "_extensions",
    "ClientTasks": "_tasks",
    "ElicitAnswer": "_questions",
    "EventDescription": "_events",
    "EventSubscription": "_events",
    "FileTokenStore": "_oauth",
    "GrantSource": "_oauth.flow",
    "IdentityProvider": "_oauth.flow",
    "IssuerMetadata": "_oauth.endpoints",
    "Listener": "_transports",
    "MemoryTokenStore": "_oauth",
    "NotificationFilters": "._protocol.handlers",
    "OAuth": "_oauth.flow",
    "Options": "_transports",
    "Outbound": "_oauth.endpoints",
    "PaginatedList": "_results",
    "PendingAuthorization": "_oauth.flow",
    "Question": "_questions",
    "Registration": "_oauth",
    "Result": "_results",
    "Roots": "_questions",
    "ServerEvent": "_events",
    "ServerInfo": "_requests",
    "StoredCredentials": "_oauth",
    "Target": "_targets",
    "Task": "_tasks",
    "TaskError": "_tasks",
    "TokenStore": "_oauth",
    "Tokens": "_oauth",
    "Transport": "_transports",
    "TransportFactory": "_transports",
    "TransportRequest": "_transports",
    "Url": "._http.client.url",
    "Webhook": "_events",
    "WorkloadIdentity": "_oauth.flow",
    "mcp_servers": "_targets",
    "parse_url": "._http.client.url",
}
"""Public name -> module, imported on first use, so that a program without OAuth doesn't load the OAuth flow."""

__all__ = [
    "AccessDenied",
    "Auth",
    "BlockingClient",
    "Changes",
    "Client",
    "ClientError",
    "ClientEvents",
    "ClientExtension",
    "ClientTasks",
    "ConnectFailed",
    "ConnectionLost",
    "ElicitAnswer",
    "EventDescription",
    "EventSubscription",
    "FileTokenStore",
    "GrantSource",
    "IdentityProvider",
    "InvalidResponse",
    "IssuerMetadata",
    "Listener",
    "MemoryTokenStore",
    "NotMcp",
    "NotSupported",
    "NotificationFilters",
    "OAuth",
    "Options",
    "Outbound",
    "PaginatedList",
    "PendingAuthorization",
    "Question",
    "Registration",
    "RequestTimeout",
    "Result",
    "Roots",
    "ServerError",
    "ServerEvent",
    "ServerInfo",
    "SessionLost",
    "SkillMismatch",
    "StoredCredentials",
    "Target",
    "TargetError",
    "Task",
    "TaskError",
    "TlsFailed",
    "TokenStore",
    "Tokens",
    "TooLarge",
    "TooManyMessages",
    "TooMuchArriving",
    "ToolFailed",
    "Transport",
    "TransportFactory",
    "TransportRequest",
    "UnknownVersion",
    "UnsendableRequest",
    "Url",
    "Webhook",
    "WorkloadIdentity",
    "mcp_servers",
    "parse_url",
]


def __getattr__(name: str) -> Any:
    return import_name(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
