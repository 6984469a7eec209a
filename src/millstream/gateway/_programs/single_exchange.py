"""Requests of the per-request era to a server of the SDK 2.x: one call each, without a session and its streams.

This is what the SDK's own HTTP transport does, because such a request depends on no earlier one.
"""

import asyncio
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import msgspec

from millstream._protocol.jsonrpc import Envelope, decoder
from millstream.gateway._programs.messages import encode_error, encode_members

Deliver = Callable[[Envelope, int], None]
"""Delivers a notification: ``deliver(notification, request id)``."""


class _Request(msgspec.Struct):
    params: dict[str, Any] = {}


_decode = decoder(_Request)


class SingleExchange:
    """Answers requests independently of each other."""

    def __init__(self, server: Any, lifespan_state: Any) -> None:
        """Prepare to call a low-level server.

        Args:
            server: server of the SDK 2.x.
            lifespan_state: state that its lifespan yielded.

        Raises:
            ImportError, AttributeError: this version is organized differently.
        """
        runner: Any = import_module("mcp.server.runner")
        inbound: Any = import_module("mcp.shared.inbound")
        self._server = server
        self._state = lifespan_state
        self._serve: Any = runner.serve_one
        self._error_of: Any = runner.modern_error_data
        self._classify: Any = inbound.classify_inbound_request
        self._rejection: Any = inbound.InboundLadderRejection
        self._connection: Any = import_module("mcp.server.connection").Connection.from_envelope
        transport: Any = import_module("mcp.shared.transport_context").TransportContext
        self._transport: Any = transport(kind="memory", can_send_request=False)
        self._refusal: Any = import_module("mcp.shared.exceptions").NoBackChannelError

    async def answer(self, method: str, body: bytes, request_id: int, deliver: Deliver) -> Envelope:
        """Return the response to a request.

        Args:
            method: method of the request.
            body: complete message.
            request_id: id of the request.
            deliver: receives the notifications that precede the response.
        """
        params = _decode(body).params
        route = self._classify({"method": method, "params": params})
        if isinstance(route, self._rejection):
            return Envelope(request_id, "", b"", error=encode_error(route))
        connection = self._connection(route.protocol_version, route.client_info, route.client_capabilities)
        context = _DispatchContext(self._transport, request_id, params, deliver, self._refusal)
        try:
            result = await self._serve(
                self._server, context, method, params, connection=connection, lifespan_state=self._state
            )
        except Exception as exc:  # handlers can raise anything
            return Envelope(request_id, "", b"", error=encode_error(self._error_of(exc)))
        finally:
            context.closed = True
        return Envelope(request_id, "", b"", encode_members(result))


class _DispatchContext:
    """One request as the SDK's handlers see it: `mcp.shared.dispatcher.DispatchContext`."""

    __slots__ = ("_cancelled", "_deliver", "_refusal", "_token", "closed", "request_id", "transport")

    can_send_request = False
    message_metadata = None

    def __init__(
        self, transport: Any, request_id: int, params: Mapping[str, Any], deliver: Deliver, refusal: Any
    ) -> None:
        self.transport: Any = transport
        self.request_id: int = request_id
        self._token: Any = params.get("_meta", {}).get("progressToken")
        self._deliver = deliver
        self._refusal = refusal
        self._cancelled: Any = None
        self.closed: bool = False

    @property
    def cancel_requested(self) -> Any:
        """An event that's never set: canceling a request cancels its task."""
        if self._cancelled is None:
            self._cancelled = asyncio.Event()
        return self._cancelled

    async def send_raw_request(self, method: str, params: Any, opts: Any = None) -> dict[str, Any]:
        raise self._refusal(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: Any = None) -> None:
        if not self.closed:
            data = b"" if params is None else encode_members(params)
            self._deliver(Envelope(None, method, data), self.request_id)

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        if self._token is None:
            return
        members = {"progressToken": self._token, "progress": progress, "total": total, "message": message}
        present = {name: value for name, value in members.items() if value is not None}
        await self.notify("notifications/progress", present)
