"""What every transport of a client can do, and what it's given to do."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from millstream._protocol.jsonrpc import Envelope
from millstream._protocol.revisions import Revision
from millstream.client._errors import ClientError


class Request(Struct, gc=False):
    """One request on its way."""

    id: int
    method: str
    body: bytes
    """The whole message."""
    name: str = ""
    """What `Mcp-Name` says, where a transport has headers."""
    params: Mapping[str, str] = {}
    """`Mcp-Param-…` headers."""
    revision: Revision | None = None
    """The revision that the message is written for, where it isn't yet the one agreed on."""
    repeatable: bool = False
    """It only reads, so it may be sent again when a connection breaks."""


class Listener(Protocol):
    """Who hears what the server says unasked."""

    wanted: asyncio.Event
    """Set while somebody waits for what comes outside of calls."""

    def receive(self, message: Envelope, transport: "Transport", request_id: int = 0) -> None:
        """Take a request or notification of the server, and the request on whose stream it came, if there's one."""

    def interrupted(self, transport: "Transport", fault: ClientError | None) -> None:
        """Nothing comes outside of calls any more, because of the fault; without a fault, something was missed."""


class Transport(Protocol):
    """One way to one server. Exchanges run side by side."""

    @property
    def name(self) -> str:
        """As in `Client.transport`."""
        ...

    @property
    def lost(self) -> bool:
        """Whether the connection is gone for good, so that a new one is needed."""
        ...

    async def open(self) -> None:
        """Connect, where this transport has a connection.

        Raises:
            ClientError: it can't.
        """

    def agreed(self, revision: Revision) -> None:
        """Both sides know the revision; what follows is sent in its words."""

    async def exchange(self, request: Request) -> Envelope:
        """Send a request and wait for its answer. A caller that is cancelled has the request cancelled.

        Raises:
            ClientError: there's no answer.
        """
        ...

    async def send(self, message: bytes, method: str) -> None:
        """Send a notification, or the answer (without a method) to a request of the server.

        Raises:
            ClientError: it can't be sent.
        """

    async def close(self) -> None:
        """Say goodbye and end everything, process and connections included."""
