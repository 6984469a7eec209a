"""Listeners in this process, for a topic or for changes to one value."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


def channel_for(stream: str, topic: str | None) -> str:
    """Return the name under which listeners of a stream's topic, or of all its entries, are called."""
    return stream if topic is None else f"{stream}\0{topic}"


def channels_for(stream: str, topic: str) -> tuple[str, ...]:
    """Return the names under which listeners receive an entry."""
    if not topic:
        return (stream,)
    return stream, channel_for(stream, f"{topic.partition('.')[0]}."), channel_for(stream, topic)


class _Listener(Generic[T]):
    __slots__ = ("active", "callback")

    def __init__(self, callback: Callable[[T], None]) -> None:
        self.callback = callback
        self.active = True


class Topics(Generic[T]):
    """Listeners by topic. They're called directly, so there is no queue to bound."""

    def __init__(self) -> None:
        # Tuples are replaced, never changed, so adding a listener doesn't affect a delivery in progress.
        self._by_topic: dict[str, tuple[_Listener[T], ...]] = {}

    def __contains__(self, topic: str) -> bool:
        return topic in self._by_topic

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_topic)

    def __len__(self) -> int:
        return len(self._by_topic)

    def notify(self, topic: str, item: T) -> None:
        """Call all listeners in the order they were added."""
        for listener in self._by_topic.get(topic, ()):
            if listener.active:
                listener.callback(item)

    def add(self, topic: str, callback: Callable[[T], None]) -> Callable[[], None]:
        """Add a listener. Return an idempotent function that removes it, even during a delivery."""
        listener = _Listener(callback)
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
        """Remove all listeners."""
        for listeners in self._by_topic.values():
            for listener in listeners:
                listener.active = False
        self._by_topic.clear()


class Watchers:
    """Watchers of one value. They're called directly, so there is no queue to bound."""

    def __init__(self) -> None:
        self._callbacks: dict[object, Callable[[], None]] = {}

    def add(self, changed: Callable[[], None] | None) -> Callable[[], None]:
        """Add a watcher, if there is one. Return an idempotent function that removes it."""
        if changed is None:
            return never
        mark = object()
        self._callbacks[mark] = changed

        def stop() -> None:
            self._callbacks.pop(mark, None)

        return stop

    def notify(self) -> None:
        """Call all watchers, except those removed during the calls."""
        for mark in tuple(self._callbacks):
            call = self._callbacks.get(mark)
            if call is not None:
                call()

    def clear(self) -> None:
        """Remove all watchers."""
        self._callbacks.clear()


def never() -> None:
    """Do nothing. It's the unsubscribe function for an event that never happens."""
