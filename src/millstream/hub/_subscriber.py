"""A subscriber: an outlet for bytes, its channels, and its identity. An index finds subscribers by pattern. A
subscriber doesn't need a queue or a task: the outlet is the bounded queue, and the hub checks its unread bytes. Several
subscriptions can share an outlet, which gets each event once. The index is a tree of segments, so its lookup time
doesn't depend on the number of patterns.
"""

from collections.abc import Callable, Iterator
from typing import Literal

from msgspec import Struct

from millstream._copies import NotCopyable
from millstream._http.message import OutputStream
from millstream._protocol.principal import Principal
from millstream.hub._channels import is_pattern, matches, split_pattern
from millstream.hub._event import Event
from millstream.hub._presence import Member, Place

Encode = Callable[[Event], bytes]
"""Encodes an event for one kind of outlet, or returns empty bytes if that kind can't represent it.

Subscribers with the same function object share the result, so use a module-level function.
"""

Action = Literal["publish", "subscribe"]
Authorize = Callable[[Principal | None, Action, str], bool]
"""``authorize(principal, action, channel)`` returns whether an action, ``publish`` or ``subscribe``, is allowed.

It must not block. If it raises, access is denied. ``$presence.X`` is checked as ``X``. For a subscription with
wildcards, it's called with the pattern, and later with each matching channel on its first publication.
"""


class Subscription(Struct, NotCopyable, eq=False):
    """One subscriber of the hub. ``subscription.close()``"""

    channels: tuple[str, ...]
    outlet: OutputStream
    encode: Encode
    _leave: Callable[["Subscription"], None]
    mailbox: str = ""
    """The mailbox's client, or an empty string."""
    member: Member | None = None
    """The client's presence entry, or None without a client id."""
    principal: Principal | None = None
    address: str = ""
    authorize: Authorize | None = None
    transport: str = ""
    """The transport, for statistics."""
    has_wildcard: bool = False
    joined: bool = False
    """Whether the subscriber has caught up and receives new events."""
    since: int = 0
    """Wanted events after this offset have been written to the outlet."""
    last_change: int = 0
    """Presence changes after this number have been written to the outlet."""

    def __post_init__(self) -> None:
        self.has_wildcard = any(map(is_pattern, self.channels))

    @property
    def places(self) -> list[Place]:
        """The channels where the subscriber's client is present."""
        if (member := self.member) is None:
            return []
        return [(each, member.key) for each in self.channels if not each.startswith("$") and not is_pattern(each)]

    def matches(self, channel: str) -> bool:
        """Return whether events of a channel are for this subscriber.

        Args:
            channel: The channel of an event.
        """
        if channel in self.channels:
            return True
        if not self.has_wildcard or not any(matches(pattern, channel) for pattern in self.channels):
            return False
        return self.authorize is None or self.authorize(self.principal, "subscribe", channel)

    def write(self, event: Event) -> None:
        """Write an event to this subscriber only.

        Args:
            event: The event, which the subscription's encoder turns into bytes.
        """
        chunk = self.encode(event)
        if chunk:
            self.outlet.write(chunk)

    def close(self) -> None:
        """End the subscription and its outlet. Idempotent."""
        self.outlet.close()

    def handle_close(self) -> None:
        """Unsubscribe after the outlet was closed or stopped carrying this subscription."""
        self._leave(self)


class PatternIndex(Struct):
    """The subscribers with patterns that start with the same segments. The root has all of them."""

    _children: dict[str, "PatternIndex"] = {}
    """Nodes by the next segment, which can be ``*``."""
    _subscribers: dict[Subscription, None] = {}
    """Subscribers with a pattern that ends here."""
    _rest_subscribers: dict[Subscription, None] = {}
    """Subscribers with a pattern that ends with ``>`` after this node."""

    def __bool__(self) -> bool:
        return bool(self._children or self._subscribers or self._rest_subscribers)

    def add(self, pattern: str, subscription: Subscription) -> None:
        """Add a subscriber under one of its patterns."""
        segments, rest = split_pattern(pattern)
        node = self
        for segment in segments:
            node = node._children.setdefault(segment, PatternIndex())
        (node._rest_subscribers if rest else node._subscribers)[subscription] = None

    def discard(self, pattern: str, subscription: Subscription) -> None:
        """Remove a subscriber from one of its patterns. Idempotent."""
        segments, rest = split_pattern(pattern)
        path: list[PatternIndex] = [self]
        for segment in segments:
            node = path[-1]._children.get(segment)
            if node is None:
                return
            path.append(node)
        (path[-1]._rest_subscribers if rest else path[-1]._subscribers).pop(subscription, None)
        for parent, segment in zip(reversed(path[:-1]), reversed(segments), strict=True):
            if parent._children[segment]:
                return
            del parent._children[segment]

    def find(self, channel: str) -> Iterator[Subscription]:
        """Yield the subscribers with a pattern that matches a channel, once per matching pattern."""
        segments = channel.split(".")
        # A leading wildcard doesn't match the hub's own channels.
        nodes = [self]
        for number, segment in enumerate(segments):
            hidden = not number and segment.startswith("$")
            children: list[PatternIndex] = []
            for node in nodes:
                if not hidden:
                    yield from node._rest_subscribers
                for name in (segment,) if hidden else (segment, "*"):
                    child = node._children.get(name)
                    if child is not None:
                        children.append(child)
            nodes = children
        for node in nodes:
            yield from node._subscribers
