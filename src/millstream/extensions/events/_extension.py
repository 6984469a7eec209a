"""`Events`: the events extension of a server."""

import asyncio
import ssl
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, TypeVar, Unpack, get_args

from millstream._protocol.errors import LocalError
from millstream._protocol.metadata import SUBSCRIPTION_KEY
from millstream._protocol.revisions import PER_REQUEST
from millstream.extensions import CallContext, Extension, ServerHost
from millstream.extensions.events._catalog import EventCatalog
from millstream.extensions.events._delivery import EventDelivery, Outbox, WebhookDelivery, retry_delay
from millstream.extensions.events._event_type import EventType, Match
from millstream.extensions.events._reading import Caller, EventReading, ListParams, ReadParams
from millstream.extensions.events._recent import tool_of
from millstream.extensions.events._subscribing import MIN_TTL, SubscribeParams, Subscribing
from millstream.extensions.events._subscriptions import SubscriptionStore
from millstream.extensions.events._webhook import WebhookSender
from millstream.extensions.http_post import allow_any, is_public
from millstream.hub import PublishResult

if TYPE_CHECKING:
    from millstream import Server

P = TypeVar("P", bound=type[Any])
Draft = Literal["SEP-3415"]
MAX_TTL: Final = 24 * 3600.0


class EventOptions(TypedDict, total=False):
    """Options of ``@mcp.event``."""

    arguments: Any
    """The class of the arguments of a subscription. Without it, every field of the payload is a filter."""
    match: Match
    """``match(payload, arguments, principal)`` says whether a subscription receives an event. It must not block.

    Without it, each argument that is a field of the payload has to equal it.
    """
    description: str
    """What clients show; the docstring of the class by default."""
    scopes: Collection[str]
    """Scopes that a caller needs to see the event type."""


