"""`Bus` on two streams: one that all workers read, and an inbox for each.

Messages to all are entries of a stream whose offsets are dense, so a worker sees by the hole when it missed some.
"""

from collections.abc import Callable
from typing import Final

from millstream._stores.base import Entry
from millstream._stores.memory.topics import Topics, Watchers
from millstream._stores.redis.inbox import Outbox
from millstream._stores.redis.log import CONTROL, RedisLog

_TTL: Final = 3600.0
_KEPT: Final = 10_000


class RedisBus:
    """Messages."""

    def __init__(self, log: RedisLog, outbox: Outbox) -> None:
        # configuration
        self._log = log
        self._outbox = outbox
        # process
        self._topics = Topics[tuple[int, bytes]]()
        self._interrupted = Watchers()
        self._offset = 0
        """Of the last message that this worker has heard."""
        self._published = 0
        """Of the last one that it has published."""

    def begin(self) -> None:
        """Read along from now on; `RedisLog.listening` makes it so."""
        self._offset = self._published = 0
        self._log.listen(CONTROL, self._hear, interrupted=self._interrupted.tell)

    async def publish(self, topic: str, data: bytes) -> None:
        packed = b"%d:%b%b" % (len(name := topic.encode()), name, data)
        position = await self._log.append(CONTROL, packed, ttl=_TTL, max_entries=_KEPT)
        self._published = max(self._published, position.offset)

    async def send(self, worker: str, topic: str, data: bytes) -> bool:
        return await self._outbox.send(worker, f"t{topic}", data)

    def subscribe(
        self, topic: str, receive: Callable[[bytes], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        after = self._published

        def hear(item: tuple[int, bytes]) -> None:
            if not item[0] or item[0] > after:  # what was published before is on its way, perhaps
                receive(item[1])

        stop_hearing = self._topics.add(topic, hear)
        if interrupted is None:
            return stop_hearing
        stop_watching = self._interrupted.add(interrupted)

        def stop() -> None:
            stop_hearing()
            stop_watching()

        return stop

    def take(self, topic: str, data: bytes) -> None:
        """A message came to the inbox."""
        self._topics.tell(topic, (0, data))

    def interrupt(self) -> None:
        """Messages to this worker may have been lost."""
        self._interrupted.tell()

    def end_all(self) -> None:
        """Nobody listens any more."""
        self._topics.clear()
        self._interrupted.clear()

    def _hear(self, entry: Entry) -> None:
        last, self._offset = self._offset, entry.position.offset
        if last and entry.position.offset != last + 1:
            self._interrupted.tell()
        length, _, rest = entry.data.partition(b":")
        size = int(length)
        self._topics.tell(rest[:size].decode(), (entry.position.offset, rest[size:]))
