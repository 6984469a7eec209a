"""What all workers of one server keep alike: what is offered, what has changed, and the secret.

Each worker has a registry of its own, which its program fills. So when a list changes, each worker says so to its
own clients, and only what one worker alone knows travels: that something was removed, or that a resource changed.
"""

import asyncio
import logging
from contextlib import suppress

from millstream._app.definition import Definition
from millstream._server.calls.changes import ANY_UPDATE, Change
from millstream._server.calls.keys import agree
from millstream._server.calls.services import Services
from millstream._server.peers import PAUSE, Joined, Missed, Present, Removed, Switched, Updated
from millstream._stores.health import Trouble

_logger = logging.getLogger("millstream")


class Replicas:
    """This worker's part in it."""

    __slots__ = ("_added", "_definition", "_others", "_removed", "_renewing", "_services", "_switched", "_taking")

    def __init__(self, definition: Definition, services: Services) -> None:
        self._definition = definition
        self._services = services
        self._removed: dict[Removed, None] = {}
        """What the program removed while it ran; a worker that begins later hears of it."""
        self._switched: dict[tuple[str, str], Switched] = {}
        """What the program switched while it ran, as it is now."""
        self._others: set[str] = set()
        """The workers that were heard of."""
        self._added: list[str] = []
        """What this worker's program added while it ran alone."""
        self._taking: Removed | Switched | None = None
        """What was done elsewhere and is done now: nobody has to hear of it."""
        self._renewing: asyncio.Task[None] | None = None
        peers = services.peers
        peers.on(Updated, lambda message, worker: services.changes.emit(Change("updated", message.uri)), own=True)
        peers.on(Removed, lambda message, worker: self._remove(message))
        peers.on(Switched, lambda message, worker: self._switch(message))
        peers.on(Joined, self._welcome)
        peers.on(Missed, lambda message, worker: self._tell_what_is_gone())
        peers.on(Present, lambda message, worker: self._others.add(worker))
        peers.on_workers(self._count)
        peers.on_interruption(self._catch_up)
        peers.on_loss(self._renew_soon)

    async def join(self) -> None:
        """Ask the others what was removed."""
        await self._services.peers.tell(Joined())

    @property
    def alone(self) -> bool:
        """No other worker serves, as far as this one has heard."""
        return not self._others

    async def _count(self) -> None:
        for worker in list(self._others):
            if not await self._services.store.workers.alive(worker):
                self._others.discard(worker)

    async def close(self) -> None:
        """End the task."""
        task = self._renewing
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # What happens here

    def emit(self, change: Change) -> None:
        """Tell a change to the clients of this worker, and of a resource to those of the other workers.

        Where workers share a store, this one hears of it when the others do: by then it has heard of whoever subscribed
        at another one before.
        """
        if change.uri and self._services.peers.shared:
            self._services.peers.tell_soon(Updated(change.uri))
        else:
            self._services.changes.emit(change)

    def altered(self, kind: str, key: str, how: str) -> None:
        """Have the others remove an item, too, or switch it ``on`` or ``off``; note what was ``added``."""
        if how == "added":
            self._added.append(key)
            return
        message = self._taking
        if message is None:
            peers = self._services.peers
            message = Removed(kind, key) if how == "removed" else Switched(kind, key, how == "on", peers.stamp())
            peers.tell_soon(message)
        if isinstance(message, Removed):
            self._removed[message] = None
            self._switched.pop((kind, key), None)
        else:
            self._switched[kind, key] = message

    # What happened elsewhere

    def _catch_up(self) -> None:
        """Messages may have been lost, from here and to here: any resource may have changed, anything may be gone."""
        self._services.changes.emit(ANY_UPDATE)
        self._tell_what_is_gone()
        self._services.peers.tell_soon(Missed())

    def _remove(self, message: Removed) -> None:
        self._taking = message
        try:
            with suppress(KeyError):
                self._definition.remove(message.kind, message.key)
        finally:
            self._taking = None

    def _switch(self, message: Switched) -> None:
        known = self._switched.get((message.kind, message.key))
        if known is not None and (known.at, known.on) >= (message.at, message.on):
            return
        self._taking = message
        try:
            with suppress(KeyError):
                self._definition.switch(message.kind, message.key, on=message.on)
        finally:
            self._taking = None

    def _welcome(self, message: Joined, worker: str) -> None:
        self._others.add(worker)
        self._services.peers.tell_soon(Present())
        if self._added:
            _logger.warning(
                "Another worker has begun, and doesn't have what was added here since the start: %s. Register it "
                "before the server runs, or in its lifespan",
                ", ".join(self._added),
            )
        self._tell_what_is_gone()

    def _tell_what_is_gone(self) -> None:
        for each in self._removed:
            if each.key not in getattr(self._definition.registry, each.kind):
                self._services.peers.tell_soon(each)
        for switched in self._switched.values():
            self._services.peers.tell_soon(switched)

    # The secret

    def _renew_soon(self) -> None:
        if self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        services = self._services
        trouble = Trouble(
            _logger, "The secret can't be put into the store, which is tried again", "The secret is in the store."
        )
        try:
            while services.store.shared:
                with trouble:
                    services.use(await agree(services.store, services.settings.key, services.secrets))
                    return
                await asyncio.sleep(PAUSE)
        finally:
            self._renewing = None
