"""A subscriber: an outlet for bytes, its channels, and its identity.

There is no queue and no task: the outlet is the bounded queue, and the hub checks how far behind it is. Several
subscriptions can share an outlet, which then gets each event once.
"""

from collections.abc import Callable

from millstream._http.message import Outlet
from millstream._protocol.principal import Principal
from millstream.hub._channels import is_pattern, matches
from millstream.hub._event import Event
from millstream.hub._presence import Member

Encode = Callable[[Event], bytes]
"""Encodes an event for one kind of outlet. Returns empty bytes if that kind can't represent the event.

Subscribers with the same function object share the bytes, so it must be a module-level function.
"""

Authorize = Callable[[Principal | None, str, str], bool]
"""``authorize(principal, action, channel)`` with the action ``publish`` or ``subscribe``. Must not block.

For ``$presence.X``, it's called with ``X``. A hook that raises denies access.

For a subscription with wildcards, it's called with the pattern, then with each matching channel on the first
publication there.
"""


class Subscription:
    """One subscriber of the hub. ``subscription.close()``"""

    __slots__ = (
        "_leave", "address", "authorize", "channels", "encode", "heard", "joined", "mailbox", "member", "outlet",
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
        """The client in the presence of its channels, or None without an id."""
        self.principal: Principal | None = principal
        self.address: str = address
        self.authorize: Authorize | None = authorize
        self.transport: str = transport
        """The transport, for statistics."""
        self.wild: bool = any(map(is_pattern, channels))
        self.joined: bool = False
        """Whether the subscriber has caught up and receives new events."""
        self.since: int = 0
        """After joining: wanted events after this offset were written to the outlet."""
        self.heard: int = 0
        """The same for the number of a presence change."""
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
        """Handle that the outlet is closed or no longer carries this subscription."""
        self._leave(self)
