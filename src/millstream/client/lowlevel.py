"""Forward raw messages to servers, and write transports: for gateways and other programs between clients and servers.

A `Conversation` is a connection whose requests and results stay JSON. `find_server` says what a target is, for programs
that start its process themselves. `DuplexTransport` and `StdioTransport` are base classes of your own transports.

Example:
    >>> conversation = Conversation(url, relay, Options(), revision=None, headers={}, timeout=60.0)
    >>> await conversation.start()
    >>> result = await conversation.requests.ask(RawRequest(method="tools/list"))
"""

from millstream.client._conversation import Conversation
from millstream.client._questions import QuestionHandler
from millstream.client._requests import NO_HANDSHAKE, Era, RawRequest
from millstream.client._server_messages import Notification
from millstream.client._targets import Remote, find_server
from millstream.client._transports import DuplexTransport
from millstream.client._transports.stdio import Command, StdioTransport

__all__ = [
    "NO_HANDSHAKE",
    "Command",
    "Conversation",
    "DuplexTransport",
    "Era",
    "Notification",
    "QuestionHandler",
    "RawRequest",
    "Remote",
    "StdioTransport",
    "find_server",
]
