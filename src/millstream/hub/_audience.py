"""The subscribers of each channel, and a delivery plan per channel, built on demand.

A plan lists the outlets of a channel, grouped by encoder. It contains each outlet once.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from heapq import nlargest

from millstream._http.hosts import is_loopback
from millstream._http.message import Outlet, peer_network
from millstream._protocol.principal import Principal, Share
from millstream.hub._channels import is_pattern
from millstream.hub._limits import HubLimits, TooMany
from millstream.hub._patterns import PatternIndex
from millstream.hub._subscriber import Encode, Subscription

FanOut = list[tuple[Encode, list[Outlet]]]

_MAX_PLANS = 4096
"""Maximum number of cached plans. When it's exceeded, the cache is cleared, because plans are cheap to rebuild."""


class Audience:
    """All subscribers of one worker. `enter` counts a subscriber, and `join` starts delivery to it."""

    def __init__(self, limits: HubLimits) -> None:
        self._limits = limits
        self._share = Share(limits.max_connections or sys.maxsize)
        self._subscriptions: dict[Subscription, str | None] = {}
        """Subscription -> the owner whose share it uses; None for the server's own above the cap."""
        self._by_address: dict[str, int] = {}
        self._by_channel: dict[str, int] = {}
        self._by_transport: Counter[str] = Counter()
        self._by_outlet: dict[Outlet, tuple[Subscription, ...]] = {}
        self._exact: dict[str, dict[Subscription, None]] = {}
        self._wild = PatternIndex()
        self._plans: dict[str, FanOut] = {}

    def __len__(self) -> int:
        return len(self._subscriptions)

    def all(self) -> list[Subscription]:
        """Return all subscribers, including those still catching up."""
        return list(self._subscriptions)

    def counts(self) -> dict[str, int]:
        """Return the number of subscribers per channel and pattern."""
        return dict(self._by_channel)

    def transports(self) -> dict[str, int]:
        """Return the number of subscribers per transport, including 0 for transports used earlier."""
        return dict(self._by_transport)

    def outlets(self) -> Iterable[Outlet]:
        """Return every outlet once."""
        return self._by_outlet

    def queued_bytes(self) -> int:
        """Return the unread bytes of all outlets. Iterates over all of them."""
        return sum(outlet.buffered for outlet in self._by_outlet)

    def slowest(self, count: int) -> list[tuple[Subscription, ...]]:
        """Return the subscriptions of the outlets with the most unread bytes. Iterates over all outlets."""
        outlets = nlargest(count, self._by_outlet, key=lambda outlet: outlet.buffered)
        return [self._by_outlet[outlet] for outlet in outlets]

    def check_room(self, channels: Sequence[str], address: str, principal: Principal | None) -> None:
        """Check that one more subscriber is within the caps.

        Raises:
            TooMany: A cap is reached.
        """
        limits = self._limits
        if limits.max_connections and len(self._subscriptions) >= limits.max_connections:
            raise TooMany("connections", limits.max_connections)
        cap = limits.max_connections_per_address
        if cap and address and self._by_address.get(peer_network(address), 0) >= cap:
            raise TooMany("address", cap)
        if not self._share.has_room(_owner(address, principal)):
            raise TooMany("yours", self._share.each)
        cap = limits.max_subscribers_per_channel
        if cap and any(self._by_channel.get(channel, 0) >= cap for channel in channels):
            raise TooMany("channel", cap)

    def enter(self, subscription: Subscription) -> None:
        """Count a subscriber."""
        owner = _owner(subscription.address, subscription.principal)
        self._subscriptions[subscription] = owner if self._share.take(owner) else None
        self._by_transport[subscription.transport] += 1
        self._by_outlet[subscription.outlet] = (*self.on(subscription.outlet), subscription)
        if subscription.address:
            _count(self._by_address, peer_network(subscription.address), 1)
        for channel in subscription.channels:
            _count(self._by_channel, channel, 1)

    def join(self, subscription: Subscription) -> None:
        """Deliver future events to a subscriber."""
        subscription.joined = True
        for channel in subscription.channels:
            if is_pattern(channel):
                self._wild.add(channel, subscription)
            else:
                self._exact.setdefault(channel, {})[subscription] = None
        self._forget_plans(subscription)

    def leave(self, subscription: Subscription) -> bool:
        """Remove a subscriber. Return False if it was already removed."""
        if subscription not in self._subscriptions:
            return False
        owner = self._subscriptions.pop(subscription)
        if owner is not None:
            self._share.leave(owner)
        self._by_transport[subscription.transport] -= 1
        outlet = subscription.outlet
        others = tuple(each for each in self._by_outlet.pop(outlet) if each is not subscription)
        if others:
            self._by_outlet[outlet] = others
        if subscription.address:
            _count(self._by_address, peer_network(subscription.address), -1)
        for channel in subscription.channels:
            _count(self._by_channel, channel, -1)
            subscribers = self._exact.get(channel)
            if subscribers is not None:
                subscribers.pop(subscription, None)
                if not subscribers:
                    del self._exact[channel]
            if is_pattern(channel):
                self._wild.discard(channel, subscription)
        self._forget_plans(subscription)
        return True

    def plan(self, channel: str) -> FanOut:
        """Return the outlets for publications on a channel. The caller must not change it."""
        plan = self._plans.get(channel)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[channel] = self._make_plan(channel)
        return plan

    def everyone(self) -> FanOut:
        """Return the outlets of all subscribers that have caught up."""
        return _group(each for each in self._subscriptions if each.joined)

    def on(self, outlet: Outlet) -> tuple[Subscription, ...]:
        """Return the subscribers that share an outlet, in order of arrival."""
        return self._by_outlet.get(outlet, ())

    def _make_plan(self, channel: str) -> FanOut:
        subscribers = self._exact.get(channel, {}).copy()
        for each in self._wild.find(channel):
            if each not in subscribers and each.wants(channel):
                subscribers[each] = None
        return _group(subscribers)

    def _forget_plans(self, subscription: Subscription) -> None:
        if subscription.wild:
            self._plans.clear()
            return
        for channel in subscription.channels:
            self._plans.pop(channel, None)


def _owner(address: str, principal: Principal | None) -> str:
    """Return the owner of a subscription; empty for this machine, which may be a proxy."""
    if principal is not None:
        return principal.id
    return "" if is_loopback(address) else peer_network(address)


def _group(subscriptions: Iterable[Subscription]) -> FanOut:
    groups: dict[Encode, dict[Outlet, None]] = {}
    for each in subscriptions:
        groups.setdefault(each.encode, {})[each.outlet] = None
    return [(encode, list(outlets)) for encode, outlets in groups.items()]


def _count(counts: dict[str, int], name: str, by: int) -> None:
    counts[name] = counts.get(name, 0) + by
    if not counts[name]:
        del counts[name]
