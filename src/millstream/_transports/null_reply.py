"""Calls of callers that hear nothing but the answer: REST, and the JSON dialect of the WebSocket."""

from collections.abc import Callable
from typing import Any

from millstream._protocol.jsonrpc import RequestId
from millstream._protocol.revisions import Revision
from millstream._server.calls.call import NOBODY, Call


class NullReplyChannel:
    """A way back on which nothing travels."""

    __slots__ = ()
    asks = False

    async def send(self, message: bytes) -> None:
        """Drop it."""

    def push(self, message: bytes) -> bool:
        """Drop it."""
        return True

    async def interrupt(self, retry_ms: int | None) -> bool:
        """There is no way to come back for the rest."""
        return False

    def on_close(self, callback: Callable[[], None]) -> Callable[[], None]:
        """It never closes."""
        return _nothing

    async def keep_alive(self) -> None:
        """There is nothing to show."""


def _nothing() -> None:
    return None


NULL_REPLY = NullReplyChannel()


def silent_call(revision: Revision, method: str, params: bytes, *, id: RequestId = 0, **way: Any) -> Call:
    """Return a call without a client of its own, to be run by `Dispatcher.outcome`; `way` is what the transport
    adds.
    """
    return Call(revision=revision, id=id, method=method, params=params, client=NOBODY, line=NULL_REPLY, **way)
