"""`Extension`: the base class for extensions, and the decorators of their methods.

`ExtensionPart` opens an extension with a server.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from msgspec import Struct

from millstream._parts import PartHost
from millstream._protocol.errors import LocalError
from millstream._protocol.handlers import NotificationMessage
from millstream._protocol.revisions import BY_DATE
from millstream._server.features import Middleware
from millstream.client._extensions import ClientHost, Outgoing, OutgoingRequest
from millstream.extensions._host import Host

if TYPE_CHECKING:
    from millstream import Server

F = TypeVar("F", bound=Callable[..., Any])
Side = Literal["server", "client"]
_MARK = "_millstream_handler"


class HandlerMark(Struct, frozen=True):
    """Settings of a method, from its decorator."""

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

    The function receives the params, converted to its annotation, and a `Context` (on a client, a `Client`). Both
    parameters are optional. It returns the result as a mapping or Struct, or None for an empty result. It can raise
    `ProtocolError`.

    Args:
        name: Name of the method, such as ``com.example/stock``.
        side: The side that answers. A server can call clients in handshake revisions, and by `input_required` results.
        revisions: Dates of the revisions that have the method, all by default.
        header: Member of the params that's repeated in the `Mcp-Name` header, in revisions with routing headers.
        declared: Reject clients that don't declare the extension, with error -32021 (-32602 in handshake revisions).
    """
    return _mark(HandlerMark(name, side, True, revisions, header, declared))


def notification(name: str, *, side: Side = "server", revisions: Collection[str] = ()) -> Callable[[F], F]:
    """Handle a notification: ``@notification("com.example/sold")`` on a method of an `Extension`.

    The function has the same parameters as for `method`. Its return value is ignored.

    Args:
        name: Name of the notification.
        side: The side that receives it.
        revisions: Dates of the revisions that have the notification, all by default.
    """
    return _mark(HandlerMark(name, side, False, revisions))


def _mark(settings: HandlerMark) -> Callable[[F], F]:
    def mark(function: F) -> F:
        setattr(function, _MARK, settings)
        return function

    return mark


class Extension(Middleware):
    """An extension of MCP. Write a subclass and pass an instance to a `Server`, a `Client`, or both.

    The hooks of `Middleware` (`on_call`, `on_read`, `on_prompt`, `on_list`, `on_message`) run inside those of
    ``Server(middleware=…)``, in the order of ``extensions=``. Hooks that no extension uses cost nothing.

    Example:
        ``class Stock(Extension): name = "com.example/stock"``, with
        ``@method("com.example/stock") async def stock(self, params: Query, ctx: Context) -> Amount: …``
    """

    name: str = ""
    """The identifier, such as ``com.example/stock``: your domain in reverse, a slash, and a name."""
    needs: Collection[str] = ()
    """Required extensions, by identifier, and parts, by name, such as ``hub``."""
    settings: Mapping[str, Any] | None = {}
    """Settings that the server announces under `name`. With None, `open` decides whether to announce the extension."""
    in_sets: bool = False
    """Whether it's also served at the addresses of sets (`Server.add_set`). Its methods then have to keep to the items
    of `Context.set_name`.
    """
    client_settings: Mapping[str, Any] = {}
    """Settings that the client declares under `name`."""
    revisions: Collection[str] = ()
    """Dates of the revisions that have the extension, all by default.

    Use it only for experiments, because clients of a later revision don't get the extension until you add its date. To
    exclude only the handshake era, use `millstream.protocol.PER_REQUEST`, which includes later revisions.
    """
    _server: "Server | None" = None

    # On both sides

    def filter_notification(self, message: NotificationMessage) -> NotificationMessage | None:
        """Filter notifications in both directions: return the notification, a changed copy, or None to drop it.

        The filter is called for the notifications of MCP and of extensions, once for each peer. It runs in the event
        loop and must not block. If it raises an exception, the notification is dropped. The first extension is
        outermost.

        Args:
            message: The notification, with its method, parameters, and direction.
        """
        return message

    # On a server

    @property
    def server(self) -> "Server":
        """The server that the extension was added to, for decorators: ``self.server.tool(**options)(function)``.

        Raises:
            LocalError: The extension wasn't added to a server.
        """
        if self._server is None:
            raise LocalError(f"The extension has no server. Write: mcp.extend({type(self).__name__}(…))")
        return self._server

    def register(self, server: "Server") -> None:
        """Register tools, resources, prompts, and routes. Called once, when the extension is added to a server.

        Args:
            server: The server, for ``server.tool(…)`` and the other decorators.
        """

    def bind_server(self, server: "Server") -> None:
        """Set `server`, and call `register`. Called by the server; don't override it.

        Args:
            server: The server.
        """
        self._server = server
        self.register(server)

    def unmet(self, server: "Server") -> str:
        """Return the reason why the extension can't work with the server's configuration, or "". Called at each start.

        Args:
            server: The server, with its complete configuration.
        """
        return ""

    async def open(self, host: Host) -> None:
        """Register methods, tasks, and other running parts. Called at each start of the server, once per event loop.

        Args:
            host: The running server.

        Raises:
            Exception: Any exception prevents the server from starting.
        """

    async def close(self) -> None:
        """Release the resources that `open` acquired. Called only if `open` succeeded."""

    # On a client

    def connect(self, client: ClientHost) -> None:
        """Register handlers for which there's no decorator. Called once, when the extension is added to a client.

        Args:
            client: The client, before it connects.
        """

    async def wrap_request(self, request: OutgoingRequest, next: Outgoing) -> dict[str, Any]:
        """Wrap the client's requests. ``await next(request)`` sends a request and returns the members of its result.

        Args:
            request: The request. You can change its parameters.
            next: Sends the request, or calls the hook of the next extension.
        """
        return await next(request)

    def bind_client(self, host: ClientHost) -> None:
        """Declare the capability and register the decorated methods. Called by the client; don't override it.

        Args:
            host: The client.
        """
        host.capability(self.name, self.client_settings, revisions=self.revisions)
        for marked, handler in marked_methods(self, "client"):
            (host.method if marked.request else host.notification)(marked.name, handler)
        if type(self).wrap_request is not Extension.wrap_request:
            host.wrap(self.wrap_request)
        if filters_notifications(self):
            host.filter_notifications(self.filter_notification)
        self.connect(host)


