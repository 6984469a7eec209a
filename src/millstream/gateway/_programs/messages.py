"""Conversion of messages to the MCP SDK's types, which all libraries of this package use on their streams."""

from importlib import import_module
from typing import Any

from millstream._protocol.jsonrpc import Envelope, decoder, encode

_decode = decoder(dict[str, Any])


class Messages:
    """Creates and reads messages of the installed SDK."""

    def __init__(self) -> None:
        types: Any = import_module("mcp.types")
        self._session_message: Any = import_module("mcp.shared.message").SessionMessage
        self._request: Any = types.JSONRPCRequest
        self._notification: Any = types.JSONRPCNotification
        self._response: Any = types.JSONRPCResponse
        self._error: Any = types.JSONRPCError
        # In 1.x, a model around the four; in 2.x, their union.
        self._message: Any = types.JSONRPCMessage if isinstance(types.JSONRPCMessage, type) else None

    def make(self, data: bytes) -> Any:
        """Return a message as an object of the SDK.

        Args:
            data: complete JSON-RPC message.
        """
        members = _decode(data)
        if "method" not in members:
            model = self._response if "result" in members else self._error
        else:
            model = self._request if "id" in members else self._notification
        parsed = model.model_validate(members)
        return self._session_message(parsed if self._message is None else self._message(parsed))

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
