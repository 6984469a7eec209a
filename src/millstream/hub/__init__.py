"""The realtime hub: channels, history, presence and mailboxes over the three store interfaces.

It knows neither HTTP nor MCP: a subscriber is an `Outlet` and a function that turns an `Event` into bytes.
"""

from millstream.http.message import Outlet
from millstream.hub.event import Event, Published
from millstream.hub.hub import Hub, HubStats
from millstream.hub.limits import Forbidden, HubLimits, InvalidName, TooLarge, TooMany
from millstream.hub.presence import Member
from millstream.hub.subscriber import Encode, Subscription

__all__ = [
    "Encode",
    "Event",
    "Forbidden",
    "Hub",
    "HubLimits",
    "HubStats",
    "InvalidName",
    "Member",
    "Outlet",
    "Published",
    "Subscription",
    "TooLarge",
    "TooMany",
]
