"""Who may publish and subscribe where: names, the hub's own channels, the caps, the authorization hook.

The hub asks it for every subscription. Transports ask it before they answer, so that a refusal can still be one.
"""

from collections.abc import Sequence

from millstream._protocol.principal import Principal
from millstream.hub._audience import Audience
from millstream.hub._channels import (
    CLIENT,
    check_channel,
    check_client_id,
    check_name,
    check_pattern,
    owned_id,
    owner_of,
)
from millstream.hub._limits import Forbidden, HubLimits, InvalidName
from millstream.hub._subscriber import Authorize


def check_target(channel: str) -> None:
    """Whether anybody but the hub publishes to a channel.

    Raises:
        InvalidName: the channel cannot be one.
        Forbidden: it belongs to the hub.
    """
    check_channel(channel)
    if channel.startswith("$"):
        raise Forbidden("publish", channel)


class AccessRules:
    """The checks of one hub. None of them changes anything."""

    __slots__ = ("_audience", "_authorize", "_limits")

    def __init__(self, audience: Audience, limits: HubLimits, authorize: Authorize | None) -> None:
        self._audience = audience
        self._limits = limits
        self._authorize = authorize

    def publish(self, channel: str, principal: Principal | None = None) -> None:
        """Whether a peer may publish. The program itself is not asked about.

        Raises:
            InvalidName: the channel cannot be one.
            Forbidden: it belongs to the hub, or the hook refuses.
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
    ) -> tuple[str, ...]:
        """The channels of a subscription without repetition, if it is possible now.

        Raises:
            InvalidName, Forbidden, TooMany: it is not.
        """
        wanted = tuple(dict.fromkeys(channels))
        most = self._limits.max_channels_per_subscriber
        if not 1 <= len(wanted) <= most:
            raise InvalidName(f"A subscription has 1 to {most} channels, not {len(wanted)}.")
        for channel in wanted:
            check_pattern(channel)
            if f"{channel}.".startswith(CLIENT):
                raise Forbidden("subscribe", channel)
            self._allow(principal, "subscribe", channel)
        if client_id:
            check_client_id(client_id)
        check_name(name)
        self._audience.check_room(wanted, address)
        return wanted

    def receive(self, client_id: str, *, principal: Principal | None = None, address: str = "") -> str:
        """Return the mailbox of a principal's client, if a connection may listen to it now.

        Raises:
            InvalidName, Forbidden, TooMany: it is not so.
        """
        check_client_id(client_id)
        mailbox = owned_id(client_id, owner_of(principal))
        self._allow(principal, "subscribe", CLIENT + client_id)
        self._audience.check_room((CLIENT + mailbox,), address)
        return mailbox

    def _allow(self, principal: Principal | None, action: str, channel: str) -> None:
        if self._authorize is not None and not self._authorize(principal, action, channel):
            raise Forbidden(action, channel)
