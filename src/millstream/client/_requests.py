"""Requests of a client: ids, timeouts, rounds of questions, and reconnection.

One `Requests` handles all concurrent calls of a client. It doesn't depend on the methods.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.jsonrpc import MALFORMED, encode
from millstream._protocol.notifications import InputRequiredResult
from millstream._tasks import retry_delay
from millstream.client._errors import (
    ClientError,
    ConnectionLost,
    InvalidResponse,
    RequestTimeout,
    ServerError,
    SessionLost,
)
from millstream.client._negotiation import Connection, Connector, Options, exchange, request_body, with_meta
from millstream.client._questions import QuestionHandler, answer_all
from millstream.client._server_messages import OnProgress, ServerMessages
from millstream.client._transports import TransportRequest

_INPUT_REQUIRED = b'"input_required"'
_MIN_WAIT = 0.05
_MAX_WAIT = 5.0
_MAX_RESTARTS = 3
"""Maximum consecutive connections that may be lost during setup."""

_decode_required = foreign_decoder(InputRequiredResult)

OnReconnect = Callable[[Connection], Awaitable[None]]
"""Restores the state of the old connection on a new one."""


class RawRequest(Struct, kw_only=True):
    """One request, as specified by the caller: ``RawRequest(method="tools/call", params=body, name="add")``."""

    method: str
    params: bytes = b"{}"
    """Encoded parameters."""
    name: str = ""
    """Name of the tool, prompt, or resource, for a header."""
    headers: Mapping[str, str] = {}
    """`Mcp-Param-…` headers."""
    timeout: float = 0
    """Timeout in seconds; 0 for the client's default."""
    progress: OnProgress | None = None
    repeatable: bool = False
    """Whether the request only reads."""
    id: int = 0
    """Request id from `Requests.ids`, if the caller must know it beforehand."""
    meta: bytes = b""
    """`_meta` members as JSON without braces, instead of the connection's default ones."""
    wrapped: bool = False
    """Whether the extensions' hooks already wrap the request."""
    rounds: bool = True
    """Whether to answer the questions of the result; False returns an `input_required` result unchanged."""
    owner: str = ""
    """The caller against whose share the reply counts while it arrives, if there are several."""


NOT_CONNECTED = "The client isn't connected. Use `async with Client(…) as client:`."


