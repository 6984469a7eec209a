"""One request in flight, whatever carried it; and the `Line` by which messages go back to its caller.

A `Call` is made by a transport, run by the dispatcher, and seen by user code through `Context`.
"""

from collections.abc import Awaitable, Callable, Mapping
from math import nan
from typing import Any, Protocol

from msgspec import Struct

from millstream.protocol.jsonrpc import RequestId
from millstream.protocol.metadata import Client, ProgressToken
from millstream.protocol.principal import Principal
from millstream.protocol.revisions import Revision
from millstream.server.calls.sessions import Session


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


class Call(Struct, eq=False, kw_only=True):
    """A request on its way through the server. One exists for each request in flight; user code sees `Context`.

    A Struct because one is made for every request, without a Python call.
    """

    # What was asked
    revision: Revision
    id: RequestId
    method: str
    name: str = ""
    params: bytes = b""
    """Raw JSON of `params`; empty on the path where `tool` and `arguments` are decoded already."""
    tool: Any = None
    """The `Tool` of a call that the transport has prepared: decoded, checked, ready to run."""
    arguments: Any = None
    responses: Mapping[str, Any] | None = None
    """`inputResponses` of a multi-round request, raw values."""
    state: str = ""
    """`requestState` as the client echoed it."""
    token: ProgressToken | None = None
    log_level: str = ""
    # Who asked
    client: Client
    session: Session | None = None
    principal: Principal | None = None
    headers: Mapping[bytes, bytes] | None = None
    # The way back
    open_reply: "Callable[[Call], Line] | None" = None
    """Opens the line at first use, where the reply may also be a single message."""
    line: Line | None = None
    meta: dict[str, Any] | None = None
    """`_meta` of the result, beside what the revision puts there."""
    status: int = 200
    """HTTP status of the reply, where it is a single message."""
    tee: "Callable[[bytes], Awaitable[None]] | None" = None
    """Also takes progress and response: the stream of a client that asked for one (``stream: true``)."""
    transport: str = ""
    """What carried it, for observers: http, sse, stdio, websocket, rest, memory."""
    root_path: str = ""
    """Where the server is mounted."""
    stream_url: str = ""
    """Where a mirrored call can be listened to."""
    client_id: str = ""
    """Whose stream that is, where the transport was told."""
    outcome: str = ""
    """How it ended, for observers: empty for success, ``tool_error``, or the JSON-RPC error code."""
    incident: str = ""
    """Identifier under which the log has the details of an unexpected failure."""
    # Progress of the work
    services: Any = None
    """`Services` of the running server; set by the dispatcher."""
    canceller: Any = None
    """What carried the request, if it can be cancelled: it has ``cancel``."""
    stop: Callable[[], object] | None = None
    """Cancels the task of the call, where no carrier does."""
    started: float = 0.0
    """When the sweep first saw it."""
    cancelled: bool = False
    expired: bool = False
    progress: float = 0.0
    total: float | None = None
    reported: float | None = None
    """The last progress that user code reported."""
    reported_before: float | None = nan
    """What `reported` was at the last heartbeat; not a number before the first."""
    nudged: bool = False
    """The server reported progress on its own."""
    replay: Any = None
    """Rounds of this call (`protocol.rounds.Replay`), made when user code first asks."""

    def open_line(self) -> Line:
        """The line, opened when it was not yet."""
        line = self.line
        if line is None:
            assert self.open_reply is not None  # noqa: S101  a call has a line or can make one
            line = self.line = self.open_reply(self)
        return line

    def cancel(self) -> None:
        """Stop the work because the caller does not want the answer any more."""
        self.cancelled = True
        stop = self.stop if self.canceller is None else self.canceller.cancel
        if stop is not None:
            stop()

    def expire(self) -> None:
        """Stop work that took longer than any call may."""
        self.expired = True
        self.cancel()
