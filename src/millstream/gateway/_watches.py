"""Subscriptions to resources of one upstream, kept while clients of the gateway are subscribed to them."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Sequence

from millstream._protocol.messages import SubscriptionFilter
from millstream.client._conversation import Conversation
from millstream.client._errors import ClientError

logger = logging.getLogger("millstream.gateway")

MAX_WATCHED = 1000
"""Maximum resources of one upstream that are watched at once."""
_RETRY = 15.0
"""Seconds before a failed subscription is retried."""


class ResourceWatches:
    """Watches resources of one upstream."""

    __slots__ = ("_all", "_connect", "_each", "_settled", "_updated", "_wanted")

    def __init__(self, connect: Callable[[], Awaitable[Conversation]], updated: Callable[[str], None]) -> None:
        """Create the watches; `want` starts them.

        Args:
            connect: returns the conversation to watch on.
            updated: called with the upstream's own URI of a resource that has or may have changed.
        """
        self._connect = connect
        self._updated = updated
        self._wanted: frozenset[str] = frozenset()
        self._settled: dict[str, asyncio.Event] = {}
        """Upstream's URI -> set once the upstream has granted or refused its subscription."""
        self._each: dict[str, asyncio.Task[None]] = {}
        """In the handshake era: upstream's URI -> task."""
        self._all: list[asyncio.Task[None]] = []
        """In the per-request era: the subscriptions to all resources, the newest last."""

    def want(self, uris: frozenset[str], *, handshake: bool) -> None:
        """Set the resources to watch, replacing earlier ones.

        Args:
            uris: the upstream's own URIs.
            handshake: whether the upstream uses the handshake era.
        """
        if len(uris) > MAX_WATCHED:
            logger.warning(
                "Clients are subscribed to %d resources of an upstream, which is more than can be watched", len(uris)
            )
            uris = frozenset(sorted(uris)[:MAX_WATCHED])
        changed, self._wanted = uris != self._wanted, uris
        self._settled = {uri: self._settled.get(uri) or asyncio.Event() for uri in uris}
        start = asyncio.get_running_loop().create_task
        if handshake:
            self._end(self._all)
            for uri in self._each.keys() - uris:
                self._each.pop(uri).cancel()
            for uri in uris - self._each.keys():
                self._each[uri] = start(self._watch((uri,), ()))
        elif changed:
            self._end(list(self._each.values()))
            self._each.clear()
            older = list(self._all)
            if uris:
                self._all.append(start(self._watch(sorted(uris), older)))
            else:
                self._end(older)

    async def wait_until_settled(self, uris: Collection[str], seconds: float) -> None:
        """Wait until the upstream has granted or refused the subscriptions, for at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for uri in uris:
                    if (event := self._settled.get(uri)) is not None:
                        await event.wait()

    def _end(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in list(tasks):
            task.cancel()
            if task in self._all:
                self._all.remove(task)

    def _settle(self, uris: Sequence[str]) -> None:
        for uri in uris:
            if (event := self._settled.get(uri)) is not None:
                event.set()

    async def _watch(self, uris: Sequence[str], older: Sequence[asyncio.Task[None]]) -> None:
        while True:
            try:
                conversation = await self._connect()
                async with conversation.watch(SubscriptionFilter(False, False, False, list(uris))) as changes:
                    self._end(older)
                    self._settle(uris)
                    async for change in changes:
                        if change.kind == "resource":
                            self._updated(change.uri)
                        elif change.kind == "again":
                            for uri in uris:
                                self._updated(uri)
            except ClientError as exc:
                logger.debug("The subscription to %d resources ended: %s", len(uris), exc)
                self._settle(uris)
            await asyncio.sleep(_RETRY * random.uniform(0.75, 1))  # noqa: S311  it's no secret

    async def close(self) -> None:
        """Stop watching."""
        tasks = [*self._all, *self._each.values()]
        self._all.clear()
        self._each.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
