"""A reader that follows a stream: it delivers entries once, in order, and reports losses.

A store pushes entries in order or calls `interrupted` (`Log.listen`). While the reader is up to date, a pushed entry is
delivered immediately, without a read. After an interruption, the stream is read from the reader's position, and `Gap`
shows whether entries are missing.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

from millstream._stores.base import Entry, Gap, Log, Position
from millstream._tasks import Tasks, cancel_all, has_failed
from millstream._troubles import LogOnce, Troubles, run_on

T = TypeVar("T")


def channel_for(stream: str, topic: str | None) -> str:
    """Return the channel name for listeners to a stream's topic, or to all entries."""
    return stream if topic is None else f"{stream}\0{topic}"


class Topics(Generic[T]):
    """Listeners by topic. They're called directly, so there is no queue to bound."""

    def __init__(self) -> None:
        self._by_topic: dict[str, dict[object, Callable[[T], None]]] = {}

    def __contains__(self, topic: str) -> bool:
        return topic in self._by_topic

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_topic)

    def notify(self, topic: str, item: T) -> None:
        """Call all listeners in order, except listeners that are added or removed during the calls."""
        listeners = self._by_topic.get(topic, {})
        for mark in tuple(listeners):
            call = listeners.get(mark)
            if call is not None:
                call(item)

    def add(self, topic: str, callback: Callable[[T], None]) -> Callable[[], None]:
        """Add a listener. Return an idempotent function that removes it, even during a delivery."""
        mark, listeners = object(), self._by_topic.setdefault(topic, {})
        listeners[mark] = callback

        def stop() -> None:
            if listeners.pop(mark, None) is not None and not listeners:
                del self._by_topic[topic]

        return stop

    def clear(self) -> None:
        """Remove all listeners."""
        for listeners in self._by_topic.values():
            listeners.clear()
        self._by_topic.clear()


class Watchers(Topics[None]):
    """Watchers of one value. They're called directly, so there is no queue to bound."""

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Add a watcher. Return an idempotent function that removes it."""
        return self.add("", lambda _: changed())

    def notify_all(self) -> None:
        """Call all watchers, except watchers that are removed during the calls."""
        self.notify("", None)


class Listeners(Generic[T]):
    """Listeners for pushed entries, by stream and topic. A log may inherit from this class.

    Listeners to one topic and to all entries have separate channels (`channel_for`).
    """

    def __init__(self) -> None:
        self._listeners = Topics[T]()
        """Listeners by channel."""
        self._interrupted = Topics[None]()
        """`interrupted` callbacks by stream."""

    def listen(
        self,
        stream: str,
        hear: Callable[[T], None],
        *,
        interrupted: Callable[[], None] | None = None,
        topic: str | None = None,
    ) -> Callable[[], None]:
        """Add a listener, as `Log.listen` does. Return an idempotent function that removes it."""
        channel = channel_for(stream, topic)
        if channel not in self._listeners:
            self._follow(channel)
        stop_hearing = self._listeners.add(channel, hear)
        stop_watching = never if interrupted is None else self._interrupted.add(stream, lambda _: interrupted())

        def stop() -> None:
            stop_hearing()
            stop_watching()
            if channel not in self._listeners:
                self._leave(channel)

        return stop

    def topics(self, stream: str) -> set[str | None]:
        """Return the topics of a stream that have listeners. None means all entries."""
        parts = (channel.partition("\0") for channel in self._listeners)
        return {topic if is_topic else None for name, is_topic, topic in parts if name == stream}

    def push(self, stream: str, topic: str, item: T) -> None:
        """Call the listeners to a stream, to a topic, and to the topic's first segment."""
        self._listeners.notify(stream, item)
        if topic:
            for each in (f"{topic.partition('.')[0]}.", topic):
                self._listeners.notify(channel_for(stream, each), item)

    def interrupt(self, stream: str | None = None) -> None:
        """Notify the listeners to a stream, or all of them, that they may have missed something."""
        for each in tuple(self._interrupted) if stream is None else (stream,):
            self._interrupted.notify(each, None)

    def remove_listeners(self) -> None:
        """Remove all listeners."""
        self._listeners.clear()
        self._interrupted.clear()

    def _follow(self, channel: str) -> None:
        """Prepare for a channel's first listener."""

    def _leave(self, channel: str) -> None:
        """Release the resources of a channel without listeners. This may be called again."""


