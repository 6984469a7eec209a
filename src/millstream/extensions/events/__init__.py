"""Server events that clients can subscribe to (SEP-3415, an official extension in Beta).

Experimental: a minor version can change it. See Stability in the documentation.

Clients that are woken up by an event without its data call the tool `get_recent_events`.

Example:
    ``events = Events()``, then ``Server("shop", serve="hub", extensions=[events])``, and
    ``@events.event("order.paid")`` over the class of the payload.
"""

import ssl
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from millstream import Context, Principal, ProtocolError, ToolError
from millstream._override import override
from millstream.extensions import Extension, Host, scopes_of
from millstream.extensions.events._catalog import (
    EventCatalog,
    EventType,
    FilterIndex,
    Match,
    Reader,
    sees,
)
from millstream.extensions.events._delivery import EventDelivery
from millstream.extensions.events._event_methods import EventMethods, check_admission, read_occurrence
from millstream.extensions.events._outbox import Outbox, retry_delay
from millstream.extensions.events._webhook import MIN_TTL, SubscriptionStore, WebhookMethods, WebhookSender
from millstream.extensions.http_post import allow_any, is_public
from millstream.hub import Hub, PublishResult
from millstream.protocol import PER_REQUEST, Json, encode

if TYPE_CHECKING:
    from millstream import Server

__all__ = ["EventOptions", "Events"]

MAX_EVENTS = 50
_MAX_SCANNED = 200
"""Maximum events per channel to search."""


P = TypeVar("P", bound=type[Any])
MAX_TTL = 24 * 3600.0


class EventOptions(TypedDict, total=False):
    """Options of `Events.event`."""

    arguments: Any
    """Class of the subscriptions' arguments. By default, every field of the payload is a filter."""
    match: Match
    """``match(payload, arguments, principal)`` returns whether a subscription receives an event. It must not block.

    By default, each argument must equal the field of the payload with its name.
    """
    description: str
    """Description for clients, by default the docstring of the class."""
    scopes: Collection[str]
    """Scopes that a caller needs to see the event type."""


