"""Calls whose callers receive only the answer: REST, and the JSON dialect of the WebSocket."""

from collections.abc import Callable
from typing import Any

from millstream._protocol.jsonrpc import RequestId
from millstream._protocol.revisions import Revision
from millstream._server.calls.call import NOBODY, Call


class NullReplyChannel:
    """A reply channel that discards everything."""

    __slots__ = ()
    asks = False

    async def send(self, message: bytes) -> None:
        """Discard the message."""

    def push(self, message: bytes) -> bool:
        """Discard the message."""
        return True

    async def interrupt(self, retry_ms: int | None) -> bool:
        """Return False, because the client can't resume."""
        return False

    def on_close(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Do nothing, because the channel never closes."""
        return _nothing

    async def keep_alive(self) -> None:
        """Do nothing, because there is no stream."""


def _nothing() -> None:
    return None


NULL_REPLY = NullReplyChannel()


def silent_call(revision: Revision, method: str, params: bytes, *, id: RequestId = 0, **way: Any) -> Call:
    """Return a call without a client, for `Dispatcher.outcome`. `way` has the transport's fields."""
    return Call(revision=revision, id=id, method=method, params=params, client=NOBODY, reply_channel=NULL_REPLY, **way)
