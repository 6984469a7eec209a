"""Subscriptions to resources of one upstream, kept while clients of the gateway are subscribed to them."""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection

from millstream import ProtocolError
from millstream._protocol.principal import Share
from millstream._tasks import cancel_all
from millstream.client import ClientError
from millstream.client._conversation import Conversation
from millstream.protocol import INVALID_REQUEST, OVERLOADED, SubscriptionFilter

logger = logging.getLogger("millstream.gateway")

MAX_WATCHED = 1000
"""Maximum watched resources of one upstream, half of them per caller. Callers can watch the same ones."""
_MIN_SIZE = 131
"""A shorter URI counts as this many characters, so that the joint subscription has at most 128 KiB."""
_MAX_SIZE = MAX_WATCHED * _MIN_SIZE
_RETRY = 15.0
"""Seconds before a failed subscription is retried."""


class ResourceWatches:
    """Watches resources of one upstream."""

    def __init__(
        self, name: str, connect: Callable[[], Awaitable[Conversation]], on_update: Callable[[str], None]
    ) -> None:
        """Create the watches. `start` begins those that are already followed.

        Args:
            name: Name of the upstream.
            connect: Returns the conversation to watch on.
            on_update: Called with the upstream's own URI of a resource that has or may have changed.
        """
        self._name = name
        self._connect = connect
        self._on_update = on_update
        self._share = Share(100 * _MAX_SIZE, each=_MAX_SIZE // 2)
        """Characters of each caller's URIs."""
        self._followers: Counter[tuple[str, str]] = Counter()
        """Caller and upstream's URI -> number of streams and connections that follow it."""
        self._owners: Counter[str] = Counter()
        """Upstream's URI -> number of callers."""
        self._size = 0
        """Characters of the watched URIs."""
        self._decisions: dict[str, asyncio.Event] = {}
        """Upstream's URI -> set once the upstream has granted or refused its subscription."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """In the handshake era: upstream's URI -> task. In the per-request era, one task watches all of them."""
        self._changed = asyncio.Event()
        """Set when that task should watch other resources."""

    def check_room(self, owner: str, uris: Collection[str]) -> None:
        """Check that a caller can watch more resources.

        Raises:
            ProtocolError: The caller's share is used up, or the maximum for all callers.
        """
        new = [uri for uri in uris if not self._followers[owner, uri]]
        if not self._share.has_room(owner, sum(map(_size_of, new))):
            held = sum(each == owner for each, _ in self._followers)
            text = (
                f"You watch {held} resources of {self._name!r}. The maximum is {MAX_WATCHED // 2}, and less if their "
            )
            raise ProtocolError(INVALID_REQUEST, f"{text}URIs are long. Unsubscribe from some.")
        if self._size + sum(_size_of(uri) for uri in new if uri not in self._owners) > _MAX_SIZE:
            text = f"Other callers watch too many resources of {self._name!r}. Try again later."
            raise ProtocolError(OVERLOADED, text, status=503)

    def take(self, owner: str, uri: str) -> bool:
        """Watch a resource for one more stream or connection of a caller. Return False if there's no room."""
        if not self._followers[owner, uri]:
            growth = 0 if uri in self._owners else _size_of(uri)
            if self._size + growth > _MAX_SIZE or not self._share.take(owner, _size_of(uri)):
                return False
            self._size += growth
            self._owners[uri] += 1
        self._followers[owner, uri] += 1
        return True

    def leave(self, owner: str, uri: str) -> None:
        """Give back what `take` has counted."""
        self._followers[owner, uri] -= 1
        if not self._followers[owner, uri]:
            del self._followers[owner, uri]
            self._share.leave(owner, _size_of(uri))
            self._owners[uri] -= 1
            if not self._owners[uri]:
                del self._owners[uri]
                self._size -= _size_of(uri)

    def start(self, *, handshake: bool) -> None:
        """Watch the resources that were taken, and no others.

        Args:
            handshake: Whether the upstream uses the handshake era.
        """
        uris = self._owners.keys()
        if uris != self._decisions.keys():
            self._changed.set()
        self._decisions = {uri: self._decisions.get(uri) or asyncio.Event() for uri in uris}
        wanted = set(uris) if handshake or not uris else {""}
        for key in self._tasks.keys() - wanted:
            self._tasks.pop(key).cancel()
        for key in wanted - self._tasks.keys():
            work = self._watch([key], asyncio.Event(), ()) if key else self._watch_jointly()
            self._tasks[key] = asyncio.get_running_loop().create_task(work)

    async def wait_until_settled(self, uris: Collection[str], seconds: float) -> None:
        """Wait until the upstream has granted or refused the subscriptions, for at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for uri in uris:
                    if (event := self._decisions.get(uri)) is not None:
                        await event.wait()

    async def _watch_jointly(self) -> None:
        """Watch all resources with one subscription. Once the upstream grants the next one, the last one ends."""
        tasks: list[asyncio.Task[None]] = []
        self._changed.set()
        try:
            while await self._changed.wait():
                self._changed.clear()
                tasks = [each for each in tasks if not each.cancelling()]
                for refused in tasks[1:]:
                    refused.cancel()
                settled = asyncio.Event()
                newest = asyncio.create_task(self._watch(sorted(self._owners), settled, tasks[:1]))
                tasks = [*tasks[:1], newest]
                await settled.wait()
        finally:
            for task in tasks:
                task.cancel()

    async def _watch(self, uris: list[str], settled: asyncio.Event, older: Collection[asyncio.Task[None]]) -> None:
        while True:
            try:
                conversation = await self._connect()
                async with conversation.watch(SubscriptionFilter(False, False, False, uris)) as changes:
                    for task in older:
                        task.cancel()
                    self._settle(uris, settled)
                    async for change in changes:
                        if change.kind == "resource":
                            self._on_update(change.uri)
                        elif change.kind == "again":
                            for uri in uris:
                                self._on_update(uri)
            except ClientError as exc:
                logger.debug("The subscription to %d resources ended: %s", len(uris), exc)
                self._settle(uris, settled)
            await asyncio.sleep(_RETRY * random.uniform(0.75, 1))  # noqa: S311  jitter

    def _settle(self, uris: list[str], settled: asyncio.Event) -> None:
        settled.set()
        for uri in uris:
            if (event := self._decisions.get(uri)) is not None:
                event.set()

    async def close(self) -> None:
        """Stop watching."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        await cancel_all(*tasks)


def _size_of(uri: str) -> int:
    return max(_MIN_SIZE, len(uri))
