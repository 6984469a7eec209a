"""`Extension`: the base class for extensions, and the decorators of their methods."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from msgspec import Struct

from millstream._protocol.notification_filters import NotificationMessage
from millstream._server.features.hooks import Middleware
from millstream.client._extensions import ClientHost, Outgoing, OutgoingRequest

if TYPE_CHECKING:
    from millstream import Server
    from millstream.extensions._host import ServerHost

F = TypeVar("F", bound=Callable[..., Any])
Side = Literal["server", "client"]
_MARK = "_millstream_handler"


class Marked(Struct, frozen=True):
    """What a decorator says about a method of the class."""

    name: str
    side: Side
    request: bool
    revisions: Collection[str] = ()
    header: str = ""
    declared: bool = False


def method(
    name: str,
    *,
    side: Side = "server",
    revisions: Collection[str] = (),
    header: str = "",
    declared: bool = False,
) -> Callable[[F], F]:
    """Answer a request: ``@method("com.example/stock")`` on a method of an `Extension`.

    The function takes the params, as the type of its annotation, and a `Context` (on a client, a `Client`). Either may
    be left out. It returns the members of the result as a mapping or Struct, or None for none. It may raise
    `ProtocolError`.

    Args:
        name: of the method, such as ``com.example/stock``.
        side: which side answers. Clients are asked in handshake revisions, and in rounds of `input_required`.
        revisions: dates of the revisions that have it; all without any.
        header: the member of the params that `Mcp-Name` repeats, in revisions with routing headers.
        declared: refuse clients that don't declare the extension, with error -32021
            (-32602 in handshake revisions).
    """
    return _marking(Marked(name, side, True, revisions, header, declared))


def notification(name: str, *, side: Side = "server", revisions: Collection[str] = ()) -> Callable[[F], F]:
    """Handle a notification: ``@notification("com.example/sold")`` on a method of an `Extension`.

    The function is as for `method`; what it returns isn't used.

    Args:
        name: of the notification.
        side: which side receives it.
        revisions: dates of the revisions that have it; all without any.
    """
    return _marking(Marked(name, side, False, revisions))


def _marking(marked: Marked) -> Callable[[F], F]:
    def mark(function: F) -> F:
        setattr(function, _MARK, marked)
        return function

    return mark


class Extension(Middleware):
    """An extension of MCP. Write a subclass, and give an object of it to a `Server`, a `Client`, or both.

    The hooks of `Middleware` (`on_call`, `on_read`, `on_prompt`, `on_list`, `on_message`) run inside those of
    ``Server(middleware=…)``, in the order of ``extensions=``. What no extension registers costs a call nothing.

    Example:
        ``class Stock(Extension): name = "com.example/stock"``, with
        ``@method("com.example/stock") async def stock(self, params: Query, ctx: Context) -> Amount: …``
    """

    name: str = ""
    """The identifier, such as ``com.example/stock``: a domain of yours in reverse, and a name."""
    needs: Collection[str] = ()
    """Identifiers of other extensions, and names of parts such as ``hub``, that this one needs."""
    settings: Mapping[str, Any] | None = {}
    """What the server announces under `name`; None for nothing, where `open` decides."""
    client_settings: Mapping[str, Any] = {}
    """What the client declares under `name`."""
    revisions: Collection[str] = ()
    """Dates of the revisions that have the extension; all without any."""
    experimental: bool = False
    """Announce and declare it under ``experimental`` as well, for peers that look there."""

    # On both sides

    def filter_notification(self, message: NotificationMessage) -> NotificationMessage | None:
        """See each notification that comes in or goes out: return it, a changed one, or None to drop it.

        It runs for the notifications of MCP and of extensions, once for each peer, in the event loop, so it must not
        block. If it raises, the notification is dropped. The first extension is outermost.
        """
        return message

    # On a server

    def register(self, server: "Server") -> None:
        """Register tools, resources, prompts, and routes. Called once, when the extension is given to a server."""

    def unmet(self, server: "Server") -> str:
        """Return what the configuration of the server lacks, or an empty string. Called at each start."""
        return ""

    async def open(self, host: "ServerHost") -> None:
        """Register what runs: called each time the server starts, once for each event loop that it runs in.

        Raises:
            Exception: the server doesn't start.
        """

    async def close(self) -> None:
        """Release what `open` took. Called only after `open` succeeded."""

    # On a client

    def connect(self, client: ClientHost) -> None:
        """Register handlers that the decorators don't cover. Called once, when the extension is given to a client."""

    async def wrap_request(self, request: OutgoingRequest, next: Outgoing) -> dict[str, Any]:
        """Wrap every request of the client: ``await next(request)`` gives the members of the result."""
        return await next(request)

    def bind_client(self, host: ClientHost) -> None:
        """Declare the capability, and register what the decorators marked. A client calls this; don't override it."""
        for member in ("extensions", "experimental") if self.experimental else ("extensions",):
            host.capability(self.name, self.client_settings, member=member, revisions=self.revisions)
        for marked, handler in marked_methods(self, "client"):
            (host.method if marked.request else host.notification)(marked.name, handler)
        if type(self).wrap_request is not Extension.wrap_request:
            host.wrap(self.wrap_request)
        if filters_notifications(self):
            host.filter_notifications(self.filter_notification)
        self.connect(host)


def filters_notifications(extension: Extension) -> bool:
    """Return whether an extension has a filter of notifications."""
    return type(extension).filter_notification is not Extension.filter_notification


def marked_methods(extension: Extension, side: Side) -> Iterator[tuple[Marked, Callable[..., Any]]]:
    """Return what the decorators marked in the class of an extension, for one side."""
    for attribute in dir(type(extension)):
        marked = getattr(getattr(type(extension), attribute, None), _MARK, None)
        if isinstance(marked, Marked) and marked.side == side:
            yield marked, getattr(extension, attribute)
