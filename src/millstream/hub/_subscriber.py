"""A subscriber: an outlet for bytes, its channels, and its identity.

A subscriber has no queue and no task: the outlet is the bounded queue, and the hub checks its unread bytes. Several
subscriptions can share an outlet, which gets each event once.
"""

from collections.abc import Callable

from millstream._http.message import Outlet
from millstream._protocol.principal import Principal
from millstream.hub._channels import is_pattern, matches
from millstream.hub._event import Event
from millstream.hub._presence import Member

Encode = Callable[[Event], bytes]
"""Encodes an event for one kind of outlet, or returns empty bytes if that kind can't represent it.

Subscribers with the same function object share the result, so use a module-level function.
"""

Authorize = Callable[[Principal | None, str, str], bool]
"""``authorize(principal, action, channel)`` returns whether an action, ``publish`` or ``subscribe``, is allowed.

It must not block. If it raises, access is denied. ``$presence.X`` is checked as ``X``. For a subscription with
wildcards, it's called with the pattern, and later with each matching channel on its first publication.
"""


class Subscription:
    """One subscriber of the hub. ``subscription.close()``"""

    __slots__ = (
        "_leave", "address", "authorize", "channels", "encode", "joined", "last_change", "mailbox", "member", "outlet",
        "present", "principal", "since", "transport", "wild",
    )  # fmt: skip

    def __init__(
        self,
        channels: tuple[str, ...],
        outlet: Outlet,
        encode: Encode,
        leave: Callable[["Subscription"], None],
        *,
        mailbox: str = "",
        member: Member | None = None,
        principal: Principal | None = None,
        address: str = "",
        authorize: Authorize | None = None,
        transport: str = "",
    ) -> None:
        self.channels: tuple[str, ...] = channels
        self.outlet: Outlet = outlet
        self.encode: Encode = encode
        self.mailbox: str = mailbox
        """The client whose mailbox this is, or an empty string."""
        self.member: Member | None = member
        """The client's entry in the presence of its channels, or None without a client id."""
        self.principal: Principal | None = principal
        self.address: str = address
        self.authorize: Authorize | None = authorize
        self.transport: str = transport
        """The transport, for statistics."""
        self.wild: bool = any(map(is_pattern, channels))
        self.joined: bool = False
        """Whether the subscriber has caught up and receives new events."""
        self.since: int = 0
        """Wanted events after this offset have been written to the outlet."""
        self.last_change: int = 0
        """Presence changes after this number have been written to the outlet."""
        self.present: bool = False
        """Whether the subscriber is visible in the presence of its channels."""
        self._leave = leave

    def wants(self, channel: str) -> bool:
        """Return whether events of a channel are for this subscriber."""
        if channel in self.channels:
            return True
        if not self.wild or not any(matches(pattern, channel) for pattern in self.channels):
            return False
        return self.authorize is None or self.authorize(self.principal, "subscribe", channel)

    def write(self, event: Event) -> None:
        """Write an event to this subscriber only."""
        chunk = self.encode(event)
        if chunk:
            self.outlet.write(chunk)

    def close(self) -> None:
        """End the subscription and its outlet. Idempotent."""
        self.outlet.close()

    def handle_close(self) -> None:
        """Unsubscribe after the outlet was closed or stopped carrying this subscription."""
        self._leave(self)
