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
"""Maximum watched resources of one upstream."""
_RETRY = 15.0
"""Seconds before a failed subscription is retried."""


class ResourceWatches:
    """Watches resources of one upstream."""

    __slots__ = ("_connect", "_decisions", "_joint_tasks", "_on_update", "_tasks_by_uri", "_uris")

    def __init__(self, connect: Callable[[], Awaitable[Conversation]], on_update: Callable[[str], None]) -> None:
        """Create the watches; `set_resources` starts them.

        Args:
            connect: returns the conversation to watch on.
            on_update: called with the upstream's own URI of a resource that has or may have changed.
        """
        self._connect = connect
        self._on_update = on_update
        self._uris: frozenset[str] = frozenset()
        self._decisions: dict[str, asyncio.Event] = {}
        """Upstream's URI -> set once the upstream has granted or refused its subscription."""
        self._tasks_by_uri: dict[str, asyncio.Task[None]] = {}
        """In the handshake era: upstream's URI -> task."""
        self._joint_tasks: list[asyncio.Task[None]] = []
        """In the per-request era: the subscriptions to all resources, the newest last."""

    def set_resources(self, uris: frozenset[str], *, handshake: bool) -> None:
        """Set the resources to watch, replacing earlier ones.

        Args:
            uris: the upstream's own URIs.
            handshake: whether the upstream uses the handshake era.
        """
        if len(uris) > MAX_WATCHED:
            logger.warning(
                "Clients are subscribed to %d resources of an upstream; only %d are watched", len(uris), MAX_WATCHED
            )
            uris = frozenset(sorted(uris)[:MAX_WATCHED])
        changed, self._uris = uris != self._uris, uris
        self._decisions = {uri: self._decisions.get(uri) or asyncio.Event() for uri in uris}
        start = asyncio.get_running_loop().create_task
        if handshake:
            self._end(self._joint_tasks)
            for uri in self._tasks_by_uri.keys() - uris:
                self._tasks_by_uri.pop(uri).cancel()
            for uri in uris - self._tasks_by_uri.keys():
                self._tasks_by_uri[uri] = start(self._watch((uri,), ()))
        elif changed:
            self._end(list(self._tasks_by_uri.values()))
            self._tasks_by_uri.clear()
            older = list(self._joint_tasks)
            if uris:
                self._joint_tasks.append(start(self._watch(sorted(uris), older)))
            else:
                self._end(older)

    async def wait_until_settled(self, uris: Collection[str], seconds: float) -> None:
        """Wait until the upstream has granted or refused the subscriptions, for at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for uri in uris:
                    if (event := self._decisions.get(uri)) is not None:
                        await event.wait()

    def _end(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in list(tasks):
            task.cancel()
            if task in self._joint_tasks:
                self._joint_tasks.remove(task)

    def _settle(self, uris: Sequence[str]) -> None:
        for uri in uris:
            if (event := self._decisions.get(uri)) is not None:
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
                            self._on_update(change.uri)
                        elif change.kind == "again":
                            for uri in uris:
                                self._on_update(uri)
            except ClientError as exc:
                logger.debug("The subscription to %d resources ended: %s", len(uris), exc)
                self._settle(uris)
            await asyncio.sleep(_RETRY * random.uniform(0.75, 1))  # noqa: S311  jitter

    async def close(self) -> None:
        """Stop watching."""
        tasks = [*self._joint_tasks, *self._tasks_by_uri.values()]
        self._joint_tasks.clear()
        self._tasks_by_uri.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
