"""The realtime hub: channels, history, presence, and mailboxes on top of the three store interfaces.

The hub has no knowledge of HTTP or MCP. A subscriber is an `OutputStream` and a function that encodes an `Event`.
"""

from millstream._http.message import OutputStream
from millstream._protocol.principal import Profile
from millstream.hub._admission import AccessRules
from millstream.hub._channels import EventTooLarge, Forbidden, HubLimits, InvalidName, LimitExceeded, check_channel
from millstream.hub._event import Event, PublishResult
from millstream.hub._hub import Hub, HubStats
from millstream.hub._presence import Member, MemberList
from millstream.hub._subscriber import Encode, Subscription

__all__ = [
    "AccessRules",
    "Encode",
    "Event",
    "EventTooLarge",
    "Forbidden",
    "Hub",
    "HubLimits",
    "HubStats",
    "InvalidName",
    "LimitExceeded",
    "Member",
    "MemberList",
    "OutputStream",
    "Profile",
    "PublishResult",
    "Subscription",
    "check_channel",
]
