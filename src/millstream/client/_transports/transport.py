"""The interface of transports, and the requests that they send."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from msgspec import UNSET, Struct, UnsetType

from millstream._protocol.jsonrpc import MALFORMED, Envelope, decoder
from millstream._protocol.notification_filters import NotificationFilters
from millstream._protocol.revisions import Revision
from millstream.client._errors import ClientError

_logger = logging.getLogger(__name__)


class _Id(Struct):
    """The id of a response."""

    id: int
    method: UnsetType = UNSET


_decode_id = decoder(_Id)


def answered_id(data: bytes) -> int:
    """Return the id of the request that an invalid response names, so that its caller needn't wait; 0 for none."""
    try:
        return _decode_id(data).id
    except MALFORMED:
        return 0


class SkipLog:
    """Logs the first message of a connection that was skipped: servers that send one often send many."""

    def __init__(self) -> None:
        self._logged = False

    def __call__(self, why: str, data: bytes = b"") -> None:
        """Log why a message was skipped, unless another one was logged."""
        if not self._logged:
            self._logged = True
            _logger.warning("A message of the server was skipped, as others like it will be. %s: %.80r", why, data)


class TransportRequest(Struct, gc=False):
    """One request to send."""

    id: int
    method: str
    body: bytes
    """The encoded message."""
    name: str = ""
    """Value of `Mcp-Name`, for transports with headers."""
    params: Mapping[str, str] = {}
    """`Mcp-Param-…` headers."""
    revision: Revision | None = None
    """Revision of the message, before one is negotiated."""
    repeatable: bool = False
    """Whether the request only reads, so it can be sent again after a broken connection."""
    owner: str = ""
    """See `Ask.owner`."""


class Listener(Protocol):
    """Receives what the server sends outside of responses."""

    subscribed: asyncio.Event
    """Set while there are subscribers for messages outside of calls."""
    filters: NotificationFilters | None
    """Filters of notifications, if an extension has one."""

    def receive(self, message: Envelope, transport: "Transport", request_id: int = 0) -> None:
        """Receive a request or notification. `request_id` is the request on whose stream it arrived, if any."""

    def on_interruption(self, transport: "Transport", fault: ClientError | None) -> None:
        """Report that messages outside of calls have stopped, because of `fault`, or were missed if `fault` is None."""


class Transport(Protocol):
    """A connection to one server. Exchanges can run concurrently."""

    @property
    def name(self) -> str:
        """Name, as in `Client.transport`."""
        ...

    @property
    def lost(self) -> bool:
        """Whether the connection is lost for good, so a new one is needed."""
        ...

    async def open(self) -> None:
        """Connect, if this transport has a connection.

        Raises:
            ClientError: the connection failed.
        """

    def set_revision(self, revision: Revision) -> None:
        """Use the negotiated revision from now on."""

    async def exchange(self, request: TransportRequest) -> Envelope:
        """Send a request and wait for the response. Canceling the caller cancels the request.

        Raises:
            ClientError: there was no response.
        """
        ...

    async def send(self, message: bytes, method: str) -> None:
        """Send a notification, or a response (without `method`) to a request of the server.

        Raises:
            ClientError: it couldn't be sent.
        """

    async def close(self) -> None:
        """End the session, and close connections and processes."""
