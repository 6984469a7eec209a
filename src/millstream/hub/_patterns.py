"""An index of subscribers by pattern: a tree of segments. Lookup time depends on the channel, not on the patterns."""

from collections.abc import Iterator

from millstream.hub._channels import split_pattern
from millstream.hub._subscriber import Subscription


class _Node:
    """The patterns that start with the same segments."""

    __slots__ = ("children", "ending", "rest")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        """The next segment, or ``*``."""
        self.ending: dict[Subscription, None] = {}
        """Subscribers whose pattern ends here."""
        self.rest: dict[Subscription, None] = {}
        """Subscribers whose pattern continues with ``>``."""

    def __bool__(self) -> bool:
        return bool(self.children or self.ending or self.rest)


class PatternIndex:
    """The subscribers with patterns."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, pattern: str, subscription: Subscription) -> None:
        """Add a subscriber under one of its patterns."""
        segments, rest = split_pattern(pattern)
        node = self._root
        for segment in segments:
            node = node.children.setdefault(segment, _Node())
        (node.rest if rest else node.ending)[subscription] = None

    def discard(self, pattern: str, subscription: Subscription) -> None:
        """Remove a subscriber from one of its patterns, if it is there."""
        segments, rest = split_pattern(pattern)
        path = [self._root]
        for segment in segments:
            node = path[-1].children.get(segment)
            if node is None:
                return
            path.append(node)
        (path[-1].rest if rest else path[-1].ending).pop(subscription, None)
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
            following: list[_Node] = []
            for node in nodes:
                if not hidden:
                    yield from node.rest
                for wanted in (segment,) if hidden else (segment, "*"):
                    child = node.children.get(wanted)
                    if child is not None:
                        following.append(child)
            nodes = following
        for node in nodes:
            yield from node.ending
