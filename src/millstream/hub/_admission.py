"""Access to channels: valid names, reserved channels, caps, and the authorization hook.

The hub checks every subscription. Transports check before they respond, while they can still reject the request. Only
callers that can subscribe to a channel can see who is present, so ``$presence.X`` is checked as ``X``. A hook that
raises denies access and doesn't affect other subscriptions.
"""

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache

from msgspec import Struct

from millstream._copies import NotCopyable
from millstream._protocol.principal import Principal
from millstream.hub._channels import (
    CLIENT,
    PRESENCE,
    Forbidden,
    HubLimits,
    InvalidName,
    check_channel,
    check_client_id,
    check_name,
    check_pattern,
    owned_id,
    owner_of,
)
from millstream.hub._delivery import Audience
from millstream.hub._subscriber import Action, Authorize

logger = logging.getLogger("millstream.hub")

SubscribeRule = Callable[[Principal | None, str], bool]
"""``rule(principal, channel)`` returns whether a peer can receive a channel without filtering. It must not block or
raise."""


@lru_cache(1024)
def check_target(channel: str) -> None:
    """Check that a channel can be published to.

    Raises:
        InvalidName: The channel name is invalid.
        Forbidden: The channel is reserved for the hub.
    """
    check_channel(channel)
    if channel.startswith("$"):
        raise Forbidden("publish", channel)


class AccessRules(Struct, NotCopyable):
    """The access checks of a hub, which have no side effects: ``hub.admission.publish("news", ctx.principal)``."""

    _audience: Audience
    _limits: HubLimits
    _authorize: Authorize | None
    _rules: list[SubscribeRule] = []
    _strict_rules: list[SubscribeRule] = []
    """Rules that also apply to filtered events, and to publishing."""

    def restrict(self, rule: SubscribeRule, *, strict: bool = False) -> None:
        """Add a rule for the channels that a peer subscribes to or that its patterns match.

        Args:
            rule: ``rule(principal, channel)`` returns whether the channel is allowed.
            strict: Whether it also applies to peers for whom an extension filters the events, and to publishing.
        """
        (self._strict_rules if strict else self._rules).append(rule)

    def reaches(self, principal: Principal | None, action: Action, channel: str) -> bool:
        """Return whether the hook and the rules allow a channel that a subscription's pattern matches.

        Args:
            principal: The subscriber.
            action: ``subscribe`` or ``publish``.
            channel: The channel.
        """
        return self._permits(principal, action, channel) and _obeys(self._rules, principal, channel)

    def publish(self, channel: str, principal: Principal | None = None) -> None:
        """Check that a peer can publish. The server itself needs no check.

        Args:
            channel: The channel.
            principal: The peer.

        Raises:
            InvalidName: The channel name is invalid.
            Forbidden: The channel is reserved for the hub, or the hook denies access.
        """
        check_target(channel)
        self._allow(principal, "publish", channel)

    def subscribe(
        self,
        channels: Sequence[str],
        *,
        client_id: str = "",
        name: str = "",
        principal: Principal | None = None,
        address: str = "",
        direct: bool = True,
    ) -> tuple[str, ...]:
        """Return the channels of a subscription without duplicates.

        Args:
            channels: Channels and patterns.
            client_id: The client id for the channels' presence.
            name: The client's display name.
            principal: The subscriber.
            address: The peer's address, for the cap per address.
            direct: Whether the peer receives the channels without filtering, so the rules of `restrict` apply. An
                extension that filters events passes False.

        Raises:
            InvalidName, Forbidden, LimitExceeded: The subscription isn't allowed.
        """
        names = tuple(dict.fromkeys(channels))
        limit = self._limits.max_channels_per_subscriber
        if not 1 <= len(names) <= limit:
            raise InvalidName(f"A subscription must have 1 to {limit} channels, not {len(names)}.")
        for channel in names:
            check_pattern(channel)
            if f"{channel}.".startswith(CLIENT):
                raise Forbidden("subscribe", channel)
            self._allow(principal, "subscribe", channel)
            if direct and not _obeys(self._rules, principal, channel):
                raise Forbidden("subscribe", channel)
        if client_id:
            check_client_id(client_id)
        check_name(name)
        self._audience.check_room(names, address, principal)
        return names

    def members(self, channel: str, *, principal: Principal | None = None, address: str = "") -> None:
        """Check that a peer can read who is on a channel: whether it can subscribe to the channel's presence.

        Args:
            channel: The channel.
            principal: The peer.
            address: The peer's address, for the cap per address.

        Raises:
            InvalidName, Forbidden, LimitExceeded: The list can't be read.
        """
        check_channel(channel)
        if channel.startswith("$"):
            raise Forbidden("subscribe", channel)
        self.subscribe((PRESENCE + channel,), principal=principal, address=address)

    def receive(self, client_id: str, *, principal: Principal | None = None, address: str = "") -> str:
        """Return the mailbox of a principal's client, if a connection can listen to it.

        Args:
            client_id: The client's id.
            principal: The owner of the mailbox.
            address: The peer's address, for the cap per address.

        Raises:
            InvalidName, Forbidden, LimitExceeded: The subscription isn't allowed.
        """
        check_client_id(client_id)
        mailbox = owned_id(client_id, owner_of(principal))
        self._allow(principal, "subscribe", CLIENT + client_id)
        self._audience.check_room((CLIENT + mailbox,), address, principal)
        return mailbox

    def _allow(self, principal: Principal | None, action: Action, channel: str) -> None:
        if not self._permits(principal, action, channel):
            raise Forbidden(action, channel)

    def _permits(self, principal: Principal | None, action: Action, channel: str) -> bool:
        hook = self._authorize
        return (hook is None or hook(principal, action, channel)) and _obeys(self._strict_rules, principal, channel)


def _obeys(rules: Sequence[SubscribeRule], principal: Principal | None, channel: str) -> bool:
    channel = channel.removeprefix(PRESENCE)
    return all(rule(principal, channel) for rule in rules)


def deny_on_errors(authorize: Authorize) -> Authorize:
    """Wrap a hub's authorization hook, so that access is denied if it raises."""
    logged: set[type[Exception]] = set()
    """Types of logged errors. Each is logged once, because peers control how often the hook runs."""

    def check(principal: Principal | None, action: Action, channel: str) -> bool:
        try:
            return authorize(principal, action, channel.removeprefix(PRESENCE))
        except Exception as exc:
            if type(exc) not in logged:
                logged.add(type(exc))
                logger.exception(
                    "The authorization hook failed, so access was denied. Later failures of this kind aren't logged."
                )
            return False

    return check
