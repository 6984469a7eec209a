"""`subscriptions/listen`: the change stream of the per-request era, open until the client leaves."""

import asyncio
from contextlib import ExitStack
from typing import Any

import msgspec

from millstream._protocol.admission import MAX_DISPLAYED
from millstream._protocol.errors import INVALID_REQUEST, ProtocolError
from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import notification_message
from millstream._protocol.metadata import SUBSCRIPTION_KEY, ClientInfo
from millstream._protocol.notifications import (
    NotificationParams,
    ResourceUpdatedNotificationParams,
    SubscriptionFilter,
    SubscriptionsAcknowledgedNotificationParams,
    SubscriptionsListenRequestParams,
)
from millstream._server.calls.call import Call, granted_scopes
from millstream._server.calls.services import UPDATED, ServerChange, Services, affected_uris
from millstream._server.control import release_arguments, too_many_streams
from millstream._server.dispatch import Dispatcher
from millstream._server.features.registry import Registry
from millstream._server.handlers import Handlers, read, sees

MAX_URI_BYTES = 128 * 1024
"""Maximum total length of a subscription's URIs, the same as in a session's record."""
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"


class Listen:
    """The handler of `subscriptions/listen`."""

    def __init__(self, registry: Registry, services: Services) -> None:
        self._registry = registry
        self._services = services

    async def __call__(self, call: Call) -> bytes:
        """Acknowledge, then push changes until the call is canceled or the server closes the reply channel."""
        wanted = read(SubscriptionsListenRequestParams, call).notifications
        settings = self._services.settings
        if len(wanted.resource_subscriptions) > settings.max_subscriptions:
            raise ProtocolError(
                INVALID_REQUEST, f"A subscription can have at most {settings.max_subscriptions} resources."
            )
        size = sum(map(len, wanted.resource_subscriptions))
        if size > MAX_URI_BYTES:
            raise ProtocolError(
                INVALID_REQUEST, f"The URIs of a subscription can have at most {MAX_URI_BYTES} characters."
            )
        pushes = _Pushes()
        with ExitStack() as ends:
            agreed = await self._open_filters(call, pushes, ends) if self._registry.filters else {}
            # The request isn't read again, and the stream can be open for a day.
            client = call.client
            call.client = ClientInfo({}, client.name[:MAX_DISPLAYED], client.version[:MAX_DISPLAYED])
            call.params, call.token = b"", None
            release_arguments(call, self._services.bodies)
            owner, streams, memory = call.owner, self._services.streams, self._services.client_memory
            if not streams.take(owner):
                raise too_many_streams(streams.count(owner))
            ends.callback(streams.leave, owner)
            memory.take(owner, size)
            ends.callback(memory.bytes.leave, owner, size)
            await self._serve(call, wanted, pushes, agreed, ends)
        return b""

    async def _open_filters(self, call: Call, pushes: "_Pushes", ends: ExitStack) -> dict[str, Any]:
        """Pass the filters of extensions to them, and return what they accept."""
        agreed: dict[str, Any] = {}
        asked = members(members(msgspec.json.decode(call.params)).get("notifications"))
        for member, serve in self._registry.filters.items():
            if member in asked:
                value, end = await serve(asked[member], call, pushes.push)
                ends.callback(end)
                if value is not None:
                    agreed[member] = value
        return agreed

    async def _serve(
        self, call: Call, wanted: SubscriptionFilter, pushes: "_Pushes", agreed: dict[str, Any], ends: ExitStack
    ) -> None:
        """Acknowledge, and push changes until the subscription ends."""
        mark = {SUBSCRIPTION_KEY: call.id}
        granted = self._grantable(wanted, call)
        line = call.open_reply_channel()
        call.meta = dict(mark)
        acknowledgment = notification_message(
            ACKNOWLEDGED,
            {"notifications": {**msgspec.to_builtins(granted), **agreed}, "_meta": mark}
            if agreed
            else SubscriptionsAcknowledgedNotificationParams(granted, mark),
        )
        if granted == SubscriptionFilter() and not agreed:
            await call.send_to_caller(acknowledgment)
            return
        kinds = {kind for kind in ("tools", "prompts", "resources") if getattr(granted, f"{kind}_list_changed")}
        # Updates of a hidden resource would tell that it exists.
        find = self._registry.find_readable
        uris = frozenset(
            uri for uri in granted.resource_subscriptions if (item := find(uri)[0]) is None or sees(call, item)
        )
        lists = {kind: notification_message(ServerChange(kind).method, NotificationParams(mark)) for kind in kinds}
        over, changes, endings = pushes.over, self._services.changes, self._services.endings
        changes.check_room(call.owner, uris)

        def watcher(change: ServerChange, message: bytes) -> None:
            if change.kind in lists:
                pushes.push(lists[change.kind])
            for uri in affected_uris(change, uris):
                pushes.push(notification_message(UPDATED, ResourceUpdatedNotificationParams(uri, mark)))

        ends.callback(changes.watch(watcher))
        endings.add(over.set)
        ends.callback(endings.discard, over.set)
        changes.follow(call, call.owner, uris)
        ends.callback(changes.follow, call, call.owner, ())
        await changes.wait_until_followed(uris)
        await call.send_to_caller(acknowledgment)
        await line.keep_alive()  # opens the stream if a filter dropped the acknowledgment
        ends.callback(line.on_close(over.set))
        pushes.begin(call)
        await over.wait()

    def _grantable(self, wanted: SubscriptionFilter, call: Call) -> SubscriptionFilter:
        offers, scopes = self._registry.offers, granted_scopes(call)
        uris = wanted.resource_subscriptions if offers("resources") else []
        if scopes is not None and self._registry.scopes:
            find = self._registry.find_readable
            uris = [uri for uri in uris if (item := find(uri)[0]) is None or item.scopes <= scopes]
        return SubscriptionFilter(
            wanted.tools_list_changed and offers("tools"),
            wanted.prompts_list_changed and offers("prompts"),
            wanted.resources_list_changed and offers("resources"),
            uris,
        )


class _Pushes:
    """Messages pushed to one subscription, starting after the acknowledgment."""

    __slots__ = ("_call", "_early", "over")

    def __init__(self) -> None:
        self._early: dict[bytes, None] = {}
        """Pending messages, each of which is pushed once."""
        self._call: Call | None = None
        self.over = asyncio.Event()
        """Set when the subscription ends."""

    def push(self, message: bytes) -> bool:
        """Push a message, or queue it until the acknowledgment is sent. Return False if the subscription is over."""
        if self._call is None:
            self._early[message] = None
        elif not self._call.push_to_caller(message):
            self.over.set()
        return not self.over.is_set()

    def begin(self, call: Call) -> None:
        """Push the queued messages, and later ones directly."""
        self._call = call
        for message in self._early:
            call.push_to_caller(message)
        self._early.clear()


def install(dispatcher: Dispatcher) -> None:
    """Register the handlers of every method."""
    registry, services = dispatcher.registry, dispatcher.services
    handlers = Handlers(registry, services, dispatcher.announcement).table()
    dispatcher.serve({**handlers, "subscriptions/listen": Listen(registry, services)})
