"""What the ways out share: how a stream ends, the frame written last, what a failed handler looks like from outside."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from secrets import token_hex

from millstream._http.message import Response, refusal

_logger = logging.getLogger("millstream")


class Ending:
    """What every way out inherits: it is open from the start, and everyone who asked hears of its end once."""

    __slots__ = ("_callbacks", "_waiters", "closed")

    def __init__(self) -> None:
        self.closed = False
        self._callbacks: list[Callable[[], None]] = []
        self._waiters: Sequence[asyncio.Future[None]] = ()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back once at the end; at once when it is past."""
        if self.closed:
            callback()
        else:
            self._callbacks.append(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call back any more."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def lost(self) -> None:
        """It is over. Idempotent; a callback that raises does not keep the others from hearing it."""
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
                _logger.exception("A callback at the end of a stream failed.")

    async def wait_closed(self) -> None:
        """Wait for the end."""
        if self.closed:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters = (*self._waiters, waiter)
        await waiter


class LastFrame:
    """The bytes framed last. A broadcast writes the same bytes to every peer, one after the other."""

    __slots__ = ("data", "framed")

    def __init__(self) -> None:
        self.data = b""
        self.framed = b""


def failure(exc: BaseException, method: str, path: str) -> Response:
    """Log what a handler raised under an identifier and give the reply that shows only the identifier."""
    identifier = token_hex(8)
    _logger.error("%s %a failed [%s]", method, path, identifier, exc_info=exc)
    return refusal(500, f"Internal error {identifier}.")
