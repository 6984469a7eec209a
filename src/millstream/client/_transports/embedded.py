"""A server object as a client sees it: something that can run in this process."""

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from millstream._server.dispatch import Dispatcher


class Running(Protocol):
    """What a server is while it runs."""

    @property
    def dispatcher(self) -> "Dispatcher":
        """What answers."""
        ...


class Embedded(Protocol):
    """A server object, such as `millstream.Server`."""

    def running(self) -> AbstractAsyncContextManager[Running]:
        """Run it for the length of the block."""
        ...