class Events(Extension):
    """Events that clients receive by polling, by streams, or by signed webhooks.

    It follows SEP-3415, which is Final. The extension is in Beta (SEP-3392), so later versions may still make breaking
    changes. It requires the hub.

    Args:
        webhooks: Deliver to callback URLs of authenticated callers.
        recent_events_tool: Add the tool `get_recent_events`.
        poll_pause: Seconds between two polls of a client.
        max_ttl: Maximum lifetime of a webhook subscription without a refresh, in seconds.
        max_subscriptions: Maximum webhook subscriptions in total.
        max_subscriptions_each: Maximum webhook subscriptions of one principal.
        private_callbacks: Also deliver to private addresses, such as in your own network.
        tls: Context with the trusted certificates of callbacks, by default the system's.
        retry_delay: Takes the number of attempts so far and returns the seconds before the next one.

    Raises:
        ValueError: A number is out of range.

    Example:
        ``events = Events()``, then ``Server("shop", serve="hub", extensions=[events])``.
    """

    name = "io.modelcontextprotocol/events"
    settings: Mapping[str, Any] | None = {"listChanged": True}
    needs: Collection[str] = ("hub",)
    _hub: Hub
    _outbox: Outbox | None = None
    _methods: EventMethods | None = None
    _deliver: Callable[[EventType], None] | None = None
    """Starts the webhook deliveries of an event type, while the server runs."""

    def __init__(
        self,
        *,
        webhooks: bool = True,
        recent_events_tool: bool = False,
        poll_pause: float = 10.0,
        max_ttl: float = MAX_TTL,
        max_subscriptions: int = 10_000,
        max_subscriptions_each: int = 100,
        private_callbacks: bool = False,
        tls: ssl.SSLContext | None = None,
        retry_delay: Callable[[int], float] = retry_delay,
    ) -> None:
        if max_ttl < MIN_TTL:
            raise ValueError(f"max_ttl is {max_ttl:g}. It must be at least {MIN_TTL:g} seconds.")
        if max_subscriptions < 1 or max_subscriptions_each < 1:
            raise ValueError(
                "max_subscriptions and max_subscriptions_each must be at least 1. webhooks=False disables webhooks."
            )
        self._catalog = EventCatalog()
        self._webhooks = webhooks
        self._recent_events_tool = recent_events_tool
        self._poll_pause = poll_pause
        self._max_ttl = max_ttl
        self._limits = max_subscriptions, max_subscriptions_each
        self._sender = WebhookSender(allow_any if private_callbacks else is_public, tls)
        self._retry_delay = retry_delay
        self._jobs: dict[EventType, EventDelivery] = {}

    # Declarations

    def event(self, name: str, **options: Unpack[EventOptions]) -> Callable[[P], P]:
        """Declare an event type: ``@events.event("order.paid")`` on the class of its payload. Return the class.

        Each message on the hub channel with this name that matches the payload is an event of this type. While the
        server runs, clients that follow the list of event types are notified. Call it on every worker.

        Args:
            name: Name of the event and of its hub channel.
            options: See `EventOptions`.

        Raises:
            ValueError: The name is taken.
            TypeError: A class isn't an object, or has no JSON schema.
        """
        if callable(name):
            raise TypeError('event requires a name: @events.event("order.paid")')

        def declare(payload: P) -> P:
            kind = EventType(name, payload, **options)
            self._catalog.add(kind)
            if self._deliver is not None:
                self._deliver(kind)
            if self._methods is not None:
                self._methods.notify_list_changed(kind)
            return payload

        return declare

    def remove(self, name: str) -> None:
        """Stop offering an event type: ``events.remove("order.paid")``. Call it on every worker.

        Its subscriptions end, with a message to streams and webhooks. Clients that follow the list of event types are
        notified.

        Args:
            name: Name of the event.

        Raises:
            LocalError: The event isn't declared.
        """
        kind = self._catalog.remove(name)
        if kind in self._jobs:
            self._jobs.pop(kind).retire()
        if self._methods is not None:
            self._methods.notify_list_changed(kind)

    async def publish(
        self, event: Any, data: Any = None, *, id: str | None = None, publisher: Principal | None = None
    ) -> PublishResult:
        """Publish an event: ``await events.publish(OrderPaid(order="7"))``.

        Args:
            event: An instance of a payload class, or the name of an event.
            data: The payload, if `event` is a name.
            id: Id for deduplication. A second event with this id within two minutes isn't published.
            publisher: The caller that this is published for (see `Hub.publish`).

        Raises:
            LocalError: The event isn't declared, the data doesn't match it, or the server isn't running.
        """
        kind = self._catalog.find(event)
        written = kind.encode(data if isinstance(event, str) else event)
        return await self.server.hub.publish(kind.name, written.decode(), id=id, publisher=publisher)

    # The server

    async def _get_recent_events(
        self,
        ctx: Context,
        event_name: str = "",
        event_id: str = "",
        arguments: Json | None = None,
        limit: int = 5,
    ) -> Json:
        """Return this server's newest events with their data, newest first. Call it when an event from this server woke
        you up but you can't see its data.

        Args:
            event_name: Only events of this type.
            event_id: Only the event with this id.
            arguments: The arguments of your subscription, to see only events that it receives. Requires event_name.
            limit: How many events, 1 to 50.
        """
        if arguments and not event_name:
            raise ToolError("arguments require event_name, because they belong to one event type.")
        scopes = scopes_of(ctx.principal)
        kinds = [kind for kind in self._catalog if sees(kind, scopes) and event_name in ("", kind.name)]
        if event_name and not kinds:
            raise ToolError(f"There is no event {event_name[:200]!r}.")
        found: list[tuple[float, Json]] = []
        for kind in kinds:
            try:
                reader = Reader(kind, kind.read_arguments(encode(arguments)), ctx.principal)
            except ProtocolError as error:
                raise ToolError(str(error)) from error
            with suppress(ProtocolError):
                check_admission(self._hub, reader)
                found += [
                    (event.timestamp, read_occurrence(reader, event))
                    for event in await self._hub.history(kind.name, _MAX_SCANNED)
                    if event_id in ("", event.id) and reader.accepts(event)
                ]
        found.sort(key=lambda each: each[0], reverse=True)
        return {"events": [described for _, described in found[: min(max(1, limit), MAX_EVENTS)]]}

    @override
    def register(self, server: "Server") -> None:
        """Add the tool if `recent_events_tool` is set."""
        if self._recent_events_tool:
            server.tool(name="get_recent_events")(self._get_recent_events)

    @override
    async def open(self, host: Host) -> None:
        """Register the methods and start the deliveries."""
        self._hub = host.hub
        self._hub.admission.restrict(self._catalog.allows_channel)
        modes = ["webhook", "poll", "push"] if self._webhooks else ["poll", "push"]
        self._methods = methods = EventMethods(self._catalog, host, modes, self._poll_pause)
        host.report("events", lambda: [kind.name for kind in self._catalog])
        host.capability({}, name="events", member="")  # for clients of the first draft, such as ChatGPT
        host.method("events/list", methods.list_types)
        # Clients of earlier drafts don't send `Mcp-Name`.
        host.method("events/poll", methods.poll, header="name", header_required=False)
        host.method("events/stream", methods.stream, revisions=PER_REQUEST, header="name", header_required=False)
        host.listen("eventsListChanged", methods.follow_list, declared=False)
        if not self._webhooks:
            return
        subscriptions = SubscriptionStore(host, host.map, *self._limits)
        webhooks = WebhookMethods(self._catalog, host, subscriptions, self._sender, self._max_ttl)
        host.method("events/subscribe", webhooks.subscribe, header="name", header_required=False)
        host.method("events/unsubscribe", webhooks.unsubscribe, header="name", header_required=False)
        self._outbox = outbox = Outbox(self._sender, host.now, self._retry_delay)

        def recheck() -> None:
            for job in self._jobs.values():
                job.recheck()

        def deliver(kind: EventType) -> None:
            self._jobs[kind] = job = EventDelivery(kind, host, subscriptions, outbox, FilterIndex(kind))
            host.run(job.run())

        host.on_revocation(recheck)
        self._deliver = deliver
        for kind in self._catalog:
            deliver(kind)
        host.on_drain(outbox.close)

    @override
    async def close(self) -> None:
        """Stop delivering events to webhooks."""
        if self._outbox is not None:
            await self._outbox.close()
        self._outbox = self._methods = self._deliver = None
        self._jobs.clear()
