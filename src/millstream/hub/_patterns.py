"""An index of subscribers by pattern: a tree of segments. Lookup time doesn't depend on the number of patterns."""

from collections.abc import Iterator

from millstream.hub._channels import split_pattern
from millstream.hub._subscriber import Subscription


class _Node:
    """The patterns that start with the same segments."""

    __slots__ = ("children", "rest_subscribers", "subscribers")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        """Nodes by the next segment, which can be ``*``."""
        self.subscribers: dict[Subscription, None] = {}
        """Subscribers whose pattern ends here."""
        self.rest_subscribers: dict[Subscription, None] = {}
        """Subscribers whose pattern ends with ``>`` after this node."""

    def __bool__(self) -> bool:
        return bool(self.children or self.subscribers or self.rest_subscribers)


class PatternIndex:
    """The subscribers with patterns."""

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, pattern: str, subscription: Subscription) -> None:
        """Add a subscriber under one of its patterns."""
        segments, rest = split_pattern(pattern)
        node = self._root
        for segment in segments:
            node = node.children.setdefault(segment, _Node())
        (node.rest_subscribers if rest else node.subscribers)[subscription] = None

    def discard(self, pattern: str, subscription: Subscription) -> None:
        """Remove a subscriber from one of its patterns. Idempotent."""
        segments, rest = split_pattern(pattern)
        path = [self._root]
        for segment in segments:
            node = path[-1].children.get(segment)
            if node is None:
                return
            path.append(node)
        (path[-1].rest_subscribers if rest else path[-1].subscribers).pop(subscription, None)
        for parent, segment in zip(reversed(path[:-1]), reversed(segments), strict=True):
            if parent.children[segment]:
                return
            del parent.children[segment]

    def find(self, channel: str) -> Iterator[Subscription]:
        """Yield the subscribers with a pattern that matches a channel, once per matching pattern."""
        segments = channel.split(".")
        # A leading wildcard doesn't match the hub's own channels.
        nodes = [self._root]
        for number, segment in enumerate(segments):
            hidden = not number and segment.startswith("$")
            children: list[_Node] = []
            for node in nodes:
                if not hidden:
                    yield from node.rest_subscribers
                for name in (segment,) if hidden else (segment, "*"):
                    child = node.children.get(name)
                    if child is not None:
                        children.append(child)
            nodes = children
        for node in nodes:
            yield from node.subscribers
