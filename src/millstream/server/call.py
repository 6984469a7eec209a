"""One request in flight, whatever carried it; and the `Line` by which messages go back to its caller.

A `Call` is made by a transport, run by the dispatcher, and seen by user code through `Context`.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from millstream.protocol.jsonrpc import RequestId
from millstream.protocol.metadata import Client, ProgressToken
from millstream.protocol.principal import Principal
from millstream.protocol.revisions import Revision
from millstream.server.sessions import Session


class Line(Protocol):
    """The way back to one caller. Messages are whole JSON-RPC messages without framing, sent in order."""

    asks: bool
    """Requests can travel to the client on this line, and their answers find their way back."""

    async def send(self, message: bytes) -> None:
        """Send with back-pressure. A line whose client is gone drops the message, or keeps it for a resume."""
        ...

    def push(self, message: bytes) -> bool:
        """Send without waiting; False when the line is closed, or was cut because the client reads too slowly."""
        ...

    async def interrupt(self, retry_ms: int | None) -> bool:
        """Close the connection but not the call, where the client can come back for the rest."""
        ...


class Call:
    """A request on its way through the server. One exists for each request in flight; user code sees `Context`."""

    __slots__ = (
        "arguments",
        "cancelled",
        "client",
        "connect",
        "headers",
        "id",
        "line",
        "log_level",
        "meta",
        "method",
        "expired",
        "name",
        "nudged",
        "params",
        "principal",
        "progress",
        "replay",
        "reported",
        "responses",
        "revision",
        "services",
        "session",
        "started",
        "state",
        "status",
        "target",
        "task",
        "token",
        "total",
    )

    def __init__(
        self,
        revision: Revision,
        id: RequestId,
        method: str,
        *,
        client: Client,
        connect: "Callable[[Call], Line] | None" = None,
        line: Line | None = None,
        session: Session | None = None,
        principal: Principal | None = None,
        headers: Mapping[bytes, bytes] | None = None,
        name: str = "",
        params: bytes = b"",
        token: ProgressToken | None = None,
        log_level: str = "",
    ) -> None:
        # What was asked
        self.revision = revision
        self.id = id
        self.method = method
        self.name = name
        self.params = params
        """Raw JSON of `params`; empty on the path where `target` and `arguments` are decoded already."""
        self.target: Any = None
        self.arguments: Any = None
        self.responses: Mapping[str, Any] | None = None
        """`inputResponses` of a multi-round request, raw values."""
        self.state: str = ""
        """`requestState` as the client echoed it."""
        self.token = token
        self.log_level = log_level
        # Who asked
        self.client = client
        self.session = session
        self.principal = principal
        self.headers = headers
        # The way back
        self.connect = connect
        """Opens the line at first use, where the reply may also be a single message."""
        self.line = line
        self.meta: dict[str, Any] | None = None
        """`_meta` of the result, beside what the revision puts there."""
        self.status = 200
        """HTTP status of the reply, where it is a single message."""
        # Progress of the work
        self.services: Any = None
        """`Services` of the running server; set by the dispatcher."""
        self.task: asyncio.Task[Any] | None = None
        self.started = 0.0
        self.cancelled = False
        self.expired = False
        self.progress = 0.0
        self.reported: float | None = None
        """The last progress that user code reported."""
        self.nudged = False
        """The server reported progress on its own."""
        self.total: float | None = None
        self.replay: Any = None
        """Rounds of this call (`server.rounds.Replay`), made when user code first asks."""

    def open_line(self) -> Line:
        """The line, opened when it was not yet."""
        line = self.line
        if line is None:
            assert self.connect is not None  # noqa: S101  a call has a line or can make one
            line = self.line = self.connect(self)
        return line

    def cancel(self) -> None:
        """Stop the work because the caller does not want the answer any more."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()

    def expire(self) -> None:
        """Stop work that took longer than any call may."""
        self.expired = True
        self.cancel()
