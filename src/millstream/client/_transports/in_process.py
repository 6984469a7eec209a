"""Targets without an address: server objects of this process, and objects that create transports."""

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from millstream._tasks import Tasks
from millstream.client._transports.transport import Listener, Transport

if TYPE_CHECKING:
    from millstream._server.dispatch import Dispatcher


class RunningServer(Protocol):
    """A running server."""

    @property
    def dispatcher(self) -> "Dispatcher":
        """The dispatcher of the server."""
        ...


class ServerObject(Protocol):
    """A server object, such as `millstream.Server`."""

    def running(self) -> AbstractAsyncContextManager[RunningServer]:
        """Run the server for the duration of the block."""
        ...


@runtime_checkable
class TransportFactory(Protocol):
    """A target that creates the client's transport itself, such as a program of another library."""

    def new_transport(self, listener: Listener, background: Tasks) -> Transport:
        """Return a transport that isn't open yet.

        Args:
            listener: Receives what the server sends outside of responses.
            background: Owns the tasks of the transport.
        """
        ...
