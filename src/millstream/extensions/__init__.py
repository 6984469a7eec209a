"""Extensions of MCP: methods, notifications, capabilities, and hooks, for servers and clients. See `Extension`.

Everything public here follows the versions of the package: a change that breaks an extension needs a new major version.

Example:
    ``Server("shop", extensions=[Stock()])`` and ``Client(url, extensions=[Stock()])``
"""

from millstream._protocol.errors import CustomResult
from millstream._server.features.hooks import ListRequest, MessageRequest, Next, Request
from millstream.client._extensions import ClientHost, Outgoing, OutgoingRequest
from millstream.extensions._context import CallContext, ReplyStream
from millstream.extensions._extension import Extension, method, notification
from millstream.extensions._host import ServerHost, Subscription

__all__ = [
    "CallContext",
    "ClientHost",
    "CustomResult",
    "Extension",
    "ListRequest",
    "MessageRequest",
    "Next",
    "Outgoing",
    "OutgoingRequest",
    "ReplyStream",
    "Request",
    "ServerHost",
    "Subscription",
    "method",
    "notification",
]
