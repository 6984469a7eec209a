"""What the two HTTP adapters share: how a stream ends, and what a failed handler looks like from outside."""

import asyncio
import logging
from collections.abc import Callable
from secrets import token_hex

from millstream.http import TEXT_HEAD, Response

_logger = logging.getLogger("millstream.http")


class Ending:
    """The end of one stream, told once to everyone who asked."""

    __slots__ = ("_callbacks", "_waiter", "over")

    def __init__(self) -> None:
        self.over = False
        self._callbacks: list[Callable[[], None]] = []
        self._waiter: asyncio.Event | None = None

    def add(self, callback: Callable[[], None]) -> None:
        """Call back at the end; at once when it is past."""
        if self.over:
            callback()
        else:
            self._callbacks.append(callback)

    def tell(self) -> None:
        """The stream is over. Idempotent; a callback that raises does not keep the others from hearing it."""
        if self.over:
            return
        self.over = True
        if self._waiter is not None:
            self._waiter.set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                _logger.exception("A callback at the end of a stream failed.")

    async def wait(self) -> None:
        """Wait until the end has been told."""
        if self.over:
            return
        if self._waiter is None:
            self._waiter = asyncio.Event()
        await self._waiter.wait()


def failure(exc: BaseException, method: str, path: str) -> Response:
    """Log what a handler raised under an identifier and give the reply that shows only the identifier."""
    identifier = token_hex(8)
    _logger.error("%s %a failed [%s]", method, path, identifier, exc_info=exc)
    return Response(body=b"Internal error %b.\n" % identifier.encode(), status=500, head=TEXT_HEAD)
