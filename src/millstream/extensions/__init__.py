"""Extensions of MCP: methods, notifications, capabilities, and hooks, for servers and clients. See `Extension`.

The public names of this package follow semantic versioning: a change that breaks extensions needs a new major version.

Example:
    ``Server("shop", extensions=[Stock()])`` and ``Client(url, extensions=[Stock()])``
"""

from millstream._protocol.content import ToolAnnotationsDict
from millstream._protocol.errors import CustomResult, LocalError
from millstream._protocol.handlers import NotificationMessage
from millstream._protocol.principal import Share
from millstream._protocol.seal import RoundEntry, RoundState, Ticket
from millstream._server.calls.call import scopes_of
from millstream._server.features import ListRequest, MessageRequest, Next, Request
from millstream._server.features.tools import TaskRules, ToolOptions
from millstream._tasks import Tasks, cancel_all
from millstream._troubles import LogOnce, Trouble, Troubles, run_on
from millstream.client._extensions import ClientHost, Outgoing, OutgoingRequest
from millstream.extensions._calls import (
    CallContext,
    CallRun,
    JsonType,
    LimitReached,
    PendingCall,
    ReplyStream,
    RunOutcome,
    SavedCall,
    SlotLimit,
    Slots,
    format_time,
)
from millstream.extensions._extension import Extension, method, notification
from millstream.extensions._host import Host, ListenSubscription

__all__ = [
    "CallContext",
    "CallRun",
    "ClientHost",
    "CustomResult",
    "Extension",
    "Host",
    "JsonType",
    "LimitReached",
    "ListRequest",
    "ListenSubscription",
    "LocalError",
    "LogOnce",
    "MessageRequest",
    "Next",
    "NotificationMessage",
    "Outgoing",
    "OutgoingRequest",
    "PendingCall",
    "ReplyStream",
    "Request",
    "RoundEntry",
    "RoundState",
    "RunOutcome",
    "SavedCall",
    "Share",
    "SlotLimit",
    "Slots",
    "TaskRules",
    "Tasks",
    "Ticket",
    "ToolAnnotationsDict",
    "ToolOptions",
    "Trouble",
    "Troubles",
    "cancel_all",
    "format_time",
    "method",
    "notification",
    "run_on",
    "scopes_of",
]
