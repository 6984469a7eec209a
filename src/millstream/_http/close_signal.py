"""Common parts of reply channels: the close signal, the last frame, and the reply for a failed handler."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from secrets import token_hex

from millstream._http.message import Response, refusal

LARGE = 64 * 1024
"""A larger piece counts against `max_unsent` as a whole until its last byte is sent. Transports write it at once."""
_logger = logging.getLogger("millstream")


class CloseSignal:
    """A signal that calls its registered callbacks once, when it closes."""

    __slots__ = ("_callbacks", "_waiters", "closed")

    def __init__(self) -> None:
        self.closed = False
        self._callbacks: list[Callable[[], None]] = []
        self._waiters: Sequence[asyncio.Future[None]] = ()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when the signal closes, or immediately if it already has."""
        if self.closed:
            callback()
        else:
            self._callbacks.append(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Remove a callback."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def connection_lost(self) -> None:
        """Close. Idempotent. If a callback raises, the others still run."""
        if self.closed:
            return
        self.closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                _logger.exception("A callback for the end of a stream failed.")

    async def wait_closed(self) -> None:
        """Wait until the signal closes."""
        if self.closed:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters = (*self._waiters, waiter)
        await waiter


class LastFrame:
    """The last frame, cached because a broadcast writes the same bytes to every client."""

    __slots__ = ("data", "framed", "is_large")

    def __init__(self) -> None:
        self.data = b""
        self.framed = b""
        self.is_large = False
        """Whether it has more than `LARGE` bytes."""


def failure(exc: BaseException, method: str, path: str) -> Response:
    """Log an exception of a handler under an identifier, and return a reply that shows only the identifier."""
    identifier = token_hex(8)
    _logger.error("%s %a failed [%s]", method, path, identifier, exc_info=exc)
    return refusal(500, f"Internal error {identifier}.")