class Requests(Struct):
    """Sends the requests for one server."""

    connector: Connector
    incoming: ServerMessages
    questions: QuestionHandler
    options: Options
    ids: Iterator[int]
    timeout: float
    on_reconnect: OnReconnect | None = None
    around: Callable[[RawRequest], Awaitable[bytes]] | None = None
    """Hooks of extensions around each request."""
    connection: Connection | None = None
    last: Connection | None = None
    """The newest connection, even after it was lost."""
    lock: asyncio.Lock = msgspec.field(default_factory=asyncio.Lock)

    async def connect(self, *, first: bool = False) -> Connection:
        """Return the connection, reconnecting if the last one was lost.

        Raises:
            ClientError: The client is closed, or it isn't open yet and this isn't the `first` connection.
        """
        connection = self.connection
        if connection is not None and not connection.transport.lost:
            return connection
        if self.last is None and not first:
            raise ClientError(NOT_CONNECTED)
        return await self._renew(connection)

    async def _renew(self, old: Connection | None) -> Connection:
        """Return a connection other than `old`. The first of concurrent callers opens it."""
        async with self.lock:
            if self.connection is not None and self.connection is not old:
                return self.connection
            reconnecting = self.last is not None
            if self.connection is not None:
                ended, self.connection = self.connection, None
                self.incoming.on_interruption(ended.transport, SessionLost("The next request reconnects, if possible."))
                await ended.transport.close()
            connection = self.connection = self.last = await self._open(_MAX_RESTARTS if reconnecting else 0)
        if reconnecting and self.on_reconnect is not None:
            with contextlib.suppress(ServerError):
                await self.on_reconnect(connection)
        return connection

    async def _open(self, more: int) -> Connection:
        for attempt in range(more):
            try:
                return await self.connector.open()
            except ConnectionLost:
                await asyncio.sleep(retry_delay(2 * attempt, _MIN_WAIT, _MAX_WAIT))
        return await self.connector.open()

    async def close(self) -> None:
        """Close the session and the connection."""
        connection, self.connection, self.last = self.connection, None, None
        self.incoming.deadlines.close()
        if connection is not None:
            await connection.transport.close()

    async def ask(self, ask: RawRequest) -> bytes:
        """Send a request and return the raw result, after any rounds of questions.

        Raises:
            ServerError: The server responded with an error.
            ClientError: There was no response.
        """
        if self.around is not None and not ask.wrapped:
            ask.wrapped = True
            return await self.around(ask)
        rounds = 0
        since = 0.0
        extra = b""
        while True:
            result = await self._once(ask, extra)
            if _INPUT_REQUIRED not in result or not ask.rounds:
                return result
            required = _input_required(result)
            if required is None:
                return result
            if not required.input_requests and required.request_state is None:
                raise InvalidResponse(f"The server requires input for {ask.method}, but sent no questions.")
            rounds += 1
            if rounds > self.options.max_rounds:
                raise InvalidResponse(
                    f"The server asked {rounds} times without returning a result (Options.max_rounds)."
                )
            now = asyncio.get_running_loop().time()
            since = 0.0 if required.input_requests else since or now
            if since and now - since > (ask.timeout or self.timeout):  # rounds without questions
                raise RequestTimeout(f"The server postponed its response to {ask.method} {rounds} times.")
            extra = await self._answers(required, rounds, ask.id)

    async def _answers(self, required: InputRequiredResult, rounds: int, request_id: int) -> bytes:
        """Return the members to add to the parameters of the next round."""
        members: dict[str, Any] = {}
        if required.input_requests:
            members["inputResponses"] = await answer_all(
                self.questions, required.input_requests, "The server", request_id
            )
        else:
            await asyncio.sleep(retry_delay(rounds, _MIN_WAIT, _MAX_WAIT))
        if required.request_state is not None:
            members["requestState"] = required.request_state
        return encode(members)[1:-1]

    async def _once(self, ask: RawRequest, extra: bytes) -> bytes:
        """Send one round. Retry it on a new connection if that's safe."""
        connection = self.connection
        if connection is None or connection.transport.lost:
            connection = await self.connect()
        try:
            return await self.send(connection, ask, extra)
        except SessionLost:
            # The server hasn't processed the request: https://modelcontextprotocol.io/specification/2025-11-25/basic
            return await self.send(await self._renew(connection), ask, extra)
        except ConnectionLost:
            if not ask.repeatable or (connection.negotiated.revision.handshake and not connection.transport.lost):
                raise
            connection = await self._renew(connection) if connection.transport.lost else connection
            return await self.send(connection, ask, extra)

    def send(self, connection: Connection, ask: RawRequest, extra: bytes = b"") -> Coroutine[Any, Any, bytes]:
        """Send one request on one connection, and return its result."""
        request_id = ask.id or next(self.ids)
        params = ask.params
        if extra:
            params = params[:-1] + (b"" if params == b"{}" else b",") + extra + b"}"
        meta = ask.meta or connection.meta
        if ask.progress is not None:
            meta = b'%b%b"progressToken":%d' % (meta, b"," if meta else b"", request_id)
        body = request_body(request_id, ask.method, with_meta(params, meta))
        request = TransportRequest(request_id, ask.method, body, ask.name, ask.headers, None, ask.repeatable, ask.owner)
        return exchange(
            self.incoming,
            connection.transport,
            request,
            ask.timeout or self.timeout,
            self.options.max_call_seconds,
            ask.progress,
        )


def _input_required(result: bytes) -> InputRequiredResult | None:
    try:
        required = _decode_required(result)
    except MALFORMED:
        return None
    return required if required.result_type == "input_required" else None
