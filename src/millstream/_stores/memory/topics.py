"""Who listens to what, in this process: to a topic, or to one thing that changes."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _Listener(Generic[T]):
    __slots__ = ("active", "heard")

    def __init__(self, heard: Callable[[T], None]) -> None:
        self.heard = heard
        self.active = True


class Topics(Generic[T]):
    """Listeners by topic. Plain calls: everybody has heard when `tell` returns, so there is no queue to bound."""

    __slots__ = ("_by_topic",)

    def __init__(self) -> None:
        # Replaced, never changed: a delivery under way keeps walking the tuple it began with.
        self._by_topic: dict[str, tuple[_Listener[T], ...]] = {}

    def __contains__(self, topic: str) -> bool:
        return topic in self._by_topic

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_topic)

    def tell(self, topic: str, item: T) -> None:
        """Call everybody who listens, in the order in which they came."""
        for listener in self._by_topic.get(topic, ()):
            if listener.active:
                listener.heard(item)

    def add(self, topic: str, heard: Callable[[T], None]) -> Callable[[], None]:
        """Listen; the returned function stops it, also in the middle of a delivery, and may be called again."""
        listener = _Listener(heard)
        self._by_topic[topic] = (*self._by_topic.get(topic, ()), listener)

        def stop() -> None:
            if not listener.active:
                return
            listener.active = False
            others = tuple(other for other in self._by_topic[topic] if other is not listener)
            if others:
                self._by_topic[topic] = others
            else:
                del self._by_topic[topic]

        return stop

    def clear(self) -> None:
        """Nobody listens any more."""
        for listeners in self._by_topic.values():
            for listener in listeners:
                listener.active = False
        self._by_topic.clear()


class Watchers:
    """Plain calls: everybody has heard when `tell` returns."""

    __slots__ = ("_callbacks",)

    def __init__(self) -> None:
        self._callbacks: dict[object, Callable[[], None]] = {}

    def add(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call it from now on; returns the way to stop, which may be called again."""
        mark = object()
        self._callbacks[mark] = changed

        def stop() -> None:
            self._callbacks.pop(mark, None)

        return stop

    def tell(self) -> None:
        """Call them all, but those that are stopped meanwhile."""
        for mark in tuple(self._callbacks):
            call = self._callbacks.get(mark)
            if call is not None:
                call()

    def clear(self) -> None:
        """Nobody is called any more."""
        self._callbacks.clear()


def never() -> None:
    """What stops watching for what never happens."""
