"""Replication between workers of one server: disabled and removed items, resource updates, and the secret.

Each worker has its own registry, filled by its program. When a list changes, each worker notifies its own clients, so
messages between workers are needed only for what a single worker knows: removed items and updated resources.
"""

import asyncio
import logging

from millstream._app.definition import Definition
from millstream._server.calls.keys import agree
from millstream._server.calls.services import ANY_UPDATE, ServerChange, Services
from millstream._server.peers import (
    PAUSE,
    ItemRemoval,
    ItemSwitch,
    LossNotice,
    ResourceUpdate,
    WorkerGreeting,
    WorkerStart,
)
from millstream._stores.health import LogOnce
from millstream._tasks import cancel_all

_logger = logging.getLogger("millstream")


class Replicas:
    """This worker's part of the replication."""

    def __init__(self, definition: Definition, services: Services) -> None:
        self._definition = definition
        self._services = services
        self._removed: dict[ItemRemoval, None] = definition.removed
        self._switched: dict[tuple[str, str], ItemSwitch] = definition.switched
        self._others: set[str] = set()
        """Known workers."""
        self._added: list[str] = []
        """Items that this worker's program added while it ran alone."""
        self._receiving = False
        """Set while a change from another worker is applied, so that it isn't sent again."""
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
        """Whether no other worker is known to serve."""
        return not self._others

    async def _count(self) -> None:
        for worker in list(self._others):
            if not await self._services.store.workers.alive(worker):
                self._others.discard(worker)

    async def close(self) -> None:
        """Cancel running tasks."""
        if self._catching_up is not None:
            self._catching_up.cancel()
        await cancel_all(self._renewing)

    # Local changes

    def emit(self, change: ServerChange) -> None:
        """Pass a change to the clients of this worker, and a resource update to other workers as well.

        With a shared store, this worker receives the update when the others do, after learning about earlier
        subscriptions on other workers.
        """
        if change.uri and self._services.peers.shared:
            self._services.peers.tell_soon(ResourceUpdate(change.uri))
        else:
            self._services.changes.emit(change)

    def on_change(self, kind: str, key: str, how: str) -> None:
        """Make the others remove an item or switch it ``on`` or ``off``, and record items that were ``added``."""
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
            self._apply(switched)  # one from another worker may have arrived since the change in a thread

    # Remote changes

    def _catch_up_soon(self) -> None:
        """Resynchronize after messages may have been lost. Several parts of a store can report that."""
        if self._catching_up is None:
            self._catching_up = asyncio.get_running_loop().call_later(PAUSE, self._catch_up)

    def _catch_up(self) -> None:
        """Assume that any resource has changed, any item was removed, and a worker has joined."""
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
        """Record the state of an item, and apply it."""
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
                "Another worker started without what this one has registered since its start: %s. Register it before "
                "the server runs, or in its lifespan.",
                ", ".join(self._added),
            )
        self._inform(worker)

    def _inform(self, worker: str) -> None:
        """Send an outdated worker what it's missing. All workers receive it, without effect on the others."""
        self._others.add(worker)
        self._services.peers.tell_soon(WorkerGreeting())
        self._tell_what_is_gone()

    def _tell_what_is_gone(self) -> None:
        for removed in self._removed:
            if not self._definition.registry.has(removed.kind, removed.key):
                self._services.peers.tell_soon(removed)
        for switched in self._switched.values():
            self._services.peers.tell_soon(switched)

    # Secret

    def _renew_soon(self) -> None:
        if self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        services = self._services
        trouble = LogOnce(
            _logger, "The secret can't be written to the store, and will be retried", "The secret is in the store."
        )
        try:
            while services.store.shared:
                with trouble:
                    services.use(await agree(services.store, services.settings.secret_key, services.secrets))
                    return
                await asyncio.sleep(PAUSE)
        finally:
            self._renewing = None