def filters_notifications(extension: Extension) -> bool:
    """Return whether an extension overrides `filter_notification`."""
    return type(extension).filter_notification is not Extension.filter_notification


def marked_methods(extension: Extension, side: Side) -> Iterator[tuple[HandlerMark, Callable[..., Any]]]:
    """Return the decorated methods of an extension's class for one side."""
    for attribute in dir(type(extension)):
        marked = getattr(getattr(type(extension), attribute, None), _MARK, None)
        if isinstance(marked, HandlerMark) and marked.side == side:
            yield marked, getattr(extension, attribute)


_HOOKS = ("on_call", "on_read", "on_prompt", "on_list", "on_message")


class ExtensionPart:
    """Opens an extension with the server."""

    def __init__(self, extension: Extension) -> None:
        self.extension: Extension = extension
        self.name: str = extension.name
        self.needs: Collection[str] = extension.needs

    async def open(self, host: PartHost) -> None:
        """Announce the capability and register the methods.

        Raises:
            LocalError: The extension can't work with the server's configuration.
        """
        extension = self.extension
        server = extension._server  # pyright: ignore[reportPrivateUsage]  None for the extensions in this package
        lacking = "" if server is None else extension.unmet(server)
        if lacking:
            raise LocalError(f"The extension {extension.name!r} can't run: {lacking.rstrip('.')}.")
        revisions = frozenset(extension.revisions or BY_DATE)
        server_host = Host(host, extension.name, revisions, extension.in_sets)
        if extension.settings is not None:
            server_host.capability(extension.settings)
        for marked, handler in marked_methods(extension, "server"):
            if marked.request:
                server_host.method(
                    marked.name,
                    handler,
                    revisions=marked.revisions,
                    header=marked.header,
                    declared=marked.declared,
                )
            else:
                server_host.notification(marked.name, handler, revisions=marked.revisions)
        if filters_notifications(extension):
            server_host.filter_notifications(extension.filter_notification)
        await extension.open(server_host)

    async def close(self) -> None:
        """Close the extension."""
        await self.extension.close()


def check_extensions(extensions: Any) -> tuple[Extension, ...]:
    """Return the extensions of a server.

    Raises:
        TypeError: An item isn't an instance of `Extension`, or its `open` or `close` is a plain function.
        ValueError: An identifier is missing or used twice.
    """
    if isinstance(extensions, str) or not isinstance(extensions, Sequence):
        raise TypeError(f"extensions must be a list: extensions=[{type(extensions).__name__}(…)]")
    names: set[str] = set()
    for each in cast("Sequence[object]", extensions):
        if not isinstance(each, Extension):
            description = f"the class {each.__name__}" if isinstance(each, type) else repr(each)
            raise TypeError(
                f"extensions takes instances of subclasses of millstream.extensions.Extension, not {description}."
            )
        prefix, slash, name = each.name.partition("/")
        if not (prefix and slash and name):
            raise ValueError(
                f"{type(each).__name__}.name is {each.name!r}: use an identifier with a prefix, such as "
                "'com.example/stock'."
            )
        for hook in ("open", "close"):
            if not iscoroutinefunction(getattr(each, hook)):
                raise TypeError(f"extensions: {hook} of {type(each).__name__} must be `async def`.")
        if each.name in names:
            raise ValueError(f"Two extensions have the name {each.name!r}. Remove one.")
        names.add(each.name)
    return tuple(cast("Sequence[Extension]", extensions))


def has_hooks(extension: Extension) -> bool:
    """Return whether an extension overrides a middleware hook."""
    return any(getattr(type(extension), hook) is not getattr(Middleware, hook) for hook in _HOOKS)
