"""A subscriber: an outlet for bytes, the channels it wants, and who it is.

There is no queue and no task: the outlet is the bounded queue, and the hub looks at how far behind it is. Several
subscriptions may share an outlet; it is then written each event once.
"""

from collections.abc import Callable

from millstream._http.message import Outlet
from millstream._protocol.principal import Principal
from millstream.hub._channels import is_pattern, matches
from millstream.hub._event import Event
from millstream.hub._presence import Member

Encode = Callable[[Event], bytes]
"""Turns an event into the bytes of one kind of outlet, or into none where the kind has no word for it.

Subscribers with the same function (the same object) share the bytes, so it must be a module-level function.
"""

Authorize = Callable[[Principal | None, str, str], bool]
"""``authorize(principal, action, channel)`` with the action ``publish`` or ``subscribe``; must not block.

Of ``$presence.X`` it is asked about ``X``. One that raises refuses.

For a subscription with wildcards it is asked about the pattern, then about each channel that the pattern reaches,
the first time that something is published there.
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
        """The client whose own channel this is, or empty."""
        self.member: Member | None = member
        """How it appears in the presence of its channels; None without an id."""
        self.principal: Principal | None = principal
        self.address: str = address
        self.authorize: Authorize | None = authorize
        self.transport: str = transport
        """What carries it, for those who count."""
        self.wild: bool = any(map(is_pattern, channels))
        self.joined: bool = False
        """It has caught up, and gets what is published."""
        self.since: int = 0
        """Once it has joined: what it wants behind this offset was written to the outlet."""
        self.heard: int = 0
        """The same for the number of an arrival or departure."""
        self.present: bool = False
        """Others can see it in the presence of its channels."""
        self._leave = leave

    def wants(self, channel: str) -> bool:
        """Return whether an event of the channel is for this subscriber."""
        if channel in self.channels:
            return True
        if not self.wild or not any(matches(pattern, channel) for pattern in self.channels):
            return False
        return self.authorize is None or self.authorize(self.principal, "subscribe", channel)

    def write(self, event: Event) -> None:
        """Write one event to this subscriber alone."""
        chunk = self.encode(event)
        if chunk:
            self.outlet.write(chunk)

    def close(self) -> None:
        """End the subscription and its outlet. Idempotent."""
        self.outlet.close()

    def handle_close(self) -> None:
        """The outlet is closed, or carries this subscription no longer."""
        self._leave(self)
