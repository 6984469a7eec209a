"""What all workers of one server keep alike: what is offered, what has changed, and the secret.

Each worker has a registry of its own, which its program fills. So when a list changes, each worker says so to its
own clients, and only what one worker alone knows travels: that something was removed, or that a resource changed.
"""

import asyncio
import logging

from millstream._app.definition import Definition
from millstream._server.calls.changes import ANY_UPDATE, ServerChange
from millstream._server.calls.keys import agree
from millstream._server.calls.services import Services
from millstream._server.peer_messages import (
    ItemRemoval,
    ItemSwitch,
    LossNotice,
    ResourceUpdate,
    WorkerGreeting,
    WorkerStart,
)
from millstream._server.peers import PAUSE
from millstream._stores.health import LogOnce

_logger = logging.getLogger("millstream")


class Replicas:
    """This worker's part in it."""

    __slots__ = (
        "_added", "_catching_up", "_definition", "_others", "_receiving", "_removed", "_renewing", "_services",
        "_switched",
    )  # fmt: skip

    def __init__(self, definition: Definition, services: Services) -> None:
        self._definition = definition
        self._services = services
        self._removed: dict[ItemRemoval, None] = definition.removed
        self._switched: dict[tuple[str, str], ItemSwitch] = definition.switched
        self._others: set[str] = set()
        """The workers that were heard of."""
        self._added: list[str] = []
        """What this worker's program added while it ran alone."""
        self._receiving = False
        """What is done now was done elsewhere: nobody has to hear of it."""
        self._catching_up: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        peers = services.peers
        peers.on(
            ResourceUpdate,
            lambda message, worker: services.changes.emit(ServerChange("updated", message.uri)),
            own=True,
        )
        peers.on(ItemRemoval, lambda message, worker: self._remove(message))
        peers.on(ItemSwitch, lambda message, worker: self._switch(message))
        peers.on(WorkerStart, self._welcome)
        peers.on(LossNotice, lambda message, worker: self._inform(worker))
        peers.on(WorkerGreeting, lambda message, worker: self._others.add(worker))
        peers.on_workers(self._count)
        peers.on_interruption(self._catch_up_soon)
        peers.on_loss(self._renew_soon)

    async def join(self) -> None:
        """Ask the others what was removed."""
        if not await self._services.peers.tell(WorkerStart()):
            self._services.peers.tell_soon(WorkerStart())

    @property
    def alone(self) -> bool:
        """No other worker serves, as far as this one has heard."""
        return not self._others

    async def _count(self) -> None:
        for worker in list(self._others):
            if not await self._services.store.workers.alive(worker):
                self._others.discard(worker)

    async def close(self) -> None:
        """End what is under way."""
        if self._catching_up is not None:
            self._catching_up.cancel()
        task = self._renewing
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # What happens here

    def emit(self, change: ServerChange) -> None:
        """Tell a change to the clients of this worker, and of a resource to those of the other workers.

        Where workers share a store, this one hears of it when the others do: by then it has heard of whoever subscribed
        at another one before.
        """
        if change.uri and self._services.peers.shared:
            self._services.peers.tell_soon(ResourceUpdate(change.uri))
        else:
            self._services.changes.emit(change)

    def altered(self, kind: str, key: str, how: str) -> None:
        """Have the others remove an item, too, or switch it ``on`` or ``off``; note what was ``added``."""
        if how == "added":
            self._added.append(key)
        elif self._receiving:
            return
        elif how == "removed":
            self._switched.pop((kind, key), None)
            self._removed[message := ItemRemoval(kind, key)] = None
            self._services.peers.tell_soon(message)
        else:
            known = self._switched.get((kind, key))
            after = 0 if known is None else known.at + 1
            switched = ItemSwitch(kind, key, how == "on", max(self._services.peers.stamp(), after))
            self._services.peers.tell_soon(switched)
            self._apply(switched)  # one of another worker may have come since it was done, in a thread

    # What happened elsewhere

    def _catch_up_soon(self) -> None:
        """Messages may have been lost, from here and to here. More than one part of a store says so."""
        if self._catching_up is None:
            self._catching_up = asyncio.get_running_loop().call_later(PAUSE, self._catch_up)

    def _catch_up(self) -> None:
        """Any resource may have changed, anything may be gone, and somebody may have come."""
        self._catching_up = None
        self._services.changes.emit(ANY_UPDATE)
        self._tell_what_is_gone()
        self._services.peers.tell_soon(LossNotice())

    def _remove(self, message: ItemRemoval) -> None:
        if not self._definition.registry.has(message.kind, message.key):
            return
        self._switched.pop((message.kind, message.key), None)
        self._removed[message] = None
        self._receiving = True
        try:
            self._definition.remove(message.kind, message.key)
        finally:
            self._receiving = False

    def _switch(self, message: ItemSwitch) -> None:
        known = self._switched.get((message.kind, message.key))
        if known is None or (known.at, known.on) < (message.at, message.on):
            self._apply(message)

    def _apply(self, message: ItemSwitch) -> None:
        """Note how an item is, and make it so."""
        registry = self._definition.registry
        if not registry.has(message.kind, message.key):
            return
        self._switched[message.kind, message.key] = message
        if message.on != (message.key in registry.disabled[message.kind]):
            return
        self._receiving = True
        try:
            self._definition.switch(message.kind, message.key, on=message.on)
        finally:
            self._receiving = False

    def _welcome(self, message: WorkerStart, worker: str) -> None:
        if self._added:
            _logger.warning(
                "Another worker has begun, and doesn't have what was added here since the start: %s. Register it "
                "before the server runs, or in its lifespan",
                ", ".join(self._added),
            )
        self._inform(worker)

    def _inform(self, worker: str) -> None:
        """Tell a worker that knows too little what it has to know. All hear it, and it's nothing new to the others."""
        self._others.add(worker)
        self._services.peers.tell_soon(WorkerGreeting())
        self._tell_what_is_gone()

    def _tell_what_is_gone(self) -> None:
        for removed in self._removed:
            if not self._definition.registry.has(removed.kind, removed.key):
                self._services.peers.tell_soon(removed)
        for switched in self._switched.values():
            self._services.peers.tell_soon(switched)

    # The secret

    def _renew_soon(self) -> None:
        if self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        services = self._services
        trouble = LogOnce(
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