def never() -> None:
    """Do nothing. It's the unsubscribe function for an event that never happens."""


PATIENCE = 1.0
"""Seconds to wait for an entry to be pushed before reading it."""
_PAGE = 500

_logger = logging.getLogger("millstream.stores")


class Tail:
    """A reader of one stream. It starts listening when it's created.

    Example:
        >>> tail = Tail(store.log, store.troubles, "stream", position, take, lost)
        >>> await tail.catch_up()  # existing entries
        >>> tail.start()  # new entries, until it's closed
        >>> await tail.close()
    """

    def __init__(
        self,
        log: Log,
        troubles: Troubles,
        stream: str,
        after: Position | None,
        take: Callable[[Sequence[Entry]], None],
        lost: Callable[[Gap], None],
        *,
        drain: Callable[[], Awaitable[None]] | None = None,
        topic: str | None = None,
        moved: Callable[[Position], None] = lambda _: None,
    ) -> None:
        """Create a reader and start listening. Nothing is read yet.

        Args:
            log: The log of an open store.
            troubles: Lists failures to read it.
            stream: The name of the stream.
            after: The position to read after, or None to read from the oldest entry.
            take: Called with the next entry, in order. An entry for which it raises is reported as lost.
            lost: Called before the entries that follow a loss.
            drain: Awaited after each entry that is read, to apply backpressure.
            topic: The topic to follow, None for all entries, or empty for none. See `follow`.
            moved: Called with a position before which there are no more entries to follow.
        """
        self._log = log
        self._stream = stream
        self._take = take
        self._lost = lost
        self._drain = drain
        self._moved = moved
        self.position = after
        """The position up to which entries were delivered or reported as lost."""
        self._lock = asyncio.Lock()
        """Serializes reads, to keep entries in order."""
        self._news = asyncio.Event()
        name = stream.partition(":")[0]
        self._log_once = LogOnce(
            troubles, f"The stream {name} can't be read; retrying", f"The stream {name} can be read again."
        )
        self._listens = False
        """Whether the store pushes every append."""
        self._in_step = False
        """Whether every entry after `position` has been pushed."""
        self._pushed_offset = sys.maxsize
        """The lowest offset of another epoch that was pushed since the last read."""
        self._failure: type[Exception] | None = None
        """The type of the last error while processing an entry. Each type is logged when it follows another one."""
        self._waiting: list[tuple[Position, asyncio.Future[bool]]] = []
        """Callers of `reach`."""
        self._turns = Tasks()
        """Calls of `_settle`. Closing the store ends them at the latest."""
        self._turn_lock = asyncio.Lock()
        self._next_turn: asyncio.Task[None] | None = None
        """The turn that hasn't begun."""
        self._task: asyncio.Task[None] | None = None
        self._pushes_all = topic is None
        """Whether the first listener receives all entries. It always does if the store can't filter."""
        hear = self._hear_unwanted if topic == "" else self._hear
        self._stops = {log.listen(stream, hear, interrupted=self._interrupt, topic=topic): None}

    def follow(self, topic: str | None) -> Callable[[], None]:
        """Follow another topic. Call `settle` before relying on it. Return a function that stops it.

        After an interruption, entries of all topics are delivered.
        """
        if self._pushes_all:
            return never
        stop = self._log.listen(self._stream, self._hear, topic=topic)
        self._stops[stop] = None

        def leave() -> None:
            self._stops.pop(stop, None)
            stop()

        return leave

    def start(self) -> None:
        """Deliver entries in a task, until `stop`."""
        self._task = asyncio.create_task(self.run())

    def stop(self) -> None:
        """Stop listening. Idempotent."""
        for stop in self._stops:
            stop()
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Stop listening and wait for the task of `start` to end. Idempotent."""
        self.stop()
        await cancel_all(self._task)

    async def settle(self) -> None:
        """Deliver every followed entry that was appended before this call and move the position past all others.

        Callers that wait at the same time share the work: at most one turn is in progress, and one is waiting.

        Raises:
            LocalError, OSError: The store can't be read.
        """
        if self._next_turn is None:
            self._next_turn = self._turns.spawn(self._settle())
            self._next_turn.add_done_callback(has_failed)
        await asyncio.shield(self._next_turn)

    async def _settle(self) -> None:
        async with self._turn_lock:
            self._next_turn = None
            if not self._pushes_all:
                at, here = await self._log.wait_until_listening(self._stream), self.position
                if at is not None and here is not None and at.epoch == here.epoch and self._is_current:
                    if at.offset > here.offset:
                        self._moved(at)
                        self._advance(at)
                    return
            await self.catch_up()

    @property
    def pushes_all(self) -> bool:
        """Whether the store pushes every entry after the position, regardless of the topics that are followed."""
        return self._in_step and self._pushes_all

    @property
    def _is_current(self) -> bool:
        """Whether pushes are delivered immediately."""
        return self._in_step and not self._lock.locked()

    async def catch_up(self) -> None:
        """Deliver every entry that was appended before this call.

        Raises:
            LocalError, OSError: The store can't be read.
        """
        async with self._lock:
            if not self._listens:
                await self._log.wait_until_listening(self._stream)
                self._listens = True
            self._in_step = True
            try:
                while await self._read():
                    pass
            except BaseException:
                self._in_step = False
                raise

    async def run(self) -> None:
        """Deliver entries until canceled. Retry after store failures."""
        if not self._listens:
            self._news.set()
        await run_on(self._news, self.catch_up, self._log_once)

    async def reach(self, at: Position) -> None:
        """Wait until all entries up to a position have been delivered. This process appended the last of them.

        Read the stream if the entry isn't pushed within `PATIENCE`.
        """
        here = self.position
        if here is not None and here.epoch == at.epoch and here.offset >= at.offset:
            return
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[bool] = loop.create_future()
        self._waiting.append((at, arrived))
        timer = loop.call_later(PATIENCE, _finish, arrived, False)  # cheaper than `asyncio.timeout`
        try:
            if not await arrived:
                await self.catch_up()
        finally:
            timer.cancel()

    def _advance(self, position: Position) -> None:
        self.position = position
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for at, arrived in waiting:
                if at.epoch == position.epoch and at.offset <= position.offset:
                    _finish(arrived, True)
                elif not arrived.done():
                    self._waiting.append((at, arrived))

    def _hear(self, entry: Entry) -> None:
        here, at = self.position, entry.position
        if here is not None and here.epoch != at.epoch:
            self._pushed_offset = min(self._pushed_offset, at.offset)
            self._interrupt()
        elif not self._is_current or here is None:
            self._interrupt()
        elif at.offset > here.offset:
            try:
                self._take((entry,))
            except Exception as exc:
                self._skip(entry, exc)
            self._advance(at)

    def _hear_unwanted(self, entry: Entry) -> None:
        self._pushes_all = True
        self._hear(entry)

    def _interrupt(self) -> None:
        self._in_step = False
        self._news.set()

    async def _read(self) -> bool:
        """Read and deliver one page. Return False if there was nothing left to read."""
        here = self.position
        try:
            entries = await self._log.read(self._stream, here, _PAGE)
        except Gap as gap:
            after = gap.resume_from(here)
            if here is not None and here.epoch != gap.epoch:
                # Entries of another epoch may have been delivered already. Continue with those that are certainly new.
                after = gap.newest
                if after is not None and self._pushed_offset <= after.offset:
                    after = Position(after.epoch, self._pushed_offset - 1) if self._pushed_offset > 1 else None
                gap = Gap(gap.epoch, gap.oldest, after)
            self._pushed_offset = sys.maxsize
            self.position = after
            self._lost(gap)
            return True
        self._pushed_offset = sys.maxsize
        if not entries:
            return False
        for entry in entries:
            try:
                self._take((entry,))
            except Exception as exc:
                self._skip(entry, exc)
            self._advance(entry.position)
            if self._drain is not None:
                await self._drain()
        return True

    def _skip(self, entry: Entry, failure: Exception) -> None:
        """Report an entry as lost that can't be processed. It would fail again, and hold up all later ones."""
        if self._failure is not type(failure):
            name = self._stream.partition(":")[0]
            _logger.error("An entry of the stream %s can't be processed, and is skipped", name, exc_info=failure)
        self._failure = type(failure)
        self.position = entry.position
        self._lost(Gap(entry.position.epoch, entry.position, entry.position))


def _finish(arrived: asyncio.Future[bool], result: bool) -> None:
    if not arrived.done():
        arrived.set_result(result)
