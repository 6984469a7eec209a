"""Requests of the per-request era to a server of the SDK 2.x, and the conversion of messages to the SDK's types.

A request becomes one call, without a session and its streams, because it depends on no earlier one. The SDK's own HTTP
transport does the same. The conversion also serves the streams of the other libraries in this package.
"""

import asyncio
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar

import msgspec

from millstream.protocol import Envelope, decoder, encode

_decode_message = decoder(dict[str, Any])


class Messages:
    """Creates and reads messages of the installed SDK."""

    def __init__(self) -> None:
        types: Any = import_module("mcp.types")
        self._session_message: Any = import_module("mcp.shared.message").SessionMessage
        # In 1.x, the type is a model around the kinds of messages; in 2.x, their union.
        self._parse: Any = import_module("pydantic").TypeAdapter(types.JSONRPCMessage).validate_python

    def make(self, data: bytes) -> Any:
        """Return a message as an object of the SDK.

        Args:
            data: Complete JSON-RPC message.
        """
        return self._session_message(self._parse(_decode_message(data)))

    def read(self, message: Any) -> tuple[Envelope, int]:
        """Return a message that a server sent, and the id of the request that it belongs to; 0 if unknown."""
        content = message.message
        content = getattr(content, "root", content)
        request_id = getattr(content, "id", None)
        method: str | None = getattr(content, "method", None)
        if method is not None:
            related: object = getattr(message.metadata, "related_request_id", None)
            envelope = Envelope(request_id, method, b"" if content.params is None else encode_members(content.params))
            return envelope, related if isinstance(related, int) else 0
        if hasattr(content, "result"):
            return Envelope(request_id, "", b"", encode_members(content.result)), 0
        return Envelope(request_id, "", b"", error=encode_error(content.error)), 0


def encode_members(value: Any) -> bytes:
    """Encode an object of the SDK as JSON."""
    try:
        return encode(value)
    except (TypeError, ValueError):  # it contains something that only pydantic can encode
        pass
    from pydantic_core import to_json  # noqa: PLC0415  few messages need it

    return to_json(value, by_alias=True, inf_nan_mode="null")


def encode_error(error: Any) -> bytes:
    """Encode an error of the SDK, with its code, message, and data, as JSON."""
    members: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.data is not None:
        members["data"] = error.data
    return encode_members(members)


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
            server: Server of the SDK 2.x.
            lifespan_state: State that its lifespan yielded.

        Raises:
            ImportError, AttributeError: This version is organized differently.
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
            method: Method of the request.
            body: Complete message.
            request_id: Id of the request.
            deliver: Receives the notifications that precede the response.
        """
        params = _decode(body).params
        route = self._classify({"method": method, "params": params})
        if isinstance(route, self._rejection):
            return Envelope(request_id, "", b"", error=encode_error(route))
        connection = self._connection(route.protocol_version, route.client_info, route.client_capabilities)
        token = params.get("_meta", {}).get("progressToken")
        context = _DispatchContext(self._transport, request_id, token, deliver, self._refusal)
        try:
            result = await self._serve(
                self._server, context, method, params, connection=connection, lifespan_state=self._state
            )
        except Exception as exc:  # handlers can raise anything
            return Envelope(request_id, "", b"", error=encode_error(self._error_of(exc)))
        finally:
            context.closed = True
        return Envelope(request_id, "", b"", encode_members(result))


class _DispatchContext(msgspec.Struct):
    """One request as the SDK's handlers see it: `mcp.shared.dispatcher.DispatchContext`."""

    transport: Any
    request_id: int
    token: Any
    """Progress token of the request; None without one."""
    deliver: Deliver
    refusal: Any
    """Raised when a handler asks the client."""
    cancel_requested: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    """Never set: canceling a request cancels its task."""
    closed: bool = False
    can_send_request: ClassVar[bool] = False
    message_metadata: ClassVar[None] = None

    async def send_raw_request(self, method: str, params: Any, opts: Any = None) -> dict[str, Any]:
        raise self.refusal(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: Any = None) -> None:
        if not self.closed:
            data = b"" if params is None else encode_members(params)
            self.deliver(Envelope(None, method, data), self.request_id)

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        if self.token is None:
            return
        members = {"progressToken": self.token, "progress": progress, "total": total, "message": message}
        present = {name: value for name, value in members.items() if value is not None}
        await self.notify("notifications/progress", present)
