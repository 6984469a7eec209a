"""Forward raw messages to servers and write transports: for gateways and other programs between clients and servers.

A `Conversation` is a connection that keeps requests and results as JSON. `DuplexTransport` and `StdioTransport` are
base classes for your own transports.

Example:
    >>> conversation = Conversation(url, relay, Options(), revision=None, headers={}, timeout=60.0)
    >>> await conversation.start()
    >>> result = await conversation.requests.ask(RawRequest(method="tools/list"))
"""

from millstream.client._conversation import Conversation
from millstream.client._questions import QuestionHandler
from millstream.client._requests import Connection, OpenSession, RawRequest
from millstream.client._server_messages import Notification
from millstream.client._transports import DuplexTransport
from millstream.client._transports.stdio import Command, StdioTransport
from millstream.client._watches import WatchingRequests

__all__ = [
    "Command",
    "Connection",
    "Conversation",
    "DuplexTransport",
    "Notification",
    "OpenSession",
    "QuestionHandler",
    "RawRequest",
    "StdioTransport",
    "WatchingRequests",
]
