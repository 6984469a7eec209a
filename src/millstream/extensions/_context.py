"""`CallContext`: the call of a custom method, and `ReplyStream`, its reply as a stream of notifications.

`JsonType`: conversion between JSON and a declared type.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from millstream._protocol.json_schema import Schema
from millstream._protocol.jsonrpc import notification_message
from millstream._server.calls.call import Call, granted_scopes
from millstream._server.calls.context import Context
from millstream._server.control import release_arguments, too_many_streams
from millstream._server.functions.engine import VALUE, engine_of_type, read_value
from millstream._server.functions.msgspec_engine import encode


class CallContext(Context):
    """The context of a custom method or notification: a `Context` that can also keep its reply open."""

    __slots__ = ()

    @property
    def scopes(self) -> frozenset[str] | None:
        """The caller's scopes; None for a caller without restrictions, such as one on standard input."""
        return granted_scopes(self._call)

    def stream(self) -> "ReplyStream":
        """Keep the reply open and send notifications on it: ``async with ctx.stream() as stream: …``."""
        return ReplyStream(self._call)


class ReplyStream:
    """The reply of a call as a stream, open until its client closes it or the server stops.

    The call has no timeout. It counts toward the caller's limit of open streams, as `subscriptions/listen` does.

    Example:
        ``async with ctx.stream() as stream:``, then ``await stream.send("com.example/sold", {"sku": "7"})`` and
        ``await stream.wait_closed()``.
    """

    __slots__ = ("_call", "_closed_event", "_unregister")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._closed_event = asyncio.Event()
        self._unregister: Callable[[], None] | None = None

    async def __aenter__(self) -> Self:
        """Open the stream.

        Raises:
            ProtocolError: The caller or the server has too many open streams.
        """
        call, services = self._call, self._call.services
        if not services.streams.take(call.owner):
            raise too_many_streams(services.streams.count(call.owner))
        call.long_lived = True
        call.params = b""  # the stream may stay open for a day
        release_arguments(call, services.bodies)
        services.endings.add(self._closed_event.set)
        line = call.open_reply_channel()
        self._unregister = line.on_close(self._closed_event.set)
        try:
            await line.keep_alive()  # opens the stream, so that `push` can be first
        except BaseException:
            self._release()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the stream, and then send the method's result."""
        self._release()

    def _release(self) -> None:
        services, owner = self._call.services, self._call.owner
        self._closed_event.set()
        services.endings.discard(self._closed_event.set)
        if self._unregister is not None:
            self._unregister()
        services.streams.leave(owner)

    @property
    def closed(self) -> bool:
        """Whether the stream ended: the client closed it or read too slowly, or the server is stopping."""
        return self._closed_event.is_set()

    async def send(self, method: str, params: Any = None) -> None:
        """Send a notification. Wait if the client reads too slowly.

        Args:
            method: Method of the notification.
            params: Its parameters, a mapping or Struct.
        """
        await self._call.send_to_caller(notification_message(method, params))

    def push(self, method: str, params: Any = None) -> bool:
        """Send a notification without waiting. Return False if the stream is closed.

        A client that reads too slowly is disconnected.

        Args:
            method: Method of the notification.
            params: Its parameters, a mapping or Struct.
        """
        if not self.closed and not self._call.push_to_caller(notification_message(method, params)):
            self._closed_event.set()
        return not self.closed

    async def wait_closed(self) -> None:
        """Wait until the stream is closed."""
        await self._closed_event.wait()


class JsonType:
    """The JSON schema of a type, and conversion of its values from and to JSON.

    It supports the types that tools support: msgspec Structs, dataclasses, TypedDicts, and pydantic models.

    Args:
        annotation: The type.

    Raises:
        TypeError: The type has no JSON schema.

    Example:
        ``JsonType(Order).read(b'{"id": "7"}')`` is an ``Order``.
    """

    def __init__(self, annotation: Any) -> None:
        self._engine = engine_of_type(annotation)
        self._whole: Schema = self._engine.input_schema

    @property
    def schema(self) -> Schema:
        """The JSON schema of the type, with its ``$defs``."""
        schema = self._whole["properties"][VALUE]
        while "$ref" in schema:
            schema = self._whole["$defs"][schema["$ref"].rpartition("/")[2]]
        if "$defs" in self._whole:
            schema = {**schema, "$defs": self._whole["$defs"]}
        return {key: value for key, value in schema.items() if key != "default"}

    def read(self, data: bytes) -> Any:
        """Return the value of JSON text.

        Args:
            data: JSON text in UTF-8.

        Raises:
            ValueError: The JSON doesn't match the type. The message lists each problem with its location.
        """
        return read_value(self._engine, data)

    @staticmethod
    def write(value: Any) -> bytes:
        """Return the JSON of a value.

        Args:
            value: The value, of any type that JSON can represent.

        Raises:
            TypeError: The value can't be encoded as JSON.
        """
        return encode(value)
