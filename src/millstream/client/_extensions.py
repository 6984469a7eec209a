"""Client extensions: capabilities, message handlers, and hooks around requests."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from millstream._copies import NotCopyable
from millstream._protocol.errors import LocalError
from millstream._protocol.handlers import Handler, NotificationFilter, with_decoded_params
from millstream._protocol.jsonrpc import MALFORMED, Json, decode_object, encode
from millstream._protocol.notifications import NOTIFICATIONS
from millstream._protocol.revisions import ALL
from millstream.client._errors import InvalidResponse
from millstream.client._questions import Questions
from millstream.client._requests import DeclaredCapability, RawRequest

if TYPE_CHECKING:
    from millstream import Client

_CORE = frozenset(method for revision in ALL for method in (*revision.asks, *revision.requests)) | frozenset(
    NOTIFICATIONS
)


class OutgoingRequest(Struct, NotCopyable, eq=False):
    """A client request, before it's sent."""

    method: str
    params: Json
    """The parameters to send, including ``_meta``."""
    client: "Client"


Outgoing = Callable[[OutgoingRequest], Awaitable[Json]]
"""``await next(request)`` returns the members of the result, or raises its error."""
Wrap = Callable[[OutgoingRequest, Outgoing], Awaitable[Json]]


class ClientExtension(Protocol):
    """The client side of an extension, for ``Client(url, extensions=[…])``: see `millstream.extensions.Extension`."""

    @property
    def name(self) -> str:
        """The identifier."""
        ...

    def bind_client(self, host: "ClientHost") -> None:
        """Register everything on a client.

        Args:
            host: The client, before it connects.
        """


class ClientHost(Struct, NotCopyable, eq=False):
    """A client to configure in `Extension.connect`."""

    client: "Client"
    """The client, which isn't connected yet."""
    _questions: Questions
    _wraps: list[Wrap] = []

    def add(self, extensions: Iterable[ClientExtension]) -> None:
        """Add a client's extensions.

        Args:
            extensions: The extensions. The first one is the outermost.

        Raises:
            ValueError: Two extensions have the same identifier.
            TypeError: An item isn't an extension.
        """
        names: set[str] = set()
        for each in extensions:
            if isinstance(each, type) or not hasattr(each, "bind_client"):
                raise TypeError(
                    f"extensions must contain instances of millstream.extensions.Extension subclasses, not {each!r}."
                )
            if each.name in names:
                raise ValueError(f"Two extensions have the name {each.name!r}. Remove one.")
            names.add(each.name)
            each.bind_client(self)

    def capability(
        self, name: str, value: Mapping[str, Any], *, member: str = "extensions", revisions: Collection[str] = ()
    ) -> None:
        """Declare a capability in addition to `Extension.client_settings`.

        Args:
            name: Name of the capability.
            value: Value for servers.
            member: Member of the client's capabilities: ``extensions`` or ``experimental``.
            revisions: Dates of the revisions that declare it, by default all.
        """
        declared = DeclaredCapability(member, name, value, frozenset(revisions))
        self.client.conversation.requests.declared.append(declared)

    def notification(self, name: str, handler: Handler) -> None:
        """Handle a server notification: ``handler(params, client)``, called in order of arrival.

        Args:
            name: The method of the notification.
            handler: A function that takes the parameters and the client.

        Raises:
            ValueError: The notification belongs to MCP or another extension.
        """
        self.client.conversation.requests.incoming.custom[name] = self._handler(name, handler)

    def method(self, name: str, handler: Handler) -> None:
        """Answer a server request: ``handler(params, client)`` returns the members of the result.

        Args:
            name: The method of the request.
            handler: A function that takes the parameters and the client.

        Raises:
            ValueError: The method belongs to MCP or another extension.
        """
        self._questions.custom[name] = self._handler(name, handler)

    def wrap(self, wrap: Wrap) -> None:
        """Wrap requests, except those that connect: ``await wrap(request, next)`` returns the members of the result.

        The hooks of the first extension are outermost. They run once per request, around all rounds.

        Args:
            wrap: An async function that takes the request and the next function.
        """
        self._wraps.append(wrap)
        self.client.conversation.requests.around = self._around

    def filter_notifications(self, each: NotificationFilter) -> None:
        """Pass each notification through ``each(message)``: see `Extension.filter_notification`.

        Args:
            each: Returns the notification, a changed copy, or None to drop it. It must not block.
        """
        self.client.conversation.requests.incoming.filters.append(each)

    def _handler(self, name: str, handler: Handler) -> Callable[[bytes], Awaitable[Any]]:
        taken = {*self.client.conversation.requests.incoming.custom, *self._questions.custom}
        if name in _CORE or name in taken:
            raise ValueError(f"The method {name!r} already exists.")
        run = with_decoded_params(handler, type(self.client))

        async def handle(params: bytes) -> Any:
            value = await run(params, self.client)
            return {} if value is None else value

        return handle

    async def _around(self, ask: RawRequest) -> bytes:
        before = decode_object(ask.params)
        requests = self.client.conversation.requests

        async def inside(request: OutgoingRequest) -> Json:
            if request.method != ask.method:
                raise LocalError("A hook can't change the method of a request.")
            if request.params is not before or encode(request.params) != ask.params:
                ask.params = encode(request.params)
            raw = await requests.ask(ask)
            try:
                return decode_object(raw)
            except MALFORMED as exc:
                raise InvalidResponse(f"The result of {ask.method} can't be decoded: {exc}.") from exc

        chain: Outgoing = inside
        for wrap in reversed(self._wraps):
            chain = _chain(wrap, chain)
        return encode(await chain(OutgoingRequest(ask.method, before, self.client)))


def _chain(wrap: Wrap, inside: Outgoing) -> Outgoing:
    return lambda request: wrap(request, inside)