class Events(Extension):
    """Events that clients subscribe to: by polls, streams, and signed webhooks.

    The extension follows SEP-3415, a draft: names and codes may still change. It needs the hub.

    Args:
        draft: the text that you agree to follow, ``"SEP-3415"``.
        webhooks: deliver to callback URLs, for callers who have signed in.
        recent_events_tool: also offer the tool `get_recent_events`.
        poll_pause: seconds that clients wait between two polls.
        max_ttl: seconds that a webhook subscription lives without a refresh, at most.
        max_subscriptions: webhook subscriptions of all callers.
        max_subscriptions_each: webhook subscriptions of one principal.
        private_callbacks: also deliver to addresses that aren't public, such as those of your own network.
        tls: certificates of callbacks to trust; those of the system by default.
        retry_delay: seconds before the next attempt, by the number of attempts so far.

    Raises:
        ValueError: another text, or a number that can't be.

    Example:
        ``events = Events(draft="SEP-3415")``, then ``Server("shop", serve="hub", extensions=[events])``.
    """

    name = "io.modelcontextprotocol/events"
    needs: Collection[str] = ("hub",)

    def __init__(
        self,
        *,
        draft: Draft,
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
        if draft not in get_args(Draft):
            raise ValueError(f'Events follows the draft SEP-3415, not {draft!r}. Write Events(draft="SEP-3415").')
        if max_ttl < MIN_TTL:
            raise ValueError(f"max_ttl is {max_ttl:g}. A subscription lives {MIN_TTL:g} seconds at least.")
        if max_subscriptions < 1 or max_subscriptions_each < 1:
            raise ValueError("max_subscriptions and max_subscriptions_each are 1 or more. Turn webhooks off instead.")
        self.catalog: EventCatalog = EventCatalog()
        self._webhooks = webhooks
        self._recent_events_tool = recent_events_tool
        self._poll_pause = poll_pause
        self._max_ttl = max_ttl
        self._limits = {"most": max_subscriptions, "most_each": max_subscriptions_each}
        self._private_callbacks = private_callbacks
        self._tls = tls
        self._retry_delay = retry_delay
        self._server: Server | None = None
        self._host: ServerHost | None = None
        self._reading: EventReading | None = None
        self._subscribing: Subscribing | None = None
        self._delivery: WebhookDelivery | None = None

    # Declarations

    def event(self, name: str, **options: Unpack[EventOptions]) -> Callable[[P], P]:
        """Declare an event type, over the class of its payload: ``@mcp.event("order.paid")``. Returns the class.

        Whatever is published on the hub channel of that name and fits the payload is an event of this type.

        Args:
            name: of the event, and of the hub channel that carries it.
            options: see `EventOptions`.

        Raises:
            ValueError: there is an event of that name.
            TypeError: a class can't be described, or isn't an object.
        """
        if callable(name):
            raise TypeError('event needs the name of the event: @mcp.event("order.paid")')

        def declare(payload: P) -> P:
            self.catalog.add(
                EventType(
                    name,
                    payload,
                    arguments=options.get("arguments"),
                    match=options.get("match"),
                    description=options.get("description", ""),
                    scopes=frozenset(options.get("scopes", ())),
                )
            )
            return payload

        return declare

    async def publish(self, event: Any, data: Any = None, *, id: str | None = None) -> PublishResult:
        """Publish an event: ``await mcp.events.publish(OrderPaid(order="7"))``.

        Args:
            event: an object of a payload class, or the name of the event with `data`.
            data: the payload, if `event` is a name.
            id: the upstream's own id of the event. An event with the same id within two minutes isn't published again.

        Raises:
            LocalError: no such event is declared, the data don't fit, or the server isn't running.
        """
        kind = self.catalog.of(event)
        written = kind.encode(data if isinstance(event, str) else event)
        if self._server is None:
            raise LocalError("Give the extension to a server before you publish: Server(…, extensions=[events])")
        return await self._server.hub.publish(kind.name, written.decode(), id=id)

    # The server

    def register(self, server: "Server") -> None:
        """Add the tool, if it's wanted."""
        self._server = server
        if self._recent_events_tool:
            server.tool(tool_of(self.catalog, lambda: self._running.hub))

    @property
    def _running(self) -> ServerHost:
        if self._host is None:
            raise LocalError("The server isn't running.")
        return self._host

    async def open(self, host: ServerHost) -> None:
        """Register the methods, and begin to deliver."""
        hub, clock = host.hub, host.now
        self._host = host
        hub.admission.restrict(self.catalog.allows_channel)
        modes = ["poll", "push"]
        if self._webhooks:
            modes.insert(0, "webhook")
        self._reading = EventReading(self.catalog, hub, clock, modes, pause=self._poll_pause)
        host.capability({}, name="events", member="")  # where clients of the earlier sketch look
        host.method("events/list", self.list_types)
        host.method("events/poll", self.poll)
        host.method("events/stream", self.stream, revisions=PER_REQUEST)
        if not self._webhooks:
            return
        judge = allow_any if self._private_callbacks else is_public
        sender = WebhookSender(judge=judge, tls=self._tls)
        subscriptions = SubscriptionStore(host, **self._limits)
        self._subscribing = Subscribing(self.catalog, hub, subscriptions, sender, max_ttl=self._max_ttl, clock=clock)
        host.method("events/subscribe", self.subscribe)
        host.method("events/unsubscribe", self.unsubscribe)
        outbox = Outbox(sender, clock, self._retry_delay)
        jobs = [
            EventDelivery(kind, hub, subscriptions, outbox, shared=host.shared, has_credential=host.has_credential)
            for kind in self.catalog
        ]
        self._delivery = WebhookDelivery(jobs, outbox)
        self._delivery.open()
        host.on_drain(self._delivery.close)

    async def close(self) -> None:
        """Stop the deliveries."""
        if self._delivery is not None:
            await self._delivery.close()
        self._host = self._reading = self._subscribing = self._delivery = None

    async def list_types(self, params: ListParams, ctx: CallContext) -> dict[str, Any]:
        """Answer `events/list`."""
        assert self._reading is not None  # noqa: S101  open
        return self._reading.list_types(params, _caller(ctx), streams=ctx.revision in PER_REQUEST)

    async def poll(self, params: ReadParams, ctx: CallContext) -> dict[str, Any]:
        """Answer `events/poll`."""
        assert self._reading is not None  # noqa: S101  as above
        return await self._reading.poll(params, _caller(ctx))

    async def stream(self, params: ReadParams, ctx: CallContext) -> dict[str, Any]:
        """Answer `events/stream`: its notifications until the client leaves, and an empty result."""
        assert self._reading is not None  # noqa: S101  as above
        mark = {"_meta": {SUBSCRIPTION_KEY: ctx.request_id}}
        stream = self._reading.open_stream(params, _caller(ctx))
        try:
            async with ctx.stream() as reply:
                leaving = asyncio.create_task(reply.wait_closed())
                leaving.add_done_callback(lambda _: stream.end())
                try:
                    async for method, given in stream:
                        await reply.send(method, {**given, **mark})
                finally:
                    leaving.cancel()
        finally:
            await stream.close()
        return mark

    async def subscribe(self, params: SubscribeParams, ctx: CallContext) -> dict[str, Any]:
        """Answer `events/subscribe`."""
        assert self._subscribing is not None  # noqa: S101  as above
        return await self._subscribing.subscribe(params, _caller(ctx))

    async def unsubscribe(self, params: SubscribeParams, ctx: CallContext) -> dict[str, Any]:
        """Answer `events/unsubscribe`."""
        assert self._subscribing is not None  # noqa: S101  as above
        return await self._subscribing.unsubscribe(params, _caller(ctx))


def _caller(ctx: CallContext) -> Caller:
    return Caller(ctx.principal, ctx.scopes)
