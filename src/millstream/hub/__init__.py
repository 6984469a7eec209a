"""The realtime hub: channels, history, presence, and mailboxes on top of the three store interfaces.

The hub has no knowledge of HTTP or MCP. A subscriber is an `OutputStream` and a function that encodes an `Event`.
`connect` is the client for programs elsewhere.
"""

from typing import TYPE_CHECKING, Any

from millstream._http.message import OutputStream
from millstream._lazy import import_name
from millstream._protocol.principal import Profile
from millstream.hub._admission import AccessRules
from millstream.hub._channels import EventTooLarge, Forbidden, HubLimits, InvalidName, LimitExceeded, check_channel
from millstream.hub._event import Event, HubEvent, PublishResult
from millstream.hub._hub import Hub, HubStats
from millstream.hub._presence import Member, MemberList
from millstream.hub._subscriber import Encode, Subscription

if TYPE_CHECKING:
    from millstream.hub._blocking import BlockingHubClient, BlockingSubscription, connect_blocking
    from millstream.hub._client import EventGap, HubClient, HubSubscription, connect
    from millstream.hub._streams import HubRefused

_HOMES = {
    "BlockingHubClient": "_blocking",
    "BlockingSubscription": "_blocking",
    "connect_blocking": "_blocking",
    "HubSubscription": "_client",
    "EventGap": "_client",
    "HubClient": "_client",
    "HubRefused": "_streams",
    "connect": "_client",
}
"""Public name -> module, imported on first use, so that a server doesn't load the client."""

__all__ = [
    "AccessRules",
    "BlockingHubClient",
    "BlockingSubscription",
    "Encode",
    "Event",
    "EventGap",
    "EventTooLarge",
    "Forbidden",
    "Hub",
    "HubClient",
    "HubEvent",
    "HubLimits",
    "HubRefused",
    "HubStats",
    "HubSubscription",
    "InvalidName",
    "LimitExceeded",
    "Member",
    "MemberList",
    "OutputStream",
    "Profile",
    "PublishResult",
    "Subscription",
    "check_channel",
    "connect",
    "connect_blocking",
]


def __getattr__(name: str) -> Any:
    return import_name(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
