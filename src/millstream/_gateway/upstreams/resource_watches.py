"""Subscriptions to the resources of one upstream, so that a worker watches each resource once for all callers."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence

from msgspec import Struct, field

from millstream import ProtocolError
from millstream._gateway.log import logger
from millstream._protocol.principal import Share
from millstream._tasks import cancel_all
from millstream.client import ClientError
from millstream.client.lowlevel import Conversation
from millstream.protocol import INVALID_REQUEST, OVERLOADED

MAX_WATCHED = 1000
"""Maximum watched resources per upstream, half of them per caller. Callers can watch the same ones."""
_MIN_SIZE = 131
"""A shorter URI counts as this many characters, so that the joint subscription has at most 128 KiB."""
_MAX_SIZE = MAX_WATCHED * _MIN_SIZE
_RETRY = 15.0
"""Seconds before a failed subscription is retried."""


class _JointWatch(Struct, eq=False):
    """A subscription to some resources of an upstream."""

    uris: set[str]
    replaced: Sequence["_JointWatch"] = ()
    """Subscriptions that end when this one is granted."""
    task: asyncio.Task[None] | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the upstream has granted or rejected it."""
    is_granted: bool = False
    ended: bool = False

    def end(self) -> None:
        """Unsubscribe."""
        self.ended = True
        if self.task is not None:
            self.task.cancel()


