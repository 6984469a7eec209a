"""What a client reaches without an address: a server object of this process, or anything that makes a transport."""

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from millstream.client._background import Background
from millstream.client._transports.transport import Listener, Transport

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


@runtime_checkable
class TransportFactory(Protocol):
    """A target that makes the client's transport itself, such as a program of another library."""

    def new_transport(self, listener: Listener, background: Background) -> Transport:
        """Return a transport that isn't open yet.

        Args:
            listener: receives what the server sends outside of replies.
            background: owns the tasks of the transport.
        """
        ...