class ResourceWatches(Struct):
    """Watches resources of one upstream. `start` subscribes to resources that clients already follow."""

    name: str
    """Name of the upstream."""
    connect: Callable[[], Awaitable[Conversation]]
    """Returns the conversation to watch on."""
    on_update: Callable[[str], None]
    """Called with the upstream's own URI of a resource that has or may have changed."""
    share: Share = field(default_factory=lambda: Share(100 * _MAX_SIZE, each=_MAX_SIZE // 2))
    """Counts the characters of each caller's URIs."""
    watched: dict[str, Counter[str]] = {}
    """Upstream's URI -> caller -> number of its streams and connections that follow it."""
    size: int = 0
    """Characters of the watched URIs."""
    decisions: dict[str, asyncio.Event] = {}
    """Upstream's URI -> set when the upstream has granted or rejected its subscription."""
    reported: set[str] = set()
    """Watched URIs that the upstream has reported on a subscription, so it doesn't announce them to sessions alone."""
    tasks: dict[str, asyncio.Task[None]] = {}
    """In the handshake era: upstream's URI -> task. In the per-request era, one task watches all of them."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when that task should watch other resources."""

    def check_room(self, owner: str, uris: Collection[str]) -> None:
        """Check that a caller can watch more resources.

        Raises:
            ProtocolError: The caller's share is used up, or the maximum for all callers.
        """
        new = [uri for uri in uris if owner not in self.watched.get(uri, ())]
        if not self.share.has_room(owner, sum(map(_size_of, new))):
            held = sum(owner in callers for callers in self.watched.values())
            raise ProtocolError(
                INVALID_REQUEST,
                f"You're watching {held} resources on {self.name!r}. The maximum is {MAX_WATCHED // 2}, or fewer if "
                "their URIs are long. Unsubscribe from some.",
            )
        if self.size + sum(_size_of(uri) for uri in new if uri not in self.watched) > _MAX_SIZE:
            text = f"Other callers are watching too many resources on {self.name!r}. Try again later."
            raise ProtocolError(OVERLOADED, text, status=503)

    def take(self, owner: str, uri: str) -> bool:
        """Watch a resource for one more stream or connection of a caller. Return False if the share is used up."""
        callers = self.watched.get(uri, Counter())
        if owner not in callers:
            growth = 0 if callers else _size_of(uri)
            if self.size + growth > _MAX_SIZE or not self.share.take(owner, _size_of(uri)):
                return False
            self.size += growth
            self.watched[uri] = callers
            if not callers:
                self.decisions[uri] = asyncio.Event()
                self.changed.set()
        callers[owner] += 1
        return True

    def leave(self, owner: str, uri: str) -> None:
        """Release a count from `take`."""
        callers = self.watched[uri]
        callers[owner] -= 1
        if not callers[owner]:
            del callers[owner]
            self.share.leave(owner, _size_of(uri))
        if not callers:
            del self.watched[uri], self.decisions[uri]
            self.reported.discard(uri)
            self.size -= _size_of(uri)
            self.changed.set()

    def note(self, uri: str) -> None:
        """Remember that the upstream has reported an update on the connection of the subscriptions."""
        if uri in self.watched:
            self.reported.add(uri)

    def reports(self, uri: str) -> bool:
        """Return whether the subscriptions report updates of a resource, so that a client's own session at the upstream
        only repeats them. Granting a subscription isn't enough: some servers grant all, and announce to sessions only.
        """
        return uri in self.reported

    def start(self, *, handshake: bool) -> None:
        """Watch only the resources that were taken.

        Args:
            handshake: Whether the upstream uses the handshake era.
        """
        wanted = set(self.watched) if handshake or not self.watched else {""}
        for key in self.tasks.keys() - wanted:
            self.tasks.pop(key).cancel()
        for key in wanted - self.tasks.keys():
            work = self._watch(_JointWatch({key})) if key else self._watch_jointly()
            self.tasks[key] = asyncio.create_task(work)

    async def wait_until_settled(self, uris: Collection[str], seconds: float) -> None:
        """Wait until the upstream has granted or rejected the subscriptions, for at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for uri in uris:
                    if (event := self.decisions.get(uri)) is not None:
                        await event.wait()

    async def _watch_jointly(self) -> None:
        """Watch all resources with few subscriptions, because each one has to list all its resources. New resources get
        a new subscription, which replaces smaller ones, so each subscription has more resources than the next. Once the
        upstream grants a subscription, those that it replaces end.
        """
        open: list[_JointWatch] = []
        self.changed.set()
        try:
            while await self.changed.wait():
                self.changed.clear()
                kept: list[_JointWatch] = []
                new = set(self.watched)
                open = [each for each in open if not each.ended]
                for each in open:  # the largest first
                    useful = self.watched.keys() & each.uris
                    if each.is_granted and 2 * len(useful) > len(each.uris):
                        kept.append(each)
                        new -= useful
                        self._settle(each)
                while new and kept and len(kept[-1].uris) <= len(new):
                    new |= self.watched.keys() & kept.pop().uris
                replaced = [each for each in open if each not in kept]
                for each in replaced:
                    if not (each.is_granted and new):
                        each.end()
                if new:
                    watch = _JointWatch(new, replaced)
                    watch.task = asyncio.create_task(self._watch(watch))
                    open = [*kept, *replaced, watch]
                    await watch.settled.wait()
        finally:
            for each in open:
                each.end()

    async def _watch(self, watch: "_JointWatch") -> None:
        uris = sorted(watch.uris)
        while True:
            try:
                conversation = await self.connect()
                async with conversation.watch(*uris) as changes:
                    watch.is_granted = True
                    for each in watch.replaced:
                        each.end()
                    watch.replaced = ()
                    self._settle(watch)
                    async for change in changes:
                        if change.kind == "resource":
                            self.on_update(change.uri)
                        elif change.kind == "again":
                            for uri in uris:
                                self.on_update(uri)
            except ClientError as exc:
                logger.debug("The subscription to %d resources ended: %s", len(uris), exc)
                self._settle(watch)
            except Exception:  # our own error; without this, later subscriptions would wait for this one
                logger.exception("The subscription to %d resources failed; retrying", len(uris))
                self._settle(watch)
            await asyncio.sleep(_RETRY * random.uniform(0.75, 1))  # noqa: S311  jitter

    def _settle(self, watch: "_JointWatch") -> None:
        watch.settled.set()
        for uri in watch.uris:
            if (event := self.decisions.get(uri)) is not None:
                event.set()

    async def close(self) -> None:
        """Cancel the tasks that watch resources."""
        tasks = list(self.tasks.values())
        self.tasks.clear()
        await cancel_all(*tasks)


def _size_of(uri: str) -> int:
    return max(_MIN_SIZE, len(uri))
